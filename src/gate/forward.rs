//! Forwards: the rules by which the host side gets in (published ports) and by which the guest gets
//! to services of the host (exposed ports). Values only; listeners are opened by others.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// The number of a forward in its instance: from 1, rising, never used again.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct ForwardId(pub u64);

/// What a forward carries.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP, and stream sockets of the host.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// Ports from `first` to `last`, both included. A single port 0 means "whichever is free".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Whichever port is free.
    pub const ANY: PortRange = PortRange { first: 0, last: 0 };

    /// From `first` to `last`; `None` unless `1 <= first <= last`.
    pub fn new(first: u16, last: u16) -> Option<PortRange> {
        (first >= 1 && first <= last).then_some(PortRange { first, last })
    }

    /// The one port, which may be 0 for "whichever is free".
    pub fn single(port: u16) -> PortRange {
        PortRange { first: port, last: port }
    }

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports, at least 1.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether the two have a port in common. A port that is yet to be picked overlaps nothing.
    pub fn overlaps(self, other: PortRange) -> bool {
        self.first != 0 && other.first != 0 && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where the host side of a published port is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// Host ports.
    Ports {
        /// The address to listen at; `None` is every address of every family there is.
        address: Option<IpAddr>,
        /// The interface to listen on (SO_BINDTODEVICE).
        interface: Option<String>,
        /// The ports.
        ports: PortRange,
    },
    /// A Unix stream socket of the host.
    Unix(PathBuf),
}

/// A published port, or a range of them: a host listener in front of guest ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// What it carries; TCP for a Unix socket.
    pub transport: Transport,
    /// The host side.
    pub listen: Listen,
    /// The guest's address; `None` is the guest's own address of the client's family.
    pub guest_address: Option<IpAddr>,
    /// The guest's ports: as many as host ports.
    pub guest_ports: PortRange,
    /// The host side exists only while something listens at the guest port.
    pub when_listening: bool,
}

/// What an exposed port leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostService {
    /// Ports at an address of the host, loopback included.
    Ports {
        /// The address.
        address: IpAddr,
        /// The ports: as many as guest-side ports.
        ports: PortRange,
    },
    /// A Unix stream socket of the host.
    Unix(PathBuf),
}

/// An exposed port, or a range of them: ports of the gateway's address, as the guest sees it, in
/// front of services of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// What it carries; TCP for a Unix socket.
    pub transport: Transport,
    /// Ports at the gateway's addresses.
    pub ports: PortRange,
    /// Where they lead.
    pub service: HostService,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_ascending_and_do_not_hold_port_0() {
        assert_eq!(PortRange::new(0, 5), None);
        assert_eq!(PortRange::new(6, 5), None);
        let range = PortRange::new(1, u16::MAX).unwrap();
        assert_eq!((range.count(), range.to_string()), (65_535, "1-65535".to_owned()));
        assert_eq!(PortRange::single(80).to_string(), "80");
    }

    #[test]
    fn ranges_overlap_where_they_share_a_port() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert!(range(10, 20).overlaps(range(20, 30)));
        assert!(range(10, 30).overlaps(range(15, 16)));
        assert!(!range(10, 20).overlaps(range(21, 30)));
        assert!(!PortRange::ANY.overlaps(PortRange::ANY));
    }
}
