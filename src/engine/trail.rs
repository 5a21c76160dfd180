//! Who went the short way lately, and has to go it again.
//!
//! The guest's end of a connection that it was the first to close waits in TIME-WAIT, with the mark
//! of the short way: what it answers goes to `lo`. A client that comes back from the same port
//! meanwhile by the link is not heard if its sequence number is the older one, for the answer never
//! reaches us. So the ends of such connections are remembered until that is over, and a client
//! between the same ends goes the short way again, or by the link under another port.
//!
//! None is forgotten early. While as many are known as may be, clients who are not known go by the
//! link; which is right for those that come in such numbers, since the short way costs more for a
//! connection.
//!
//! All workers of a guest share one trail. It is asked for clients who may go the short way, and
//! told of the end of those that went it: a lock each time, and no walk.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tcp_flow::TcpKey;
use crate::base::Instant;

/// The most that are known at a time: with [`LINGER`], 68 connections a second are always sent the
/// short way.
const CAPACITY: usize = 4096;

/// How long the guest's end may linger: Linux's TIME-WAIT (TCP_TIMEWAIT_LEN), and a second for the
/// way to it.
const LINGER: Duration = Duration::from_secs(61);

/// Old ones that are looked at for each that comes or goes, so that more are forgotten than come.
const SWEEP: usize = 4;

/// Whether a client may go the short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It may.
    Taken,
    /// Another connection between the same ends is on it.
    Busy,
    /// Too many went it lately.
    Full,
}

/// What is known of a connection's ends.
#[derive(Default)]
struct Trace {
    /// One is on its way, or open.
    open: bool,
    /// Until when the last may linger.
    until: Option<Instant>,
    /// It has its place in the order of ends.
    queued: bool,
}

#[derive(Default)]
struct Traces {
    by_ends: HashMap<TcpKey, Trace, ahash::RandomState>,
    /// When to look at those that have ended, each of them once.
    order: VecDeque<(Instant, TcpKey)>,
}

/// The trail; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Trail(Arc<Mutex<Traces>>);

impl Trail {
    fn traces(&self, now: Instant) -> MutexGuard<'_, Traces> {
        // It is whole between calls, whoever panicked.
        let mut traces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        traces.sweep(now);
        traces
    }

    /// Whether a connection between these ends may linger in the guest.
    pub(super) fn is_known(&self, now: Instant, ends: &TcpKey) -> bool {
        let traces = self.traces(now);
        let trace = traces.by_ends.get(ends);
        trace.is_some_and(|trace| trace.open || trace.until.is_some_and(|until| until > now))
    }

    /// A client wants to go the short way. If it may, [`Trail::leave`] or [`Trail::turn_back`] has
    /// to follow.
    pub(super) fn enter(&self, now: Instant, ends: TcpKey) -> Step {
        let mut traces = self.traces(now);
        let full = traces.by_ends.len() >= CAPACITY;
        match traces.by_ends.get_mut(&ends) {
            Some(trace) if trace.open => Step::Busy,
            Some(trace) => {
                trace.open = true;
                Step::Taken
            }
            None if full => Step::Full,
            None => {
                traces.by_ends.insert(ends, Trace { open: true, ..Trace::default() });
                Step::Taken
            }
        }
    }

    /// A connection on the short way is over; any other is none of ours.
    pub(super) fn leave(&self, now: Instant, ends: TcpKey) {
        let mut traces = self.traces(now);
        let Traces { by_ends, order } = &mut *traces;
        let Some(trace) = by_ends.get_mut(&ends).filter(|trace| trace.open) else { return };
        trace.open = false;
        trace.until = Some(now + LINGER);
        if !trace.queued {
            trace.queued = true;
            order.push_back((now + LINGER, ends));
        }
    }

    /// The client has left nothing in the guest.
    pub(super) fn turn_back(&self, now: Instant, ends: &TcpKey) {
        let mut traces = self.traces(now);
        let Some(trace) = traces.by_ends.get_mut(ends) else { return };
        trace.open = false;
        if trace.until.is_none() {
            traces.by_ends.remove(ends);
        }
    }

    /// How many are known.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().by_ends.len()
    }
}

