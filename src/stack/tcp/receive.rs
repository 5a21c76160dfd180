//! The receiving half: guest → host. What is in order, what is advertised.
//!
//! ```text
//!            nxt                         edge
//!   ──────────┼───────── window ──────────┼──────────
//!   acknowledged; of it the last `backlog` bytes wait for the host socket
//! ```
//! Nothing is kept out of order: the TAP does not reorder, and a gap is answered by a duplicate
//! ACK (D2). The edge never moves left (RFC 9293 §3.8.6), so what was offered is always taken (D3).

use crate::base::Seq;

/// How far the guest's FIN has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestFin {
    /// Not seen.
    Open,
    /// Seen; bytes before it still wait in the backlog.
    Received,
    /// The host socket is shut down for writing.
    PassedOn,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Receive {
    /// Next sequence number expected (RCV.NXT).
    pub(super) nxt: Seq,
    /// Right edge of what was advertised (RCV.NXT + RCV.WND).
    edge: Seq,
    /// Bytes accepted from the guest that the host socket has not taken yet.
    pub(super) backlog: u32,
    /// Most bytes to hold: the window with an empty backlog.
    limit: u32,
    /// Shift of the window field (RFC 7323 §2).
    shift: u8,
    pub(super) fin: GuestFin,
}

/// What of a segment's payload is new and inside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Payload bytes to skip: received before.
    pub(super) skip: u32,
    /// Payload bytes to take.
    pub(super) len: u32,
    /// Whether the payload is taken to its end, so that a FIN behind it counts.
    pub(super) whole: bool,
}

impl Receive {
    /// After a SYN with initial sequence number `irs`. `shift` is 0 if the guest does not scale.
    pub(super) fn new(irs: Seq, limit: u32, shift: u8) -> Self {
        let nxt = irs + 1;
        Receive { nxt, edge: nxt, backlog: 0, limit, shift, fin: GuestFin::Open }
    }

    /// Bytes that the guest may still send under the last advertisement.
    fn open(&self) -> u32 {
        // The edge is never left of `nxt`.
        self.nxt.distance(self.edge).max(0).cast_unsigned()
    }

    /// RFC 9293 §3.10.7.4 first check, widened by one for bare ACKs at the right edge.
    pub(super) fn acceptable(&self, seq: Seq, sequence_len: u32) -> bool {
        if sequence_len == 0 {
            return self.nxt.at_or_before(seq) && seq.at_or_before(self.edge);
        }
        let end = seq + sequence_len;
        seq.precedes(self.edge) && self.nxt.precedes(end)
    }

    /// The part of a payload that starts at `seq` which can be taken; `None` if there is a gap.
    pub(super) fn accept(&self, seq: Seq, len: u32) -> Option<Accepted> {
        if self.nxt.precedes(seq) {
            return None;
        }
        let skip = seq.distance(self.nxt).cast_unsigned().min(len);
        let len_left = len - skip;
        let taken = len_left.min(self.open());
        Some(Accepted { skip, len: taken, whole: taken == len_left })
    }

    /// The window field for the next segment; advertising it moves the edge.
    pub(super) fn advertise(&mut self, scaled: bool) -> u16 {
        let shift = if scaled { self.shift } else { 0 };
        let wanted = self.limit.saturating_sub(self.backlog).min(65_535 << shift);
        // Rounded down to what the field can say, but never left of the present edge; that is
        // rounded up instead.
        let owed = self.open();
        let field = (wanted >> shift).max(owed.div_ceil(1 << shift)).min(65_535);
        self.edge = self.edge.later(self.nxt + (field << shift));
        // Bounded by 65,535 above.
        field as u16
    }

    /// Whether the window has grown enough since the last advertisement to be worth a segment of
    /// its own (RFC 9293 §3.8.6.2.2, receiver's silly window avoidance).
    pub(super) fn update_due(&self, mss: u32) -> bool {
        let offered = self.open();
        let possible = self.limit.saturating_sub(self.backlog);
        offered < self.limit / 2 && possible.saturating_sub(offered) >= mss.min(self.limit / 2)
    }

    /// Sets the most bytes to hold. A smaller value takes effect as the guest uses up the window.
    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_window(limit: u32) -> Receive {
        let mut receive = Receive::new(Seq(u32::MAX - 1), limit, 7);
        assert_eq!(receive.nxt, Seq(u32::MAX));
        receive.advertise(true);
        receive
    }

    #[test]
    fn the_window_closes_by_the_backlog_and_its_edge_stays() {
        let mut receive = open_window(128 * 1024);
        let edge = receive.edge;
        let accepted = receive.accept(receive.nxt, 70_000).unwrap();
        assert_eq!(accepted, Accepted { skip: 0, len: 70_000, whole: true });
        receive.nxt += 70_000;
        receive.backlog += 70_000;
        assert_eq!(
            u32::from(receive.advertise(true)) << 7,
            (128 * 1024 - 70_000_u32).next_multiple_of(128)
        );
        assert!(edge.at_or_before(receive.edge));
        assert!(edge.distance(receive.edge) < 128);
    }

    #[test]
    fn what_was_received_before_is_skipped_and_what_is_beyond_the_edge_cut() {
        let mut receive = open_window(1280);
        receive.nxt += 100;
        assert_eq!(
            receive.accept(receive.nxt - 100, 150),
            Some(Accepted { skip: 100, len: 50, whole: true })
        );
        assert_eq!(
            receive.accept(receive.nxt, 5000),
            Some(Accepted { skip: 0, len: 1180, whole: false })
        );
        assert_eq!(receive.accept(receive.nxt + 1, 10), None);
        assert_eq!(
            receive.accept(receive.nxt - 100, 50),
            Some(Accepted { skip: 50, len: 0, whole: true })
        );
    }

    #[test]
    fn an_update_is_due_when_a_closed_window_opens_by_a_segment() {
        let mut receive = open_window(128 * 1024);
        receive.nxt += 128 * 1024;
        receive.backlog = 128 * 1024;
        receive.advertise(true);
        assert!(!receive.update_due(1460));
        receive.backlog -= 1000;
        assert!(!receive.update_due(1460));
        receive.backlog -= 460;
        assert!(receive.update_due(1460));
    }
}
