//! Seeing what goes on: the capture of the guest link.
#![forbid(unsafe_code)]

mod capture;

pub use capture::Capture;
