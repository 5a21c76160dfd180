//! How busy a worker is, what keeps it busy, and what to do about it. Pure: time is an argument.
//!
//! Each worker measures the share of time that it is at work, over windows of [`WINDOW`], and
//! remembers which flows its latest work was for. One that has had no time to spare gives flows to
//! one that has; if nobody has, another worker is called. Whole flows move, so one flow alone
//! stays where it is; if it is an upload, it may get a [`porter`](super::porter).

use std::collections::HashMap;
use std::time::Duration;

use super::WorkerId;
use crate::base::Instant;
use crate::engine::token::{Kind, Token};

/// Over how long work is measured. Shorter than anybody waits for throughput, longer than the
/// pauses of a single busy connection.
const WINDOW: Duration = Duration::from_millis(10);

/// A load, in thousandths of the time.
pub(in crate::engine) type Load = u16;

/// From this load on a worker has no time to spare.
const BUSY: Load = 850;

/// Two loads that differ by less are alike.
const LIKE: Load = 300;

/// Windows without time to spare before another worker is called: a burst is over by then.
const PATIENCE: u32 = 3;

/// Windows after giving or taking flows in which the effect is awaited.
const REST: u32 = 3;

/// Below this load, of all workers together, one of them is not needed.
pub(in crate::engine) const LIGHT: Load = 500;

/// How often the lead looks whether a worker is not needed any more.
pub(in crate::engine) const REVIEW: Duration = Duration::from_secs(1);

/// Bytes of the guest passed on in a [`WINDOW`] from which a porter pays: 4 Gbit/s. A worker that
/// has no time to spare below that has it from something else.
const WORTH_A_PORTER: u64 = 5 << 20;

/// Windows in a row with less than half of that, after which a flow does without its porter.
const IDLE_PORTER: u64 = 10;

/// Pieces of work that are remembered.
const REMEMBERED: usize = 64;

/// What a worker's time went into.
pub(in crate::engine) struct Meter {
    window: Instant,
    busy: Duration,
    /// Windows in a row without time to spare.
    streak: u32,
    /// Windows to wait before anything is done.
    rest: u32,
    /// Bytes of the guest passed on when the window began.
    passed_on: u64,
    /// What that came to for each [`WINDOW`] in the last window.
    rate: u64,
    /// Windows in a row in which a porter did not pay.
    idle: u64,
    recent: [Token; REMEMBERED],
    next: usize,
}

/// What a worker should do about its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Go on.
    Nothing,
    /// Give flows away.
    Give {
        /// To whom.
        to: WorkerId,
        /// How much of the latest work they are to make up, in thousandths.
        share: u16,
    },
    /// Call another worker.
    Grow,
    /// As the lead: do without the last worker.
    Shrink,
    /// As the lead, while nobody else is at work: get a porter for the upload that all work is for.
    Hire,
    /// As the lead: do without the porter.
    Dismiss,
}

