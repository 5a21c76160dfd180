//! Sockets of the guest's network namespace, long after the set-up.
//!
//! A socket stays in the namespace in which it was made: whoever wants one there has to be there.
//! A process forked from the set-up's child stays behind for it: it opens what it is asked for over
//! a `SOCK_SEQPACKET` pair, hands it back, and ends when the other end is closed.
//!
//! ```text
//!   us  ── Want ──▶  inside: socket, bind to `lo`, listen ── descriptor, errno ──▶ us
//! ```
//! It keeps one privilege, to listen at low ports of the guest, and nothing else of what the
//! set-up had: no other descriptors, no terminal, no way to gain more. It reads no byte that the
//! guest has written.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::daemon;
use super::listen::BACKLOG;
use super::message::Channel;
use crate::gate::forward::{Inner, Transport};
use crate::gate::ports::Family;
use crate::sys::{inherit, process};

/// A socket of the guest's loopback.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Want {
    transport: Transport,
    ipv6: bool,
    /// The port to listen at; `None` for a socket that is to be connected.
    port: Option<u16>,
}

/// What comes back beside the descriptor: 0 or an errno.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Given(i32);

/// An open port of the guest's loopback, and where on the host's it leads.
#[derive(Debug)]
pub struct OpenInner {
    /// What it carries.
    pub transport: Transport,
    /// The family of its address.
    pub family: Family,
    /// The port of the guest.
    pub port: u16,
    /// The port of the host.
    pub host_port: u16,
    /// The socket; one of TCP listens already.
    pub socket: OwnedFd,
}

/// A port of the guest's loopback that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen at port {port}/{transport} of the guest's loopback")]
pub struct InnerError {
    /// What it was to carry.
    pub transport: Transport,
    /// The port.
    pub port: u16,
    /// The guest's kernel's answer.
    #[source]
    pub source: io::Error,
}

/// How long a socket may take. It takes some ten microseconds.
const PATIENCE: TimeVal = TimeVal::new(2, 0);

/// The interface of the guest's loopback.
const LOOPBACK: &[u8] = b"lo";

/// The process in the guest's namespace. It ends when this is dropped.
pub struct Inside(Channel);

impl Inside {
    /// Leaves a process behind in the caller's network namespace, and gives our end of the
    /// conversation with it, to be handed to whoever is going to ask.
    ///
    /// # Errors
    /// Those of socketpair(2) and fork(2).
    pub(super) fn leave_behind() -> io::Result<OwnedFd> {
        let (ours, theirs) = Channel::pair()?;
        match process::fork()? {
            ForkResult::Parent { .. } => Ok(ours.into()),
            ForkResult::Child => {
                drop(ours);
                // What fails here is told by the end of the conversation.
                let _ = settle(theirs).map(|channel| serve(&channel));
                process::exit_now(0)
            }
        }
    }

    /// Our side, from what [`Inside::leave_behind`] gave.
    pub(super) fn new(ours: OwnedFd) -> io::Result<Inside> {
        setsockopt(&ours, ReceiveTimeout, &PATIENCE)?;
        Ok(Inside(Channel::from(ours)))
    }

    /// Opens what `rules` ask for, each as [`Inside::open`] does.
    ///
    /// # Errors
    /// The first port that has to be there and cannot be opened.
    pub fn open_all(&self, rules: &[Inner]) -> Result<Vec<(Inner, Vec<OpenInner>)>, InnerError> {
        rules.iter().map(|rule| Ok((rule.clone(), self.open(rule)?))).collect()
    }

    /// Opens what `rule` asks for, in the families that the guest has; nothing yet for one that
    /// follows the host.
    ///
    /// # Errors
    /// A port that has to be there and cannot be opened.
    pub fn open(&self, rule: &Inner) -> Result<Vec<OpenInner>, InnerError> {
        let mut opened = Vec::new();
        for (port, host_port) in rule.pairs().filter(|_| !rule.scan) {
            let before = opened.len();
            let transport = rule.transport;
            for family in [Family::V4, Family::V6] {
                match self.listen(transport, family, port) {
                    Ok(socket) => {
                        opened.push(OpenInner { transport, family, port, host_port, socket });
                    }
                    Err(e) if lacks_family(&e) => {}
                    Err(e) if rule.weak && !is_fatal(&e) => {}
                    Err(source) => return Err(InnerError { transport, port, source }),
                }
            }
            if opened.len() == before && !rule.weak {
                let source = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
                return Err(InnerError { transport, port, source });
            }
        }
        Ok(opened)
    }

