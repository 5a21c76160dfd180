//! What arrived beyond a gap: ranges above RCV.NXT whose bytes the edge holds.
//!
//! ```text
//!        nxt        [held]      [held]    edge
//!   ──────┼── gap ────██──────────██────────┼──
//! ```
//! The TAP keeps order, but a full ring, or a router inside the guest, drops. A receiver that
//! forgot what follows would have the guest send a whole window again, which Linux does in
//! time-outs that double: it fills each recovery with new data, and loses its place anew (one lost
//! frame was measured to cost a minute). So the ranges are kept and reported (RFC 2018), and the
//! guest repairs exactly what is missing, within a round trip.
//!
//! Hostile input: everything. The ranges lie inside the window, so the memory for them is promised
//! already; there are at most [`RANGES`], disjoint and not adjacent. What does not fit is left to
//! be sent again.

use crate::base::Seq;
use crate::stack::wire::SackRanges;

/// Gaps that are repaired side by side. An acknowledgment reports three of the ranges behind them.
const RANGES: usize = 6;

/// What is held. It takes room from the first gap to the end of the last: few connections ever
/// have one.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Option<Box<Beyond>>);

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|beyond| beyond.ranges[0].is_none())
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// What the next acknowledgment reports.
    pub(super) fn blocks(&self) -> SackRanges {
        let Some(beyond) = &self.0 else { return [None; 3] };
        let [first, second, third, ..] = beyond.ranges;
        [first, second, third]
    }

    /// Adds what is new of `start..end`, if there is room for it and it is one piece: the part
    /// that the edge is to hold. Either way the range that it belongs to is now the latest.
    pub(super) fn insert(&mut self, start: Seq, end: Seq) -> Option<(Seq, Seq)> {
        match &mut self.0 {
            None if !start.precedes(end) => None,
            beyond => beyond.get_or_insert_default().insert(start, end),
        }
    }

    /// A FIN stands at `seq`, beyond a gap.
    pub(super) fn note_fin(&mut self, seq: Seq) {
        self.0.get_or_insert_default().fin = Some(seq);
    }

    /// Whether a FIN that came before is next.
    pub(super) fn fin_is_at(&self, nxt: Seq) -> bool {
        self.0.as_ref().is_some_and(|beyond| beyond.fin == Some(nxt))
    }

    /// Everything before `nxt` has arrived: how many held bytes follow at once. They, and what
    /// lies before them, are no longer ours.
    pub(super) fn advance(&mut self, nxt: Seq) -> u32 {
        let Some(beyond) = &mut self.0 else { return 0 };
        let follow = beyond.advance(nxt);
        if beyond.ranges[0].is_none() && beyond.fin.is_none() {
            self.0 = None;
        }
        follow
    }
}

/// The ranges, the latest first (RFC 2018 §4).
#[derive(Clone, Debug, Default)]
struct Beyond {
    ranges: [Option<(Seq, Seq)>; RANGES],
    /// Where a FIN stands beyond a gap.
    fin: Option<Seq>,
}

impl Beyond {
    /// Adds what is new of `start..end`, if there is room for it and it is one piece: the part
    /// that the edge is to hold. Either way the range that it belongs to is now the latest.
    pub(super) fn insert(&mut self, start: Seq, end: Seq) -> Option<(Seq, Seq)> {
        let touched = self.ranges.iter().position(|range| {
            range.is_some_and(|(left, right)| left.at_or_before(start) && start.at_or_before(right))
        });
        if let Some(index) = touched {
            self.ranges[..=index].rotate_right(1);
        }
        let from = match (touched, self.ranges[0]) {
            (Some(_), Some((_, right))) => start.later(right),
            _ => start,
        };
        let behind = self.ranges.iter().flatten().map(|range| range.0);
        let to = behind.filter(|left| from.at_or_before(*left)).fold(end, Seq::earlier);
        if !from.precedes(to) {
            return None;
        }
        let next = self.ranges.iter().position(|range| range.is_some_and(|(left, _)| left == to));
        let mut whole = (from, to);
        if let Some(index) = next
            && let Some((_, right)) = self.remove(index)
        {
            whole.1 = right;
        }
        if touched.is_some()
            && let Some((left, _)) = self.remove(0)
        {
            whole.0 = left;
        }
        if self.ranges[RANGES - 1].is_some() {
            return None;
        }
        self.ranges.rotate_right(1);
        self.ranges[0] = Some(whole);
        Some((from, to))
    }

    fn advance(&mut self, nxt: Seq) -> u32 {
        let mut follow = 0;
        let mut index = 0;
        while let Some(&Some((left, right))) = self.ranges.get(index) {
            if nxt.precedes(left) {
                index += 1;
                continue;
            }
            follow = follow.max(nxt.distance(right));
            self.remove(index);
        }
        follow.cast_unsigned()
    }

