//! Which ports of the guest's loopback lead to the host's: those that were asked for, and those
//! that follow who listens on the host.
//!
//! A socket that listens in the guest goes to the worker, which joins its clients to the host's
//! loopback, socket to socket, each family to its own. A server of the host that only one family
//! has is reached by clients of that family.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use tokio::sync::oneshot;

use crate::engine::thread::CommandSender;
use crate::engine::{Command, Led, LedId, Reply};
use crate::gate::auto::{self, AutoService, Standing};
use crate::gate::forward::{AutoForward, Transport};
use crate::gate::ports::PortTable;
use crate::setup::inside::{Inside, OpenInner};

/// The ports of the guest's loopback.
pub(super) struct InnerPorts {
    worker: CommandSender,
    /// `None` if nothing leads anywhere.
    inside: Option<Inside>,
    auto: Vec<AutoForward>,
    following: Standing<AutoService>,
    open: BTreeMap<AutoService, LedId>,
    /// Ports that were asked for, which are not followed.
    taken: PortTable,
    last_id: u64,
}

impl InnerPorts {
    /// Has the worker serve what is `open`, and begins to follow what `auto` says.
    pub(super) fn new(
        worker: CommandSender,
        inside: Option<Inside>,
        open: Vec<OpenInner>,
        auto: Vec<AutoForward>,
    ) -> InnerPorts {
        let mut ports = InnerPorts {
            worker,
            inside,
            auto,
            following: Standing::default(),
            open: BTreeMap::new(),
            taken: PortTable::default(),
            last_id: 0,
        };
        for OpenInner { transport, family, port, host_port, socket } in open {
            ports.taken.of_mut(transport, family).insert(port);
            ports.lead(transport, host_port, socket);
        }
        ports
    }

    /// Whether what listens on the host matters.
    pub(super) fn follows_host(&self) -> bool {
        self.inside.is_some() && !self.auto.is_empty()
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
    pub(super) async fn follow_host(&mut self, host: &PortTable, ours: &PortTable) {
        let rules = self.auto.iter();
        let wanted: BTreeSet<AutoService> =
            rules.flat_map(|rule| auto::exposed(rule, host, ours, &self.taken)).collect();
        let changes = self.following.turn(&wanted);
        let closing = changes.close.iter().filter_map(|service| self.open.remove(service));
        let closing: Vec<LedId> = closing.collect();
        if !closing.is_empty() {
            self.close(closing).await;
        }
        for service in changes.open {
            let AutoService { port, transport, family } = service;
            let Some(inside) = &self.inside else { return };
            match inside.listen(transport, family, port) {
                Ok(socket) => {
                    let id = self.lead(transport, port, socket);
                    self.open.insert(service, id);
                }
                Err(e) => {
                    if self.following.refused(service) {
                        tracing::debug!("{transport} port {port} is not led to the host: {e}");
                    }
                }
            }
        }
    }

    /// Gives a socket to the worker.
    fn lead(&mut self, transport: Transport, host_port: u16, socket: OwnedFd) -> LedId {
        self.last_id += 1;
        let id = LedId(self.last_id);
        self.worker.send(Command::Lead(vec![(Led { id, transport, host_port }, socket)]));
        id
    }

    /// Closes ports, and waits until their sockets are closed.
    async fn close(&self, ids: Vec<LedId>) {
        let (closed, wait) = oneshot::channel();
        let reply = Reply::new(move |()| {
            let _ = closed.send(());
        });
        self.worker.send(Command::CloseLed(ids, reply));
        // A worker that has ended has closed everything.
        let _ = wait.await;
    }
}
