//! The stage's own tests: what it claims of a path is measured here, so that a figure of the grid
//! can be believed. A target of its own, because a benchmark has no test harness.

#![expect(unreachable_pub, reason = "these modules are those of a program")]

mod cut;
mod line;
mod pump;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, IpRepr,
    Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use tapway::base::Instant;
use tapway::stack::wire::{Gso, VNET_HEADER_LEN, VnetHeader};
use tapway::sys::clock;

use cut::Shape;
use line::{Admitted, Conditions, HELD_LIMIT, Line, Tally};
use pump::{Order, pump};

const ETHERNET: usize = 14;

/// Just below the wrap.
const SEQ: i32 = -1000;

/// A frame of TCP as a TAP gives it: headers with the sum of the pseudo-header, and a payload that
/// counts up, to be cut into segments of `segment` bytes.
fn tcp_frame(ipv6: bool, payload: usize, segment: u16) -> Vec<u8> {
    let bytes: Vec<u8> = (0..payload).map(|n| n as u8).collect();
    let tcp = TcpRepr {
        src_port: 4321,
        dst_port: 80,
        control: TcpControl::Fin,
        seq_number: TcpSeqNumber(SEQ),
        ack_number: Some(TcpSeqNumber(77)),
        window_len: 500,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [Some((90, 99)), None, None],
        timestamp: None,
        payload: &bytes,
    };
    let (from, to): (IpAddress, IpAddress) = match ipv6 {
        false => (IpAddress::v4(10, 0, 0, 1), IpAddress::v4(192, 0, 2, 7)),
        true => (
            IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 1),
            IpAddress::v6(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
        ),
    };
    let ip = IpRepr::new(from, to, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut frame = vec![0; VNET_HEADER_LEN + ETHERNET + ip.header_len() + tcp.buffer_len()];
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
        dst_addr: EthernetAddress([2, 0, 0, 0, 0, 2]),
        ethertype: if ipv6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 },
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[VNET_HEADER_LEN..]));
    let start = ETHERNET + ip.header_len();
    let sums = ChecksumCapabilities::ignored();
    ip.emit(&mut frame[VNET_HEADER_LEN + ETHERNET..], &ChecksumCapabilities::default());
    let mut packet = TcpPacket::new_unchecked(&mut frame[VNET_HEADER_LEN + start..]);
    tcp.emit(&mut packet, &from, &to, &sums);
    packet.set_checksum(pseudo_header_sum(&from, &to, tcp.buffer_len()));
    let gso = if ipv6 { Gso::Tcp6(segment) } else { Gso::Tcp4(segment) };
    let vnet = VnetHeader {
        partial_checksum: Some((start as u16, 16)),
        checksum_valid: false,
        gso: (payload > usize::from(segment)).then_some(gso),
        header_len: (start + tcp.header_len()) as u16,
    };
    vnet.emit(&mut frame);
    frame
}

/// RFC 9293 §3.1 and RFC 8200 §8.1: addresses, protocol, length; not inverted.
fn pseudo_header_sum(from: &IpAddress, to: &IpAddress, len: usize) -> u16 {
    let octets = |address: &IpAddress| match address {
        IpAddress::Ipv4(ip) => ip.octets().to_vec(),
        IpAddress::Ipv6(ip) => ip.octets().to_vec(),
    };
    let bytes = [octets(from), octets(to), vec![0, 6]].concat();
    let mut sum = len as u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What a receiver sees of a frame: sequence number, payload, FIN; its headers are checked.
fn seen(frame: &[u8]) -> (TcpSeqNumber, Vec<u8>, bool) {
    let vnet = VnetHeader::parse(frame).unwrap();
    let ethernet = EthernetFrame::new_checked(&frame[VNET_HEADER_LEN..]).unwrap();
    let (from, to, transport): (IpAddress, IpAddress, &[u8]) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!(usize::from(ip.total_len()), ethernet.payload().len());
            let start = usize::from(ip.header_len());
            (ip.src_addr().into(), ip.dst_addr().into(), &ethernet.payload()[start..])
        }
        _ => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
            assert_eq!(usize::from(ip.payload_len()) + 40, ethernet.payload().len());
            (ip.src_addr().into(), ip.dst_addr().into(), &ethernet.payload()[40..])
        }
    };
    let tcp = TcpPacket::new_checked(transport).unwrap();
    assert!(vnet.partial_checksum.is_some());
    // Both forms of zero are one number in ones' complement.
    let expected = pseudo_header_sum(&from, &to, transport.len());
    let is_zero = |sum: u16| sum == 0 || sum == 0xffff;
    let found = tcp.checksum();
    assert!(found == expected || is_zero(found) && is_zero(expected), "{found:x} {expected:x}");
    assert_eq!(vnet.gso.is_some(), tcp.payload().len() > 1000);
    (tcp.seq_number(), tcp.payload().to_vec(), tcp.fin())
}

