//! The end of the host's bytes, before a guest whose window has no room.

use crate::bench::{Bench, small_limits};
use crate::crew::Team;
use crate::frames::{ACK, FIN, Ip, RST, SYN, TCP, Tcp};
use crate::peer::Script;

const MILLI: u64 = 1_000_000;

/// How many workers there are.
const TEAMS: [usize; 3] = [1, 2, 3];

/// Bytes of the host's stream that the guest was sent, repetitions not counted, and when its FIN.
#[derive(Debug, Default)]
struct Seen {
    iss: u32,
    bytes: u32,
    fin_at: Option<u64>,
    reset: bool,
}

struct Guest {
    bench: Bench,
    seen: Seen,
}

impl Guest {
    /// Connected to a server that does as `script` says, with a window of `window` bytes, through
    /// so many workers.
    fn connected(workers: usize, script: Script, window: u16) -> Guest {
        let bench = Bench::with_team(Team::fixed(workers), true, small_limits());
        bench.host.0.borrow_mut().serve(80, Script { connect_delay: 0, pace: MILLI, ..script });
        let mut guest = Guest { bench, seen: Seen::default() };
        guest.feed(&Tcp { window, ..Tcp::new(SYN) });
        guest.acknowledge(0, window);
        guest
    }

    fn feed(&mut self, segment: &Tcp) {
        let frames = self.bench.feed(&segment.frame(Ip::v4(TCP)));
        self.listen(&frames);
        let frames = self.bench.idle_turn();
        self.listen(&frames);
    }

    /// The guest has `bytes` of the stream and offers `window` more.
    fn acknowledge(&mut self, bytes: u32, window: u16) {
        let ack = self.seen.iss + 1 + bytes;
        self.feed(&Tcp { seq: 1001, ack, window, ..Tcp::new(ACK) });
    }

    fn pass(&mut self, nanos: u64) {
        let end = self.bench.now + nanos;
        while self.bench.now < end {
            let frames = self.bench.pass(MILLI);
            self.listen(&frames);
        }
    }

    fn listen(&mut self, frames: &[Vec<u8>]) {
        for frame in frames.iter().filter(|frame| frame.len() >= 54 && frame[23] == TCP) {
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let len = (total - 20 - usize::from(frame[46] >> 4) * 4) as u32;
            if frame[47] & SYN != 0 {
                self.seen.iss = word(38);
            }
            let end = word(38).wrapping_add(len).wrapping_sub(self.seen.iss + 1);
            if len > 0 {
                self.seen.bytes = self.seen.bytes.max(end);
            }
            self.seen.reset |= frame[47] & RST != 0;
            if frame[47] & FIN != 0 {
                assert_eq!(end, self.seen.bytes, "a FIN before the end");
                self.seen.fin_at.get_or_insert(self.bench.now);
            }
        }
    }
}

#[test]
fn eof_behind_bytes_that_fill_the_window_exactly_is_told_at_once() {
    for workers in TEAMS {
        let script = Script { sends: 1000, chunk: 1000, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        assert_eq!(guest.seen.bytes, 1000);
        assert!(guest.seen.fin_at.is_some(), "{:?}", guest.seen);
    }
}

#[test]
fn eof_that_comes_when_the_window_is_closed_is_told_at_once() {
    for workers in TEAMS {
        let script = Script { sends: 1000, waits_for_end: true, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        guest.acknowledge(1000, 0);
        guest.pass(50 * MILLI);
        assert_eq!((guest.seen.bytes, guest.seen.fin_at), (1000, None));
        guest.bench.host.0.borrow_mut().end_all();
        let ended = guest.bench.now;
        guest.pass(20 * MILLI);
        assert!(guest.seen.fin_at.is_some_and(|at| at <= ended + 5 * MILLI), "{:?}", guest.seen);
    }
}

#[test]
fn eof_before_a_silly_window_is_told_at_once() {
    for workers in TEAMS {
        let script = Script { sends: 900, waits_for_end: true, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        // 100 bytes are left, less than half of the largest window: too little for data.
        assert_eq!(guest.seen.bytes, 900);
        guest.bench.host.0.borrow_mut().end_all();
        let ended = guest.bench.now;
        guest.pass(20 * MILLI);
        assert!(guest.seen.fin_at.is_some_and(|at| at <= ended + 5 * MILLI), "{:?}", guest.seen);
    }
}

#[test]
fn a_fin_that_the_guest_had_no_room_for_comes_again_when_it_has() {
    for workers in TEAMS {
        let script = Script { sends: 1000, chunk: 1000, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        // A kernel that drops what lies beyond its window says so.
        guest.acknowledge(1000, 0);
        guest.pass(50 * MILLI);
        guest.seen.fin_at = None;
        guest.acknowledge(1000, 1000);
        assert!(guest.seen.fin_at.is_some(), "{:?}", guest.seen);
    }
}

#[test]
fn bytes_that_wait_before_a_closed_window_keep_the_fin_back() {
    for workers in TEAMS {
        let script = Script { sends: 1500, chunk: 1500, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        guest.acknowledge(1000, 0);
        guest.pass(2000 * MILLI);
        assert_eq!((guest.seen.bytes, guest.seen.fin_at), (1000, None));
        guest.acknowledge(1000, 1000);
        assert_eq!(guest.seen.bytes, 1500);
        assert!(guest.seen.fin_at.is_some(), "{:?}", guest.seen);
    }
}

#[test]
fn a_reset_before_a_closed_window_is_no_end() {
    for workers in TEAMS {
        let script = Script { sends: 1000, chunk: 1000, waits_for_end: true, ..Script::default() };
        let mut guest = Guest::connected(workers, script, 1000);
        guest.pass(20 * MILLI);
        guest.acknowledge(1000, 0);
        assert_eq!((guest.seen.bytes, guest.seen.reset), (1000, false));
        guest.bench.host.0.borrow_mut().reset_all();
        guest.pass(20 * MILLI);
        guest.acknowledge(1000, 1000);
        guest.pass(20 * MILLI);
        assert_eq!((guest.seen.reset, guest.seen.fin_at), (true, None));
        assert_eq!(guest.bench.flow_count(), 0);
    }
}

#[test]
fn bytes_behind_urgent_ones_do_not_wait_for_more() {
    for workers in TEAMS {
        let script = Script { sends: 1000, chunk: 1000, waits_for_end: true, ..Script::default() };
        let mut guest =
            Guest::connected(workers, Script { urgent_at: Some(300), ..script }, 20_000);
        guest.pass(20 * MILLI);
        assert_eq!(guest.seen.bytes, 1000);
    }
}
