//! Who may pass, as whom, and where to: the address plan and its translation of destinations.
//!
//! Pure: owns no descriptor and no clock.
#![forbid(unsafe_code)]

pub mod auto;
pub mod forward;
mod inbound;
mod plan;
pub mod ports;
mod splicing;
pub mod table;

pub use inbound::Inbound;
pub use plan::{AddressPlan, Destination, Habits, Plan4, Plan6, SharedServices, Sharing};
pub use splicing::{PublishPath, Splicing};
