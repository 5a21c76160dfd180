//! Seeing what goes on: the capture of the guest link, and the records that the control socket
//! hands out.
//!
//! Records are plain data. The worker makes flows and statistics, the control thread makes ports
//! and the instance's own description, [`crate::control`] sends them, the command line shows them.
//! The names of their fields are the names in JSON, times in milliseconds; they are part of the
//! protocol, whose rules on change are in [`crate::control::api`].
#![forbid(unsafe_code)]

mod capture;
mod flow;
mod info;
mod millis;
mod port;
mod query;
mod stats;

pub use capture::Capture;
pub use flow::{Direction, FlowPath, FlowRecord, FlowState, FlowTransport, Traffic};
pub use info::Info;
pub use port::{GuestEnd, HostEnd, PortKind, PortRecord};
pub use query::{FlowPage, FlowQuery, Selection};
pub use stats::{DropTable, ForwardStats, MemoryStats, Stats, TapStats, TransportStats};
