//! Durations as whole milliseconds, in JSON.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// `duration` as a number of milliseconds, rounded down.
pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A number of milliseconds.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}
