//! Teams of workers: flows that change hands at any moment, workers that come and go, and a guest
//! that would like to know how much they can be made to do for each other.

use std::cell::Cell;
use std::collections::BTreeSet;

use tapway::base::{DropReason, Instant};
use tapway::engine::{Advice, Command, Published, Withdrawal};
use tapway::gate::forward::{ForwardId, Transport};

use crate::bench::{Bench, small_limits};
use crate::crew::{Steering, Team};
use crate::frames::{ACK, FIN, ICMPV6, Ip, PSH, RST, SYN, TCP, Tcp, UDP, udp_frame};
use crate::guest::Application;
use crate::link::Faults;
use crate::peer::{End, Script};
use crate::rng::Rng;
use crate::streams::{
    complete, finish, for_seeds, random_application, random_script, random_setting,
};
use crate::world::{Setting, World};

pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MILLI;

fn rule(guest_port: u16) -> Published {
    let (forward, transport) = (ForwardId(1), Transport::Tcp);
    Published { forward, transport, guest_address: None, guest_port }
}

#[test]
fn flows_that_change_hands_at_any_moment_are_complete_and_in_order() {
    let adoptions = Cell::new(0);
    let porters = Cell::new(0);
    for_seeds(50, |seed| {
        let mut rng = Rng::new(seed ^ 0x7ea4);
        let mut setting = random_setting(seed, &mut rng);
        setting.faults.loss = setting.faults.loss.min(50);
        setting.team = Team {
            unrest: rng.pick(&[300, 900]),
            forgets: rng.pick(&[0, 20, 40]),
            ..Team::random(2 + (seed % 3) as usize, seed)
        };
        let mut world = World::new(setting);
        let (socket, listener) = world.host.listener();
        world.worker.publish_stream(rule(108), socket).unwrap();
        for port in 100..109 {
            let script = Script {
                sends: rng.range(0, 20_000),
                waits_for_end: rng.chance(300),
                ..random_script(&mut rng)
            };
            let address = rng.pick(&["192.0.2.7", "2001:db8::7"]);
            let target = format!("{}:{port}", address.replace("2001:db8::7", "[2001:db8::7]"));
            let application = Application {
                sends: rng.range(1, 20_000),
                waits_for_end: !script.waits_for_end && rng.chance(300),
                ..random_application(&mut rng, target.parse().unwrap())
            };
            if port == 108 {
                world.guest.listen(application);
                world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", port, script);
            } else {
                world.host.0.borrow_mut().serve(port, script);
                world.guest.connect(application);
            }
        }
        complete(&mut world);
        finish(&mut world);
        adoptions.set(adoptions.get() + world.host.0.borrow().adoptions);
        porters.set(porters.get() + world.host.0.borrow().shares);
    });
    assert!(porters.get() > 40, "porters came {} times", porters.get());
    assert!(adoptions.get() > 300, "flows changed hands {} times", adoptions.get());
}

/// A team of at most so many workers, of whom those who are called stay until they are sent away.
pub fn quiet(most: usize, steering: Steering) -> Team {
    Team { most, steering, ..Team::NONE }
}

/// How many steps the life of a connection with so many bytes each way takes in a team of two;
/// before each, `disturb` is told its number. Frames come by the queue of worker 1.
fn life(inbound: bool, bytes: u64, mut disturb: impl FnMut(u64, &mut World)) -> u64 {
    let team = quiet(2, Steering::Only(1));
    let faults = Faults { loss: 30, reordering: 30, ..Faults::default() };
    let mut world = World::new(Setting { team, faults, ..Setting::calm(11) });
    world.crew.set_unrest(false);
    let script = Script { sends: bytes, chunk: 1000, buffer: 3000, ..Script::default() };
    let script = Script { reads_from: 3 * MILLI, waits_for_end: true, ..script };
    let application = Application { sends: bytes, buffers: (4000, 4000), ..at_port(80) };
    let (socket, listener) = world.host.listener();
    world.worker.publish_stream(rule(80), socket).unwrap();
    world.worker.heed(Instant::ZERO, Advice::Grow);
    world.run_until(MILLI, |world| world.crew.queues().len() == 2);
    if inbound {
        world.guest.listen(application);
        world.host.0.borrow_mut().client(listener, "192.0.2.7:5000", 80, script);
    } else {
        world.host.0.borrow_mut().serve(80, script);
        world.guest.connect(application);
    }
    let mut turn = 0;
    let over = |world: &World| {
        world.guest.running[0].is_over() && world.host.0.borrow().is_quiet() && world.is_over()
    };
    while !over(&world) {
        disturb(turn, &mut world);
        world.step();
        turn += 1;
        assert!(turn < 10_000, "it never ends");
    }
    complete(&mut world);
    finish(&mut world);
    turn
}

