//! Published ports: the host's listening sockets, and the clients of those that carry datagrams.
//! Led ports: the guest's, in front of the host's loopback.

use std::net::{IpAddr, SocketAddr};

use crate::base::Instant;
use crate::gate::forward::{ForwardId, Transport};
use crate::stack::udp::Timeouts;

use super::ledger::Account;
use super::ports::SocketPort;
use super::token::Token;

/// Where the clients of one host socket go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The published port, or range of them, that it belongs to.
    pub forward: ForwardId,
    /// TCP for a stream socket, Unix sockets included.
    pub transport: Transport,
    /// The guest's address; `None` is its own of the client's family.
    pub guest_address: Option<IpAddr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// The number of a led port in its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedId(pub u64);

/// A port of the guest's loopback that leads to one of the host's: where the clients of one socket
/// in the guest go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// Its number.
    pub id: LedId,
    /// What it carries.
    pub transport: Transport,
    /// The port of the host's loopback, of the client's family.
    pub host_port: u16,
}

/// Where the clients of a socket go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// To the guest.
    Published(Published),
    /// To the host.
    Led(Led),
}

impl From<Published> for Rule {
    fn from(rule: Published) -> Rule {
        Rule::Published(rule)
    }
}

impl From<Led> for Rule {
    fn from(rule: Led) -> Rule {
        Rule::Led(rule)
    }
}

impl Rule {
    pub(super) fn transport(&self) -> Transport {
        match self {
            Rule::Published(rule) => rule.transport,
            Rule::Led(rule) => rule.transport,
        }
    }

    /// The published port that it belongs to.
    pub(super) fn forward(&self) -> Option<ForwardId> {
        match self {
            Rule::Published(rule) => Some(rule.forward),
            Rule::Led(_) => None,
        }
    }
}

/// What is to be closed of a published or exposed port, or range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withdrawal {
    /// Its number.
    pub forward: ForwardId,
    /// Only what leads to this port of the guest, and the rest goes on; `None` for all of it.
    pub guest_port: Option<u16>,
}

/// A listening stream socket.
pub(super) struct Listener<S: SocketPort> {
    pub(super) rule: Rule,
    pub(super) socket: S::Listener,
    /// When to accept again after that failed; there is one entry in the timer wheel for it.
    pub(super) retry_at: Option<Instant>,
    pub(super) on_run_list: bool,
}

/// A socket that receives datagrams of all clients.
pub(super) struct DatagramPort<S: SocketPort> {
    pub(super) rule: Rule,
    pub(super) socket: S::Datagram,
    /// Clients that talk to it.
    pub(super) sessions: usize,
    /// Whether the socket is set to forbid fragmentation.
    pub(super) dont_fragment: bool,
    /// Whether it is of that family.
    pub(super) ipv6: bool,
    /// Datagrams of so many bytes and more are not joined: the kernel did not take them.
    pub(super) joins_below: usize,
    pub(super) on_run_list: bool,
}

/// The key of a client of a published UDP port: both ends as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub(super) guest: SocketAddr,
    pub(super) client: SocketAddr,
}

/// A client of a published UDP port.
pub(super) struct Session {
    pub(super) account: Account,
    /// The [`DatagramPort`] that it talks to.
    pub(super) port: Token,
    /// The client as the host sees it.
    pub(super) client: SocketAddr,
    /// The address of the host that it had addressed, from which the answers come.
    pub(super) local: Option<IpAddr>,
    pub(super) replied: bool,
    /// MTU towards the guest, if it told of a smaller one than the link's.
    pub(super) path_mtu: Option<usize>,
    /// The earliest entry in the timer wheel.
    pub(super) wheel_entry: Option<Instant>,
}

impl Session {
    /// When the session ends, if it is not used before (RFC 4787 REQ-5).
    pub(super) fn deadline(&self) -> Instant {
        let timeout = if self.replied { Timeouts::UDP.replied } else { Timeouts::UDP.unreplied };
        self.account.last_use + timeout
    }
}
