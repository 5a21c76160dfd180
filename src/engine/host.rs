//! The real host side: sockets in the namespace where tapway runs, and the worker's epoll.
//!
//! Everything is registered once, edge-triggered, for all events that it is asked about: no
//! `epoll_ctl` happens between a flow's birth and its end. A closed socket leaves the epoll set by itself.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::base::Instant;
use crate::gate::forward::Transport;
use crate::gate::ports::Family;
use crate::sys::datagram::{
    self, Batch, DatagramOptions, Marks, Outgoing, PortChoice, SocketError,
};
use crate::sys::tcp_info;

use super::datagram_flow::{MappingKey, Route};
use super::pipe::Pipe;
use super::ports::{Accepted, Event, Reached, Readiness, SocketPort, StreamFacts};
use super::short_way::ShortWay;
use super::token::Token;

/// Events taken from the kernel at once.
const BATCH: usize = 256;

/// A SYN with fewer hops than this is taken for a traceroute's: no default is lower, and few paths
/// are longer. Its socket keeps what routers say about it until it is connected. That does not
/// change what becomes of it: while connecting, an ICMP error ends the attempt either way, and
/// with the same errno (`tcp_v6_err`). IPv4 sockets keep it anyhow (`tcp_v4_err`).
const PROBE_HOPS: u8 = 32;

/// How sockets towards the outside are bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Source address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Source address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Interface for IPv4 (SO_BINDTODEVICE).
    pub interface4: Option<String>,
    /// Interface for IPv6.
    pub interface6: Option<String>,
    /// The source addresses are those towards the host's loopback too: its servers do not take the
    /// guest for one of their own.
    pub loopback: bool,
}

impl Outbound {
    /// The configured source for packets to `target`. Loopback targets keep the kernel's choice
    /// unless configured otherwise.
    fn source_for(&self, target: IpAddr) -> Option<IpAddr> {
        match target {
            _ if target.is_loopback() && !self.loopback => None,
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// The configured interface for a family.
    fn interface_for(&self, ipv6: bool) -> Option<&str> {
        let interface = if ipv6 { &self.interface6 } else { &self.interface4 };
        interface.as_deref()
    }

    /// Binds `socket` as configured for `target`.
    fn apply(&self, socket: &Socket, target: IpAddr) -> io::Result<()> {
        if let Some(interface) = self.interface_for(target.is_ipv6())
            && !target.is_loopback()
        {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if let Some(source) = self.source_for(target) {
            SockRef::from(socket).set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(())
    }
}

/// Gives the DNS service a query under a number; whether it takes it.
pub type AskDns = Box<dyn FnMut(u64, &[u8]) -> bool + Send>;

/// The way to the DNS service, which lives on the control thread.
pub struct DnsLink {
    /// Gives a stream whose other end the service reads; `None` if it does not take more.
    pub connect: Box<dyn FnMut() -> Option<UnixStream> + Send>,
    /// Gives the service a query under a number; whether it takes it.
    pub ask: AskDns,
}

/// A kind of socket of the guest's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideKind {
    /// As everybody there has them.
    Plain(Transport),
    /// TCP, for connections in the name of clients ([`crate::setup::inside`]).
    Marked,
}

/// Opens so many sockets in the guest's namespace: bound to nothing, non-blocking, close-on-exec.
pub type OpenInside = Box<dyn FnMut(InsideKind, Family, usize) -> io::Result<Vec<OwnedFd>> + Send>;

/// The ways to others.
pub struct Links {
    /// To the DNS service.
    pub dns: DnsLink,
    /// To sockets of the guest's, where there is one.
    pub inside: Option<OpenInside>,
}

/// Sockets of the guest's namespace that are asked for at once, since asking takes as long as
/// making several.
const STOCK: usize = 16;

/// Host sockets of one worker.
pub struct HostSockets {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    outbound: Outbound,
    dns: DnsLink,
    inside: Option<OpenInside>,
    /// TCP sockets of the guest's, for IPv4 and IPv6, that nobody uses yet.
    stock: [Vec<OwnedFd>; 2],
    /// By family, as `stock`.
    short_way: [ShortWay; 2],
}

impl HostSockets {
    /// No sockets yet. Errors are those of `epoll_create1(2)`.
    pub fn new(outbound: Outbound, links: Links) -> io::Result<HostSockets> {
        let Links { dns, inside } = links;
        Ok(HostSockets {
            inside,
            stock: [Vec::new(), Vec::new()],
            short_way: Default::default(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); BATCH],
            outbound,
            dns,
        })
    }

    /// Watches `fd` for reading under `token`, level-triggered: for the TAP and the command queue.
    pub fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.to_bits()))?)
    }

    /// How the socket of a mapping is made.
    fn datagram_options(&self, key: MappingKey) -> DatagramOptions<'_> {
        let unspecified: IpAddr = match key.guest {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let outside = key.route == Route::Outside;
        let bound = outside || (self.outbound.loopback && key.route == Route::Loopback);
        let source = bound.then(|| self.outbound.source_for(unspecified)).flatten();
        DatagramOptions {
            port: PortChoice::Preferred,
            device: self.outbound.interface_for(key.guest.is_ipv6()).filter(|_| outside),
            ..DatagramOptions::new(SocketAddr::new(source.unwrap_or(unspecified), key.guest.port()))
        }
    }

    /// Watches `fd` no more.
    pub fn unwatch(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// A datagram socket tells only what is to be read: each datagram that leaves it would be an
    /// event of its own otherwise, since room in its buffer is news.
    fn register_datagrams(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.to_bits()))?)
    }

    /// TCP sockets of the guest's, of which there are always several.
    fn inside_stream(&mut self, target: SocketAddr) -> io::Result<Socket> {
        let stock = &mut self.stock[usize::from(target.is_ipv6())];
        if stock.is_empty() {
            let open = self.inside.as_mut().ok_or(io::ErrorKind::Unsupported)?;
            *stock = open(InsideKind::Plain(Transport::Tcp), Family::of(target.ip()), STOCK)?;
        }
        Ok(stock.pop().ok_or(io::ErrorKind::Unsupported)?.into())
    }

    fn register(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EVERYTHING, token.to_bits()))?)
    }
}

