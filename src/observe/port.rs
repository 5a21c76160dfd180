//! A published or exposed port as it is listed.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::gate::forward::{
    Exposure, Forward, ForwardId, HostService, Listen, PortRange, Transport,
};

/// Which way a port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// From the host side to the guest.
    Publish,
    /// From the guest to the host.
    Expose,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PortKind::Publish => "publish",
            PortKind::Expose => "expose",
        })
    }
}

/// The host's end of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HostEnd {
    /// A Unix stream socket.
    Unix {
        /// Its path.
        unix: PathBuf,
    },
    /// Ports of the host.
    Ports {
        /// The address; `None` is every address of every family.
        address: Option<IpAddr>,
        /// The interface that it is bound to.
        interface: Option<String>,
        /// The first port.
        first_port: u16,
        /// The last port.
        last_port: u16,
    },
}

/// The guest's end of a port: of an exposed port, what the guest connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEnd {
    /// The address; `None` is the guest's own (of an exposed port the gateway's), of either family.
    pub address: Option<IpAddr>,
    /// The first port.
    pub first_port: u16,
    /// The last port.
    pub last_port: u16,
}

/// One published or exposed port, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// Its number in its instance.
    pub id: ForwardId,
    /// Which way it leads.
    pub kind: PortKind,
    /// What it carries.
    pub transport: Transport,
    /// The host's end. A port that was left to the kernel is the one that it picked.
    pub host: HostEnd,
    /// The guest's end.
    pub guest: GuestEnd,
    /// It was found by following who listens (`auto`), not asked for.
    pub auto: bool,
    /// The host side exists only while something listens in the guest.
    pub when_listening: bool,
    /// Whether something listens at the far end (at every port of a range); `None` is unknown.
    pub listening: Option<bool>,
}

impl PortRecord {
    /// The record of a published port. A rule whose host port was left to the kernel has to hold
    /// the port that was picked.
    pub fn published(id: ForwardId, forward: &Forward) -> PortRecord {
        let host = match &forward.listen {
            Listen::Unix(path) => HostEnd::Unix { unix: path.clone() },
            Listen::Ports { address, interface, ports } => {
                HostEnd::ports(*address, interface.clone(), *ports)
            }
        };
        PortRecord {
            id,
            kind: PortKind::Publish,
            transport: forward.transport,
            host,
            guest: GuestEnd::new(forward.guest_address, forward.guest_ports),
            auto: false,
            when_listening: forward.when_listening,
            listening: None,
        }
    }

    /// The record of an exposed port.
    pub fn exposed(id: ForwardId, exposure: &Exposure) -> PortRecord {
        let host = match &exposure.service {
            HostService::Unix(path) => HostEnd::Unix { unix: path.clone() },
            HostService::Ports { address, ports } => HostEnd::ports(*address, None, *ports),
        };
        PortRecord {
            id,
            kind: PortKind::Expose,
            transport: exposure.transport,
            host,
            guest: GuestEnd::new(None, exposure.ports),
            auto: false,
            when_listening: false,
            listening: None,
        }
    }

    /// What `tapway port list` says beside the port.
    pub fn remark(&self) -> &'static str {
        match (self.kind, self.listening) {
            (PortKind::Publish, Some(false)) if self.when_listening => {
                "waits for a listener inside"
            }
            (PortKind::Publish, Some(false)) => "no listener inside",
            (PortKind::Expose, Some(false)) => "no listener on the host",
            (_, Some(true)) if self.auto => "auto",
            _ => "",
        }
    }
}

impl HostEnd {
    fn ports(address: Option<IpAddr>, interface: Option<String>, ports: PortRange) -> HostEnd {
        HostEnd::Ports { address, interface, first_port: ports.first(), last_port: ports.last() }
    }
}

impl GuestEnd {
    fn new(address: Option<IpAddr>, ports: PortRange) -> GuestEnd {
        GuestEnd { address, first_port: ports.first(), last_port: ports.last() }
    }
}

/// As in docker's grammar: `127.0.0.1:8080`, `[::]%eth0:80-90`, `*:80`, `unix:/run/web.sock`.
impl fmt::Display for HostEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostEnd::Unix { unix } => write!(f, "unix:{}", unix.display()),
            HostEnd::Ports { address, interface, first_port, last_port } => {
                write_address(f, *address)?;
                if let Some(interface) = interface {
                    write!(f, "%{interface}")?;
                }
                write_ports(f, *first_port, *last_port)
            }
        }
    }
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, self.address)?;
        write_ports(f, self.first_port, self.last_port)
    }
}

fn write_address(f: &mut fmt::Formatter<'_>, address: Option<IpAddr>) -> fmt::Result {
    match address {
        None => f.write_str("*"),
        Some(IpAddr::V4(address)) => write!(f, "{address}"),
        Some(IpAddr::V6(address)) => write!(f, "[{address}]"),
    }
}

fn write_ports(f: &mut fmt::Formatter<'_>, first: u16, last: u16) -> fmt::Result {
    match first == last {
        true => write!(f, ":{first}"),
        false => write!(f, ":{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_shown_in_the_grammar_of_publish() {
        let ports = |address: Option<&str>, interface: Option<&str>, first, last| {
            let address = address.map(|address| address.parse().unwrap());
            let interface = interface.map(str::to_owned);
            HostEnd::ports(address, interface, PortRange::new(first, last).unwrap()).to_string()
        };
        assert_eq!(ports(None, None, 80, 80), "*:80");
        assert_eq!(ports(Some("127.0.0.1"), None, 5000, 5010), "127.0.0.1:5000-5010");
        assert_eq!(ports(Some("::1"), Some("eth0"), 80, 80), "[::1]%eth0:80");
        assert_eq!(HostEnd::Unix { unix: "/a.sock".into() }.to_string(), "unix:/a.sock");
    }

    #[test]
    fn records_survive_json() {
        let published = Forward {
            transport: Transport::Udp,
            listen: Listen::Ports {
                address: None,
                interface: None,
                ports: PortRange::new(5000, 5010).unwrap(),
            },
            guest_address: Some("fd00::9".parse().unwrap()),
            guest_ports: PortRange::new(6000, 6010).unwrap(),
            when_listening: true,
        };
        let exposed = Exposure {
            transport: Transport::Tcp,
            ports: PortRange::single(5432),
            service: HostService::Unix("/run/db.sock".into()),
        };
        let mut first = PortRecord::published(ForwardId(1), &published);
        first.listening = Some(false);
        assert_eq!(first.remark(), "waits for a listener inside");
        for record in [first, PortRecord::exposed(ForwardId(2), &exposed)] {
            let json = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<PortRecord>(&json).unwrap(), record, "{json}");
        }
    }
}
