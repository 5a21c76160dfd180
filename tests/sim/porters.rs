//! Uploads for which another worker does the sending: whenever that one comes, is slow, fails or
//! goes.

use tapway::base::Instant;
use tapway::engine::{Advice, Command};

use crate::bench::{Bench, small_limits};
use crate::crew::Steering;
use crate::frames::{ACK, FIN, Ip, RST, TCP, Tcp};
use crate::guest::Application;
use crate::link::Faults;
use crate::peer::Script;
use crate::streams::{complete, finish};
use crate::teams::{MILLI, SECOND, advise, at_port, bench_of, connected, is_reset, quiet};
use crate::world::{Setting, World};

/// Who is at work when an upload begins.
#[derive(Clone, Copy, Debug)]
enum Workers {
    /// The lead.
    One,
    /// The lead and another. This one's the connection is to be.
    Two(usize),
}

impl Workers {
    fn owner(self) -> usize {
        match self {
            Workers::One => 0,
            Workers::Two(owner) => owner,
        }
    }

    /// The worker that has the upload is told what to do.
    fn advise(self, world: &mut World, advice: Advice) {
        match self.owner() {
            0 => world.worker.heed(Instant::from_nanos(world.now), advice),
            other => world.crew.advise(world.now, other, advice),
        }
    }
}

/// How many steps an upload of 800 KB in large frames takes; before each, `disturb` is told its
/// number.
fn upload(workers: Workers, mut disturb: impl FnMut(u64, &mut World)) -> u64 {
    let faults = Faults { loss: 10, reordering: 10, ..Faults::default() };
    let team = quiet(2, Steering::Only(workers.owner()));
    let mut world = World::new(Setting { team, faults, mtu: 65_520, ..Setting::calm(7) });
    world.crew.set_unrest(false);
    if matches!(workers, Workers::Two(_)) {
        world.worker.heed(Instant::ZERO, Advice::Grow);
        world.run_until(MILLI, |world| world.crew.queues().len() == 2);
    }
    let script = Script { sends: 5000, buffer: 50_000, waits_for_end: true, ..Script::default() };
    world.host.0.borrow_mut().serve(80, script);
    world.guest.connect(Application { sends: 800_000, ..at_port(80) });
    let mut step = 0;
    while !(world.guest.running[0].is_over() && world.is_over()) {
        disturb(step, &mut world);
        world.step();
        step += 1;
        assert!(step < 10_000, "it never ends");
    }
    complete(&mut world);
    finish(&mut world);
    assert_eq!(world.host.0.borrow().shared(), 0);
    step
}

#[test]
fn a_porter_may_come_and_go_in_every_moment_of_an_upload() {
    for workers in [Workers::One, Workers::Two(0), Workers::Two(1)] {
        let steps = upload(workers, |_, _| ());
        assert!(steps > 30, "{steps} steps");
        let mut served = 0;
        for at in 0..steps {
            let stay = [3, 10, 10_000][at as usize % 3];
            let mut shares = 0;
            upload(workers, |step, world| {
                // The thread has to be started first.
                if step == 0 || (at..at + stay).contains(&step) {
                    workers.advise(world, Advice::Hire);
                } else if step == at + stay {
                    workers.advise(world, Advice::Dismiss);
                }
                shares = world.host.0.borrow().shares;
            });
            served += u64::from(shares > 0);
        }
        assert!(served > steps / 2, "{workers:?}: {served} uploads of {steps} had a porter");
    }
}

#[test]
fn the_owner_of_a_flow_with_a_porter_may_retire_in_every_moment_and_so_may_the_porter() {
    for owner in [0, 1] {
        let workers = Workers::Two(owner);
        let steps = upload(workers, |_, _| ());
        let mut retired = 0;
        for at in 0..steps {
            let mut last = 0;
            upload(workers, |step, world| {
                if step <= at {
                    workers.advise(world, Advice::Hire);
                } else if step == at + 1 {
                    world.worker.heed(Instant::from_nanos(world.now), Advice::Shrink);
                }
                last = world.crew.queues().len();
            });
            retired += u64::from(last == 1);
        }
        assert!(retired > steps / 2, "{retired} of {steps} were over");
    }
}