/// All that is told of a socket, each fact once.
const EVERYTHING: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// Begins to connect `socket`, which does not block.
fn begin(socket: &Socket, target: SocketAddr) -> io::Result<()> {
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(()),
    }
}

impl SocketPort for HostSockets {
    type Stream = Socket;
    type Listener = Socket;
    type Datagram = OwnedFd;
    type Pipe = Pipe;

    fn connect(&mut self, token: Token, target: SocketAddr, marks: Marks) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        socket.set_out_of_band_inline(true)?;
        apply_marks(&socket, target, marks)?;
        if target.is_ipv6() && marks.hop_limit < PROBE_HOPS {
            // If it fails, the guest hears of the failure from the gateway.
            let _ = datagram::keep_errors_v6(socket.as_fd(), true);
        }
        self.outbound.apply(&socket, target.ip())?;
        begin(&socket, target)?;
        self.register(&socket, token)?;
        Ok(socket)
    }

    fn connect_unix(&mut self, token: Token, path: &Path) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        socket.set_out_of_band_inline(true)?;
        // It connects at once or not at all: EAGAIN says that the queue of the listener is full.
        socket.connect(&SockAddr::unix(path)?)?;
        self.register(&socket, token)?;
        Ok(socket)
    }

    fn connect_dns(&mut self, token: Token) -> io::Result<Socket> {
        let stream = (self.dns.connect)().ok_or_else(|| io::Error::from(Errno::ECONNREFUSED))?;
        stream.set_nonblocking(true)?;
        let socket = Socket::from(OwnedFd::from(stream));
        self.register(&socket, token)?;
        Ok(socket)
    }

    fn ask_dns(&mut self, token: u64, query: &[u8]) -> bool {
        (self.dns.ask)(token, query)
    }

    fn send(&mut self, stream: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut stream = stream;
        match parts {
            [whole] => stream.write(whole),
            _ => stream.write_vectored(parts),
        }
    }

    fn recv(&mut self, stream: &Socket, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut stream = stream;
        match parts {
            [whole] => stream.read(whole),
            _ => stream.read_vectored(parts),
        }
    }

    fn at_end(&mut self, stream: &Socket) -> io::Result<bool> {
        stream.peek(&mut [MaybeUninit::uninit()]).map(|len| len == 0)
    }

    fn forget(&mut self, stream: &Socket) {
        // It was registered when it was made.
        let _ = self.epoll.delete(stream);
    }

    fn adopt(&mut self, token: Token, stream: &Socket) -> io::Result<()> {
        self.register(stream, token)
    }

    fn share(&mut self, stream: &Socket) -> io::Result<Socket> {
        stream.try_clone()
    }

    fn take_error(&mut self, stream: &Socket) -> Option<io::Error> {
        stream.take_error().unwrap_or_else(Some)
    }

    fn connect_error(&mut self, stream: &Socket) -> Option<SocketError<'static>> {
        datagram::next_error(stream.as_fd(), &mut []).ok().flatten()
    }

    fn connected(&mut self, stream: &Socket) {
        // Only IPv6 streams have it on, and others refuse.
        let _ = datagram::keep_errors_v6(stream.as_fd(), false);
    }

    fn shutdown_write(&mut self, stream: &Socket) {
        // It fails only if the peer has reset the connection, which reading tells as well.
        let _ = stream.shutdown(Shutdown::Write);
    }

    fn reset(&mut self, stream: Socket) {
        // Fails for Unix sockets only, where closing is enough.
        let _ = stream.set_linger(Some(Duration::ZERO));
    }

    fn no_delay(&mut self, stream: &Socket) {
        // Unix sockets refuse: they never delay.
        let _ = stream.set_tcp_nodelay(true);
    }

    fn keep_alive(&mut self, stream: &Socket) {
        // The guest probes at its own pace; these are its kernel's usual defaults after the first
        // silence (tcp_keepalive_intvl, tcp_keepalive_probes). Unix sockets refuse, rightly.
        let times = TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(75))
            .with_retries(9);
        let _ = stream.set_tcp_keepalive(&times);
    }

    fn watch_listener(&mut self, token: Token, listener: &Socket) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(listener, EpollEvent::new(flags, token.to_bits()))?)
    }

    fn accept(&mut self, listener: &Socket, token: Token) -> io::Result<Accepted<Socket>> {
        let (stream, client) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
        stream.set_out_of_band_inline(true)?;
        self.register(&stream, token)?;
        Ok(Accepted { stream, client: client.as_socket().map(canonical) })
    }

    fn addressed(&mut self, stream: &Socket) -> Option<SocketAddr> {
        Some(canonical(stream.local_addr().ok()?.as_socket()?))
    }

    fn connect_inside(&mut self, token: Token, target: SocketAddr) -> io::Result<Socket> {
        let socket = self.inside_stream(target)?;
        socket.set_out_of_band_inline(true)?;
        begin(&socket, target)?;
        self.register(&socket, token)?;
        Ok(socket)
    }

    fn connect_as(
        &mut self,
        now: Instant,
        client: SocketAddr,
        target: SocketAddr,
    ) -> io::Result<Reached<Socket>> {
        let open = self.inside.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        let way = &mut self.short_way[usize::from(target.is_ipv6())];
        way.connect(now, open, client, target)
    }

    fn open_pipe(&mut self) -> io::Result<Pipe> {
        Pipe::open()
    }

    fn fill(&mut self, stream: &Socket, pipe: &Pipe, most: usize) -> io::Result<usize> {
        pipe.fill(stream, most)
    }

    fn drain(&mut self, pipe: &Pipe, stream: &Socket, most: usize) -> io::Result<usize> {
        pipe.drain(stream, most)
    }

    fn stream_facts(&mut self, stream: &Socket) -> StreamFacts {
        let address = |address: io::Result<SockAddr>| Some(canonical(address.ok()?.as_socket()?));
        let local = address(stream.local_addr());
        let info = local.and_then(|_| tcp_info::tcp_info(stream.as_fd()).ok());
        StreamFacts {
            local,
            peer: address(stream.peer_addr()),
            rtt_us: info.map(|info| info.rtt_us),
            retransmits: info.map(|info| info.retransmits),
        }
    }

    fn watch_datagrams(&mut self, token: Token, socket: &OwnedFd) -> io::Result<()> {
        self.register_datagrams(socket, token)
    }

    fn datagram_local(&mut self, socket: &OwnedFd) -> Option<SocketAddr> {
        SockRef::from(socket).local_addr().ok()?.as_socket()
    }

    fn open_udp(&mut self, token: Token, key: MappingKey) -> io::Result<OwnedFd> {
        let options = DatagramOptions { coalesce: true, ..self.datagram_options(key) };
        let socket = datagram::open_udp(&options)?;
        self.register_datagrams(&socket, token)?;
        Ok(socket)
    }

    fn open_ping(&mut self, token: Token, key: MappingKey) -> io::Result<OwnedFd> {
        let socket = datagram::open_ping(&self.datagram_options(key))?;
        self.register_datagrams(&socket, token)?;
        Ok(socket)
    }

    fn open_relay(
        &mut self,
        token: Token,
        inside: bool,
        port: u16,
        target: SocketAddr,
    ) -> io::Result<OwnedFd> {
        let socket = match (inside, &mut self.inside) {
            (false, _) => datagram::unbound_udp(target.into())?,
            (true, Some(open)) => {
                let made = open(InsideKind::Plain(Transport::Udp), Family::of(target.ip()), 1)?;
                made.into_iter().next().ok_or(io::ErrorKind::Unsupported)?
            }
            (true, None) => return Err(io::ErrorKind::Unsupported.into()),
        };
        datagram::connect_udp(socket.as_fd(), port, target)?;
        self.register_datagrams(&socket, token)?;
        Ok(socket)
    }

    fn send_datagrams(
        &mut self,
        socket: &OwnedFd,
        datagrams: &[Outgoing<'_>],
    ) -> io::Result<usize> {
        datagram::send_batch(socket.as_fd(), Marks::DEFAULT, datagrams)
    }

    fn recv_datagrams(&mut self, socket: &OwnedFd, batch: &mut Batch) -> io::Result<usize> {
        datagram::recv_batch(socket.as_fd(), batch)
    }

    fn next_error<'a>(
        &mut self,
        socket: &OwnedFd,
        quoted: &'a mut [u8],
    ) -> Option<SocketError<'a>> {
        // An entry that cannot be read is as good as none.
        datagram::next_error(socket.as_fd(), quoted).ok().flatten()
    }

    fn set_dont_fragment(&mut self, socket: &OwnedFd, ipv6: bool, on: bool) {
        let family = if ipv6 { datagram::Family::V6 } else { datagram::Family::V4 };
        // If it fails, datagrams are fragmented on the way instead of being reported.
        let _ = datagram::set_dont_fragment(socket.as_fd(), family, on);
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        // Rounded up: waking before a deadline would spin.
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(time) => i32::try_from(time.as_nanos().div_ceil(1_000_000))
                .ok()
                .and_then(|millis| EpollTimeout::try_from(millis).ok())
                .unwrap_or(EpollTimeout::MAX),
        };
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &self.events[..count] {
            let Some(token) = Token::from_bits(event.data()) else { continue };
            events.push(Event { token, readiness: readiness(event.events()) });
        }
        Ok(())
    }
}

