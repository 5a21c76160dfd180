//! Whether a [`porter`](super::porter) pays: each is hired on trial. Pure, as all of
//! [`balance`](super::balance).
//!
//! With a porter, each byte visits the caches of two processors instead of one, and both sleep and
//! wake each other: a gigabyte costs a quarter more processor time than one worker takes alone.
//! What that gives depends on who else works for the flow. One stream to a veth on a 4-core VM
//! (Linux 6.18), medians of runs in turn:
//!
//! | MTU of the guest, machine  | alone                 | with a porter         |
//! |----------------------------|-----------------------|-----------------------|
//! | 65,520, without other work | 19 Gbit/s, 0.40 s/GB  | 24 Gbit/s, 0.50 s/GB  |
//! | 1,500, without other work  | 18 Gbit/s, 0.45 s/GB  | 20 Gbit/s, 0.60 s/GB  |
//! | 65,520, with other work    | 14 Gbit/s, 0.35 s/GB  | 12 Gbit/s, 0.50 s/GB  |
//!
//! On a machine with other work a porter takes the time of those who work for the flow at its ends.
//! So a worker remembers what it passed on alone, and does without the porter if that does not
//! become more. Either result holds for a while only, since what a flow does in its first moments,
//! or beside a burst of other work, is not what it does later: the next trial is a second after the
//! first, and each that finds the same doubles the time to the one after it.

use std::time::Duration;

use crate::base::Instant;
use crate::engine::token::Token;

/// Windows that a trial takes: long enough that a neighbour's burst does not decide.
const TRIAL: u64 = 15;

/// The part of what was passed on before that has to come on top of it: an eighth, more than rates
/// vary by themselves.
const GAIN: u64 = 8;

/// How long the result of a flow's first trial holds, or one that contradicts that before it.
const FIRST_TERM: Duration = Duration::from_secs(1);
/// How long any holds, at most: a trial costs a third of a second of what is the worse way.
const LAST_TERM: Duration = Duration::from_secs(32);

/// The trials of the porters of one worker.
pub(super) struct Trials {
    /// The flow of the latest one.
    flow: Option<Token>,
    /// Bytes a window that were passed on before it.
    alone: u64,
    /// How many since, and in how many windows, until there is a result.
    with: Option<(u64, u64)>,
    /// The latest result: whether a porter pays.
    pays: Option<bool>,
    /// How long that holds.
    term: Duration,
    /// Until when it does.
    until: Instant,
}

impl Trials {
    pub(super) fn new(now: Instant) -> Trials {
        Trials { flow: None, alone: 0, with: None, pays: None, term: FIRST_TERM, until: now }
    }

    /// Whether `flow` may get a porter.
    pub(super) fn may_begin(&self, now: Instant, flow: Token) -> bool {
        self.flow != Some(flow) || self.pays != Some(false) || now >= self.until
    }

    /// `flow`, of which `alone` bytes a window were passed on, gets one.
    pub(super) fn begin(&mut self, flow: Token, alone: u64) {
        if self.flow.replace(flow) != Some(flow) {
            self.pays = None;
        }
        (self.alone, self.with) = (alone, Some((0, 0)));
    }

    /// So many bytes were passed on in so many windows until `now`.
    pub(super) fn add(&mut self, now: Instant, bytes: u64, windows: u64) {
        let Some((all, time)) = &mut self.with else { return };
        *all += bytes;
        *time += windows;
        if *time < TRIAL {
            return;
        }
        let pays = *all / *time >= self.alone + self.alone / GAIN;
        self.term = match self.pays == Some(pays) {
            true => (self.term * 2).min(LAST_TERM),
            false => FIRST_TERM,
        };
        (self.pays, self.with, self.until) = (Some(pays), None, now + self.term);
    }

    /// Whether a porter that there is has to go: it does not pay, or it is time to see again
    /// whether it does.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        match self.pays {
            _ if self.with.is_some() => false,
            Some(true) => now >= self.until,
            pays => pays == Some(false),
        }
    }

    /// The porter is gone, for whatever reason.
    pub(super) fn end(&mut self) {
        self.with = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::token::Kind;

    const ALONE: u64 = 20 << 20;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn flow(index: u32) -> Token {
        Token { kind: Kind::Tcp, generation: 0, index }
    }

    /// Trials of which one has lasted for `windows`, in each of which `bytes` were passed on.
    fn tried(windows: u64, bytes: u64) -> Trials {
        let mut trials = Trials::new(at(0));
        trials.begin(flow(1), ALONE);
        (0..windows).for_each(|_| trials.add(at(0), bytes, 1));
        trials
    }

    #[test]
    fn a_porter_stays_if_an_eighth_more_is_passed_on() {
        assert!(!tried(TRIAL, ALONE + ALONE / 8).is_over(at(999)));
        assert!(tried(TRIAL, ALONE + ALONE / 9).is_over(at(0)));
        assert!(!tried(TRIAL - 1, 0).is_over(at(0)), "the trial is not over");
    }

    /// How long results hold, each of a trial that begins as soon as the one before it allows.
    fn terms(rates: &[u64]) -> Vec<u64> {
        let mut trials = Trials::new(at(0));
        let mut now = at(0);
        let term = |&rate: &u64| {
            assert!(trials.may_begin(now, flow(1)));
            trials.begin(flow(1), ALONE);
            trials.add(now, TRIAL * rate, TRIAL);
            let holds = |millis: u64| {
                let then = now + Duration::from_millis(millis);
                match rate > ALONE {
                    true => !trials.is_over(then),
                    false => trials.is_over(then) && !trials.may_begin(then, flow(1)),
                }
            };
            let term = (1..).map(|seconds| seconds * 1000).find(|&end| !holds(end)).unwrap();
            assert!(holds(term - 1));
            now = now + Duration::from_millis(term);
            trials.end();
            term / 1000
        };
        rates.iter().map(term).collect()
    }

    #[test]
    fn a_result_holds_for_longer_whenever_it_is_found_again() {
        assert_eq!(terms(&[ALONE; 7]), [1, 2, 4, 8, 16, 32, 32]);
        assert_eq!(terms(&[2 * ALONE; 7]), [1, 2, 4, 8, 16, 32, 32]);
        assert_eq!(terms(&[2 * ALONE, ALONE, ALONE, 2 * ALONE]), [1, 1, 2, 1]);
    }

    #[test]
    fn another_flow_is_another_matter() {
        let mut trials = tried(TRIAL, ALONE);
        trials.end();
        assert!(!trials.may_begin(at(0), flow(1)) && trials.may_begin(at(0), flow(2)));
        trials.begin(flow(2), ALONE);
        assert!(!trials.is_over(at(0)));
    }

    #[test]
    fn a_porter_that_is_called_away_has_not_failed() {
        let mut trials = tried(TRIAL - 1, 0);
        trials.end();
        assert!(trials.may_begin(at(0), flow(1)));
        let mut trials = tried(TRIAL, 2 * ALONE);
        trials.end();
        assert!(trials.may_begin(at(0), flow(1)));
    }
}
