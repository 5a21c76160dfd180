//! Small UDP datagrams on the walk out wait here until the guest's frames of a turn are read, so
//! that those of one socket leave with one system call, and those that are alike as one packet
//! through the host's stack.
//!
//! ```text
//!   frame ─▶ on_udp ─▶ copy of the packet ─┐
//!   frame ─▶ on_udp ─▶ copy of the packet ─┼─▶ flush: for each socket one sendmmsg(2) of trains,
//!   frame ─▶ on_udp ─▶ copy of the packet ─┘          each one UDP_SEGMENT message
//! ```
//! The frame buffer is read into again, hence the copies: up to [`SMALL`] bytes they cost a tenth
//! of what a system call does. Larger datagrams, and those that segmentation offload joined, go at
//! once; what waits goes before them. The order within a socket is therefore the guest's; that
//! between sockets is nobody's (RFC 768).
//!
//! A [`Train`] that the kernel does not take, for whatever reason, is sent again as the datagrams
//! that it is made of, and what then fails is told to the guest for each of them. Where it was the
//! joining that failed (a device that cannot sum them up, a path that one of them does not fit),
//! its socket joins none so large any more.
//!
//! Headers are kept too: an ICMP error about a datagram quotes them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::base::{DropReason, Mac};
use crate::stack::ip::Packet;
use crate::stack::udp::offload::Train;
use crate::sys::datagram::{Marks, Outgoing};

use super::ports::{FramePort, SocketPort};
use super::token::{Kind, Token};
use super::walk_udp::is_about_joining;
use super::worker::Worker;

/// The longest IP packet that is copied, in bytes.
pub(super) const SMALL: usize = 2048;

/// Datagrams that wait at most; as many frames are read in one turn.
const MAX_WAITING: usize = 64;

/// One datagram.
struct Waiting {
    /// The mapping or the published socket that it leaves by.
    token: Token,
    guest_mac: Mac,
    target: SocketAddr,
    source: Option<IpAddr>,
    marks: Marks,
    dont_fragment: bool,
    /// Where its IP and UDP headers lie in [`Outbox::headers`].
    headers: Range<usize>,
    /// Where its payload lies in [`Outbox::payloads`]: behind that of the datagram before it.
    payload: Range<usize>,
}

impl Waiting {
    /// Whether `other` can be told from it by its contents alone.
    fn is_like(&self, other: &Waiting) -> bool {
        (self.target, self.source, self.marks) == (other.target, other.source, other.marks)
    }
}

/// What waits. Empty between turns.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Vec<Waiting>,
    headers: Vec<u8>,
    payloads: Vec<u8>,
}

impl Outbox {
    /// Adds a datagram of the socket `token`: `outgoing` is made of the UDP datagram `packet`.
    pub(super) fn push(
        &mut self,
        token: Token,
        guest_mac: Mac,
        packet: &Packet<'_>,
        outgoing: &Outgoing<'_>,
    ) {
        // The UDP header follows the IP headers.
        let headers_len = packet.bytes.len() - packet.payload.len() + UDP_HEADER_LEN;
        let (headers_at, payload_at) = (self.headers.len(), self.payloads.len());
        self.headers.extend(&packet.bytes[..headers_len]);
        self.payloads.extend(outgoing.payload);
        self.waiting.push(Waiting {
            token,
            guest_mac,
            target: outgoing.target,
            source: outgoing.source,
            marks: outgoing.marks,
            dont_fragment: packet.dont_fragment,
            headers: headers_at..self.headers.len(),
            payload: payload_at..self.payloads.len(),
        });
    }

    /// Whether it has to be flushed before the next datagram.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Whether [`Outbox::release`] would free something.
    pub(super) fn can_release(&self) -> bool {
        self.payloads.capacity() > 0 || self.headers.capacity() > 0
    }

    /// Gives the memory back; for when traffic has ceased.
    pub(super) fn release(&mut self) {
        debug_assert!(self.waiting.is_empty(), "flushed at the end of each turn");
        *self = Outbox::default();
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.headers.clear();
        self.payloads.clear();
    }
}

const UDP_HEADER_LEN: usize = 8;

