//! SYNs that wait until it is their turn.
//!
//! A new connection costs its worker a socket of the host and half a dozen system calls, where a
//! segment of an old one costs one at most. A guest that begins thousands at once, to scan a network
//! or to do harm, would have all its other connections wait behind them. So a turn opens a few, and
//! the others wait here, in order; what has been established goes on between two turns. A SYN that
//! finds no room is lost, as one that finds a listener's backlog full, and repeated after a second
//! (RFC 6298 §2.1). So one that has waited for that long is not opened either: its repetition is
//! behind it, and would open the connection a second time if the first were over by then.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::{DropReason, Instant, Mac};
use crate::observe::FlowTransport;
use crate::stack::ip::Packet;

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

/// Connections that the guest begins, and that one turn opens: 15,000 at once took 18 µs each (Linux
/// 6.18, a closed port of a veth's other end). A client that opens them one after the other never has
/// as many at once.
const OPENED: u32 = 8;

/// Waiting SYNs that a turn looks at: those that are late, or whose connection is there already, cost
/// little, but not nothing.
const RESUMED: u32 = 64;

/// How long a SYN may wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of the packets that wait, with what it takes to keep them: some 35,000 SYNs.
const MOST_BYTES: usize = 4 << 20;

struct Waiting {
    source_mac: Mac,
    since: Instant,
    /// The whole packet.
    bytes: Box<[u8]>,
}

/// Bytes that a packet takes while it waits. Allocators round up.
fn cost(bytes: &[u8]) -> usize {
    size_of::<Waiting>() + bytes.len() + 16
}

/// SYNs in the order of their arrival.
#[derive(Default)]
pub(super) struct SynBacklog {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// In this turn.
    opened: u32,
    /// Looked at again in this turn.
    resumed: u32,
    /// The one that is looked at has waited.
    resuming: bool,
}

impl SynBacklog {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Another turn begins.
    pub(super) fn begin_turn(&mut self) {
        (self.opened, self.resumed) = (0, 0);
    }

    /// Whether the SYN that is looked at opens its connection now. If so, that is one more.
    pub(super) fn admits(&mut self) -> bool {
        let admits = self.resuming || (self.opened < OPENED && self.waiting.is_empty());
        self.opened += u32::from(admits);
        admits
    }

    /// Has a SYN wait.
    ///
    /// # Errors
    /// There are too many.
    fn put_aside(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
    ) -> Result<(), DropReason> {
        let bytes = self.bytes + cost(packet.bytes);
        if bytes > MOST_BYTES {
            return Err(DropReason::SynBacklog);
        }
        self.bytes = bytes;
        self.waiting.push_back(Waiting { source_mac, since: now, bytes: packet.bytes.into() });
        Ok(())
    }

    /// The next one whose turn it is.
    fn next(&mut self) -> Option<Waiting> {
        if self.opened >= OPENED || self.resumed >= RESUMED {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.resumed += 1;
        self.bytes -= cost(&next.bytes);
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        Some(next)
    }
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Opens the connections whose SYNs have waited longest, as many as this turn has left.
    pub(super) fn open_waiting(&mut self, now: Instant) {
        while let Some(Waiting { source_mac, since, bytes }) = self.syn_backlog.next() {
            if now.since(since) >= PATIENCE {
                self.ledger.refuse(FlowTransport::Tcp);
                self.io.drop_frame(DropReason::SynBacklog);
                continue;
            }
            self.syn_backlog.resuming = true;
            if let Err(reason) = self.on_packet_from(now, source_mac, &bytes) {
                self.io.drop_frame(reason);
            }
            self.syn_backlog.resuming = false;
        }
    }

    /// Has a SYN wait for its turn.
    pub(super) fn delay_syn(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
    ) -> Result<(), DropReason> {
        let put_aside = self.syn_backlog.put_aside(now, source_mac, packet);
        put_aside.inspect_err(|_| self.ledger.refuse(FlowTransport::Tcp))
    }
}
