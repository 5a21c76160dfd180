//! A datagram flow: a UDP or echo mapping with its host socket.

use std::net::SocketAddr;

use crate::base::{Instant, Mac};
use crate::stack::udp::Mapping;

use super::ports::SocketPort;

/// The key of a mapping: the guest's endpoint alone (RFC 4787 REQ-1). For echo the port is the
/// identifier (RFC 5508 REQ-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingKey {
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// The host's own loopback needs a socket of its own: one that is bound to an outside address
    /// or interface cannot reach it.
    pub loopback: bool,
}

/// One mapping.
pub(super) struct DatagramFlow<S: SocketPort> {
    pub(super) guest_mac: Mac,
    pub(super) socket: S::Datagram,
    pub(super) mapping: Mapping,
    /// Whether the socket is set to forbid fragmentation.
    pub(super) dont_fragment: bool,
    /// MTU towards the guest, if it told of a smaller one than the link's.
    pub(super) path_mtu: Option<usize>,
    /// The earliest entry in the timer wheel.
    pub(super) wheel_entry: Option<Instant>,
    pub(super) on_run_list: bool,
}

impl<S: SocketPort> DatagramFlow<S> {
    pub(super) fn new(guest_mac: Mac, socket: S::Datagram, mapping: Mapping) -> Self {
        DatagramFlow {
            guest_mac,
            socket,
            mapping,
            dont_fragment: false,
            path_mtu: None,
            wheel_entry: None,
            on_run_list: false,
        }
    }
}
