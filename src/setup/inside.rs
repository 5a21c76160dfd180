//! Sockets of the guest's network namespace, long after the set-up.
//!
//! A socket stays in the namespace in which it was made: whoever wants one there has to be there.
//! A process that has joined it stays there for it: it opens what it is asked for over a
//! `SOCK_SEQPACKET` pair, hands it back, and ends when the other end is closed.
//!
//! ```text
//!   us  ── Want ──▶  inside: socket, bind to `lo`, listen ── descriptors, errno ──▶ us
//! ```
//! Whoever asks waits for the answer, so each of our threads has a conversation of its own.
//!
//! It keeps one privilege, to listen at low ports of the guest, or two where the [`short_way`] is
//! wanted, whose sockets ask for rights over the namespace. It keeps nothing else of what the
//! set-up had: no other descriptors, no terminal, no way to gain more. It reads no byte that the
//! guest has written.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::daemon;
use super::link::Wanted;
use super::listen::BACKLOG;
use super::message::Channel;
#[cfg(doc)]
use super::short_way;
use super::short_way::ShortWay;
use crate::gate::forward::{Inner, Transport};
use crate::gate::ports::Family;
use crate::sys::datagram::{self, DatagramOptions, PortChoice};
use crate::sys::{inherit, process};

/// What is wanted of the guest's namespace.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Want {
    /// A socket that listens at this port of the loopback.
    Listener { transport: Transport, ipv6: bool, port: u16 },
    /// So many sockets that are bound to nothing.
    Sockets { transport: Transport, ipv6: bool, count: usize },
    /// So many sockets for the [`short_way`].
    Marked { ipv6: bool, count: usize },
    /// One more conversation.
    Conversation,
}

/// What comes back beside the descriptors: 0 or an errno.
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
pub(super) const PATIENCE: TimeVal = TimeVal::new(2, 0);

/// How long nobody has asked for the [`short_way`] when it is put to rest.
const QUIET: Duration = Duration::from_secs(10);

/// The interface of the guest's loopback.
const LOOPBACK: &str = "lo";

/// Conversations at a time: those of as many workers as there can be and of the control thread, and
/// to spare.
const CONVERSATIONS: usize = 72;

/// Sockets that are made for one request.
const AT_ONCE: usize = 64;

/// The process in the guest's namespace. It ends when this is dropped.
pub struct Inside(Channel);

impl Inside {
    /// Leaves a process behind in the caller's network namespace, if anything is `wanted` of it,
    /// and gives our end of the conversation with it, to be handed to whoever is going to ask.
    ///
    /// # Errors
    /// Those of socketpair(2) and fork(2).
    pub(super) fn leave_behind(wanted: Wanted) -> io::Result<Option<OwnedFd>> {
        if wanted == Wanted::Nothing {
            return Ok(None);
        }
        let (ours, theirs) = Channel::pair()?;
        match process::fork()? {
            ForkResult::Parent { .. } => Ok(Some(ours.into())),
            ForkResult::Child => {
                drop(ours);
                // What fails here is told by the end of the conversation.
                let _ = settle(theirs, wanted).map(|(channel, means)| serve(channel, means));
                process::exit_now(0)
            }
        }
    }

