//! The network that a guest gets, tried with real programs in real namespaces.
//!
//! Needs root, to make the namespaces; tapway itself runs as an ordinary user.

mod churn;
mod control;
mod dns;
mod endings;
mod icmp;
mod instance;
mod lab;
mod listening;
mod offload;
mod ports;
mod ports_tcp;
mod ports_udp;
mod publish_path;
mod quic;
#[path = "../support/quic.rs"]
mod quic_ends;
mod short_way;
#[path = "../support/mod.rs"]
mod support;
mod tcp;
mod team;
mod udp;
