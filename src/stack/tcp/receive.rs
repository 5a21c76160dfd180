//! The receiving half: guest → host. What is in order, what is advertised.
//!
//! ```text
//!            nxt                         edge
//!   ──────────┼───────── window ──────────┼──────────
//!   acknowledged; of it the last `backlog` bytes wait for the host socket
//! ```
//! What arrives beyond a gap is kept by [`super::held`] and answered by a duplicate ACK. The edge
//! never moves left (RFC 9293 §3.8.6), so what was offered is always taken (D3).
//!
//! A scaled window field counts in units of `1 << shift` bytes, so the edge can only be repeated
//! exactly when `nxt` advances by whole units. Otherwise the field is rounded up, which lets the
//! edge creep right by less than a unit per segment. [`Receive::advertise`] bounds that creep: a
//! guest that sends single bytes to a host that reads nothing must not make the backlog grow
//! without end. At the bound the field is rounded down, as RFC 7323 §2.4 allows; what is inside
//! the edge of before is still taken.
//!
//! A window is a promise of memory, and an idle connection should hold little of it. So it starts
//! small and doubles whenever the guest uses more than half of it before we answer.

use crate::base::Seq;

use super::held::Held;

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

#[derive(Clone, Debug)]
pub(super) struct Receive {
    /// Next sequence number expected (RCV.NXT).
    pub(super) nxt: Seq,
    /// Right edge of what was advertised (RCV.NXT + RCV.WND).
    edge: Seq,
    /// Bytes accepted from the guest that the host socket has not taken yet.
    pub(super) backlog: u32,
    /// Most bytes to hold for now, as the edge says.
    allowed: u32,
    /// Most bytes to hold, as use has shown to be of avail.
    earned: u32,
    /// Most bytes that may ever be held. At most what the field can say.
    ceiling: u32,
    /// The MSS that we announced: less than that is not worth an advertisement.
    mss: u32,
    /// Shift of the window field (RFC 7323 §2).
    shift: u8,
    pub(super) fin: GuestFin,
    /// What arrived beyond a gap, inside the window.
    pub(super) held: Held,
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
    /// Before the guest's SYN, with a window of `first` that may grow to `limit`; `shift` is what
    /// our SYN offers or will offer.
    pub(super) fn new(first: u32, limit: u32, mss: u32, shift: u8) -> Self {
        let nxt = Seq(0);
        let limit = limit.min(65_535 << shift);
        Receive {
            nxt,
            edge: nxt,
            backlog: 0,
            allowed: limit,
            earned: first.min(limit),
            ceiling: limit,
            mss,
            shift,
            fin: GuestFin::Open,
            held: Held::default(),
        }
    }

    /// The guest's SYN came, with initial sequence number `irs`, and `scaled` if it scales windows.
    /// What our own SYN offered, if it went first, is kept.
    pub(super) fn synchronize(&mut self, irs: Seq, scaled: bool) {
        let offered = self.open();
        self.nxt = irs + 1;
        self.edge = self.nxt + offered;
        if !scaled {
            self.shift = 0;
            self.ceiling = self.ceiling.min(65_535);
        }
    }

    /// Most bytes to hold: the window with an empty backlog.
    fn limit(&self) -> u32 {
        self.allowed.min(self.earned).min(self.ceiling)
    }

    /// `len` bytes in order are taken: acknowledged from now on, and waiting for the host.
    pub(super) fn take(&mut self, len: u32) {
        self.nxt += len;
        self.backlog += len;
        if self.open() < self.earned / 2 {
            self.earned = self.earned.saturating_mul(2).min(self.ceiling);
        }
    }

    /// Takes the bytes that a closed gap sets free: how many follow at once.
    pub(super) fn take_held(&mut self) -> u32 {
        let follow = self.held.advance(self.nxt);
        self.take(follow);
        follow
    }

    /// Keeps what a segment beyond a gap brings into the window: bytes of its payload to skip, and
    /// to hold.
    pub(super) fn hold(&mut self, seq: Seq, len: u32, fin: bool) -> Option<(u32, u32)> {
        let end = seq + len;
        if fin && end.at_or_before(self.edge) {
            self.held.note_fin(end);
        }
        let (from, to) = self.held.insert(seq, end.earlier(self.edge))?;
        Some((seq.distance(from).cast_unsigned(), from.distance(to).cast_unsigned()))
    }