impl Traces {
    /// Forgets what is over, a few at a time.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEEP {
            let Some((_, ends)) = self.order.front().filter(|(at, _)| *at <= now) else { break };
            let ends = *ends;
            self.order.pop_front();
            let Some(trace) = self.by_ends.get_mut(&ends) else { continue };
            match trace.until.filter(|until| *until > now) {
                // It was there again since: it is looked at again when that is over, at the latest.
                Some(_) => self.order.push_back((now + LINGER, ends)),
                None if trace.open => *trace = Trace { open: true, ..Trace::default() },
                None => {
                    self.by_ends.remove(&ends);
                }
            }
        }
        if self.by_ends.is_empty() {
            // A time of many clients is over.
            *self = Traces::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: u32) -> TcpKey {
        let [a, b, c, d] = client.to_be_bytes();
        let port = u16::from_be_bytes([c, d]);
        TcpKey::new(([10, 0, 2, 100], 80).into(), ([192, 168, a, b], port).into())
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn who_went_the_short_way_is_known_until_the_guest_has_forgotten() {
        let trail = Trail::default();
        assert!(!trail.is_known(at(0), &ends(1)));
        assert_eq!(trail.enter(at(0), ends(1)), Step::Taken);
        assert!(trail.is_known(at(1000), &ends(1)), "however long it is open");
        assert_eq!(trail.enter(at(1000), ends(1)), Step::Busy);
        trail.leave(at(1000), ends(1));
        assert!(trail.is_known(at(1060), &ends(1)));
        assert!(!trail.is_known(at(1060), &ends(2)));
        assert!(!trail.is_known(at(1061), &ends(1)));
        assert_eq!(trail.len(), 0);
    }

    #[test]
    fn coming_again_prolongs_it() {
        let trail = Trail::default();
        for second in [0, 50, 100] {
            assert_eq!(trail.enter(at(second), ends(1)), Step::Taken);
            trail.leave(at(second), ends(1));
        }
        assert!(trail.is_known(at(160), &ends(1)));
        assert!(!trail.is_known(at(161), &ends(1)));
        // One that is open when its last end is looked at.
        trail.enter(at(165), ends(1));
        trail.leave(at(165), ends(1));
        trail.enter(at(170), ends(1));
        assert!(trail.is_known(at(500), &ends(1)));
        trail.leave(at(500), ends(1));
        assert!(trail.is_known(at(560), &ends(1)));
        assert!(!trail.is_known(at(561), &ends(1)));
    }

    #[test]
    fn who_turned_back_is_known_only_from_before() {
        let trail = Trail::default();
        trail.enter(at(0), ends(1));
        trail.turn_back(at(0), &ends(1));
        assert_eq!(trail.len(), 0);
        trail.enter(at(0), ends(1));
        trail.leave(at(0), ends(1));
        trail.enter(at(1), ends(1));
        trail.turn_back(at(1), &ends(1));
        assert!(trail.is_known(at(60), &ends(1)));
        assert!(!trail.is_known(at(61), &ends(1)));
    }

    #[test]
    fn strangers_and_second_ends_leave_no_trace() {
        let trail = Trail::default();
        trail.leave(at(0), ends(1));
        trail.turn_back(at(0), &ends(1));
        assert_eq!(trail.len(), 0);
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_forgets_none_for_others() {
        let trail = Trail::default();
        for client in 0..10_000 {
            let step = trail.enter(at(0), ends(client));
            assert_eq!(step == Step::Taken, client < CAPACITY as u32);
            trail.leave(at(0), ends(client));
        }
        assert_eq!(trail.len(), CAPACITY);
        assert!(trail.is_known(at(60), &ends(0)));
        // Who is known comes and goes as often as it likes.
        for _ in 0..10_000 {
            assert_eq!(trail.enter(at(60), ends(5)), Step::Taken);
            trail.leave(at(60), ends(5));
        }
        let held = trail.0.lock().unwrap().order.len();
        assert_eq!(held, CAPACITY);
        // There is room again as they are forgotten.
        assert_eq!(trail.enter(at(61), ends(20_000)), Step::Taken);
        for _ in 0..CAPACITY {
            trail.is_known(at(200), &ends(0));
        }
        assert_eq!(trail.len(), 1, "the one that is open");
    }
}
