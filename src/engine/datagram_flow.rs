//! A datagram flow: a UDP or echo mapping with its host socket.

use std::net::SocketAddr;

use crate::base::{Instant, Mac};
use crate::gate::AddressPlan;
use crate::stack::udp::Mapping;

use super::ledger::Account;
use super::ports::SocketPort;

/// The key of a mapping: the guest's endpoint alone (RFC 4787 REQ-1). For echo the port is the
/// identifier (RFC 5508 REQ-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingKey {
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// Which of its sockets.
    pub route: Route,
}

impl MappingKey {
    /// How the guest knows the host-side address `peer` that this mapping's socket heard from.
    pub(super) fn peer_seen(&self, plan: &AddressPlan, peer: SocketAddr) -> SocketAddr {
        let ipv6 = self.guest.is_ipv6();
        match (self.route, plan.gateway(ipv6), plan.dns(ipv6)) {
            (Route::Exposed(port), Some(gateway), _) => SocketAddr::new(gateway, port),
            (Route::Resolver, _, Some(dns)) => SocketAddr::new(dns, peer.port()),
            _ => SocketAddr::new(plan.seen_by_guest(peer.ip()), peer.port()),
        }
    }
}

/// A guest endpoint has a socket of its own for each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// To anybody out in the world, and the host's own addresses.
    Outside,
    /// To the host's own loopback, which a socket bound to an outside address or interface cannot
    /// reach.
    Loopback,
    /// To the service of the host that this port of the gateway stands for, and which the guest
    /// knows under that name only.
    Exposed(u16),
    /// To the host's resolver, encrypted, which the guest knows under the DNS address.
    Resolver,
}

/// One mapping.
pub(super) struct DatagramFlow<S: SocketPort> {
    pub(super) account: Account,
    pub(super) guest_mac: Mac,
    pub(super) socket: S::Datagram,
    pub(super) mapping: Mapping,
    /// The peer that was heard from or addressed last, as the guest knows it.
    pub(super) last_peer: Option<SocketAddr>,
    /// Whether the socket is set to forbid fragmentation.
    pub(super) dont_fragment: bool,
    /// Datagrams of so many bytes and more are not joined: the kernel did not take them.
    pub(super) joins_below: usize,
    /// MTU towards the guest, if it told of a smaller one than the link's.
    pub(super) path_mtu: Option<usize>,
    /// The earliest entry in the timer wheel.
    pub(super) wheel_entry: Option<Instant>,
    pub(super) on_run_list: bool,
}

impl<S: SocketPort> DatagramFlow<S> {
    pub(super) fn new(
        guest_mac: Mac,
        socket: S::Datagram,
        mapping: Mapping,
        account: Account,
    ) -> Self {
        DatagramFlow {
            account,
            guest_mac,
            socket,
            mapping,
            last_peer: None,
            dont_fragment: false,
            joins_below: usize::MAX,
            path_mtu: None,
            wheel_entry: None,
            on_run_list: false,
        }
    }
}
