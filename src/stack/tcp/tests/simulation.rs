//! Whole conversations over a bad link, in simulated time: our machine against smoltcp's TCP.
//!
//! ```text
//!   guest program ⇄ smoltcp ⇄ link: loss, delay, order, copies ⇄ Edge { Connection } ⇄ host socket
//! ```
//! smoltcp shares no line with the machine beyond the header formats. Everything that happens
//! follows from the seed: both streams have to arrive whole, both ends have to close, within a
//! bound of simulated time. A failure names its seed; [`run`] with that number repeats it.
//!
//! The [`Edge`] does what the engine does with a real socket: it reads only when the machine has
//! capacity and the socket is readable, reports a closed window only when it meets one, and keeps
//! what the socket does not take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;

use super::*;
use crate::base::Mac;
use crate::stack::ip::{Parsed, parse_v4};
use crate::stack::wire::formats::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpCidr,
};
use crate::stack::wire::{Addresses, Checksum, HEADROOM, TcpHeader};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GUEST_MAC: Mac = Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]);
const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);

const ADDRESSES: Addresses = Addresses {
    gateway_mac: GATEWAY_MAC,
    guest_mac: GUEST_MAC,
    peer: SocketAddr::V4(SocketAddrV4::new(PEER, 443)),
    guest: SocketAddr::V4(SocketAddrV4::new(GUEST, 41_000)),
};

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in `from..=to`.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.between(0, 99) < chance
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() as u64 - 1) as usize]
    }
}

/// The byte at `offset` of a stream; neither stream repeats within a window.
fn byte(stream: u8, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 ^ stream
}

const FROM_GUEST: u8 = 0x5a;
const FROM_HOST: u8 = 0xc3;

/// What one seed decides.
#[derive(Debug)]
struct Plan {
    loss: u64,
    copies: u64,
    delay_micros: u64,
    jitter_micros: u64,
    guest_sends: u64,
    host_sends: u64,
    options: Options,
    guest_buffer: usize,
    mtu: usize,
    /// Bytes per turn and micros between turns of the four slow parties.
    guest_writes: Pace,
    guest_reads: Pace,
    host_writes: Pace,
    host_reads: Pace,
    /// The guest closes only after it has read everything, instead of after it has sent.
    guest_closes_last: bool,
    /// The guest listens, and the connection is opened to it.
    inbound: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    bytes: u64,
    every: u64,
}

impl Plan {
    fn new(random: &mut Random) -> Plan {
        let mut pace = |total: u64| {
            let every = random.pick(&[400, 4000, 30_000, 150_000]);
            // At most some thousand turns, so at most some minutes.
            let bytes = random.pick(&[1 << 20, 20_000, 3000, 700]).max(total * every / 60_000_000);
            Pace { bytes: bytes + 1, every }
        };
        let (guest_sends, host_sends) = (40_000, 40_000);
        let guest_writes = pace(guest_sends);
        let guest_reads = pace(host_sends);
        let host_writes = pace(host_sends);
        let host_reads = pace(guest_sends);
        let limit = random.pick(&[3000, 20_000, 65_535, 400_000]);
        let mtu = random.pick(&[600, 1500, 9000]);
        Plan {
            loss: random.pick(&[0, 0, 2, 10, 30]),
            copies: random.pick(&[0, 0, 5, 20]),
            delay_micros: random.pick(&[10, 300, 20_000]),
            jitter_micros: random.pick(&[0, 0, 500, 15_000]),
            guest_sends: random.pick(&[0, 1, 5000, 40_000]),
            host_sends: random.pick(&[0, 1, 5000, 40_000]),
            options: Options {
                mss: (mtu - 40) as u16,
                receive_limit: limit,
                first_window: if limit > 50_000 { 5000 } else { u32::MAX },
                in_flight_limit: random.pick(&[4000, 60_000, 1 << 20]),
                frame_limit: random.pick(&[1000, 8000, 60_000, 240_000]),
                resend_limit: random.pick(&[1000, 60_000]),
                // Longer than any time-out between two FINs of the guest.
                time_wait: Duration::from_secs(120),
            },
            guest_buffer: random.pick(&[2000, 9000, 65_535, 200_000]),
            mtu,
            guest_writes,
            guest_reads,
            host_writes,
            host_reads,
            guest_closes_last: random.percent(30),
            inbound: random.percent(50),
        }
    }
}