/// Whether a porter can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Help {
    None,
    /// There could be one.
    Possible,
    /// There is one.
    Hired,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Meter {
        let nothing = Token::only(Kind::Housekeeping);
        let recent = [nothing; REMEMBERED];
        Meter {
            window: now,
            busy: Duration::ZERO,
            streak: 0,
            rest: 0,
            passed_on: 0,
            rate: 0,
            idle: 0,
            recent,
            next: 0,
        }
    }

    /// Work was done for a TCP flow.
    pub(in crate::engine) fn note(&mut self, token: Token) {
        self.recent[self.next] = token;
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// The worker was at work for so long until `now`, and has passed on so many bytes of the guest
    /// since the start. Gives the load, and the time at work since the last one was given, whenever
    /// a window is over.
    pub(super) fn worked(
        &mut self,
        now: Instant,
        time: Duration,
        passed_on: u64,
    ) -> Option<(Load, Duration)> {
        self.busy += time;
        let elapsed = now.since(self.window);
        if elapsed < WINDOW {
            return None;
        }
        let busy = std::mem::take(&mut self.busy);
        self.window = now;
        self.rest = self.rest.saturating_sub(1);
        // At most 1000.
        let load = (busy.as_nanos() * 1000 / elapsed.as_nanos()).min(1000) as Load;
        self.streak = if load >= BUSY { self.streak + 1 } else { 0 };
        let bytes = passed_on - std::mem::replace(&mut self.passed_on, passed_on);
        // A window that nobody was awake in counts for as many as it lasted.
        let windows = (elapsed.as_nanos() / WINDOW.as_nanos()).max(1) as u64;
        self.rate = bytes / windows;
        self.idle = if self.rate < WORTH_A_PORTER / 2 { self.idle + windows } else { 0 };
        Some((load, busy))
    }

    /// Flows, or a porter, have come or gone: what that changes is to be seen first.
    pub(in crate::engine) fn rest(&mut self) {
        (self.rest, self.streak, self.idle) = (REST, 0, 0);
    }

    /// What to do after a window. `others` are the loads of those at work, `may_grow` says whether
    /// there is another worker to call.
    pub(super) fn advice(
        &self,
        load: Load,
        others: impl Iterator<Item = (WorkerId, Load)>,
        may_grow: bool,
        help: Help,
    ) -> Advice {
        if help == Help::Hired && self.idle >= IDLE_PORTER {
            return Advice::Dismiss;
        }
        if self.streak == 0 || self.rest > 0 {
            return Advice::Nothing;
        }
        match others.min_by_key(|(_, load)| *load) {
            Some((to, their)) if their + LIKE <= load => {
                Advice::Give { to, share: (load - their) / 2 }
            }
            _ if self.streak < PATIENCE => Advice::Nothing,
            _ if help != Help::None && self.rate >= WORTH_A_PORTER && self.is_one_flow() => {
                if help == Help::Possible { Advice::Hire } else { Advice::Nothing }
            }
            _ if may_grow && self.flows().len() > 1 => Advice::Grow,
            _ => Advice::Nothing,
        }
    }

    /// The flow that most of the latest work was for, with how many pieces of it.
    pub(in crate::engine) fn heaviest(&self) -> Option<(Token, usize)> {
        self.flows().into_iter().max_by_key(|&(token, weight)| (weight, token.index))
    }

    /// Whether nearly all of the latest work was for one flow.
    fn is_one_flow(&self) -> bool {
        self.heaviest().is_some_and(|(_, weight)| weight * 8 >= REMEMBERED * 7)
    }

    /// The flows of the latest work with how many pieces of it they made up.
    fn flows(&self) -> HashMap<Token, usize> {
        let mut flows = HashMap::new();
        for token in self.recent.iter().filter(|token| token.kind == Kind::Tcp) {
            *flows.entry(*token).or_insert(0) += 1;
        }
        flows
    }

    /// Flows that make up at most `share` thousandths of the work, the heaviest that fit first.
    pub(in crate::engine) fn pick(&mut self, share: u16) -> Vec<Token> {
        let mut flows: Vec<(Token, usize)> = self.flows().into_iter().collect();
        flows.sort_by_key(|&(token, weight)| (std::cmp::Reverse(weight), token.index));
        // Whoever has one flow only would but change places with it.
        let all: usize = flows.iter().map(|(_, weight)| weight).sum();
        let mut room = (all * usize::from(share)).div_ceil(1000).min(all.saturating_sub(1));
        flows.retain(|&(_, weight)| {
            let fits = weight <= room;
            room -= if fits { weight } else { 0 };
            fits
        });
        self.recent = [Token::only(Kind::Housekeeping); REMEMBERED];
        flows.into_iter().map(|(token, _)| token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Duration = Duration::from_millis(10);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn flow(index: u32) -> Token {
        Token { kind: Kind::Tcp, generation: 0, index }
    }

    /// A meter after `windows` without a pause, for `flows` flows in turn.
    fn busy(windows: u64, flows: u32) -> Meter {
        let mut meter = Meter::new(Instant::ZERO);
        for window in 1..=windows {
            assert_eq!(meter.worked(at(10 * window), WORK, 0), Some((1000, WORK)));
        }
        for piece in 0..64 {
            meter.note(flow(piece % flows));
        }
        meter
    }

    #[test]
    fn load_is_work_in_the_time() {
        let mut meter = Meter::new(Instant::ZERO);
        assert_eq!(meter.worked(at(4), Duration::from_millis(2), 0), None);
        assert_eq!(
            meter.worked(at(20), Duration::from_millis(3), 0),
            Some((250, Duration::from_millis(5)))
        );
    }

    #[test]
    fn half_of_the_difference_is_given_to_the_least_busy() {
        let mut meter = busy(1, 4);
        let others = [(WorkerId(1), 700), (WorkerId(2), 0)];
        let advice = meter.advice(1000, others.into_iter(), true, Help::None);
        assert_eq!(advice, Advice::Give { to: WorkerId(2), share: 500 });
        assert_eq!(meter.pick(500).len(), 2);
    }

    #[test]
    fn if_all_are_busy_another_is_called_but_not_at_once() {
        let others = || [(WorkerId(1), 900)].into_iter();
        assert_eq!(busy(2, 4).advice(1000, others(), true, Help::None), Advice::Nothing);
        assert_eq!(busy(3, 4).advice(1000, others(), true, Help::None), Advice::Grow);
        assert_eq!(busy(3, 4).advice(1000, others(), false, Help::None), Advice::Nothing);
    }

    #[test]
    fn one_flow_is_no_reason_for_anything() {
        let mut meter = busy(9, 1);
        assert_eq!(meter.advice(1000, std::iter::empty(), true, Help::None), Advice::Nothing);
        assert_eq!(meter.pick(1000), []);
    }

    #[test]
    fn the_heaviest_flow_that_fits_goes_first() {
        let mut meter = busy(1, 1);
        (0..20).for_each(|_| meter.note(flow(7)));
        (0..4).for_each(|_| meter.note(flow(8)));
        assert_eq!(meter.pick(400), [flow(7), flow(8)]);
    }

    #[test]
    fn after_a_change_its_effect_is_awaited() {
        let mut meter = busy(5, 4);
        meter.rest();
        for window in 6..=7 {
            meter.worked(at(10 * window), WORK, 0);
            assert_eq!(meter.advice(1000, std::iter::empty(), true, Help::None), Advice::Nothing);
        }
    }

    /// A meter after `windows` without a pause for one upload of `rate` bytes a window.
    fn uploading(windows: u64, rate: u64) -> Meter {
        let mut meter = Meter::new(Instant::ZERO);
        for window in 1..=windows {
            meter.worked(at(10 * window), WORK, rate * window);
        }
        (0..64).for_each(|_| meter.note(flow(1)));
        meter
    }

    fn alone(meter: &Meter, help: Help) -> Advice {
        meter.advice(1000, std::iter::empty(), true, help)
    }

    #[test]
    fn one_upload_that_takes_all_the_time_gets_a_porter_but_not_at_once() {
        assert_eq!(alone(&uploading(2, WORTH_A_PORTER), Help::Possible), Advice::Nothing);
        assert_eq!(alone(&uploading(3, WORTH_A_PORTER), Help::Possible), Advice::Hire);
        assert_eq!(alone(&uploading(3, WORTH_A_PORTER), Help::None), Advice::Nothing);
        assert_eq!(alone(&uploading(3, WORTH_A_PORTER), Help::Hired), Advice::Nothing);
        // Its time goes into something else than bytes.
        assert_eq!(alone(&uploading(3, WORTH_A_PORTER - 1), Help::Possible), Advice::Nothing);
    }

    #[test]
    fn little_beside_a_large_upload_is_no_reason_to_call_another() {
        let mut meter = uploading(3, WORTH_A_PORTER);
        (0..8).for_each(|_| meter.note(flow(2)));
        assert_eq!(alone(&meter, Help::Possible), Advice::Hire);
        meter.note(flow(2));
        assert_eq!(alone(&meter, Help::Possible), Advice::Grow);
        assert_eq!(alone(&meter, Help::Hired), Advice::Grow);
    }

    #[test]
    fn a_porter_that_does_not_pay_is_dismissed() {
        let mut meter = uploading(3, WORTH_A_PORTER);
        let sent = 3 * WORTH_A_PORTER;
        // A window that nobody was awake in is as long as it was.
        meter.worked(at(120), Duration::ZERO, sent + WORTH_A_PORTER);
        assert_eq!(alone(&meter, Help::Hired), Advice::Nothing);
        meter.worked(at(130), Duration::ZERO, sent + WORTH_A_PORTER);
        assert_eq!(alone(&meter, Help::Hired), Advice::Dismiss);
        meter.worked(at(140), Duration::ZERO, sent + 2 * WORTH_A_PORTER);
        assert_eq!(alone(&meter, Help::Hired), Advice::Nothing);
    }
}
