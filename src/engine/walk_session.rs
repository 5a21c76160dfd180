//! Clients of published UDP ports: their datagrams to the guest, its answers back to them.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::base::{DropReason, Instant, Mac};
use crate::observe::{Direction, FlowTransport};
use crate::stack::icmp::error;
use crate::stack::ip::Packet;
use crate::stack::udp::offload;
use crate::stack::wire::{Addresses, HEADROOM};
use crate::sys::datagram::{Batch, Marks, Origin, Outgoing, Received};

use super::inbox::Onward;
use super::ports::{FramePort, Readiness, SocketPort};
use super::published::{Published, Rule, Session, SessionKey};
use super::token::Token;
use super::walk_icmp::{ERROR_BATCH, report_of};
use super::walk_in::PORT_ATTEMPTS;
use super::worker::Worker;

/// Batches received from one socket before others get their turn.
const BATCH_BUDGET: usize = 4;

/// Sessions of others that are passed over to find one that gives way.
const PASSED_OVER: usize = 64;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A published UDP socket reports readiness.
    pub(super) fn on_port_readiness(&mut self, now: Instant, token: Token, readiness: Readiness) {
        if readiness.failed {
            self.drain_port_errors(token, None);
        }
        if readiness.readable {
            self.receive_from_clients(now, token, readiness.failed);
        }
    }

    /// Takes datagrams of clients until there are no more or others are due, as
    /// [`Worker::receive`] does.
    pub(super) fn receive_from_clients(&mut self, now: Instant, token: Token, failed: bool) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(1, HEADROOM));
        for round in 0..=BATCH_BUDGET {
            let Some(port) = self.datagram_ports.get_mut(token) else { break };
            if round == BATCH_BUDGET || self.io.frames.is_congested() {
                // Edge-triggered: nobody tells again of what is left.
                if !port.on_run_list {
                    port.on_run_list = true;
                    self.run_list.push_back(token);
                }
                break;
            }
            let rule = port.rule;
            match self.io.host.recv_datagrams(&port.socket, &mut batch) {
                Ok(_) => {
                    self.deliver(&mut batch, |worker, received, payload| {
                        worker.on_client(now, token, rule, received, payload)
                    });
                    if !batch.is_full() && !failed {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The error of an earlier answer: the queue tells more.
                Err(_) => self.drain_port_errors(token, None),
            }
        }
        self.batch = batch;
        self.batch_used = true;
    }

    /// A client's datagram: how it goes on to the guest, unless it goes socket to socket.
    fn on_client(
        &mut self,
        now: Instant,
        port: Token,
        rule: Rule,
        received: &Received,
        payload: &[u8],
    ) -> Result<Option<Onward>, DropReason> {
        if let Some(way) = self.splice_way(&rule, received.source.ip()) {
            return self.relay(now, port, way, received, payload).map(|()| None);
        }
        let rule = match rule {
            Rule::Published(rule) if self.plan.has_link() => rule,
            _ => return Err(DropReason::MartianDestination),
        };
        let (token, key) = self.session(now, port, rule, received)?;
        let Some(session) = self.sessions.get_mut(token) else { return Err(DropReason::NoFlow) };
        session.local = received.local;
        session.account.last_use = now;
        let datagrams = offload::count(received.len, received.segment_size);
        session.account.traffic.count_several_to_guest(datagrams, received.len);
        let mtu = usize::from(self.plan.mtu);
        let mtu = session.path_mtu.map_or(mtu, |path| path.min(mtu));
        self.sessions.touch(token);
        self.settle_session(token);
        let guest_mac = self.services.mac_of(key.guest.ip()).unwrap_or(self.plan.guest_mac);
        let addresses = Addresses {
            gateway_mac: self.io.gateway_mac,
            guest_mac,
            peer: key.client,
            guest: key.guest,
        };
        Ok(Some(Onward { addresses, marks: received.marks, mtu }))
    }

    /// The session of a client, which begins with its first datagram.
    fn session(
        &mut self,
        now: Instant,
        port: Token,
        rule: Published,
        received: &Received,
    ) -> Result<(Token, SessionKey), DropReason> {
        let client = received.source;
        let ends = self
            .plan
            .inbound(Some(client.ip()), rule.guest_address)
            .ok_or(DropReason::MartianDestination)?;
        let guest = SocketAddr::new(ends.guest, rule.guest_port);
        let mut free = None;
        // Whoever has an earlier port may be gone meanwhile: a client keeps the one that it has.
        for attempt in 0..PORT_ATTEMPTS {
            let seen = self.client_port(Some(client), guest, attempt);
            let key = SessionKey { guest, client: SocketAddr::new(ends.client, seen) };
            let Some(token) = self.sessions.find(&key) else {
                free = free.or(Some(key));
                continue;
            };
            let known = self.sessions.get(token);
            if known.is_some_and(|known| known.port == port && known.client == client) {
                return Ok((token, key));
            }
        }
        let key = free.ok_or(DropReason::FlowLimit)?;
        if self.sessions.is_full() {
            self.make_room_for_session(port);
        }
        let forward = Some(rule.forward);
        let account = self.ledger.open(now, FlowTransport::Udp, Direction::Inbound, forward);
        let session = Session {
            account,
            port,
            client,
            local: received.local,
            replied: false,
            path_mtu: None,
            wheel_entry: None,
        };
        let token = self.sessions.insert(key, session).ok_or(DropReason::FlowLimit)?;
        if let Some(port) = self.datagram_ports.get_mut(port) {
            port.sessions += 1;
        }
        Ok((token, key))
    }

    /// Ends the session that was unused for longest. A socket that has most of all sessions, as in
    /// a flood of made-up clients, gives up one of its own, and those of others count as used.
    fn make_room_for_session(&mut self, port: Token) {
        let own = self.datagram_ports.get(port).map_or(0, |port| port.sessions);
        let patience = if 2 * own > self.sessions.len() { PASSED_OVER } else { 0 };
        for _ in 0..patience {
            let Some(oldest) = self.sessions.oldest() else { return };
            if self.sessions.get(oldest).is_some_and(|session| session.port == port) {
                break;
            }
            self.sessions.touch(oldest);
        }
        if let Some(oldest) = self.sessions.oldest() {
            self.end_session(oldest);
        }
    }

    /// The session in which the guest's endpoint `guest` answers `client`.
    pub(super) fn find_session(&self, guest: SocketAddr, client: SocketAddr) -> Option<Token> {
        if self.sessions.is_empty() {
            return None;
        }
        self.sessions.find(&SessionKey { guest, client })
    }

    /// The guest answers a client with `payload`.
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        token: Token,
        source_mac: Mac,
        packet: &Packet<'_>,
        payload: &[u8],
        segment_size: Option<u16>,
    ) -> Result<(), DropReason> {
        let Some(session) = self.sessions.get_mut(token) else { return Err(DropReason::NoFlow) };
        session.replied = true;
        session.account.last_use = now;
        let datagrams = offload::count(payload.len(), segment_size);
        session.account.traffic.count_several_to_host(datagrams, payload.len());
        let outgoing = Outgoing {
            target: session.client,
            source: session.local,
            payload,
            marks: Marks { tos: packet.tos, hop_limit: packet.hop_limit },
            segment_size,
        };
        let port = session.port;
        self.sessions.touch(token);
        self.send_out(port, source_mac, packet, &outgoing)
    }

    /// Takes what stands in the error queue of a published socket and tells the guest. `failed` is
    /// the answer that could not be sent just now: errors that this kernel has found are about it.
    pub(super) fn drain_port_errors(&mut self, token: Token, failed: Option<&[u8]>) {
        let mut quoted = [0u8; 1280];
        for _ in 0..ERROR_BATCH {
            let Some(port) = self.datagram_ports.get_mut(token) else { return };
            let rule = port.rule;
            let Some(error) = self.io.host.next_error(&port.socket, &mut quoted) else { return };
            let Rule::Published(rule) = rule else { continue };
            let target = error.target;
            let Some(ends) = self.plan.inbound(Some(target.ip()), rule.guest_address) else {
                continue;
            };
            let guest = SocketAddr::new(ends.guest, rule.guest_port);
            let guest_mac = self.services.mac_of(guest.ip()).unwrap_or(self.plan.guest_mac);
            if let (Origin::Local, Some(failed)) = (error.origin, failed) {
                // The entry of an IPv4 socket lacks the port (`ip_append_data`).
                self.answer_socket_error(guest_mac, &error, failed);
                continue;
            }
            let client = SocketAddr::new(ends.client, target.port());
            let known = self.sessions.find(&SessionKey { guest, client });
            let known = known.and_then(|session| self.sessions.get(session));
            if !known.is_some_and(|known| known.port == token && known.client == target) {
                continue;
            }
            let Some(original) = error::original_udp(guest, client, error.quoted) else { continue };
            let Some(report) = report_of(&error, guest.is_ipv6()) else { continue };
            let source = error.offender.map(|address| self.plan.seen_by_guest(address));
            let source = source.filter(|address| !address.is_loopback());
            self.answer_report(guest_mac, source, report, &original);
        }
    }

    /// Ends the sessions of published sockets that are closed.
    pub(super) fn end_orphaned_sessions(&mut self) {
        let ports = &self.datagram_ports;
        let sessions: Vec<Token> = self
            .sessions
            .iter()
            .filter(|(.., session)| ports.get(session.port).is_none())
            .map(|(session, ..)| session)
            .collect();
        for session in sessions {
            self.end_session(session);
        }
    }

    pub(super) fn end_session(&mut self, token: Token) {
        if let Some((_, session)) = self.sessions.remove(token) {
            if let Some(port) = self.datagram_ports.get_mut(session.port) {
                port.sessions -= 1;
            }
            self.ledger.close(FlowTransport::Udp, &session.account, session.replied);
        }
    }

    /// Sees to it that the session's end is in the timer wheel.
    pub(super) fn settle_session(&mut self, token: Token) {
        let Some(session) = self.sessions.get_mut(token) else { return };
        let deadline = session.deadline();
        if session.wheel_entry.is_none_or(|entry| deadline < entry) {
            session.wheel_entry = Some(deadline);
            self.wheel.insert(deadline, token);
        }
    }

    /// A wheel entry of a session has fired: it ends, or is looked at again later.
    pub(super) fn on_session_deadline(&mut self, now: Instant, token: Token) {
        let Some(session) = self.sessions.get_mut(token) else { return };
        session.wheel_entry = session.wheel_entry.filter(|entry| *entry > now);
        if session.deadline() <= now {
            self.end_session(token);
        } else {
            self.settle_session(token);
        }
    }
}
