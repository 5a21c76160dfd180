//! Clients of published ports, in the whole engine.

use std::net::{IpAddr, SocketAddr};
use tapway::base::Instant;
use tapway::engine::{Published, Withdrawal};

use tapway::engine::Limits;
use tapway::gate::Habits;
use tapway::gate::forward::{Exposure, ForwardId, HostService, PortRange, Transport};
use tapway::observe::{Direction, FlowQuery, FlowState};

use smoltcp::socket::tcp::State;

use crate::bench::{Bench, small_limits};
use crate::frames::{ICMP, Ip, UDP, icmp_frame, udp_frame};
use crate::guest::Application;
use crate::peer::{End, Script};
use crate::rng::Rng;
use crate::streams::{
    complete, finish, for_seeds, random_application, random_script, random_setting,
};
use crate::world::{World, plan};

const WHOLE: Withdrawal = Withdrawal { forward: ForwardId(1), guest_port: None };

fn rule(guest_port: u16, transport: Transport) -> Published {
    Published { forward: ForwardId(1), transport, guest_address: None, guest_port }
}

/// Publishes the guest's TCP port; the listener's name.
fn publish(world: &mut World, guest_port: u16) -> u64 {
    let (socket, listener) = world.host.listener();
    world.worker.publish_stream(rule(guest_port, Transport::Tcp), socket).unwrap();
    listener
}

fn at_port(port: u16) -> Application {
    Application::to(format!("192.0.2.7:{port}").parse().unwrap())
}

#[test]
fn connections_from_outside_are_complete_and_in_order_both_ways() {
    for_seeds(200, |seed| {
        let mut rng = Rng::new(seed ^ 0x1b0d);
        let mut setting = random_setting(seed, &mut rng);
        // smoltcp drops what it would answer while it asks for our MAC, which it does every minute:
        // with more loss our retransmissions come at that pace too.
        setting.faults.loss = setting.faults.loss.min(100);
        let mut world = World::new(setting);
        let listener = publish(&mut world, 80);
        let script = Script {
            sends: rng.range(0, 30_000),
            waits_for_end: rng.chance(300),
            ..random_script(&mut rng)
        };
        let target = at_port(80).target;
        world.guest.listen(Application {
            sends: rng.range(0, 30_000),
            waits_for_end: !script.waits_for_end && rng.chance(300),
            ..random_application(&mut rng, target)
        });
        let client = rng.pick(&["192.0.2.7:5000", "[2001:db8::7]:5000", "127.0.0.1:5000", ""]);
        world.host.0.borrow_mut().client(listener, client, 80, script);
        complete(&mut world);
        finish(&mut world);
    });
}

#[test]
fn the_guest_sees_who_the_client_is() {
    for (client, seen) in [
        ("192.0.2.7:5000", Some("192.0.2.7:5000")),
        ("[2001:db8::7]:5000", Some("[2001:db8::7]:5000")),
        ("127.0.0.1:5000", Some("10.0.2.2:5000")),
        ("", None),
    ] {
        let mut world = World::new(crate::world::Setting::calm(3));
        let listener = publish(&mut world, 80);
        world.guest.listen(Application { waits_for_end: true, ..at_port(80) });
        let script = Script { waits_for_end: true, ..Script::default() };
        world.host.0.borrow_mut().client(listener, client, 80, script);
        let open = |world: &World| world.guest.running[0].state == State::Established;
        assert!(world.run_until(5_000_000_000, open));
        let remote = world.guest.remote(0).unwrap();
        match seen {
            Some(seen) => assert_eq!(remote.to_string(), seen),
            None => assert_eq!(remote.ip().to_string(), "10.0.2.2"),
        }
        let page = world.worker.list_flows(Instant::from_nanos(world.now), &FlowQuery::default());
        let [flow] = &page.flows[..] else { panic!("{page:?}") };
        assert_eq!((flow.direction, flow.state), (Direction::Inbound, FlowState::Established));
        assert_eq!((flow.peer, flow.guest.port(), flow.forward), (remote, 80, Some(ForwardId(1))));
    }
}

#[test]
fn clients_with_one_address_and_port_are_told_apart() {
    let mut world = World::new(crate::world::Setting::calm(4));
    let (first, second) = (publish(&mut world, 80), publish(&mut world, 80));
    for listener in [first, second] {
        world.guest.listen(Application { waits_for_end: true, ..at_port(80) });
        let script = Script { waits_for_end: true, ..Script::default() };
        world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, script);
    }
    let both = |world: &World| world.guest.remote(0).is_some() && world.guest.remote(1).is_some();
    assert!(world.run_until(1_000_000_000, both));
    let ports = [0, 1].map(|index| world.guest.remote(index).unwrap().port());
    assert!(ports.contains(&5000) && ports[0] != ports[1], "{ports:?}");
}

