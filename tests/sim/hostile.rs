//! Frames that no decent guest sends, many of them: never a reason to panic or to hold more than
//! the limits allow.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;
use tapway::base::{DropReason, Instant};

use crate::bench::{Bench, small_limits};
use crate::frames::{
    ACK, ICMP, ICMPV6, Ip, RST, SERVER4, SERVER6, SYN, TCP, Tcp, UDP, icmp, icmp_frame, udp,
    udp_frame,
};
use crate::peer::Script;
use crate::world::{GATEWAY_MAC, GATEWAY4, GATEWAY6, GUEST_MAC, GUEST4, GUEST6};

#[test]
fn link_padding_is_cut_off() {
    let mut bench = Bench::new(false, small_limits());
    let padded = [udp_frame(Ip::v4(UDP), 4000, 4001, b"x"), vec![0xee; 17]].concat();
    bench.feed(&padded);
    assert_eq!(bench.drops(), []);
    let [answer] = &bench.turn()[..] else { panic!("the echo did not come back") };
    assert_eq!(answer[42..], *b"x");
}

/// The fragments of a datagram, each as offset, more, bytes.
fn fragments(ip: Ip, pieces: &[(u16, bool, &[u8])]) -> Vec<Vec<u8>> {
    pieces.iter().map(|&(offset, more, bytes)| Ip { offset, more, ..ip }.frame(bytes)).collect()
}

#[test]
fn fragments_come_together_and_overlaps_do_not() {
    for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
        let whole = udp(&ip, 4000, 4001, &[0x61; 40]);
        let mut bench = Bench::new(false, small_limits());
        for frame in fragments(ip, &[(24, false, &whole[24..]), (0, true, &whole[..24])]) {
            bench.feed(&frame);
        }
        assert_eq!(bench.host.0.borrow().datagrams_sent, 1);
        assert_eq!(bench.drops(), []);

        let mut bench = Bench::new(false, small_limits());
        let overlapping =
            [(0, true, &whole[..24]), (16, false, &[0xee; 32][..]), (24, false, &whole[24..])];
        for frame in fragments(ip, &overlapping) {
            bench.feed(&frame);
        }
        assert_eq!(bench.host.0.borrow().datagrams_sent, 0);
        assert!(bench.dropped(DropReason::BadFragment) > 0);
        bench.pass(120_000_000_000);
        assert_eq!(bench.held().reassembly_bytes, 0);
    }
}

#[test]
fn a_fragment_beyond_64_kib_is_refused() {
    let ip = Ip::v4(UDP);
    let mut bench = Bench::new(false, small_limits());
    for frame in fragments(ip, &[(65_528, false, &[0; 64])]) {
        bench.feed(&frame);
    }
    assert_eq!(bench.drops(), [(DropReason::BadFragment, 1)]);
}

#[test]
fn fragments_that_never_end_are_bounded_and_time_out() {
    let mut bench = Bench::new(false, small_limits());
    for ident in 0..2000 {
        for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
            for piece in
                fragments(Ip { ident, ..ip }, &[(0, true, &[1; 1400]), (2800, true, &[2; 1400])])
            {
                bench.feed(&piece);
            }
        }
        let held = bench.held().reassembly_bytes;
        assert!(held <= 1 << 20, "{held} bytes of fragments");
    }
    bench.pass(100_000_000_000);
    assert_eq!(bench.held().reassembly_bytes, 0);
    let drops = &bench.worker.counters().drops;
    assert!(drops.get(DropReason::FragmentLimit) > 3000);
    assert!(drops.get(DropReason::FragmentTimeout) > 0);
}

#[test]
fn a_syn_flood_stays_within_the_limit() {
    let mut bench = Bench::new(false, small_limits());
    let slow = Script { connect_delay: u64::MAX / 2, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, slow);
    let ip = Ip::v4(TCP);
    let mut segment = Tcp::new(SYN).segment(&ip);
    for number in 0..100_000u32 {
        segment[0..2].copy_from_slice(&(1 + number as u16 % 60_000).to_be_bytes());
        segment[4..8].copy_from_slice(&(number / 60_000).to_be_bytes());
        segment[16..18].fill(0);
        let sum = ip.sum(&segment);
        segment[16..18].copy_from_slice(&sum);
        bench.tap.0.borrow_mut().inbound.push_back(ip.frame(&segment));
        if number % 64 == 63 {
            bench.now += 10_000;
            bench.turn();
            assert!(bench.flow_count() <= 500);
        }
    }
    assert!(bench.held().syn_bytes <= 4 << 20);
    while !bench.tap.0.borrow().inbound.is_empty() {
        bench.turn();
    }
    open_all(&mut bench);
    assert_eq!(bench.flow_count(), 500);
    let (late, many) = (DropReason::SynBacklog, DropReason::FlowLimit);
    assert!(bench.dropped(late) > 10_000 && bench.dropped(many) > 10_000, "{:?}", bench.drops());
    assert!(bench.held().timers < 10_000);
}