fn conditions() -> Conditions {
    Conditions { delay: Duration::from_millis(10), ..Conditions::NONE }
}

/// Everything that is on the line, each with the time at which it arrives.
fn drain(line: &mut Line) -> Vec<(Instant, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some(due) = line.next_due() {
        assert!(line.take_due(Instant::from_nanos(due.as_nanos() - 1)).is_none());
        out.push((due, line.take_due(due).unwrap()));
    }
    out
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(1000 + millis)
}

#[test]
fn a_piece_carries_its_segments_under_headers_of_its_own() {
    for ipv6 in [false, true] {
        let frame = tcp_frame(ipv6, 4500, 1000);
        let shape = Shape::of(&frame);
        assert_eq!(shape.segments(), 5);
        let bytes: Vec<u8> = (0..4500).map(|n| n as u8).collect();
        for (segments, payload, fin) in [
            (0..5, 0..4500, true),
            (0..1, 0..1000, false),
            (1..4, 1000..4000, false),
            (3..5, 3000..4500, true),
            (4..5, 4000..4500, true),
        ] {
            let piece = shape.piece(&frame, &segments);
            let expected = (TcpSeqNumber(SEQ) + payload.start, bytes[payload].to_vec(), fin);
            assert_eq!(seen(&piece), expected, "{segments:?}");
        }
    }
}

#[test]
fn what_is_no_tcp_of_many_segments_counts_as_one() {
    let whole = tcp_frame(false, 900, 1000);
    for len in 0..whole.len() {
        let shape = Shape::of(&whole[..len]);
        assert_eq!(shape.segments(), 1);
        assert_eq!(shape.piece(&whole[..len], &(0..1)), &whole[..len]);
    }
    // 14 + 20 + 32 bytes of headers with a SACK block, 24 bytes besides the frame.
    assert_eq!(Shape::of(&tcp_frame(false, 4500, 1000)).wire_bytes(4), 66 + 500 + 24);
}

#[test]
fn frames_arrive_after_the_delay_and_in_order() {
    let mut line = Line::new(conditions());
    for n in 0..100_u64 {
        let frame = vec![n as u8; 60];
        assert_eq!(line.admit(at(n / 3), &frame), Admitted::Whole(1));
        line.put(at(n / 3), frame, 1);
    }
    assert_eq!(line.next_due(), Some(at(10)));
    for (n, (due, frame)) in drain(&mut line).into_iter().enumerate() {
        assert_eq!(due, at(10 + n as u64 / 3));
        assert_eq!(frame, [n as u8; 60]);
    }
}

#[test]
fn segments_are_lost_in_the_proportion_asked_for_whatever_frames_they_are_in() {
    for (payload, segments) in [(500, 1), (45_000, 45)] {
        for loss_ppm in [1_000, 10_000, 500_000] {
            let mut line = Line::new(Conditions { loss_ppm, seed: 7, ..conditions() });
            let frame = tcp_frame(false, payload, 1000);
            let mut arrived = 0;
            while line.tally().segments < 50_000 {
                if let Admitted::Whole(count) = line.admit(at(0), &frame) {
                    line.put(at(0), frame.clone(), count);
                }
                arrived += drain(&mut line).iter().map(|(_, f)| seen(f).1.len()).sum::<usize>();
            }
            let Tally { segments: came, lost, .. } = line.tally();
            assert_eq!(arrived, (came - lost) as usize * payload / segments);
            // Four standard deviations of a binomial distribution.
            let p = f64::from(loss_ppm) / 1e6;
            let (mean, bound) = (came as f64 * p, 4.0 * (came as f64 * p * (1.0 - p)).sqrt());
            assert!((lost as f64 - mean).abs() < bound, "{lost} of {came} lost, p = {p}");
        }
    }
}

