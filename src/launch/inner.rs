//! Which ports of the guest's loopback lead to the host's: at once, or while the host listens.
//!
//! A socket that listens in the guest goes to the worker, which joins its clients to the host's
//! loopback, socket to socket, each family to its own. A server of the host that only one family
//! has is reached by clients of that family.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use tokio::sync::oneshot;

use crate::engine::thread::CommandSender;
use crate::engine::{Command, Led, LedId, Reply};
use crate::gate::auto::{self, AutoService, Standing};
use crate::gate::forward::{ForwardId, Inner};
use crate::gate::ports::{Family, PortTable};
use crate::setup::inside::{Inside, OpenInner};

/// A rule for ports of the guest's loopback.
struct InnerRule {
    rule: Inner,
    /// What was opened at once.
    open: Vec<(Family, u16, LedId)>,
}

/// A port that follows the host, by its rule.
type Followed = (ForwardId, AutoService);

/// The ports of the guest's loopback.
pub(super) struct InnerPorts {
    worker: CommandSender,
    /// `None` if nothing can lead anywhere.
    inside: Option<Inside>,
    rules: BTreeMap<ForwardId, InnerRule>,
    following: Standing<Followed>,
    open: BTreeMap<Followed, LedId>,
    last_led: u64,
}

impl InnerPorts {
    /// No ports; `inside` opens the sockets of those to come.
    pub(super) fn new(worker: CommandSender, inside: Option<Inside>) -> InnerPorts {
        InnerPorts {
            worker,
            inside,
            rules: BTreeMap::new(),
            following: Standing::default(),
            open: BTreeMap::new(),
            last_led: 0,
        }
    }

    /// Whether there can be any.
    pub(super) fn are_possible(&self) -> bool {
        self.inside.is_some()
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
    pub(super) fn enter(&mut self, id: ForwardId, rule: Inner, open: Vec<OpenInner>) {
        let led = |open: OpenInner| (open.family, open.port, self.lead(open));
        let open = open.into_iter().map(led).collect();
        self.rules.insert(id, InnerRule { rule, open });
    }

    /// Opens what `rule` says, and serves it.
    ///
    /// # Errors
    /// A port that has to be there and cannot be opened.
    pub(super) fn open(&mut self, id: ForwardId, rule: Inner) -> io::Result<()> {
        let Some(inside) = &self.inside else { return Err(io::ErrorKind::Unsupported.into()) };
        let open = inside.open(&rule).map_err(io::Error::other)?;
        self.enter(id, rule, open);
        Ok(())
    }

    /// Ends the rule `id`, and waits until its sockets are closed.
    pub(super) async fn close(&mut self, id: ForwardId) {
        let Some(InnerRule { open, .. }) = self.rules.remove(&id) else { return };
        self.following.forget(|(rule, _)| *rule == id);
        let followed = self.open.extract_if(.., |(rule, _), _| *rule == id);
        let open = open.into_iter().map(|(.., led)| led);
        let closing = open.chain(followed.map(|(_, led)| led)).collect();
        self.close_led(closing).await;
    }

    /// Gives a socket to the worker.
    fn lead(&mut self, open: OpenInner) -> LedId {
        self.last_led += 1;
        let id = LedId(self.last_led);
        let OpenInner { transport, host_port, socket, .. } = open;
        self.worker.send(Command::Lead(vec![(Led { id, transport, host_port }, socket)]));
        id
    }

    /// Closes sockets, and waits until they are closed.
    async fn close_led(&self, ids: Vec<LedId>) {
        if ids.is_empty() {
            return;
        }
        let (closed, wait) = oneshot::channel();
        let reply = Reply::new(move |()| {
            let _ = closed.send(());
        });
        self.worker.send(Command::CloseLed(ids, reply));
        // A worker that has ended has closed everything.
        let _ = wait.await;
    }

    /// Enters the ports of the guest's loopback that are ours into `table`.
    pub(super) fn enter_ports(&self, table: &mut PortTable) {
        for (id, service) in self.open.keys() {
            let Some(InnerRule { rule, .. }) = self.rules.get(id) else { continue };
            let set = table.of_mut(service.transport, service.family);
            set.insert(guest_port(rule, service.port));
        }
        for InnerRule { rule, open } in self.rules.values() {
            for &(family, port, _) in open {
                table.of_mut(rule.transport, family).insert(port);
            }
        }
    }

    /// Opens and closes what depends on `host`, what listens at the host's loopback now; `ours` are
    /// the host ports that lead into the guest.
    pub(super) async fn follow_host(&mut self, host: &PortTable, ours: &PortTable) {
        // No two rules of a table want the same port.
        let scanning = self.rules.iter().filter(|(_, known)| known.rule.scan);
        let wanted: BTreeSet<Followed> = scanning
            .flat_map(|(id, known)| {
                auto::led(&known.rule, host, ours).into_iter().map(|service| (*id, service))
            })
            .take(auto::MOST)
            .collect();
        let changes = self.following.turn(&wanted);
        let closing = changes.close.iter().filter_map(|followed| self.open.remove(followed));
        let closing = closing.collect();
        self.close_led(closing).await;
        for followed in changes.open {
            let (id, AutoService { port, transport, family }) = followed;
            let Some(InnerRule { rule, .. }) = self.rules.get(&id) else { continue };
            let (led, host_port) = (guest_port(rule, port), port);
            let Some(inside) = &self.inside else { return };
            match inside.listen(transport, family, led) {
                Ok(socket) => {
                    let open = OpenInner { transport, family, port: led, host_port, socket };
                    let led = self.lead(open);
                    self.open.insert(followed, led);
                }
                Err(e) => {
                    if self.following.refused(followed) {
                        tracing::debug!("{transport} port {port} is not led to the host: {e}");
                    }
                }
            }
        }
    }
}

/// The port of the guest that leads to `port` of the host, one of those of `rule`.
fn guest_port(rule: &Inner, port: u16) -> u16 {
    // Both ranges are of one length.
    rule.ports.first().saturating_add(port.saturating_sub(rule.host_ports.first()))
}
