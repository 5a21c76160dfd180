//! Clients of UDP ports whose datagrams go on socket to socket, and the answers.

use std::io::ErrorKind;

use crate::base::{DropReason, Instant};
use crate::observe::{Direction, FlowTransport};
use crate::stack::udp::offload;
use crate::stack::wire::HEADROOM;
use crate::sys::datagram::{Batch, Marks, Outgoing, Received};

use super::ports::{FramePort, SocketPort};
use super::splice::{RelayKey, Relayed};
use super::token::Token;
use super::walk_splice::Way;
use super::walk_udp::send;
use super::worker::Worker;

/// Batches received from one socket before others get their turn.
const BATCH_BUDGET: usize = 4;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A client of `port` sends `payload`.
    pub(super) fn relay(
        &mut self,
        now: Instant,
        port: Token,
        way: Way,
        received: &Received,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let token = self.relay_session(now, port, way, received)?;
        let Some(relayed) = self.relayed.get_mut(token) else { return Err(DropReason::NoFlow) };
        relayed.local = received.local;
        relayed.account.last_use = now;
        let datagrams = offload::count(payload.len(), received.segment_size);
        let traffic = &mut relayed.account.traffic;
        match relayed.account.direction {
            Direction::Inbound => traffic.count_several_to_guest(datagrams, payload.len()),
            Direction::Outbound => traffic.count_several_to_host(datagrams, payload.len()),
        }
        let outgoing = Outgoing {
            target: relayed.target,
            source: None,
            payload,
            marks: Marks::DEFAULT,
            segment_size: received.segment_size,
        };
        // Whether anybody listens is told by the next datagram, or not at all: there is no way to
        // send the client an error.
        let joins_below = &mut relayed.joins_below;
        let _ = send(&mut self.io.host, &relayed.socket, &outgoing, joins_below);
        self.relayed.touch(token);
        self.settle_relay(token);
        Ok(())
    }

    /// The session of a client, which begins with its first datagram.
    fn relay_session(
        &mut self,
        now: Instant,
        port: Token,
        way: Way,
        received: &Received,
    ) -> Result<Token, DropReason> {
        let client = received.source;
        let key = RelayKey { port, client };
        if let Some(token) = self.relayed.find(&key) {
            return Ok(token);
        }
        if self.relayed.is_full()
            && let Some(oldest) = self.relayed.oldest()
        {
            self.end_relay(oldest);
        }
        let token = self.relayed.next_token();
        let (inside, target) = match way {
            Way::Inside(target) => (true, target),
            Way::Outside(target) => (false, target),
        };
        let socket = self.io.host.open_relay(token, inside, client.port(), target);
        let socket = socket.map_err(|_| DropReason::FlowLimit)?;
        let direction = if inside { Direction::Inbound } else { Direction::Outbound };
        let forward = self.datagram_ports.get(port).and_then(|port| port.rule.forward());
        let account = self.ledger.open(now, FlowTransport::Udp, direction, forward);
        let relayed = Relayed {
            account,
            socket,
            target,
            local: received.local,
            replied: false,
            joins_below: usize::MAX,
            wheel_entry: None,
            on_run_list: false,
        };
        self.relayed.insert(key, relayed).ok_or(DropReason::FlowLimit)
    }

    /// The socket of a session has answers, or an error.
    pub(super) fn on_relayed(&mut self, now: Instant, token: Token) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(1, HEADROOM));
        for round in 0..=BATCH_BUDGET {
            let Some((key, relayed)) = self.relayed.get_with_key(token) else { break };
            if round == BATCH_BUDGET {
                // Edge-triggered: nobody tells again of what is left.
                if !relayed.on_run_list {
                    relayed.on_run_list = true;
                    self.run_list.push_back(token);
                }
                break;
            }
            match self.io.host.recv_datagrams(&relayed.socket, &mut batch) {
                Ok(_) => self.answer_client(now, token, key, &mut batch),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody listens there, which the kernel tells once.
                Err(_) => {}
            }
        }
        self.batch = batch;
        self.batch_used = true;
        self.relayed.touch(token);
        self.settle_relay(token);
    }

    /// Answers go back to the client of a session.
    fn answer_client(&mut self, now: Instant, token: Token, key: RelayKey, batch: &mut Batch) {
        let Some(relayed) = self.relayed.get_mut(token) else { return };
        let Some(port) = self.datagram_ports.get_mut(key.port) else { return };
        relayed.account.last_use = now;
        relayed.replied = true;
        for (received, bytes) in batch.datagrams() {
            match relayed.account.direction {
                Direction::Inbound => relayed.account.traffic.count_to_host(received.len),
                Direction::Outbound => relayed.account.traffic.count_to_guest(received.len),
            }
            let outgoing = Outgoing {
                target: key.client,
                source: relayed.local,
                payload: &bytes[HEADROOM..],
                marks: Marks::DEFAULT,
                segment_size: received.segment_size,
            };
            // A client that does not listen any more has no use for it.
            let _ = send(&mut self.io.host, &port.socket, &outgoing, &mut port.joins_below);
        }
    }

    /// Ends the sessions of ports that are closed.
    pub(super) fn end_orphaned_relays(&mut self) {
        let ports = &self.datagram_ports;
        let sessions = self.relayed.iter();
        let sessions: Vec<Token> = sessions
            .filter(|(_, key, _)| ports.get(key.port).is_none())
            .map(|(token, ..)| token)
            .collect();
        for session in sessions {
            self.end_relay(session);
        }
    }

    fn end_relay(&mut self, token: Token) {
        if let Some((_, relayed)) = self.relayed.remove(token) {
            self.ledger.close(FlowTransport::Udp, &relayed.account, relayed.replied);
        }
    }

    /// Sees to it that the session's end is in the timer wheel.
    pub(super) fn settle_relay(&mut self, token: Token) {
        let Some(relayed) = self.relayed.get_mut(token) else { return };
        let deadline = relayed.deadline();
        if relayed.wheel_entry.is_none_or(|entry| deadline < entry) {
            relayed.wheel_entry = Some(deadline);
            self.wheel.insert(deadline, token);
        }
    }

    /// A wheel entry of a session has fired: it ends, or is looked at again later.
    pub(super) fn on_relay_deadline(&mut self, now: Instant, token: Token) {
        let Some(relayed) = self.relayed.get_mut(token) else { return };
        relayed.wheel_entry = relayed.wheel_entry.filter(|entry| *entry > now);
        if relayed.deadline() <= now {
            self.end_relay(token);
        } else {
            self.settle_relay(token);
        }
    }
}
