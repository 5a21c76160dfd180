//! Several datagrams in one, between guest, engine and host: joined and cut so that nobody can
//! tell, whoever does it.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use proptest::prelude::*;
use tapway::base::DropReason;
use tapway::engine::Published;
use tapway::gate::forward::{ForwardId, Transport};
use tapway::stack::wire::VNET_HEADER_LEN;
use tapway::sys::datagram::Marks;

use crate::bench::{Bench, small_limits};
use crate::frames::{ACK, Ip, TCP, Tcp, UDP, udp_frame};
use crate::guest_kernel::{defragment, joined};
use crate::world::plan;

const PEER: u16 = 4001;

/// Bytes in which no two pieces are alike.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at * 7 / 3 + at / 251) as u8).collect()
}

/// A frame of the guest with datagrams of `size` bytes to port [`PEER`], `len` bytes in all.
fn train(ip: Ip, size: u16, len: usize) -> Vec<u8> {
    joined(udp_frame(ip, 4000, PEER, &bytes(len)), size)
}

/// TOS and payload of the UDP datagrams in `frames`, the fragments of one put together.
fn datagrams(frames: &[Vec<u8>], guest: IpAddr) -> Vec<(u8, Vec<u8>)> {
    let at = if guest.is_ipv4() { 18..20 } else { 58..62 };
    let is_fragment = |frame: &Vec<u8>| match guest {
        IpAddr::V4(_) => frame[20] & 0x3f != 0 || frame[21] != 0,
        IpAddr::V6(_) => frame[20] == 44,
    };
    let tos = |frame: &Vec<u8>| match guest {
        IpAddr::V4(_) => frame[15],
        IpAddr::V6(_) => frame[14] << 4 | frame[15] >> 4,
    };
    frames
        .chunk_by(|a, b| is_fragment(a) && is_fragment(b) && a[at.clone()] == b[at.clone()])
        .map(|packet| (tos(&packet[0]), defragment(packet, guest)[8..].to_vec()))
        .collect()
}

fn payloads(frames: &[Vec<u8>], guest: IpAddr) -> Vec<Vec<u8>> {
    datagrams(frames, guest).into_iter().map(|(_, payload)| payload).collect()
}

#[test]
fn a_frame_with_many_datagrams_is_one_send_and_comes_back_as_one_frame() {
    for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
        let mut bench = Bench::new(true, small_limits());
        bench.feed_raw(train(ip, 1400, 20 * 1400 + 3));
        let before = bench.worker.counters().frames_to_guest;
        assert_eq!(bench.host.0.borrow().datagram_calls, 1);
        assert_eq!(bench.host.0.borrow().datagrams_sent, 21);
        let frames = bench.turn();
        let expected: Vec<Vec<u8>> =
            bytes(20 * 1400 + 3).chunks(1400).map(<[u8]>::to_vec).collect();
        assert_eq!(payloads(&frames, ip.source), expected);
        assert_eq!(bench.worker.counters().frames_to_guest - before, 1);
        assert!(bench.drops().is_empty());
    }
}

#[test]
fn what_a_path_does_not_take_joined_goes_one_by_one_from_then_on() {
    let ip = Ip::v4(UDP);
    let mut bench = Bench::new(true, small_limits());
    bench.host.0.borrow_mut().join_limit = Some(1200);
    for (calls, sends) in [(2, 0), (3, 0)] {
        bench.feed_raw(train(ip, 1400, 5 * 1400));
        assert_eq!(bench.turn().len(), 5);
        assert_eq!(bench.host.0.borrow().datagram_calls, calls);
        assert_eq!(bench.host.0.borrow().joined_sends, sends);
    }
    // Smaller ones still are, and those that came one by one as well.
    bench.feed_raw(train(ip, 1200, 5 * 1200));
    assert_eq!(bench.turn().len(), 5);
    for _ in 0..5 {
        bench.queue(&udp_frame(ip, 4000, PEER, &bytes(1400)));
        bench.queue(&udp_frame(ip, 4000, PEER, &bytes(900)));
        bench.queue(&udp_frame(ip, 4000, PEER, &bytes(900)));
    }
    bench.turn();
    assert_eq!(bench.turn().len(), 15);
    // Before each of the large ones and behind it.
    assert_eq!(bench.host.0.borrow().joined_sends, 1 + 5);
    assert!(bench.drops().is_empty());
}

