//! Who may pass, as whom, and where to: the address plan and its translation of destinations.
//!
//! Pure: owns no descriptor and no clock. The policy of later issues joins here.
#![forbid(unsafe_code)]

pub mod forward;
mod plan;

pub use plan::{AddressPlan, Destination, Plan4, Plan6};
