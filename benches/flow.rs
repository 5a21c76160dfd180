//! What the data structures of the data path cost, and a turn of the worker without system calls.
//!
//! `cargo bench --bench flow`

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use tapway::base::{Instant, Mac};
use tapway::engine::ports::{Accepted, Event, FramePort, Readiness, SocketPort, StreamFacts};
use tapway::engine::token::{Kind, Token};
use tapway::engine::{FlowTable, Limits, MappingKey, Options, TcpKey, Wheel, Worker};
use tapway::gate::{AddressPlan, Habits, Plan4, PublishPath};
use tapway::stack::wire::{VNET_HEADER_LEN, checksum};
use tapway::sys::datagram::{Batch, Marks, Outgoing, SocketError};

fn main() {
    divan::main();
}

const SIZES: [u32; 2] = [1_000, 100_000];

fn key(number: u32) -> TcpKey {
    let guest = SocketAddr::from(([10, 0, 2, 100], 1024 + (number % 60_000) as u16));
    let peer = SocketAddr::from((Ipv4Addr::from(0xc000_0200 + number / 60_000), 443));
    TcpKey::new(guest, peer)
}

fn table(size: u32) -> FlowTable<TcpKey, u32> {
    let mut table = FlowTable::new(Kind::Tcp, usize::MAX);
    for number in 0..size {
        table.insert(key(number), number);
    }
    table
}

#[divan::bench(args = SIZES)]
fn lookup_hit(bencher: Bencher<'_, '_>, size: u32) {
    let table = table(size);
    let mut number = 0u32;
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        // A stride that is prime to both sizes: no help from the cache.
        number = (number + 7_919) % size;
        black_box(table.find(&key(number)))
    });
}

#[divan::bench(args = SIZES)]
fn lookup_miss(bencher: Bencher<'_, '_>, size: u32) {
    let table = table(size);
    let mut number = 0u32;
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        number = (number + 7_919) % size;
        black_box(table.find(&key(size + number)))
    });
}

#[divan::bench(args = SIZES)]
fn wheel_insert_and_expire(bencher: Bencher<'_, '_>, size: u32) {
    let mut wheel = Wheel::new(Instant::ZERO);
    let mut now = Instant::ZERO;
    let delay = |number: u32| Duration::from_millis(u64::from(number) * 7_919 % 10_000);
    for number in 0..size {
        wheel.insert(now + delay(number), number);
    }
    let mut due = Vec::new();
    // Every entry that fires is inserted again, so the number of entries stays.
    bencher.bench_local(|| {
        now = now + Duration::from_millis(1);
        wheel.expire(now, &mut due);
        for number in due.drain(..) {
            wheel.insert(now + Duration::from_secs(1) + delay(number), number);
        }
    });
}

/// A TAP that delivers one prepared segment again and again, its sequence number moved on.
#[derive(Default)]
struct Tap {
    frame: Vec<u8>,
    payload_len: u32,
    /// Frames left to deliver in this turn.
    left: u32,
    written: Vec<u8>,
}

/// Where the sequence number stands in a frame.
const SEQ_AT: usize = VNET_HEADER_LEN + 14 + 20 + 4;

#[derive(Clone, Default)]
struct TapPort(Rc<RefCell<Tap>>);

impl FramePort for TapPort {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tap = &mut *self.0.borrow_mut();
        if tap.left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        tap.left -= 1;
        let len = tap.frame.len();
        buffer[..len].copy_from_slice(&tap.frame);
        let field = &mut tap.frame[SEQ_AT..SEQ_AT + 4];
        let seq = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        field.copy_from_slice(&seq.wrapping_add(tap.payload_len).to_be_bytes());
        Ok(len)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let written = &mut self.0.borrow_mut().written;
        written.clear();
        for part in parts {
            written.extend_from_slice(part);
        }
        Ok(())
    }
}

/// A host that takes everything and says nothing.
struct Host;

impl SocketPort for Host {
    type Stream = ();
    type Listener = ();
    type Datagram = ();
    type Pipe = ();