    /// A socket that listens at `port` of the guest's loopback, TCP with its queue or UDP:
    /// non-blocking, close-on-exec.
    ///
    /// # Errors
    /// Those of bind(2) in the guest; `EPIPE` when the process is gone.
    pub fn listen(&self, transport: Transport, family: Family, port: u16) -> io::Result<OwnedFd> {
        self.ask(Want { transport, ipv6: family == Family::V6, port: Some(port) })
    }

    /// A socket of the guest that is bound to nothing: non-blocking, close-on-exec.
    ///
    /// # Errors
    /// As [`Inside::listen`].
    pub fn socket(&self, transport: Transport, family: Family) -> io::Result<OwnedFd> {
        self.ask(Want { transport, ipv6: family == Family::V6, port: None })
    }

    fn ask(&self, want: Want) -> io::Result<OwnedFd> {
        self.0.send(&want, &[])?;
        match self.0.receive::<Given>()? {
            None => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Some((Given(0), descriptors)) => {
                let socket = descriptors.into_iter().next();
                socket.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
            }
            Some((Given(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Whether the guest does without the family.
fn lacks_family(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Whether it is not the port's fault.
fn is_fatal(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EPIPE | libc::EMFILE | libc::ENFILE))
}

/// Gives up all that is not needed for opening sockets.
fn settle(channel: Channel) -> io::Result<Channel> {
    // Its own session: keys of the caller's terminal are not for it.
    let _ = nix::unistd::setsid();
    daemon::silence()?;
    let channel = Channel::from(inherit::keep_only(channel.into())?);
    let fail = |e: caps::errors::CapsError| io::Error::other(e.to_string());
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    let had = caps::read(None, CapSet::Permitted).map_err(fail)?;
    let kept: CapsHashSet =
        had.into_iter().filter(|cap| *cap == Capability::CAP_NET_BIND_SERVICE).collect();
    caps::clear(None, CapSet::Ambient).map_err(fail)?;
    caps::clear(None, CapSet::Inheritable).map_err(fail)?;
    caps::set(None, CapSet::Effective, &kept).map_err(fail)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(fail)?;
    Ok(channel)
}

/// Opens what is asked for until nobody asks any more.
fn serve(channel: &Channel) {
    while let Ok(Some((want, _))) = channel.receive::<Want>() {
        let sent = match open(want) {
            Ok(socket) => channel.send(&Given(0), &[socket.as_fd()]),
            Err(e) => channel.send(&Given(e.raw_os_error().unwrap_or(libc::EIO)), &[]),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn open(want: Want) -> io::Result<Socket> {
    let address: IpAddr =
        if want.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let (kind, protocol) = match want.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let at = SocketAddr::new(address, want.port.unwrap_or(0));
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    if want.port.is_some() {
        if want.transport == Transport::Tcp {
            // Connections of an earlier instance may linger.
            socket.set_reuse_address(true)?;
        }
        socket.bind_device(Some(LOOPBACK))?;
        socket.bind(&at.into())?;
        if want.transport == Transport::Tcp {
            socket.listen(BACKLOG)?;
        }
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_listen_at_loopback_and_a_taken_port_is_told() {
        let want = |port| Want { transport: Transport::Tcp, ipv6: false, port: Some(port) };
        let first = open(want(0)).unwrap();
        let at = first.local_addr().unwrap().as_socket().unwrap();
        assert!(at.ip().is_loopback());
        let again = open(want(at.port())).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        let free = open(Want { transport: Transport::Udp, ipv6: true, port: None }).unwrap();
        assert_eq!(free.local_addr().unwrap().as_socket().map(|at| at.port()), Some(0));
    }
}
