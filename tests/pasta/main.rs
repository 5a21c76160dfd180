//! pasta's guests on hosts of every kind: what they are given, and what gets through.

mod lab;
mod options;
mod ports;
#[path = "../support/mod.rs"]
mod support;