    fn connect_unix(&mut self, _: Token, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn watch_listener(&mut self, _: Token, _: &()) -> io::Result<()> {
        Ok(())
    }

    fn accept(&mut self, _: &(), _: Token) -> io::Result<Accepted<()>> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn stream_facts(&mut self, _: &()) -> StreamFacts {
        StreamFacts::default()
    }

    fn watch_datagrams(&mut self, _: Token, _: &()) -> io::Result<()> {
        Ok(())
    }

    fn datagram_local(&mut self, _: &()) -> Option<SocketAddr> {
        None
    }

    fn connect(&mut self, _: Token, _: SocketAddr, _: Marks) -> io::Result<()> {
        Ok(())
    }

    fn connect_dns(&mut self, _: Token) -> io::Result<()> {
        Ok(())
    }

    fn ask_dns(&mut self, _: u64, _: &[u8]) -> bool {
        true
    }

    fn send(&mut self, _: &(), parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn recv(&mut self, _: &(), _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn at_end(&mut self, _: &()) -> io::Result<bool> {
        Ok(false)
    }

    fn forget(&mut self, _: &Self::Stream) {}

    fn adopt(&mut self, _: Token, _: &Self::Stream) -> io::Result<()> {
        Ok(())
    }

    fn share(&mut self, _: &()) -> io::Result<()> {
        Ok(())
    }

    fn take_error(&mut self, _: &()) -> Option<io::Error> {
        None
    }

    fn shutdown_write(&mut self, _: &()) {}

    fn reset(&mut self, _: ()) {}

    fn keep_alive(&mut self, _: &()) {}

    fn connect_error(&mut self, _: &()) -> Option<SocketError<'static>> {
        None
    }

    fn connected(&mut self, _: &()) {}
    fn no_delay(&mut self, _: &()) {}

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

const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);
const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A segment as the guest's kernel hands it over: the checksum is vouched for.
fn segment(seq: u32, ack: u32, flags: u8, payload_len: usize) -> Vec<u8> {
    let mut vnet = [0; VNET_HEADER_LEN];
    vnet[0] = 2;
    let total = 40 + payload_len as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(GUEST.octets());
    ip.extend(SERVER.octets());
    let sum = !checksum::fold(checksum::sum(&ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = vec![];
    tcp.extend(40_000u16.to_be_bytes());
    tcp.extend(443u16.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.resize(20 + payload_len, 0x61);
    [&vnet[..], &GATEWAY_MAC.0, &GUEST_MAC.0, &[8, 0], &ip, &tcp].concat()
}

fn tap_event() -> [Event; 1] {
    let readiness = Readiness { readable: true, ..Readiness::default() };
    [Event { token: Token::only(Kind::Tap), readiness }]
}

/// A worker with one established connection, and its TAP.
fn established(payload_len: u32) -> (Worker<TapPort, Host>, TapPort) {
    let plan = AddressPlan {
        v4: Some(Plan4 {
            guest: GUEST,
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
        }),
        v6: None,
        gateway_mac: GATEWAY_MAC,
        guest_mac: GUEST_MAC,
        mtu: 1500,
        host_loopback: vec![],
        search: vec![],
        sharing: None,
        habits: Habits::default(),
    };
    let tap = TapPort::default();
    let options = Options {
        plan,
        vnet_header: true,
        uso: true,
        big_packets: true,
        publish_path: PublishPath::Tap,
        limits: Limits::default(),
        seed: 1,
    };
    let mut worker = Worker::new(Instant::ZERO, tap.clone(), Host, options);
    let mut feed = |frame: Vec<u8>, events: &[Event]| {
        *tap.0.borrow_mut() = Tap { frame, left: 1, ..Tap::default() };
        worker.turn(Instant::ZERO, events).expect("the TAP of a benchmark does not fail");
    };
    feed(segment(999, 0, 2, 0), &tap_event());
    let connected = Token { kind: Kind::Tcp, generation: 0, index: 0 };
    let readiness = Readiness { writable: true, ..Readiness::default() };
    feed(vec![], &[Event { token: connected, readiness }]);
    let ours = tap.0.borrow().written[SEQ_AT..SEQ_AT + 4].to_vec();
    let ours = u32::from_be_bytes([ours[0], ours[1], ours[2], ours[3]]).wrapping_add(1);
    feed(segment(1000, ours, 0x10, 0), &tap_event());
    let frame = segment(1000, ours, 0x18, payload_len as usize);
    *tap.0.borrow_mut() = Tap { frame, payload_len, ..Tap::default() };
    (worker, tap)
}

/// Segments of 100 bytes, some per turn.
#[divan::bench(args = [1u32, 64])]
fn turn_with_small_segments(bencher: Bencher<'_, '_>, per_turn: u32) {
    let (mut worker, tap) = established(100);
    let events = tap_event();
    let mut now = 0;
    bencher.counter(ItemsCount::new(per_turn)).bench_local(|| {
        now += 10_000;
        tap.0.borrow_mut().left = per_turn;
        worker.turn(Instant::from_nanos(now), &events)
    });
    assert_eq!(worker.flow_count(), 1);
    assert_eq!(worker.counters().drops.nonzero().count(), 0, "every segment has to be taken");
}