    /// Bytes that the host socket has yet to take, and those that the guest may still send.
    pub(super) fn promised(&self) -> u32 {
        self.backlog + if self.fin == GuestFin::Open { self.open() } else { 0 }
    }

    /// Bytes that the guest may still send under the last advertisement.
    pub(super) fn open(&self) -> u32 {
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
        let owed = self.open();
        let free = self.limit().saturating_sub(self.backlog);
        // A gain that is not worth a segment is kept back until it is (RFC 9293 §3.8.6.2.2).
        let wanted = if free.saturating_sub(owed) >= self.worthwhile() { free } else { owed };
        let wanted = wanted.min(65_535 << shift);
        let kept = owed.div_ceil(1 << shift);
        let creeps = u64::from(self.backlog) + (u64::from(kept) << shift)
            > u64::from(self.limit()) + u64::from(self.creep_limit());
        let kept = if creeps { owed >> shift } else { kept };
        let field = (wanted >> shift).max(kept).min(65_535);
        self.edge = self.edge.later(self.nxt + (field << shift));
        // Bounded by 65,535 above.
        field as u16
    }

    /// Whether the window has grown enough since the last advertisement to be worth a segment of
    /// its own (RFC 9293 §3.8.6.2.2, receiver's silly window avoidance). With half of the limit
    /// still open the guest is not held up, by its own rule for silly windows (§3.8.6.2.1).
    pub(super) fn update_due(&self) -> bool {
        let offered = self.open();
        let free = self.limit().saturating_sub(self.backlog);
        offered < self.limit() / 2 && free.saturating_sub(offered) >= self.worthwhile()
    }

    /// The least gain that is advertised: a segment, or half of a limit that is smaller than two.
    fn worthwhile(&self) -> u32 {
        self.mss.min(self.limit() / 2)
    }

    /// How far rounding may push backlog and window in sum beyond the limit that was advertised.
    fn creep_limit(&self) -> u32 {
        (self.limit() / 8).max(1 << self.shift)
    }

    /// Sets the most bytes to hold. A smaller value takes effect as the guest uses up the window.
    pub(super) fn set_limit(&mut self, limit: u32) {
        self.allowed = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_window(limit: u32) -> Receive {
        let mut receive = Receive::new(limit, limit, 1460, 7);
        receive.synchronize(Seq(u32::MAX - 1), true);
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
    fn the_window_doubles_as_it_is_used_up_to_the_limit() {
        let mut receive = Receive::new(10_000, 64 << 10, 1460, 7);
        receive.synchronize(Seq(u32::MAX - 1), true);
        for offered in [10_000, 20_000, 40_000, 64 << 10, 64 << 10] {
            let field = u32::from(receive.advertise(true)) << 7;
            assert!((offered - 127..=offered).contains(&field), "{field} of {offered}");
            assert_eq!(receive.promised(), field);
            // A little use changes nothing.
            receive.take(1000);
            receive.backlog = 0;
            receive.advertise(true);
            receive.take(field / 2 + 128);
            receive.backlog = 0;
        }
    }

    #[test]
    fn a_limit_that_shrinks_keeps_its_word_and_promises_nothing_new() {
        let mut receive = open_window(128 * 1024);
        receive.set_limit(3000);
        for _ in 0..1000 {
            receive.take(100);
            receive.advertise(true);
            assert!(receive.promised() <= 128 * 1024 + 128);
        }
        receive.take(receive.open());
        assert_eq!((receive.advertise(true), receive.promised()), (0, receive.backlog));
        assert!(receive.accept(receive.nxt, 10).is_some_and(|accepted| accepted.len == 0));
        // A closed window opens by what is allowed now, when the host has taken enough.
        receive.backlog = 2000;
        assert!(!receive.update_due());
        receive.backlog = 1000;
        assert!(receive.update_due());
        assert_eq!(receive.advertise(true), 2000 >> 7);
    }

    #[test]
    fn an_update_is_due_when_a_closed_window_opens_by_a_segment() {
        let mut receive = open_window(128 * 1024);
        receive.nxt += 128 * 1024;
        receive.backlog = 128 * 1024;
        receive.advertise(true);
        assert!(!receive.update_due());
        receive.backlog -= 1000;
        assert!(!receive.update_due());
        receive.backlog -= 460;
        assert!(receive.update_due());
    }
}
