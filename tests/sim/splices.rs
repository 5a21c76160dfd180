//! Clients of ports that lead from one loopback to the other: connections and datagrams that the
//! engine carries from socket to socket.

use std::net::SocketAddr;

use tapway::base::Instant;
use tapway::engine::{Led, LedId, Limits, Published};
use tapway::gate::forward::{ForwardId, Transport};
use tapway::gate::{AddressPlan, Sharing, Splicing};
use tapway::observe::{Direction, FlowPath, FlowQuery, FlowRecord, FlowState};
use tapway::sys::datagram::Marks;

use crate::bench::{Bench, small_limits};
use crate::peer::{End, FROM_GUEST, Script, Seen, TO_GUEST};
use crate::rng::Rng;
use crate::streams::{for_seeds, random_script};
use crate::world::plan;

const SECOND: u64 = 1_000_000_000;

/// The port of the client, and the one that its port leads to.
const CLIENT: u16 = 7;
const TARGET: u16 = 80;

fn bench(limits: Limits, splicing: Splicing) -> Bench {
    let sharing = Some(Sharing { splicing, ..Sharing::default() });
    Bench::with_plan(AddressPlan { sharing, ..plan(1500) }, true, limits)
}

/// What plays the guest's side of a connection against [`Script::default`].
fn opposite(script: Script) -> Script {
    Script { salts: (TO_GUEST, FROM_GUEST), ..script }
}

/// A client on the guest's loopback connects to a port that leads to the host's.
fn connect(bench: &mut Bench, client: Script, target: Option<Script>) {
    let (socket, listener) = bench.host.listener();
    let led = Led { id: LedId(1), transport: Transport::Tcp, host_port: TARGET };
    bench.worker.lead_stream(led, socket).unwrap();
    let mut host = bench.host.0.borrow_mut();
    if let Some(script) = target {
        host.serve(TARGET, opposite(script));
    }
    host.client(listener, "127.0.0.1:5000", CLIENT, client);
}

/// What the one peer at `port` has seen.
fn seen(bench: &Bench, port: u16) -> Seen {
    let seen = bench.host.0.borrow().seen(port);
    let [seen] = &seen[..] else { panic!("not one connection to port {port}: {seen:?}") };
    seen.clone()
}

fn flows(bench: &mut Bench) -> Vec<FlowRecord> {
    bench.worker.list_flows(Instant::from_nanos(bench.now), &FlowQuery::default()).flows
}

/// Nothing is open but the port, and nothing is held.
fn is_clean(bench: &Bench) {
    assert_eq!(bench.worker.flow_count(), 0);
    let held = bench.worker.held();
    assert_eq!((held.backlog_bytes, held.promised_bytes), (0, 0));
    assert_eq!(bench.host.0.borrow().open_sockets(), 0, "sockets are left open");
}

#[test]
fn spliced_connections_are_complete_and_in_order_both_ways() {
    for_seeds(300, |seed| {
        let mut rng = Rng::new(seed ^ 0x5711);
        let mut bench = bench(small_limits(), Splicing::Outward);
        bench.host.0.borrow_mut().pipes = rng.pick(&[0, 1, 2]);
        let mut script = |waits_for_end| Script {
            sends: rng.range(0, 300_000),
            waits_for_end,
            ..random_script(&mut rng)
        };
        // They do not both wait for each other.
        let (client, target) = (script(seed % 3 == 0), script(seed % 3 == 1));
        connect(&mut bench, client.clone(), Some(target.clone()));
        for _ in 0..200 {
            bench.pass(SECOND);
            if bench.worker.flow_count() == 0 && bench.host.0.borrow().is_quiet() {
                break;
            }
        }
        for (port, expected) in [(CLIENT, target.sends), (TARGET, client.sends)] {
            let seen = seen(&bench, port);
            assert_eq!((seen.received, seen.wrong_at), (expected, None), "at {port}");
            assert_eq!(seen.end, Some(End::Eof), "at {port}");
        }
        is_clean(&bench);
    });
}

#[test]
fn a_reset_on_one_side_is_one_on_the_other() {
    let patient = || Script { sends: 500_000, waits_for_end: true, ..Script::default() };
    let rude = || Script { resets_after: Some(10_000), ..patient() };
    for (client, target, other) in [(rude(), patient(), TARGET), (patient(), rude(), CLIENT)] {
        let mut bench = bench(small_limits(), Splicing::Outward);
        bench.host.0.borrow_mut().pipes = 2;
        connect(&mut bench, client, Some(target));
        bench.pass(SECOND);
        assert_eq!(seen(&bench, other).end, Some(End::Reset));
        is_clean(&bench);
    }
}

