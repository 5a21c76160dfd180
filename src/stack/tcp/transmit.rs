//! The sending half: host → guest. What is in flight, what is lost, how much more may go.
//!
//! ```text
//!        una                 nxt          una + wnd
//!   ──────┼──── in flight ────┼── usable ────┼────
//!          [sacked]   [sacked]
//! ```
//! Bytes are read from the host socket only when they can be sent at once, so everything between
//! `una` and `nxt` stands in the edge's retransmission queue, and nothing else does (D3).
//!
//! Loss on a TAP is a full ring or an interface that went down, so there is no congestion window
//! (D2); a lost range is sent again on three duplicate ACKs, SACK evidence or the RTO, one frame
//! per acknowledgment (RFC 6582's partial ACKs, with RFC 2018's ranges skipped).

use crate::base::Seq;
use crate::stack::wire::SackRanges;

/// Ranges that the guest reported as received above `una`. Four are enough to describe what three
/// SACK blocks per segment bring on a link that rarely loses; when full, one of them gives way,
/// which costs at most a needless retransmission.
const SCOREBOARD: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Transmit {
    /// Oldest unacknowledged (SND.UNA).
    pub(super) una: Seq,
    /// Next to send (SND.NXT); counts our SYN and FIN.
    pub(super) nxt: Seq,
    /// The guest's window in bytes (SND.WND), and for which segment it was given (WL1, WL2).
    wnd: u32,
    wl1: Seq,
    wl2: Seq,
    /// The largest window seen, for the silly-window rule.
    max_wnd: u32,
    /// Shift of the guest's window field.
    shift: u8,
    /// Largest payload of one segment.
    pub(super) mss: u32,
    /// Our FIN's sequence number, once sent.
    pub(super) fin: Option<Seq>,
    /// The persist timer found a window that is open but silly: it is used as it is, once.
    small_window_allowed: bool,
    duplicates: u8,
    /// There since something seems to be lost, until everything sent by then is acknowledged: few
    /// connections ever need it.
    loss: Option<Box<Loss>>,
}

/// What is known of a loss.
#[derive(Clone, Debug, Default)]
struct Loss {
    recovery: Option<Recovery>,
    sacked: [Option<(Seq, Seq)>; SCOREBOARD],
}

/// A loss being repaired: everything below `point` was sent before it was noticed.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    point: Seq,
    /// Next candidate for retransmission.
    next: Seq,
    /// After a time-out everything unsacked counts as lost; else only what SACK shows.
    timed_out: bool,
}

/// A range to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resend {
    pub(super) seq: Seq,
    pub(super) len: u32,
    pub(super) fin: bool,
}

/// What an acknowledgment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// It acknowledges something never sent, or lies further back than any window reaches: not
    /// from the guest's connection as it is now (RFC 5961 §5).
    Outside,
    /// Nothing new.
    Old,
    /// `bytes` of payload are done with; `fin` if our FIN is too.
    New { bytes: u32, fin: bool },
}

impl Transmit {
    /// Before our SYN with initial sequence number `iss`, on a link that carries `mss`.
    pub(super) fn new(iss: Seq, mss: u32) -> Self {
        Transmit {
            una: iss,
            nxt: iss + 1,
            wnd: 0,
            wl1: Seq(0),
            wl2: Seq(0),
            max_wnd: 0,
            shift: 0,
            mss,
            fin: None,
            small_window_allowed: false,
            duplicates: 0,
            loss: None,
        }
    }

    /// The guest's SYN says what its segments may carry and how its window field is scaled.
    pub(super) fn synchronize(&mut self, mss: u32, shift: u8) {
        self.mss = mss;
        self.shift = shift;
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.una.distance(self.nxt).cast_unsigned()
    }