    /// Sends a process into the network namespace of `guest`, a child of ours with a user namespace
    /// of its own, if anything is `wanted` of it.
    ///
    /// # Errors
    /// Those of socketpair(2) and fork(2).
    pub(super) fn beside(guest: Pid, wanted: Wanted) -> io::Result<Option<Inside>> {
        if wanted == Wanted::Nothing {
            return Ok(None);
        }
        let (ours, theirs) = Channel::pair()?;
        match process::fork()? {
            ForkResult::Parent { .. } => Inside::new(ours.into()).map(Some),
            ForkResult::Child => {
                drop(ours);
                // What fails here is told by the end of the conversation.
                let _ = enter(guest)
                    .and_then(|()| settle(theirs, wanted))
                    .map(|(channel, means)| serve(channel, means));
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
        self.ask_one(Want::Listener { transport, ipv6: family == Family::V6, port })
    }

    /// Up to `count` sockets of the guest, and at least one, that are bound to nothing:
    /// non-blocking, close-on-exec.
    ///
    /// # Errors
    /// Those of socket(2) in the guest; `EPIPE` when the process is gone.
    pub fn sockets(
        &self,
        transport: Transport,
        family: Family,
        count: usize,
    ) -> io::Result<Vec<OwnedFd>> {
        self.ask(Want::Sockets { transport, ipv6: family == Family::V6, count })
    }

    /// Up to `count` TCP sockets of the guest, and at least one, that may be bound to any address
    /// and hear what is sent there from within the guest's namespace: non-blocking, close-on-exec.
    ///
    /// # Errors
    /// `Unsupported` where the namespace does not allow it, or it was not [`Wanted`];
    /// `PermissionDenied` while the guest's own rules for packets would notice; those of socket(2);
    /// `EPIPE` when the process is gone.
    pub fn marked_sockets(&self, family: Family, count: usize) -> io::Result<Vec<OwnedFd>> {
        self.ask(Want::Marked { ipv6: family == Family::V6, count })
    }

    /// The same for another thread.
    ///
    /// # Errors
    /// `EPIPE` when the process is gone.
    pub fn another(&self) -> io::Result<Inside> {
        Inside::new(self.ask_one(Want::Conversation)?)
    }

    fn ask_one(&self, want: Want) -> io::Result<OwnedFd> {
        let given = self.ask(want)?.into_iter().next();
        given.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
    }

    fn ask(&self, want: Want) -> io::Result<Vec<OwnedFd>> {
        self.0.send(&want, &[])?;
        match self.0.receive::<Given>()? {
            None => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Some((Given(0), descriptors)) => Ok(descriptors),
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

fn enter(guest: Pid) -> io::Result<()> {
    // Both before either is joined: from inside the one, the other may not be in sight.
    let user = File::open(format!("/proc/{guest}/ns/user"))?;
    let net = File::open(format!("/proc/{guest}/ns/net"))?;
    match setns(user, CloneFlags::CLONE_NEWUSER) {
        // It is ours already.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(e) => return Err(e.into()),
    }
    setns(net, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// The means of the [`short_way`], of which the guest has nothing before the first client that is
/// to go it.
enum Means {
    /// There are none.
    None,
    /// They may be wanted.
    Allowed,
    /// They are set up, and whether somebody has asked for them lately.
    Ready { way: ShortWay, awake: bool },
}

impl Means {
    fn sockets(&mut self, ipv6: bool, count: usize) -> io::Result<Vec<OwnedFd>> {
        if let Means::Allowed = self {
            *self = match ShortWay::open() {
                Ok(way) => Means::Ready { way, awake: true },
                Err(_) => {
                    // Nothing else needs it. If it stays, no harm is done.
                    for set in [CapSet::Effective, CapSet::Permitted] {
                        let _ = caps::drop(None, set, Capability::CAP_NET_ADMIN);
                    }
                    Means::None
                }
            };
        }
        match self {
            Means::Ready { way, awake } => {
                *awake = true;
                way.sockets(ipv6, count)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    /// Nobody has asked for anything for a while.
    fn rest(&mut self) {
        if let Means::Ready { way, awake } = self {
            way.rest();
            *awake = false;
        }
    }
}

/// Gives up all that is not needed for opening sockets. What is `wanted` and cannot be had is
/// missed when it is asked for.
fn settle(channel: Channel, wanted: Wanted) -> io::Result<(Channel, Means)> {
    // Its own session: keys of the caller's terminal are not for it.
    let _ = nix::unistd::setsid();
    daemon::silence()?;
    let channel = Channel::from(inherit::keep_only(channel.into())?);
    let fail = |e: caps::errors::CapsError| io::Error::other(e.to_string());
    let short_way = wanted == Wanted::ShortWay;
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    let had = caps::read(None, CapSet::Permitted).map_err(fail)?;
    let kept: CapsHashSet = had.into_iter().filter(|cap| is_kept(*cap, short_way)).collect();
    caps::clear(None, CapSet::Ambient).map_err(fail)?;
    caps::clear(None, CapSet::Inheritable).map_err(fail)?;
    caps::set(None, CapSet::Effective, &kept).map_err(fail)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(fail)?;
    Ok((channel, if short_way { Means::Allowed } else { Means::None }))
}

/// Whether a capability is needed from here on, with the short way or without.
fn is_kept(capability: Capability, short_way: bool) -> bool {
    match capability {
        Capability::CAP_NET_BIND_SERVICE => true,
        Capability::CAP_NET_ADMIN => short_way,
        _ => false,
    }
}

/// Opens what is asked for until nobody asks any more.
fn serve(first: Channel, mut means: Means) {
    let mut conversations = vec![first];
    while !conversations.is_empty() {
        let mut ready: Vec<PollFd<'_>> = conversations
            .iter()
            .map(|conversation| PollFd::new(conversation.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = match means {
            Means::Ready { awake: true, .. } => {
                PollTimeout::try_from(QUIET).unwrap_or(PollTimeout::MAX)
            }
            _ => PollTimeout::NONE,
        };
        match poll(&mut ready, timeout) {
            Ok(0) => {
                means.rest();
                continue;
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        let spoke: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let mut begun = Vec::new();
        let mut spoke = spoke.into_iter();
        let room = CONVERSATIONS.saturating_sub(conversations.len());
        conversations.retain(|conversation| {
            !spoke.next().unwrap_or(false) || answer(conversation, &mut means, room, &mut begun)
        });
        conversations.append(&mut begun);
    }
}

/// Does what is asked for in a conversation; whether it goes on. What is begun goes to `begun`,
/// which is to have `room` at most.
fn answer(
    conversation: &Channel,
    means: &mut Means,
    room: usize,
    begun: &mut Vec<Channel>,
) -> bool {
    let Ok(Some((want, _))) = conversation.receive::<Want>() else { return false };
    let given = match want {
        Want::Conversation if begun.len() >= room => {
            Err(io::Error::from_raw_os_error(libc::EMFILE))
        }
        Want::Conversation => Channel::pair().map(|(ours, theirs)| {
            begun.push(ours);
            vec![OwnedFd::from(theirs)]
        }),
        Want::Marked { ipv6, count } => means.sockets(ipv6, count.min(AT_ONCE)),
        want => open(want),
    };
    let sent = match given {
        Ok(sockets) => {
            let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            conversation.send(&Given(0), &sockets)
        }
        Err(e) => conversation.send(&Given(e.raw_os_error().unwrap_or(libc::EIO)), &[]),
    };
    sent.is_ok()
}

fn open(want: Want) -> io::Result<Vec<OwnedFd>> {
    match want {
        Want::Listener { transport, ipv6, port } => {
            let address: IpAddr =
                if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            listen(transport, SocketAddr::new(address, port)).map(|socket| vec![socket])
        }
        Want::Sockets { transport, ipv6, count } => {
            let mut sockets = Vec::new();
            for _ in 0..count.clamp(1, AT_ONCE) {
                match unbound(transport, ipv6) {
                    Ok(socket) => sockets.push(socket),
                    Err(e) if sockets.is_empty() => return Err(e),
                    Err(_) => break,
                }
            }
            Ok(sockets)
        }
        Want::Marked { .. } | Want::Conversation => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

/// A socket that listens at `at`, on the loopback interface alone.
fn listen(transport: Transport, at: SocketAddr) -> io::Result<OwnedFd> {
    if transport == Transport::Udp {
        return datagram::open_udp(&DatagramOptions {
            port: PortChoice::Required,
            device: Some(LOOPBACK),
            coalesce: true,
            ..DatagramOptions::new(at)
        });
    }
    let socket = Socket::from(unbound(transport, at.is_ipv6())?);
    // Connections of an earlier instance may linger.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(LOOPBACK.as_bytes()))?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unbound(transport: Transport, ipv6: bool) -> io::Result<OwnedFd> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    Ok(Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(want: Want) -> io::Result<Socket> {
        Ok(Socket::from(open(want)?.remove(0)))
    }

    fn port_of(socket: &Socket) -> SocketAddr {
        socket.local_addr().unwrap().as_socket().unwrap()
    }

    #[test]
    fn sockets_listen_at_loopback_and_a_taken_port_is_told() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let listener = |port| Want::Listener { transport, ipv6: false, port };
            let socket = first(listener(0)).unwrap();
            let at = port_of(&socket);
            assert!(at.ip().is_loopback());
            let again = first(listener(at.port())).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn sockets_come_by_the_dozen_but_not_without_end() {
        let want = |count| Want::Sockets { transport: Transport::Udp, ipv6: true, count };
        let socket = first(want(0)).unwrap();
        assert_eq!(port_of(&socket).port(), 0);
        assert_eq!(open(want(12)).unwrap().len(), 12);
        assert_eq!(open(want(usize::MAX)).unwrap().len(), AT_ONCE);
    }

    #[test]
    fn conversations_are_counted_and_end_with_who_asks() {
        let (ours, theirs) = Channel::pair().unwrap();
        let server = std::thread::spawn(move || serve(theirs, Means::None));
        let first = Inside::new(ours.into()).unwrap();
        let others: Vec<_> = (1..CONVERSATIONS).map(|_| first.another().unwrap()).collect();
        assert_eq!(first.another().map(|_| ()).unwrap_err().raw_os_error(), Some(libc::EMFILE));
        drop(first);
        assert_eq!(others[3].sockets(Transport::Tcp, Family::V4, 2).unwrap().len(), 2);
        drop(others);
        server.join().unwrap();
    }
}