#[test]
fn the_same_seed_loses_the_same_segments() {
    let survivors = |seed| {
        let mut line = Line::new(Conditions { loss_ppm: 200_000, seed, ..conditions() });
        for _ in 0..50 {
            line.admit(at(0), &tcp_frame(true, 9000, 1000));
        }
        drain(&mut line).into_iter().map(|(_, frame)| seen(&frame).0).collect::<Vec<_>>()
    };
    assert_eq!(survivors(3), survivors(3));
    assert_ne!(survivors(3), survivors(4));
}

#[test]
fn nothing_is_lost_in_the_time_that_is_spared_and_the_same_segments_are_behind_it() {
    let survivors = |spared: u64| {
        let spared = Duration::from_millis(spared);
        let mut line = Line::new(Conditions { loss_ppm: 200_000, seed: 3, spared, ..conditions() });
        let frame = |n: u64| vec![n as u8; 60];
        for n in 0..200 {
            // The time begins with the first frame.
            if let Admitted::Whole(count) = line.admit(at(500 + n), &frame(n)) {
                line.put(at(500 + n), frame(n), count);
            }
        }
        drain(&mut line).iter().map(|(_, frame)| frame[0]).collect::<Vec<u8>>()
    };
    let (spared, all) = (survivors(100), survivors(0));
    assert!(spared.iter().take(100).copied().eq(0..100));
    let behind = |of: &[u8]| of.iter().copied().filter(|n| *n >= 100).collect::<Vec<_>>();
    assert_eq!(behind(&spared), behind(&all));
    assert!(behind(&all).len() < 100 && all.len() < spared.len());
}

#[test]
fn a_rate_spaces_frames_out_and_its_queue_holds_a_round_trip() {
    // 1 MB in a round trip of 20 ms.
    let rate = 400_000_000;
    let mut line = Line::new(Conditions { rate: Some(rate), ..conditions() });
    let frame = vec![0; VNET_HEADER_LEN + 976];
    while line.tally().queue_full == 0 {
        if line.admit(at(0), &frame) == Admitted::Whole(1) {
            line.put(at(0), frame.clone(), 1);
        }
    }
    // 976 bytes and 24 besides take 20 µs.
    let arrivals: Vec<Instant> = drain(&mut line).into_iter().map(|(due, _)| due).collect();
    assert_eq!(arrivals.len(), 1000);
    assert_eq!(arrivals[0], at(10) + Duration::from_micros(20));
    assert_eq!(arrivals[999], at(30));
    // When half of it is sent, there is room for half.
    assert_eq!(line.admit(at(10), &frame), Admitted::Whole(1));
}

#[test]
fn the_queue_takes_of_a_frame_what_fits() {
    let rate = 8_000_000;
    let mut line = Line::new(Conditions { rate: Some(rate), ..conditions() });
    let frame = tcp_frame(false, 60_000, 1000);
    let mut admitted = Vec::new();
    for _ in 0..6 {
        if let Admitted::Whole(count) = line.admit(at(0), &frame) {
            line.put(at(0), frame.clone(), count);
        }
        admitted.push(line.tally().segments - line.tally().queue_full);
    }
    // 256 KiB of segments of 1,090 bytes.
    assert_eq!(admitted, [60, 120, 180, 240, 240, 240]);
    let payload: usize = drain(&mut line).iter().map(|(_, f)| seen(f).1.len()).sum();
    assert_eq!(payload, 240_000);
}

#[test]
fn a_line_holds_no_more_than_its_limit() {
    let mut line = Line::new(Conditions { delay: Duration::from_secs(9), ..conditions() });
    let frame = vec![0; 1 << 20];
    for n in 0..200 {
        line.put(at(n), frame.clone(), 1);
    }
    let held = drain(&mut line);
    assert_eq!(held.len(), HELD_LIMIT >> 20);
    assert_eq!(line.tally().over_limit, 200 - (HELD_LIMIT >> 20) as u64);
    // What has arrived makes room.
    line.put(at(300), frame, 1);
    assert_eq!(drain(&mut line).len(), 1);
}

