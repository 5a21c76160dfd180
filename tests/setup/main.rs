//! Set-up and life of guests, in real namespaces, as a real unprivileged user.

mod attach;
mod ends;
mod found;
mod lesser_hosts;
#[path = "../support/mod.rs"]
mod support;
