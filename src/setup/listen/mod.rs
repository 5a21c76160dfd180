//! The host side of published ports: opens the sockets that a [`Forward`] asks for.
//!
//! Runs in the main thread before the command starts, or in the control thread later; what comes
//! out are descriptors, ready for a worker to accept from or to read. Either all sockets of a rule
//! are open or none.
//!
//! - **TCP** at every address is one socket of both families (`IPV6_V6ONLY` off), or of IPv4 alone
//!   where the host has no IPv6; clients of IPv4 then have mapped addresses. `SO_REUSEADDR` lets a
//!   new instance have the port although connections of an earlier one linger in TIME-WAIT.
//! - **UDP** at every address is a socket for each family, because marks and the address that a
//!   client has addressed are told per family. Never with `SO_REUSEADDR`, by which another process
//!   of the same user could take the datagrams over (socket(7)).
//! - **Unix** sockets are for their owner only. The file goes away with its [`SocketFile`]; one
//!   that a killed process has left behind is replaced.
//!
//! Sockets that systemd has opened are taken instead where they fit ([`Handed`]).
//!
//! A port takes one descriptor, or two for UDP at every address. That they suffice is checked
//! before the first is opened.
#![forbid(unsafe_code)]

mod error;
mod handed;
mod holder;
mod predecessor;
mod unix;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::gate::forward::{Bracketed, Forward, Listen, PortRange, Transport};
use crate::sys::datagram::{self, DatagramOptions, PortChoice};

pub use error::ListenError;
pub use handed::Handed;
pub use holder::Holder;
pub use predecessor::open_after_predecessor;
pub use unix::SocketFile;

/// The open host side of a published port or range.
#[derive(Debug)]
pub struct Opened {
    /// The rule. A host port that was picked for a single guest port is filled in.
    pub forward: Forward,
    /// The host ports were picked.
    pub picked: bool,
    /// Ports that could not be had are left out.
    pub weak: bool,
    /// The sockets, by rising guest port.
    pub sockets: Vec<OpenSocket>,
    /// The file of a Unix socket, to be kept for as long as the socket is served.
    pub file: Option<SocketFile>,
}

impl Opened {
    /// Host ports that the user has to be told, since they were picked: `*:49153 -> 80/tcp`.
    pub fn picked_ports(&self) -> impl Iterator<Item = String> {
        let forward = &self.forward;
        let place = match &forward.listen {
            Listen::Ports { address, interface, .. } => {
                let address = address.map_or("*".to_owned(), |ip| Bracketed(ip).to_string());
                let interface = interface.as_ref().map(|name| format!("%{name}"));
                address + &interface.unwrap_or_default()
            }
            // Nothing is picked there.
            Listen::Unix(_) => String::new(),
        };
        let guest = forward.guest_address.map(|ip| format!("{}:", Bracketed(ip)));
        let guest = guest.unwrap_or_default();
        let pairs = self.sockets.iter().map(|socket| (socket.host_port, socket.guest_port));
        let mut pairs: Vec<_> = pairs.filter(|_| self.picked).collect();
        // Both families have the same port.
        pairs.dedup();
        let line =
            move |(host, inner)| format!("{place}:{host} -> {guest}{inner}/{}", forward.transport);
        pairs.into_iter().map(line)
    }
}

/// A socket of the host in front of a guest port: non-blocking, close-on-exec; a stream socket
/// listens already.
#[derive(Debug)]
pub struct OpenSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// The port of the host, picked or not; 0 for a Unix socket.
    pub host_port: u16,
    /// The port of the guest.
    pub guest_port: u16,
}

/// How host sockets are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opener {
    /// At addresses that the host does not have yet, too (`IP_FREEBIND`, ip(7)).
    pub freebind: bool,
}

impl Opener {
    /// Opens what `forward` asks for.
    ///
    /// # Errors
    /// Why not, with nothing left open.
    pub fn open(self, forward: &Forward) -> Result<Opened, ListenError> {
        let need = descriptors(forward);
        // Counting what is open takes longer than opening a few more, which may as well fail.
        if need >= MANY {
            check_descriptors(need)?;
        }
        self.open_unchecked(forward, &mut Handed::default())
    }

