//! Sockets that the program was started with: systemd's socket activation (sd_listen_fds(3)), by
//! which ports below 1024 are published without privilege.
//!
//! `LISTEN_FDS` descriptors from 3 on are ours if `LISTEN_PID` is our process id. They are taken
//! before anything else is opened, and the variables go, so that the guest's command, which has
//! another id and other descriptors, does not look for them.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;

use socket2::{Domain, SockRef, Type};

use super::ListenError;
use crate::gate::forward::{Forward, Listen, PortRange, Transport};
use crate::sys::datagram::{self, DatagramOptions};
use crate::sys::inherit::{take_descriptor, take_variable};

/// Sockets that were handed in and are not in use yet.
#[derive(Debug, Default)]
pub struct Handed {
    sockets: Vec<HandedSocket>,
}

#[derive(Debug)]
struct HandedSocket {
    socket: OwnedFd,
    /// Its number at the start, for messages.
    number: RawFd,
    transport: Transport,
    place: Place,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Port {
        address: SocketAddr,
        /// An IPv6 wildcard that takes IPv4 too.
        both_families: bool,
        interface: Option<String>,
    },
    Unix(PathBuf),
}

/// SD_LISTEN_FDS_START of sd_listen_fds(3).
const FIRST: RawFd = 3;

/// More sockets than any unit has, and fewer than would take long to look at.
const MOST: RawFd = 4096;

impl Handed {
    /// Takes what was handed in. To be called once, before anything is opened and before threads
    /// are started.
    ///
    /// # Errors
    /// [`ListenError::Handed`] for a descriptor that cannot be published.
    pub fn take() -> Result<Handed, ListenError> {
        let variable = |name| {
            let value = take_variable(name).unwrap_or_default();
            value.and_then(|value| value.into_string().ok())
        };
        let values = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"].map(variable);
        let [Some(pid), Some(count), ..] = values else { return Ok(Handed::default()) };
        let count = count.parse().unwrap_or(0).clamp(0, MOST);
        if pid.parse() != Ok(std::process::id()) {
            return Ok(Handed::default());
        }
        let take = |number| {
            let unusable = |why| ListenError::Handed { number, why };
            let socket = take_descriptor(number).map_err(|_| unusable("it is not open"))?;
            HandedSocket::new(socket, number).map_err(unusable)
        };
        Ok(Handed { sockets: (FIRST..FIRST + count).map(take).collect::<Result<_, _>>()? })
    }

    /// Takes the sockets that are at the host port `port` of `forward`, and gives them with that
    /// port; for a rule of a Unix socket, those at its path.
    pub(super) fn take_for(&mut self, forward: &Forward, port: u16) -> Vec<OwnedFd> {
        if self.sockets.is_empty() {
            return Vec::new();
        }
        let (taken, left) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|socket: &HandedSocket| socket.serves(forward, port));
        self.sockets = left;
        taken.into_iter().map(|HandedSocket { socket, .. }| socket).collect()
    }

    /// Whether a socket is at one of the ports of `forward`.
    pub(super) fn has_any_for(&self, forward: &Forward) -> bool {
        let Listen::Ports { ports, .. } = forward.listen else {
            return self.sockets.iter().any(|socket| socket.serves(forward, 0));
        };
        let has = |socket: &HandedSocket| match socket.place {
            Place::Port { address, .. } => {
                ports.overlaps(PortRange::single(address.port()))
                    && socket.serves(forward, address.port())
            }
            Place::Unix(_) => false,
        };
        self.sockets.iter().any(has)
    }

    /// What is left over: each socket under a rule of its own, from its port to the same port of
    /// the guest.
    ///
    /// # Errors
    /// [`ListenError::Handed`] for a Unix socket, which has no port.
    pub(super) fn rest(self) -> Result<Vec<(Forward, OwnedFd)>, ListenError> {
        let rule = |handed: HandedSocket| {
            let Place::Port { address, both_families, interface } = handed.place else {
                let why = "a Unix socket needs a rule that names its path, as -p unix:PATH:PORT";
                return Err(ListenError::Handed { number: handed.number, why });
            };
            let port = PortRange::single(address.port());
            let address = (!both_families).then_some(address.ip());
            let forward = Forward {
                transport: handed.transport,
                listen: Listen::Ports { address, interface, ports: port },
                guest_address: None,
                guest_ports: port,
                when_listening: false,
            };
            Ok((forward, handed.socket))
        };
        self.sockets.into_iter().map(rule).collect()
    }
}

impl HandedSocket {
    /// Looks at what the descriptor is, and prepares it to be served; else why it cannot be.
    fn new(socket: OwnedFd, number: RawFd) -> Result<HandedSocket, &'static str> {
        const UNKNOWN: &str = "it is not a socket of TCP, UDP or Unix streams";
        let view = SockRef::from(&socket);
        let (Ok(domain), Ok(kind), Ok(local)) = (view.domain(), view.r#type(), view.local_addr())
        else {
            return Err(UNKNOWN);
        };
        let transport = match (domain, kind) {
            (Domain::IPV4 | Domain::IPV6 | Domain::UNIX, Type::STREAM) => Transport::Tcp,
            (Domain::IPV4 | Domain::IPV6, Type::DGRAM) => Transport::Udp,
            _ => return Err(UNKNOWN),
        };
        if transport == Transport::Tcp && !view.is_listener().unwrap_or(false) {
            return Err("it does not listen: the unit needs Accept=no");
        }
        let place = if let Some(path) = local.as_pathname() {
            Place::Unix(path.to_owned())
        } else if let Some(address) = local.as_socket() {
            let interface = view.device().ok().flatten();
            let interface = interface.and_then(|name| String::from_utf8(name).ok());
            let both_families = address.is_ipv6()
                && address.ip().is_unspecified()
                && view.only_v6().is_ok_and(|only| !only);
            Place::Port { address, both_families, interface }
        } else {
            return Err("it has no path");
        };
        match (&place, transport) {
            (Place::Port { address, .. }, Transport::Udp) => {
                let options = DatagramOptions {
                    tell_local: true,
                    coalesce: true,
                    ..DatagramOptions::new(*address)
                };
                datagram::adopt_udp(socket.as_fd(), &options).map_err(|_| {
                    "a UDP socket has to be of one family: the unit needs BindIPv6Only=ipv6-only"
                })?;
            }
            _ => view.set_nonblocking(true).map_err(|_| UNKNOWN)?,
        }
        Ok(HandedSocket { socket, number, transport, place })
    }

    fn serves(&self, forward: &Forward, port: u16) -> bool {
        match (&self.place, &forward.listen) {
            (Place::Unix(path), Listen::Unix(wanted)) => path == wanted,
            (
                Place::Port { address, interface, .. },
                Listen::Ports { address: wanted, interface: wanted_interface, .. },
            ) => {
                self.transport == forward.transport
                    && address.port() == port
                    && interface == wanted_interface
                    && match wanted {
                        // Of what the rule would open, one family may be enough.
                        None => address.ip().is_unspecified(),
                        Some(wanted) => address.ip() == *wanted,
                    }
            }
            _ => false,
        }
    }
}
