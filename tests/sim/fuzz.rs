//! Sequences of operations, not bytes: a guest that nearly speaks TCP, UDP and ICMP, a host whose
//! sockets do what they like, and a clock that jumps. Whatever happens, the engine stays within
//! its limits, and when everything is over it holds nothing.

use std::collections::BTreeMap;

use nix::errno::Errno;
use proptest::prelude::*;

use crate::bench::{Bench, most_promised, small_limits};
use crate::frames::{ACK, FIN, ICMP, Ip, PSH, RST, SYN, TCP, Tcp, UDP, icmp_frame, udp_frame};
use crate::peer::Script;

const HOUR: u64 = 3600 * 1_000_000_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Operation {
    /// A segment of one of a few connections, near what its state calls for.
    Segment {
        connection: usize,
        flags: u8,
        len: u16,
        seq_off: i32,
        ack_off: i32,
        window: u16,
        sack: Option<(i32, i32)>,
    },
    /// What an honest guest does next: completes the handshake, acknowledges everything.
    Behave {
        connection: usize,
        len: u16,
    },
    Datagram {
        port: u16,
        target: u16,
        len: u16,
    },
    Ping {
        ident: u16,
        len: u16,
    },
    /// "Fragmentation needed" about a connection.
    PathMtu {
        connection: usize,
        mtu: u16,
    },
    Fragment {
        ident: u16,
        offset: u16,
        more: bool,
        len: u16,
    },
    /// The last frame again, with one byte changed.
    Mutate {
        at: usize,
        value: u8,
    },
    Wait {
        millis: u64,
    },
    HostResets,
    HostDatagram {
        len: u16,
    },
    HostExhausted {
        on: bool,
    },
}

fn offset() -> impl Strategy<Value = i32> {
    prop_oneof![
        6 => Just(0),
        2 => -3000i32..3000,
        1 => any::<i32>(),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let flags = prop_oneof![
        4 => Just(ACK),
        2 => Just(SYN),
        2 => Just(ACK | PSH),
        2 => Just(ACK | FIN),
        1 => Just(RST),
        1 => 0u8..64,
    ];
    let len = prop_oneof![3 => Just(0u16), 3 => 0u16..100, 1 => 0u16..1460];
    let segment = (
        0usize..6,
        flags,
        len,
        offset(),
        offset(),
        prop_oneof![Just(0u16), Just(65_535), any::<u16>()],
        proptest::option::of((-100i32..20_000, -100i32..20_000)),
    )
        .prop_map(|(connection, flags, len, seq_off, ack_off, window, sack)| {
            Operation::Segment { connection, flags, len, seq_off, ack_off, window, sack }
        });
    prop_oneof![
        8 => segment,
        8 => (0usize..6, 0u16..1460).prop_map(|(connection, len)| Operation::Behave { connection, len }),
        2 => (1u16..300, 1u16..60, 0u16..1400)
            .prop_map(|(port, target, len)| Operation::Datagram { port, target, len }),
        1 => (0u16..40, 0u16..1000).prop_map(|(ident, len)| Operation::Ping { ident, len }),
        1 => (0usize..6, any::<u16>())
            .prop_map(|(connection, mtu)| Operation::PathMtu { connection, mtu }),
        1 => (0u16..3, 0u16..200, any::<bool>(), 1u16..40).prop_map(|(ident, offset, more, len)| {
            Operation::Fragment { ident, offset: offset * 8, more, len: len * 8 }
        }),
        1 => (0usize..80, any::<u8>()).prop_map(|(at, value)| Operation::Mutate { at, value }),
        4 => prop_oneof![0u64..5, 0u64..2000, 0u64..100_000]
            .prop_map(|millis| Operation::Wait { millis }),
        1 => Just(Operation::HostResets),
        1 => (0u16..3000).prop_map(|len| Operation::HostDatagram { len }),
        1 => any::<bool>().prop_map(|on| Operation::HostExhausted { on }),
    ]
}

/// What the guest knows of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    next: u32,
    /// Next byte expected from the engine; `None` before its SYN.
    expected: Option<u32>,
}

