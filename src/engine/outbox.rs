//! Small UDP datagrams on the walk out wait here until the guest's frames of a turn are read, so
//! that those of one mapping leave with one system call.
//!
//! ```text
//!   frame ─▶ on_udp ─▶ copy of the packet ─┐
//!   frame ─▶ on_udp ─▶ copy of the packet ─┼─▶ flush: one sendmmsg(2) for each mapping
//!   frame ─▶ on_udp ─▶ copy of the packet ─┘
//! ```
//! The frame buffer is read into again, hence the copies: up to [`SMALL`] bytes they cost a tenth
//! of what a system call does. Larger datagrams, and those that segmentation offload joined, go at
//! once; what waits goes before them. The order within a mapping is therefore the guest's; that
//! between mappings is nobody's (RFC 768).
//!
//! The whole packet is kept, headers too: an ICMP error about it quotes them.

use std::net::SocketAddr;
use std::ops::Range;

use crate::base::{DropReason, Instant, Mac};
use crate::stack::ip::Packet;
use crate::sys::datagram::{Marks, Outgoing};

use super::ports::{FramePort, SocketPort};
use super::token::Token;
use super::worker::Worker;

/// The longest IP packet that is copied, in bytes.
pub(super) const SMALL: usize = 2048;

/// Datagrams that wait at most; as many frames are read in one turn.
const MAX_WAITING: usize = 64;

/// One datagram.
struct Waiting {
    token: Token,
    guest_mac: Mac,
    target: SocketAddr,
    marks: Marks,
    dont_fragment: bool,
    /// Where the IP packet lies in [`Outbox::bytes`].
    packet: Range<usize>,
    /// Where the UDP payload lies there.
    payload: Range<usize>,
}

/// What waits. Empty between turns.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Vec<Waiting>,
    bytes: Vec<u8>,
}

impl Outbox {
    /// Adds a datagram of the mapping `token`: `outgoing` is made of the UDP datagram `packet`.
    pub(super) fn push(
        &mut self,
        token: Token,
        guest_mac: Mac,
        packet: &Packet<'_>,
        outgoing: &Outgoing<'_>,
    ) {
        let start = self.bytes.len();
        self.bytes.extend(packet.bytes);
        // The payload follows the UDP header, which follows the IP headers.
        let payload_at = self.bytes.len() - packet.payload.len() + UDP_HEADER_LEN;
        self.waiting.push(Waiting {
            token,
            guest_mac,
            target: outgoing.target,
            marks: outgoing.marks,
            dont_fragment: packet.dont_fragment,
            packet: start..self.bytes.len(),
            payload: payload_at..payload_at + outgoing.payload.len(),
        });
    }

    /// Whether it has to be flushed before the next datagram.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Whether [`Outbox::release`] would free something.
    pub(super) fn can_release(&self) -> bool {
        self.bytes.capacity() > 0
    }

    /// Gives the memory back; for when traffic has ceased.
    pub(super) fn release(&mut self) {
        debug_assert!(self.waiting.is_empty(), "flushed at the end of each turn");
        *self = Outbox::default();
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.bytes.clear();
    }
}

const UDP_HEADER_LEN: usize = 8;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Sends what waits.
    pub(super) fn flush_datagrams(&mut self, now: Instant) {
        if self.outbox.waiting.is_empty() {
            return;
        }
        let mut outbox = std::mem::take(&mut self.outbox);
        // Stable: the guest's order within a mapping.
        outbox.waiting.sort_by_key(|datagram| datagram.token.to_bits());
        let alike =
            |a: &Waiting, b: &Waiting| (a.token, a.dont_fragment) == (b.token, b.dont_fragment);
        for run in outbox.waiting.chunk_by(alike) {
            self.send_run(now, run, &outbox.bytes);
        }
        outbox.clear();
        self.outbox = outbox;
    }

    /// Sends `run`, datagrams of one mapping that all may or may not be fragmented.
    fn send_run(&mut self, now: Instant, run: &[Waiting], bytes: &[u8]) {
        let Some(&Waiting { token, dont_fragment, .. }) = run.first() else { return };
        self.allow_fragments(token, !dont_fragment);
        let outgoing: Vec<Outgoing<'_>> = run
            .iter()
            .map(|waiting| Outgoing {
                target: waiting.target,
                source: None,
                payload: &bytes[waiting.payload.clone()],
                marks: waiting.marks,
                segment_size: None,
            })
            .collect();
        let mut sent = 0;
        while sent < run.len() {
            // Opening a mapping flushes before it removes another, so the flow is there.
            let Some(flow) = self.udp.get(token) else {
                run[sent..].iter().for_each(|_| self.io.drop_frame(DropReason::NoFlow));
                return;
            };
            match self.io.host.send_datagrams(&flow.socket, &outgoing[sent..]) {
                Ok(count) => sent += count.max(1),
                Err(error) => {
                    let failed = &run[sent];
                    let original = &bytes[failed.packet.clone()];
                    let told = self.on_send_failure(now, token, failed.guest_mac, original, &error);
                    if let Err(reason) = told {
                        self.io.drop_frame(reason);
                    }
                    sent += 1;
                }
            }
        }
    }

    /// Has the socket of a UDP mapping fragment what is too large, or report it.
    pub(super) fn allow_fragments(&mut self, token: Token, allow: bool) {
        let Some((key, flow)) = self.udp.get_with_key(token) else { return };
        if flow.dont_fragment == allow {
            flow.dont_fragment = !allow;
            self.io.host.set_dont_fragment(&flow.socket, key.guest.is_ipv6(), !allow);
        }
    }
}
