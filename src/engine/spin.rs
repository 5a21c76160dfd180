//! Waiting for events: asleep, or awake while they come so soon that sleeping would cost more.

use std::io;
use std::time::Duration;

use crate::base::Instant;
use crate::sys::clock;

use super::host::HostSockets;
use super::ports::{Event, FramePort};
use super::worker::Worker;

/// Waits for the next events: first, while that has been paying, without giving up the processor.
pub(super) fn next_events<F: FramePort>(
    worker: &mut Worker<F, HostSockets>,
    spin: &mut Spin,
    start: Instant,
    patience: Option<Duration>,
    events: &mut Vec<Event>,
) -> io::Result<()> {
    if spin.worthwhile() && !worker.works_with_porter() {
        loop {
            worker.wait(Some(Duration::ZERO), events)?;
            let now = clock::now();
            let due = worker.timeout(now) == Some(Duration::ZERO);
            if !events.is_empty() || due {
                spin.paid(true);
                return Ok(());
            }
            if now.since(start) >= SPIN_TIME {
                break;
            }
        }
        spin.paid(false);
    }
    worker.before_wait();
    let now = clock::now();
    let timeout = [worker.timeout(now), patience].into_iter().flatten().min();
    worker.wait(timeout, events)?;
    if clock::now().since(now) < SPIN_TIME && !events.is_empty() {
        spin.would_have_paid();
    }
    Ok(())
}

/// How long to look for events before sleeping. Going to sleep and being woken costs 5 to 10 µs on
/// either side; the answer of a peer on the same machine takes 10 to 30 µs.
const SPIN_TIME: Duration = Duration::from_micros(40);

/// Whether looking for events without sleeping has been paying lately: a score that rises when
/// events come soon and falls when they do not.
pub(super) struct Spin {
    score: u8,
    allowed: bool,
}

impl Spin {
    /// A score from which spinning begins.
    const THRESHOLD: u8 = 8;
    const MAX: u8 = 16;

    /// With less than three processors, the peers that we wait for need the one that we hold.
    pub(super) fn new(processors: usize) -> Spin {
        Spin { score: 0, allowed: processors >= 3 }
    }

    fn worthwhile(&self) -> bool {
        self.allowed && self.score >= Self::THRESHOLD
    }

    fn paid(&mut self, paid: bool) {
        self.score = match paid {
            true => (self.score + 1).min(Self::MAX),
            false => self.score.saturating_sub(2),
        };
    }

    fn would_have_paid(&mut self) {
        self.paid(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_begins_when_it_would_pay_and_ends_when_it_does_not() {
        let mut spin = Spin::new(4);
        assert!(!spin.worthwhile());
        for _ in 0..20 {
            spin.would_have_paid();
        }
        assert!(spin.worthwhile());
        for _ in 0..5 {
            spin.paid(false);
        }
        assert!(!spin.worthwhile());
    }

    #[test]
    fn small_machines_do_not_spin() {
        let mut spin = Spin::new(2);
        for _ in 0..20 {
            spin.would_have_paid();
        }
        assert!(!spin.worthwhile());
    }
}