/// A connection whose guest has sent something, and its porter, which does not run.
fn hired(script: Script) -> (Bench, Tcp) {
    let mut bench = Bench::with_team(quiet(2, Steering::Only(0)), false, small_limits());
    bench.crew.set_unrest(false);
    bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, ..script });
    let mut ack = connected(&mut bench, 40_000);
    send(&mut bench, &mut ack, 1000);
    advise(&mut bench, 0, Advice::Hire);
    advise(&mut bench, 0, Advice::Hire);
    bench.pass(MILLI);
    assert_eq!(bench.host.0.borrow().shared(), 1);
    bench.crew.pause(1, true);
    (bench, ack)
}

fn send(bench: &mut Bench, ack: &mut Tcp, len: usize) {
    bench.feed(&Tcp { payload: vec![1; len], ..ack.clone() }.frame(Ip::v4(TCP)));
    ack.seq = ack.seq.wrapping_add(len as u32);
}

fn passed_on(bench: &Bench) -> u64 {
    bench.host.0.borrow().passed_on(80)
}

#[test]
fn a_flow_with_many_parcels_does_without_its_porter() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    for _ in 0..500 {
        send(&mut bench, &mut ack, 1);
    }
    assert_eq!((passed_on(&bench), bench.held().backlog_bytes), (1000, 500));
    bench.crew.pause(1, false);
    bench.pass(MILLI);
    assert_eq!((passed_on(&bench), bench.held().backlog_bytes), (1500, 0));
    assert_eq!(bench.host.0.borrow().shared(), 0);
    send(&mut bench, &mut ack, 1);
    assert_eq!(passed_on(&bench), 1501);
}

#[test]
fn what_a_porter_has_counts_against_the_window() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    let mut window = u32::MAX;
    for _ in 0..8 {
        bench.feed(&Tcp { payload: vec![1; 1000], ..ack.clone() }.frame(Ip::v4(TCP)));
        ack.seq = ack.seq.wrapping_add(1000);
        let frames = bench.pass(2 * MILLI);
        let last = frames.last().expect("it is acknowledged");
        let told = u32::from(u16::from_be_bytes(last[48..50].try_into().unwrap()));
        assert!(told < window, "{told} after {window}");
        window = told;
    }
}

#[test]
fn the_end_waits_for_what_a_porter_has() {
    let (mut bench, mut ack) = hired(Script::default());
    send(&mut bench, &mut ack, 1000);
    bench.feed(&Tcp { flags: FIN | ACK, ..ack.clone() }.frame(Ip::v4(TCP)));
    bench.command(Command::Drain);
    bench.pass(20 * MILLI);
    assert!(!bench.crew.drained);
    assert_eq!(passed_on(&bench), 1000);
    bench.crew.pause(1, false);
    bench.pass(SECOND);
    assert!(bench.crew.drained);
    assert_eq!((passed_on(&bench), bench.host.0.borrow().shared()), (2000, 0));
}

#[test]
fn a_guest_that_resets_takes_what_its_porter_has_along() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    send(&mut bench, &mut ack, 1000);
    bench.feed(&Tcp { flags: RST | ACK, ..ack.clone() }.frame(Ip::v4(TCP)));
    assert_eq!((bench.flow_count(), bench.held().backlog_bytes), (0, 0));
    bench.crew.pause(1, false);
    bench.pass(MILLI);
    let host = bench.host.0.borrow();
    assert_eq!((host.open_sockets(), host.shared(), host.passed_on(80)), (0, 0, 1000));
}

#[test]
fn a_server_that_resets_while_a_porter_sends_resets_the_guest() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    send(&mut bench, &mut ack, 1000);
    bench.host.0.borrow_mut().reset_all();
    bench.crew.pause(1, false);
    assert!(is_reset(&bench.pass(SECOND)));
    assert_eq!((bench.flow_count(), bench.held().backlog_bytes), (0, 0));
    assert_eq!(bench.host.0.borrow().open_sockets(), 0);
}

#[test]
fn a_flow_may_have_one_porter_after_another() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    bench.crew.pause(1, false);
    for round in 1..=3 {
        assert_eq!(bench.host.0.borrow().shares, round);
        bench.crew.pause(1, true);
        send(&mut bench, &mut ack, 100);
        assert_eq!(passed_on(&bench), 900 + 100 * round);
        bench.crew.pause(1, false);
        advise(&mut bench, 0, Advice::Dismiss);
        bench.pass(MILLI);
        assert_eq!((passed_on(&bench), bench.host.0.borrow().shared()), (1000 + 100 * round, 0));
        advise(&mut bench, 0, Advice::Hire);
        bench.pass(MILLI);
    }
}

