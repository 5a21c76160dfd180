//! Retransmission time-out (RFC 6298), with one timed sequence number at a time (Karn's rule).

use std::time::Duration;

use crate::base::{Instant, Seq};

/// RFC 6298 §2.1: before the first sample.
const INITIAL: Duration = Duration::from_secs(1);
/// Linux's `TCP_RTO_MIN`, which like there bounds the part that allows for variation: a delayed ACK
/// (at most 200 ms, `TCP_DELACK_MAX`) comes before the time-out. RFC 6298 §2.4 says 1 s for the
/// whole, but nothing else takes time on this link.
const MIN: Duration = Duration::from_millis(200);
/// RFC 6298 §2.5 allows any maximum of at least 60 s.
const MAX: Duration = Duration::from_secs(60);

/// Smoothed round-trip time towards the guest and the time-out that follows from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    backoff: u32,
    timed: Option<(Seq, Instant)>,
}

impl Rtt {
    pub(super) const fn new() -> Self {
        Rtt { smoothed: None, variation: Duration::ZERO, backoff: 0, timed: None }
    }

    /// The time-out to arm now, with back-off.
    pub(super) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => INITIAL,
            Some(smoothed) => smoothed + (4 * self.variation).max(MIN),
        };
        base.saturating_mul(1 << self.backoff.min(10)).min(MAX)
    }

    /// The smoothed round-trip time, once there was a sample.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// A segment that ends at `end` was sent for the first time.
    pub(super) fn sent(&mut self, now: Instant, end: Seq) {
        self.timed.get_or_insert((end, now));
    }

    /// Something was sent again: its acknowledgment would be ambiguous (Karn).
    pub(super) fn retransmitted(&mut self) {
        self.timed = None;
    }

    /// The timer ran out (RFC 6298 §5.5).
    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
        self.timed = None;
    }

    /// New data up to `ack` was acknowledged (RFC 6298 §2.3). The back-off ends even if there is no
    /// sample: a loss here is a full ring, not a congested path that needs to be spared.
    pub(super) fn acked(&mut self, now: Instant, ack: Seq) {
        self.backoff = 0;
        let Some((end, sent)) = self.timed else { return };
        if !end.at_or_before(ack) {
            return;
        }
        self.timed = None;
        let sample = now.since(sent);
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sample_sets_rtt_and_half_of_it_as_variation() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
        rtt.sent(Instant::from_millis(10), Seq(100));
        rtt.acked(Instant::from_millis(410), Seq(100));
        // RFC 6298 §2.2: RTO = 400 + 4 * 200 ms
        assert_eq!(rtt.timeout(), Duration::from_millis(1200));
    }

    #[test]
    fn a_retransmitted_segment_gives_no_sample() {
        let mut rtt = Rtt::new();
        rtt.sent(Instant::from_millis(10), Seq(100));
        rtt.back_off();
        rtt.acked(Instant::from_millis(5000), Seq(100));
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
    }

    #[test]
    fn back_off_doubles_up_to_a_minute_and_ends_with_an_ack() {
        let mut rtt = Rtt::new();
        rtt.back_off();
        assert_eq!(rtt.timeout(), Duration::from_secs(2));
        for _ in 0..40 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(), Duration::from_secs(60));
        rtt.acked(Instant::from_millis(1), Seq(1));
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
    }
}
