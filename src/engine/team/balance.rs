//! How busy a worker is, what keeps it busy, and what to do about it. Pure: time is an argument.
//!
//! Each worker measures the share of time that it is at work, over windows of [`WINDOW`], and
//! remembers which flows its latest work was for. One that has had no time to spare gives flows to
//! one that has; if nobody has, another worker is called. Whole flows move, so one flow alone
//! stays where it is; if it is an upload, it may get a [`porter`](super::porter).
//!
//! Only TCP flows can be given away. Datagrams, services and published ports are the lead's, and a
//! datagram that comes by another worker's queue makes work for both. So a worker counts the pieces
//! of its work, and nobody is called for, or kept for, those that are not for its own TCP flows. A
//! piece is what goes through the worker at once: a frame, a batch of datagrams, a turn of a flow.
//! The time that it takes is not measured.

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

/// Load by flows that can be given away from which another worker is called. Above [`LIGHT`]: who
/// is called is not sent away soon after.
const SHAREABLE: Load = 600;

/// Below this load by flows of its own the last worker is not needed.
const LITTLE: Load = 50;

/// Below this load, of all workers together, one of them is not needed.
const LIGHT: Load = 500;

/// How often the lead looks whether a worker is not needed any more.
pub(in crate::engine) const REVIEW: Duration = Duration::from_secs(1);

/// Below this load a worker has nothing to do that a flow of another would keep it from.
pub(super) const IDLE: Load = 100;

/// Bytes of the guest passed on in a [`WINDOW`] from which a porter pays: 4 Gbit/s. A worker that
/// has no time to spare below that has it from something else.
const WORTH_A_PORTER: u64 = 5 << 20;

/// Windows in a row with less than half of that, after which a flow does without its porter.
const IDLE_PORTER: u64 = 10;

/// From this share of the work on, in thousandths, a flow is nearly all of it: 7/8.
const ONE_FLOW: u64 = 875;

/// Pieces of work whose flows are remembered.
const REMEMBERED: usize = 64;

/// Pieces of work: for flows that can be given away, and all others.
#[derive(Clone, Copy, Default)]
struct Pieces {
    flows: u64,
    others: u64,
}

impl Pieces {
    fn all(self) -> u64 {
        self.flows + self.others
    }

    /// The part of `amount` that was for flows.
    fn for_flows(self, amount: u64) -> u64 {
        // Neither exceeds what fits a window.
        (u128::from(amount) * u128::from(self.flows) / u128::from(self.all().max(1))) as u64
    }
}

/// A window of a worker's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worked {
    pub(super) load: Load,
    /// Nanoseconds at work.
    pub(super) busy: u64,
    /// Those of them for flows that can be given away.
    pub(super) for_flows: u64,
}

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
    /// Of the window at hand.
    pieces: Pieces,
    /// Of the one before it.
    before: Pieces,
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
    /// Get a porter for the upload that all work is for.
    Hire,
    /// Do without the porter.
    Dismiss,
    /// As a porter: have the other do without, for there is other work.
    Resign,
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

/// Time at work since the start, in nanoseconds, as the lead sees it from time to time.
#[derive(Clone, Copy)]
pub(in crate::engine) struct Review {
    pub(super) at: Instant,
    /// Of all workers.
    pub(super) total: u64,
    /// Of the last of those at work.
    pub(super) last: u64,
    /// That one's for flows of its own.
    pub(super) for_flows: u64,
}