/// Turns until no SYN waits; what the guest sees of it.
fn open_all(bench: &mut Bench) -> Vec<Vec<u8>> {
    let mut answers = vec![];
    for _ in 0..10_000 {
        answers.extend(bench.turn());
        if bench.held().syn_bytes == 0 {
            // What was opened last is connected.
            answers.extend(bench.turn());
            return answers;
        }
    }
    panic!("SYNs wait for ever");
}

/// A SYN from this port of the guest's.
fn syn(port: u16) -> Vec<u8> {
    Tcp { ports: (port, 81), ..Tcp::new(SYN) }.frame(Ip::v4(TCP))
}

#[test]
fn what_is_established_does_not_wait_for_what_is_begun() {
    let mut bench = Bench::new(false, small_limits());
    let script = |waits_for_end| Script { connect_delay: 0, waits_for_end, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, script(true));
    bench.host.0.borrow_mut().serve(81, script(true));
    let (ports, ip) = ((1000, 80), Ip::v4(TCP));
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(ip));
    let [syn_ack] = &bench.turn()[..] else { panic!("no SYN-ACK") };
    let iss = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
    let ack = Tcp { ports, seq: 1001, ack: iss + 1, ..Tcp::new(ACK) };
    bench.feed(&ack.frame(ip));

    // A turn reads 64 frames.
    (0..200).for_each(|number| bench.queue(&syn(2000 + number)));
    bench.queue(&Tcp { payload: b"question".to_vec(), ..ack }.frame(ip));
    let mut answers: Vec<Vec<u8>> = (0..4).flat_map(|_| bench.turn()).collect();
    assert_eq!(bench.host.0.borrow().passed_on(80), 8);
    assert_eq!(bench.flow_count(), 1 + 4 * 8);
    assert!(bench.worker.timeout(Instant::from_nanos(bench.now)) == Some(Duration::ZERO));

    // The others follow in order, each once, however often they ask.
    (0..200).for_each(|number| bench.queue(&syn(2000 + number)));
    answers.extend(open_all(&mut bench));
    let guest_port = |frame: &Vec<u8>| u16::from_be_bytes(frame[36..38].try_into().unwrap());
    let mut ports: Vec<u16> = answers.iter().map(guest_port).filter(|&port| port >= 2000).collect();
    let mut seen = BTreeSet::new();
    ports.retain(|port| seen.insert(*port));
    assert_eq!(ports, (2000..2200).collect::<Vec<u16>>());
    assert_eq!((bench.flow_count(), bench.host.0.borrow().connects), (201, 201));
    assert_eq!(bench.drops(), []);
}

#[test]
fn a_syn_that_has_been_repeated_while_it_waited_opens_once() {
    let mut bench = Bench::new(false, small_limits());
    // Refused at once, so nothing remembers the first.
    (0..60).for_each(|number| bench.queue(&syn(2000 + number)));
    bench.turn();
    assert_eq!(bench.host.0.borrow().connects, 8);
    bench.now += 1_000_000_000;
    (8..60).for_each(|number| bench.queue(&syn(2000 + number)));
    open_all(&mut bench);
    assert_eq!(bench.host.0.borrow().connects, 60);
    assert_eq!(bench.drops(), [(DropReason::SynBacklog, 52)]);
}

#[test]
fn repetitions_of_a_syn_do_not_have_a_turn_to_themselves() {
    let mut bench = Bench::new(false, small_limits());
    let slow = Script { connect_delay: u64::MAX / 2, ..Script::default() };
    bench.host.0.borrow_mut().serve(81, slow);
    (0..100).for_each(|number| bench.queue(&syn(2000 + number)));
    (0..300).for_each(|_| bench.queue(&syn(2099)));
    for turn in 0.. {
        bench.turn();
        if bench.host.0.borrow().connects == 100 {
            break;
        }
        assert!(turn < 100, "some are not opened");
    }
    let before = bench.held().syn_bytes;
    bench.turn();
    let taken = before - bench.held().syn_bytes;
    assert!(bench.held().syn_bytes > 0 && (64 * 80..64 * 200).contains(&taken), "{taken} bytes");
    open_all(&mut bench);
    assert_eq!(bench.host.0.borrow().connects, 100);
}