proptest! {
    #[test]
    fn no_frame_makes_it_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 0..200),
        flags in 0u8..2, kind in 0u8..6, size in 0u16..50, start in 0u16..60, cut in 0usize..200,
    ) {
        // Not quite any bytes: an offload that might be believed.
        if frame.len() >= VNET_HEADER_LEN {
            frame[..2].copy_from_slice(&[flags, kind]);
            frame[4..6].copy_from_slice(&size.to_ne_bytes());
            frame[6..8].copy_from_slice(&start.to_ne_bytes());
        }
        let mut valid = tcp_frame(false, 180, 50);
        valid.truncate(cut);
        for frame in [frame, valid] {
            let mut line = Line::new(Conditions { loss_ppm: 500_000, seed: 1, ..conditions() });
            for _ in 0..4 {
                let _ = line.admit(at(0), &frame);
            }
            prop_assert!(drain(&mut line).iter().all(|(_, piece)| piece.len() <= frame.len()));
        }
    }
}

/// A pump between two pairs of sockets that keep frames apart, as TAPs do.
struct Bench {
    near: OwnedFd,
    far: OwnedFd,
    orders: Sender<Order>,
    wake: EventFd,
}

impl Bench {
    fn start(conditions: Conditions) -> Bench {
        let pair = || {
            let kind = SockType::SeqPacket;
            let ends = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_NONBLOCK);
            let ends = ends.unwrap();
            setsockopt(&ends.0, sockopt::SndBuf, &(1 << 20)).unwrap();
            setsockopt(&ends.1, sockopt::SndBuf, &(1 << 20)).unwrap();
            ends
        };
        let ((near, from), (to, far)) = (pair(), pair());
        let wake = EventFd::new().unwrap();
        let woken = wake.as_fd().try_clone_to_owned().unwrap();
        let (orders, told) = mpsc::channel();
        thread::spawn(move || {
            // It ends when the test has closed its end.
            let _: io::Result<()> = pump(from.as_fd(), to.as_fd(), woken.as_fd(), &told);
        });
        let bench = Bench { near, far, orders, wake };
        bench.order(Order::Change(conditions));
        bench.tally();
        bench
    }

    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.wake.write(1).unwrap();
    }

    fn tally(&self) -> Tally {
        let (answer, told) = mpsc::channel();
        self.order(Order::Tell(answer));
        told.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn send(&self, frame: &[u8]) {
        use std::os::fd::AsRawFd;
        assert_eq!(send(self.near.as_raw_fd(), frame, MsgFlags::empty()), Ok(frame.len()));
    }

    /// The next frame that arrives within ten seconds.
    fn receive(&self) -> Vec<u8> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsRawFd;
        let mut fds = [PollFd::new(self.far.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)), Ok(1), "no frame arrives");
        let mut frame = vec![0; 70_000];
        let len = recv(self.far.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
        frame.truncate(len);
        frame
    }
}

#[test]
fn a_pump_delays_by_what_is_asked_for_and_hardly_more() {
    for millis in [1, 10, 50] {
        let delay = Duration::from_millis(millis);
        let bench = Bench::start(Conditions { delay, ..Conditions::NONE });
        let mut late: Vec<Duration> = (0..21_u8)
            .map(|n| {
                let before = clock::now();
                bench.send(&[n; 100]);
                assert_eq!(bench.receive(), [n; 100]);
                let took = clock::now().since(before);
                assert!(took >= delay, "{took:?} instead of {delay:?}");
                took - delay
            })
            .collect();
        late.sort();
        // The machine may be busy; a few frames are not met by that.
        assert!(late[2] < Duration::from_millis(2), "{:?} late, of {delay:?}", late[2]);
    }
}

#[test]
fn a_pump_keeps_frames_whole_and_in_order() {
    let bench = Bench::start(Conditions { delay: Duration::from_millis(5), ..Conditions::NONE });
    let len = |n: usize| 60 + n * 60_000 / 100;
    for n in 0..100 {
        bench.send(&vec![n as u8; len(n)]);
        if n % 5 == 4 {
            for m in n - 4..=n {
                assert_eq!(bench.receive(), vec![m as u8; len(m)]);
            }
        }
    }
    let tally = Tally { segments: 100, ..Tally::default() };
    assert_eq!(bench.tally(), tally);
}

#[test]
fn a_change_forgets_what_is_under_way() {
    let bench = Bench::start(Conditions { delay: Duration::from_secs(60), ..Conditions::NONE });
    bench.send(b"never to arrive, as it seems");
    while bench.tally().segments == 0 {
        thread::yield_now();
    }
    bench.order(Order::Change(Conditions::NONE));
    bench.tally();
    bench.send(b"the first on another path");
    assert_eq!(bench.receive(), b"the first on another path");
}
