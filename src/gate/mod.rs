//! Who may pass, as whom, and where to: the address plan and its translation of destinations.
//!
//! Pure: owns no descriptor and no clock.
#![forbid(unsafe_code)]

pub mod forward;
mod inbound;
mod plan;

pub use inbound::Inbound;
pub use plan::{AddressPlan, Destination, Plan4, Plan6};