struct Guest {
    bench: Bench,
    known: BTreeMap<usize, Known>,
    last: Vec<u8>,
}

/// Servers by connection: source, echo, slow reader, refuser, one that never answers, resetter.
const SERVERS: [u16; 6] = [80, 7, 9, 81, 82, 83];

fn ports(connection: usize) -> (u16, u16) {
    (50_000 + connection as u16, SERVERS[connection])
}

impl Guest {
    fn new(vnet_header: bool) -> Guest {
        let bench = Bench::new(vnet_header, small_limits());
        {
            let mut host = bench.host.0.borrow_mut();
            host.serve(80, Script { sends: 100_000, buffer: 30_000, ..Script::default() });
            host.serve(7, Script { echo: true, buffer: 5000, ..Script::default() });
            let slow = Script { chunk: 200, pace: 500_000_000, buffer: 1000, ..Script::default() };
            host.serve(9, slow);
            let late = Some((Errno::ETIMEDOUT, false));
            let never = 127_000_000_000;
            host.serve(
                82,
                Script { connect_delay: never, connect_error: late, ..Script::default() },
            );
            host.serve(83, Script { sends: 500, resets_after: Some(700), ..Script::default() });
        }
        Guest { bench, known: BTreeMap::new(), last: vec![] }
    }

    fn feed(&mut self, frame: Vec<u8>) {
        let answers = self.bench.feed(&frame);
        self.last = frame;
        self.listen(&answers);
    }

    /// Learns sequence numbers from what the engine says.
    fn listen(&mut self, frames: &[Vec<u8>]) {
        for frame in frames.iter().filter(|frame| frame.len() >= 54 && frame[23] == TCP) {
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let port = u16::from_be_bytes([frame[36], frame[37]]);
            let connection = usize::from(port.wrapping_sub(50_000));
            let flags = frame[47];
            let header = 34 + usize::from(frame[46] >> 4) * 4;
            let len = frame.len() - header;
            let known = self.known.entry(connection).or_default();
            if flags & SYN != 0 {
                known.expected = Some(word(38).wrapping_add(1));
            } else if flags & RST == 0 && known.expected == Some(word(38)) {
                let end = word(38).wrapping_add(len as u32 + u32::from(flags & FIN));
                known.expected = Some(end);
            }
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Segment { connection, flags, len, seq_off, ack_off, window, sack } => {
                let known = *self.known.entry(connection).or_default();
                let ack = known.expected.unwrap_or(0);
                let mut options = vec![];
                if flags & SYN != 0 {
                    options.extend([2, 4, 5, 0xb4, 3, 3, 7, 4, 2]);
                } else if let Some((left, right)) = sack {
                    options.extend([1, 1, 5, 10]);
                    options.extend(ack.wrapping_add_signed(left).to_be_bytes());
                    options.extend(ack.wrapping_add_signed(right).to_be_bytes());
                }
                let segment = Tcp {
                    ports: ports(connection),
                    seq: known.next.wrapping_add_signed(seq_off),
                    ack: ack.wrapping_add_signed(ack_off),
                    flags,
                    window,
                    options,
                    payload: vec![0x42; usize::from(len)],
                };
                if seq_off == 0 {
                    let used =
                        u32::from(len) + u32::from(flags & SYN != 0) + u32::from(flags & FIN);
                    self.known.entry(connection).or_default().next = known.next.wrapping_add(used);
                }
                self.feed(segment.frame(Ip::v4(TCP)));
            }
            Operation::Behave { connection, len } => self.behave(connection, len),
            Operation::Datagram { port, target, len } => {
                self.feed(udp_frame(Ip::v4(UDP), port, target, &vec![1; usize::from(len)]));
            }
            Operation::Ping { ident, len } => {
                let body = [&ident.to_be_bytes()[..], &[0, 1], &vec![7; usize::from(len)]].concat();
                self.feed(icmp_frame(Ip::v4(ICMP), 8, 0, &body));
            }
            Operation::PathMtu { connection, mtu } => {
                let (guest_port, server_port) = ports(connection);
                let back = Ip::between(crate::frames::SERVER4, crate::world::GUEST4, TCP);
                let quoted = Tcp { ports: (server_port, guest_port), ..Tcp::new(ACK) };
                let mut body = vec![0, 0];
                body.extend(mtu.to_be_bytes());
                body.extend(back.packet(&quoted.segment(&back)));
                self.feed(icmp_frame(Ip::v4(ICMP), 3, 4, &body));
            }
            Operation::Fragment { ident, offset, more, len } => {
                let ip = Ip { ident, offset, more, ..Ip::v4(UDP) };
                self.feed(ip.frame(&vec![3; usize::from(len)]));
            }
            Operation::Mutate { at, value } => {
                let mut frame = self.last.clone();
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
                self.feed(frame);
            }
            Operation::Wait { millis } => {
                let frames = self.bench.pass(millis * 1_000_000);
                self.listen(&frames);
            }
            Operation::HostResets => self.bench.host.0.borrow_mut().reset_all(),
            Operation::HostDatagram { len } => {
                let source = "192.0.2.7:9".parse().unwrap();
                self.bench.host.0.borrow_mut().inject(source, &vec![5; usize::from(len)]);
            }
            Operation::HostExhausted { on } => {
                self.bench.host.0.borrow_mut().exhausted = on.then_some(Errno::EMFILE);
            }
        }
    }

