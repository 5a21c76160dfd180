//! The two edges of the engine: frames on one side, host sockets on the other.
//!
//! Each has a real implementation ([`super::tap`] or [`super::stream_link`], [`super::host`]) and
//! the simulator's.
//! Errors are `io::Error` with the kernel's errno; `WouldBlock` means "wait for readiness".

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::base::Instant;
use crate::sys::datagram::{Batch, Marks, Outgoing, SocketError};

use super::datagram_flow::MappingKey;
use super::token::Token;

/// The guest link: whole frames, each behind its virtio-net header if the link has them.
pub trait FramePort {
    /// Has the guest's kernel spread frames over this queue too, or no more. Only links with several
    /// queues are asked.
    ///
    /// # Errors
    /// As [`crate::sys::tun::set_queue`].
    fn set_attached(&mut self, _attached: bool) -> io::Result<()> {
        Ok(())
    }

    /// Reads one frame into `buffer`; its length in bytes, 0 if the guest is gone and another one
    /// may come. The error `UnexpectedEof` means that none will.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one frame that stands in `parts`, in order.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// The link's descriptor has become ready.
    fn on_readiness(&mut self) {}

    /// Whether the link has read ahead, so that [`FramePort::read`] is worth calling although nothing
    /// becomes ready.
    fn has_frame(&self) -> bool {
        false
    }

    /// Whether the link keeps frames that its other end has not taken. Nothing new towards the guest
    /// is begun then; the link becomes ready when that has changed.
    fn is_congested(&self) -> bool {
        false
    }
}

/// What became possible, or happened, on a descriptor. Edge-triggered: each fact is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes, EOF or an error can be read.
    pub readable: bool,
    /// Bytes can be written; for a socket that connects: it is connected.
    pub writable: bool,
    /// The peer has closed its direction: EOF stands behind the bytes that are left.
    pub closed: bool,
    /// The socket failed, or both directions are closed.
    pub failed: bool,
    /// Urgent data is among the bytes: a read stops in front of it (tcp(7)), so a short one does not
    /// tell that the socket is empty.
    pub urgent: bool,
}

/// One event of [`SocketPort::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub token: Token,
    /// What happened.
    pub readiness: Readiness,
}

/// A client that a listening socket gave.
pub struct Accepted<Stream> {
    /// The connection to it.
    pub stream: Stream,
    /// Its address, IPv4 as IPv4 on a socket for both families; `None` behind a Unix socket.
    pub client: Option<SocketAddr>,
}

/// A stream on its way to its target.
pub struct Reached<Stream> {
    /// The stream.
    pub stream: Stream,
    /// The target has answered.
    pub connected: bool,
}

/// What the host's kernel knows of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Our end; `None` of a Unix socket.
    pub local: Option<SocketAddr>,
    /// The far end; `None` of a Unix socket, or before it is connected.
    pub peer: Option<SocketAddr>,
    /// Smoothed round-trip time in microseconds (`tcpi_rtt`).
    pub rtt_us: Option<u32>,
    /// Segments sent again (`tcpi_total_retrans`).
    pub retransmits: Option<u32>,
}

/// Host sockets. A handle closes its socket when dropped. What joins sockets of two namespaces is
/// `Unsupported` where there is but one.
pub trait SocketPort {
    /// A connected or connecting stream socket.
    type Stream;
    /// A listening stream socket.
    type Listener;
    /// A UDP or ping socket; see [`crate::sys::datagram`] for how they behave.
    type Datagram;
    /// Holds bytes on their way from one stream to another.
    type Pipe;

    /// Begins to connect to `target`; readiness comes under `token`. An error here is one that
    /// the kernel gave at once.
    fn connect(
        &mut self,
        token: Token,
        target: SocketAddr,
        marks: Marks,
    ) -> io::Result<Self::Stream>;

    /// As [`SocketPort::connect`], to a Unix stream socket.
    fn connect_unix(&mut self, token: Token, path: &Path) -> io::Result<Self::Stream>;

    /// A stream to the DNS service, speaking RFC 7766. Readiness comes under `token`.
    fn connect_dns(&mut self, token: Token) -> io::Result<Self::Stream>;

    /// Gives the DNS service a query under a number of the caller's; whether it takes it.
    fn ask_dns(&mut self, token: u64, query: &[u8]) -> bool;

