//! Deadlines: retransmission (RFC 6298), persist (RFC 9293 §3.8.6.1), keep-alive (§3.8.4) and
//! TIME-WAIT.
//!
//! Every state in which we wait for the guest has one of them running: something in flight the
//! retransmission timer, host data before a closed or silly window the persist timer, everything
//! else from the end of the handshake on the keep-alive timer. So nothing waits for ever.

use std::time::Duration;

use crate::base::Instant;
use crate::stack::wire::Flags;

use super::Action;
use super::connection::{Connection, State};
use super::timers::Timer;

/// Retransmissions before giving up: over 100 s, as RFC 9293 §3.8.3 (R2) asks.
const MAX_RETRIES: u8 = 12;
/// How long an open connection may be silent before the guest is probed (RFC 9293 §3.8.4: 2 h).
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(2 * 3600);
/// How long a half-closed one may: a guest that dropped its orphaned socket (FIN-WAIT-2 time-out,
/// 60 s on Linux) tells so only when asked.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(75);
/// Unanswered probes before an idle connection is given up (Linux's tcp_keepalive_probes).
const MAX_PROBES: u8 = 9;
/// Unanswered probes of a closed window before the connection is given up: with the back-off some
/// minutes. As long as the guest answers it may stay closed (RFC 9293 §3.8.6.1).
const MAX_WINDOW_PROBES: u8 = 12;

impl Connection {
    /// A deadline has passed. [`Connection::send_capacity`] may have grown: a window that stays
    /// small is used after all.
    pub fn on_deadline(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.timers.expired(Timer::TimeWait, now) {
            self.close();
            return;
        }
        if self.timers.expired(Timer::Retransmit, now) {
            self.on_retransmit_timeout(now, out);
        }
        if self.timers.expired(Timer::Persist, now) {
            self.on_persist_timeout(now, out);
        }
        if self.timers.expired(Timer::KeepAlive, now) {
            self.on_keep_alive(now, out);
        }
    }

    fn on_retransmit_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.retries = self.retries.saturating_add(1);
        self.rtt.back_off();
        if self.is_opening() {
            return self.repeat_syn(now, out);
        }
        if self.transmit.in_flight() == 0 {
            return;
        }
        if self.retries > MAX_RETRIES {
            return self.abort(out);
        }
        self.options.frame_limit = self.options.frame_limit.min(self.options.resend_limit);
        self.transmit.enter_recovery(true);
        self.resend(now, out);
    }

    fn on_persist_timeout(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.probes >= MAX_WINDOW_PROBES {
            return self.abort(out);
        }
        self.probes += 1;
        self.persist_backoff = self.persist_backoff.saturating_add(1);
        if self.transmit.usable() > 0 {
            self.transmit.allow_small_window();
        }
        // A probe without data below the window, as Linux sends it: any receiver answers with its
        // present window.
        self.emit(self.transmit.una - 1, 0, Flags::default(), out);
        self.arm_persist(now);
    }

    fn on_keep_alive(&mut self, now: Instant, out: &mut Vec<Action>) {
        let idle = self.keep_alive_idle();
        if self.probes == 0 && now.since(self.heard) < idle {
            self.timers.arm(Timer::KeepAlive, self.heard + idle);
            return;
        }
        if self.probes >= MAX_PROBES {
            return self.abort(out);
        }
        self.probes += 1;
        self.emit(self.transmit.una - 1, 0, Flags::default(), out);
        self.timers.arm(Timer::KeepAlive, now + HALF_CLOSED_IDLE);
    }

    fn keep_alive_idle(&self) -> Duration {
        match self.state {
            State::Established => KEEP_ALIVE_IDLE,
            _ => HALF_CLOSED_IDLE,
        }
    }

    /// Arms the idle timer for the present state.
    pub(super) fn arm_keep_alive(&mut self, now: Instant) {
        self.timers.arm(Timer::KeepAlive, now + self.keep_alive_idle());
    }

    /// Runs the persist timer while the host has data, nothing is in flight, and the window is too
    /// small. A window that is small but open is used when the timer shows that it stays so
    /// (RFC 9293 §3.8.6.2.1).
    pub(super) fn check_persist(&mut self, now: Instant) {
        let blocked = self.host_waiting
            && self.may_send()
            && self.transmit.in_flight() == 0
            && self.send_capacity() == 0;
        if !blocked {
            self.timers.disarm(Timer::Persist);
            self.persist_backoff = 0;
        } else if !self.timers.is_armed(Timer::Persist) {
            self.arm_persist(now);
        }
    }

    fn arm_persist(&mut self, now: Instant) {
        let timeout = self.rtt.timeout().saturating_mul(1 << self.persist_backoff.min(10));
        self.timers.arm(Timer::Persist, now + timeout.min(Duration::from_secs(60)));
    }
}
