//! The tables that pesto's clients read and replace, laid over the ports of the instance.
//!
//! | table | holds |
//! |---|---|
//! | `HOST` | every published port that a table can hold, and `auto` |
//! | `SPLICE` | ports of the guest's loopback that lead to the host's, where there can be any |
//!
//! They hold what there is however it came: at the start, by the control socket, by pesto. They
//! remember what the ports themselves do not: the order, and which rules wait for their port.
//! Nobody is there to be told that a port is taken, so it is said in the log and tried again every
//! [`RETRY`], as the original does.

use std::time::Duration;

use super::ports::Ports;
use crate::control::api::Failure;
use crate::control::pesto::{HOST, PifTable, SPLICE};
use crate::gate::AddressPlan;
use crate::gate::forward::ForwardId;
use crate::gate::table::{Caps, MAX_RULES, Table, TableRule};

/// How long after a failure a port is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// A rule, and the port that it is; `None` while the port is not to be had.
struct Entry {
    rule: TableRule,
    port: Option<ForwardId>,
}

/// One table.
struct Side {
    pif: u8,
    caps: Caps,
    entries: Vec<Entry>,
}

/// The tables of an instance.
pub(super) struct Tables(Vec<Side>);

/// What an instance can follow.
#[derive(Clone, Copy)]
pub(super) struct Follows {
    /// What listens in the guest.
    pub(super) guest: bool,
    /// What listens on the host.
    pub(super) host: bool,
}

impl Tables {
    /// The tables of an instance with `plan` and `ports`.
    pub(super) fn new(plan: &AddressPlan, ports: &Ports, follows: Follows) -> Tables {
        let without = |missing: bool, caps| if missing { caps } else { Caps(0) };
        let caps = Caps::ALL
            .without(without(plan.v4.is_none(), Caps::IPV4))
            .without(without(plan.v6.is_none(), Caps::IPV6));
        let side = |pif, follows: bool| {
            let caps = caps.without(without(!follows, Caps::SCAN));
            Side { pif, caps, entries: Vec::new() }
        };
        let splice = ports.has_inner().then(|| side(SPLICE, follows.host));
        Tables([side(HOST, follows.guest)].into_iter().chain(splice).collect())
    }

    /// The tables as they are told to clients, each cut to what one may have.
    pub(super) fn told(&mut self, ports: &Ports) -> Vec<PifTable> {
        self.0.iter_mut().map(|side| side.told(ports)).collect()
    }

    /// Makes `wanted` the tables: closes what is not among them, opens what is new, and leaves
    /// alone what was there. What the last client was not told of stays as it is.
    pub(super) async fn replace(&mut self, ports: &mut Ports, wanted: &[PifTable]) {
        for side in &mut self.0 {
            if let Some(table) = wanted.iter().find(|table| table.pif == side.pif) {
                side.replace(ports, table.table.rules()).await;
            }
        }
        let rules: usize = wanted.iter().map(|table| table.table.rules().len()).sum();
        tracing::info!(rules, "pesto has replaced the forwarded ports");
    }

    /// Whether a rule waits for its port.
    pub(super) fn waits(&self) -> bool {
        self.0.iter().flat_map(|side| &side.entries).any(|entry| entry.port.is_none())
    }

    /// Opens what waits, as far as it is free now.
    pub(super) fn retry(&mut self, ports: &mut Ports) {
        for side in &mut self.0 {
            for entry in side.entries.iter_mut().filter(|entry| entry.port.is_none()) {
                let port = match side.pif {
                    SPLICE => ports.open_inner(&entry.rule).ok(),
                    _ => ports.try_open(&entry.rule),
                };
                if port.is_some() {
                    tracing::info!("forwarded at last: {}", entry.rule);
                }
                entry.port = port;
            }
        }
    }
}

impl Side {
    fn told(&mut self, ports: &Ports) -> PifTable {
        self.refresh(ports);
        let rules = self.entries.iter().map(|entry| entry.rule.clone()).take(MAX_RULES).collect();
        let name = if self.pif == SPLICE { "SPLICE" } else { "HOST" };
        let table = Table::received(self.caps, rules);
        PifTable { pif: self.pif, name: name.to_owned(), table }
    }

    async fn replace(&mut self, ports: &mut Ports, rules: &[TableRule]) {
        self.refresh(ports);
        let mut old: Vec<Entry> = std::mem::take(&mut self.entries);
        let beyond = old.split_off(old.len().min(MAX_RULES));
        let (mut kept, gone): (Vec<Entry>, Vec<Entry>) =
            old.into_iter().partition(|entry| rules.contains(&entry.rule));
        let gone: Vec<ForwardId> = gone.into_iter().filter_map(|entry| entry.port).collect();
        if !gone.is_empty() {
            ports.close(&gone).await;
        }
        for rule in rules {
            let entry = match kept.iter().position(|entry| entry.rule == *rule) {
                Some(at) => kept.swap_remove(at),
                None => {
                    let port = self.open(ports, rule).map_err(|failure| {
                        tracing::warn!("not forwarded yet: {rule}: {failure}");
                    });
                    Entry { rule: rule.clone(), port: port.ok() }
                }
            };
            self.entries.push(entry);
        }
        self.entries.extend(beyond);
    }

    fn open(&self, ports: &mut Ports, rule: &TableRule) -> Result<ForwardId, Failure> {
        match self.pif {
            SPLICE => ports.open_inner(rule),
            _ => ports.open(rule),
        }
    }

    /// Drops what others have removed, and takes up what others have added.
    fn refresh(&mut self, ports: &Ports) {
        self.entries.retain(|entry| entry.port.is_none_or(|port| ports.has(port)));
        let rules: Vec<(ForwardId, TableRule)> = match self.pif {
            SPLICE => ports.inner_rules(self.caps).collect(),
            _ => ports.rules().collect(),
        };
        for (port, rule) in rules {
            if !self.entries.iter().any(|entry| entry.port == Some(port)) {
                self.entries.push(Entry { rule, port: Some(port) });
            }
        }
    }
}
