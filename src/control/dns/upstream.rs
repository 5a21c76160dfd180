//! Exchanges with one resolver, each through a socket of its own that is bound as flows are.
//!
//! Every socket is connected: the kernel passes over what comes from elsewhere, and reports a
//! resolver's ICMP port unreachable at once instead of leaving it to the time-out. The port is the
//! kernel's random choice for a fresh socket, and the id comes from the kernel's generator, so a
//! forger must guess both (RFC 5452 §9.2).
//!
//! Hostile input: answers. Datagrams that do not fit the query are passed over, up to a limit.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, UdpSocket};

use super::message;

/// Room for an answer over UDP (RFC 768: its length field).
pub(super) const MAX_DATAGRAM: usize = 65_535;

/// Messages that may come in an answer's place before the exchange is given up: somebody is
/// guessing, or the resolver is not in its right mind.
const MAX_STRAYS: u32 = 64;

/// How sockets to resolvers are bound, unless the resolver is on this machine's loopback: from
/// there an outside address gets no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Source address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Source address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Interface for IPv4 (SO_BINDTODEVICE).
    pub interface4: Option<String>,
    /// Interface for IPv6.
    pub interface6: Option<String>,
}

impl Source {
    /// A non-blocking socket that is to be connected to `server`.
    fn open(&self, server: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(server), kind.nonblocking().cloexec(), None)?;
        let target = server.ip().to_canonical();
        // The unspecified address means this machine to connect(2).
        if target.is_loopback() || target.is_unspecified() {
            return Ok(socket);
        }
        let interface = match target {
            IpAddr::V4(_) => &self.interface4,
            IpAddr::V6(_) => &self.interface6,
        };
        if let Some(interface) = interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        let address = match server {
            SocketAddr::V4(_) => self.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.v6.map(IpAddr::V6),
        };
        if let Some(address) = address {
            if kind == Type::STREAM {
                // A port in TIME-WAIT towards another resolver is as good as a free one.
                socket.set_reuse_address(true)?;
            }
            socket.bind(&SocketAddr::new(address, 0).into())?;
        }
        Ok(socket)
    }
}

/// A message id that nobody can guess.
pub(super) fn fresh_id() -> io::Result<u16> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u16::from_ne_bytes(id))
}

/// Asks `server` over UDP. `room` is for datagrams on their way to be judged: all exchanges share
/// it, so that one that waits holds no more than its socket. Errors are those of sockets, the
/// report that nobody listens there among them.
pub(super) async fn ask_udp(
    source: &Source,
    room: &RefCell<[u8; MAX_DATAGRAM]>,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = source.open(server, Type::DGRAM)?;
    socket.connect(&server.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(query).await?;
    let mut strays = 0;
    while strays < MAX_STRAYS {
        // The report that nobody listens makes a socket neither readable nor closed to tokio.
        socket.ready(Interest::READABLE | Interest::ERROR).await?;
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        let report = || Err(socket.take_error()?.unwrap_or_else(would_block));
        let mut room = room.borrow_mut();
        // Each of these forgets its readiness if there is nothing after all.
        let received = match socket.try_io(Interest::ERROR, report) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.try_recv(&mut room[..])
            }
            reported => reported,
        };
        match received {
            Ok(len) if message::answers(&room[..len], query) => return Ok(room[..len].to_vec()),
            Ok(_) => strays += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many messages that do not answer the query"))
}

/// Asks `server` over TCP.
pub(super) async fn ask_tcp(
    source: &Source,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = source.open(server, Type::STREAM)?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&framed(query)).await?;
    let len = usize::from(stream.read_u16().await?);
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    // Nobody else can put in a word here, so there is nothing to wait for behind a wrong one.
    if !message::answers(&answer, query) {
        return Err(io::Error::other("the message does not answer the query"));
    }
    Ok(answer)
}

/// A message behind its length (RFC 1035 §4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(&message[..usize::from(len)]);
    bytes
}