pub fn at_port(port: u16) -> Application {
    Application::to(format!("192.0.2.7:{port}").parse().unwrap())
}

#[test]
fn a_connection_survives_the_retirement_of_its_worker_in_every_moment_of_its_life() {
    for inbound in [false, true] {
        let turns = life(inbound, 20_000, |_, _| ());
        assert!(turns > 60, "{turns} turns");
        let mut moved = 0;
        for at in 0..turns {
            life(inbound, 20_000, |turn, world| {
                if turn == at {
                    world.worker.heed(Instant::from_nanos(world.now), Advice::Shrink);
                } else if turn > at {
                    moved += world.host.0.borrow().adoptions.min(1);
                }
            });
        }
        assert!(moved > turns, "flows were adopted");
    }
}

#[test]
fn a_connection_follows_its_packets_there_and_back() {
    let mut queue = 0;
    let mut adoptions = 0;
    life(false, 300_000, |turn, world| {
        if turn % 100 == 99 {
            queue = 1 - queue;
            world.crew.steer(Steering::Only(queue));
        }
        adoptions = world.host.0.borrow().adoptions;
    });
    assert!(adoptions >= 5, "{adoptions} adoptions");
}

/// A connected TCP connection from port 40,000, owned by the worker whose queue frames come by, and
/// the next segment of its guest.
pub fn connected(bench: &mut Bench, port: u16) -> Tcp {
    let ports = (port, 80);
    bench.feed(&Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    let frames = bench.pass(MILLI);
    let syn_ack = frames.iter().rfind(|frame| frame[47] == SYN | ACK).unwrap();
    let seq = u32::from_be_bytes(syn_ack[38..42].try_into().unwrap());
    let ack = Tcp { ports, seq: 1001, ack: seq.wrapping_add(1), ..Tcp::new(ACK) };
    bench.feed(&ack.frame(Ip::v4(TCP)));
    ack
}

/// A bench whose lead has called `others` more; frames come by the queue of worker 1.
pub fn bench_of(most: usize, called: usize) -> Bench {
    let mut bench = Bench::with_team(quiet(most, Steering::Only(1)), false, small_limits());
    bench.crew.set_unrest(false);
    let server = Script { connect_delay: 0, waits_for_end: true, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, server);
    for _ in 0..called {
        advise(&mut bench, 0, Advice::Grow);
    }
    assert_eq!(bench.crew.queues().len(), 1 + called);
    bench
}

pub fn advise(bench: &mut Bench, worker: usize, advice: Advice) {
    match worker {
        0 => bench.worker.heed(Instant::from_nanos(bench.now), advice),
        _ => bench.crew.advise(bench.now, worker, advice),
    }
    bench.turn();
}

/// Whether the guest is told that a connection is not there.
pub fn is_reset(frames: &[Vec<u8>]) -> bool {
    frames.iter().any(|frame| frame[23] == TCP && frame[47] & RST != 0)
}

#[test]
fn a_flow_that_is_on_its_way_when_workers_retire_comes_home() {
    let mut bench = bench_of(3, 2);
    let ack = connected(&mut bench, 40_000);
    connected(&mut bench, 40_001);
    assert_eq!(bench.crew.flows_of(1), 2);
    // Worker 2 has retired, of which nobody knows yet, and worker 1 gives it a flow.
    bench.crew.pause(1, true);
    bench.crew.pause(0, true);
    bench.worker.heed(Instant::from_nanos(bench.now), Advice::Shrink);
    bench.turn();
    assert_eq!(bench.crew.queues(), [0, 1]);
    bench.crew.pause(2, true);
    bench.crew.pause(1, false);
    let to = bench.crew.id(2);
    advise(&mut bench, 1, Advice::Give { to, share: 1000 });
    assert_eq!(bench.crew.flows_of(1), 1);
    // Before that one wakes, the other has retired as well.
    bench.crew.pause(0, false);
    bench.turn();
    advise(&mut bench, 0, Advice::Shrink);
    assert_eq!((bench.crew.queues(), bench.flow_count()), (vec![0], 1));
    for port in [40_000, 40_001] {
        let ports = (port, 80);
        let frames = bench.feed(&Tcp { ports, flags: PSH | ACK, ..ack.clone() }.frame(Ip::v4(TCP)));
        assert!(!is_reset(&frames), "port {port}");
    }
    bench.crew.pause(2, false);
    bench.turn();
    assert_eq!((bench.worker.flow_count(), bench.held().listed), (2, 0));
}

#[test]
fn a_packet_that_overtakes_its_flow_waits_for_it() {
    let mut bench = bench_of(2, 1);
    let flows = [40_000, 40_001].map(|port| connected(&mut bench, port));
    bench.crew.steer(Steering::Only(0));
    let other = connected(&mut bench, 40_002);
    // Packets of both flows are in the mail of their worker when it gives one away ...
    bench.crew.pause(1, true);
    for ack in &flows {
        bench.feed(&ack.frame(Ip::v4(TCP)));
    }
    let (lead, other_id) = (bench.crew.id(0), bench.crew.id(1));
    advise(&mut bench, 0, Advice::Give { to: other_id, share: 0 });
    advise(&mut bench, 1, Advice::Give { to: lead, share: 1000 });
    assert_eq!((bench.crew.flows_of(1), bench.worker.flow_count()), (1, 2));
    // ... and gets it back behind them. The lead's own flow is the heavier one.
    for _ in 0..10 {
        bench.feed(&other.frame(Ip::v4(TCP)));
    }
    advise(&mut bench, 0, Advice::Give { to: other_id, share: 450 });
    assert_eq!(bench.worker.flow_count(), 1);
    bench.crew.pause(1, false);
    let frames = bench.turn();
    assert!(!is_reset(&frames));
    assert_eq!((bench.crew.flows_of(1), bench.host.0.borrow().adoptions), (2, 2));
    assert_eq!(bench.drops(), []);
}

/// Ten clients of a published port.
fn clients(bench: &mut Bench, listener: u64) {
    for port in 5000..5010 {
        let script = Script { waits_for_end: true, ..Script::default() };
        bench.host.0.borrow_mut().client(listener, &format!("192.0.2.7:{port}"), 80, script);
    }
}

#[test]
fn clients_of_a_worker_that_gets_no_queue_are_served() {
    let team = Team { lacks_queues: 1000, ..quiet(3, Steering::Random) };
    let mut bench = Bench::with_team(team, false, small_limits());
    bench.crew.set_unrest(false);
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(80), socket).unwrap();
    bench.turn();
    bench.worker.heed(Instant::from_nanos(bench.now), Advice::Grow);
    bench.crew.pause(1, true);
    bench.turn();
    clients(&mut bench, listener);
    let mut frames = bench.turn();
    bench.crew.pause(1, false);
    frames.extend(bench.pass(3 * SECOND));
    let seen = bench.host.0.borrow().seen(80);
    assert!(seen.iter().all(|seen| seen.end != Some(End::Reset)), "{seen:?}");
    assert_eq!((bench.worker.flow_count(), bench.held().listed), (10, 0));
    let syns = frames.iter().filter(|frame| frame[47] == SYN).map(|frame| &frame[34..36]);
    assert_eq!(syns.collect::<BTreeSet<_>>().len(), 10);
    // It is not called again.
    advise(&mut bench, 0, Advice::Grow);
    assert_eq!(bench.held().listed, 0);
}