#[test]
fn a_client_whose_target_refuses_is_reset_and_was_not_heard() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    connect(&mut bench, Script { sends: 1000, ..Script::default() }, None);
    bench.pass(SECOND);
    assert_eq!(seen(&bench, CLIENT).end, Some(End::Reset));
    is_clean(&bench);
}

#[test]
fn receivers_that_stand_still_hold_up_their_senders() {
    for pipes in [0, 1] {
        let limits = Limits { tcp_flows: 10_000, ..small_limits() };
        let mut bench = bench(limits, Splicing::Outward);
        bench.host.0.borrow_mut().pipes = pipes;
        let (socket, listener) = bench.host.listener();
        let led = Led { id: LedId(1), transport: Transport::Tcp, host_port: TARGET };
        bench.worker.lead_stream(led, socket).unwrap();
        {
            let mut host = bench.host.0.borrow_mut();
            // As a fair-minded receiver, from the year 2106 on.
            host.serve(TARGET, opposite(Script { reads_from: u64::MAX / 2, ..Script::default() }));
            for port in 0..200 {
                let client = format!("127.0.0.1:{}", 5000 + port);
                let script = Script { sends: 1 << 20, ..Script::default() };
                host.client(listener, &client, CLIENT, script);
            }
        }
        bench.pass(5 * SECOND);
        assert_eq!(bench.worker.flow_count(), 200);
        // The limit, one move that passes it, and the least piece for each.
        let bound = limits.backlog_bytes + limits.receive_window as usize + 2 * 200 * 536;
        let held = bench.worker.held().backlog_bytes;
        assert!((1..=bound).contains(&held), "{held} of {bound} bytes");
    }
}

#[test]
fn connections_beyond_the_limit_are_reset() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let (socket, listener) = bench.host.listener();
    let forward = ForwardId(1);
    let (transport, guest_address, guest_port) = (Transport::Tcp, None, TARGET);
    let rule = Published { forward, transport, guest_address, guest_port };
    bench.worker.publish_stream(rule, socket).unwrap();
    {
        let mut host = bench.host.0.borrow_mut();
        host.serve(TARGET, opposite(Script { waits_for_end: true, ..Script::default() }));
        for port in 0..300 {
            let client = format!("127.0.0.1:{}", 5000 + port);
            let script = Script { waits_for_end: true, ..Script::default() };
            host.client(listener, &client, CLIENT, script);
        }
    }
    bench.pass(SECOND);
    // Two sockets each, and a quarter of all is the guest's.
    assert_eq!(bench.worker.flow_count(), small_limits().inbound_tcp_flows() / 2);
    let flow = flows(&mut bench).remove(0);
    assert_eq!((flow.direction, flow.path), (Direction::Inbound, FlowPath::Spliced));
    assert_eq!((flow.state, flow.forward), (FlowState::Established, Some(forward)));
    assert_eq!(flow.guest, SocketAddr::new(plan(1500).v4.unwrap().guest.into(), TARGET));
}

#[test]
fn without_a_link_only_the_hosts_loopback_gets_in() {
    let mut bench = bench(small_limits(), Splicing::Only);
    let (socket, listener) = bench.host.listener();
    let forward = ForwardId(1);
    let (transport, guest_address, guest_port) = (Transport::Tcp, None, TARGET);
    let rule = Published { forward, transport, guest_address, guest_port };
    bench.worker.publish_stream(rule, socket).unwrap();
    {
        let mut host = bench.host.0.borrow_mut();
        host.serve(TARGET, opposite(Script { waits_for_end: true, ..Script::default() }));
        let script = Script { waits_for_end: true, ..Script::default() };
        host.client(listener, "192.0.2.9:5000", CLIENT, script.clone());
        host.client(listener, "[::1]:5000", CLIENT + 1, script);
    }
    bench.pass(SECOND);
    assert_eq!(seen(&bench, CLIENT).end, Some(End::Reset));
    let [flow] = &flows(&mut bench)[..] else { panic!("one client is in") };
    assert_eq!(flow.guest, "[::1]:80".parse().unwrap());
}

/// A UDP port of the guest's loopback, and its name.
fn lead_datagrams(bench: &mut Bench) -> u64 {
    let (socket, port) = bench.host.datagram_port();
    let led = Led { id: LedId(9), transport: Transport::Udp, host_port: 5353 };
    bench.worker.lead_datagrams(led, socket).unwrap();
    port
}