#[test]
fn a_guest_that_refuses_has_the_client_reset_at_once() {
    let mut world = World::new(crate::world::Setting::calm(5));
    let listener = publish(&mut world, 80);
    world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, Script::default());
    let reset = |world: &World| {
        world.host.0.borrow().seen(80).first().is_some_and(|seen| seen.end == Some(End::Reset))
    };
    // The guest has to ask for our MAC first; its first reset is lost by that.
    assert!(world.run_until(2_000_000_000, reset), "the client was left waiting");
    finish(&mut world);
    let stats = world.worker.stats(Instant::from_nanos(world.now));
    assert_eq!((stats.forwards[0].connections, stats.forwards[0].refused), (1, 1));
}

#[test]
fn withdrawing_a_port_leaves_its_connections_alone() {
    for_seeds(20, |seed| {
        let mut rng = Rng::new(seed ^ 0x60d);
        let mut setting = random_setting(seed, &mut rng);
        setting.faults.loss = setting.faults.loss.min(100);
        let mut world = World::new(setting);
        let listener = publish(&mut world, 80);
        let script = Script { sends: 20_000, ..random_script(&mut rng) };
        let target = at_port(80).target;
        world.guest.listen(Application { sends: 20_000, ..random_application(&mut rng, target) });
        world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, script);
        assert!(world.run_until(900_000_000_000, |world| world.guest.remote(0).is_some()));
        world.worker.withdraw(Instant::from_nanos(world.now), &[WHOLE]);
        complete(&mut world);
        finish(&mut world);
        assert!(world.worker.stats(Instant::from_nanos(world.now)).forwards.is_empty());
    });
}

#[test]
fn a_client_in_the_queue_of_a_port_that_is_withdrawn_is_served() {
    let mut world = World::new(crate::world::Setting::calm(7));
    let listener = publish(&mut world, 80);
    world.guest.listen(Application { sends: 10, ..at_port(80) });
    let script = Script { sends: 20, ..Script::default() };
    world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, script);
    world.worker.withdraw(Instant::from_nanos(world.now), &[WHOLE]);
    complete(&mut world);
    finish(&mut world);
}

#[test]
fn clients_wait_while_there_are_no_descriptors() {
    let mut world = World::new(crate::world::Setting::calm(6));
    let listener = publish(&mut world, 80);
    world.guest.listen(Application { sends: 10, ..at_port(80) });
    world.host.0.borrow_mut().exhausted = Some(nix::errno::Errno::EMFILE);
    world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, Script::default());
    world.run_until(1_000_000_000, |_| false);
    assert!(world.guest.remote(0).is_none());
    world.host.0.borrow_mut().exhausted = None;
    complete(&mut world);
    finish(&mut world);
}

/// Publishes the guest's UDP port 53; the socket's name.
fn publish_datagrams(bench: &mut Bench) -> u64 {
    let (socket, port) = bench.host.datagram_port();
    bench.worker.publish_datagrams(rule(53, Transport::Udp), socket).unwrap();
    port
}

/// Source and target of the one UDP frame over IPv4.
fn ends(frames: &[Vec<u8>]) -> (SocketAddr, SocketAddr) {
    let [frame] = frames else { panic!("{} frames", frames.len()) };
    let end = |address: usize, port: usize| {
        let octets: [u8; 4] = frame[address..address + 4].try_into().unwrap();
        SocketAddr::from((octets, u16::from_be_bytes([frame[port], frame[port + 1]])))
    };
    (end(26, 34), end(30, 36))
}

#[test]
fn clients_of_a_udp_port_are_seen_as_themselves_and_answered() {
    let mut bench = Bench::new(false, small_limits());
    let port = publish_datagrams(&mut bench);
    for client in ["192.0.2.7:5000", "192.0.2.8:5000", "127.0.0.1:5000", "127.0.0.2:5000"] {
        let client: SocketAddr = client.parse().unwrap();
        bench.host.0.borrow_mut().inject(client, b"question");
        let frames = bench.turn();
        let (seen, guest) = ends(&frames);
        assert_eq!(guest, "10.0.2.100:53".parse().unwrap());
        match client.ip().is_loopback() {
            false => assert_eq!(seen, client),
            true => assert_eq!(seen.ip().to_string(), "10.0.2.2"),
        }
        let ip = Ip::v4(UDP).to(seen.ip());
        bench.feed(&udp_frame(ip, 53, seen.port(), client.to_string().as_bytes()));
        let host = bench.host.0.borrow();
        let (target, payload) = host.answers(port).last().unwrap();
        assert_eq!((*target, &payload[..]), (client, client.to_string().as_bytes()));
    }
    assert_eq!(bench.worker.flow_count(), 4);
    bench.pass(301 * 1_000_000_000);
    assert_eq!(bench.worker.flow_count(), 0, "idle clients are forgotten");
    assert_eq!(bench.drops(), []);
}

