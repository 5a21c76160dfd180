//! What one segment costs in the TCP machine, without any byte moved.
//!
//! Question: is the machine's share of an exchange small beside the system calls around it?
//! Last answer, medians on a busy 4-core VM (Linux 6.18): 64 KiB from the guest 86 ns, 64 KiB to
//! the guest and its acknowledgment 150 ns, ping-pong 167 ns, a segment of 1,448 bytes 57 ns.
//! `cargo bench --bench tcp`.

use std::time::Duration;

use divan::{Bencher, black_box};

use tapway::base::{Instant, Seq};
use tapway::stack::tcp::{Action, Connection, Options, State};
use tapway::stack::wire::{Flags, Segment};

fn main() {
    divan::main();
}

const GUEST_ISS: Seq = Seq(0xffff_0000);
const OUR_ISS: Seq = Seq(0xfffe_0000);
const FRAME: u32 = 65_435;
const TICK: Duration = Duration::from_micros(3);

const OPTIONS: Options = Options {
    mss: 65_480,
    receive_limit: 4 << 20,
    first_window: 64 << 10,
    in_flight_limit: 4 << 20,
    frame_limit: FRAME,
    resend_limit: FRAME,
    time_wait: Duration::from_secs(1),
};

const SYN: Segment = Segment {
    source_port: 41_000,
    target_port: 443,
    seq: GUEST_ISS,
    ack: None,
    flags: Flags { syn: true, fin: false, rst: false, psh: false },
    window: 65_535,
    mss: Some(65_480),
    window_scale: Some(7),
    sack_permitted: true,
    sack: [None; 3],
    len: 0,
};

/// An open connection, and the guest's next segment.
struct Flow {
    connection: Connection,
    segment: Segment,
    now: Instant,
    out: Vec<Action>,
}

impl Flow {
    fn open() -> Flow {
        let now = Instant::from_millis(1000);
        let mut out = Vec::with_capacity(16);
        let mut connection = Connection::from_syn(now, &SYN, OUR_ISS, OPTIONS);
        connection.on_connected(now, &mut out);
        let segment = Segment {
            seq: GUEST_ISS + 1,
            ack: Some(OUR_ISS + 1),
            flags: Flags::default(),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            ..SYN
        };
        connection.on_segment(now, &segment, &mut out).expect("it completes the handshake");
        assert_eq!(connection.state(), State::Established);
        out.clear();
        Flow { connection, segment, now, out }
    }

    /// The guest sends `len` bytes and the host takes them at once.
    fn guest_sends(&mut self, len: u32) {
        self.now = self.now + TICK;
        self.segment.len = len;
        let taken = self.connection.on_segment(self.now, black_box(&self.segment), &mut self.out);
        taken.expect("in order and in the window");
        self.segment.seq += len;
        self.connection.on_host_took(len, &mut self.out);
    }

    /// The host sends `len` bytes; the guest has not answered yet.
    fn host_sends(&mut self, len: u32) {
        self.now = self.now + TICK;
        assert!(self.connection.send_capacity() >= len);
        self.connection.on_host_data(self.now, len, true, &mut self.out);
    }

    /// The guest acknowledges everything.
    fn guest_acknowledges(&mut self) {
        let nxt = self.connection.queue_start() + self.connection.in_flight();
        self.segment.ack = Some(nxt);
        self.guest_sends(0);
    }

    /// What the edge does at the end of a batch.
    fn flush(&mut self) {
        self.connection.flush(&mut self.out);
        black_box(&self.out);
        self.out.clear();
    }
}

#[divan::bench]
fn handshake() -> State {
    Flow::open().connection.state()
}

/// One frame of 64 KiB from the guest, delivered, taken, acknowledged.
#[divan::bench]
fn bulk_guest_to_host(bencher: Bencher<'_, '_>) {
    let mut flow = Flow::open();
    bencher.bench_local(|| {
        flow.guest_sends(FRAME);
        flow.flush();
    });
}

/// Sixteen segments of 1,448 bytes and one acknowledgment.
#[divan::bench]
fn small_segments_guest_to_host(bencher: Bencher<'_, '_>) {
    let mut flow = Flow::open();
    bencher.bench_local(|| {
        for _ in 0..16 {
            flow.guest_sends(1448);
        }
        flow.flush();
    });
}

/// One frame of 64 KiB towards the guest, and the guest's acknowledgment.
#[divan::bench]
fn bulk_host_to_guest(bencher: Bencher<'_, '_>) {
    let mut flow = Flow::open();
    bencher.bench_local(|| {
        flow.host_sends(FRAME);
        flow.guest_acknowledges();
        flow.flush();
    });
}

/// 64 bytes there and back; each carries the other's acknowledgment.
#[divan::bench]
fn ping_pong(bencher: Bencher<'_, '_>) {
    let mut flow = Flow::open();
    bencher.bench_local(|| {
        let nxt = flow.connection.queue_start() + flow.connection.in_flight();
        flow.segment.ack = Some(nxt);
        flow.guest_sends(64);
        flow.host_sends(64);
        flow.flush();
    });
}

/// The three calls that the worker makes of every flow it touches.
#[divan::bench]
fn questions(bencher: Bencher<'_, '_>) {
    let flow = Flow::open();
    bencher.bench_local(|| {
        let connection = black_box(&flow.connection);
        (connection.send_capacity(), connection.next_deadline(), connection.ack_owed())
    });
}
