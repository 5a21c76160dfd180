//! Datagrams and pings through the engine: there and back unchanged, from the addressed only, and
//! gone when idle.

use std::net::IpAddr;

use nix::errno::Errno;
use tapway::base::DropReason;
use tapway::gate::AddressPlan;

use crate::bench::{Bench, small_limits};
use crate::frames::{ICMP, ICMPV6, Ip, UDP, icmp_frame, refill_ip_checksum, udp, udp_frame};
use crate::guest_kernel::defragment;
use crate::world::plan;

const SECOND: u64 = 1_000_000_000;

/// The payload of the one datagram in `frames`, which may be fragments, with its ports.
fn datagram(frames: &[Vec<u8>], guest: IpAddr) -> ((u16, u16), Vec<u8>) {
    let bytes = defragment(frames, guest);
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!(usize::from(port(4)), bytes.len(), "UDP length");
    ((port(0), port(2)), bytes[8..].to_vec())
}

#[test]
fn datagrams_of_any_size_come_back_whole() {
    for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
        for vnet_header in [false, true] {
            let mut bench = Bench::new(vnet_header, small_limits());
            for len in [0, 1, 1000, 1452] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                bench.feed(&udp_frame(ip, 4000, 4001, &payload));
                let frames = bench.turn();
                assert_eq!(datagram(&frames, ip.source), ((4001, 4000), payload), "{len} bytes");
            }
        }
    }
}

#[test]
fn an_answer_beyond_the_mtu_comes_in_fragments() {
    for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
        for vnet_header in [false, true] {
            let mut bench = Bench::new(vnet_header, small_limits());
            bench.feed(&udp_frame(ip, 4000, 4001, b"?"));
            bench.turn();
            let answer: Vec<u8> = (0..20_000u32).map(|i| (i / 3) as u8).collect();
            let source = std::net::SocketAddr::new(ip.target, 4001);
            bench.host.0.borrow_mut().inject(source, &answer);
            let frames = bench.turn();
            assert!(frames.len() > 10, "{} frames", frames.len());
            assert!(frames.iter().all(|frame| frame.len() <= 1514));
            assert_eq!(datagram(&frames, ip.source), ((4001, 4000), answer));
        }
    }
}

#[test]
fn datagrams_of_one_turn_leave_with_one_call_for_each_mapping() {
    let mut bench = Bench::new(false, small_limits());
    for number in 0..20u8 {
        bench.queue(&udp_frame(Ip::v4(UDP), 4000 + u16::from(number % 2), 4001, &[number]));
    }
    bench.turn();
    assert_eq!(bench.host.0.borrow().datagrams_sent, 20);
    assert_eq!(bench.host.0.borrow().datagram_calls, 2);
    let numbers_at = |frames: &[Vec<u8>], port: u16| -> Vec<u8> {
        frames.iter().filter(|f| f[36..38] == port.to_be_bytes()).map(|f| f[42]).collect()
    };
    let frames = bench.turn();
    assert_eq!(numbers_at(&frames, 4000), (0..20).step_by(2).collect::<Vec<u8>>());
    assert_eq!(numbers_at(&frames, 4001), (1..20).step_by(2).collect::<Vec<u8>>());
}

