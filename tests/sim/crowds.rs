//! Clients of published ports in numbers, and when the host or the guest has run out of something.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use nix::errno::Errno;
use tapway::base::Instant;
use tapway::engine::{Advice, Limits, Published};
use tapway::gate::forward::{ForwardId, Transport};

use crate::bench::{Bench, most_promised, small_limits};
use crate::crew::{Steering, Team};
use crate::frames::{ACK, FIN, ICMP, Ip, PSH, RST, SYN, TCP, Tcp, UDP, icmp_frame, udp_frame};
use crate::peer::{End, Script};
use crate::teams::{connected, is_reset, quiet};

const SECOND: u64 = 1_000_000_000;

fn rule(guest_port: u16, transport: Transport) -> Published {
    let forward = ForwardId(guest_port.into());
    Published { forward, transport, guest_address: None, guest_port }
}

/// Publishes the guest's TCP port 80; the listener's name.
fn publish(bench: &mut Bench) -> u64 {
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(80, Transport::Tcp), socket).unwrap();
    listener
}

/// Publishes a UDP port of the guest; the socket's name.
fn publish_datagrams(bench: &mut Bench, guest_port: u16) -> u64 {
    let (socket, port) = bench.host.datagram_port();
    bench.worker.publish_datagrams(rule(guest_port, Transport::Udp), socket).unwrap();
    port
}

/// Lets clients connect, each from a port of its own.
fn clients(bench: &mut Bench, listener: u64, ports: Range<u16>) {
    for port in ports {
        let address = format!("192.0.2.7:{port}");
        let script = Script { waits_for_end: true, ..Script::default() };
        bench.host.0.borrow_mut().client(listener, &address, 80, script);
    }
}

/// Opens a connection of the guest; the acknowledgment that completed the handshake.
fn open(bench: &mut Bench, ports: (u16, u16)) -> Tcp {
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    let frames = bench.pass(1_000_000);
    let syn_ack = frames.iter().find(|frame| frame[47] & SYN != 0).unwrap();
    let seq = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
    let ack = Tcp { ports, seq: 1001, ack: seq.wrapping_add(1), ..Tcp::new(ACK) };
    bench.feed(&ack.frame(Ip::v4(TCP)));
    bench.pass(1_000_000);
    ack
}

/// Has a guest that acknowledges nothing take every slab.
fn exhaust_pool(bench: &mut Bench) {
    bench.host.0.borrow_mut().serve(9000, Script { sends: 1 << 20, ..Script::default() });
    open(bench, (40_000, 9000));
    assert_eq!(bench.worker.held().slabs, 1);
}

#[test]
fn a_guest_that_holds_every_slab_keeps_nobody_else_waiting() {
    let mut bench = Bench::new(true, Limits { slabs: 1, ..small_limits() });
    let listener = publish(&mut bench);
    publish_datagrams(&mut bench, 53);
    exhaust_pool(&mut bench);
    clients(&mut bench, listener, 2000..2100);
    for port in 0..90 {
        bench.host.0.borrow_mut().inject(SocketAddr::from(([192, 0, 2, 8], 3000 + port)), b"hi");
    }
    bench.pass(10_000_000);
    assert_eq!(bench.worker.flow_count(), 1 + 100 + 90);
    assert_eq!(bench.worker.held().slabs, 1, "still exhausted");
}

#[test]
fn what_connections_from_outside_are_promised_is_bounded_as_the_guests_own_is() {
    let limits = small_limits();
    let mut bench = Bench::new(true, limits);
    let listener = publish(&mut bench);
    // The guest never answers: what its SYN offered it is all that each connection has.
    clients(&mut bench, listener, 2000..2000 + limits.inbound_tcp_flows() as u16);
    bench.pass(SECOND / 10);
    let promised = bench.worker.held().promised_bytes;
    assert!(promised <= most_promised(&limits, 1), "{promised} bytes are promised");
}