#[test]
fn a_porter_that_is_called_to_work_has_sent_first() {
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..Script::default() });
    send(&mut bench, &mut ack, 1000);
    advise(&mut bench, 0, Advice::Grow);
    send(&mut bench, &mut ack, 500);
    assert_eq!((passed_on(&bench), bench.held().backlog_bytes), (1000, 1500));
    bench.crew.pause(1, false);
    bench.pass(MILLI);
    assert_eq!((passed_on(&bench), bench.host.0.borrow().shared()), (2500, 0));
    assert_eq!(bench.crew.queues().len(), 2);
}

#[test]
fn what_a_socket_does_not_take_from_a_porter_comes_back() {
    let slow = Script { buffer: 1500, reads_from: SECOND, ..Script::default() };
    let (mut bench, mut ack) = hired(Script { waits_for_end: true, ..slow });
    send(&mut bench, &mut ack, 1000);
    bench.crew.pause(1, false);
    advise(&mut bench, 0, Advice::Dismiss);
    assert_eq!((bench.held().backlog_bytes, bench.host.0.borrow().shared()), (500, 0));
    send(&mut bench, &mut ack, 200);
    bench.pass(3 * SECOND);
    assert_eq!((passed_on(&bench), bench.held().backlog_bytes), (2200, 0));
}

#[test]
fn a_porter_declines_a_second_flow_and_what_becomes_of_that_one_is_nothing_to_it() {
    let mut bench = bench_of(3, 2);
    let mut first = connected(&mut bench, 40_000);
    send(&mut bench, &mut first, 1000);
    bench.crew.steer(Steering::Only(0));
    let mut second = connected(&mut bench, 40_001);
    send(&mut bench, &mut second, 1000);
    // Both are the first flow of their worker, and have the same name there.
    bench.crew.pause(2, true);
    advise(&mut bench, 1, Advice::Hire);
    advise(&mut bench, 0, Advice::Hire);
    assert_eq!(bench.host.0.borrow().shares, 2);
    bench.crew.pause(2, false);
    bench.turn();
    assert_eq!((bench.host.0.borrow().shared(), passed_on(&bench)), (1, 2000));
    bench.crew.pause(2, true);
    send(&mut bench, &mut second, 100);
    assert_eq!(passed_on(&bench), 2100);
    bench.crew.steer(Steering::Only(1));
    send(&mut bench, &mut first, 1000);
    assert_eq!((passed_on(&bench), bench.held().backlog_bytes), (2100, 1000));
    let reset = Tcp { flags: RST | ACK, ..second.clone() };
    bench.feed(&reset.frame(Ip::v4(TCP)));
    bench.pass(MILLI);
    let before = passed_on(&bench);
    bench.crew.pause(2, false);
    bench.turn();
    assert_eq!((passed_on(&bench) - before, bench.held().backlog_bytes), (1000, 0));
    assert_eq!((bench.flow_count(), bench.host.0.borrow().shared()), (1, 1));
}

#[test]
fn a_porter_that_resigns_is_done_without() {
    let mut bench = bench_of(2, 1);
    let mut ack = connected(&mut bench, 40_000);
    advise(&mut bench, 1, Advice::Hire);
    assert_eq!(bench.host.0.borrow().shared(), 1);
    advise(&mut bench, 0, Advice::Resign);
    assert_eq!(bench.host.0.borrow().shared(), 0);
    send(&mut bench, &mut ack, 1000);
    assert_eq!((passed_on(&bench), bench.crew.flows_of(1)), (1000, 1));
}

#[test]
fn a_porter_that_is_let_go_before_it_is_ready_goes() {
    let mut bench = bench_of(2, 1);
    let mut ack = connected(&mut bench, 40_000);
    bench.crew.pause(0, true);
    advise(&mut bench, 1, Advice::Hire);
    advise(&mut bench, 1, Advice::Dismiss);
    bench.crew.pause(0, false);
    bench.turn();
    assert_eq!((bench.host.0.borrow().shares, bench.host.0.borrow().shared()), (1, 0));
    send(&mut bench, &mut ack, 1000);
    assert_eq!(passed_on(&bench), 1000);
}
