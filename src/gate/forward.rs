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
    /// All ports.
    pub const ALL: PortRange = PortRange { first: 1, last: u16::MAX };

    /// Whichever port is free.
    pub const ANY: PortRange = PortRange { first: 0, last: 0 };

    /// The ports that Linux hands out to clients in every new network namespace, unless told
    /// otherwise (`net.ipv4.ip_local_port_range`).
    pub const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

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

    /// The parts of it that are in none of `excluded`, in rising order.
    pub fn without(self, excluded: &[PortRange]) -> Vec<PortRange> {
        let mut excluded: Vec<PortRange> =
            excluded.iter().copied().filter(|range| range.overlaps(self)).collect();
        excluded.sort_by_key(|range| range.first);
        let mut kept = Vec::new();
        let mut next = Some(self.first);
        for range in excluded {
            if let Some(first) = next
                && let Some(last) = range.first.checked_sub(1)
            {
                kept.extend(PortRange::new(first, last));
            }
            next = next.and_then(|first| Some(first.max(range.last.checked_add(1)?)));
        }
        kept.extend(next.and_then(|first| PortRange::new(first, self.last)));
        kept
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

impl fmt::Display for Forward {
    /// As `--publish` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listen {
            Listen::Unix(path) => write!(f, "unix:{}:", path.display())?,
            Listen::Ports { address, interface, ports } => {
                if let Some(address) = address {
                    write!(f, "{}", Bracketed(*address))?;
                }
                if let Some(interface) = interface {
                    write!(f, "%{interface}")?;
                }
                if address.is_some() || interface.is_some() {
                    f.write_str(":")?;
                }
                if *ports != PortRange::ANY {
                    write!(f, "{ports}")?;
                }
                f.write_str(":")?;
            }
        }
        if let Some(address) = self.guest_address {
            write!(f, "{}:", Bracketed(address))?;
        }
        write!(f, "{}", self.guest_ports)?;
        match self.listen {
            Listen::Ports { .. } => write!(f, "/{}", self.transport),
            Listen::Unix(_) => Ok(()),
        }
    }
}

/// An address as it stands in front of a colon: IPv6 in brackets.
#[derive(Clone, Copy, Debug)]
pub struct Bracketed(pub IpAddr);

impl fmt::Display for Bracketed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "[{address}]"),
        }
    }
}

/// What an exposed port leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostService {
    /// Ports at an address of the host, loopback included.
    Ports {
        /// The address; `None` is the loopback address of the family that the guest has used.
        address: Option<IpAddr>,
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

impl fmt::Display for Exposure {
    /// As `--expose-host` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.ports)?;
        match &self.service {
            HostService::Unix(path) => write!(f, "unix:{}", path.display()),
            HostService::Ports { address, ports } => {
                if let Some(address) = address {
                    write!(f, "{}:", Bracketed(*address))?;
                }
                write!(f, "{ports}/{}", self.transport)
            }
        }
    }
}

/// `auto`: ports follow what listens on the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AutoForward {
    /// What it follows; no transport twice.
    pub transports: Vec<Transport>,
    /// Ports that are left alone.
    pub exclude: Vec<PortRange>,
    /// The only ports that are followed; empty for all.
    pub only: Vec<PortRange>,
    /// UDP ports follow who listens at the same number of TCP, too: such servers speak both, the
    /// one that is there for certain and the other one now and then.
    pub with_tcp: bool,
    /// Where what is opened on the host listens.
    pub bound: Bound,
    /// A port that cannot be had is no news.
    pub weak: bool,
}

/// Where listeners of the host are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bound {
    /// The address; `None` is every address.
    pub address: Option<IpAddr>,
    /// The interface (SO_BINDTODEVICE).
    pub interface: Option<String>,
}

/// Ports of the guest's own loopback that lead to the host's loopback, without passing the TAP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inner {
    /// What it carries.
    pub transport: Transport,
    /// Ports at the guest's loopback addresses.
    pub ports: PortRange,
    /// Ports of the host's: as many.
    pub host_ports: PortRange,
    /// A port that is taken in the guest is left to whoever has it.
    pub weak: bool,
    /// Ports are open only while something listens behind them.
    pub scan: bool,
}

