//! An engine with as many connections as it takes, between two edges that keep nothing of them.
//!
//! ```text
//!   segments made here ─▶ Worker ─▶ a host that takes everything, and answers when it is told to
//! ```
//! So what is allocated is the engine's own, and nearly all of the time is its work. There are no
//! descriptors: what a machine allows of these is not the limit.
#![allow(dead_code, unreachable_pub, reason = "each program uses its part")]

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tapway::base::{Instant, Mac};
use tapway::engine::ports::{Accepted, Event, FramePort, Readiness, SocketPort, StreamFacts};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{Limits, MappingKey, Options, Worker};
use tapway::gate::{AddressPlan, Habits, Plan4, PublishPath};
use tapway::observe::FlowQuery;
use tapway::stack::wire::{VNET_HEADER_LEN, checksum};
use tapway::sys::datagram::{Batch, Marks, Outgoing, SocketError};

/// Bytes of each request and each answer.
pub const PAYLOAD: usize = 100;

/// Nanoseconds between two turns of the engine while something happens.
const STEP: u64 = 20_000;

/// A tick of the timer wheel and a little more, in nanoseconds.
const TICK: u64 = 1_100_000;

const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);
const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// The first server; there is one for each [`PORTS`] connections.
const SERVERS: u32 = 0xc612_0001;
const PORTS: u32 = 60_000;
const FIRST_SEQ: u32 = 0xffff_f000;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Room for the longest frame: headers with the options of a SYN, and a payload.
const FRAME_ROOM: usize = VNET_HEADER_LEN + 14 + 20 + 32 + PAYLOAD;

/// The link: a frame that the engine has not read, and the head of the last one that it wrote.
struct Link {
    frame: [u8; FRAME_ROOM],
    len: usize,
    head: [u8; VNET_HEADER_LEN + 14 + 20 + 20],
}

#[derive(Clone)]
struct LinkPort(Rc<RefCell<Link>>);

impl FramePort for LinkPort {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let link = &mut *self.0.borrow_mut();
        let len = std::mem::take(&mut link.len);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer[..len].copy_from_slice(&link.frame[..len]);
        Ok(len)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let head = &mut self.0.borrow_mut().head;
        let bytes = parts.iter().flat_map(|part| part.iter());
        head.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

/// What the host's next socket will do.
#[derive(Default)]
struct Peer {
    /// What the engine calls the socket that it opened last.
    latest: Option<Token>,
    /// Bytes that can be read.
    answer: usize,
    /// EOF stands behind them.
    ended: bool,
}

#[derive(Clone, Default)]
struct HostPort(Rc<RefCell<Peer>>);

/// As large as a descriptor, and with a value that is none, as a descriptor has.
struct Socket(#[expect(dead_code, reason = "it takes the room of a descriptor")] NonZeroU32);

impl SocketPort for HostPort {
    type Stream = Socket;
    type Listener = ();
    type Datagram = ();
    type Pipe = ();

    fn connect(&mut self, token: Token, _: SocketAddr, _: Marks) -> io::Result<Socket> {
        self.0.borrow_mut().latest = Some(token);
        Ok(Socket(NonZeroU32::MIN))
    }

    fn connect_unix(&mut self, token: Token, _: &Path) -> io::Result<Socket> {
        self.connect(token, SocketAddr::from((GUEST, 0)), Marks::DEFAULT)
    }

    fn connect_dns(&mut self, token: Token) -> io::Result<Socket> {
        self.connect(token, SocketAddr::from((GUEST, 0)), Marks::DEFAULT)
    }

    fn ask_dns(&mut self, _: u64, _: &[u8]) -> bool {
        true
    }

    fn send(&mut self, _: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn recv(&mut self, _: &Socket, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut peer = self.0.borrow_mut();
        let room: usize = parts.iter().map(|part| part.len()).sum();
        match std::mem::take(&mut peer.answer) {
            0 if peer.ended => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            answer => Ok(answer.min(room)),
        }
    }

    fn at_end(&mut self, _: &Socket) -> io::Result<bool> {
        let peer = self.0.borrow();
        if peer.ended || peer.answer > 0 {
            return Ok(peer.answer == 0);
        }
        Err(ErrorKind::WouldBlock.into())
    }

    fn forget(&mut self, _: &Socket) {}

    fn adopt(&mut self, _: Token, _: &Socket) -> io::Result<()> {
        Ok(())
    }

    fn share(&mut self, _: &Socket) -> io::Result<Socket> {
        Ok(Socket(NonZeroU32::MIN))
    }

    fn take_error(&mut self, _: &Socket) -> Option<io::Error> {
        None
    }

    fn connect_error(&mut self, _: &Socket) -> Option<SocketError<'static>> {
        None
    }

    fn connected(&mut self, _: &Socket) {}

    fn shutdown_write(&mut self, _: &Socket) {}

    fn reset(&mut self, _: Socket) {}

    fn no_delay(&mut self, _: &Socket) {}

    fn keep_alive(&mut self, _: &Socket) {}

    fn watch_listener(&mut self, _: Token, _: &()) -> io::Result<()> {
        Ok(())
    }

    fn accept(&mut self, _: &(), _: Token) -> io::Result<Accepted<Socket>> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn stream_facts(&mut self, _: &Socket) -> StreamFacts {
        StreamFacts::default()
    }

    fn watch_datagrams(&mut self, _: Token, _: &()) -> io::Result<()> {
        Ok(())
    }

    fn datagram_local(&mut self, _: &()) -> Option<SocketAddr> {
        None
    }

    fn open_udp(&mut self, _: Token, _: MappingKey) -> io::Result<()> {
        Ok(())
    }

    fn open_ping(&mut self, _: Token, _: MappingKey) -> io::Result<()> {
        Ok(())
    }

    fn send_datagrams(&mut self, _: &(), datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
        Ok(datagrams.len())
    }

    fn recv_datagrams(&mut self, _: &(), _: &mut Batch) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn next_error<'a>(&mut self, _: &(), _: &'a mut [u8]) -> Option<SocketError<'a>> {
        None
    }

