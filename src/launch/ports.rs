//! The ports of an instance: those that were asked for, and those that follow who listens.
//!
//! Holds what is published and exposed, opens host sockets for it and gives them to the worker.
//! Everything happens on the control thread, one change after the other, so that what is listed is
//! what is open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::sync::{oneshot, watch};

use crate::control::api::{ErrorCode, Failure, Rule, Selector};
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
use super::refusals::Refusals;

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

    /// Adds what `rules` say: all of it, or nothing.
    pub(super) fn add(&mut self, rules: Vec<Rule>) -> Result<Vec<PortRecord>, Failure> {
        self.check_guest_addresses(&rules)?;
        self.check_overlaps(&rules)?;
        let mut opened = Vec::new();
        for rule in &rules {
            if let Rule::Publish(forward) = rule
                && !forward.when_listening
            {
                opened.push(self.opener.open(forward).map_err(|error| failure(&error))?);
            }
        }
        let mut opened = opened.into_iter();
        let mut ids = Vec::with_capacity(rules.len());
        for rule in rules {
            ids.push(match rule {
                Rule::Expose(exposure) => self.expose(exposure, false),
                Rule::Publish(forward) if forward.when_listening => {
                    self.enter_waiting(forward, false)
                }
                Rule::Publish(forward) => {
                    // One was opened for each of these, in this order.
                    let Some(opened) = opened.next() else { continue };
                    self.enter(forward, opened, false)
                }
            });
        }
        Ok(ids.iter().filter_map(|id| self.record(*id, None)).collect())
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

    fn check_overlaps(&self, rules: &[Rule]) -> Result<(), Failure> {
        let in_use = |rule: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::InUse, format!("{rule} overlaps {other}"))
        };
        for (position, rule) in rules.iter().enumerate() {
            match rule {
                Rule::Publish(forward) => {
                    let present = self.published.values().map(|port| &port.forward);
                    let before = rules[..position].iter().filter_map(|rule| match rule {
                        Rule::Publish(forward) => Some(forward),
                        Rule::Expose(_) => None,
                    });
                    if let Some(other) = present.chain(before).find(|other| other.overlaps(forward))
                    {
                        return Err(in_use(forward, other));
                    }
                }
                Rule::Expose(exposure) => {
                    let present = self.exposed.values().map(|port| &port.exposure);
                    let before = rules[..position].iter().filter_map(|rule| match rule {
                        Rule::Expose(exposure) => Some(exposure),
                        Rule::Publish(_) => None,
                    });
                    let clashes = |other: &&Exposure| {
                        other.transport == exposure.transport
                            && other.ports.overlaps(exposure.ports)
                    };
                    if let Some(other) = present.chain(before).find(clashes) {
                        return Err(in_use(exposure, other));
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes what `selector` means; the host ports are free when it returns.
    pub(super) async fn remove(&mut self, selector: Selector) -> Result<Vec<PortRecord>, Failure> {
        let ids = self.selected(&selector);
        if ids.is_empty() {
            return Err(Failure::new(ErrorCode::NotFound, not_found(&selector)));
        }
        let records = ids.iter().filter_map(|id| self.record(*id, None)).collect();
        self.close(&ids).await;
        Ok(records)
    }

    fn selected(&self, selector: &Selector) -> Vec<ForwardId> {
        let rules = match selector {
            Selector::Id(id) => {
                let known = self.published.contains_key(id) || self.exposed.contains_key(id);
                return known.then_some(*id).into_iter().collect();
            }
            Selector::Rules(rules) => rules,
        };
        let meant = |rule: &Rule| -> Vec<ForwardId> {
            match rule {
                Rule::Publish(forward) => {
                    let same = |other: &Forward| {
                        Forward { when_listening: forward.when_listening, ..other.clone() }
                            == *forward
                    };
                    let found = self.published.iter();
                    let found = found.filter(|(_, port)| same(&port.rule) || same(&port.forward));
                    found.map(|(id, _)| *id).collect()
                }
                Rule::Expose(exposure) => {
                    let found = self.exposed.iter().filter(|(_, port)| port.exposure == *exposure);
                    found.map(|(id, _)| *id).collect()
                }
            }
        };
        let ids: BTreeSet<ForwardId> = rules.iter().flat_map(meant).collect();
        ids.into_iter().collect()
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

    // --- following who listens ---

    /// Opens and closes what depends on `guest`, what listens there now.
    pub(super) async fn follow_guest(&mut self, guest: &PortTable) {
        self.follow_conditional(guest).await;
        let mut taken = PortTable::default();
        for port in self.published.values().filter(|port| !port.auto) {
            enter_host_ports(&mut taken, &port.forward);
        }
        // What we have opened at the guest's loopback is the host's already.
        self.inner.enter_ports(&mut taken);
        let wanted: BTreeSet<Followed> = self
            .auto_publish
            .iter()
            .flat_map(|(id, known)| {
                auto::published(&known.auto, guest, &taken).into_iter().map(|port| (*id, port))
            })
            .take(auto::MOST)
            .collect();
        let changes = self.following.turn(&wanted);
        let closing: Vec<ForwardId> =
            changes.close.iter().filter_map(|port| self.by_port.remove(port)).collect();
        if !closing.is_empty() {
            self.close(&closing).await;
        }
        let mut refusals = Refusals::default();
        for followed in changes.open {
            let Some((forward, weak)) = self.followed(followed) else { continue };
            match self.opener.open(&forward) {
                Ok(opened) => {
                    let id = self.enter(forward, opened, true);
                    self.by_port.insert(followed, id);
                }
                Err(error) => {
                    if self.following.refused(followed) && !weak {
                        refusals.add(&error);
                    }
                }
            }
        }
        refusals.tell();
    }

    /// Follows what is known already of the guest: a port that waits may have its server there.
    pub(super) async fn follow_known(
        &mut self,
        guest: Option<&watch::Receiver<Option<PortTable>>>,
    ) {
        let known = guest.and_then(|guest| guest.borrow().clone());
        if let Some(table) = known {
            self.follow_guest(&table).await;
        }
    }

    /// The forwards that are open only while the guest listens.
    async fn follow_conditional(&mut self, guest: &PortTable) {
        let forwards = self.published.iter().map(|(id, port)| (*id, &port.forward));
        let wanted = auto::conditional(forwards, guest, &self.reach);
        let changes = self.conditional.turn(&wanted);
        if !changes.close.is_empty() {
            let what = changes.close.iter().map(|port| Withdrawal {
                forward: port.forward,
                guest_port: Some(port.guest_port),
            });
            self.withdraw(what).await;
            for port in &changes.close {
                // Before the next one is made: it could be taken for that one, whose inode may
                // have the same number.
                if let Some(known) = self.published.get_mut(&port.forward) {
                    known.file = None;
                }
            }
        }
        let mut refusals = Refusals::default();
        for port in changes.open {
            let Some(known) = self.published.get(&port.forward) else { continue };
            let (forward, weak) = (single(&known.forward, port.guest_port), known.weak);
            match self.opener.open(&forward) {
                Ok(opened) => self.enter_conditional(port, &forward, opened),
                Err(error) => {
                    if self.conditional.refused(port) && !weak {
                        refusals.add(&error);
                    }
                }
            }
        }
        refusals.tell();
    }

    /// Whether something that is wanted was refused.
    pub(super) fn waits(&self) -> bool {
        self.following.refusals().next().is_some() || self.conditional.refusals().next().is_some()
    }

    /// Opens what was refused, as far as it is free now.
    pub(super) fn retry(&mut self) {
        let refused: Vec<Followed> = self.following.refusals().collect();
        for followed in refused {
            let Some((forward, _)) = self.followed(followed) else { continue };
            if let Some(opened) = self.opener.try_open(&forward) {
                self.following.opened(followed);
                let id = self.enter(forward, opened, true);
                self.by_port.insert(followed, id);
            }
        }
        let refused: Vec<ConditionalPort> = self.conditional.refusals().collect();
        for port in refused {
            let Some(known) = self.published.get(&port.forward) else { continue };
            let forward = single(&known.forward, port.guest_port);
            if let Some(opened) = self.opener.try_open(&forward) {
                self.conditional.opened(port);
                self.enter_conditional(port, &forward, opened);
            }
        }
    }

    /// The forward by which a port is followed, and whether it may fail without a word.
    fn followed(&self, (id, port): Followed) -> Option<(Forward, bool)> {
        let Following { rule, auto } = self.auto_publish.get(&id)?;
        Some((port.forward(&auto.bound), rule.weak))
    }

    /// Hands over the open part of a forward that is open only while the guest listens.
    fn enter_conditional(&mut self, port: ConditionalPort, forward: &Forward, opened: Opened) {
        let Some(known) = self.published.get_mut(&port.forward) else { return };
        if known.forward.guest_ports.count() == 1 {
            known.forward.listen = opened.forward.listen.clone();
            known.file = opened.file;
        }
        self.hand_over(port.forward, forward, opened.sockets);
    }

    /// Opens and closes what depends on `host`, what listens at the host's loopback now.
    pub(super) async fn follow_host(&mut self, host: &PortTable) {
        let mut ours = std::mem::take(&mut self.just_closed);
        for port in self.published.values() {
            enter_loopback_ports(&mut ours, &port.forward);
        }
        let mut taken = PortTable::default();
        for port in self.exposed.values().filter(|port| !port.auto) {
            for family in [Family::V4, Family::V6] {
                let set = taken.of_mut(port.exposure.transport, family);
                set.insert_range(port.exposure.ports);
            }
        }
        let wanted: BTreeSet<AutoService> = self
            .auto_expose
            .iter()
            .flat_map(|rule| auto::exposed(rule, host, &ours, &taken))
            .collect();
        let changes = self.following_host.turn(&wanted);
        let closing: Vec<ForwardId> =
            changes.close.iter().filter_map(|service| self.by_service.remove(service)).collect();
        if !closing.is_empty() {
            self.close(&closing).await;
        }
        for service in changes.open {
            let id = self.expose(service.exposure(), true);
            self.by_service.insert(service, id);
        }
        self.inner.follow_host(host, &ours).await;
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

/// The part of `forward` that leads to `guest_port`.
fn single(forward: &Forward, guest_port: u16) -> Forward {
    let offset = guest_port - forward.guest_ports.first();
    let listen = match &forward.listen {
        Listen::Ports { address, interface, ports } if ports.first() != 0 => Listen::Ports {
            address: *address,
            interface: interface.clone(),
            ports: PortRange::single(ports.first() + offset),
        },
        listen => listen.clone(),
    };
    Forward { listen, guest_ports: PortRange::single(guest_port), ..forward.clone() }
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

fn not_found(selector: &Selector) -> String {
    match selector {
        Selector::Id(ForwardId(id)) => format!("there is no port with number {id}"),
        Selector::Rules(rules) => {
            let text = |rule: &Rule| match rule {
                Rule::Publish(forward) => forward.to_string(),
                Rule::Expose(exposure) => exposure.to_string(),
            };
            let rules: Vec<String> = rules.iter().map(text).collect();
            format!("there is no port {}", rules.join(", "))
        }
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
