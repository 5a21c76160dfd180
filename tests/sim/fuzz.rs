//! Sequences of operations, not bytes: a guest that nearly speaks TCP, UDP and ICMP, a host whose
//! sockets do what they like, ports that come and go with their clients, and a clock that jumps.
//! Whatever happens, the engine stays within its limits, its counters agree with each other and
//! with the link, and when everything is over it holds nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use proptest::prelude::*;
use tapway::base::Instant;
use tapway::engine::{Command, Held, Published, Withdrawal};
use tapway::gate::forward::{Exposure, ForwardId, HostService, PortRange, Transport};
use tapway::observe::{FlowQuery, Stats};

use crate::bench::{Bench, most_promised, small_limits};
use crate::crew::Team;
use crate::frames::{ACK, FIN, ICMP, Ip, RST, SERVER4, SYN, TCP, Tcp, UDP, icmp_frame, udp_frame};
use crate::operation::{
    CLIENTS, CONNECTIONS, Operation, PORTS, Port, SERVERS, ends, ip_to, operation,
};
use crate::peer::Script;
use crate::world::{GATEWAY4, GUEST4};

const HOUR: u64 = 3600 * 1_000_000_000;

/// What the guest knows of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    next: u32,
    /// Next byte expected from the engine; `None` before its SYN.
    expected: Option<u32>,
    /// The engine began, and the guest has not answered.
    unanswered: bool,
}

struct Guest {
    bench: Bench,
    known: BTreeMap<usize, Known>,
    last: Vec<u8>,
    /// What is open of [`PORTS`], by number: the forward, and the host's socket.
    open: BTreeMap<usize, (ForwardId, u64)>,
    forwards: u64,
}