#[test]
fn datagrams_of_one_turn_keep_their_order_and_whether_they_may_be_fragmented() {
    let mut bench = Bench::new(false, small_limits());
    for number in 0..9u8 {
        let mut frame = udp_frame(Ip::v4(UDP), 4000, 4001, &[number]);
        if number % 4 > 1 {
            frame[20] |= 0x40;
            refill_ip_checksum(&mut frame[14..34]);
        }
        bench.queue(&frame);
    }
    bench.turn();
    assert_eq!(bench.host.0.borrow().unfragmentable, [2, 3, 6, 7]);
    let numbers: Vec<u8> = bench.turn().iter().map(|frame| frame[42]).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn large_datagrams_do_not_overtake_small_ones() {
    let mut bench = Bench::new(true, small_limits());
    for len in [10, 9000, 20, 9000, 30] {
        bench.queue(&udp_frame(Ip::v6(UDP), 4000, 4001, &vec![7; len]));
    }
    bench.turn();
    assert_eq!(bench.host.0.borrow().datagrams_sent, 5);
    let mut sizes = vec![];
    let mut frames = bench.turn();
    // An answer beyond the MTU comes in fragments; the rest of the first ones has fewer bytes.
    frames.retain(|frame| frame[20] != 44 || frame[56..58] == [0, 1]);
    for frame in frames {
        let at = if frame[20] == 44 { 62 } else { 54 };
        sizes.push(u16::from_be_bytes([frame[at + 4], frame[at + 5]]) - 8);
    }
    assert_eq!(sizes, [10, 9000, 20, 9000, 30]);
}

#[test]
fn a_datagram_that_fails_amid_others_is_the_one_that_the_guest_hears_of() {
    for (ip, at, report) in [(Ip::v4(UDP), 34, [3, 1]), (Ip::v6(UDP), 54, [1, 3])] {
        let mut bench = Bench::new(false, small_limits());
        bench.host.0.borrow_mut().unreachable.insert(9, Errno::EHOSTUNREACH);
        for (port, payload) in [(4001, b"first"), (9, b"wrong"), (9, b"again"), (4001, b"fifth")] {
            bench.queue(&udp_frame(ip, 4000, port, payload));
        }
        let told = bench.turn();
        assert_eq!(bench.host.0.borrow().datagrams_sent, 2);
        let quoted: Vec<&[u8]> = told
            .iter()
            .map(|frame| {
                assert_eq!(frame[at..at + 2], report);
                // The error quotes the guest's packet from its first byte to its last.
                &frame[at + 8..]
            })
            .collect();
        let original = |payload: &[u8]| udp_frame(ip, 4000, 9, payload)[14..].to_vec();
        assert_eq!(quoted, [original(b"wrong"), original(b"again")]);
        assert_eq!(bench.turn().len(), 2, "the others came back");
        assert!(bench.drops().is_empty());
    }
}

#[test]
fn a_mapping_that_makes_room_for_another_has_sent_what_it_had() {
    let limit = small_limits().udp_flows as u16;
    let mut bench = Bench::new(false, small_limits());
    for port in 0..limit {
        bench.feed(&udp_frame(Ip::v4(UDP), 2000 + port, 4001, b"x"));
    }
    bench.turn();
    // In one turn every mapping speaks, and then as many new ones take their places.
    for port in 0..2 * limit.min(30) {
        let first = if port < 30 { 2000 } else { 5000 };
        bench.queue(&udp_frame(Ip::v4(UDP), first + port, 4001, b"y"));
    }
    bench.turn();
    assert_eq!(bench.host.0.borrow().datagrams_sent, u64::from(limit) + 60);
    assert!(bench.drops().is_empty());
}

#[test]
fn padding_behind_a_datagram_is_not_part_of_it() {
    for ip in [Ip::v4(UDP), Ip::v6(UDP)] {
        for padding in [1, 2, 1000] {
            let mut bench = Bench::new(false, small_limits());
            let padded = [udp(&ip, 4000, 4001, b"odd"), vec![0xee; padding]].concat();
            bench.feed(&ip.frame(&padded));
            let frames = bench.turn();
            assert_eq!(datagram(&frames, ip.source), ((4001, 4000), b"odd".to_vec()));
            assert!(bench.drops().is_empty());
        }
    }
}

#[test]
fn a_smaller_mtu_behind_the_guest_holds_for_outside_and_host_alike() {
    let host: IpAddr = "10.0.2.9".parse().unwrap();
    let plan = AddressPlan { host_loopback: vec![host], ..plan(1500) };
    let mut bench = Bench::with_plan(plan, false, small_limits());
    let outside = Ip::v4(UDP);
    for ip in [outside, outside.to(host)] {
        bench.feed(&udp_frame(ip, 4000, 4001, &[1; 900]));
        assert_eq!(bench.turn().len(), 1);
    }
    assert_eq!(bench.worker.flow_count(), 2);
    // "Fragmentation needed", MTU 600, quoting an answer from outside to port 4000.
    let quoted = Ip::between(outside.target, outside.source, UDP);
    let quoted = quoted.packet(&udp(&quoted, 4001, 4000, &[1; 900]));
    let body = [&[0, 0, 2, 88][..], &quoted[..28]].concat();
    bench.feed(&icmp_frame(Ip::v4(ICMP), 3, 4, &body));
    for ip in [outside, outside.to(host)] {
        bench.feed(&udp_frame(ip, 4000, 4001, &[1; 900]));
        let frames = bench.turn();
        assert_eq!(frames.len(), 2, "in fragments from {}", ip.target);
        assert!(frames.iter().all(|frame| frame.len() <= 14 + 600));
    }
}

#[test]
fn strangers_do_not_reach_the_guest() {
    let mut bench = Bench::new(false, small_limits());
    bench.feed(&udp_frame(Ip::v4(UDP), 4000, 4001, b"?"));
    bench.turn();
    bench.host.0.borrow_mut().inject("198.51.100.66:4001".parse().unwrap(), b"surprise");
    assert!(bench.turn().is_empty());
    assert_eq!(bench.worker.counters().drops.get(DropReason::Filtered), 1);
    // RFC 4787 REQ-8: address-dependent, so another port of the same peer may answer.
    bench.host.0.borrow_mut().inject("192.0.2.7:9".parse().unwrap(), b"hello");
    assert_eq!(bench.turn().len(), 1);
}

#[test]
fn a_ping_comes_back_under_its_own_identifier() {
    for (ip, request, reply) in [(Ip::v4(ICMP), 8, 0), (Ip::v6(ICMPV6), 128, 129)] {
        let mut bench = Bench::new(true, small_limits());
        let body = [0x12, 0x34, 0, 9, 1, 2, 3, 4, 5, 6, 7];
        bench.feed(&icmp_frame(ip, request, 0, &body));
        let frames = bench.turn();
        let message = defragment(&frames, ip.source);
        assert_eq!((message[0], message[1]), (reply, 0));
        assert_eq!(message[4..], body);
    }
}

#[test]
fn idle_mappings_end_and_full_tables_forget_the_oldest() {
    let mut bench = Bench::new(false, small_limits());
    let limit = small_limits().udp_flows as u16;
    for port in 0..2 * limit {
        bench.feed(&udp_frame(Ip::v4(UDP), 2000 + port, 4001, b"x"));
        bench.turn();
    }
    assert_eq!(bench.worker.flow_count(), usize::from(limit));
    assert_eq!(bench.host.0.borrow().open_sockets(), usize::from(limit));
    // RFC 4787 REQ-5: two minutes at least, five after an answer.
    bench.pass(120 * SECOND);
    assert_eq!(bench.worker.flow_count(), usize::from(limit));
    bench.pass(181 * SECOND);
    assert_eq!(bench.worker.flow_count(), 0);
    assert_eq!(bench.host.0.borrow().open_sockets(), 0);
}

#[test]
fn both_families_have_mappings_of_their_own() {
    let mut bench = Bench::new(false, small_limits());
    bench.feed(&udp_frame(Ip::v4(UDP), 4000, 4001, b"four"));
    let mut frames = bench.feed(&udp_frame(Ip::v6(UDP), 4000, 4001, b"six"));
    frames.extend(bench.turn());
    assert_eq!(bench.worker.flow_count(), 2);
    let mut payloads: Vec<&[u8]> = frames
        .iter()
        .map(|frame| if frame[12] == 0x08 { &frame[42..] } else { &frame[62..] })
        .collect();
    payloads.sort_unstable();
    assert_eq!(payloads, [&b"four"[..], b"six"]);
}
