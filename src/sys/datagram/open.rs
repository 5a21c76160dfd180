//! Opening datagram sockets, with the options that all of them need.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Family, Marks};

/// What to do if the port asked for cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// Fail: it is the address that the outside knows.
    Required,
    /// Let the kernel choose another (RFC 4787 REQ-3).
    Preferred,
}

/// How a datagram socket is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramOptions<'a> {
    /// Address and port to bind to; unspecified and 0 leave the choice to the kernel. The address
    /// gives the family. On a ping socket the port is the identifier.
    pub bind: SocketAddr,
    /// What to do if the port is taken or not permitted.
    pub port: PortChoice,
    /// Interface that datagrams must leave and arrive by (`SO_BINDTODEVICE`).
    pub device: Option<&'a str>,
    /// Marks of datagrams that do not ask for others.
    pub marks: Marks,
    /// Let several datagrams of one peer arrive as one (`UDP_GRO`), where the kernel does that; UDP
    /// only.
    pub coalesce: bool,
    /// Tell of each datagram which of this host's addresses it was sent to (`IP_PKTINFO`,
    /// `IPV6_RECVPKTINFO`): a socket bound to a wildcard address has to answer from it.
    pub tell_local: bool,
    /// The address need not be one that the host has (`IP_FREEBIND`).
    pub freebind: bool,
}

impl DatagramOptions<'_> {
    /// A plain socket that would like to have the port of `bind`.
    pub fn new(bind: SocketAddr) -> Self {
        DatagramOptions {
            bind,
            port: PortChoice::Preferred,
            device: None,
            marks: Marks::DEFAULT,
            coalesce: false,
            tell_local: false,
            freebind: false,
        }
    }
}

/// Receive buffer asked for, in bytes. The kernel doubles it for its bookkeeping and grants up to
/// `net.core.rmem_max`: at the usual 208 KiB about six datagrams of 64 KiB. Where the host's
/// administrator allows more, a QUIC connection's window (some 1.25 MB) fits; at half of that its
/// sender keeps finding the end of the queue by losses.
const RECEIVE_BUFFER_LEN: usize = 2 << 20;

/// Send buffer asked for, in bytes, within `net.core.wmem_max`.
const SEND_BUFFER_LEN: usize = 512 << 10;

/// Opens a UDP socket: nonblocking, with the error queue on, fragmentation allowed.
///
/// # Errors
/// Those of `socket(2)`, `setsockopt(2)` and `bind(2)`: `EMFILE` when descriptors run out,
/// `EADDRINUSE` or `EACCES` for a required port, `EADDRNOTAVAIL` for an address that is not this
/// host's, `ENODEV` for an unknown device, `EAFNOSUPPORT` where IPv6 is off.
pub fn open_udp(options: &DatagramOptions<'_>) -> io::Result<OwnedFd> {
    let socket = open(options, Protocol::UDP)?;
    prepare_udp(socket.as_fd(), options)?;
    bind(&socket, options)?;
    Ok(socket.into())
}

/// Makes of a UDP socket that somebody else has opened and bound what [`open_udp`] opens, as far
/// as it can be changed: `bind` gives the family, `device` and `port` are not looked at.
///
/// # Errors
/// Those of `setsockopt(2)` and `fcntl(2)`; `EINVAL` for a socket of both families, which tells
/// marks and addresses by the rules of neither.
pub fn adopt_udp(fd: BorrowedFd<'_>, options: &DatagramOptions<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    if options.bind.is_ipv6() && !socket.only_v6()? {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    socket.set_nonblocking(true)?;
    prepare(fd, options)?;
    prepare_udp(fd, options)
}

