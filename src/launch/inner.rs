//! Which ports of the guest's loopback lead to the host's: those that were asked for, and those
//! that follow who listens on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::engine::host::Diverted;
use crate::gate::auto::{self, AutoService, Standing};
use crate::gate::forward::AutoForward;
use crate::gate::ports::PortTable;
use crate::setup::inside::{Inside, OpenInner};

use super::relay::{Leading, Relay};

/// The ports of the guest's loopback.
#[derive(Default)]
pub(super) struct InnerPorts {
    /// `None` if nothing leads anywhere.
    relay: Option<Relay>,
    /// Those that were asked for, kept open.
    fixed: Vec<Leading>,
    auto: Vec<AutoForward>,
    following: Standing<AutoService>,
    open: BTreeMap<AutoService, Leading>,
    /// Ports of `fixed`, which are not followed.
    taken: PortTable,
}

impl InnerPorts {
    /// Begins to serve what is `open`, and to follow what `auto` says.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn new(
        inside: Option<Inside>,
        open: Vec<OpenInner>,
        auto: Vec<AutoForward>,
    ) -> io::Result<InnerPorts> {
        let Some(inside) = inside else { return Ok(InnerPorts::default()) };
        let relay = Relay::new(inside);
        let mut ports = InnerPorts { auto, ..InnerPorts::default() };
        for open in open {
            ports.taken.of_mut(open.transport, open.family).insert(open.port);
            ports.fixed.push(relay.lead_from(open)?);
        }
        ports.relay = Some(relay);
        Ok(ports)
    }

    /// Whether what listens on the host matters.
    pub(super) fn follows_host(&self) -> bool {
        self.relay.is_some() && !self.auto.is_empty()
    }

    /// Joins a client on the host's loopback to the guest's.
    pub(super) fn join(&self, client: Diverted) {
        if let Some(relay) = &self.relay {
            relay.join(client);
        }
    }

    /// Enters the ports of the guest's loopback that are ours into `table`.
    pub(super) fn enter_ports(&self, table: &mut PortTable) {
        for service in self.open.keys() {
            table.of_mut(service.transport, service.family).insert(service.port);
        }
        table.join(&self.taken);
    }

    /// Opens and closes what depends on `host`, what listens at the host's loopback now; `ours` are
    /// the host ports that lead into the guest.
    pub(super) fn follow_host(&mut self, host: &PortTable, ours: &PortTable) {
        let Some(relay) = &self.relay else { return };
        let rules = self.auto.iter();
        let wanted: BTreeSet<AutoService> =
            rules.flat_map(|rule| auto::exposed(rule, host, ours, &self.taken)).collect();
        let changes = self.following.turn(&wanted);
        for service in &changes.close {
            self.open.remove(service);
        }
        for service in changes.open {
            let AutoService { port, transport, family } = service;
            match relay.lead(transport, family, port, port) {
                Ok(leading) => drop(self.open.insert(service, leading)),
                Err(e) => {
                    if self.following.refused(service) {
                        tracing::debug!("{transport} port {port} is not led to the host: {e}");
                    }
                }
            }
        }
    }
}