impl Guest {
    fn new(vnet_header: bool, team: Team) -> Guest {
        let bench = Bench::with_team(team, vnet_header, small_limits());
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
        let (known, open) = (BTreeMap::new(), BTreeMap::new());
        Guest { bench, known, last: vec![], open, forwards: 0 }
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
            let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let peer = Ipv4Addr::from(word(26));
            let is_meant = |&connection: &usize| {
                frame[12] == 8 && ends(connection) == ((port(36), port(34)), peer)
            };
            let Some(connection) = (0..CONNECTIONS).find(is_meant) else { continue };
            let flags = frame[47];
            let header = 34 + usize::from(frame[46] >> 4) * 4;
            let len = frame.len() - header;
            let known = self.known.entry(connection).or_default();
            if flags & SYN != 0 {
                known.expected = Some(word(38).wrapping_add(1));
                known.unanswered = flags & ACK == 0;
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
                    ports: ends(connection).0,
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
                self.feed(segment.frame(ip_to(connection)));
            }
            Operation::Behave { connection, len } => self.behave(connection, len),
            Operation::Datagram { port, target, to_gateway, len } => {
                let ip = Ip::v4(UDP).to(if to_gateway { GATEWAY4 } else { SERVER4 });
                self.feed(udp_frame(ip, port, target, &vec![1; usize::from(len)]));
            }
            Operation::TogglePort { port } => self.toggle(port),
            Operation::Client { known, client } => {
                let address = match known {
                    true => format!("192.0.2.7:{}", 60_008 + client % 4),
                    false => CLIENTS[client].to_owned(),
                };
                let server = SERVERS[client];
                let mut host = self.bench.host.0.borrow_mut();
                let script = match server {
                    81 | 82 => Script { sends: 10, ..Script::default() },
                    _ => host.script(server),
                };
                for at in [0, 1] {
                    if let Some((_, listener)) = self.open.get(&at) {
                        host.client(*listener, &address, 1000 + server, script.clone());
                    }
                }
            }
            Operation::DatagramClient { port, client, len, answered } => {
                let (Port::Published(Transport::Udp, guest_port), Some((_, socket))) =
                    (PORTS[port], self.open.get(&port))
                else {
                    return;
                };
                let client: SocketAddr = CLIENTS[client.min(3)].parse().unwrap();
                let payload = vec![5; usize::from(len)];
                self.bench.host.0.borrow_mut().inject_into(*socket, client, &payload);
                let frames = self.bench.turn();
                self.listen(&frames);
                if answered {
                    let seen = match client.ip() {
                        IpAddr::V4(address) if !address.is_loopback() => address,
                        _ => GATEWAY4,
                    };
                    let ip = Ip::v4(UDP).to(seen);
                    self.feed(udp_frame(ip, guest_port, client.port(), b"answer"));
                }
            }
            Operation::Ping { ident, len } => {
                let body = [&ident.to_be_bytes()[..], &[0, 1], &vec![7; usize::from(len)]].concat();
                self.feed(icmp_frame(Ip::v4(ICMP), 8, 0, &body));
            }
            Operation::PathMtu { connection, mtu } => {
                let ((guest_port, server_port), peer) = ends(connection);
                let back = Ip::between(peer, GUEST4, TCP);
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
                    self.feed(frame);
                }
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

    fn toggle(&mut self, at: usize) {
        if let Some((forward, _)) = self.open.remove(&at) {
            let withdrawals = vec![Withdrawal { forward, guest_port: None }];
            return self.bench.ask(|reply| Command::Withdraw(withdrawals, reply));
        }
        let worker = &mut self.bench.worker;
        self.forwards += 1;
        let forward = ForwardId(self.forwards);
        let socket = match PORTS[at] {
            Port::Published(transport, guest_port) => {
                let rule = Published { forward, transport, guest_address: None, guest_port };
                match transport {
                    Transport::Tcp => {
                        let (listener, socket) = self.bench.host.listener();
                        worker.publish_stream(rule, listener).unwrap();
                        socket
                    }
                    Transport::Udp => {
                        // The control thread could not open one now.
                        if self.bench.host.0.borrow().exhausted.is_some() {
                            return;
                        }
                        let (port, socket) = self.bench.host.datagram_port();
                        worker.publish_datagrams(rule, port).unwrap();
                        socket
                    }
                }
            }
            Port::Exposed(transport, port, host_port) => {
                let ports = PortRange::single(host_port);
                let service = HostService::Ports { address: None, ports };
                let ports = PortRange::single(port);
                let exposure = Exposure { transport, ports, service };
                self.bench.command(Command::Expose(vec![(forward, exposure)]));
                0
            }
        };
        self.open.insert(at, (forward, socket));
    }

    fn behave(&mut self, connection: usize, len: u16) {
        let known = *self.known.entry(connection).or_default();
        let ports = ends(connection).0;
        let expected = known.expected.unwrap_or(0);
        if known.expected.is_none() || known.unanswered {
            let flags = if known.unanswered { SYN | ACK } else { SYN };
            let segment = Tcp { ports, seq: known.next, ack: expected, ..Tcp::new(flags) };
            let known = self.known.entry(connection).or_default();
            known.next = known.next.wrapping_add(1);
            known.unanswered = false;
            self.feed(segment.frame(ip_to(connection)));
            let frames = self.bench.pass(1_000_000);
            return self.listen(&frames);
        }
        let segment = Tcp {
            ports,
            seq: known.next,
            ack: expected,
            payload: vec![0x42; usize::from(len)],
            ..Tcp::new(ACK)
        };
        self.known.entry(connection).or_default().next = known.next.wrapping_add(len.into());
        self.feed(segment.frame(ip_to(connection)));
    }

    fn check_limits(&mut self) {
        let limits = small_limits();
        let held = self.bench.held();
        let flows = limits.tcp_flows + 2 * limits.udp_flows + limits.echo_flows;
        assert!(self.bench.flow_count() <= flows);
        // Who was alone had everything, and keeps what is in use when it has to share.
        let workers = self.bench.crew.most();
        let alone = if workers > 1 { 2 } else { 1 };
        assert!(held.slabs + held.copied_bytes / 66_000 <= alone * limits.slabs, "{held:?}");
        assert!(held.promised_bytes <= alone * most_promised(&limits, workers), "{held:?}");
        assert!(held.backlog_bytes <= held.promised_bytes, "{held:?}");
        assert!(held.reassembly_bytes <= 1 << 20, "{held:?}");
        assert!(held.timers < 10_000, "{held:?}");
        assert!(held.queued < 10_000, "{held:?}");
        self.check_counters();
    }

    /// What is counted in more than one place has to be the same.
    fn check_counters(&mut self) {
        let now = Instant::from_nanos(self.bench.now);
        let Bench { worker, crew, .. } = &mut self.bench;
        let flows = crew.flow_count(worker);
        let stats = Stats::sum(crew.workers(worker).map(|worker| worker.stats(now)).collect());
        let mut listed = worker.list_flows(now, &FlowQuery::default()).flows.len();
        for other in crew.others_mut() {
            listed += other.list_flows(now, &FlowQuery::default()).flows.len();
        }
        assert_eq!(listed, flows);
        let [tcp, udp, icmp] = [stats.tcp, stats.udp, stats.icmp];
        assert_eq!(tcp.open + udp.open + icmp.open, flows as u64);
        let forwards: Vec<ForwardId> = stats.forwards.iter().map(|forward| forward.id).collect();
        let mut open: Vec<ForwardId> = self.open.values().map(|(forward, _)| *forward).collect();
        open.sort_unstable();
        assert_eq!(forwards, open);
        let through: u64 = stats.forwards.iter().map(|forward| forward.connections).sum();
        assert!(through <= tcp.opened + udp.opened, "{stats:?}");
        let ports = self.open.keys().filter(|&&at| at > 1).count();
        let sockets = self.bench.host.0.borrow().open_sockets();
        assert!(sockets <= flows + ports, "a socket without a flow");
        self.bench.crew.check_counters(&self.bench.worker);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn whatever_happens_ends_with_nothing_held(
        operations in proptest::collection::vec(operation(), 1..120),
        vnet_header in any::<bool>(),
        workers in 1usize..4,
        seed in any::<u64>(),
        host_resets in any::<bool>(),
        withdrawn_first in any::<bool>(),
    ) {
        let team = Team { idles: 0, ..Team::random(workers, seed) };
        let mut guest = Guest::new(vnet_header, team);
        for operation in &operations {
            guest.apply(operation);
            guest.check_limits();
        }
        guest.bench.host.0.borrow_mut().exhausted = None;
        if host_resets {
            guest.bench.host.0.borrow_mut().reset_all();
        }
        let open: Vec<usize> = guest.open.keys().copied().collect();
        if withdrawn_first {
            open.iter().for_each(|&port| guest.toggle(port));
        }
        guest.bench.crew.set_unrest(false);
        // The guest is silent from now on: retransmissions, probes and idle times run out.
        guest.bench.pass(4 * HOUR);
        guest.check_counters();
        if !withdrawn_first {
            open.iter().for_each(|&port| guest.toggle(port));
        }
        let held = guest.bench.held();
        prop_assert_eq!(guest.bench.flow_count(), 0);
        prop_assert_eq!(Held { timers: 0, ..held }, Held::default());
        prop_assert_eq!(guest.bench.host.0.borrow().open_sockets(), 0);
    }
}