fn prepare_udp(fd: BorrowedFd<'_>, options: &DatagramOptions<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    // What the kernel does not grant is not missed until datagrams come in bursts.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_LEN);
    let _ = socket.set_send_buffer_size(SEND_BUFFER_LEN);
    if options.coalesce {
        // Kernels before 5.0 do not know it; there each datagram arrives alone.
        let _ = set(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    if options.tell_local {
        let (level, option) = match Family::from(options.bind) {
            Family::V4 => (libc::SOL_IP, libc::IP_PKTINFO),
            Family::V6 => (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
        };
        set(fd, level, option, 1)?;
    }
    Ok(())
}

/// Opens a UDP socket that is bound to nothing yet.
///
/// # Errors
/// Those of socket(2).
pub fn unbound_udp(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let kind = Type::DGRAM.nonblocking().cloexec();
    Ok(Socket::new(domain, kind, Some(Protocol::UDP))?.into())
}

/// Has a UDP socket speak to `target` alone: from `port` if that is free, at an address that the
/// kernel chooses. Errors of what was sent are told by the next call on the socket, once.
///
/// # Errors
/// Those of bind(2) and connect(2).
pub fn connect_udp(fd: BorrowedFd<'_>, port: u16, target: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    // What the kernel does not grant is not missed until datagrams come in bursts.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_LEN);
    let _ = socket.set_send_buffer_size(SEND_BUFFER_LEN);
    let own: IpAddr = match target {
        // Until it is connected, nobody from elsewhere is to be heard.
        _ if target.ip().is_loopback() => target.ip(),
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // connect(2) finds a port where this one is taken.
    let _ = socket.bind(&SocketAddr::new(own, port).into());
    socket.connect(&target.into())
}

/// The address from which the kernel would send to `address`, which is that address itself if it
/// is one of the network namespace's own, as far as it has no more of the same network; `None` if
/// there is no way there. `fd` is a UDP socket that is not bound and used for nothing else.
///
/// # Errors
/// Those of connect(2) for a socket that cannot be asked.
pub fn source_towards(fd: BorrowedFd<'_>, address: IpAddr) -> io::Result<Option<IpAddr>> {
    let nobody =
        libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // The size of a C struct.
    let len = size_of_val(&nobody) as libc::socklen_t;
    // Undoes what the last question has left, the source address included (connect(2)).
    // SAFETY: the pointer is to a whole `sockaddr` of `len` bytes that outlives the call.
    if unsafe { libc::connect(fd.as_raw_fd(), &raw const nobody, len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = SockRef::from(&fd);
    // Any port but 0 does: nothing is sent.
    if socket.connect(&SocketAddr::new(address, 9).into()).is_err() {
        return Ok(None);
    }
    Ok(socket.local_addr()?.as_socket().map(|source| source.ip()))
}

/// Opens a ping socket, which sends echo requests and receives the replies to them.
///
/// A message starts with its ICMP header. The kernel writes identifier (the socket's port) and
/// checksum of a request.
///
/// # Errors
/// As [`open_udp`]; `EACCES` where `net.ipv4.ping_group_range` does not include the process's
/// groups.
pub fn open_ping(options: &DatagramOptions<'_>) -> io::Result<OwnedFd> {
    let protocol = match Family::from(options.bind) {
        Family::V4 => Protocol::ICMPV4,
        Family::V6 => Protocol::ICMPV6,
    };
    let socket = open(options, protocol)?;
    bind(&socket, options)?;
    Ok(socket.into())
}

fn open(options: &DatagramOptions<'_>, protocol: Protocol) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(options.bind), kind, Some(protocol))?;
    if options.bind.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    prepare(socket.as_fd(), options)?;
    if options.freebind {
        socket.set_freebind_v4(true)?;
    }
    if let Some(device) = options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    Ok(socket)
}

/// The options that every datagram socket has, bound or not.
fn prepare(fd: BorrowedFd<'_>, options: &DatagramOptions<'_>) -> io::Result<()> {
    let Marks { tos, hop_limit } = options.marks;
    let (level, switches, tos_option, hops_option) = match Family::from(options.bind) {
        Family::V4 => (libc::SOL_IP, &V4_SWITCHES[..], libc::IP_TOS, libc::IP_TTL),
        Family::V6 => {
            (libc::SOL_IPV6, &V6_SWITCHES[..], libc::IPV6_TCLASS, libc::IPV6_UNICAST_HOPS)
        }
    };
    for &(option, value) in switches {
        set(fd, level, option, value)?;
    }
    set(fd, level, hops_option, hop_limit.into())?;
    if tos != 0 {
        set(fd, level, tos_option, tos.into())?;
    }
    set_dont_fragment(fd, options.bind.into(), false)
}

/// Without `IP_MULTICAST_ALL` off, a wildcard socket on port 5353, say, would receive what other
/// programs on this host have joined.
const V4_SWITCHES: [(c_int, c_int); 4] = [
    (libc::IP_RECVERR, 1),
    (libc::IP_RECVTTL, 1),
    (libc::IP_RECVTOS, 1),
    (libc::IP_MULTICAST_ALL, 0),
];

const V6_SWITCHES: [(c_int, c_int); 4] = [
    (libc::IPV6_RECVERR, 1),
    (libc::IPV6_RECVHOPLIMIT, 1),
    (libc::IPV6_RECVTCLASS, 1),
    (libc::IPV6_MULTICAST_ALL, 0),
];

fn bind(socket: &Socket, options: &DatagramOptions<'_>) -> io::Result<()> {
    let result = socket.bind(&options.bind.into());
    let replaceable = options.port == PortChoice::Preferred && options.bind.port() != 0;
    match result {
        // EACCES: a port below net.ipv4.ip_unprivileged_port_start.
        Err(error)
            if replaceable
                && matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EACCES)) =>
        {
            let mut any = options.bind;
            any.set_port(0);
            socket.bind(&any.into())
        }
        result => result,
    }
}

/// Whether datagrams that are too large for their path come back as errors (true) or are
/// fragmented by this kernel (false, the state of a new socket).
pub fn set_dont_fragment(fd: BorrowedFd<'_>, family: Family, on: bool) -> io::Result<()> {
    match (family, on) {
        (Family::V4, true) => set(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (Family::V4, false) => set(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (Family::V6, true) => {
            set(fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            set(fd, libc::SOL_IPV6, libc::IPV6_DONTFRAG, 1)
        }
        (Family::V6, false) => {
            set(fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
            set(fd, libc::SOL_IPV6, libc::IPV6_DONTFRAG, 0)
        }
    }
}

/// Whether ICMPv6 errors are kept in the error queue of `fd`, an IPv6 socket of any kind. On
/// datagram sockets that is so from the start.
///
/// On a connected TCP socket it has a price: what otherwise only explains a later time-out then
/// ends the connection (tcp(7), `IP_RECVERR`). IPv4 needs nothing of the kind: the kernel keeps
/// the error that ends a `connect` for whoever asks.
pub fn keep_errors_v6(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set(fd, libc::SOL_IPV6, libc::IPV6_RECVERR, on.into())
}

/// The port that `fd` is bound to; the identifier of a ping socket.
pub fn bound_port(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let address = SockRef::from(&fd).local_addr()?;
    Ok(address.as_socket().map_or(0, |address| address.port()))
}

fn set(fd: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from `value`, which is an int and outlives the call.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