    fn set_dont_fragment(&mut self, _: &(), _: bool, _: bool) {}

    fn wait(&mut self, _: Option<Duration>, _: &mut Vec<Event>) -> io::Result<()> {
        Ok(())
    }
}

/// A connection, as the guest and the host's epoll know it.
#[derive(Clone, Copy)]
struct Known {
    token: Token,
    /// What the guest sends next, and what it expects.
    seq: u32,
    ack: u32,
}

/// The engine with its connections, which keep their numbers from 0 on.
pub struct Crowd {
    worker: Worker<LinkPort, HostPort>,
    link: LinkPort,
    host: HostPort,
    /// Nanoseconds.
    now: u64,
    open: Vec<Known>,
    most: usize,
    /// Connections that came and went.
    passed: u32,
}

impl Crowd {
    /// An engine without connections, with the limits of the real one. Up to `most` can be opened
    /// without an allocation outside of the engine.
    pub fn new(most: usize) -> Crowd {
        let plan = AddressPlan {
            v4: Some(Plan4 {
                guest: GUEST,
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: None,
            }),
            v6: None,
            gateway_mac: GATEWAY_MAC,
            guest_mac: GUEST_MAC,
            mtu: 65_520,
            host_loopback: vec![],
            search: vec![],
            sharing: None,
            habits: Habits::default(),
        };
        let head = [0; VNET_HEADER_LEN + 54];
        let link = LinkPort(Rc::new(RefCell::new(Link { frame: [0; _], len: 0, head })));
        let (host, limits) = (HostPort::default(), Limits::default());
        let options = Options {
            plan,
            vnet_header: true,
            uso: true,
            big_packets: true,
            publish_path: PublishPath::Tap,
            limits,
            seed: 1,
        };
        let worker = Worker::new(Instant::ZERO, link.clone(), host.clone(), options);
        let open = Vec::with_capacity(most);
        Crowd { worker, link, host, now: 0, open, most, passed: 0 }
    }

    /// Opens connections until there are `count`.
    pub fn open(&mut self, count: usize) {
        assert!(count <= self.most);
        while self.open.len() < count {
            let known = self.connect(self.open.len() as u32);
            self.open.push(known);
        }
    }

    /// The handshake of connection `number`.
    fn connect(&mut self, number: u32) -> Known {
        self.segment(number, SYN, FIRST_SEQ, 0, 0);
        let token = self.host.0.borrow_mut().latest.take();
        let token = token.unwrap_or_else(|| panic!("connection {number} was not begun"));
        self.ready(token, Readiness { writable: true, ..Readiness::default() });
        let seq = FIRST_SEQ.wrapping_add(1);
        let (flags, ours) = self.written();
        assert_eq!(flags, SYN | ACK, "of connection {number}");
        let ack = ours.wrapping_add(1);
        self.segment(number, ACK, seq, ack, 0);
        Known { token, seq, ack }
    }

    /// A connection that its peer ends after a byte, as the guest does.
    pub fn pass(&mut self) {
        // Behind all others' numbers; the ports come again after TIME-WAIT.
        let number = self.most as u32 + self.passed % (4 * PORTS);
        self.passed += 1;
        let Known { token, seq, ack } = self.connect(number);
        (self.host.0.borrow_mut().answer, self.host.0.borrow_mut().ended) = (1, true);
        let readiness = Readiness { readable: true, closed: true, ..Readiness::default() };
        self.ready(token, readiness);
        assert_eq!(self.written().0 & FIN, FIN, "the peer's end is told");
        self.segment(number, FIN | ACK, seq, ack.wrapping_add(2), 0);
        self.host.0.borrow_mut().ended = false;
    }

    /// A request over connection `number`.
    pub fn request(&mut self, number: usize) {
        let Known { seq, ack, .. } = self.open[number];
        self.segment(number as u32, PSH | ACK, seq, ack, PAYLOAD);
        self.open[number].seq = seq.wrapping_add(PAYLOAD as u32);
    }

