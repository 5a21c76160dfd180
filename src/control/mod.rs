//! The control thread: signals and the guest's life, names, the control socket, what listens.
#![forbid(unsafe_code)]

pub mod api;
pub mod dns;
pub mod lifecycle;
pub mod listening;
pub mod pesto;
mod socket;

pub use socket::BindError;