    /// Sends what the socket takes of `parts`, in order; bytes taken.
    fn send(&mut self, stream: &Self::Stream, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Reads into `parts`, in order, urgent data in line; bytes read, 0 at EOF.
    fn recv(&mut self, stream: &Self::Stream, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Whether there is nothing left to read but EOF. As with [`SocketPort::recv`], an error of
    /// the connection is told once, here or there.
    fn at_end(&mut self, stream: &Self::Stream) -> io::Result<bool>;

    /// Tells nothing of `stream` any more; another worker's edge will.
    fn forget(&mut self, stream: &Self::Stream);

    /// Tells of `stream`, which another worker's edge has forgotten, under `token`, beginning with
    /// what it is ready for now.
    fn adopt(&mut self, token: Token, stream: &Self::Stream) -> io::Result<()>;

    /// The same connection once more, for a worker that sends for another. It ends when both are
    /// closed.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    fn share(&mut self, stream: &Self::Stream) -> io::Result<Self::Stream>;

    /// The error that is pending on the socket, if there is one.
    fn take_error(&mut self, stream: &Self::Stream) -> Option<io::Error>;

    /// What the network said about the SYN of a stream that could not connect, without the
    /// quotation; `None` if nobody said anything.
    fn connect_error(&mut self, stream: &Self::Stream) -> Option<SocketError<'static>>;

    /// An IPv6 stream is connected: nobody will ask for its [`SocketPort::connect_error`].
    fn connected(&mut self, stream: &Self::Stream);

    /// Half-close: no more bytes will be sent.
    fn shutdown_write(&mut self, stream: &Self::Stream);

    /// Closes with a reset, discarding what is unsent.
    fn reset(&mut self, stream: Self::Stream);

    /// Sends small pieces at once from now on (TCP_NODELAY).
    fn no_delay(&mut self, stream: &Self::Stream);

    /// Has the kernel probe the connection from now on.
    fn keep_alive(&mut self, stream: &Self::Stream);

    /// Tells under `token` when there are clients to accept.
    fn watch_listener(&mut self, token: Token, listener: &Self::Listener) -> io::Result<()>;

    /// The next client; readiness of its stream comes under `token`.
    fn accept(
        &mut self,
        listener: &Self::Listener,
        token: Token,
    ) -> io::Result<Accepted<Self::Stream>>;

    /// The address of ours that the peer of a stream has connected to.
    fn addressed(&mut self, stream: &Self::Stream) -> Option<SocketAddr> {
        self.stream_facts(stream).local
    }

    /// As [`SocketPort::connect`], with a socket of the guest's namespace.
    fn connect_inside(&mut self, _token: Token, _target: SocketAddr) -> io::Result<Self::Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// As [`SocketPort::connect_inside`], in the name of `client`: the guest sees its address. Nothing
    /// is told of the stream before it is [adopted](SocketPort::adopt).
    ///
    /// # Errors
    /// `Unsupported` where there is no such way at all; `AddrNotAvailable` if the guest has a
    /// connection between the two. Any other: not to this target, or not now.
    fn connect_as(
        &mut self,
        _now: Instant,
        _client: SocketAddr,
        _target: SocketAddr,
    ) -> io::Result<Reached<Self::Stream>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An empty pipe.
    fn open_pipe(&mut self) -> io::Result<Self::Pipe> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Moves at most `most` bytes from a stream into an empty pipe; 0 at EOF.
    fn fill(
        &mut self,
        _stream: &Self::Stream,
        _pipe: &Self::Pipe,
        _most: usize,
    ) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Moves at most `most` bytes, which the pipe has, to a stream.
    fn drain(
        &mut self,
        _pipe: &Self::Pipe,
        _stream: &Self::Stream,
        _most: usize,
    ) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the kernel knows of `stream`.
    fn stream_facts(&mut self, stream: &Self::Stream) -> StreamFacts;

    /// Tells under `token` when there is something to receive, or an error.
    fn watch_datagrams(&mut self, token: Token, socket: &Self::Datagram) -> io::Result<()>;

    /// The address and port that `socket` is bound to.
    fn datagram_local(&mut self, socket: &Self::Datagram) -> Option<SocketAddr>;

    /// A UDP socket for the mapping of `key`, with the guest's port if that is free. Readiness
    /// comes under `token`.
    fn open_udp(&mut self, token: Token, key: MappingKey) -> io::Result<Self::Datagram>;

    /// A ping socket for the mapping of `key`; `PermissionDenied` where the host allows none.
    fn open_ping(&mut self, token: Token, key: MappingKey) -> io::Result<Self::Datagram>;

    /// A UDP socket of the host, or of the guest if `inside`, that is connected to `target` and has
    /// the port `port` if that is free. Readiness comes under `token`.
    fn open_relay(
        &mut self,
        _token: Token,
        _inside: bool,
        _port: u16,
        _target: SocketAddr,
    ) -> io::Result<Self::Datagram> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Sends datagrams in order until one fails; how many the kernel took, at least one. The error
    /// is that of the first.
    fn send_datagrams(
        &mut self,
        socket: &Self::Datagram,
        datagrams: &[Outgoing<'_>],
    ) -> io::Result<usize>;

    /// Sends one datagram, or several of one size.
    fn send_datagram(
        &mut self,
        socket: &Self::Datagram,
        datagram: &Outgoing<'_>,
    ) -> io::Result<()> {
        self.send_datagrams(socket, std::slice::from_ref(datagram)).map(|_| ())
    }

    /// Receives a batch; how many.
    fn recv_datagrams(&mut self, socket: &Self::Datagram, batch: &mut Batch) -> io::Result<usize>;

    /// The oldest entry of the socket's error queue; `quoted` takes the payload that it quotes.
    fn next_error<'a>(
        &mut self,
        socket: &Self::Datagram,
        quoted: &'a mut [u8],
    ) -> Option<SocketError<'a>>;

    /// Forbids or allows fragmentation of what is sent from now on.
    fn set_dont_fragment(&mut self, socket: &Self::Datagram, ipv6: bool, on: bool);

    /// Waits until something is ready, or for `timeout` (for ever without one), and puts at most a
    /// batch of events into `events`.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;
}