#[test]
fn clients_that_come_while_a_worker_is_called_wait_for_its_queue() {
    let mut bench = bench_of(2, 0);
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(80), socket).unwrap();
    bench.turn();
    bench.worker.heed(Instant::from_nanos(bench.now), Advice::Grow);
    bench.crew.pause(1, true);
    bench.turn();
    clients(&mut bench, listener);
    let mut frames = bench.turn();
    bench.crew.pause(1, false);
    frames.extend(bench.turn());
    assert_eq!(frames.iter().filter(|frame| frame[47] == SYN).count(), 10);
    assert_eq!(bench.drops(), []);
}

#[test]
fn a_team_whose_threads_cannot_be_started_is_one_worker() {
    let team = Team { lacks_threads: 1000, ..Team::fixed(3) };
    let mut bench = Bench::with_team(team, false, small_limits());
    bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, ..Script::default() });
    connected(&mut bench, 40_000);
    advise(&mut bench, 0, Advice::Grow);
    assert_eq!((bench.crew.queues(), bench.held().listed), (vec![0], 0));
    // Nobody is asked who cannot answer.
    assert_eq!(bench.ask(Command::Stats).tcp.open, 1);
}

#[test]
fn packets_of_a_worker_that_retires_draw_no_flow_to_it() {
    let mut bench = bench_of(2, 1);
    bench.crew.steer(Steering::Only(0));
    let ack = connected(&mut bench, 40_000);
    bench.crew.steer(Steering::Only(1));
    bench.worker.heed(Instant::from_nanos(bench.now), Advice::Shrink);
    for _ in 0..1000 {
        bench.queue(&ack.frame(Ip::v4(TCP)));
    }
    bench.turn();
    assert_eq!((bench.crew.queues(), bench.host.0.borrow().adoptions), (vec![0], 0));
    assert_eq!(bench.worker.flow_count(), 1);
}

