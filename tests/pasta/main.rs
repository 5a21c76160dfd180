//! pasta's guests on hosts of every kind: what they are given, and what gets through.

mod lab;
mod life;
mod options;
mod ports;
mod routes;
#[path = "../support/mod.rs"]
mod support;