impl AutoForward {
    /// Whether `port` of `transport` is followed.
    pub fn covers(&self, transport: Transport, port: u16) -> bool {
        let has_it = |range: &PortRange| range.overlaps(PortRange::single(port));
        self.transports.contains(&transport)
            && (self.only.is_empty() || self.only.iter().any(has_it))
            && !self.exclude.iter().any(has_it)
    }
}

impl Inner {
    /// Each port of the guest with the port of the host that it leads to.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> {
        let ports = self.ports.first()..=self.ports.last();
        ports.zip(self.host_ports.first()..=self.host_ports.last())
    }
}

/// Two rules that want the same port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{second} overlaps {first}")]
pub struct OverlapError {
    /// The rule that was there, as typed.
    pub first: String,
    /// The one that came later.
    pub second: String,
}

impl Forward {
    /// Whether one host listener would be in the way of the other's.
    ///
    /// As the kernel sees it: a wildcard address overlaps every address that it includes, and two
    /// interfaces keep the same port apart.
    pub fn overlaps(&self, other: &Forward) -> bool {
        match (&self.listen, &other.listen) {
            (Listen::Unix(a), Listen::Unix(b)) => a == b,
            (
                Listen::Ports { address: a, interface: a_on, ports: a_ports },
                Listen::Ports { address: b, interface: b_on, ports: b_ports },
            ) => {
                let apart = matches!((a_on, b_on), (Some(a), Some(b)) if a != b);
                self.transport == other.transport
                    && !apart
                    && a_ports.overlaps(*b_ports)
                    && addresses_overlap(*a, *b)
            }
            _ => false,
        }
    }
}

fn addresses_overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Whether all of `forwards` can be open at the same time.
///
/// # Errors
/// Names two that cannot.
pub fn check_forwards(forwards: &[Forward]) -> Result<(), OverlapError> {
    let ports = |forward: &Forward| match forward.listen {
        Listen::Ports { ports, .. } => ports,
        Listen::Unix(_) => PortRange::ANY,
    };
    // What is yet to be picked, perhaps for thousands of ports, overlaps nothing.
    let is_fixed =
        |rule: &&Forward| ports(rule) != PortRange::ANY || matches!(rule.listen, Listen::Unix(_));
    let fixed: Vec<&Forward> = forwards.iter().filter(is_fixed).collect();
    find_overlap(&fixed, ports, Forward::overlaps)
}

/// Whether all of `exposures` can be there at the same time.
///
/// # Errors
/// Names two that cannot.
pub fn check_exposures(exposures: &[Exposure]) -> Result<(), OverlapError> {
    let all: Vec<&Exposure> = exposures.iter().collect();
    let overlap =
        |a: &Exposure, b: &Exposure| a.transport == b.transport && a.ports.overlaps(b.ports);
    find_overlap(&all, |exposure| exposure.ports, overlap)
}

/// Compares each rule with those whose ports reach to its first one, which for thousands of rules
/// is far less than each with each.
fn find_overlap<T: fmt::Display>(
    rules: &[&T],
    ports: impl Fn(&T) -> PortRange,
    overlap: impl Fn(&T, &T) -> bool,
) -> Result<(), OverlapError> {
    let mut by_port: Vec<(usize, &T)> = rules.iter().copied().enumerate().collect();
    by_port.sort_by_key(|(_, rule)| ports(rule).first());
    let mut reaching: Vec<(usize, &T)> = Vec::new();
    for (at, rule) in by_port {
        reaching.retain(|(_, other)| ports(other).last() >= ports(rule).first());
        if let Some(&(other_at, other)) = reaching.iter().find(|(_, other)| overlap(rule, other)) {
            let (first, second) = if other_at < at { (other, rule) } else { (rule, other) };
            return Err(OverlapError { first: first.to_string(), second: second.to_string() });
        }
        reaching.push((at, rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
