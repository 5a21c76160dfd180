//! Our own clock reading, so that a pure room cannot ask for one by accident.

use std::cmp::Ordering;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on the monotonic clock (`CLOCK_MONOTONIC`), or on a simulator's clock.
///
/// Machines get it as an argument once per turn; `sys::clock` makes it at the edge.
///
/// An `Option<Instant>` takes no more room than an `Instant`: every flow has half a dozen of them.
/// For that one reading is given up, the last before the clock overflows, in its 585th year.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instant {
    /// What is left until that reading.
    left: NonZeroU64,
}

impl Instant {
    /// The clock's origin.
    pub const ZERO: Instant = Instant::from_nanos(0);

    /// A reading of `nanos` nanoseconds since the clock's origin, of 2^64 - 2 at most.
    pub const fn from_nanos(nanos: u64) -> Self {
        match NonZeroU64::new(u64::MAX - nanos) {
            Some(left) => Instant { left },
            None => Instant { left: NonZeroU64::MIN },
        }
    }

    /// A reading of `millis` milliseconds since the clock's origin.
    pub const fn from_millis(millis: u64) -> Self {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        u64::MAX - self.left.get()
    }

    /// Whole milliseconds since the clock's origin, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.as_nanos() / 1_000_000
    }

    /// Time from `earlier` to `self`; zero if `earlier` is the later one.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.as_nanos().saturating_sub(earlier.as_nanos()))
    }
}

impl Default for Instant {
    fn default() -> Instant {
        Instant::ZERO
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instant").field(&self.as_nanos()).finish()
    }
}

impl Ord for Instant {
    fn cmp(&self, other: &Instant) -> Ordering {
        self.as_nanos().cmp(&other.as_nanos())
    }
}

impl PartialOrd for Instant {
    fn partial_cmp(&self, other: &Instant) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        let rhs = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Instant::from_nanos(self.as_nanos().saturating_add(rhs))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_in_order_up_to_the_last() {
        let readings = [0, 1, 2, 1 << 40, u64::MAX - 2, u64::MAX - 1].map(Instant::from_nanos);
        assert!(readings.is_sorted_by(|a, b| a < b));
        assert_eq!(readings[5].as_nanos(), u64::MAX - 1);
        assert_eq!(readings[5] + Duration::from_secs(1), readings[5]);
        assert_eq!(Instant::from_nanos(u64::MAX), readings[5]);
        assert_eq!(readings[3].since(readings[1]), Duration::from_nanos((1 << 40) - 1));
        assert_eq!(readings[1] - readings[3], Duration::ZERO);
        assert_eq!(Instant::default(), readings[0]);
    }

    #[test]
    fn no_reading_costs_nothing() {
        assert_eq!(size_of::<Option<Instant>>(), size_of::<u64>());
    }
}
