//! One direction of a spliced connection: which step is next, as far as is known of both ends.
//!
//! ```text
//!   source ── Fill ─▶ store ── Drain ─▶ sink            at the end of the source: Shut
//! ```
//! Sans-IO: whoever moves the bytes tells what came of it. Readiness is edge-triggered, so an end
//! is taken for ready until it says that it is not. A source is read only while the store is empty
//! and the sink takes bytes: what a lane holds is what one `Fill` brought, and a receiver that
//! stands still stops its sender by way of the kernel's own buffers.

/// What a lane does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take bytes from the source.
    Fill,
    /// Give what is held to the sink.
    Drain,
    /// Tell the sink that no more is coming.
    Shut,
    /// Nothing, until an end is ready again.
    Rest,
}

/// The state of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane {
    readable: bool,
    writable: bool,
    held: usize,
    ended: bool,
    shut: bool,
}

impl Lane {
    /// The step that is next.
    pub(super) fn next(&self) -> Step {
        match self {
            Lane { shut: true, .. } | Lane { writable: false, .. } => Step::Rest,
            Lane { held: 1.., .. } => Step::Drain,
            Lane { ended: true, .. } => Step::Shut,
            Lane { readable: true, .. } => Step::Fill,
            _ => Step::Rest,
        }
    }

    /// The source may have bytes, or its end.
    pub(super) fn source_is_ready(&mut self) {
        self.readable = true;
    }

    /// The sink may take bytes.
    pub(super) fn sink_is_ready(&mut self) {
        self.writable = true;
    }

    /// The source gave `bytes`, none at its end.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.held += bytes;
        self.ended |= bytes == 0;
    }

    /// The source has nothing now.
    pub(super) fn source_is_empty(&mut self) {
        self.readable = false;
    }

    /// The sink took so many of the bytes that are held.
    pub(super) fn drained(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }

    /// The sink takes nothing now.
    pub(super) fn sink_is_full(&mut self) {
        self.writable = false;
    }

    /// The sink knows that no more is coming.
    pub(super) fn was_shut(&mut self) {
        self.shut = true;
    }

    /// Bytes that the source gave and the sink did not take yet.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether the source is at its end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether all is done.
    pub(super) fn is_over(&self) -> bool {
        self.shut
    }

    /// Whether the source may have said something that the sink does not know.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.shut && (self.readable || self.held > 0 || self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane whose ends are both ready.
    fn ready() -> Lane {
        Lane { readable: true, writable: true, ..Lane::default() }
    }

    #[test]
    fn nothing_is_read_before_the_sink_is_connected() {
        let mut lane = Lane::default();
        lane.source_is_ready();
        assert_eq!(lane.next(), Step::Rest);
        lane.sink_is_ready();
        assert_eq!(lane.next(), Step::Fill);
    }

    #[test]
    fn bytes_leave_before_others_come_and_before_the_end_is_told() {
        let mut lane = ready();
        lane.filled(10);
        assert_eq!((lane.next(), lane.held()), (Step::Drain, 10));
        lane.drained(4);
        lane.sink_is_full();
        assert_eq!((lane.next(), lane.held()), (Step::Rest, 6));
        lane.sink_is_ready();
        lane.drained(6);
        assert_eq!(lane.next(), Step::Fill);
        lane.filled(0);
        assert_eq!(lane.next(), Step::Shut);
        lane.was_shut();
        assert!(lane.is_over() && lane.next() == Step::Rest);
    }

    #[test]
    fn an_end_behind_bytes_that_are_stuck_waits_for_them() {
        let mut lane = ready();
        lane.filled(1);
        lane.filled(0);
        lane.sink_is_full();
        assert_eq!(lane.next(), Step::Rest);
        assert!(lane.is_unfinished());
        lane.sink_is_ready();
        assert_eq!(lane.next(), Step::Drain);
        lane.drained(1);
        assert_eq!(lane.next(), Step::Shut);
    }

    #[test]
    fn a_source_that_is_empty_is_left_alone_until_it_is_ready_again() {
        let mut lane = ready();
        lane.source_is_empty();
        assert_eq!(lane.next(), Step::Rest);
        assert!(!lane.is_unfinished());
        lane.source_is_ready();
        assert_eq!(lane.next(), Step::Fill);
    }

    proptest::proptest! {
        /// Whatever ends say in whatever order, no more is held than one `Fill` brings, and a lane
        /// that is over rests.
        #[test]
        fn one_fill_bounds_what_is_held(
            said in proptest::collection::vec((0u8..4, 1usize..9), 0..200),
        ) {
            let mut lane = Lane::default();
            for (what, bytes) in said {
                match what {
                    0 => lane.source_is_ready(),
                    1 => lane.sink_is_ready(),
                    _ => {}
                }
                match lane.next() {
                    Step::Fill if what == 2 => lane.source_is_empty(),
                    Step::Fill => lane.filled(if what == 3 { 0 } else { bytes }),
                    Step::Drain if what == 2 => lane.sink_is_full(),
                    Step::Drain => lane.drained(bytes.min(lane.held())),
                    Step::Shut => lane.was_shut(),
                    Step::Rest => {}
                }
                proptest::prop_assert!(lane.held() < 9);
                proptest::prop_assert!(!lane.is_over() || lane.next() == Step::Rest);
            }
        }
    }
}