/// Some of the datagrams of a run that leave as one message.
struct Message {
    members: Range<usize>,
    train: Train,
    /// Where their payloads lie, one behind the other, if they do.
    together: Option<Range<usize>>,
}

/// Makes messages of `run`: trains of datagrams shorter than `limit`.
fn messages(run: &[Waiting], limit: usize) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for (index, waiting) in run.iter().enumerate() {
        let len = waiting.payload.len();
        if let Some(message) = messages.last_mut()
            && let Some(first) = run.get(message.members.start)
            && first.payload.len() < limit
            && first.is_like(waiting)
            && message.train.add(len)
        {
            message.members.end = index + 1;
            message.together = message
                .together
                .take()
                .filter(|range| range.end == waiting.payload.start)
                .map(|range| range.start..waiting.payload.end);
            continue;
        }
        let together = Some(waiting.payload.clone());
        messages.push(Message { members: index..index + 1, train: Train::of(len), together });
    }
    messages
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Sends what waits.
    pub(super) fn flush_datagrams(&mut self) {
        if self.outbox.waiting.is_empty() {
            return;
        }
        let mut outbox = std::mem::take(&mut self.outbox);
        // Stable: the guest's order within a socket.
        outbox.waiting.sort_by_key(|datagram| datagram.token.to_bits());
        let alike =
            |a: &Waiting, b: &Waiting| (a.token, a.dont_fragment) == (b.token, b.dont_fragment);
        for run in outbox.waiting.chunk_by(alike) {
            if let Some(first) = run.first() {
                self.allow_fragments(first.token, !first.dont_fragment);
                let limit = self.joins_below(first.token).map_or(0, |limit| *limit);
                self.send_run(run, &outbox, limit);
            }
        }
        outbox.clear();
        self.outbox = outbox;
    }

    /// Sends `run`, datagrams of one socket that all may or may not be fragmented; those shorter
    /// than `limit` in trains.
    fn send_run(&mut self, run: &[Waiting], outbox: &Outbox, limit: usize) {
        let Some(&Waiting { token, .. }) = run.first() else { return };
        let messages = messages(run, limit);
        let mut gathered = Vec::new();
        for message in messages.iter().filter(|message| message.together.is_none()) {
            for waiting in &run[message.members.clone()] {
                gathered.extend(&outbox.payloads[waiting.payload.clone()]);
            }
        }
        let mut rest = &gathered[..];
        let outgoing: Vec<Outgoing<'_>> = messages
            .iter()
            .map(|message| {
                let first = &run[message.members.start];
                let payload = match message.together.clone() {
                    Some(range) => &outbox.payloads[range],
                    None => {
                        // Gathered above, in this order.
                        let (payload, behind) = rest.split_at(message.train.len());
                        rest = behind;
                        payload
                    }
                };
                Outgoing {
                    target: first.target,
                    source: first.source,
                    payload,
                    marks: first.marks,
                    segment_size: message.train.segment_size(),
                }
            })
            .collect();
        let mut sent = 0;
        while let Some(message) = messages.get(sent) {
            // Opening a mapping flushes before it removes another, so the socket is there.
            let socket = match token.kind {
                Kind::DatagramPort => self.datagram_ports.get(token).map(|port| &port.socket),
                _ => self.udp.get(token).map(|flow| &flow.socket),
            };
            let unsent = &run[message.members.start..];
            let Some(socket) = socket else {
                unsent.iter().for_each(|_| self.io.drop_frame(DropReason::NoFlow));
                return;
            };
            let error = match self.io.host.send_datagrams(socket, &outgoing[sent..]) {
                Ok(count) => {
                    sent += count.max(1);
                    continue;
                }
                Err(error) => error,
            };
            if error.kind() == ErrorKind::WouldBlock {
                // The buffer is full: it would not take the others either.
                unsent.iter().for_each(|_| self.io.drop_frame(DropReason::HostRefused));
                return;
            }
            sent += 1;
            let members = &run[message.members.clone()];
            if let ([first, _, ..], true) = (members, is_about_joining(&error)) {
                let len = first.payload.len();
                if let Some(limit) = self.joins_below(token) {
                    *limit = len.min(*limit);
                }
            }
            match members {
                [failed] => {
                    let original = [
                        &outbox.headers[failed.headers.clone()],
                        &outbox.payloads[failed.payload.clone()],
                    ]
                    .concat();
                    let told = self.on_send_failure(token, failed.guest_mac, &original, &error);
                    if let Err(reason) = told {
                        self.io.drop_frame(reason);
                    }
                }
                // Each on its own: no deeper than this.
                members => self.send_run(members, outbox, 0),
            }
        }
    }

    /// The size from which on a socket does not join datagrams.
    pub(super) fn joins_below(&mut self, token: Token) -> Option<&mut usize> {
        match token.kind {
            Kind::DatagramPort => {
                self.datagram_ports.get_mut(token).map(|port| &mut port.joins_below)
            }
            _ => self.udp.get_mut(token).map(|flow| &mut flow.joins_below),
        }
    }

    /// Has the socket of a UDP mapping, or a published one, fragment what is too large, or report
    /// it.
    pub(super) fn allow_fragments(&mut self, token: Token, allow: bool) {
        let (socket, dont_fragment, ipv6) = match token.kind {
            Kind::DatagramPort => {
                let Some(port) = self.datagram_ports.get_mut(token) else { return };
                (&port.socket, &mut port.dont_fragment, port.ipv6)
            }
            _ => {
                let Some((key, flow)) = self.udp.get_with_key(token) else { return };
                (&flow.socket, &mut flow.dont_fragment, key.guest.is_ipv6())
            }
        };
        if *dont_fragment == allow {
            *dont_fragment = !allow;
            self.io.host.set_dont_fragment(socket, ipv6, !allow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Datagrams of these lengths, each to a port of its own choice.
    fn run(datagrams: &[(usize, u16)]) -> Vec<Waiting> {
        let mut at = 0;
        let waiting = |&(len, port): &(usize, u16)| {
            at += len;
            Waiting {
                token: Token::only(Kind::Udp),
                guest_mac: Mac([2, 0, 0, 0, 0, 1]),
                target: SocketAddr::from(([192, 0, 2, 7], port)),
                source: None,
                marks: Marks::DEFAULT,
                dont_fragment: true,
                headers: 0..28,
                payload: at - len..at,
            }
        };
        datagrams.iter().map(waiting).collect()
    }

    fn shapes(run: &[Waiting], limit: usize) -> Vec<(Range<usize>, Option<u16>)> {
        let shape = |message: &Message| (message.members.clone(), message.train.segment_size());
        messages(run, limit).iter().map(shape).collect()
    }

    #[test]
    fn datagrams_to_one_target_are_joined_in_order() {
        let run = run(&[(100, 9), (100, 9), (40, 9), (100, 9), (100, 8), (100, 8), (0, 8)]);
        let expected = [(0..3, Some(100)), (3..4, None), (4..6, Some(100)), (6..7, None)];
        assert_eq!(shapes(&run, usize::MAX), expected);
        assert!(messages(&run, usize::MAX).iter().all(|message| message.together.is_some()));
    }

    #[test]
    fn sizes_that_failed_are_not_joined_again() {
        let run = run(&[(100, 9), (100, 9), (99, 9), (99, 9), (99, 9)]);
        let expected = [(0..1, None), (1..2, None), (2..5, Some(99))];
        assert_eq!(shapes(&run, 100), expected);
        assert_eq!(shapes(&run, 0).len(), 5);
    }

    #[test]
    fn marks_and_sources_are_kept_apart() {
        let mut run = run(&[(100, 9), (100, 9), (100, 9)]);
        run[1].marks.tos = 1;
        run[2].source = Some([192, 0, 2, 1].into());
        assert_eq!(shapes(&run, usize::MAX).len(), 3);
    }

    #[test]
    fn payloads_that_do_not_lie_together_are_noticed() {
        let mut run = run(&[(100, 9), (100, 7), (100, 9), (100, 9)]);
        run.remove(1);
        let [message] = &messages(&run, usize::MAX)[..] else { panic!("one train") };
        assert_eq!((message.together.clone(), message.train.len()), (None, 300));
    }
}
