//! tapway: a full network for an unprivileged user's network namespace.
#![deny(unsafe_code)]

pub mod base;
pub mod cli;
pub mod control;
pub mod engine;
pub mod gate;
pub mod launch;
pub mod observe;
pub mod setup;
pub mod stack;
pub mod sys;