/// An IPv4 address as such, also where a socket for both families gave it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn readiness(flags: EpollFlags) -> Readiness {
    let failed = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
    let closed = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP);
    Readiness {
        readable: failed || closed || flags.contains(EpollFlags::EPOLLIN),
        writable: flags.contains(EpollFlags::EPOLLOUT),
        closed,
        failed,
        urgent: flags.contains(EpollFlags::EPOLLPRI),
    }
}

fn apply_marks(socket: &Socket, target: SocketAddr, marks: Marks) -> io::Result<()> {
    if marks == Marks::DEFAULT {
        return Ok(());
    }
    // ECN bits belong to each hop's own connection (RFC 3168 §6.1): only DSCP is carried.
    let dscp = u32::from(marks.tos & !3);
    let hops = u32::from(marks.hop_limit);
    if target.is_ipv4() {
        socket.set_tos_v4(dscp)?;
        socket.set_ttl_v4(hops)
    } else {
        socket.set_tclass_v6(dscp)?;
        socket.set_unicast_hops_v6(hops)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::token::Kind;
    use super::*;

    const TOKEN: Token = Token { kind: Kind::Tcp, generation: 0, index: 0 };

    /// A connection to a server: our end, and the peer's.
    fn connection(host: &mut HostSockets) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let ours = host.connect(TOKEN, server, Marks::DEFAULT).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    /// A connection of a client: our end, and the peer's.
    fn client(host: &mut HostSockets) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let listener = Socket::from(listener);
        let token = Token { kind: Kind::Listener, ..TOKEN };
        host.watch_listener(token, &listener).unwrap();
        (host.accept(&listener, TOKEN).unwrap().stream, peer)
    }

    fn host() -> HostSockets {
        let dns = DnsLink { connect: Box::new(|| None), ask: Box::new(|_, _| false) };
        HostSockets::new(Outbound::default(), Links { dns, inside: None }).unwrap()
    }

    /// Waits until readiness is told for which `meant` holds.
    fn wait_until(host: &mut HostSockets, meant: impl Fn(Readiness) -> bool) {
        let mut events = vec![];
        for _ in 0..100 {
            host.wait(Some(Duration::from_millis(200)), &mut events).unwrap();
            if events.iter().any(|event| event.token == TOKEN && meant(event.readiness)) {
                return;
            }
        }
        panic!("it is not told");
    }

    #[test]
    fn urgent_data_comes_in_line_and_is_announced() {
        for inbound in [false, true] {
            let mut host = host();
            let ends = if inbound { client(&mut host) } else { connection(&mut host) };
            let (ours, mut peer) = ends;
            peer.write_all(b"abc").unwrap();
            SockRef::from(&peer).send_out_of_band(b"!").unwrap();
            peer.write_all(b"def").unwrap();
            wait_until(&mut host, |readiness| readiness.urgent);
            let mut bytes = Vec::<u8>::new();
            for _ in 0..100 {
                let mut part = [0; 100];
                match host.recv(&ours, &mut [IoSliceMut::new(&mut part)]) {
                    Ok(len) => bytes.extend(&part[..len]),
                    Err(_) => wait_until(&mut host, |readiness| readiness.readable),
                }
                if bytes.len() == 7 {
                    break;
                }
            }
            assert_eq!(bytes, b"abc!def");
        }
    }

    #[test]
    fn the_end_is_told_from_bytes_and_from_a_reset() {
        let mut host = host();
        let (ours, mut peer) = connection(&mut host);
        peer.write_all(b"x").unwrap();
        drop(peer);
        wait_until(&mut host, |readiness| readiness.closed);
        assert!(!host.at_end(&ours).unwrap());
        assert_eq!(host.recv(&ours, &mut [IoSliceMut::new(&mut [0; 9])]).unwrap(), 1);
        assert!(host.at_end(&ours).unwrap());

        let (ours, peer) = connection(&mut host);
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        wait_until(&mut host, |readiness| readiness.closed);
        let error = host.at_end(&ours).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        // The kernel tells it once: who asks now sees an ordinary end.
        assert!(host.at_end(&ours).unwrap());
    }
}