    fn behave(&mut self, connection: usize, len: u16) {
        let known = *self.known.entry(connection).or_default();
        let Some(expected) = known.expected else {
            let segment = Tcp { ports: ports(connection), seq: known.next, ..Tcp::new(SYN) };
            self.known.entry(connection).or_default().next = known.next.wrapping_add(1);
            self.feed(segment.frame(Ip::v4(TCP)));
            let frames = self.bench.pass(1_000_000);
            return self.listen(&frames);
        };
        let segment = Tcp {
            ports: ports(connection),
            seq: known.next,
            ack: expected,
            payload: vec![0x42; usize::from(len)],
            ..Tcp::new(ACK)
        };
        self.known.entry(connection).or_default().next = known.next.wrapping_add(len.into());
        self.feed(segment.frame(Ip::v4(TCP)));
    }

    fn check_limits(&self) {
        let limits = small_limits();
        let held = self.bench.worker.held();
        let flows = limits.tcp_flows + limits.udp_flows + limits.echo_flows;
        assert!(self.bench.worker.flow_count() <= flows);
        assert!(held.slabs <= limits.slabs, "{held:?}");
        assert!(held.promised_bytes <= most_promised(&limits), "{held:?}");
        assert!(held.backlog_bytes <= held.promised_bytes, "{held:?}");
        assert!(held.reassembly_bytes <= 1 << 20, "{held:?}");
        assert!(held.timers < 10_000, "{held:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn whatever_happens_ends_with_nothing_held(
        operations in proptest::collection::vec(operation(), 1..120),
        vnet_header in any::<bool>(),
        host_resets in any::<bool>(),
    ) {
        let mut guest = Guest::new(vnet_header);
        for operation in &operations {
            guest.apply(operation);
            guest.check_limits();
        }
        guest.bench.host.0.borrow_mut().exhausted = None;
        if host_resets {
            guest.bench.host.0.borrow_mut().reset_all();
        }
        // The guest is silent from now on: retransmissions, probes and idle times run out.
        guest.bench.pass(4 * HOUR);
        let worker = &guest.bench.worker;
        let held = worker.held();
        prop_assert_eq!(worker.flow_count(), 0);
        prop_assert_eq!((held.slabs, held.promised_bytes, held.reassembly_bytes), (0, 0, 0));
        prop_assert_eq!(guest.bench.host.0.borrow().open_sockets(), 0);
    }
}
