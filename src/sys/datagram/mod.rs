//! Host datagram sockets: UDP, and the ping sockets of icmp(7).
//!
//! A socket here is never connected: one of them serves a whole mapping, whoever the peer is
//! (RFC 4787 REQ-1). It keeps what is needed to look like a router to the guest: TOS and TTL are
//! set and read with each datagram, and undeliverable ones come back on the error queue.
//!
//! **Pending errors.** An ICMP error for an earlier datagram fails the *next* call on the socket,
//! whatever that is about. [`send_batch`] therefore tries again; [`recv_batch`] returns the error
//! and its caller empties the queue with [`next_error`], which clears it.
//!
//! **Fragmentation.** A datagram that the guest sent with "don't fragment" goes out the same way
//! but past the kernel's path-MTU cache (`IP_PMTUDISC_PROBE`), as it would through a router: the
//! ICMP error of the hop that cannot carry it comes back through the error queue, and a guest that
//! probes for a larger path MTU (RFC 8899, `tracepath`) gets the truth and not a cached figure.
//! Other datagrams are fragmented by this kernel (`IP_PMTUDISC_DONT`), which follows its cache.

mod error_queue;
mod message;
mod open;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use error_queue::{Origin, SocketError, next_error};
pub use open::{
    DatagramOptions, PortChoice, adopt_udp, bound_port, connect_udp, keep_errors_v6, open_ping,
    open_udp, set_dont_fragment, source_towards, unbound_udp,
};
pub use receive::{Batch, MAX_SLOTS, Received, recv_batch};
pub use send::{Outgoing, send_batch};

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl From<SocketAddr> for Family {
    fn from(address: SocketAddr) -> Self {
        address.ip().into()
    }
}

/// The fields of an IP header that a datagram carries through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// Type of service or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit; 0 cannot be sent.
    pub hop_limit: u8,
}

impl Marks {
    /// What most packets carry: no DSCP, and Linux's default TTL (ip-sysctl.rst).
    pub const DEFAULT: Marks = Marks { tos: 0, hop_limit: 64 };
}
