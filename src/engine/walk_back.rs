//! The walk back for datagrams: from host sockets to the guest.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::base::{DropReason, Instant};
use crate::stack::icmp::echo;
use crate::stack::udp::offload;
use crate::stack::wire::{Addresses, HEADROOM};
use crate::sys::datagram::{Batch, Received};

use super::inbox::Onward;
use super::ports::{FramePort, Readiness, SocketPort};
use super::token::{Kind, Token};
use super::worker::Worker;

/// Batches received from one socket before others get their turn.
const BATCH_BUDGET: usize = 4;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// The socket of a mapping reports readiness.
    pub(super) fn on_datagram_readiness(
        &mut self,
        now: Instant,
        token: Token,
        readiness: Readiness,
    ) {
        if readiness.failed {
            self.drain_errors(token, None);
        }
        if readiness.readable {
            self.receive(now, token, readiness.failed);
        }
    }

    /// Takes datagrams from a mapping's socket until it is empty or others are due. After an error
    /// only the kernel's word counts for empty ([`recv_batch`](crate::sys::datagram::recv_batch)).
    pub(super) fn receive(&mut self, now: Instant, token: Token, failed: bool) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(1, HEADROOM));
        let mut rounds = 0;
        loop {
            let table = if token.kind == Kind::Udp { &mut self.udp } else { &mut self.echo };
            let Some(flow) = table.get_mut(token) else { break };
            if rounds == BATCH_BUDGET || self.io.frames.is_congested() {
                // Edge-triggered: nobody tells again of what is left.
                if !flow.on_run_list {
                    flow.on_run_list = true;
                    self.run_list.push_back(token);
                }
                break;
            }
            rounds += 1;
            match self.io.host.recv_datagrams(&flow.socket, &mut batch) {
                Ok(_) => {
                    match token.kind {
                        Kind::Udp => self.deliver(&mut batch, |worker, received, _| {
                            worker.on_datagram(now, token, received).map(Some)
                        }),
                        _ => self.deliver_replies(now, token, &mut batch),
                    }
                    if !batch.is_full() && !failed {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The error of an earlier datagram: the queue tells more.
                Err(_) => self.drain_errors(token, None),
            }
        }
        self.batch = batch;
        self.batch_used = true;
        self.settle_mapping(token);
    }

    /// A datagram for the guest behind the mapping `token`.
    fn on_datagram(
        &mut self,
        now: Instant,
        token: Token,
        received: &Received,
    ) -> Result<Onward, DropReason> {
        let (key, flow) = self.udp.get_with_key(token).ok_or(DropReason::NoFlow)?;
        if !flow.mapping.on_incoming(now, received.source.ip()) {
            return Err(DropReason::Filtered);
        }
        let peer = key.peer_seen(&self.plan, received.source);
        flow.last_peer = Some(peer);
        flow.account.last_use = now;
        let datagrams = offload::count(received.len, received.segment_size);
        flow.account.traffic.count_several_to_guest(datagrams, received.len);
        let mtu = usize::from(self.plan.mtu);
        Ok(Onward {
            addresses: Addresses {
                gateway_mac: self.io.gateway_mac,
                guest_mac: flow.guest_mac,
                peer,
                guest: key.guest,
            },
            marks: received.marks,
            mtu: flow.path_mtu.map_or(mtu, |path| path.min(mtu)),
        })
    }

    /// Sends the echo replies of `batch` to the guest.
    fn deliver_replies(&mut self, now: Instant, token: Token, batch: &mut Batch) {
        for (received, bytes) in batch.datagrams() {
            let Some((key, flow)) = self.echo.get_with_key(token) else { return };
            let guest = key.guest;
            if !flow.mapping.on_incoming(now, received.source.ip()) {
                self.io.drop_frame(DropReason::Filtered);
                continue;
            }
            if received.truncated {
                self.io.drop_frame(DropReason::TooBig);
                continue;
            }
            let mtu = usize::from(self.plan.mtu);
            let mtu = flow.path_mtu.map_or(mtu, |path| path.min(mtu));
            let guest_mac = flow.guest_mac;
            let peer = key.peer_seen(&self.plan, received.source);
            // A ping socket's peers have no port: the identifier is that of both ends.
            flow.last_peer = Some(SocketAddr::new(peer.ip(), guest.port()));
            flow.account.last_use = now;
            flow.account.traffic.count_to_guest(received.len);
            let packet = echo::reply_packet(
                &mut bytes[HEADROOM..],
                guest.port(),
                peer.ip(),
                guest.ip(),
                received.marks.tos,
                received.marks.hop_limit,
            );
            match packet {
                Some(packet) => self.send_packet(guest_mac, &packet, mtu),
                None => self.io.drop_frame(DropReason::UnhandledIcmp),
            }
        }
    }
}
