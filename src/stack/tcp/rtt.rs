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
    /// Both in microseconds, up to 71 minutes.
    smoothed: Option<u32>,
    variation: u32,
    backoff: u8,
    /// The sequence number whose acknowledgment gives the next sample, if there is one.
    timed_end: Seq,
    timed_since: Option<Instant>,
}

impl Rtt {
    pub(super) const fn new() -> Self {
        Rtt { smoothed: None, variation: 0, backoff: 0, timed_end: Seq(0), timed_since: None }
    }

    /// The time-out to arm now, with back-off.
    pub(super) fn timeout(&self) -> Duration {
        let base = match self.smoothed() {
            None => INITIAL,
            Some(smoothed) => smoothed + (4 * micros(self.variation)).max(MIN),
        };
        base.saturating_mul(1 << self.backoff.min(10)).min(MAX)
    }

    /// The smoothed round-trip time, once there was a sample.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(micros)
    }

    /// A segment that ends at `end` was sent for the first time.
    pub(super) fn sent(&mut self, now: Instant, end: Seq) {
        if self.timed_since.is_none() {
            (self.timed_end, self.timed_since) = (end, Some(now));
        }
    }

    /// Something was sent again: its acknowledgment would be ambiguous (Karn).
    pub(super) fn retransmitted(&mut self) {
        self.timed_since = None;
    }

    /// The timer ran out (RFC 6298 §5.5).
    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
        self.timed_since = None;
    }

    /// New data up to `ack` was acknowledged (RFC 6298 §2.3). The back-off ends even if there is no
    /// sample: a loss here is a full ring, not a congested path that needs to be spared.
    pub(super) fn acked(&mut self, now: Instant, ack: Seq) {
        self.backoff = 0;
        let Some(sent) = self.timed_since else { return };
        if !self.timed_end.at_or_before(ack) {
            return;
        }
        self.timed_since = None;
        let sample = u32::try_from(now.since(sent).as_micros()).unwrap_or(u32::MAX);
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = weighted(self.variation, 3, smoothed.abs_diff(sample));
                self.smoothed = Some(weighted(smoothed, 7, sample));
            }
        }
    }
}

fn micros(micros: u32) -> Duration {
    Duration::from_micros(micros.into())
}

/// The mean of `old`, which counts `weight` times, and `new`.
fn weighted(old: u32, weight: u32, new: u32) -> u32 {
    // A mean is no larger than the larger of the two.
    ((u64::from(old) * u64::from(weight) + u64::from(new)) / u64::from(weight + 1)) as u32
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