#[test]
fn datagrams_of_one_turn_are_joined_by_target() {
    let ip = Ip::v6(UDP);
    let mut bench = Bench::new(true, small_limits());
    let mut expected = vec![];
    for number in 0..60u8 {
        let payload = vec![number; if number % 20 == 19 { 7 } else { 300 }];
        bench.queue(&udp_frame(ip, 4000, 5000 + u16::from(number / 20), &payload));
        expected.push(payload);
    }
    bench.turn();
    let host = bench.host.0.clone();
    assert_eq!((host.borrow().datagram_calls, host.borrow().joined_sends), (1, 3));
    assert_eq!(payloads(&bench.turn(), ip.source), expected);
}

#[test]
fn datagrams_of_two_programs_that_take_turns_are_joined_all_the_same() {
    let ip = Ip::v4(UDP);
    let mut bench = Bench::new(true, small_limits());
    for number in 0..40u8 {
        bench.queue(&udp_frame(ip, 4000 + u16::from(number % 2), PEER, &[number; 200]));
    }
    bench.turn();
    assert_eq!(bench.host.0.borrow().joined_sends, 2);
    let numbers: Vec<u8> =
        payloads(&bench.turn(), ip.source).iter().map(|payload| payload[0]).collect();
    let expected: Vec<u8> = (0..40).step_by(2).chain((1..40).step_by(2)).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn each_datagram_of_a_train_that_cannot_be_sent_is_answered() {
    let ip = Ip::v4(UDP);
    let mut bench = Bench::new(false, small_limits());
    bench.host.0.borrow_mut().unreachable.insert(9, Errno::ENETUNREACH);
    for number in 0..3 {
        bench.queue(&udp_frame(ip, 4000, 9, &[number; 50]));
    }
    let frames = bench.turn();
    // ICMP "network unreachable", with the packet that it is about behind its eight bytes.
    let quoted: Vec<u8> = frames.iter().map(|frame| frame[14 + 20 + 8 + 28]).collect();
    assert!(frames.iter().all(|frame| frame[34..36] == [3, 0]), "{frames:?}");
    assert_eq!(quoted, [0, 1, 2]);
}

#[test]
fn a_frame_that_claims_too_many_datagrams_is_dropped() {
    for (size, len) in [(1, 30_000), (100, 12_801), (7, 1000)] {
        let mut bench = Bench::new(true, small_limits());
        bench.feed_raw(train(Ip::v4(UDP), size, len));
        assert_eq!(bench.drops(), [(DropReason::BadOffload, 1)], "{size}");
        assert_eq!(bench.host.0.borrow().datagrams_sent, 0);
    }
    let mut bench = Bench::new(true, small_limits());
    bench.feed_raw(train(Ip::v4(UDP), 0, 1000));
    assert_eq!(bench.drops(), [(DropReason::BadOffload, 1)]);
    // One that is not longer than it says is one datagram.
    for size in [1000, 1001, u16::MAX] {
        bench.feed_raw(train(Ip::v4(UDP), size, 1000));
        assert_eq!(payloads(&bench.turn(), Ip::v4(UDP).source), [bytes(1000)]);
    }
    assert_eq!(bench.host.0.borrow().joined_sends, 0);
}

#[test]
fn a_claim_of_udp_datagrams_changes_nothing_about_a_segment() {
    let segment = Tcp::new(ACK).frame(Ip::v4(TCP));
    let answer = |claim: &[u8]| {
        let mut bench = Bench::new(true, small_limits());
        let mut header = [0; VNET_HEADER_LEN];
        header[..claim.len()].copy_from_slice(claim);
        bench.feed_raw([&header[..], &segment].concat())
    };
    // Kind 5 is GSO_UDP_L4, then the headers' length, then the size: five bytes.
    let claimed = answer(&[0, 5, 0, 0, 5, 0]);
    assert_eq!(claimed.len(), 1, "a reset");
    assert_eq!(claimed, answer(&[]));
}

#[test]
fn queries_in_one_frame_are_asked_one_by_one() {
    let mut bench = Bench::new(true, small_limits());
    let dns: IpAddr = "10.0.2.3".parse().unwrap();
    let queries = udp_frame(Ip::v4(UDP).to(dns), 4000, 53, &bytes(90));
    bench.feed_raw(joined(queries, 30));
    assert_eq!(bench.host.0.borrow().dns_queries.len(), 3);
}

#[test]
fn a_guest_without_segmentation_of_udp_gets_datagrams() {
    let ip = Ip::v6(UDP);
    let peer = SocketAddr::new(ip.target, PEER);
    for (vnet_header, uso, size, frames_written) in [
        (true, true, 1000, 1),
        (true, false, 1000, 5),
        (false, false, 1000, 5),
        (true, true, 2000, 5),
    ] {
        let mut bench = Bench::with_uso(plan(1500), vnet_header, uso, small_limits());
        bench.feed(&udp_frame(ip, 4000, PEER, b"?"));
        bench.turn();
        let before = bench.worker.counters().frames_to_guest;
        let whole = bytes(4 * size + 1);
        bench.host.0.borrow_mut().inject_as(peer, Marks::DEFAULT, &whole, Some(size as u16));
        let frames = bench.turn();
        let expected: Vec<Vec<u8>> = whole.chunks(size).map(<[u8]>::to_vec).collect();
        assert_eq!(payloads(&frames, ip.source), expected, "uso {uso}, {size} bytes");
        let written = bench.worker.counters().frames_to_guest - before;
        // Beyond the MTU each comes in two fragments, but for the last.
        let written = if size > 1452 { written - 4 } else { written };
        assert_eq!(written, frames_written);
    }
}

#[test]
fn clients_of_a_published_port_and_its_answers_are_joined_too() {
    let ip = Ip::v4(UDP);
    let mut bench = Bench::new(true, small_limits());
    let (socket, id) = bench.host.datagram_port();
    let rule = Published {
        forward: ForwardId(1),
        transport: Transport::Udp,
        guest_address: None,
        guest_port: 4000,
    };
    bench.worker.publish_datagrams(rule, socket).unwrap();
    let clients: [SocketAddr; 2] = [(ip.target, PEER).into(), (ip.target, 4002).into()];
    for client in [0, 0, 0, 1, 1] {
        bench.host.0.borrow_mut().inject_into(id, clients[client], &bytes(700));
    }
    let before = bench.worker.counters().frames_to_guest;
    let frames = bench.turn();
    assert_eq!(payloads(&frames, ip.source), vec![bytes(700); 5]);
    assert_eq!(bench.worker.counters().frames_to_guest - before, 2, "one for each client");
    // Answers: a train of the guest's own, and single ones.
    bench.queue(&udp_frame(ip, 4000, 4002, b"one"));
    bench.queue(&udp_frame(ip, 4000, 4002, b"two"));
    bench.turn();
    bench.feed_raw(train(ip, 500, 1600));
    let host = bench.host.0.borrow();
    assert_eq!((host.joined_sends, host.datagram_calls), (2, 2));
    let expected: Vec<(SocketAddr, Vec<u8>)> =
        [(clients[1], b"one".to_vec()), (clients[1], b"two".to_vec())]
            .into_iter()
            .chain(bytes(1600).chunks(500).map(|piece| (clients[0], piece.to_vec())))
            .collect();
    assert_eq!(host.answers(id), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_claim_of_the_guest_is_believed_beyond_its_frame(
        v6: bool,
        flags in 0u8..4,
        kind in prop_oneof![Just(0u8), Just(1), Just(3), Just(4), Just(5), Just(0x85), any::<u8>()],
        size in prop_oneof![0u16..4, 4u16..3000, any::<u16>()],
        start_and_offset in any::<(u16, u16)>(),
        len in prop_oneof![0usize..40, 0usize..60_000],
        udp_len in proptest::option::of(any::<u16>()),
        port in prop_oneof![Just(PEER), Just(53)],
    ) {
        let mut ip = if v6 { Ip::v6(UDP) } else { Ip::v4(UDP) };
        if port == 53 && !v6 {
            ip = ip.to("10.0.2.3".parse::<IpAddr>().unwrap());
        }
        let mut frame = udp_frame(ip, 4000, port, &bytes(len));
        if let Some(udp_len) = udp_len {
            let at = 14 + if v6 { 40 } else { 20 } + 4;
            frame[at..at + 2].copy_from_slice(&udp_len.to_be_bytes());
        }
        let mut header = vec![flags, kind, 0, 0];
        header.extend(size.to_ne_bytes());
        header.extend(start_and_offset.0.to_ne_bytes());
        header.extend(start_and_offset.1.to_ne_bytes());
        header.extend([0; 2]);
        let mut bench = Bench::new(true, small_limits());
        bench.feed_raw([header, frame].concat());
        bench.turn();
        let host = bench.host.0.borrow();
        prop_assert!(host.datagrams_sent <= 128 && host.dns_queries.len() <= 128);
        prop_assert!(host.datagrams_sent <= 1 || kind & 0x7f == 5);
    }
}

/// What a peer sends: its size, its TOS, and how many of them the kernel has joined.
fn sent() -> impl Strategy<Value = (usize, u8, usize)> {
    let size = prop_oneof![Just(1200usize), Just(64), 0usize..3, 1usize..3000];
    (
        size,
        prop_oneof![4 => Just(0u8), 1 => Just(0xb9)],
        prop_oneof![3 => Just(1usize), 1 => 2usize..20],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_comes_from_a_peer_reaches_the_guest_as_it_was_sent(
        v6: bool,
        vnet_header: bool,
        uso: bool,
        mtu in prop_oneof![Just(1500u16), 1280u16..3000, Just(65_520)],
        all in proptest::collection::vec(sent(), 1..90),
    ) {
        let ip = if v6 { Ip::v6(UDP) } else { Ip::v4(UDP) };
        let mut bench = Bench::with_uso(plan(mtu), vnet_header, uso, small_limits());
        bench.mtu = usize::from(mtu);
        bench.feed(&udp_frame(ip, 4000, PEER, b"?"));
        bench.turn();
        let mut expected = vec![];
        for (number, (size, tos, count)) in all.into_iter().enumerate() {
            // A datagram without contents cannot be joined.
            let count = if size == 0 { 1 } else { count };
            let mut whole = bytes(size * count);
            whole.iter_mut().step_by(size.max(1)).for_each(|first| *first = number as u8);
            let pieces = whole.chunks(size.max(1)).map(|piece| (tos, piece.to_vec()));
            expected.extend(pieces);
            if size == 0 {
                expected.push((tos, vec![]));
            }
            let marks = Marks { tos, ..Marks::DEFAULT };
            let segment_size = (count > 1).then_some(size as u16);
            let peer = SocketAddr::new(ip.target, PEER);
            bench.host.0.borrow_mut().inject_as(peer, marks, &whole, segment_size);
        }
        let mut frames = bench.turn();
        frames.extend(bench.turn());
        prop_assert_eq!(datagrams(&frames, ip.source), expected);
        prop_assert!(bench.drops().is_empty());
    }

    #[test]
    fn whatever_the_guest_sends_in_one_turn_reaches_its_peers_as_it_was_sent(
        v6: bool,
        join_limit in proptest::option::of(0u16..2000),
        all in proptest::collection::vec(
            (prop_oneof![Just(1200usize), Just(64), 0usize..3, 1usize..3000], 0u16..3, 1usize..10),
            1..64,
        ),
    ) {
        let ip = if v6 { Ip::v6(UDP) } else { Ip::v4(UDP) };
        let mut bench = Bench::new(true, small_limits());
        let (socket, id) = bench.host.datagram_port();
        let rule = Published {
            forward: ForwardId(1),
            transport: Transport::Udp,
            guest_address: None,
            guest_port: 4000,
        };
        bench.worker.publish_datagrams(rule, socket).unwrap();
        bench.host.0.borrow_mut().join_limit = join_limit;
        let client = |port: u16| SocketAddr::new(ip.target, PEER + port);
        for port in 0..3 {
            bench.host.0.borrow_mut().inject_into(id, client(port), b"?");
        }
        bench.turn();
        let mut expected = vec![];
        for (number, (size, port, count)) in all.into_iter().enumerate() {
            let mut whole = bytes(size * count);
            whole.iter_mut().step_by(size.max(1)).for_each(|first| *first = number as u8);
            let frame = udp_frame(ip, 4000, PEER + port, &whole);
            let frame = joined(frame, (size as u16).max(1));
            bench.tap.0.borrow_mut().inbound.push_back(frame);
            if size == 0 {
                expected.push((client(port), vec![]));
            }
            expected.extend(whole.chunks(size.max(1)).map(|piece| (client(port), piece.to_vec())));
        }
        bench.turn();
        let host = bench.host.0.borrow();
        prop_assert_eq!(host.answers(id), &expected[..]);
        prop_assert!(bench.drops().is_empty());
    }
}
