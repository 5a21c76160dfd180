//! The timers of one connection. A fixed set, so the next deadline is a minimum.

use crate::base::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Something is in flight (RFC 6298).
    Retransmit,
    /// The guest's window is closed and the host has data (RFC 9293 §3.8.6.1).
    Persist,
    /// Nothing was heard of the guest for long (RFC 9293 §3.8.4).
    KeepAlive,
    /// End of TIME-WAIT.
    TimeWait,
}

const COUNT: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timers([Option<Instant>; COUNT]);

impl Timers {
    pub(super) fn arm(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    pub(super) fn disarm(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn is_armed(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Whether `timer` has run out at `now`; if so it is disarmed.
    pub(super) fn expired(&mut self, timer: Timer, now: Instant) -> bool {
        let slot = &mut self.0[timer as usize];
        let due = slot.is_some_and(|at| at <= now);
        if due {
            *slot = None;
        }
        due
    }

    pub(super) fn clear(&mut self) {
        self.0 = [None; COUNT];
    }
}
