//! The walk back for datagrams: from host sockets to the guest.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::base::{DropReason, Instant};
use crate::stack::icmp::echo;
use crate::stack::wire::{Addresses, HEADROOM, UdpHeader};
use crate::sys::datagram::Batch;

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
            self.drain_errors(now, token);
        }
        if readiness.readable {
            self.receive(now, token);
        }
    }

    /// Takes datagrams from a mapping's socket until it is empty or others are due.
    pub(super) fn receive(&mut self, now: Instant, token: Token) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(1, HEADROOM));
        let mut rounds = 0;
        loop {
            let table = if token.kind == Kind::Udp { &mut self.udp } else { &mut self.echo };
            let Some(flow) = table.get_mut(token) else { break };
            if rounds == BATCH_BUDGET {
                // Edge-triggered: nobody tells again of what is left.
                if !flow.on_run_list {
                    flow.on_run_list = true;
                    self.run_list.push_back(token);
                }
                break;
            }
            rounds += 1;
            match self.io.host.recv_datagrams(&flow.socket, &mut batch) {
                Ok(_) => self.deliver_batch(now, token, &mut batch),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The error of an earlier datagram: the queue tells more.
                Err(_) => self.drain_errors(now, token),
            }
        }
        self.batch = batch;
        self.batch_used = true;
        self.settle_mapping(token);
    }

    fn deliver_batch(&mut self, now: Instant, token: Token, batch: &mut Batch) {
        for (received, bytes) in batch.datagrams() {
            let table = if token.kind == Kind::Udp { &mut self.udp } else { &mut self.echo };
            let Some((key, flow)) = table.get_with_key(token) else { return };
            let guest = key.guest;
            // A ping socket's peers have no port: the identifier is that of both ends.
            let guest_ident = if token.kind == Kind::Echo { guest.port() } else { 0 };
            if !flow.mapping.on_incoming(now, received.source.ip()) {
                self.io.drop_frame(DropReason::Filtered);
                continue;
            }
            if received.truncated {
                self.io.drop_frame(DropReason::TooBig);
                continue;
            }
            let mtu = flow
                .path_mtu
                .map_or(usize::from(self.plan.mtu), |mtu| mtu.min(usize::from(self.plan.mtu)));
            let guest_mac = flow.guest_mac;
            let peer = key.peer_seen(&self.plan, received.source);
            flow.last_peer = Some(SocketAddr::new(peer.ip(), peer.port().max(guest_ident)));
            flow.account.last_use = now;
            flow.account.traffic.count_to_guest(received.len);
            let marks = received.marks;
            if token.kind == Kind::Udp {
                let addresses =
                    Addresses { gateway_mac: self.io.gateway_mac, guest_mac, peer, guest };
                let header = UdpHeader {
                    tos: marks.tos,
                    hop_limit: marks.hop_limit,
                    ident: 0,
                    dont_fragment: true,
                    segment_size: None,
                };
                self.send_datagram(bytes, received.len, &addresses, &header, mtu);
            } else {
                let reply = &mut bytes[HEADROOM..];
                let packet = echo::reply_packet(
                    reply,
                    guest.port(),
                    peer.ip(),
                    guest.ip(),
                    marks.tos,
                    marks.hop_limit,
                );
                match packet {
                    Some(packet) => self.send_packet(guest_mac, &packet, mtu),
                    None => self.io.drop_frame(DropReason::UnhandledIcmp),
                }
            }
        }
    }
}