#[test]
fn clients_do_not_fill_the_table_up_to_the_guests_own_connections() {
    let limits = small_limits();
    let mut bench = Bench::new(true, limits);
    let listener = publish(&mut bench);
    let all = limits.tcp_flows as u16;
    clients(&mut bench, listener, 2000..2000 + all);
    bench.pass(SECOND / 10);
    let inbound = limits.inbound_tcp_flows();
    assert_eq!(bench.worker.flow_count(), inbound);
    let reset = |bench: &Bench| {
        let seen = bench.host.0.borrow().seen(80);
        seen.iter().filter(|seen| seen.end == Some(End::Reset)).count()
    };
    // Who is too many hears of it at once, the others when the guest's silence has lasted.
    assert_eq!(reset(&bench), limits.tcp_flows - inbound);
    bench.host.0.borrow_mut().serve(81, Script::default());
    bench.feed(&Tcp { ports: (40_000, 81), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    assert_eq!(bench.worker.flow_count(), inbound + 1);
    bench.pass(130 * SECOND);
    assert_eq!((bench.worker.flow_count(), reset(&bench)), (0, limits.tcp_flows));
    clients(&mut bench, listener, 2000..2000 + all);
    bench.pass(SECOND / 10);
    assert_eq!(bench.worker.flow_count(), inbound);
}

/// Opens connection number `number` of the guest, which its peer ends at once, and ends it too:
/// ours was the first FIN, so we are in TIME-WAIT. The frame with its FIN.
fn come_and_go(bench: &mut Bench, number: u16) -> Vec<u8> {
    let ports = (20_000 + number, 81);
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    let mut frames = vec![];
    for _ in 0..20 {
        bench.now += 100_000;
        frames.extend(bench.turn());
        if !frames.is_empty() {
            break;
        }
    }
    let [syn_ack] = &frames[..] else { panic!("{} frames for {number}", frames.len()) };
    let seq = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
    let ack = Tcp { ports, seq: 1001, ack: seq.wrapping_add(1), ..Tcp::new(ACK) };
    let mut frames = bench.feed(&ack.frame(Ip::v4(TCP)));
    for _ in 0..20 {
        if !frames.is_empty() {
            break;
        }
        bench.now += 100_000;
        frames.extend(bench.turn());
    }
    assert_eq!(frames[0][47] & 1, 1, "a FIN");
    let fin = Tcp { ports, seq: 1001, ack: seq.wrapping_add(2), ..Tcp::new(FIN | ACK) };
    let fin = fin.frame(Ip::v4(TCP));
    bench.feed(&fin);
    fin
}

#[test]
fn connections_that_are_over_leave_room_for_new_ones() {
    let limits = small_limits();
    let mut bench = Bench::new(true, limits);
    bench.host.0.borrow_mut().serve(81, Script::default());
    let start = bench.now;
    // More than fit, in less time than TIME-WAIT.
    for number in 0..2 * limits.tcp_flows as u16 {
        come_and_go(&mut bench, number);
    }
    assert!(bench.now - start < SECOND, "they overlap");
    assert_eq!(bench.drops(), []);
    assert_eq!(bench.worker.flow_count(), limits.tcp_flows);
    // Clients find room as well, but no more than their share.
    let listener = publish(&mut bench);
    clients(&mut bench, listener, 2000..2000 + limits.tcp_flows as u16);
    bench.turn();
    bench.turn();
    assert_eq!(bench.worker.flow_count(), limits.tcp_flows);
    bench.pass(2 * SECOND);
    assert_eq!(bench.worker.flow_count(), limits.inbound_tcp_flows(), "only they are left");
}

/// Entries that lists may have beyond two for each flow.
const SPARE: usize = 4200;

#[test]
fn a_connection_that_is_kept_in_time_wait_keeps_no_others_in_mind() {
    let mut bench = Bench::new(true, small_limits());
    bench.host.0.borrow_mut().serve(81, Script::default());
    let fin = come_and_go(&mut bench, 0);
    for number in 1..=5_000 {
        come_and_go(&mut bench, 1 + number % 20_000);
        bench.now += 50_000_000;
        if number % 10 == 0 {
            bench.feed(&fin);
        }
    }
    assert!(bench.flow_count() < 50, "the others are over in time");
    let held = bench.held();
    assert!(held.queued < SPARE, "{held:?}");
    bench.pass(2 * SECOND);
    assert_eq!((bench.flow_count(), bench.held().queued), (0, 0));
}

#[test]
fn connections_that_come_and_go_while_nothing_can_be_read_do_not_pile_up() {
    let mut bench = Bench::new(true, Limits { slabs: 1, ..small_limits() });
    exhaust_pool(&mut bench);
    bench.host.0.borrow_mut().serve(81, Script { sends: 100, ..Script::default() });
    for number in 0..5_000 {
        let ack = open(&mut bench, (1000 + number, 81));
        bench.feed(&Tcp { flags: RST, ..ack }.frame(Ip::v4(TCP)));
    }
    let held = bench.held();
    assert_eq!((bench.flow_count(), held.slabs), (1, 1), "still exhausted");
    assert!(held.queued < SPARE, "{held:?}");
}

#[test]
fn a_worker_that_has_nothing_to_let_go_finds_room() {
    let limits = small_limits();
    let mut bench = Bench::with_team(Team::fixed(2), true, limits);
    bench.crew.set_unrest(false);
    bench.host.0.borrow_mut().serve(81, Script::default());
    let (start, fitting) = (bench.now, limits.tcp_flows as u16);
    bench.crew.steer(Steering::Only(0));
    (0..fitting).for_each(|number| drop(come_and_go(&mut bench, number)));
    bench.crew.steer(Steering::Only(1));
    (fitting..fitting + 50).for_each(|number| drop(come_and_go(&mut bench, number)));
    assert!(bench.now - start < SECOND, "they overlap");
    assert_eq!(bench.drops(), []);
    assert!(bench.crew.flows_of(1) > 0, "it has served some");
}

/// Turns of the lead and of those whom it has called.
fn step(bench: &mut Bench) {
    bench.crew.turn(bench.now, &mut bench.worker, |_| ());
}

#[test]
fn a_worker_that_is_called_to_many_connections_finds_them_all_and_nobody_waits_for_it() {
    const MANY: usize = 9_000;
    let limits = Limits { tcp_flows: 2 * MANY, ..small_limits() };
    let mut bench = Bench::with_team(quiet(2, Steering::Only(1)), false, limits);
    bench.crew.set_unrest(false);
    let server = Script { waits_for_end: true, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, server);
    bench.host.0.borrow_mut().serve(81, Script { connect_delay: SECOND, ..Script::default() });
    let (first, last) = (connected(&mut bench, 30_000), connected(&mut bench, 30_001));
    for number in 0..MANY as u16 - 2 {
        let syn = Tcp { ports: (40_000 + number, 81), ..Tcp::new(SYN) };
        bench.queue(&syn.frame(Ip::v4(TCP)));
    }
    while bench.flow_count() < MANY {
        step(&mut bench);
    }
    bench.worker.heed(Instant::from_nanos(bench.now), Advice::Grow);
    let mut listed = vec![0];
    // One ends and one begins meanwhile.
    let reset = Tcp { flags: RST | ACK, ..last.clone() };
    bench.queue(&reset.frame(Ip::v4(TCP)));
    bench.queue(&Tcp { ports: (30_002, 81), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    while bench.crew.queues().len() < 2 {
        step(&mut bench);
        listed.push(bench.worker.held().listed);
        assert!(listed.len() < 20, "{listed:?}");
    }
    let longest = listed.windows(2).map(|pair| pair[1].abs_diff(pair[0])).max();
    assert!(longest.is_some_and(|longest| longest <= 2_050), "{listed:?}");
    assert_eq!((bench.flow_count(), listed.last()), (MANY, Some(&MANY)));
    // These come by the new queue.
    let data = Tcp { flags: PSH | ACK, payload: b"here".to_vec(), ..first };
    assert!(!is_reset(&bench.feed(&data.frame(Ip::v4(TCP)))));
    assert!(is_reset(&bench.feed(&last.frame(Ip::v4(TCP)))));
    assert_eq!(bench.host.0.borrow().passed_on(80), 4);
}

#[test]
fn a_guest_whose_filter_rejects_has_the_client_reset_at_once() {
    let mut bench = Bench::new(false, small_limits());
    let listener = publish(&mut bench);
    clients(&mut bench, listener, 2000..2001);
    let frames = bench.turn();
    let [syn] = &frames[..] else { panic!("{} frames", frames.len()) };
    // "Port unreachable", as netfilter's REJECT says by default.
    let body = [&[0; 4], &syn[14..42]].concat();
    bench.feed(&icmp_frame(Ip::v4(ICMP), 3, 3, &body));
    assert_eq!(bench.worker.flow_count(), 0);
    assert_eq!(bench.host.0.borrow().seen(80)[0].end, Some(End::Reset));
    assert_eq!(bench.drops(), []);
}

/// A datagram from a client of the published socket alone.
fn datagram(bench: &mut Bench, port: u64, client: SocketAddr) -> Vec<Vec<u8>> {
    bench.host.0.borrow_mut().inject_into(port, client, b"question");
    bench.turn()
}

#[test]
fn a_flood_of_clients_at_one_udp_port_does_not_evict_those_of_another() {
    let limits = small_limits();
    let mut bench = Bench::new(false, limits);
    let (quiet, flooded) = (publish_datagrams(&mut bench, 53), publish_datagrams(&mut bench, 54));
    let friends = (0..limits.udp_flows as u8 / 4).map(|n| SocketAddr::from(([192, 0, 2, n], 99)));
    for friend in friends.clone() {
        datagram(&mut bench, quiet, friend);
    }
    for number in 0..5000_u16 {
        let [high, low] = number.to_be_bytes();
        datagram(&mut bench, flooded, SocketAddr::from(([198, 18, high, low], 99)));
    }
    assert_eq!(bench.worker.flow_count(), limits.udp_flows);
    for friend in friends {
        let IpAddr::V4(address) = friend.ip() else { panic!("IPv4") };
        let ip = Ip::v4(UDP).to(address);
        bench.feed(&udp_frame(ip, 53, friend.port(), b"answer"));
    }
    assert_eq!(bench.host.0.borrow().answers(quiet).len(), limits.udp_flows / 4);
}

#[test]
fn a_client_of_a_udp_port_keeps_the_port_that_the_guest_knows() {
    let mut bench = Bench::new(false, small_limits());
    let port = publish_datagrams(&mut bench, 53);
    // Both are seen as the gateway, and only one of them can have port 5000 there.
    let [first, second]: [SocketAddr; 2] =
        ["127.0.0.1:5000", "127.0.0.2:5000"].map(|client| client.parse().unwrap());
    let seen = |frames: &[Vec<u8>]| u16::from_be_bytes([frames[0][34], frames[0][35]]);
    assert_eq!(seen(&datagram(&mut bench, port, first)), 5000);
    let other = seen(&datagram(&mut bench, port, second));
    assert_ne!(other, 5000);
    bench.pass(100 * SECOND);
    assert_eq!(seen(&datagram(&mut bench, port, second)), other);
    bench.pass(100 * SECOND);
    assert_eq!(bench.worker.flow_count(), 1, "the first is forgotten");
    assert_eq!(seen(&datagram(&mut bench, port, second)), other);
}

#[test]
fn a_listener_that_fails_is_tried_again_at_a_pace_and_by_one_timer() {
    for errno in [Errno::EMFILE, Errno::EPERM] {
        let mut bench = Bench::new(true, small_limits());
        let listener = publish(&mut bench);
        bench.turn();
        let before = bench.worker.held().timers;
        bench.host.0.borrow_mut().exhausted = Some(errno);
        for port in 2000..2050 {
            clients(&mut bench, listener, port..port + 1);
            bench.turn();
            let timeout = bench.worker.timeout(Instant::from_nanos(bench.now));
            assert!(timeout.is_some_and(|timeout| !timeout.is_zero()), "{errno}: it spins");
            bench.now += 10_000_000;
        }
        assert_eq!(bench.worker.held().timers, before + 1, "{errno}");
        bench.host.0.borrow_mut().exhausted = None;
        bench.pass(SECOND);
        assert_eq!(bench.worker.flow_count(), 50, "{errno}");
    }
}