    fn remove(&mut self, index: usize) -> Option<(Seq, Seq)> {
        self.ranges[index..].rotate_left(1);
        self.ranges[RANGES - 1].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just below the wrap.
    const BASE: Seq = Seq(u32::MAX - 100);

    fn insert(held: &mut Held, start: u32, end: u32) -> Option<(u32, u32)> {
        let (from, to) = held.insert(BASE + start, BASE + end)?;
        Some((offset(from), offset(to)))
    }

    fn offset(seq: Seq) -> u32 {
        BASE.distance(seq).cast_unsigned()
    }

    fn ranges(held: &Held) -> Vec<(u32, u32)> {
        let ranges = held.0.iter().flat_map(|beyond| &beyond.ranges);
        ranges.flatten().map(|&(l, r)| (offset(l), offset(r))).collect()
    }

    #[test]
    fn ranges_merge_and_the_latest_comes_first() {
        let mut held = Held::default();
        assert_eq!(insert(&mut held, 100, 200), Some((100, 200)));
        assert_eq!(insert(&mut held, 400, 500), Some((400, 500)));
        assert_eq!(ranges(&held), [(400, 500), (100, 200)]);
        // Behind one, before the other, and between both.
        assert_eq!(insert(&mut held, 200, 250), Some((200, 250)));
        assert_eq!(ranges(&held), [(100, 250), (400, 500)]);
        assert_eq!(insert(&mut held, 350, 400), Some((350, 400)));
        assert_eq!(ranges(&held), [(350, 500), (100, 250)]);
        assert_eq!(insert(&mut held, 250, 350), Some((250, 350)));
        assert_eq!(ranges(&held), [(100, 500)]);
    }

    #[test]
    fn only_what_is_new_is_held_and_a_repetition_is_still_the_latest() {
        let mut held = Held::default();
        insert(&mut held, 100, 200);
        insert(&mut held, 300, 400);
        assert_eq!(insert(&mut held, 120, 180), None);
        assert_eq!(ranges(&held), [(100, 200), (300, 400)]);
        // Overlaps on both sides.
        assert_eq!(insert(&mut held, 150, 350), Some((200, 300)));
        assert_eq!(ranges(&held), [(100, 400)]);
        // Around what is there: the part before it.
        assert_eq!(insert(&mut held, 50, 450), Some((50, 100)));
        assert_eq!(ranges(&held), [(50, 400)]);
    }

    #[test]
    fn when_there_is_no_room_only_what_continues_a_range_is_held() {
        let mut held = Held::default();
        for at in 0..RANGES as u32 {
            assert!(insert(&mut held, 100 * at, 100 * at + 10).is_some());
        }
        assert_eq!(insert(&mut held, 950, 960), None);
        assert_eq!(insert(&mut held, 510, 520), Some((510, 520)));
        assert_eq!(insert(&mut held, 90, 100), Some((90, 100)));
        assert_eq!(ranges(&held).len(), RANGES);
        assert_eq!(ranges(&held)[0], (90, 110));
    }

    #[test]
    fn what_follows_the_next_byte_is_given_out_and_what_lies_before_it_forgotten() {
        let mut held = Held::default();
        insert(&mut held, 100, 200);
        insert(&mut held, 300, 400);
        insert(&mut held, 500, 600);
        assert_eq!(held.advance(BASE + 99), 0);
        assert_eq!(held.advance(BASE + 100), 100);
        assert_eq!(held.advance(BASE + 450), 0);
        assert_eq!(ranges(&held), [(500, 600)]);
        assert_eq!(held.advance(BASE + 510), 90);
        assert!(held.is_empty() && held.0.is_none(), "it takes no room");
    }

    #[test]
    fn a_fin_beyond_a_gap_is_kept_until_it_is_next() {
        let mut held = Held::default();
        insert(&mut held, 100, 200);
        held.note_fin(BASE + 200);
        assert_eq!(held.advance(BASE + 100), 100);
        assert!(held.is_empty() && held.fin_is_at(BASE + 200));
        held.clear();
        assert!(!held.fin_is_at(BASE + 200) && held.0.is_none());
    }

    proptest::proptest! {
        #[test]
        fn ranges_stay_disjoint_and_nothing_is_held_twice(
            pieces in proptest::collection::vec((0u32..300, 1u32..60), 1..60)
        ) {
            let mut held = Held::default();
            let mut bytes = [false; 400];
            for (start, len) in pieces {
                if let Some((from, to)) = insert(&mut held, start, start + len) {
                    proptest::prop_assert!(start <= from && from < to && to <= start + len);
                    for byte in &mut bytes[from as usize..to as usize] {
                        proptest::prop_assert!(!*byte);
                        *byte = true;
                    }
                }
                let mut seen = [false; 400];
                for (left, right) in ranges(&held) {
                    for byte in &mut seen[left as usize..right as usize] {
                        proptest::prop_assert!(!*byte);
                        *byte = true;
                    }
                    proptest::prop_assert!(!seen[right as usize] && (left == 0 || !seen[left as usize - 1]));
                }
                proptest::prop_assert_eq!(seen, bytes);
            }
        }
    }
}
