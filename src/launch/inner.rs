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
use crate::gate::forward::{AutoForward, Inner, Transport};
use crate::gate::ports::{Family, PortTable};
use crate::setup::inside::{Inside, OpenInner};

/// A port of the guest's that follows one of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Followed {
    transport: Transport,
    family: Family,
    port: u16,
    host_port: u16,
}

impl From<AutoService> for Followed {
    fn from(service: AutoService) -> Followed {
        let AutoService { port, transport, family } = service;
        Followed { transport, family, port, host_port: port }
    }
}

/// The ports of the guest's loopback.
pub(super) struct InnerPorts {
    worker: CommandSender,
    /// `None` if nothing leads anywhere.
    inside: Option<Inside>,
    auto: Vec<AutoForward>,
    /// Ports that exist while the host's counterparts do.
    conditional: Vec<Inner>,
    following: Standing<Followed>,
    open: BTreeMap<Followed, LedId>,
    /// Ports that were asked for, which are not followed.
    taken: PortTable,
    last_id: u64,
}

impl InnerPorts {
    /// Has the worker serve what is `open`, and begins to follow what `auto` and `conditional` say.
    pub(super) fn new(
        worker: CommandSender,
        inside: Option<Inside>,
        open: Vec<OpenInner>,
        auto: Vec<AutoForward>,
        conditional: Vec<Inner>,
    ) -> InnerPorts {
        let mut ports = InnerPorts {
            worker,
            inside,
            auto,
            conditional,
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
        self.inside.is_some() && !(self.auto.is_empty() && self.conditional.is_empty())
    }

    /// Enters the ports of the guest's loopback that are ours into `table`.
    pub(super) fn enter_ports(&self, table: &mut PortTable) {
        for led in self.open.keys() {
            table.of_mut(led.transport, led.family).insert(led.port);
        }
        table.join(&self.taken);
    }

    /// Opens and closes what depends on `host`, what listens at the host's loopback now; `ours` are
    /// the host ports that lead into the guest.
    pub(super) async fn follow_host(&mut self, host: &PortTable, ours: &PortTable) {
        let wanted = self.wanted(host, ours);
        let changes = self.following.turn(&wanted);
        let closing = changes.close.iter().filter_map(|followed| self.open.remove(followed));
        let closing: Vec<LedId> = closing.collect();
        if !closing.is_empty() {
            self.close(closing).await;
        }
        for followed in changes.open {
            let Followed { transport, family, port, host_port } = followed;
            let Some(inside) = &self.inside else { return };
            match inside.listen(transport, family, port) {
                Ok(socket) => {
                    let id = self.lead(transport, host_port, socket);
                    self.open.insert(followed, id);
                }
                Err(e) => {
                    if self.following.refused(followed) {
                        tracing::debug!("{transport} port {port} is not led to the host: {e}");
                    }
                }
            }
        }
    }

    /// What is to be open while `host` listens there.
    fn wanted(&self, host: &PortTable, ours: &PortTable) -> BTreeSet<Followed> {
        let rules = self.auto.iter();
        let same = rules.flat_map(|rule| auto::exposed(rule, host, ours, &self.taken));
        let mut wanted: BTreeSet<Followed> = same.map(Followed::from).collect();
        for rule in &self.conditional {
            let transport = rule.transport;
            let heard = |family, port| {
                host.of(transport, family).contains(port)
                    && !ours.of(transport, family).contains(port)
            };
            for (port, host_port) in rule.pairs() {
                let families = [Family::V4, Family::V6].into_iter();
                wanted.extend(
                    families.filter(|&family| heard(family, host_port)).map(|family| Followed {
                        transport,
                        family,
                        port,
                        host_port,
                    }),
                );
            }
        }
        wanted
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
