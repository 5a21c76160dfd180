//! Why a port cannot be published, in words that say whose fault it is and what helps.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::holder::{self, Holder};
use crate::gate::forward::{Forward, Listen, Transport};

/// Why a rule's host side is not open. `rule` is the rule as `--publish` takes it.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket has the port.
    #[error(
        "publish {rule}: port {port}/{transport} is in use by {}",
        holder::name(.holder.as_ref())
    )]
    InUse {
        /// The rule.
        rule: String,
        /// The host port.
        port: u16,
        /// The transport.
        transport: Transport,
        /// Whose socket it is, where that can be known.
        holder: Option<Holder>,
    },
    /// A port was to be picked, and none is left.
    #[error("publish {rule}: the host has no free {transport} port left to pick")]
    NoneFree {
        /// The rule.
        rule: String,
        /// The transport.
        transport: Transport,
    },
    /// A port for the privileged only.
    #[error("publish {rule}: port {port} is privileged: ordinary users have those from {first} on")]
    Privileged {
        /// The rule.
        rule: String,
        /// The host port.
        port: u16,
        /// The present value of `net.ipv4.ip_unprivileged_port_start`.
        first: u16,
    },
    /// Not an address of this host.
    #[error("publish {rule}: {address} is not an address of this host")]
    NoSuchAddress {
        /// The rule.
        rule: String,
        /// The address.
        address: IpAddr,
    },
    /// Not an interface of this host.
    #[error("publish {rule}: this host has no interface {interface}")]
    NoSuchInterface {
        /// The rule.
        rule: String,
        /// The interface.
        interface: String,
    },
    /// More sockets than descriptors.
    #[error(
        "publishing takes {need} descriptors besides {open} that are open and {spare} to work \
         with, and the limit is {limit}"
    )]
    Descriptors {
        /// What the ports take.
        need: usize,
        /// What is open.
        open: usize,
        /// What has to be left over.
        spare: usize,
        /// The limit (`RLIMIT_NOFILE`).
        limit: usize,
    },
    /// Descriptors ran out after all.
    #[error("publish {rule}: no descriptor is left for it")]
    NoDescriptor {
        /// The rule.
        rule: String,
    },
    /// Somebody serves the Unix socket.
    #[error("publish at {}: another process serves this Unix socket", .0.display())]
    SocketInUse(PathBuf),
    /// There is a file that is something else.
    #[error("publish at {}: there is a file of this name, and it is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// A descriptor of `LISTEN_FDS` that is of no use.
    #[error("descriptor {number} of LISTEN_FDS cannot be published: {why}")]
    Handed {
        /// Its number.
        number: i32,
        /// What it is, or what it would have to be.
        why: &'static str,
    },
    /// Anything else about a Unix socket.
    #[error("publish at {}", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Anything else about a port.
    #[error("publish {rule}: listen on port {port}/{transport}")]
    Socket {
        /// The rule.
        rule: String,
        /// The host port.
        port: u16,
        /// The transport.
        transport: Transport,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ListenError::InUse { holder: None, .. } => Some(
                "`tapway port list` shows whether an instance of yours has it; use another host \
                 port, or leave it out to have a free one picked"
                    .to_owned(),
            ),
            ListenError::InUse { .. } => {
                Some("use another host port, or leave it out to have a free one picked".to_owned())
            }
            ListenError::Privileged { port, .. } => Some(format!(
                "as root: sysctl -w {PORT_START}={port}; or have systemd hand over the listening \
                 socket (LISTEN_FDS), or use a higher host port"
            )),
            ListenError::NoSuchAddress { .. } => {
                Some("`ip address` lists the addresses that it has".to_owned())
            }
            ListenError::NoSuchInterface { .. } => {
                Some("`ip link` lists the interfaces that it has".to_owned())
            }
            ListenError::Descriptors { .. } | ListenError::NoDescriptor { .. } => Some(
                "raise the hard limit (LimitNOFILE= of a systemd unit, nofile in \
                 /etc/security/limits.conf), or publish fewer ports"
                    .to_owned(),
            ),
            ListenError::Unix { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("its directory must exist".to_owned())
            }
            _ => None,
        }
    }
}

/// The sysctl of the lowest port that everybody may use; it holds for IPv6 too (ip-sysctl.rst).
const PORT_START: &str = "net.ipv4.ip_unprivileged_port_start";

/// The error for what the kernel said when `port` (0: any) was to be opened for `forward`.
pub(super) fn explain(forward: &Forward, port: u16, source: io::Error) -> ListenError {
    let rule = forward.to_string();
    let transport = forward.transport;
    let (address, interface) = match &forward.listen {
        Listen::Ports { address, interface, .. } => (*address, interface.clone()),
        Listen::Unix(_) => (None, None),
    };
    match (source.raw_os_error(), address, interface) {
        (Some(libc::EADDRINUSE), ..) if port == 0 => ListenError::NoneFree { rule, transport },
        (Some(libc::EADDRINUSE), ..) => {
            ListenError::InUse { rule, port, transport, holder: holder::find(transport, port) }
        }
        (Some(libc::EACCES), ..) => match first_for_everybody() {
            first if port < first => ListenError::Privileged { rule, port, first },
            _ => ListenError::Socket { rule, port, transport, source },
        },
        // An address of IPv6 on a host without IPv6 is not its address either.
        (Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT), Some(address), _) => {
            ListenError::NoSuchAddress { rule, address }
        }
        (Some(libc::ENODEV), _, Some(interface)) => {
            ListenError::NoSuchInterface { rule, interface }
        }
        (Some(libc::EMFILE), ..) => ListenError::NoDescriptor { rule },
        _ => ListenError::Socket { rule, port, transport, source },
    }
}

fn first_for_everybody() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    // The kernel's default (ip-sysctl.rst).
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}