    /// Payload bytes that may be sent now under the guest's window and `cap` bytes in flight;
    /// 0 if that would be a silly segment (RFC 9293 §3.8.6.2.1). The same rule keeps us from
    /// trickling when it is the cap that leaves little room.
    pub(super) fn capacity(&self, cap: u32) -> u32 {
        let usable = self.usable();
        let room = cap.saturating_sub(self.in_flight());
        let window_serves = usable >= self.mss.min(self.max_wnd / 2) || self.small_window_allowed;
        let cap_serves = room >= self.mss.min(cap / 2);
        if window_serves && cap_serves { usable.min(room) } else { 0 }
    }

    /// Payload bytes that fit the window, silly or not.
    pub(super) fn usable(&self) -> u32 {
        self.wnd.saturating_sub(self.in_flight())
    }

    /// Lets the next segment fill a silly window (the override time-out of §3.8.6.2.1).
    pub(super) fn allow_small_window(&mut self) {
        self.small_window_allowed = true;
    }

    /// New payload or our FIN takes the next `len` sequence numbers. Returns the first of them.
    pub(super) fn advance(&mut self, len: u32) -> Seq {
        let seq = self.nxt;
        self.nxt += len;
        self.small_window_allowed = false;
        seq
    }

    /// Whether the guest said that it takes nothing at present.
    pub(super) fn window_is_closed(&self) -> bool {
        self.wnd == 0
    }

    /// The window of the handshake's segment.
    pub(super) fn open(&mut self, seq: Seq, ack: Seq, field: u16, scaled: bool) {
        self.wnd = u32::from(field) << if scaled { self.shift } else { 0 };
        self.max_wnd = self.max_wnd.max(self.wnd);
        self.wl1 = seq;
        self.wl2 = ack;
    }

    /// RFC 9293 §3.10.7.4 fifth check: takes the window of a segment that is not older than the
    /// last one. Returns whether a closed window opened.
    pub(super) fn update_window(&mut self, seq: Seq, ack: Seq, field: u16) -> bool {
        let newer = self.wl1.precedes(seq) || (self.wl1 == seq && self.wl2.at_or_before(ack));
        if !newer {
            return false;
        }
        let was_closed = self.wnd == 0;
        self.open(seq, ack, field, true);
        was_closed && self.wnd > 0
    }

    /// Whether a segment with this window field would change the window.
    fn changes_window(&self, field: u16) -> bool {
        u32::from(field) << self.shift != self.wnd
    }

    /// Takes an acknowledgment and its SACK blocks. `pure` if the segment carried nothing else.
    pub(super) fn on_ack(&mut self, ack: Seq, field: u16, sack: &SackRanges, pure: bool) -> Acked {
        // Our FIN may stand one beyond the window.
        let oldest = self.una - self.max_wnd - 1;
        if !oldest.at_or_before(ack) || self.nxt.precedes(ack) {
            return Acked::Outside;
        }
        self.note_sack(sack);
        if !self.una.precedes(ack) {
            let duplicate =
                ack == self.una && pure && self.in_flight() > 0 && !self.changes_window(field);
            if duplicate {
                self.duplicates = self.duplicates.saturating_add(1);
            }
            return Acked::Old;
        }
        let fin = self.fin.is_some_and(|fin| fin.precedes(ack));
        let bytes = self.una.distance(ack).cast_unsigned() - u32::from(fin);
        self.una = ack;
        self.duplicates = 0;
        if self.loss.as_mut().is_some_and(|loss| loss.is_over(ack)) {
            self.loss = None;
        }
        Acked::New { bytes, fin }
    }

    fn note_sack(&mut self, sack: &SackRanges) {
        for &(left, right) in sack.iter().flatten() {
            let sane =
                left.precedes(right) && self.una.precedes(left) && right.at_or_before(self.nxt);
            if !sane {
                continue;
            }
            let (mut left, mut right) = (left, right);
            let sacked = &mut self.loss.get_or_insert_default().sacked;
            for slot in sacked.iter_mut() {
                if let Some((l, r)) = *slot
                    && l.at_or_before(right)
                    && left.at_or_before(r)
                {
                    left = left.earlier(l);
                    right = right.later(r);
                    *slot = None;
                }
            }
            let free = sacked.iter().position(Option::is_none).unwrap_or(0);
            sacked[free] = Some((left, right));
        }
    }