    /// Opens what is free of the ports that `forward` asks for, as far as descriptors reach.
    ///
    /// # Errors
    /// None of them can be opened; the last one's reason.
    pub fn open_free(self, forward: &Forward) -> Result<Opened, ListenError> {
        let Listen::Ports { address, interface, ports } = &forward.listen else {
            return self.open(forward);
        };
        let mut all = Opened {
            forward: forward.clone(),
            picked: false,
            weak: true,
            sockets: Vec::new(),
            file: None,
        };
        let per_port = descriptors(forward) / forward.guest_ports.count();
        let room = free_descriptors().1 / per_port;
        let pairs = (ports.first()..=ports.last())
            .zip(forward.guest_ports.first()..=forward.guest_ports.last());
        let mut refusal = None;
        for (port, guest_port) in pairs {
            if all.sockets.len() / per_port >= room {
                break;
            }
            let ports = PortRange::single(port);
            let one = Forward {
                listen: Listen::Ports { address: *address, interface: interface.clone(), ports },
                guest_ports: PortRange::single(guest_port),
                ..forward.clone()
            };
            match self.open_sockets(&one, &mut Handed::default()) {
                Ok(opened) => all.sockets.extend(opened.sockets),
                Err(refused) => refusal = Some((one, refused)),
            }
        }
        match refusal {
            Some((one, refused)) if all.sockets.is_empty() => Err(refused.explain(&one)),
            _ => Ok(all),
        }
    }

    /// As [`Opener::open`], for whoever does not ask why not: who has a port that is taken is a
    /// question to every process of the user, too long for what is tried again and again.
    pub fn try_open(self, forward: &Forward) -> Option<Opened> {
        self.open_sockets(forward, &mut Handed::default()).ok()
    }
}

/// The host sides that are there when the guest starts.
#[derive(Debug, Default)]
pub struct AtStart {
    /// What is open: the rules in their order, then what was handed in without a rule.
    pub opened: Vec<Opened>,
    /// Rules whose host side exists only while something listens in the guest, still closed, and
    /// whether a port of theirs may fail without a word.
    pub waiting: Vec<(Forward, bool)>,
}

/// Opens what each of `forwards` asks for. Where a socket was handed in for a port, it is used
/// instead, and a rule that has one is open from the start in any case.
///
/// # Errors
/// Why not, with nothing left open.
pub fn open_all(forwards: &[Forward], mut handed: Handed) -> Result<AtStart, ListenError> {
    let (waiting, now): (Vec<&Forward>, Vec<&Forward>) =
        forwards.iter().partition(|forward| forward.when_listening && !handed.has_any_for(forward));
    check_descriptors(now.iter().map(|forward| descriptors(forward)).sum())?;
    let mut opened = Vec::with_capacity(now.len());
    for forward in now {
        opened.push(
            Opener::default().open_unchecked(
                &Forward { when_listening: false, ..forward.clone() },
                &mut handed,
            )?,
        );
    }
    for (forward, socket) in handed.rest()? {
        let port = forward.guest_ports.first();
        let sockets = vec![OpenSocket { socket, host_port: port, guest_port: port }];
        opened.push(Opened { forward, picked: false, weak: false, sockets, file: None });
    }
    Ok(AtStart {
        opened,
        waiting: waiting.into_iter().map(|forward| (forward.clone(), false)).collect(),
    })
}

/// From how many sockets on they are counted beforehand.
const MANY: usize = 64;

/// Descriptors that ports may not use up: those of the program itself, and some for connections,
/// without which a published port is worth nothing.
const SPARE: usize = 256;

/// Connections that may wait to be accepted; the kernel's own limit is `net.core.somaxconn`, which
/// by default is the same.
pub(super) const BACKLOG: i32 = 4096;

/// How many descriptors the rule takes.
fn descriptors(forward: &Forward) -> usize {
    match (&forward.listen, forward.transport) {
        (Listen::Unix(_), _) => 1,
        (Listen::Ports { address: None, .. }, Transport::Udp) => 2 * forward.guest_ports.count(),
        (Listen::Ports { .. }, _) => forward.guest_ports.count(),
    }
}

fn check_descriptors(need: usize) -> Result<(), ListenError> {
    let (open, free) = free_descriptors();
    if need > free {
        let limit = descriptor_limit();
        return Err(ListenError::Descriptors { need, open, spare: SPARE, limit });
    }
    Ok(())
}

/// How many descriptors are open, and how many more ports may take.
fn free_descriptors() -> (usize, usize) {
    // The directory itself is open while it is read.
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    (open, descriptor_limit().saturating_sub(open.saturating_add(SPARE)))
}

fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Why a rule is not open, before anybody has looked into it.
enum Refused {
    /// The kernel's answer for this port.
    Port(u16, io::Error),
    /// Of a Unix socket.
    Known(ListenError),
}

impl Refused {
    /// In full, of the rule `forward`.
    fn explain(self, forward: &Forward) -> ListenError {
        match self {
            Refused::Port(port, source) => error::explain(forward, port, source),
            Refused::Known(error) => error,
        }
    }
}

impl Opener {
    fn open_unchecked(self, forward: &Forward, handed: &mut Handed) -> Result<Opened, ListenError> {
        self.open_sockets(forward, handed).map_err(|refused| refused.explain(forward))
    }

