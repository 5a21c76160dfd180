//! What a guest may have waiting for host sockets that take nothing: bounded in sum, and within
//! what was offered never lost.

use std::collections::BTreeMap;

use tapway::base::DropReason;

use crate::bench::{Bench, most_promised, small_limits};
use crate::crew::Team;
use crate::frames::{ACK, FIN, Ip, RST, SYN, TCP, Tcp};
use crate::peer::{FROM_GUEST, Script};
use crate::rng::pattern;

const SECOND: u64 = 1_000_000_000;

/// How many workers there are.
const TEAMS: [usize; 3] = [1, 2, 3];

/// What the engine last said of one connection of the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Of ours: the next number that is expected.
    ack: u32,
    window: u16,
    /// Of theirs: the end of what was sent to us.
    sent: u32,
    /// Frames with payload.
    carried: u32,
}

/// A guest that sends what it likes.
struct Guest {
    bench: Bench,
    told: BTreeMap<u16, Told>,
}

/// The number of the guest's first byte, on every connection.
const FIRST: u32 = 1001;

impl Guest {
    /// Before a server that reads nothing for a minute; on teams of so many workers.
    fn before_a_stalled_server(workers: usize) -> Guest {
        let bench = Bench::with_team(Team::fixed(workers), false, small_limits());
        let stalled = Script {
            reads_from: 60 * SECOND,
            buffer: 100,
            connect_delay: 0,
            waits_for_end: true,
            ..Script::default()
        };
        bench.host.0.borrow_mut().serve(80, stalled);
        Guest { bench, told: BTreeMap::new() }
    }

    fn listen(&mut self, frames: &[Vec<u8>]) {
        for frame in frames.iter().filter(|frame| frame.len() >= 54 && frame[23] == TCP) {
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let half = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
            let told = self.told.entry(half(36)).or_default();
            if frame[47] & ACK != 0 {
                (told.ack, told.window) = (word(42), half(48));
            }
            let len = usize::from(half(16)) - 20 - usize::from(frame[46] >> 4) * 4;
            let end = word(38) + len as u32 + u32::from(frame[47] & (SYN | FIN) != 0);
            told.sent = told.sent.max(end);
            told.carried += u32::from(len > 0);
        }
        let limits = small_limits();
        let held = self.bench.held();
        assert!(held.promised_bytes <= most_promised(&limits, self.bench.crew.most()), "{held:?}");
        assert!(held.backlog_bytes <= held.promised_bytes, "{held:?}");
    }

    fn feed(&mut self, segment: &Tcp) {
        let mut frames = self.bench.feed(&segment.frame(Ip::v4(TCP)));
        frames.extend(self.bench.idle_turn());
        self.listen(&frames);
    }

    fn pass(&mut self, nanos: u64) {
        let mut frames = self.bench.pass(nanos);
        frames.extend(self.bench.idle_turn());
        self.listen(&frames);
    }

    fn told(&self, port: u16) -> Told {
        self.told[&port]
    }

    /// The segment that comes next, without payload.
    fn next(&self, port: u16, flags: u8) -> Tcp {
        let told = self.told(port);
        Tcp { ports: (port, 80), seq: told.ack, ack: told.sent, ..Tcp::new(flags) }
    }

    fn open(&mut self, port: u16) {
        self.feed(&Tcp { ports: (port, 80), ..Tcp::new(SYN) });
        let segment = self.next(port, ACK);
        self.feed(&segment);
    }

    /// A segment of the stream at `offset`, whatever the window says.
    fn send(&mut self, port: u16, offset: u32, len: u32) {
        let payload = (offset..offset + len).map(|at| pattern(FROM_GUEST, at.into())).collect();
        let seq = FIRST + offset;
        let segment = Tcp { seq, payload, ..self.next(port, ACK) };
        self.feed(&segment);
    }

    /// Sends on every connection as much as `window` says, round by round, until none is open.
    fn fill(&mut self, window: impl Fn(Told) -> u32) {
        for _ in 0..20 {
            for port in self.told.keys().copied().collect::<Vec<_>>() {
                let told = self.told(port);
                let (start, mut left) = (told.ack - FIRST, window(told));
                while left > 0 {
                    let len = left.min(1400);
                    self.send(port, start + window(told) - left, len);
                    left -= len;
                }
            }
        }
    }

    /// The host reads again: all that was acknowledged arrives, and as it was sent.
    fn check_arrival(&mut self) {
        let acknowledged: u64 = self.told.values().map(|t| u64::from(t.ack - FIRST)).sum();
        self.pass(100 * SECOND);
        let seen = self.bench.host.0.borrow().seen(80);
        assert!(seen.iter().all(|seen| seen.wrong_at.is_none()), "{seen:?}");
        assert_eq!(seen.iter().map(|seen| seen.received).sum::<u64>(), acknowledged);
        assert_eq!(self.bench.held().backlog_bytes, 0);
    }
}

