//! Datagrams and pings through the engine: there and back unchanged, from the addressed only, and
//! gone when idle.

use std::net::IpAddr;

use tapway::base::DropReason;

use crate::bench::{Bench, small_limits};
use crate::frames::{ICMP, ICMPV6, Ip, UDP, icmp_frame, udp_frame};
use crate::guest_kernel::defragment;

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