#[test]
fn connections_of_all_workers_are_limited_together() {
    let limits = small_limits();
    let mut bench = Bench::with_team(Team::fixed(3), false, limits);
    bench.crew.set_unrest(false);
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(81), socket).unwrap();
    for port in 2000..2000 + limits.tcp_flows as u16 {
        let script = Script { waits_for_end: true, ..Script::default() };
        bench.host.0.borrow_mut().client(listener, &format!("192.0.2.7:{port}"), 81, script);
    }
    bench.pass(SECOND / 10);
    assert_eq!(bench.flow_count(), limits.inbound_tcp_flows(), "from outside");
    let slow = Script { connect_delay: u64::MAX / 2, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, slow);
    for port in 1000..3000 {
        bench.queue(&Tcp { ports: (port, 80), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
    }
    bench.pass(SECOND / 10);
    assert_eq!((bench.flow_count(), bench.held().listed), (limits.tcp_flows, limits.tcp_flows));
    // Who is over makes room for others, of any worker.
    bench.host.0.borrow_mut().reset_all();
    bench.pass(300 * SECOND);
    assert_eq!((bench.flow_count(), bench.held().listed), (0, 0));
    bench.host.0.borrow_mut().client(listener, "192.0.2.7:9", 81, Script::default());
    bench.pass(MILLI);
    assert_eq!(bench.flow_count(), 1);
}

#[test]
fn what_a_flood_makes_workers_hand_over_is_bounded() {
    let mut bench = Bench::with_team(Team::fixed(3), true, small_limits());
    bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, ..Script::default() });
    let ack = connected(&mut bench, 40_000);
    let mut rng = Rng::new(3);
    for number in 0..6000u32 {
        let ports = (1000 + (number % 5000) as u16, 80);
        let frame = match number % 4 {
            0 => Tcp { ports, ..Tcp::new(SYN) }.frame(Ip::v4(TCP)),
            1 => Tcp { ports, payload: vec![1; 9000], ..Tcp::new(ACK) }.frame(Ip::v4(TCP)),
            2 => Tcp { payload: vec![2; 60_000], ..ack.clone() }.frame(Ip::v4(TCP)),
            _ => udp_frame(Ip::v4(UDP), ports.0, 9, &vec![3; 60_000]),
        };
        bench.queue(&frame);
    }
    let (mut most, mut rounds) = (0, 0);
    while !bench.crew.is_quiet() {
        // Who is handed most runs least.
        bench.crew.pause(0, rng.chance(800));
        let now = bench.now;
        bench.crew.turn(now, &mut bench.worker, |_| ());
        most = most.max(bench.held().mail_bytes);
        rounds += 1;
        assert!(rounds < 2000, "the flood is never over");
    }
    // 4 MiB for each worker, as the head of the mail has it.
    assert!((1 << 20..3 * (4 << 20)).contains(&most), "{most} bytes");
    assert!(bench.dropped(DropReason::HandOver) > 0);
    bench.crew.pause(0, false);
    bench.pass(400 * SECOND);
    assert_eq!((bench.held().mail_bytes, bench.held().listed), (0, bench.flow_count()));
}

#[test]
fn routers_are_advertised_by_one_worker() {
    let mut counts = [1, 3].map(|workers| {
        let mut bench = Bench::with_team(Team::fixed(workers), false, small_limits());
        let frames = bench.pass(3600 * SECOND);
        // RFC 4861 §4.2.
        frames.iter().filter(|frame| frame[20] == ICMPV6 && frame[54] == 134).count()
    });
    counts.sort_unstable();
    assert!(counts[0] > 0 && counts[0] == counts[1], "{counts:?}");
}

#[test]
fn a_team_that_has_swept_its_timers_still_lets_workers_go() {
    let mut bench = bench_of(2, 0);
    let come_and_go = |bench: &mut Bench, nanos| {
        let ack = connected(bench, 40_000);
        bench.now += nanos;
        bench.turn();
        bench.feed(&Tcp { flags: RST, ..ack }.frame(Ip::v4(TCP)));
        assert_eq!(bench.flow_count(), 0);
    };
    // Beyond the first time-out, so that a timer of hours is left behind.
    for _ in 0..4050 {
        come_and_go(&mut bench, 1200 * MILLI);
    }
    let before = bench.held().timers;
    advise(&mut bench, 0, Advice::Grow);
    bench.crew.steer(Steering::Only(0));
    for _ in 0..100 {
        come_and_go(&mut bench, 0);
    }
    assert!(before > 4000 && bench.held().timers < 1000, "the wheel is not filled anew");
    bench.pass(10 * SECOND);
    assert_eq!(bench.crew.queues(), [0]);
}