#[test]
fn the_sum_of_all_windows_is_bounded_and_what_they_offered_is_taken() {
    for workers in TEAMS {
        let mut guest = Guest::before_a_stalled_server(workers);
        for port in 1000..1300 {
            guest.open(port);
            let told = guest.told(port);
            assert!(told.window >= 536, "a window of {} for {port}", told.window);
        }
        let offered: u32 = guest.told.values().map(|told| u32::from(told.window)).sum();
        let promised = guest.bench.held().promised_bytes;
        assert_eq!(promised, offered as usize);
        // Each connection fills its window; none is cut.
        let edges: Vec<u32> =
            guest.told.values().map(|told| told.ack + u32::from(told.window)).collect();
        guest.fill(|told| told.window.into());
        for (told, edge) in guest.told.values().zip(edges) {
            assert!(told.ack >= edge && told.window == 0, "{told:?} had {edge}");
        }
        assert_eq!(guest.bench.drops(), []);
        guest.check_arrival();
    }
}

#[test]
fn a_guest_that_ignores_closed_windows_is_cut_off() {
    for workers in TEAMS {
        let mut guest = Guest::before_a_stalled_server(workers);
        for port in 1000..1100 {
            guest.open(port);
        }
        guest.fill(|_| 3000);
        assert!(guest.bench.dropped(DropReason::UnacceptableSegment) > 1000);
        guest.check_arrival();
    }
}

#[test]
fn acknowledgments_fin_and_reset_count_though_memory_is_used_up() {
    for workers in TEAMS {
        let mut guest = Guest::before_a_stalled_server(workers);
        for port in 1000..1100 {
            guest.open(port);
        }
        guest.fill(|told| told.window.into());
        // The peers send something only now.
        guest.bench.host.0.borrow_mut().send_more(90);
        guest.pass(SECOND / 10);
        let carrying: Vec<u16> =
            guest.told.iter().filter(|(_, told)| told.carried > 0).map(|(&port, _)| port).collect();
        let [one, other, ..] = carrying[..] else { panic!("nothing was sent") };
        let before = [guest.told(one).carried, guest.told(other).carried];
        // This is beyond the window, and yet its acknowledgment counts.
        guest.send(one, guest.told(one).ack - FIRST, 500);
        guest.pass(SECOND);
        assert_eq!(guest.told(one).carried, before[0]);
        assert!(guest.told(other).carried > before[1]);

        let before = guest.bench.flow_count();
        let reset = guest.next(1000, RST | ACK);
        guest.feed(&reset);
        assert_eq!(guest.bench.flow_count(), before - 1);
        let fin = guest.next(1001, FIN | ACK);
        guest.feed(&fin);
        assert_eq!(guest.told(1001).ack, fin.seq + 1);
        guest.pass(100 * SECOND);
        let seen = guest.bench.host.0.borrow().seen(80);
        assert!(seen.iter().all(|seen| seen.wrong_at.is_none()), "{seen:?}");
        let received: Vec<u64> = seen.iter().map(|seen| seen.received).collect();
        assert!(received.contains(&u64::from(fin.seq - FIRST)), "{received:?}");
    }
}

#[test]
fn a_window_opens_again_when_the_host_has_taken_what_others_sent() {
    for workers in TEAMS {
        let mut guest = Guest::before_a_stalled_server(workers);
        for port in 1000..1100 {
            guest.open(port);
        }
        guest.fill(|told| told.window.into());
        guest.pass(100 * SECOND);
        for (port, told) in &guest.told {
            assert!(told.window >= 268, "{port}: {told:?}");
        }
        // Without the others it opens, by use, as far as ever.
        for port in 1001..1100 {
            let reset = guest.next(port, RST | ACK);
            guest.feed(&reset);
        }
        for _ in 0..40 {
            let told = guest.told(1000);
            guest.send(1000, told.ack - FIRST, u32::from(told.window).min(1400));
            guest.pass(SECOND);
        }
        assert!(guest.told(1000).window > 8192, "{:?}", guest.told(1000));
    }
}

#[test]
fn what_arrives_beyond_gaps_is_held_inside_the_promise_and_given_back() {
    for workers in TEAMS {
        let mut guest = Guest::before_a_stalled_server(workers);
        for port in 1000..1100 {
            guest.open(port);
        }
        // The second half of each window first, and far more than the window.
        for port in 1000..1100 {
            let window = u32::from(guest.told(port).window);
            guest.send(port, window / 2, 1400.min(window - window / 2));
            guest.send(port, 30_000, 1400);
        }
        assert_eq!(guest.bench.held().backlog_bytes, 0);
        guest.fill(|told| told.window.into());
        guest.check_arrival();
    }
}

#[test]
fn a_lost_frame_is_told_by_each_that_follows_in_its_batch_and_repaired_by_one() {
    let mut guest = Guest::before_a_stalled_server(1);
    guest.open(1000);
    let payload = |offset: u32| (offset..offset + 1000).map(|at| pattern(FROM_GUEST, at.into()));
    let segment = |guest: &Guest, offset: u32| {
        let payload = payload(offset).collect();
        Tcp { seq: FIRST + offset, payload, ..guest.next(1000, ACK) }.frame(Ip::v4(TCP))
    };
    // The first of five is lost; the others come in one batch.
    for offset in [1000, 2000, 3000, 4000] {
        let frame = segment(&guest, offset);
        guest.bench.tap.0.borrow_mut().inbound.push_back(frame);
    }
    let answers = guest.bench.turn();
    guest.listen(&answers);
    // RFC 5681 §3.2: three duplicates make a sender repeat what is missing.
    assert_eq!((answers.len(), guest.told(1000).ack), (4, FIRST));
    guest.send(1000, 0, 1000);
    assert_eq!(guest.told(1000).ack, FIRST + 5000);
    guest.check_arrival();
}
