//! The table of host ports that pesto's clients read and replace, laid over the ports of the
//! instance.
//!
//! The table holds every published port that a table can hold, however it came: at the start, by
//! the control socket, by pesto. It remembers what the ports themselves do not: the order, which
//! rules are weak, and which wait for their port. Nobody is there to be told that a port is taken,
//! so it is said in the log and tried again every [`RETRY`], as the original does.

use std::time::Duration;

use super::ports::Ports;
use crate::control::pesto::{HOST, PifTable};
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

/// The table of host ports.
pub(super) struct HostTable {
    caps: Caps,
    entries: Vec<Entry>,
}

impl HostTable {
    /// An empty table of an instance with `plan`. `follows` tells whether ports can depend on what
    /// listens in the guest.
    pub(super) fn new(plan: &AddressPlan, follows: bool) -> HostTable {
        let without = |missing: bool, caps| if missing { caps } else { Caps(0) };
        let caps = Caps::ALL
            .without(without(plan.v4.is_none(), Caps::IPV4))
            .without(without(plan.v6.is_none(), Caps::IPV6))
            .without(without(!follows, Caps::SCAN));
        HostTable { caps, entries: Vec::new() }
    }

    /// The table as it is told to clients, cut to what one may have.
    pub(super) fn told(&mut self, ports: &Ports) -> PifTable {
        self.refresh(ports);
        let rules = self.entries.iter().map(|entry| entry.rule.clone()).take(MAX_RULES).collect();
        let table = Table::received(self.caps, rules);
        PifTable { pif: HOST, name: "HOST".to_owned(), table }
    }

    /// Makes `rules` the table: closes what is not among them, opens what is new, and leaves alone
    /// what was there. What the last client was not told of stays as it is.
    pub(super) async fn replace(&mut self, ports: &mut Ports, rules: &[TableRule]) {
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
                    let port = ports.open(rule.forward(), rule.weak);
                    let port = port.map_err(|failure| {
                        tracing::warn!("not forwarded yet: {rule}: {failure}");
                    });
                    Entry { rule: rule.clone(), port: port.ok() }
                }
            };
            self.entries.push(entry);
        }
        self.entries.extend(beyond);
        tracing::info!(rules = rules.len(), "pesto has replaced the forwarded ports");
    }

    /// Whether a rule waits for its port.
    pub(super) fn waits(&self) -> bool {
        self.entries.iter().any(|entry| entry.port.is_none())
    }

    /// Opens what waits, as far as it is free now.
    pub(super) fn retry(&mut self, ports: &mut Ports) {
        for entry in self.entries.iter_mut().filter(|entry| entry.port.is_none()) {
            let rule = &entry.rule;
            if let Ok(port) = ports.open(rule.forward(), rule.weak) {
                tracing::info!("forwarded at last: {rule}");
                entry.port = Some(port);
            }
        }
    }

    /// Drops what others have removed, and takes up what others have added.
    fn refresh(&mut self, ports: &Ports) {
        self.entries.retain(|entry| entry.port.is_none_or(|port| ports.has(port)));
        for (port, forward) in ports.rules() {
            let known = self.entries.iter().any(|entry| entry.port == Some(port));
            if !known && let Some(rule) = TableRule::of(forward) {
                self.entries.push(Entry { rule, port: Some(port) });
            }
        }
    }
}