#[test]
fn a_scan_by_udp_stays_within_the_limit_and_expires() {
    let mut bench = Bench::new(false, small_limits());
    for number in 0..60_000u16 {
        let ip = Ip::v4(UDP);
        let frame = udp_frame(ip, 1024 + number % 50_000, 1 + number, b"scan");
        bench.tap.0.borrow_mut().inbound.push_back(frame);
        if number % 64 == 63 {
            bench.now += 10_000;
            bench.turn();
            let (flows, held) = (bench.flow_count(), bench.held());
            assert!(flows <= 100 && held.timers < 5_000, "{flows} flows, {held:?}");
        }
    }
    assert!(bench.host.0.borrow().open_sockets() <= 100);
    bench.pass(400_000_000_000);
    assert_eq!(bench.flow_count(), 0);
    assert_eq!(bench.host.0.borrow().open_sockets(), 0);
}

#[test]
fn connections_that_come_and_go_leave_no_timers_behind() {
    let mut bench = Bench::new(false, small_limits());
    bench
        .host
        .0
        .borrow_mut()
        .serve(80, Script { connect_delay: 0, waits_for_end: true, ..Script::default() });
    for number in 0..5_500u32 {
        let ports = (1000 + (number % 20_000) as u16, 80);
        let answers = {
            bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
            bench.turn()
        };
        let [syn_ack] = &answers[..] else { panic!("no SYN-ACK: {answers:02x?}") };
        let iss = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
        let ack = Tcp { ports, seq: 1001, ack: iss + 1, ..Tcp::new(ACK) };
        bench.feed(&ack.frame(Ip::v4(TCP)));
        // Beyond the first time-out, so that a timer of hours is set.
        bench.now += 1_200_000_000;
        bench.turn();
        bench.feed(&Tcp { flags: RST, ..ack }.frame(Ip::v4(TCP)));
        assert_eq!(bench.flow_count(), 0, "connection {number}");
    }
    let held = bench.held();
    assert!(held.timers < 4_200, "{held:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        vnet_header in any::<bool>(),
        kind in prop_oneof![Just([8u8, 0]), Just([0x86, 0xdd]), Just([8, 6])],
    ) {
        let mut bench = Bench::new(vnet_header, small_limits());
        bench.feed_raw(bytes.clone());
        let mut framed = GATEWAY_MAC.0.to_vec();
        framed.extend(GUEST_MAC.0);
        framed.extend(kind);
        framed.extend(&bytes);
        bench.feed(&framed);
        bench.turn();
        prop_assert!(bench.flow_count() <= 2);
    }

    #[test]
    fn no_transport_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMP), Just(ICMPV6), any::<u8>()],
        target in 0usize..6,
        ipv6 in any::<bool>(),
    ) {
        let target: IpAddr = match (ipv6, target) {
            (false, 0) => GATEWAY4.into(),
            (false, 1) => Ipv4Addr::BROADCAST.into(),
            (false, 2) => Ipv4Addr::new(10, 0, 2, 3).into(),
            (false, _) => SERVER4.into(),
            (true, 0) => GATEWAY6.into(),
            (true, 1) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
            (true, _) => SERVER6.into(),
        };
        let source: IpAddr = if ipv6 { GUEST6.into() } else { GUEST4.into() };
        let ip = Ip { hop_limit: 255, ..Ip::between(source, target, protocol) };
        let mut bench = Bench::new(true, small_limits());
        bench.feed(&ip.frame(&bytes));
        // Vouched for: nothing is left to the checksum.
        let mut vouched = vec![2u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        vouched.extend(ip.frame(&bytes));
        bench.feed_raw(vouched);
        bench.feed(&icmp_frame(Ip { protocol: if ipv6 { ICMPV6 } else { ICMP }, ..ip }, 3, 4, &bytes));
        bench.turn();
        prop_assert!(icmp(&ip, 0, 0, &bytes).len() == bytes.len() + 4);
    }
}
