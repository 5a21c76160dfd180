//! Words that every room shares: time, sequence numbers, hardware addresses, reasons for a drop.
//!
//! Nothing here does IO or knows a protocol machine. Row 1 of the dependency table in [`crate`].

mod drop_reason;
mod mac;
mod seq;
mod time;

pub use drop_reason::{DropCounters, DropReason};
pub use mac::Mac;
pub use seq::Seq;
pub use time::Instant;
