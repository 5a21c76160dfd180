//! The ports of an instance: those that were asked for ([`asked`]), and those that follow who
//! listens ([`follow`]).
//!
//! Holds what is published and exposed, opens host sockets for it and gives them to the worker.
//! Everything happens on the control thread, one change after the other, so that what is listed is
//! what is open.

mod asked;
mod follow;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::sync::oneshot;

use crate::control::api::{ErrorCode, Failure, Rule};
use crate::engine::thread::CommandSender;
use crate::engine::{Command, Published, Reply, Withdrawal};
use crate::gate::AddressPlan;
use crate::gate::auto::{self, AutoPort, AutoService, ConditionalPort, Standing};
use crate::gate::forward::{AutoForward, Exposure, Forward, ForwardId, Inner, Listen, PortRange};
use crate::gate::ports::{Family, PortTable, Reach};
use crate::gate::table::{Caps, TableRule};
use crate::observe::PortRecord;
use crate::setup::chain;
use crate::setup::inside::{Inside, OpenInner};
use crate::setup::listen::{self, AtStart, ListenError, Opened, Opener, SocketFile};

use super::inner::InnerPorts;

/// What leads from one side to the other at the start.
#[derive(Default)]
pub struct PortOptions {
    /// Published ports, open or waiting.
    pub at_start: AtStart,
    /// What is published as soon as the guest listens.
    pub auto_publish: Vec<AutoForward>,
    /// Exposed ports.
    pub expose: Vec<Exposure>,
    /// What is exposed as soon as the host listens.
    pub auto_expose: Vec<AutoForward>,
    /// Opens sockets in the guest's namespace, for the two that follow.
    pub inside: Option<Inside>,
    /// Ports of the guest's loopback that lead to the host's, with what is open of them.
    pub inner: Vec<(Inner, Vec<OpenInner>)>,
    /// How host sockets are opened.
    pub opener: Opener,
}

/// A published port or range.
struct PublishedPort {
    /// As it was asked for.
    rule: Forward,
    /// As it is: a port that was left to the kernel is filled in.
    forward: Forward,
    auto: bool,
    /// A port that cannot be had is no news.
    weak: bool,
    /// Of an open Unix socket; dropping it removes the file.
    file: Option<SocketFile>,
}

/// An exposed port or range.
struct ExposedPort {
    exposure: Exposure,
    auto: bool,
}

/// A rule by which ports follow who listens in the guest.
struct Following {
    rule: TableRule,
    auto: AutoForward,
}

/// A port that follows who listens in the guest, by its rule.
type Followed = (ForwardId, AutoPort);

/// All ports of an instance.
pub(super) struct Ports {
    worker: CommandSender,
    last_id: u64,
    published: BTreeMap<ForwardId, PublishedPort>,
    exposed: BTreeMap<ForwardId, ExposedPort>,
    /// What is published as soon as the guest listens.
    auto_publish: BTreeMap<ForwardId, Following>,
    auto_expose: Vec<AutoForward>,
    plan: AddressPlan,
    /// Where the guest's servers are reached.
    reach: Reach,
    conditional: Standing<ConditionalPort>,
    following: Standing<Followed>,
    following_host: Standing<AutoService>,
    by_port: BTreeMap<Followed, ForwardId>,
    by_service: BTreeMap<AutoService, ForwardId>,
    /// The guest's loopback in front of the host's.
    inner: InnerPorts,
    /// Host ports that the last change has closed: what is known of the host may be older.
    just_closed: PortTable,
    opener: Opener,
}

