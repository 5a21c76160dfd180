//! TCP on the walk out: segments to their flow, SYNs to new flows, the rest to a reset.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::base::{DropReason, Instant, Mac, Seq};
use crate::gate::Destination;
use crate::gate::forward::Transport;
use crate::observe::{Direction, FlowTransport};
use crate::stack::ip::Packet;
use crate::stack::tcp::Connection;
use crate::stack::wire::{Addresses, Flags, HEADROOM, Segment, TcpHeader};

use crate::stack::icmp::error::{Problem, original_tcp};
use crate::sys::datagram::{Marks, Origin};

use super::exposures::Service;
use super::ports::{FramePort, SocketPort};
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::{Directory, Member, Refusal};
use super::token::Token;
use super::worker::Worker;

const DNS_PORT: u16 = 53;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A TCP packet with a good checksum from an address that the guest may use.
    pub(super) fn on_tcp(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
        destination: Destination,
    ) -> Result<(), DropReason> {
        let (segment, header_len) = Segment::parse(packet.payload)?;
        let payload = &packet.payload[header_len..];
        let key = TcpKey::new(
            SocketAddr::new(packet.source, segment.source_port),
            SocketAddr::new(packet.target, segment.target_port),
        );
        if let Some(token) = self.tcp.find(&key) {
            let superseded =
                self.tcp.get(token).is_some_and(|flow| flow.machine.superseded_by(&segment));
            if !superseded {
                let verdict = self.with_tcp(token, |flow, io, actions| {
                    flow.on_segment(now, &segment, payload, io, actions)
                });
                self.follow_packets(token);
                return verdict.unwrap_or(Err(DropReason::NoFlow));
            }
            self.with_tcp(token, |flow, io, actions| flow.abort_silently(io, actions));
        }
        if let Some(owner) = self.elsewhere(&key) {
            return self.hand_over(owner, source_mac, packet);
        }
        let opens = segment.flags.syn && segment.ack.is_none();
        if segment.flags.rst || (segment.flags.syn && segment.flags.fin) {
            return Err(DropReason::NoFlow);
        }
        if !opens {
            self.note_other();
            self.answer_reset(source_mac, &key, &segment);
            return Err(DropReason::NoFlow);
        }
        if !self.syn_backlog.admits() {
            return self.delay_syn(now, source_mac, packet);
        }
        self.open(now, source_mac, packet, key, &segment, destination)
    }

    fn open(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
        key: TcpKey,
        syn: &Segment,
        destination: Destination,
    ) -> Result<(), DropReason> {
        self.make_room(Direction::Outbound);
        match self.claim_key(key) {
            Ok(()) => {}
            // It has just read the same SYN.
            Err(Refusal::Taken(owner)) => return self.hand_over(owner, source_mac, packet),
            Err(Refusal::Full) => {
                self.ledger.refuse(FlowTransport::Tcp);
                return Err(DropReason::FlowLimit);
            }
        }
        let token = self.tcp.next_token();
        let port = key.peer().port();
        let mut forward = None;
        let stream = match destination {
            Destination::Host(address) => {
                let target = SocketAddr::new(address, port);
                let marks = Marks { tos: packet.tos & !3, hop_limit: packet.hop_limit };
                self.io.host.connect(token, target, marks)
            }
            Destination::Dns if port == DNS_PORT => self.io.host.connect_dns(token),
            Destination::Dns => match self.secure_resolver(key.peer()) {
                Some(resolver) => self.io.host.connect(token, resolver, Marks::DEFAULT),
                None => Err(Errno::ECONNREFUSED.into()),
            },
            Destination::Gateway => {
                let service = self.exposures.find(Transport::Tcp, key.peer().ip(), port);
                forward = service.as_ref().map(|(id, _)| *id);
                match service.map(|(_, service)| service) {
                    Some(Service::Address(target)) => {
                        self.io.host.connect(token, target, Marks::DEFAULT)
                    }
                    Some(Service::Unix(path)) => self.io.host.connect_unix(token, &path),
                    None => Err(self.closed_gateway().into()),
                }
            }
            _ => Err(Errno::ECONNREFUSED.into()),
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) if lacks_resources(&error) => {
                self.release_key(&key);
                self.ledger.refuse(FlowTransport::Tcp);
                return Err(DropReason::HostResources);
            }
            Err(error) => {
                self.release_key(&key);
                self.answer_failure(source_mac, &key, syn, &error);
                return Ok(());
            }
        };
        let mut options = self.tcp_options[usize::from(key.is_ipv6())];
        if was_forwarded(packet.hop_limit) {
            options.frame_limit = options.resend_limit;
        }
        let machine = Connection::from_syn(now, syn, self.initial_sequence(now, &key), options);
        let account = self.ledger.open(now, FlowTransport::Tcp, Direction::Outbound, forward);
        let flow = TcpFlow::new(key, source_mac, machine, stream, account);
        self.tcp.insert(key, flow).map(|_| ()).ok_or(DropReason::FlowLimit)
    }

    /// Connections by the link, those of all workers together.
    pub(super) fn tcp_count(&self) -> usize {
        // The directory is empty while there is one worker.
        let all = self.team.as_ref().and_then(Member::directory).map_or(0, Directory::len);
        all.max(self.tcp.len())
    }

    /// Makes sure that a new connection of this worker, which has none between the same ends, can
    /// be entered: no other worker has one, and there are not as many as there may be of all
    /// workers together. It is entered next, or [`Worker::release_key`] called.
    pub(super) fn claim_key(&self, key: TcpKey) -> Result<(), Refusal> {
        // Not all of them may have been entered yet.
        if self.tcp.is_full() {
            return Err(Refusal::Full);
        }
        match self.team.as_ref().and_then(|team| Some((team.id, team.directory()?))) {
            Some((me, directory)) => directory.claim(key, me, self.limits.tcp_flows),
            None => Ok(()),
        }
    }

    /// A connection that was claimed is over, or has not come about.
    pub(super) fn release_key(&self, key: &TcpKey) {
        if let Some(directory) = self.team.as_ref().and_then(Member::directory) {
            directory.release(key);
        }
    }

    /// What `connect` to a closed port of the gateway fails with.
    fn closed_gateway(&self) -> Errno {
        match self.plan.habits.closed_is_unreachable {
            true => Errno::ENETUNREACH,
            false => Errno::ECONNREFUSED,
        }
    }

    /// An initial sequence number as RFC 6528 §3 has it: a keyed hash of the connection, plus a
    /// clock. The clock ticks every 64 ns, as Linux's does, so that a connection between the same
    /// two ends soon after the last one begins behind it, and an end in TIME-WAIT takes it at once.
    pub(super) fn initial_sequence(&self, now: Instant, key: &TcpKey) -> Seq {
        // Truncation is the point: sequence numbers are 32 bits.
        Seq((self.hash.hash_one(key) as u32).wrapping_add((now.as_nanos() / 64) as u32))
    }

    /// The host socket of a connecting flow failed.
    pub(super) fn on_connect_failure(&mut self, token: Token, error: &io::Error) {
        let Some(flow) = self.tcp.get(token) else { return };
        let (key, guest_mac) = (flow.key, flow.guest_mac);
        let seq = flow.machine.initial_sequence();
        let refused = error.raw_os_error() == Some(Errno::ECONNREFUSED as i32);
        // An errno is all that there is of what happened on this host. A router or firewall on the
        // way has said more, which the guest hears as it was said: a traceroute lives on it.
        let report = flow
            .stream()
            .and_then(|stream| self.io.host.connect_error(stream))
            .filter(|report| Some(report.errno) == error.raw_os_error())
            .filter(|report| matches!(report.origin, Origin::Icmp | Origin::Icmp6));
        let reset = refused && report.is_none();
        self.with_tcp(token, |flow, io, actions| flow.refuse(reset, io, actions));
        match (report, original_tcp(key.guest(), key.peer(), seq)) {
            (Some(report), Some(original)) => {
                self.answer_socket_error(guest_mac, &report, &original);
            }
            _ if reset => {}
            _ => self.answer_connect_problem(guest_mac, &key, seq, error),
        }
    }

    /// Tells the guest why its SYN led nowhere.
    fn answer_failure(&mut self, guest_mac: Mac, key: &TcpKey, syn: &Segment, error: &io::Error) {
        if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) {
            self.answer_reset(guest_mac, key, syn);
        } else {
            self.answer_connect_problem(guest_mac, key, syn.seq, error);
        }
    }

    /// The ICMP error that makes the guest's `connect` fail with the host's errno (D9). A time-out
    /// is told by silence: the guest's own SYNs have been waiting just as long.
    fn answer_connect_problem(
        &mut self,
        guest_mac: Mac,
        key: &TcpKey,
        seq: Seq,
        error: &io::Error,
    ) {
        let problem = error.raw_os_error().and_then(Problem::from_errno);
        if let (Some(problem), Some(original)) =
            (problem, original_tcp(key.guest(), key.peer(), seq))
        {
            self.answer_problem(guest_mac, problem, &original);
        }
    }

    /// The reset for a segment without a connection (RFC 9293 §3.10.7.1).
    pub(super) fn answer_reset(&mut self, guest_mac: Mac, key: &TcpKey, segment: &Segment) {
        let (seq, ack) = match segment.ack {
            Some(ack) => (ack, None),
            None => (Seq(0), Some(segment.seq + segment.sequence_len())),
        };
        let header = TcpHeader {
            seq,
            ack,
            flags: Flags { rst: true, ..Flags::default() },
            window: 0,
            mss: None,
            window_scale: None,
            sack_permitted: false,
            segment_size: u16::MAX,
            sack: [None; 3],
        };
        let addresses = Addresses {
            gateway_mac: self.io.gateway_mac,
            guest_mac,
            peer: key.peer(),
            guest: key.guest(),
        };
        let mut buffer = [0u8; HEADROOM];
        let start = header.emit(&mut buffer, 0, &addresses, self.io.checksum);
        self.io.write(&[std::io::IoSlice::new(&buffer[start..])]);
    }
}

/// Whether the guest's kernel only forwards for a namespace behind it, told by a hop limit that no
/// system begins with. A virtual link takes 64 KiB at a time: the kernel would cut what is larger
/// into single segments (`gso_features_check`), which halves the throughput.
fn was_forwarded(hop_limit: u8) -> bool {
    !matches!(hop_limit, 64 | 128 | 255)
}

/// Whether the host, not the target, is the reason: the guest may try again.
fn lacks_resources(error: &io::Error) -> bool {
    let lacking = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EAGAIN];
    error.raw_os_error().is_some_and(|code| lacking.iter().any(|&errno| errno as i32 == code))
}