impl Review {
    /// Whether the last worker was too many since `before`: there was little to do for all, or
    /// little for that one but to hand over what is not its own.
    pub(in crate::engine) fn finds_one_too_many(&self, before: &Review) -> bool {
        let elapsed = u128::from(self.at.since(before.at).as_nanos().max(1) as u64);
        let below = |time: u64, load: Load| u128::from(time) * 1000 < elapsed * u128::from(load);
        let for_flows = self.for_flows - before.for_flows;
        // Read one after the other, while the worker goes on counting.
        let for_others = (self.last - before.last).saturating_sub(for_flows);
        below(self.total - before.total, LIGHT)
            || below(for_flows, LITTLE)
            || for_flows < for_others
    }
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
            pieces: Pieces::default(),
            before: Pieces::default(),
            recent,
            next: 0,
        }
    }

    /// A piece of work was done for a TCP flow.
    pub(in crate::engine) fn note(&mut self, token: Token) {
        self.pieces.flows += 1;
        self.recent[self.next] = token;
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// A piece of work was done that nobody else could have done.
    pub(in crate::engine) fn note_other(&mut self) {
        self.pieces.others += 1;
    }

    /// The worker was at work for so long until `now`, and has passed on so many bytes of the guest
    /// since the start. Gives what the time since the last window went into, whenever one is over.
    pub(super) fn worked(
        &mut self,
        now: Instant,
        time: Duration,
        passed_on: u64,
    ) -> Option<Worked> {
        self.busy += time;
        let elapsed = now.since(self.window);
        if elapsed < WINDOW {
            return None;
        }
        let busy = std::mem::take(&mut self.busy);
        self.before = std::mem::take(&mut self.pieces);
        self.window = now;
        self.rest = self.rest.saturating_sub(1);
        // At most 1000.
        let load = (busy.as_nanos() * 1000 / elapsed.as_nanos()).min(1000) as Load;
        let bytes = passed_on - std::mem::replace(&mut self.passed_on, passed_on);
        // A window that nobody was awake in counts for as many as it lasted.
        let windows = (elapsed.as_nanos() / WINDOW.as_nanos()).max(1) as u64;
        self.rate = bytes / windows;
        self.streak = if load >= BUSY { self.streak + 1 } else { 0 };
        self.idle = if self.rate < WORTH_A_PORTER / 2 { self.idle + windows } else { 0 };
        // 500 years.
        let busy = busy.as_nanos() as u64;
        Some(Worked { load, busy, for_flows: self.before.for_flows(busy) })
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
        let helps = help != Help::None && self.rate >= WORTH_A_PORTER && self.is_one_flow();
        match others.min_by_key(|(_, load)| *load) {
            // To give away the little that there is beside one flow would not help that one.
            Some((to, their)) if !helps && their + LIKE <= load && self.latest().flows > 0 => {
                Advice::Give { to, share: (load - their) / 2 }
            }
            _ if self.streak < PATIENCE => Advice::Nothing,
            _ if helps => match help == Help::Possible {
                true => Advice::Hire,
                false => Advice::Nothing,
            },
            _ if may_grow && self.is_shareable(load) => Advice::Grow,
            _ => Advice::Nothing,
        }
    }

    /// Whether a porter has no time to spare, and that not for others alone.
    pub(super) fn has_own_work(&self, load: Load) -> bool {
        load >= BUSY && self.before.flows >= REMEMBERED as u64
    }

    /// The flow that most of the latest work was for.
    pub(in crate::engine) fn heaviest(&self) -> Option<Token> {
        self.flows().first().map(|(token, _)| *token)
    }

    /// Pieces of the latest work: none is older than the window before the one at hand.
    fn latest(&self) -> Pieces {
        Pieces {
            flows: self.before.flows + self.pieces.flows,
            others: self.before.others + self.pieces.others,
        }
    }

    /// Whether nearly all of the latest work was for one flow.
    fn is_one_flow(&self) -> bool {
        self.flows().first().is_some_and(|(_, share)| *share >= ONE_FLOW)
    }

    /// Whether so much of the load is for flows, and not for one alone, that another worker would
    /// help.
    fn is_shareable(&self, load: Load) -> bool {
        let beside: u64 = self.flows().iter().skip(1).map(|(_, share)| share).sum();
        let for_flows = self.latest().for_flows(load.into());
        for_flows >= SHAREABLE.into() && beside > 1000 - ONE_FLOW
    }

    /// The flows of the latest work, the heaviest first, with the share of all work that each made
    /// up, in thousandths.
    fn flows(&self) -> Vec<(Token, u64)> {
        let latest = self.latest();
        let known = usize::try_from(latest.flows).map_or(REMEMBERED, |flows| flows.min(REMEMBERED));
        let mut weights = HashMap::new();
        for back in 1..=known {
            let token = self.recent[(self.next + REMEMBERED - back) % REMEMBERED];
            *weights.entry(token).or_insert(0) += 1;
        }
        // There is a flow, so `known` is not 0.
        let share = |weight: u64| latest.for_flows(1000 * weight) / known as u64;
        let mut flows: Vec<(Token, u64)> =
            weights.into_iter().map(|(token, weight)| (token, share(weight))).collect();
        flows.sort_by_key(|&(token, share)| (std::cmp::Reverse(share), token.index));
        flows
    }

    /// Flows that make up at most `share` thousandths of the work, the heaviest that fit first.
    pub(in crate::engine) fn pick(&mut self, share: u16) -> Vec<Token> {
        let mut flows = self.flows();
        // Whoever has one flow only would but change places with it.
        let all: u64 = flows.iter().map(|(_, share)| share).sum();
        let mut room = u64::from(share).min(all.saturating_sub(1));
        flows.retain(|&(_, share)| {
            let fits = share <= room;
            room -= if fits { share } else { 0 };
            fits
        });
        (self.before, self.pieces) = (Pieces::default(), Pieces::default());
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
            assert_eq!(
                meter.worked(at(10 * window), WORK, 0).map(|worked| worked.load),
                Some(1000)
            );
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
        meter.note(flow(1));
        (0..3).for_each(|_| meter.note_other());
        assert_eq!(
            meter.worked(at(20), Duration::from_millis(3), 0),
            Some(Worked { load: 250, busy: 5_000_000, for_flows: 1_250_000 })
        );
        // What it went into is not known.
        let worked = meter.worked(at(40), Duration::from_millis(5), 0);
        assert_eq!(worked, Some(Worked { load: 250, busy: 5_000_000, for_flows: 0 }));
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

    #[test]
    fn work_that_nobody_could_take_over_calls_nobody() {
        let mut meter = busy(9, 4);
        (0..27).for_each(|_| meter.note_other());
        assert_eq!(alone(&meter, Help::None), Advice::Grow);
        (0..20).for_each(|_| meter.note_other());
        assert_eq!(alone(&meter, Help::None), Advice::Nothing);
        // What there is of flows may go to a worker that is there.
        let others = [(WorkerId(1), 500)].into_iter();
        let advice = meter.advice(1000, others, true, Help::None);
        assert_eq!(advice, Advice::Give { to: WorkerId(1), share: 250 });
        assert_eq!(meter.pick(250).len(), 1);
        let mut upload = uploading(5, WORTH_A_PORTER);
        (0..9).for_each(|_| upload.note_other());
        assert_eq!(alone(&upload, Help::Possible), Advice::Hire);
        upload.note_other();
        assert_eq!(alone(&upload, Help::Possible), Advice::Nothing);
    }

    #[test]
    fn flows_of_yesterday_are_forgotten() {
        let mut meter = busy(9, 4);
        for window in 10..=11 {
            meter.note_other();
            assert_eq!(alone(&meter, Help::None), Advice::Grow, "at the end of window {window}");
            meter.worked(at(10 * window), WORK, 0);
        }
        let others = [(WorkerId(1), 0)].into_iter();
        assert_eq!(meter.advice(1000, others, true, Help::None), Advice::Nothing);
        assert_eq!((alone(&meter, Help::None), meter.heaviest()), (Advice::Nothing, None));
        assert_eq!(meter.pick(1000), []);
    }

    /// A second in which two workers were at work for so many milliseconds, the last for some of
    /// them for flows of its own.
    fn review(lead: u64, last: u64, for_flows: u64) -> bool {
        let at = |millis: u64| Instant::ZERO + Duration::from_millis(millis);
        let before =
            Review { at: at(500), total: 7_000_000, last: 5_000_000, for_flows: 3_000_000 };
        let after = Review {
            at: at(1500),
            total: before.total + (lead + last) * 1_000_000,
            last: before.last + last * 1_000_000,
            for_flows: before.for_flows + for_flows * 1_000_000,
        };
        after.finds_one_too_many(&before)
    }

    #[test]
    fn the_last_worker_is_needed_for_what_it_does_for_flows() {
        assert!(!review(900, 900, 900));
        assert!(!review(200, 300, 300));
        assert!(review(200, 299, 299), "one could do it all");
        assert!(!review(900, 900, 450));
        assert!(review(900, 900, 449), "more of it is handed over");
        assert!(!review(900, 50, 50));
        assert!(review(900, 49, 49), "it has next to nothing");
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
    fn little_beside_a_large_upload_is_not_given_away_in_place_of_a_porter() {
        let idle = || [(WorkerId(1), 0)].into_iter();
        let meter = uploading(2, WORTH_A_PORTER);
        assert_eq!(meter.advice(1000, idle(), true, Help::Possible), Advice::Nothing);
        let mut meter = uploading(3, WORTH_A_PORTER);
        assert_eq!(meter.advice(1000, idle(), true, Help::Possible), Advice::Hire);
        assert_eq!(meter.advice(1000, idle(), true, Help::Hired), Advice::Nothing);
        (0..9).for_each(|_| meter.note(flow(2)));
        let give = Advice::Give { to: WorkerId(1), share: 500 };
        assert_eq!(meter.advice(1000, idle(), true, Help::Possible), give);
    }

    #[test]
    fn a_porter_has_work_of_its_own_when_it_has_no_time_to_spare_for_that() {
        let mut meter = busy(1, 4);
        assert!(!meter.has_own_work(1000), "a window later");
        meter.worked(at(20), WORK, 0);
        assert!(meter.has_own_work(1000) && !meter.has_own_work(BUSY - 1));
        meter.worked(at(30), WORK, 0);
        assert!(!meter.has_own_work(1000));
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