// --- the guest's interface ---

#[derive(Default)]
struct Port {
    mtu: usize,
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

struct Guest {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    written: u64,
    read: u64,
    closed: bool,
}

fn micros(now: u64) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.cast_signed())
}

impl Guest {
    fn new(plan: &Plan, seed: u64) -> Guest {
        let mut port = Port { mtu: plan.mtu, ..Port::default() };
        let mut config = Config::new(EthernetAddress(GUEST_MAC.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).expect("room for one");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room for one");
        let buffer = || tcp::SocketBuffer::new(vec![0; plan.guest_buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        if plan.inbound {
            socket.listen(41_000).expect("a fresh socket");
        } else {
            socket.connect(interface.context(), (PEER, 443), 41_000).expect("a fresh socket");
        }
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        Guest { port, interface, sockets, handle, written: 0, read: 0, closed: false }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn poll(&mut self, now: u64) {
        self.interface.poll(micros(now), &mut self.port, &mut self.sockets);
    }

    fn write(&mut self, plan: &Plan) {
        let room = (self.socket().send_capacity() - self.socket().send_queue()) as u64;
        let most = plan.guest_writes.bytes.min(plan.guest_sends - self.written).min(room);
        let chunk: Vec<u8> = (0..most).map(|i| byte(FROM_GUEST, self.written + i)).collect();
        if self.socket().can_send() {
            self.written += self.socket().send_slice(&chunk).expect("can send") as u64;
        }
        let done = self.written == plan.guest_sends
            && (!plan.guest_closes_last || self.read == plan.host_sends);
        if done && !self.closed && self.socket().may_send() {
            self.closed = true;
            self.socket().close();
        }
    }

    fn read(&mut self, plan: &Plan) {
        if !self.socket().can_recv() {
            return;
        }
        let most = (self.socket().recv_queue() as u64).min(plan.guest_reads.bytes);
        let mut chunk = vec![0; most as usize];
        let len = self.socket().recv_slice(&mut chunk).expect("can receive");
        for &got in &chunk[..len] {
            assert_eq!(got, byte(FROM_HOST, self.read), "byte {} for the guest", self.read);
            self.read += 1;
        }
    }
}

/// An ARP reply that names the gateway. It comes unasked and past the link's losses: smoltcp would
/// otherwise put a lost question in the place of a segment, and the link is bad enough.
fn neighbour() -> Vec<u8> {
    let (source, target) = (EthernetAddress(GATEWAY_MAC.0), EthernetAddress(GUEST_MAC.0));
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: source,
        source_protocol_addr: GATEWAY,
        target_hardware_addr: target,
        target_protocol_addr: GUEST,
    };
    let header =
        EthernetRepr { src_addr: source, dst_addr: target, ethertype: EthernetProtocol::Arp };
    let mut frame = vec![0; header.buffer_len() + reply.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    header.emit(&mut ethernet);
    reply.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    frame
}

// --- our side ---

struct Edge {
    connection: Option<Connection>,
    options: Options,
    iss: Seq,
    /// The retransmission queue.
    queue: VecDeque<u8>,
    backlog: VecDeque<u8>,
    /// What lies beyond a gap, by its place behind the next byte.
    held: BTreeMap<u32, u8>,
    actions: Vec<Action>,
    frames: Vec<Vec<u8>>,
    /// What the peer has sent so far, what of it was read, how it ends.
    arrived: u64,
    read: u64,
    total: u64,
    readable: bool,
    eof_behind: bool,
    /// What the host socket took, and may take before it blocks.
    taken: u64,
    room: u64,
    shut: bool,
    closed: bool,
    edge: Option<Seq>,
}

impl Edge {
    fn frame(&mut self, now: Instant, frame: &[u8]) {
        let ethernet = EthernetFrame::new_checked(frame).expect("smoltcp's frames are whole");
        match ethernet.ethertype() {
            EthernetProtocol::Arp => return,
            EthernetProtocol::Ipv4 => {}
            other => panic!("{other}"),
        }
        let Ok(Parsed::Whole(packet)) = parse_v4(ethernet.payload()) else {
            panic!("smoltcp's packets are whole")
        };
        if packet.target != IpAddr::V4(PEER) {
            return;
        }
        let (segment, at) = Segment::parse(packet.payload).expect("smoltcp's segments are whole");
        let payload = &packet.payload[at..];
        if self.connection.is_none() && segment.flags.syn && !self.closed {
            self.connection = Some(Connection::from_syn(now, &segment, self.iss, self.options));
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        if connection.is_closed() {
            if let (Some(seq), false) = (segment.ack, segment.flags.rst) {
                self.refuse(seq);
            }
            return;
        }
        // The verdict is a counter's business.
        let _ = connection.on_segment(now, &segment, &mut self.actions);
        self.perform(payload);
        self.read_if_wanted(now);
    }

    /// RFC 9293 §3.10.7.1: a segment without a connection is answered by a reset.
    fn refuse(&mut self, seq: Seq) {
        let header = TcpHeader {
            seq,
            ack: None,
            flags: WITH_RST,
            window: 0,
            mss: None,
            window_scale: None,
            sack_permitted: false,
            segment_size: u16::MAX,
            sack: [None; 3],
        };
        let mut buffer = vec![0; HEADROOM];
        let at = header.emit(&mut buffer, 0, &ADDRESSES, Checksum::Full);
        self.frames.push(buffer.split_off(at));
    }

    /// The host has accepted a client.
    fn open(&mut self, now: Instant) {
        let connection = Connection::to_guest(now, self.iss, self.options, &mut self.actions);
        self.connection = Some(connection);
        self.perform(&[]);
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a connection")
    }

    fn perform(&mut self, payload: &[u8]) {
        let mut next = 0;
        while let Some(&action) = self.actions.get(next) {
            next += 1;
            match action {
                Action::Emit(emit) => self.emit(&emit),
                Action::Deliver { skip, len } => {
                    self.backlog.extend(&payload[skip as usize..(skip + len) as usize]);
                    self.shift_held(len);
                    self.drain();
                }
                Action::Hold { skip, len, offset } => {
                    for at in 0..len {
                        let again = self.held.insert(offset + at, payload[(skip + at) as usize]);
                        assert_eq!(again, None, "held twice");
                    }
                }
                Action::DeliverHeld { len } => {
                    let bytes = (0..len).map(|at| self.held[&at]);
                    self.backlog.extend(bytes.collect::<Vec<u8>>());
                    self.shift_held(len);
                    self.drain();
                }
                Action::Release { len } => drop(self.queue.drain(..len as usize)),
                Action::ShutdownWrite => {
                    assert!(self.backlog.is_empty() && !self.shut);
                    self.shut = true;
                }
                Action::CloseHost => {
                    assert!(self.shut && !self.closed);
                    self.closed = true;
                }
                Action::ResetHost => panic!("the connection was reset or given up"),
                Action::KeepAlive => {}
            }
        }
        self.actions.clear();
    }

    fn shift_held(&mut self, len: u32) {
        let later = self.held.split_off(&len);
        self.held = later.into_iter().map(|(at, byte)| (at - len, byte)).collect();
    }

    /// The host socket takes what it has room for.
    fn drain(&mut self) {
        let len = self.room.min(self.backlog.len() as u64);
        for got in self.backlog.drain(..len as usize) {
            assert_eq!(got, byte(FROM_GUEST, self.taken), "byte {} for the host", self.taken);
            self.taken += 1;
        }
        self.room -= len;
        if let Some(connection) = &mut self.connection {
            connection.on_host_took(len as u32, &mut self.actions);
        }
    }

    fn read_if_wanted(&mut self, now: Instant) {
        while self.readable && self.connection().send_capacity() > 0 {
            self.read(now);
        }
    }

    fn read(&mut self, now: Instant) {
        for _ in 0..8 {
            let capacity = u64::from(self.connection().send_capacity());
            if capacity == 0 {
                if self.eof_behind && self.read == self.total && self.readable {
                    self.readable = false;
                    let Edge { connection, actions, .. } = self;
                    connection.as_mut().expect("a connection").on_host_eof(now, actions);
                    return self.perform(&[]);
                }
                let readable = self.readable;
                return self.connection().on_host_waiting(now, readable);
            }
            let len = capacity.min(self.arrived - self.read);
            let mut actions = std::mem::take(&mut self.actions);
            if len == 0 {
                self.readable = false;
                if self.read == self.total {
                    self.connection().on_host_eof(now, &mut actions);
                } else {
                    self.connection().on_host_waiting(now, false);
                }
                self.actions = actions;
                return self.perform(&[]);
            }
            self.queue.extend((0..len).map(|i| byte(FROM_HOST, self.read + i)));
            self.read += len;
            self.readable = len == capacity || self.eof_behind;
            if len < capacity && self.eof_behind {
                self.readable = false;
                self.connection().on_host_data_and_eof(now, len as u32, &mut actions);
                self.actions = actions;
                return self.perform(&[]);
            }
            self.connection().on_host_data(now, len as u32, len < capacity, &mut actions);
            self.actions = actions;
            self.perform(&[]);
            if !self.readable {
                return;
            }
        }
    }

    /// One frame, cut into segments as the guest's kernel would.
    fn emit(&mut self, emit: &Emit) {
        let connection = self.connection();
        assert!(connection.state() != State::Closed, "{emit:?} after the end");
        let offset = connection.queue_start().distance(emit.seq);
        if let (Some(ack), false) = (emit.ack, emit.flags.rst) {
            let shift = if emit.syn.is_some() { 0 } else { self.shift() };
            let edge = ack + (u32::from(emit.window) << shift);
            // RFC 7323 §2.4: what the field cannot say may be missing.
            let before = self.edge.unwrap_or(edge);
            assert!(before.distance(edge) > -(1 << shift), "the edge moves left");
            self.edge = Some(edge.later(before));
        }

        let mut cut = 0;
        loop {
            let len = (emit.len - cut).min(emit.segment_size.into());
            let last = cut + len == emit.len;
            let header = TcpHeader {
                seq: emit.seq + cut,
                ack: emit.ack,
                flags: Flags {
                    fin: emit.flags.fin && last,
                    psh: emit.flags.psh && last,
                    ..emit.flags
                },
                window: emit.window,
                mss: emit.syn.map(|syn| syn.mss),
                window_scale: emit.syn.and_then(|syn| syn.window_scale),
                sack_permitted: emit.syn.is_some_and(|syn| syn.sack_permitted),
                segment_size: emit.segment_size,
                sack: emit.sack,
            };
            let mut buffer = vec![0; HEADROOM];
            if len > 0 {
                let from = usize::try_from(offset).expect("in the queue") + cut as usize;
                buffer.extend(self.queue.range(from..from + len as usize));
            }
            let at = header.emit(&mut buffer, len as usize, &ADDRESSES, Checksum::Full);
            self.frames.push(buffer.split_off(at));
            cut += len;
            if last {
                return;
            }
        }
    }

    fn shift(&self) -> u8 {
        (0..14).find(|shift| self.options.receive_limit >> shift <= 65_535).unwrap_or(14)
    }
}

// --- the world ---

/// Micros between two looks of a party that found nothing to do.
const IDLE: u64 = 20_000;

/// What happens next. The order among equals in time is that of creation.
enum Event {
    ToGuest(Vec<u8>),
    ToHost(Vec<u8>),
    HostConnects,
    GuestWrites,
    GuestReads,
    HostWrites,
    HostReads,
    Flush,
    Neighbour,
}

struct World {
    random: Random,
    plan: Plan,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    events: Vec<Option<Event>>,
    guest: Guest,
    edge: Edge,
    connects: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let plan = Plan::new(&mut random);
        let edge = Edge {
            connection: None,
            options: plan.options,
            // Wraps within the first 30,000 bytes.
            iss: Seq(0) - random.between(0, 30_000) as u32,
            queue: VecDeque::new(),
            backlog: VecDeque::new(),
            held: BTreeMap::new(),
            actions: vec![],
            frames: vec![],
            arrived: 0,
            read: 0,
            total: plan.host_sends,
            readable: false,
            eof_behind: false,
            taken: 0,
            room: 0,
            shut: false,
            closed: false,
            edge: None,
        };
        let guest = Guest::new(&plan, seed);
        let mut world = World {
            random,
            plan,
            now: 0,
            queue: BinaryHeap::new(),
            events: vec![],
            guest,
            edge,
            connects: false,
        };
        world.after(0, Event::Neighbour);
        if world.plan.inbound {
            world.connects = true;
            let now = world.instant();
            world.edge.open(now);
        }
        for event in [Event::GuestWrites, Event::GuestReads, Event::HostWrites, Event::HostReads] {
            world.after(1, event);
        }
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.queue.push(Reverse((self.now + micros, self.events.len())));
        self.events.push(Some(event));
    }

    fn instant(&self) -> Instant {
        Instant::from_nanos(self.now * 1000)
    }

    /// Hands a frame to the link.
    fn send(&mut self, frame: &[u8], event: fn(Vec<u8>) -> Event) {
        let copies = 1 + u64::from(self.random.percent(self.plan.copies));
        for _ in 0..copies {
            if !self.random.percent(self.plan.loss) {
                let delay =
                    self.plan.delay_micros + self.random.between(0, self.plan.jitter_micros);
                self.after(delay, event(frame.to_vec()));
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::ToGuest(frame) => self.guest.port.received.push_back(frame),
            Event::ToHost(frame) => {
                self.edge.frame(now, &frame);
                if self.edge.connection.is_some() && !self.connects {
                    self.connects = true;
                    let delay = self.random.pick(&[5, 40_000, 2_500_000]);
                    self.after(delay, Event::HostConnects);
                }
                let batch = self.random.between(0, 30);
                self.after(batch, Event::Flush);
            }
            Event::Neighbour => {
                self.guest.port.received.push_back(neighbour());
                self.after(20_000_000, Event::Neighbour);
            }
            Event::Flush => {
                if let Some(connection) = &mut self.edge.connection {
                    connection.flush(&mut self.edge.actions);
                    self.edge.perform(&[]);
                }
            }
            Event::HostConnects => {
                let mut actions = vec![];
                self.edge.connection().on_connected(now, &mut actions);
                self.edge.actions = actions;
                self.edge.perform(&[]);
                if self.edge.readable {
                    self.edge.read(now);
                }
            }
            Event::GuestWrites => {
                let before = self.guest.written;
                self.guest.write(&self.plan);
                let every = self.plan.guest_writes.every;
                let pause = if self.guest.written == before { every.max(IDLE) } else { every };
                if !self.guest.closed {
                    self.after(pause, Event::GuestWrites);
                }
            }
            Event::GuestReads => {
                let before = self.guest.read;
                self.guest.read(&self.plan);
                let every = self.plan.guest_reads.every;
                let pause = if self.guest.read == before { every.max(IDLE) } else { every };
                if self.guest.read < self.plan.host_sends {
                    self.after(pause, Event::GuestReads);
                }
            }
            Event::HostWrites => self.host_writes(now),
            Event::HostReads => {
                self.edge.room = self.plan.host_reads.bytes;
                let every = self.plan.host_reads.every;
                let pause = if self.edge.backlog.is_empty() { every.max(IDLE) } else { every };
                if !self.edge.backlog.is_empty() {
                    self.edge.drain();
                    self.edge.perform(&[]);
                    self.after(0, Event::Flush);
                }
                if !self.edge.shut {
                    self.after(pause, Event::HostReads);
                }
            }
        }
    }

    /// The peer's next bytes arrive at the host socket, or its FIN behind the last of them.
    fn host_writes(&mut self, now: Instant) {
        let open = |c: &Connection| c.state() != State::Connecting;
        if self.edge.connection.as_ref().is_some_and(open) {
            let more = self.plan.host_writes.bytes.min(self.edge.total - self.edge.arrived);
            self.edge.arrived += more;
            if more > 0 || !self.edge.eof_behind {
                self.edge.eof_behind = more == 0;
                self.edge.readable = true;
                self.edge.read(now);
            }
        }
        if !self.edge.eof_behind {
            self.after(self.plan.host_writes.every, Event::HostWrites);
        }
    }

    fn is_over(&mut self) -> bool {
        let edge_over = self.edge.connection.as_ref().is_some_and(Connection::is_closed);
        let guest_over =
            matches!(self.guest.socket().state(), tcp::State::Closed | tcp::State::TimeWait);
        edge_over && guest_over && self.guest.read == self.plan.host_sends
    }

    /// One step of time: everything that is due, then what it led to.
    fn step(&mut self) {
        let deadline = self.edge.connection.as_ref().and_then(Connection::next_deadline);
        let deadline = deadline.map_or(u64::MAX, |at| at.as_nanos().div_ceil(1000));
        let poll = self.guest.interface.poll_at(micros(self.now), &self.guest.sockets);
        // A socket may ask for ever to be polled at once.
        let poll =
            poll.map_or(u64::MAX, |at| at.total_micros().cast_unsigned().max(self.now + IDLE));
        let event = self.queue.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
        self.now = self.now.max(event.min(deadline).min(poll));
        while let Some(&Reverse((at, index))) = self.queue.peek()
            && at <= self.now
        {
            self.queue.pop();
            let event = self.events[index].take().expect("each happens once");
            self.happen(event);
        }
        if deadline <= self.now {
            let now = self.instant();
            let mut actions = vec![];
            self.edge.connection().on_deadline(now, &mut actions);
            self.edge.actions = actions;
            self.edge.perform(&[]);
            self.edge.read_if_wanted(now);
        }
        self.guest.poll(self.now);
        for frame in std::mem::take(&mut self.guest.port.sent) {
            self.send(&frame, Event::ToHost);
        }
        for frame in std::mem::take(&mut self.edge.frames) {
            self.send(&frame, Event::ToGuest);
        }
    }
}

/// Simulated time that any conversation may take. smoltcp's time-out, once backed off to a minute,
/// comes down with the next sample only: with 30 % loss it needs hours for what takes us seconds.
const BOUND: u64 = 12 * 3600 * 1_000_000;

/// An endless exchange within a moment is an error too.
const MAX_STEPS: u32 = 300_000;

fn run(seed: u64) {
    let mut world = World::new(seed);
    let mut steps = 0;
    while !world.is_over() {
        world.step();
        steps += 1;
        if world.now > BOUND || steps > MAX_STEPS {
            let state = world.guest.socket().state();
            let (guest, edge, now) = (&world.guest, &world.edge, world.now);
            panic!(
                "not over after {steps} steps and {now} µs: guest {state}, wrote {} read {}; host read {} took {}, {:#?}\n{:#?}",
                guest.written, guest.read, edge.read, edge.taken, edge.connection, world.plan
            );
        }
    }
    assert_eq!(world.guest.read, world.plan.host_sends);
    assert_eq!(world.edge.taken, world.plan.guest_sends);
    assert!(world.edge.shut && world.edge.closed);
}

/// Prints the seed if the test is failing.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn run_all(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let _seed = Seed(seed);
        run(seed);
    }
}

// In four parts, which run side by side.

#[test]
fn conversations_over_a_bad_link_are_complete_1() {
    run_all(0..100);
}

#[test]
fn conversations_over_a_bad_link_are_complete_2() {
    run_all(100..200);
}

#[test]
fn conversations_over_a_bad_link_are_complete_3() {
    run_all(200..300);
}

#[test]
fn conversations_over_a_bad_link_are_complete_4() {
    run_all(300..400);
}
