//! The control thread: signals and the guest's life.
#![forbid(unsafe_code)]

pub mod dns;
pub mod lifecycle;
