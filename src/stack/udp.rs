//! UDP mappings: one guest endpoint, one host socket, whoever the peer is, until it is idle.
//!
//! Owns filtering and expiry. Elsewhere: headers ([`crate::stack::wire`]), sockets and tables
//! ([`crate::engine`]). Also serves ICMP echo, whose mappings differ only in their time-outs
//! (RFC 5508 REQ-2: at least 60 s).
//!
//! | RFC 4787 | what | shown by |
//! |---|---|---|
//! | REQ-1 | endpoint-independent mapping: the key is the guest's endpoint alone | integration |
//! | REQ-3 | port preserved when free | integration |
//! | REQ-5 | 5 min after a reply, 2 min before one, 10 s for DNS | `time_outs_follow_use` |
//! | REQ-6 | the guest's datagrams refresh; so do admitted answers | `time_outs_follow_use` |
//! | REQ-8 | address-dependent filtering | `only_addressed_peers_may_answer` |
//!
//! Departs from REQ-5 for unreplied mappings and port 53 (D10): a scan or a lost query should not
//! hold a descriptor for minutes. Hostile input: how many peers the guest addresses; the set is
//! bounded, and the peer addressed longest ago is forgotten first.
#![forbid(unsafe_code)]

pub mod offload;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::Instant;

/// Peers that a mapping remembers.
const MAX_PEERS: usize = 256;

const DNS_PORT: u16 = 53;

/// How long a mapping lives without use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Nothing has come back yet.
    pub unreplied: Duration,
    /// Something has.
    pub replied: Duration,
    /// Everything went to port 53.
    pub dns: Duration,
}

impl Timeouts {
    /// For UDP (RFC 4787 REQ-5: 2 min at least, 5 min or more advised).
    pub const UDP: Timeouts = Timeouts {
        unreplied: Duration::from_secs(120),
        replied: Duration::from_secs(300),
        dns: Duration::from_secs(10),
    };

    /// For ICMP echo (RFC 5508 REQ-2).
    pub const ECHO: Timeouts = Timeouts {
        unreplied: Duration::from_secs(60),
        replied: Duration::from_secs(60),
        dns: Duration::from_secs(60),
    };
}

/// The state of one mapping.
#[derive(Clone, Debug)]
pub struct Mapping {
    timeouts: Timeouts,
    /// Addressed peers, the latest last. Most mappings have one or two.
    peers: Vec<IpAddr>,
    only_dns: bool,
    replied: bool,
    last_use: Instant,
}

impl Mapping {
    /// A mapping that the guest is about to use.
    pub fn new(now: Instant, timeouts: Timeouts) -> Mapping {
        Mapping { timeouts, peers: Vec::new(), only_dns: true, replied: false, last_use: now }
    }

    /// The guest sends to `peer`, which may answer from now on.
    pub fn on_outgoing(&mut self, now: Instant, peer: SocketAddr) {
        self.last_use = now;
        self.only_dns &= peer.port() == DNS_PORT;
        let address = peer.ip();
        if self.peers.last() == Some(&address) {
            return;
        }
        if let Some(position) = self.peers.iter().position(|known| *known == address) {
            self.peers.remove(position);
        } else if self.peers.len() >= MAX_PEERS {
            self.peers.remove(0);
        }
        self.peers.push(address);
    }

    /// Whether a datagram from `peer` may pass to the guest. One that may counts as use.
    pub fn on_incoming(&mut self, now: Instant, peer: IpAddr) -> bool {
        let admitted = self.peers.contains(&peer);
        if admitted {
            self.replied = true;
            self.last_use = now;
        }
        admitted
    }

    /// Whether something has come back.
    pub fn is_replied(&self) -> bool {
        self.replied
    }

    /// When the mapping ends, if it is not used before.
    pub fn deadline(&self) -> Instant {
        let timeout = match (self.only_dns, self.replied) {
            (true, _) => self.timeouts.dns,
            (false, true) => self.timeouts.replied,
            (false, false) => self.timeouts.unreplied,
        };
        self.last_use + timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_addressed_peers_may_answer() {
        let now = Instant::from_millis(1);
        let mut mapping = Mapping::new(now, Timeouts::UDP);
        mapping.on_outgoing(now, peer("192.0.2.7:5000"));
        assert!(mapping.on_incoming(now, peer("192.0.2.7:6000").ip()), "any port of the address");
        assert!(!mapping.on_incoming(now, peer("192.0.2.8:5000").ip()));
    }

    #[test]
    fn time_outs_follow_use() {
        let start = Instant::from_millis(1);
        let secs = Duration::from_secs;
        let mut mapping = Mapping::new(start, Timeouts::UDP);
        mapping.on_outgoing(start, peer("192.0.2.7:53"));
        assert_eq!(mapping.deadline(), start + secs(10));
        mapping.on_outgoing(start + secs(1), peer("192.0.2.7:5353"));
        assert_eq!(mapping.deadline(), start + secs(121));
        assert!(!mapping.on_incoming(start + secs(50), peer("192.0.2.9:1").ip()));
        assert_eq!(mapping.deadline(), start + secs(121), "what is filtered does not refresh");
        assert!(mapping.on_incoming(start + secs(100), peer("192.0.2.7:1").ip()));
        assert_eq!(mapping.deadline(), start + secs(400));
        mapping.on_outgoing(start + secs(200), peer("192.0.2.7:5353"));
        assert_eq!(mapping.deadline(), start + secs(500));
    }

    #[test]
    fn a_scan_does_not_grow_the_mapping() {
        let now = Instant::from_millis(1);
        let mut mapping = Mapping::new(now, Timeouts::UDP);
        for host in 0..1000u32 {
            let address = std::net::Ipv4Addr::from(0xc633_6400 + host);
            mapping.on_outgoing(now, SocketAddr::new(address.into(), 9));
        }
        assert_eq!(mapping.peers.len(), MAX_PEERS);
        assert!(mapping.on_incoming(now, std::net::Ipv4Addr::from(0xc633_6400 + 999).into()));
        assert!(!mapping.on_incoming(now, std::net::Ipv4Addr::from(0xc633_6400).into()));
    }
}