#[test]
fn datagrams_go_on_and_answers_come_back_to_their_client() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let port = lead_datagrams(&mut bench);
    let clients = [5001, 5002].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    for client in clients {
        for payload in [&b"first"[..], b"", &[7; 8192]] {
            bench.host.0.borrow_mut().inject_into(port, client, payload);
        }
    }
    bench.pass(SECOND);
    for client in clients {
        let host = bench.host.0.borrow();
        let answers = host.answers(port).iter().filter(|(to, _)| *to == client);
        let lengths: Vec<usize> = answers.map(|(_, payload)| payload.len()).collect();
        assert_eq!(lengths, [5, 0, 8192]);
    }
    let flows = flows(&mut bench);
    assert_eq!(flows.len(), 2);
    assert_eq!((flows[0].path, flows[0].state), (FlowPath::Spliced, FlowState::Replied));
    assert_eq!((flows[0].direction, flows[0].guest), (Direction::Outbound, clients[0]));
    // 5 min after a reply (RFC 4787 REQ-5).
    bench.pass(290 * SECOND);
    assert_eq!(bench.worker.flow_count(), 2);
    bench.pass(11 * SECOND);
    assert_eq!(bench.worker.flow_count(), 0);
}

#[test]
fn datagrams_that_arrive_joined_are_several_on_the_other_side() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let port = lead_datagrams(&mut bench);
    let client = SocketAddr::from(([127, 0, 0, 1], 5001));
    bench.host.0.borrow_mut().inject_as(client, Marks::DEFAULT, &[7; 2500], Some(1000));
    bench.pass(SECOND);
    let host = bench.host.0.borrow();
    let lengths: Vec<usize> = host.answers(port).iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [1000, 1000, 500]);
    drop(host);
    let [flow] = &flows(&mut bench)[..] else { panic!("one client") };
    assert_eq!((flow.traffic.packets_to_host, flow.traffic.bytes_to_host), (3, 2500));
}

#[test]
fn datagrams_of_one_batch_go_by_the_link_or_from_socket_to_socket() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let (socket, port) = bench.host.datagram_port();
    let (transport, guest_address, guest_port) = (Transport::Udp, None, TARGET);
    let rule = Published { forward: ForwardId(1), transport, guest_address, guest_port };
    bench.worker.publish_datagrams(rule, socket).unwrap();
    let near = SocketAddr::from(([127, 0, 0, 1], 5001));
    let far = SocketAddr::from(([203, 0, 113, 9], 5001));
    for client in [near, far, far, near] {
        bench.host.0.borrow_mut().inject_into(port, client, b"hi");
    }
    bench.pass(SECOND);
    assert_eq!(bench.host.0.borrow().answers(port), vec![(near, b"hi".to_vec()); 2]);
    let mut flows = flows(&mut bench);
    flows.sort_by_key(|flow| flow.path == FlowPath::Spliced);
    let packets = flows.iter().map(|flow| (flow.path, flow.traffic.packets_to_guest));
    let expected = [(FlowPath::Tap, 2), (FlowPath::Spliced, 2)];
    assert_eq!(packets.collect::<Vec<_>>(), expected);
    assert_eq!(bench.drops(), []);
}

#[test]
fn the_session_that_was_unused_for_longest_gives_way() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let port = lead_datagrams(&mut bench);
    let client = |number| SocketAddr::from(([127, 0, 0, 1], 5000 + number));
    let say = |bench: &mut Bench, number| {
        bench.host.0.borrow_mut().inject_into(port, client(number), b"hi");
        bench.pass(1_000_000);
    };
    let limit = u16::try_from(small_limits().relayed).unwrap();
    (0..limit).for_each(|number| say(&mut bench, number));
    say(&mut bench, 0);
    say(&mut bench, limit);
    let mut guests: Vec<SocketAddr> = flows(&mut bench).iter().map(|flow| flow.guest).collect();
    guests.sort();
    let mut expected: Vec<SocketAddr> = (0..=limit).filter(|&n| n != 1).map(client).collect();
    expected.sort();
    assert_eq!(guests, expected);
}

#[test]
fn sessions_end_with_their_port() {
    let mut bench = bench(small_limits(), Splicing::Outward);
    let port = lead_datagrams(&mut bench);
    bench.host.0.borrow_mut().inject_into(port, "127.0.0.1:5000".parse().unwrap(), b"hi");
    bench.pass(SECOND);
    assert_eq!(bench.worker.flow_count(), 1);
    bench.worker.close_led(Instant::from_nanos(bench.now), &[LedId(8)]);
    assert_eq!(bench.worker.flow_count(), 1);
    bench.worker.close_led(Instant::from_nanos(bench.now), &[LedId(9)]);
    is_clean(&bench);
}
