//! The one place that reads a clock.

use crate::base::Instant;

/// The monotonic clock now (`CLOCK_MONOTONIC`, a vDSO call).
pub fn now() -> Instant {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec that outlives the call; CLOCK_MONOTONIC always exists on
    // Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
    let nanos = ts.tv_sec.unsigned_abs() * 1_000_000_000 + ts.tv_nsec.unsigned_abs();
    Instant::from_nanos(nanos)
}

/// The time of day, since the Unix epoch: for capture files.
#[expect(clippy::disallowed_methods, reason = "this is the edge where clocks are read")]
pub fn wall() -> std::time::Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is a clock that was never set.
    since.unwrap_or_default()
}
