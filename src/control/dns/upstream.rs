//! Exchanges with one resolver, each through a socket of its own that is bound as flows are.
//!
//! Every socket is connected: the kernel passes over what comes from elsewhere, and reports a
//! resolver's ICMP port unreachable at once instead of leaving it to the time-out. The port is the
//! kernel's random choice for a fresh socket, so a forger must guess port and id (RFC 5452 §9.2).
//!
//! Hostile input: answers. What does not fit the query is passed over until the caller's patience
//! ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use super::message;

/// Room for an answer over UDP.
const MAX_DATAGRAM: usize = 65_535;

/// How sockets to resolvers are bound, unless the resolver is on this machine's loopback: from there
/// an outside address gets no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Source address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Source address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Interface (SO_BINDTODEVICE).
    pub interface: Option<String>,
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
        if let Some(interface) = &self.interface {
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

/// Asks `server` over UDP. Errors are those of sockets, a refusing resolver's among them.
pub(super) async fn ask_udp(
    source: &Source,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = source.open(server, Type::DGRAM)?;
    socket.connect(&server.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if message::answers(&buffer[..len], query) {
            buffer.truncate(len);
            buffer.shrink_to_fit();
            return Ok(buffer);
        }
    }
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
    loop {
        let len = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; len];
        stream.read_exact(&mut answer).await?;
        if message::answers(&answer, query) {
            return Ok(answer);
        }
    }
}

/// A message behind its length (RFC 1035 §4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(&message[..usize::from(len)]);
    bytes
}