impl Ports {
    /// The ports of the start; the worker begins to serve them.
    pub(super) fn new(worker: CommandSender, plan: AddressPlan, options: PortOptions) -> Ports {
        let PortOptions { at_start, auto_publish, expose, auto_expose, inside, inner, opener } =
            options;
        let mut ports = Ports {
            inner: InnerPorts::new(worker.clone(), inside),
            worker,
            last_id: 0,
            published: BTreeMap::new(),
            exposed: BTreeMap::new(),
            auto_publish: BTreeMap::new(),
            auto_expose,
            reach: reach(&plan),
            plan,
            conditional: Standing::default(),
            following: Standing::default(),
            following_host: Standing::default(),
            by_port: BTreeMap::new(),
            by_service: BTreeMap::new(),
            just_closed: PortTable::default(),
            opener,
        };
        for opened in at_start.opened {
            ports.enter(opened.forward.clone(), opened, false);
        }
        for (forward, weak) in at_start.waiting {
            ports.enter_waiting(forward, weak);
        }
        for exposure in expose {
            ports.expose(exposure, false);
        }
        for (rule, open) in inner {
            let id = ports.next_id();
            ports.inner.enter(id, rule, open);
        }
        for auto in &auto_publish {
            for rule in TableRule::of_auto(auto) {
                ports.follow(rule);
            }
        }
        ports
    }

    /// How many there are, ranges counted once.
    pub(super) fn len(&self) -> usize {
        self.published.len() + self.exposed.len()
    }

    /// Whether what listens in the guest matters.
    pub(super) fn follows_guest(&self) -> bool {
        !self.auto_publish.is_empty()
            || self.published.values().any(|port| port.forward.when_listening)
    }

    /// Whether what listens on the host matters.
    pub(super) fn follows_host(&self) -> bool {
        !self.auto_expose.is_empty() || self.inner.follows_host()
    }

    /// All ports; `guest` is what listens in the guest, if that is known.
    pub(super) fn records(&self, guest: Option<&PortTable>) -> Vec<PortRecord> {
        let ids = self.published.keys().chain(self.exposed.keys());
        ids.filter_map(|id| self.record(*id, guest)).collect()
    }

    fn record(&self, id: ForwardId, guest: Option<&PortTable>) -> Option<PortRecord> {
        if let Some(port) = self.published.get(&id) {
            let listening = guest.and_then(|guest| self.is_heard(&port.forward, guest));
            let record = PortRecord::published(id, &port.forward);
            return Some(PortRecord { auto: port.auto, listening, ..record });
        }
        let port = self.exposed.get(&id)?;
        Some(PortRecord { auto: port.auto, ..PortRecord::exposed(id, &port.exposure) })
    }

    /// Whether somebody hears clients at every guest port of `forward`.
    fn is_heard(&self, forward: &Forward, guest: &PortTable) -> Option<bool> {
        let mut ports = forward.guest_ports.first()..=forward.guest_ports.last();
        ports.try_fold(true, |all, port| {
            Some(all && auto::is_heard(forward, port, guest, &self.reach)?)
        })
    }

    fn check_guest_addresses(&self, rules: &[Rule]) -> Result<(), Failure> {
        let impossible = rules.iter().find_map(|rule| match rule {
            Rule::Publish(Forward { guest_address: Some(address), .. }) => {
                self.plan.inbound(None, Some(*address)).is_none().then_some(address)
            }
            _ => None,
        });
        match impossible {
            None => Ok(()),
            Some(address) => {
                let text = format!("{address} is not an address that the guest can have");
                Err(Failure::new(ErrorCode::Invalid, text))
            }
        }
    }

    /// Publishes by one rule that no other overlaps; a weak one as far as its ports are free.
    pub(super) fn open(&mut self, rule: &TableRule) -> Result<ForwardId, Failure> {
        if rule.auto().is_some() {
            return Ok(self.follow(rule.clone()));
        }
        let forward = rule.forward();
        self.check_guest_addresses(&[Rule::Publish(forward.clone())])?;
        if rule.scan {
            return Ok(self.enter_waiting(forward, rule.weak));
        }
        let opener = self.opener;
        let opened = if rule.weak { opener.open_free(&forward) } else { opener.open(&forward) };
        Ok(self.enter(forward, opened.map_err(|error| failure(&error))?, false))
    }