    /// Whether duplicates or SACK evidence show a loss that is not yet being repaired.
    pub(super) fn loss_noticed(&self) -> bool {
        // RFC 6675 §2: DupThresh of three segments, counted in duplicates or in bytes.
        let sacked = self.loss.as_ref().map_or(0, |loss| loss.sacked_bytes());
        !self.in_recovery() && (self.duplicates >= 3 || sacked > 2 * self.mss)
    }

    /// Starts to repair: after duplicates, or after a time-out.
    pub(super) fn enter_recovery(&mut self, timed_out: bool) {
        let loss = self.loss.get_or_insert_default();
        if timed_out {
            // RFC 2018 §8: the guest may have taken back what it reported.
            loss.sacked = [None; SCOREBOARD];
        }
        loss.recovery = Some(Recovery { point: self.nxt, next: self.una, timed_out });
    }

    pub(super) fn in_recovery(&self) -> bool {
        self.loss.as_ref().is_some_and(|loss| loss.recovery.is_some())
    }

    /// The next lost range of at most `max` bytes, if one is known.
    pub(super) fn next_resend(&mut self, max: u32) -> Option<Resend> {
        let loss = self.loss.as_ref()?;
        let mut recovery = loss.recovery?;
        let start = loss.skip_sacked(recovery.next.later(self.una));
        let next_sacked = loss.next_sacked(start);
        // Without SACK evidence only the first range is known to be lost, unless the timer says so.
        let known_lost = recovery.timed_out || next_sacked.is_some() || start == self.una;
        if !known_lost || !start.precedes(recovery.point) {
            return None;
        }
        let limit = next_sacked.unwrap_or(recovery.point).earlier(recovery.point);
        let max = if recovery.timed_out || next_sacked.is_some() { max } else { self.mss };
        let resend = self.range(start, limit, max);
        recovery.next = start + resend.len + u32::from(resend.fin);
        if let Some(loss) = &mut self.loss {
            loss.recovery = Some(recovery);
        }
        Some(resend)
    }

    /// The range from `start` to `limit`, cut to `max` payload bytes, with our FIN told apart.
    fn range(&self, start: Seq, limit: Seq, max: u32) -> Resend {
        let total = start.distance(limit).max(0).cast_unsigned();
        let fin_inside = self.fin.is_some_and(|fin| fin.precedes(limit));
        let data = total - u32::from(fin_inside && total > 0);
        let len = data.min(max);
        Resend { seq: start, len, fin: fin_inside && len == data }
    }
}

impl Loss {
    /// Forgets what everything up to `ack` makes moot; whether nothing is left.
    fn is_over(&mut self, ack: Seq) -> bool {
        for slot in &mut self.sacked {
            slot.take_if(|(_, right)| right.at_or_before(ack));
        }
        self.recovery.take_if(|recovery| recovery.point.at_or_before(ack));
        self.recovery.is_none() && self.sacked.iter().all(Option::is_none)
    }

    fn sacked_bytes(&self) -> u32 {
        let ranges = self.sacked.iter().flatten();
        ranges.map(|(left, right)| left.distance(*right).cast_unsigned()).sum()
    }

    /// The first byte from `start` on that the guest has not reported.
    fn skip_sacked(&self, mut start: Seq) -> Seq {
        let holds = |start: Seq, (left, right): (Seq, Seq)| {
            left.at_or_before(start) && start.precedes(right)
        };
        while let Some(&(_, right)) =
            self.sacked.iter().flatten().find(|range| holds(start, **range))
        {
            start = right;
        }
        start
    }

