//! What a guest sends in several frames goes on together where it can, and always in order.

use crate::bench::{Bench, small_limits};
use crate::frames::{ACK, FIN, Ip, RST, SYN, TCP, Tcp};
use crate::peer::{End, FROM_GUEST, Script, Seen};
use crate::rng::pattern;

const SECOND: u64 = 1_000_000_000;

/// The number of the guest's first byte.
const FIRST: u32 = 1001;

/// One or two connections of a guest that puts its frames into the queue before the engine looks.
struct Guest {
    bench: Bench,
    /// The number that the engine expects next to be acknowledged, by port.
    acks: Vec<(u16, u32)>,
}

impl Guest {
    fn before(script: Script) -> Guest {
        let bench = Bench::new(false, small_limits());
        bench.host.0.borrow_mut().serve(80, Script { waits_for_end: true, ..script });
        Guest { bench, acks: vec![] }
    }

    fn open(&mut self, port: u16) {
        let mut frames =
            self.bench.feed(&Tcp { ports: (port, 80), ..Tcp::new(SYN) }.frame(Ip::v4(TCP)));
        frames.extend(self.bench.pass(SECOND / 100));
        let answer = frames.iter().find(|frame| frame[23] == TCP).expect("a SYN-ACK");
        let seq = u32::from_be_bytes(answer[38..42].try_into().unwrap());
        self.acks.push((port, seq.wrapping_add(1)));
        self.queue(port, 0, 0, ACK);
        self.bench.pass(SECOND / 100);
    }

    /// Puts bytes `offset..offset + len` of the stream into the queue.
    fn queue(&mut self, port: u16, offset: u32, len: u32, flags: u8) {
        let payload = (offset..offset + len).map(|at| pattern(FROM_GUEST, at.into())).collect();
        let ack = self.acks.iter().find(|(of, _)| *of == port).expect("it is open").1;
        let segment =
            Tcp { ports: (port, 80), seq: FIRST + offset, ack, payload, ..Tcp::new(flags) };
        self.bench.queue(&segment.frame(Ip::v4(TCP)));
    }

    /// Sends that a turn of the engine takes.
    fn sends(&mut self) -> u64 {
        let before = self.bench.host.0.borrow().stream_sends;
        self.bench.turn();
        self.bench.host.0.borrow().stream_sends - before
    }

    fn seen(&mut self) -> Vec<Seen> {
        self.bench.pass(10 * SECOND);
        let seen = self.bench.host.0.borrow().seen(80);
        assert!(seen.iter().all(|seen| seen.wrong_at.is_none()), "{seen:?}");
        assert_eq!(self.bench.held().backlog_bytes, 0);
        seen
    }
}

#[test]
fn frames_of_one_turn_leave_with_one_send_for_each_connection() {
    let mut guest = Guest::before(Script::default());
    guest.open(1000);
    guest.open(2000);
    for index in 0..10 {
        guest.queue(1000, index * 1000, 1000, ACK);
        guest.queue(2000, index * 1000, 1000, ACK);
    }
    assert_eq!(guest.sends(), 2);
    assert!(guest.seen().iter().all(|seen| seen.received == 10_000));
}

#[test]
fn what_may_be_a_whole_message_does_not_wait() {
    let mut guest = Guest::before(Script::default());
    guest.open(1000);
    for index in 0..5 {
        guest.queue(1000, index * 100, 100, ACK);
    }
    assert_eq!(guest.sends(), 5);
    assert_eq!(guest.seen()[0].received, 500);
}

#[test]
fn what_a_socket_does_not_take_stays_in_order() {
    for buffer in [1, 999, 1000, 1500, 2500, 9999] {
        let mut guest = Guest::before(Script { buffer, ..Script::default() });
        guest.open(1000);
        // A gap that is closed among them: what was kept for it goes behind what was gathered.
        for index in [0, 1, 3, 4, 2, 5, 6] {
            guest.queue(1000, index * 1000, 1000, ACK);
        }
        guest.queue(1000, 7000, 100, ACK | FIN);
        guest.bench.turn();
        let seen = guest.seen();
        assert_eq!((seen[0].received, seen[0].end), (7100, Some(End::Eof)), "buffer of {buffer}");
    }
}

#[test]
fn a_reset_behind_frames_leaves_nothing_behind() {
    let mut guest = Guest::before(Script::default());
    guest.open(1000);
    for index in 0..3 {
        guest.queue(1000, index * 1000, 1000, ACK);
    }
    guest.queue(1000, 3000, 0, RST);
    guest.queue(1000, 3000, 1000, ACK);
    guest.bench.turn();
    assert_eq!(guest.seen()[0].end, Some(End::Reset));
    assert_eq!(guest.bench.flow_count(), 0);
}