    /// As [`Ports::open`], of a rule that could not be opened before, without asking why.
    pub(super) fn try_open(&mut self, rule: &TableRule) -> Option<ForwardId> {
        let forward = rule.forward();
        self.check_guest_addresses(&[Rule::Publish(forward.clone())]).ok()?;
        let opened = match rule.weak {
            true => self.opener.open_free(&forward).ok(),
            false => self.opener.try_open(&forward),
        };
        Some(self.enter(forward, opened?, false))
    }

    /// Leads ports of the guest's loopback to the host's, by one rule that no other overlaps.
    pub(super) fn open_inner(&mut self, rule: &TableRule) -> Result<ForwardId, Failure> {
        let failed = |text: String| Failure::new(ErrorCode::Failed, text);
        let inner = rule.inner().ok_or_else(|| failed("it leads nowhere".to_owned()))?;
        let id = self.next_id();
        self.inner.open(id, inner).map_err(|error| failed(chain(&error)))?;
        Ok(id)
    }

    /// Whether ports of the guest's loopback can lead to the host's.
    pub(super) fn has_inner(&self) -> bool {
        self.inner.are_possible()
    }

    /// Whether there is a port `id`.
    pub(super) fn has(&self, id: ForwardId) -> bool {
        self.published.contains_key(&id)
            || self.exposed.contains_key(&id)
            || self.auto_publish.contains_key(&id)
            || self.inner.has(id)
    }

    /// The rules by which host ports lead into the guest, as far as a table can hold them; a port
    /// that was picked is filled in.
    pub(super) fn rules(&self) -> impl Iterator<Item = (ForwardId, TableRule)> {
        let asked_for = self.published.iter().filter(|(_, port)| !port.auto);
        let named = asked_for.filter_map(|(id, port)| {
            let rule = TableRule::of(&port.forward)?;
            Some((*id, TableRule { weak: port.weak, ..rule }))
        });
        named.chain(self.auto_publish.iter().map(|(id, known)| (*id, known.rule.clone())))
    }

    /// The rules by which ports of the guest's loopback lead to the host's, of an owner that can do
    /// `caps`.
    pub(super) fn inner_rules(&self, caps: Caps) -> impl Iterator<Item = (ForwardId, TableRule)> {
        self.inner.rules().map(move |(id, rule)| (id, TableRule::of_inner(rule, caps)))
    }

    /// Closes the ports `ids`, and waits until their sockets are closed.
    pub(super) async fn close(&mut self, ids: &[ForwardId]) {
        let mut withdrawn = Vec::with_capacity(ids.len());
        for id in ids {
            if self.inner.has(*id) {
                self.inner.close(*id).await;
                continue;
            }
            withdrawn.push(*id);
            if self.auto_publish.remove(id).is_some() {
                self.following.forget(|(rule, _)| rule == id);
                withdrawn.extend(
                    self.by_port.extract_if(.., |(rule, _), _| rule == id).map(|(_, port)| port),
                );
            }
        }
        for id in &withdrawn {
            if let Some(port) = self.published.remove(id) {
                enter_loopback_ports(&mut self.just_closed, &port.forward);
            }
            self.exposed.remove(id);
        }
        self.withdraw(
            withdrawn.into_iter().map(|forward| Withdrawal { forward, guest_port: None }),
        )
        .await;
    }

    /// Lets ports follow who listens in the guest.
    fn follow(&mut self, rule: TableRule) -> ForwardId {
        let id = self.next_id();
        if let Some(auto) = rule.auto() {
            // As pasta has it, whose guests share their host's networks.
            let auto = AutoForward { with_tcp: self.plan.sharing.is_some(), ..auto };
            self.auto_publish.insert(id, Following { rule, auto });
        }
        id
    }