    /// Where the next range behind `start` begins that the guest has reported.
    fn next_sacked(&self, start: Seq) -> Option<Seq> {
        let lefts = self.sacked.iter().flatten().map(|&(left, _)| left);
        lefts.filter(|left| start.precedes(*left)).reduce(Seq::earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SACK: SackRanges = [None; 3];

    /// 5,000 bytes in flight from just below the wrap.
    fn in_flight() -> Transmit {
        let mut transmit = Transmit::new(Seq(u32::MAX - 1000), 1000);
        transmit.synchronize(1000, 3);
        transmit.una += 1;
        transmit.open(Seq(7), transmit.una, 2000, true);
        transmit.nxt += 5000;
        transmit
    }

    #[test]
    fn capacity_follows_the_scaled_window_the_cap_and_the_silly_window_rule() {
        let mut transmit = in_flight();
        assert_eq!(transmit.capacity(u32::MAX), 11_000);
        assert_eq!(transmit.capacity(5_500), 0);
        assert_eq!(transmit.capacity(6_000), 1_000);
        assert!(!transmit.update_window(Seq(8), transmit.una, 700));
        assert_eq!((transmit.capacity(u32::MAX), transmit.usable()), (0, 600));
    }

    #[test]
    fn three_duplicates_resend_the_first_segment_only() {
        let mut transmit = in_flight();
        let una = transmit.una;
        for _ in 0..3 {
            assert!(!transmit.loss_noticed());
            assert_eq!(transmit.on_ack(una, 2000, &NO_SACK, true), Acked::Old);
        }
        assert!(transmit.loss_noticed());
        transmit.enter_recovery(false);
        assert_eq!(transmit.next_resend(60_000), Some(Resend { seq: una, len: 1000, fin: false }));
        assert_eq!(transmit.next_resend(60_000), None);
        // A partial ACK shows the next hole (RFC 6582 §3.2).
        let partial = una + 1000;
        assert_eq!(
            transmit.on_ack(partial, 2000, &NO_SACK, true),
            Acked::New { bytes: 1000, fin: false }
        );
        assert_eq!(
            transmit.next_resend(60_000),
            Some(Resend { seq: partial, len: 1000, fin: false })
        );
    }

    #[test]
    fn sacked_ranges_are_not_sent_again() {
        let mut transmit = in_flight();
        let una = transmit.una;
        let sack = [Some((una + 1000, una + 2000)), Some((una + 3000, una + 5000)), None];
        transmit.on_ack(una, 2000, &sack, true);
        assert!(transmit.loss_noticed());
        transmit.enter_recovery(false);
        let mut resent = vec![];
        while let Some(resend) = transmit.next_resend(60_000) {
            resent.push((una.distance(resend.seq), resend.len));
        }
        assert_eq!(resent, [(0, 1000), (2000, 1000)]);
        assert_ne!(transmit.on_ack(transmit.nxt, 2000, &NO_SACK, true), Acked::Old);
        assert!(transmit.loss.is_none(), "what is repaired takes no room");
    }

    #[test]
    fn a_time_out_resends_everything_and_the_fin() {
        let mut transmit = in_flight();
        transmit.fin = Some(transmit.nxt);
        transmit.nxt += 1;
        transmit.enter_recovery(true);
        let mut resent = vec![];
        while let Some(resend) = transmit.next_resend(3000) {
            resent.push((resend.len, resend.fin));
        }
        assert_eq!(resent, [(3000, false), (2000, true)]);
        assert_eq!(
            transmit.on_ack(transmit.nxt, 2000, &NO_SACK, true),
            Acked::New { bytes: 5000, fin: true }
        );
        assert!(!transmit.in_recovery());
    }

    #[test]
    fn nonsense_in_sack_blocks_and_acks_is_ignored() {
        let mut transmit = in_flight();
        let una = transmit.una;
        let sack =
            [Some((una + 9000, una + 9500)), Some((una - 5, una + 5)), Some((una + 9, una + 3))];
        assert_eq!(transmit.on_ack(transmit.nxt + 1, 2000, &sack, true), Acked::Outside);
        assert_eq!(transmit.on_ack(una, 2000, &sack, true), Acked::Old);
        assert!(transmit.loss.is_none());
    }
}
