//! Which ports of the guest's loopback lead to the host's: at once, or while the host listens.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::engine::host::Diverted;
use crate::gate::auto::{self, AutoService, Standing};
use crate::gate::forward::{AutoForward, ForwardId, Inner};
use crate::gate::ports::{Family, PortTable};
use crate::setup::inside::{Inside, OpenInner};

use super::relay::{Leading, Relay};

/// A rule for ports of the guest's loopback.
struct InnerRule {
    rule: Inner,
    /// What is open at once, kept so.
    _open: Vec<Leading>,
}

/// A port that follows the host, by its rule.
type Followed = (ForwardId, AutoService);

/// The ports of the guest's loopback.
#[derive(Default)]
pub(super) struct InnerPorts {
    /// `None` if nothing can lead anywhere.
    relay: Option<Relay>,
    rules: BTreeMap<ForwardId, InnerRule>,
    following: Standing<Followed>,
    open: BTreeMap<Followed, Leading>,
}

impl InnerPorts {
    /// No ports; `inside` opens the sockets of those to come.
    pub(super) fn new(inside: Option<Inside>) -> InnerPorts {
        InnerPorts { relay: inside.map(Relay::new), ..InnerPorts::default() }
    }

    /// Whether there can be any.
    pub(super) fn are_possible(&self) -> bool {
        self.relay.is_some()
    }

    /// Whether what listens on the host matters.
    pub(super) fn follows_host(&self) -> bool {
        self.rules.values().any(|known| known.rule.scan)
    }

    /// The rules, by their numbers.
    pub(super) fn rules(&self) -> impl Iterator<Item = (ForwardId, &Inner)> {
        self.rules.iter().map(|(id, known)| (*id, &known.rule))
    }

    /// Whether there is a rule `id`.
    pub(super) fn has(&self, id: ForwardId) -> bool {
        self.rules.contains_key(&id)
    }

    /// Begins to serve `rule`, whose sockets are `open`.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn enter(
        &mut self,
        id: ForwardId,
        rule: Inner,
        open: Vec<OpenInner>,
    ) -> io::Result<()> {
        let Some(relay) = &self.relay else { return Err(io::ErrorKind::Unsupported.into()) };
        let open = open.into_iter().map(|open| relay.lead_from(open)).collect::<io::Result<_>>()?;
        self.rules.insert(id, InnerRule { rule, _open: open });
        Ok(())
    }

    /// Opens what `rule` says, and serves it.
    ///
    /// # Errors
    /// A port that has to be there and cannot be opened.
    pub(super) fn open(&mut self, id: ForwardId, rule: Inner) -> io::Result<()> {
        let Some(relay) = &self.relay else { return Err(io::ErrorKind::Unsupported.into()) };
        let open = relay.open(&rule).map_err(io::Error::other)?;
        self.enter(id, rule, open)
    }

    /// Ends the rule `id`. Its sockets are closed when other tasks have had their turn.
    pub(super) fn close(&mut self, id: ForwardId) {
        if self.rules.remove(&id).is_some() {
            self.following.forget(|(rule, _)| *rule == id);
            self.open.retain(|(rule, _), _| *rule != id);
        }
    }

    /// Joins a client on the host's loopback to the guest's.
    pub(super) fn join(&self, client: Diverted) {
        if let Some(relay) = &self.relay {
            relay.join(client);
        }
    }

    /// Enters the ports of the guest's loopback that are ours into `table`.
    pub(super) fn enter_ports(&self, table: &mut PortTable) {
        for (id, service) in self.open.keys() {
            let Some(InnerRule { rule, .. }) = self.rules.get(id) else { continue };
            let set = table.of_mut(service.transport, service.family);
            set.insert(guest_port(rule, service.port));
        }
        for InnerRule { rule, .. } in self.rules.values().filter(|known| !known.rule.scan) {
            for family in [Family::V4, Family::V6] {
                table.of_mut(rule.transport, family).insert_range(rule.ports);
            }
        }
    }

    /// Opens and closes what depends on `host`, what listens at the host's loopback now; `ours` are
    /// the host ports that lead into the guest.
    pub(super) fn follow_host(&mut self, host: &PortTable, ours: &PortTable) {
        let Some(relay) = &self.relay else { return };
        // No two rules of a table want the same port.
        let taken = PortTable::default();
        let scanning = self.rules.iter().filter(|(_, known)| known.rule.scan);
        let wanted: BTreeSet<Followed> = scanning
            .flat_map(|(id, known)| {
                let services = auto::exposed(&behind(&known.rule), host, ours, &taken);
                services.into_iter().map(|service| (*id, service))
            })
            .take(auto::MOST)
            .collect();
        let changes = self.following.turn(&wanted);
        for followed in &changes.close {
            self.open.remove(followed);
        }
        for followed in changes.open {
            let (id, AutoService { port, transport, family }) = followed;
            let Some(InnerRule { rule, .. }) = self.rules.get(&id) else { continue };
            match relay.lead(transport, family, guest_port(rule, port), port) {
                Ok(leading) => drop(self.open.insert(followed, leading)),
                Err(e) => {
                    if self.following.refused(followed) {
                        tracing::debug!("{transport} port {port} is not led to the host: {e}");
                    }
                }
            }
        }
    }
}

/// The ports of the host that `rule` leads to, as they are followed.
fn behind(rule: &Inner) -> AutoForward {
    AutoForward {
        transports: vec![rule.transport],
        only: vec![rule.host_ports],
        ..AutoForward::default()
    }
}

/// The port of the guest that leads to `port` of the host, one of those of `rule`.
fn guest_port(rule: &Inner, port: u16) -> u16 {
    // Both ranges are of one length.
    rule.ports.first().saturating_add(port.saturating_sub(rule.host_ports.first()))
}