#[test]
fn clients_of_a_udp_port_are_bounded_and_gone_when_it_is_withdrawn() {
    let limits = Limits { udp_flows: 4, ..small_limits() };
    let mut bench = Bench::new(false, limits);
    publish_datagrams(&mut bench);
    for port in 1000..1020 {
        bench.host.0.borrow_mut().inject(SocketAddr::from(([192, 0, 2, 7], port)), b"hello");
        assert_eq!(bench.turn().len(), 1);
    }
    assert_eq!(bench.worker.flow_count(), 4);
    bench.worker.withdraw(Instant::from_nanos(bench.now), &[WHOLE]);
    assert_eq!((bench.worker.flow_count(), bench.host.0.borrow().open_sockets()), (0, 0));
    // What the guest answers now is an ordinary datagram.
    bench.feed(&udp_frame(Ip::v4(UDP), 53, 1019, b"late"));
    assert_eq!(bench.worker.flow_count(), 1);
}

#[test]
fn a_smaller_mtu_behind_the_guest_holds_for_clients_of_a_udp_port() {
    let mut bench = Bench::new(false, small_limits());
    publish_datagrams(&mut bench);
    let client: SocketAddr = "192.0.2.7:5000".parse().unwrap();
    bench.host.0.borrow_mut().inject(client, &[1; 900]);
    let frames = bench.turn();
    let [whole] = &frames[..] else { panic!("{} frames", frames.len()) };
    // "Fragmentation needed", MTU 600, quoting that.
    let body = [&[0, 0, 2, 88], &whole[14..42]].concat();
    bench.feed(&icmp_frame(Ip::v4(ICMP), 3, 4, &body));
    bench.host.0.borrow_mut().inject(client, &[1; 900]);
    let frames = bench.turn();
    assert_eq!(frames.len(), 2, "fragments");
    assert!(frames.iter().all(|frame| frame.len() <= 14 + 600));
    assert_eq!(bench.drops(), []);
}

#[test]
fn exposed_ports_of_the_gateway_lead_to_the_host_and_others_nowhere() {
    let mut bench = Bench::new(false, small_limits());
    let exposure = |transport, port: u16| Exposure {
        transport,
        ports: PortRange::single(port),
        service: HostService::Ports { address: None, ports: PortRange::single(port + 1) },
    };
    bench.worker.expose(ForwardId(1), exposure(Transport::Udp, 5353));
    let gateway = Ip::v4(UDP).to("10.0.2.2".parse::<IpAddr>().unwrap());
    bench.feed(&udp_frame(gateway, 4000, 5353, b"anyone?"));
    // The host echoes; the answer bears the name that the guest knows.
    let (seen, guest) = ends(&bench.turn());
    assert_eq!((seen.to_string(), guest.port()), ("10.0.2.2:5353".to_owned(), 4000));
    let refused = bench.feed(&udp_frame(gateway, 4000, 5354, b"anyone?"));
    assert_eq!(refused[0][23], 1, "an ICMP error");
    bench.worker.withdraw(Instant::from_nanos(bench.now), &[WHOLE]);
    let refused = bench.feed(&udp_frame(gateway, 4000, 5353, b"anyone?"));
    assert_eq!(refused[0][23], 1, "an ICMP error");
}

#[test]
fn closed_ports_of_our_addresses_are_told_as_the_plan_has_it() {
    let to = |address: &str| Ip::v4(UDP).to(address.parse::<IpAddr>().unwrap());
    let mut silent = plan(1500);
    silent.habits = Habits { closed_is_unreachable: true, dns_is_silent: true, lease: None };
    // Type and code of the ICMP error: RFC 792's port and network unreachable.
    for (plan, gateway, dns) in
        [(plan(1500), Some([3, 3]), Some([3, 3])), (silent, Some([3, 0]), None)]
    {
        let mut bench = Bench::with_plan(plan, false, small_limits());
        for (address, told) in [("10.0.2.2", gateway), ("10.0.2.3", dns)] {
            let answer = bench.feed(&udp_frame(to(address), 4000, 54, b"anyone?"));
            let report = answer.first().map(|frame| [frame[34], frame[35]]);
            assert_eq!(report, told, "{address}");
        }
    }
}