    fn open_sockets(self, forward: &Forward, handed: &mut Handed) -> Result<Opened, Refused> {
        let mut opened = Opened {
            forward: forward.clone(),
            picked: matches!(forward.listen, Listen::Ports { ports: PortRange::ANY, .. }),
            weak: false,
            sockets: Vec::new(),
            file: None,
        };
        let (address, interface, ports) = match &forward.listen {
            Listen::Unix(path) => {
                let socket = match handed.take_for(forward, 0).pop() {
                    Some(socket) => socket,
                    None => {
                        let (socket, file) = unix::listen(path).map_err(Refused::Known)?;
                        opened.file = Some(file);
                        socket
                    }
                };
                let guest_port = forward.guest_ports.first();
                opened.sockets.push(OpenSocket { socket, host_port: 0, guest_port });
                return Ok(opened);
            }
            Listen::Ports { address, interface, ports } => (*address, interface.as_deref(), *ports),
        };
        opened.sockets.reserve_exact(descriptors(forward));
        for (at, guest_port) in
            (forward.guest_ports.first()..=forward.guest_ports.last()).enumerate()
        {
            // Ranges have the same length on both sides, so this stays below the last port.
            let step = u16::try_from(at).unwrap_or(u16::MAX);
            let port = if ports == PortRange::ANY { 0 } else { ports.first().saturating_add(step) };
            let mut sockets = handed.take_for(forward, port);
            if sockets.is_empty() {
                let new = match forward.transport {
                    Transport::Tcp => self.tcp(address, interface, port).map(|socket| vec![socket]),
                    Transport::Udp => self.udp(address, interface, port),
                };
                sockets = new.map_err(|source| Refused::Port(port, source))?;
            }
            for socket in sockets {
                let host_port = datagram::bound_port(socket.as_fd())
                    .map_err(|source| Refused::Port(port, source))?;
                opened.sockets.push(OpenSocket { socket, host_port, guest_port });
            }
        }
        if opened.picked
            && forward.guest_ports.count() == 1
            && let Some(first) = opened.sockets.first()
            && let Listen::Ports { ports, .. } = &mut opened.forward.listen
        {
            *ports = PortRange::single(first.host_port);
        }
        Ok(opened)
    }

    /// A listening TCP socket; `port` 0 has it picked.
    fn tcp(
        self,
        address: Option<IpAddr>,
        interface: Option<&str>,
        port: u16,
    ) -> io::Result<OwnedFd> {
        let Some(address) = address else {
            let both = self.listener(Ipv6Addr::UNSPECIFIED.into(), false, interface, port);
            return match both {
                Err(e) if lacks_v6(&e) => {
                    self.listener(Ipv4Addr::UNSPECIFIED.into(), false, interface, port)
                }
                both => both,
            };
        };
        self.listener(address, true, interface, port)
    }

    fn listener(
        self,
        address: IpAddr,
        v6_only: bool,
        interface: Option<&str>,
        port: u16,
    ) -> io::Result<OwnedFd> {
        let bind = SocketAddr::new(address, port);
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(bind), kind, Some(Protocol::TCP))?;
        if bind.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        socket.set_reuse_address(true)?;
        if self.freebind {
            // Of IPv6 sockets as well (`inet_bind`), those of both families included.
            socket.set_freebind_v4(true)?;
        }
        if let Some(interface) = interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        socket.bind(&bind.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// Bound UDP sockets, one for each family that `address` stands for, on one port; 0 has it
    /// picked.
    fn udp(
        self,
        address: Option<IpAddr>,
        interface: Option<&str>,
        port: u16,
    ) -> io::Result<Vec<OwnedFd>> {
        let open = |address: IpAddr, port| {
            datagram::open_udp(&DatagramOptions {
                port: PortChoice::Required,
                device: interface,
                tell_local: true,
                freebind: self.freebind,
                coalesce: true,
                ..DatagramOptions::new(SocketAddr::new(address, port))
            })
        };
        if let Some(address) = address {
            return Ok(vec![open(address, port)?]);
        }
        let mut picks = 1..=PICKS;
        loop {
            let v4 = open(Ipv4Addr::UNSPECIFIED.into(), port)?;
            let common = datagram::bound_port(v4.as_fd())?;
            match open(Ipv6Addr::UNSPECIFIED.into(), common) {
                Ok(v6) => return Ok(vec![v4, v6]),
                Err(e) if lacks_v6(&e) => return Ok(vec![v4]),
                Err(e) if port == 0 && e.kind() == io::ErrorKind::AddrInUse => {
                    picks.next().ok_or(e)?;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// How often a port is picked that IPv4 has free and IPv6 does not.
const PICKS: usize = 16;

/// Whether the host has no IPv6 at all; where it is merely switched off, wildcards can be bound.
fn lacks_v6(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests;
