//! Who is at work is a matter of what keeps workers busy: another one helps with TCP flows, and with
//! nothing else.

use tapway::engine::Advice;

use crate::bench::{Bench, small_limits};
use crate::crew::Steering;
use crate::frames::{ACK, Ip, PSH, TCP, Tcp, UDP, udp_frame};
use crate::peer::Script;
use crate::teams::{MILLI, SECOND, advise, connected, quiet};

/// A team of at most two without a pause, of whom `called` beside the lead are at work; what the
/// guest sends comes by the queue of the last.
fn strained(called: usize) -> Bench {
    let mut bench = Bench::with_team(quiet(2, Steering::Only(called)), false, small_limits());
    bench.crew.set_unrest(false);
    let server = Script { connect_delay: 0, waits_for_end: true, ..Script::default() };
    bench.host.0.borrow_mut().serve(80, server);
    for _ in 0..called {
        advise(&mut bench, 0, Advice::Grow);
    }
    bench.crew.strain();
    bench
}

/// For so long the guest sends some frames in every millisecond.
fn load(bench: &mut Bench, nanos: u64, frames: &[Vec<u8>]) {
    let end = bench.now + nanos;
    while bench.now < end {
        bench.now += MILLI;
        frames.iter().for_each(|frame| bench.queue(frame));
        bench.turn();
    }
}

/// The next segments of two connections.
fn segments(bench: &mut Bench) -> Vec<Vec<u8>> {
    let flows = [40_000, 40_001].map(|port| connected(bench, port));
    flows.map(|ack| Tcp { flags: PSH | ACK, ..ack }.frame(Ip::v4(TCP))).to_vec()
}

fn datagrams() -> Vec<Vec<u8>> {
    (0..10).map(|_| udp_frame(Ip::v4(UDP), 5000, 9, &[7; 64])).collect()
}

#[test]
fn another_worker_is_called_for_tcp_flows_and_stays_with_them() {
    let mut bench = strained(0);
    let segments = segments(&mut bench);
    load(&mut bench, 100 * MILLI, &segments);
    assert_eq!(bench.crew.queues(), [0, 1]);
    bench.crew.steer(Steering::Only(1));
    load(&mut bench, 5 * SECOND, &segments);
    assert_eq!((bench.crew.queues(), bench.crew.flows_of(1)), (vec![0, 1], 2));
}

#[test]
fn datagrams_call_nobody_though_there_are_tcp_flows() {
    let mut bench = strained(0);
    let segments = segments(&mut bench);
    load(&mut bench, 5 * SECOND, &datagrams());
    assert_eq!(bench.crew.queues(), [0]);
    // Nor if a few segments come in between.
    let mixed = [datagrams(), segments].concat();
    load(&mut bench, SECOND, &mixed);
    assert_eq!(bench.crew.queues(), [0]);
}

#[test]
fn a_worker_that_does_little_but_hand_datagrams_over_is_let_go() {
    for beside in [false, true] {
        let mut bench = strained(1);
        let segments = segments(&mut bench);
        assert_eq!(bench.crew.flows_of(1), 2);
        let frames = if beside { [datagrams(), segments].concat() } else { datagrams() };
        load(&mut bench, 5 * SECOND, &frames);
        assert_eq!((bench.crew.queues(), bench.worker.flow_count()), (vec![0], 3));
        assert_eq!(bench.drops(), []);
    }
}