#[test]
fn a_port_that_is_withdrawn_is_forgotten_by_all_though_its_flows_move() {
    let mut bench = bench_of(2, 1);
    let (socket, listener) = bench.host.listener();
    bench.worker.publish_stream(rule(81), socket).unwrap();
    for port in 5000..5004 {
        let script = Script { waits_for_end: true, ..Script::default() };
        bench.host.0.borrow_mut().client(listener, &format!("192.0.2.7:{port}"), 81, script);
    }
    bench.turn();
    assert_eq!(bench.crew.flows_of(1), 2);
    let stats = bench.ask(Command::Stats);
    assert_eq!((stats.forwards[0].connections, stats.workers), (4, 2));
    let withdrawals = vec![Withdrawal { forward: ForwardId(1), guest_port: None }];
    bench.ask(|reply| Command::Withdraw(withdrawals, reply));
    advise(&mut bench, 0, Advice::Shrink);
    advise(&mut bench, 0, Advice::Grow);
    let now = Instant::from_nanos(bench.now);
    assert_eq!(bench.flow_count(), 4);
    for worker in bench.crew.workers(&bench.worker) {
        assert_eq!(worker.stats(now).forwards, []);
    }
}

#[test]
fn a_flow_that_is_on_its_way_when_the_end_comes_is_passed_on_too() {
    let mut bench = bench_of(3, 2);
    let stalled = Script { reads_from: 5 * SECOND, buffer: 100, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, ..stalled });
    let ack = connected(&mut bench, 40_000);
    bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, ..Script::default() });
    let fin = connected(&mut bench, 40_001);
    bench.feed(&Tcp { flags: FIN | ACK, ..fin }.frame(Ip::v4(TCP)));
    for part in 0..4 {
        let (seq, payload) = (ack.seq + part * 500, vec![1; 500]);
        bench.feed(&Tcp { seq, payload, ..ack.clone() }.frame(Ip::v4(TCP)));
    }
    // Worker 1 gives the first to worker 2, who knows of the end before it has the flow.
    bench.crew.pause(1, true);
    bench.command(Command::Drain);
    let to = bench.crew.id(2);
    advise(&mut bench, 1, Advice::Give { to, share: 1000 });
    bench.crew.pause(1, false);
    bench.pass(SECOND);
    let has = |bench: &Bench, worker| bench.crew.flows_of(worker);
    // What is left of the other one is the guest's own affair.
    assert_eq!((has(&bench, 1), has(&bench, 2), bench.crew.drained), (1, 1, false));
    // The guest ends as well: it has nothing more to say.
    let seq = ack.seq + 2000;
    bench.feed(&Tcp { seq, flags: FIN | ACK, ..ack }.frame(Ip::v4(TCP)));
    bench.pass(20 * SECOND);
    assert!(bench.crew.drained);
    assert_eq!(bench.host.0.borrow().passed_on(80), 2000);
}

#[test]
fn all_that_the_guest_has_sent_is_passed_on_before_a_team_ends() {
    for_seeds(30, |seed| {
        let mut rng = Rng::new(seed ^ 0xd4a1);
        let mut setting = random_setting(seed, &mut rng);
        setting.faults = Faults::default();
        setting.team = Team { unrest: 500, ..Team::random(2 + (seed % 3) as usize, seed) };
        let mut world = World::new(setting);
        for port in 100..106 {
            let script = Script { reads_from: SECOND, buffer: 2000, ..random_script(&mut rng) };
            world.host.0.borrow_mut().serve(port, script);
            world.guest.connect(Application { sends: 9000, ..at_port(port) });
        }
        let sent = |world: &World| world.guest.running.iter().all(|guest| guest.sent == 9000);
        assert!(world.run_until(100 * SECOND, sent));
        world.worker.on_command(Instant::from_nanos(world.now), Command::Drain);
        assert!(world.run_until(300 * SECOND, |world| world.crew.drained));
        for port in 100..106 {
            let received: u64 = world.host.0.borrow().passed_on(port);
            assert_eq!(received, 9000, "port {port}");
        }
    });
}
