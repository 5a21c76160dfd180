//! Ports that follow who listens: those of the guest that are published while a server is there,
//! and services of the host that are exposed while they are.
//!
//! What is wanted is computed anew from each look at the two sides ([`auto`]); only what differs
//! from what is open is opened and closed. A host port that somebody else has is tried again later.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::super::refusals::Refusals;
use super::{Followed, Following, Ports, enter_host_ports, enter_loopback_ports};
use crate::engine::Withdrawal;
use crate::gate::auto::{self, AutoService, ConditionalPort};
use crate::gate::forward::{Forward, ForwardId, Listen, PortRange};
use crate::gate::ports::{Family, PortTable};
use crate::setup::listen::Opened;

impl Ports {
    /// Opens and closes what depends on `guest`, what listens there now.
    pub(in crate::launch) async fn follow_guest(&mut self, guest: &PortTable) {
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
    pub(in crate::launch) async fn follow_known(
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
    pub(in crate::launch) fn waits(&self) -> bool {
        self.following.refusals().next().is_some() || self.conditional.refusals().next().is_some()
    }

    /// Opens what was refused, as far as it is free now.
    pub(in crate::launch) fn retry(&mut self) {
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
    pub(in crate::launch) async fn follow_host(&mut self, host: &PortTable) {
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
