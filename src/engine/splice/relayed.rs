//! Relayed datagrams: one client of a UDP port, and the socket by which its datagrams go on.
//!
//! The client keeps its port on the other side if that is free, and hears only from whom it has
//! addressed, since the socket is connected. Sessions end when they are idle (RFC 4787 REQ-5), and
//! the least recently used one when there are too many.

use std::net::{IpAddr, SocketAddr};

use crate::base::Instant;
use crate::engine::ledger::Account;
use crate::engine::ports::SocketPort;
use crate::engine::token::Token;
use crate::observe::Direction;
use crate::stack::udp::Timeouts;

/// The key of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::engine) struct RelayKey {
    /// The port that the client talks to.
    pub(in crate::engine) port: Token,
    /// The client.
    pub(in crate::engine) client: SocketAddr,
}

/// A session.
pub(in crate::engine) struct Relayed<S: SocketPort> {
    pub(in crate::engine) account: Account,
    /// Connected to the target.
    pub(in crate::engine) socket: S::Datagram,
    pub(in crate::engine) target: SocketAddr,
    /// The address that the client has addressed, from which the answers come.
    pub(in crate::engine) local: Option<IpAddr>,
    pub(in crate::engine) replied: bool,
    /// Datagrams of at least so many bytes are not joined any more.
    pub(in crate::engine) joins_below: usize,
    /// The earliest entry in the timer wheel.
    pub(in crate::engine) wheel_entry: Option<Instant>,
    pub(in crate::engine) on_run_list: bool,
}

/// Where resolvers listen.
const DNS_PORT: u16 = 53;

impl<S: SocketPort> Relayed<S> {
    /// The guest's end and the other, as far as they are known without asking.
    pub(in crate::engine) fn ends(&self, key: &RelayKey) -> (SocketAddr, SocketAddr) {
        match self.account.direction {
            Direction::Inbound => (self.target, key.client),
            Direction::Outbound => (key.client, self.target),
        }
    }

    /// When the session ends, if it is not used before.
    pub(in crate::engine) fn deadline(&self) -> Instant {
        let timeouts = Timeouts::UDP;
        let timeout = match self.replied {
            _ if self.target.port() == DNS_PORT => timeouts.dns,
            true => timeouts.replied,
            false => timeouts.unreplied,
        };
        self.account.last_use + timeout
    }
}
