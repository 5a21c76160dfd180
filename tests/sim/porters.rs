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
use crate::teams::{MILLI, SECOND, advise, at_port, connected, is_reset, quiet};
use crate::world::{Setting, World};

/// How many steps an upload of 800 KB in large frames takes; before each, `disturb` is told its
/// number.
fn upload(mut disturb: impl FnMut(u64, &mut World)) -> u64 {
    let faults = Faults { loss: 10, reordering: 10, ..Faults::default() };
    let team = quiet(2, Steering::Only(0));
    let mut world = World::new(Setting { team, faults, mtu: 65_520, ..Setting::calm(7) });
    world.crew.set_unrest(false);
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
    let steps = upload(|_, _| ());
    assert!(steps > 30, "{steps} steps");
    let mut served = 0;
    for at in 0..steps {
        let stay = [3, 10, 10_000][at as usize % 3];
        let mut shares = 0;
        upload(|step, world| {
            let now = Instant::from_nanos(world.now);
            // The thread has to be started first.
            if step == 0 || (at..at + stay).contains(&step) {
                world.worker.heed(now, Advice::Hire);
            } else if step == at + stay {
                world.worker.heed(now, Advice::Dismiss);
            }
            shares = world.host.0.borrow().shares;
        });
        served += u64::from(shares > 0);
    }
    assert!(served > steps / 2, "{served} uploads of {steps} had a porter");
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