    /// An answer over connection `number`, which the guest acknowledges.
    pub fn answer(&mut self, number: usize) {
        let Known { token, seq, ack } = self.open[number];
        self.host.0.borrow_mut().answer = PAYLOAD;
        self.ready(token, Readiness { readable: true, ..Readiness::default() });
        let ack = ack.wrapping_add(PAYLOAD as u32);
        self.segment(number as u32, ACK, seq, ack, 0);
        self.open[number].ack = ack;
    }

    /// A turn in which the timer wheel moves on, and nothing else happens.
    pub fn tick(&mut self) {
        self.now += TICK;
        self.turn(&[]);
    }

    /// Nothing happens for `time`; the engine is called when it wants to be.
    pub fn rest(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as u64;
        while self.now < end {
            let asked = self.worker.timeout(Instant::from_nanos(self.now));
            let asked = asked.map_or(u64::MAX, |time| time.as_nanos() as u64);
            self.now = self.now.saturating_add(asked.max(TICK)).min(end);
            self.turn(&[]);
        }
    }

    /// The first page of the list of flows; how many are on it.
    pub fn list(&mut self) -> usize {
        let now = Instant::from_nanos(self.now);
        self.worker.list_flows(now, &FlowQuery::default()).flows.len()
    }

    /// Every counter; how many connections are open.
    pub fn stats(&self) -> u64 {
        self.worker.stats(Instant::from_nanos(self.now)).tcp.open
    }

    /// How many connections stay open.
    pub fn size(&self) -> usize {
        self.open.len()
    }

    /// How many connections the engine has.
    pub fn flow_count(&self) -> usize {
        self.worker.flow_count()
    }

    /// Frames that went nowhere.
    pub fn dropped(&self) -> u64 {
        self.worker.counters().drops.nonzero().map(|(_, count)| count).sum()
    }

    /// Flags and sequence number of the last frame to the guest.
    fn written(&self) -> (u8, u32) {
        let tcp = VNET_HEADER_LEN + 14 + 20;
        let head = &self.link.0.borrow().head;
        let seq = [head[tcp + 4], head[tcp + 5], head[tcp + 6], head[tcp + 7]];
        (head[tcp + 13] & !PSH, u32::from_be_bytes(seq))
    }

    fn ready(&mut self, token: Token, readiness: Readiness) {
        self.now += STEP;
        self.turn(&[Event { token, readiness }]);
    }

    fn turn(&mut self, events: &[Event]) {
        let turned = self.worker.turn(Instant::from_nanos(self.now), events);
        turned.expect("this link does not fail");
        self.worker.before_wait();
    }

    /// Has the engine read a segment as the guest's kernel hands it over: the checksum is vouched
    /// for.
    fn segment(&mut self, number: u32, flags: u8, seq: u32, ack: u32, payload: usize) {
        let options: &[u8] = match flags {
            // MSS 65480, selective acknowledgments, window scale 7.
            SYN => &[2, 4, 0xff, 0xc8, 1, 1, 4, 2, 1, 3, 3, 7],
            _ => &[],
        };
        let (guest_port, server) = (1024 + number % PORTS, SERVERS + number / PORTS);
        {
            let Link { frame, len, .. } = &mut *self.link.0.borrow_mut();
            frame.fill(0);
            // Its sum is good (VIRTIO_NET_HDR_F_DATA_VALID).
            frame[0] = 2;
            let link = &mut frame[VNET_HEADER_LEN..];
            link[..6].copy_from_slice(&GATEWAY_MAC.0);
            link[6..12].copy_from_slice(&GUEST_MAC.0);
            link[12..14].copy_from_slice(&[8, 0]);
            let (ip, tcp) = link[14..].split_at_mut(20);
            let header = 20 + options.len();
            let total = (20 + header + payload) as u16;
            ip[..2].copy_from_slice(&[0x45, 0]);
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
            ip[12..16].copy_from_slice(&GUEST.octets());
            ip[16..20].copy_from_slice(&server.to_be_bytes());
            let sum = !checksum::fold(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            // Below 65,536.
            tcp[..2].copy_from_slice(&(guest_port as u16).to_be_bytes());
            tcp[2..4].copy_from_slice(&443_u16.to_be_bytes());
            tcp[4..8].copy_from_slice(&seq.to_be_bytes());
            tcp[8..12].copy_from_slice(&ack.to_be_bytes());
            tcp[12..16].copy_from_slice(&[(header as u8 / 4) << 4, flags, 0xff, 0xff]);
            tcp[20..header].copy_from_slice(options);
            *len = VNET_HEADER_LEN + 14 + usize::from(total);
        }
        self.now += STEP;
        let readiness = Readiness { readable: true, ..Readiness::default() };
        self.turn(&[Event { token: Token::only(Kind::Tap), readiness }]);
    }
}