    async fn withdraw(&self, what: impl Iterator<Item = Withdrawal>) {
        let (closed, wait) = oneshot::channel();
        let reply = Reply::new(move |()| {
            let _ = closed.send(());
        });
        self.worker.send(Command::Withdraw(what.collect(), reply));
        // A worker that has ended has closed everything.
        let _ = wait.await;
    }

    fn next_id(&mut self) -> ForwardId {
        self.last_id += 1;
        ForwardId(self.last_id)
    }

    fn enter(&mut self, rule: Forward, opened: Opened, auto: bool) -> ForwardId {
        let id = self.next_id();
        let Opened { forward, sockets, file, weak, .. } = opened;
        self.hand_over(id, &forward, sockets);
        self.published.insert(id, PublishedPort { rule, forward, auto, weak, file });
        id
    }

    fn enter_waiting(&mut self, forward: Forward, weak: bool) -> ForwardId {
        let id = self.next_id();
        let rule = forward.clone();
        let port = PublishedPort { rule, forward, auto: false, weak, file: None };
        self.published.insert(id, port);
        id
    }

    fn hand_over(&self, id: ForwardId, forward: &Forward, sockets: Vec<listen::OpenSocket>) {
        let entry = |open: listen::OpenSocket| {
            let rule = Published {
                forward: id,
                transport: forward.transport,
                guest_address: forward.guest_address,
                guest_port: open.guest_port,
            };
            (rule, open.socket)
        };
        self.worker.send(Command::Publish(sockets.into_iter().map(entry).collect()));
    }

    fn expose(&mut self, exposure: Exposure, auto: bool) -> ForwardId {
        let id = self.next_id();
        self.worker.send(Command::Expose(vec![(id, exposure.clone())]));
        self.exposed.insert(id, ExposedPort { exposure, auto });
        id
    }
}

/// The addresses at which the guest's servers are reached.
pub(super) fn reach(plan: &AddressPlan) -> Reach {
    let v4 = plan.v4.map(|v4| v4.guest.into());
    let v6 = plan.v6.map(|v6| v6.guest.into());
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let loopback = loopback.into_iter().filter(|_| plan.joins_loopbacks());
    Reach(v4.into_iter().chain(v6).chain(loopback).collect())
}

/// Enters the host ports of `forward` into `table`.
fn enter_host_ports(table: &mut PortTable, forward: &Forward) {
    let Listen::Ports { address, ports, .. } = &forward.listen else { return };
    if *ports == PortRange::ANY {
        return;
    }
    for family in [Family::V4, Family::V6] {
        if address.is_none_or(|address| Family::of(address) == family) {
            table.of_mut(forward.transport, family).insert_range(*ports);
        }
    }
}

/// As [`enter_host_ports`], if the host's loopback is among the addresses of `forward`. At another
/// address it is in nobody's way there.
fn enter_loopback_ports(table: &mut PortTable, forward: &Forward) {
    let Listen::Ports { address, .. } = &forward.listen else { return };
    if address.is_none_or(|address| address.is_unspecified() || address.is_loopback()) {
        enter_host_ports(table, forward);
    }
}

/// A listener's error in the protocol's words.
fn failure(error: &ListenError) -> Failure {
    let code = match error {
        ListenError::InUse { .. } | ListenError::SocketInUse(_) => ErrorCode::InUse,
        ListenError::Privileged { .. } => ErrorCode::Denied,
        ListenError::NoneFree { .. }
        | ListenError::Descriptors { .. }
        | ListenError::NoDescriptor { .. } => ErrorCode::Limit,
        ListenError::NoSuchAddress { .. }
        | ListenError::NoSuchInterface { .. }
        | ListenError::NotASocket(_) => ErrorCode::Invalid,
        ListenError::Handed { .. } | ListenError::Unix { .. } | ListenError::Socket { .. } => {
            ErrorCode::Failed
        }
    };
    Failure { code, desc: chain(error), hint: error.hint() }
}

#[cfg(test)]
mod tests;
