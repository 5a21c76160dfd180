//! A worker: one thread, one TAP queue, one epoll instance, and the flows that it owns (D5).
//!
//! ```text
//!   wait ─▶ turn(now): events ─▶ frames from the guest ─▶ SYNs that waited
//!                      ─▶ flows with more to read ─▶ acknowledgments of the batch ─▶ timers ─▶ wait
//! ```
//! One clock reading per turn. Every list is worked off in bounded batches, so that neither a
//! busy guest nor a busy host starves the other. Nothing here is shared or locked; how workers work
//! together is in [`team`](super::team).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::Instant;
use crate::gate::{AddressPlan, PublishPath};
use crate::observe::{Direction, FlowTransport};
use crate::stack::ip::reassembly::Reassembly;
use crate::stack::services::Services;
use crate::stack::tcp::{Action, Options as TcpOptions};
use crate::stack::wire::{Checksum, HEADROOM, MAX_PAYLOAD};

use crate::sys::datagram::Batch;

use super::buffers::{BURST_LEN, Pool};
use super::datagram_flow::{DatagramFlow, MappingKey};
use super::exposures::Exposures;
use super::flow_table::FlowTable;
use super::io::{Counters, Io, Limits};
use super::ledger::Ledger;
use super::outbox::Outbox;
use super::ports::{Event, FramePort, Readiness, SocketPort};
use super::published::{DatagramPort, Listener, Session, SessionKey};
use super::reading::Reading;
use super::room::{self, Resting};
use super::splice::{End, Pipes, RelayKey, Relayed, Spliced};
use super::syn_backlog::SynBacklog;
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::porter::Load;
use super::team::quota::Quota;
use super::team::{Directory, Member};
use super::token::{Kind, Token};
use super::trail::Trail;
use super::walk_dns::PendingQueries;
use super::walk_short::{MAX_REACHING, Reaching, Trust};
use super::walk_team::Order;
use super::wheel::Wheel;

/// Datagrams received with one system call: what fits one frame to the guest. Their slots are 4 MB,
/// of which those pages are held that the last two seconds needed.
const DATAGRAM_BATCH: usize = 64;

/// The window of a new connection: all that a SYN-ACK can say. It grows as the guest uses it.
const FIRST_WINDOW: u32 = 65_535;

/// The longest that an acknowledgment waits for data to carry it while the worker is busy. Well below
/// what guests take for a loss (Linux: 200 ms at least).
const ACK_DELAY: Duration = Duration::from_millis(1);

/// Host sockets of published ports, of a transport: every port at two addresses.
const MAX_PUBLISHED: usize = 2 * 65_536;

/// What a worker needs to know of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who is who on the guest link.
    pub plan: AddressPlan,
    /// Frames carry a virtio-net header, so sums and segmentation are left to the kernel.
    pub vnet_header: bool,
    /// The guest's kernel cuts UDP packets that several datagrams were joined to; only with a
    /// virtio-net header.
    pub uso: bool,
    /// The guest's kernel takes TCP packets beyond 64 KiB; only with a virtio-net header.
    pub big_packets: bool,
    /// Which way clients of published TCP ports take.
    pub publish_path: PublishPath,
    /// Bounds on what the guest can make us hold.
    pub limits: Limits,
    /// Randomness for sequence numbers and hash keys.
    pub seed: u64,
}

/// What a worker holds for its guest beside the flows themselves; all of it is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Slabs of 64 KiB in retransmission queues.
    pub slabs: usize,
    /// Bytes in retransmission queues beside these.
    pub copied_bytes: usize,
    /// Bytes from the guest that wait for host sockets.
    pub backlog_bytes: usize,
    /// These, and the windows that connections were offered.
    pub promised_bytes: usize,
    /// Bytes of incomplete packets, bookkeeping included.
    pub reassembly_bytes: usize,
    /// Entries in the timer wheel, those that nobody waits for any more included.
    pub timers: usize,
    /// Entries of the lists of flows whose turn is still to come, or that remember connections that
    /// are over; flows that are gone meanwhile included.
    pub queued: usize,
    /// Bytes of SYNs whose turn is still to come, bookkeeping included.
    pub syn_bytes: usize,
    /// Bytes of packets that other workers have handed over, bookkeeping included.
    pub mail_bytes: usize,
    /// TCP flows of all workers in the directory that these share; none while one worker has all.
    pub listed: usize,
}

/// The worker. Generic over its two edges, so that the simulator drives the very same code.
pub struct Worker<F: FramePort, S: SocketPort> {
    pub(super) io: Io<F, S>,
    pub(super) plan: AddressPlan,
    pub(super) vnet_header: bool,
    pub(super) uso: bool,
    pub(super) tcp_options: [TcpOptions; 2],
    pub(super) services: Services,
    pub(super) tcp: FlowTable<TcpKey, TcpFlow<S>>,
    /// How many of these, and of the other workers', began outside.
    pub(super) inbound_tcp: Quota,
    pub(super) resting: Resting,
    pub(super) syn_backlog: SynBacklog,
    pub(super) reassembly: Reassembly,
    pub(super) dns_queries: PendingQueries,
    /// The host's resolvers, if their encrypted service is there for the guest.
    pub(super) resolvers: Vec<IpAddr>,
    pub(super) udp: FlowTable<MappingKey, DatagramFlow<S>>,
    pub(super) echo: FlowTable<MappingKey, DatagramFlow<S>>,
    /// Keyed by the order in which they were published, as are `datagram_ports`.
    pub(super) listeners: FlowTable<u64, Listener<S>>,
    pub(super) datagram_ports: FlowTable<u64, DatagramPort<S>>,
    pub(super) sockets_published: u64,
    pub(super) sessions: FlowTable<SessionKey, Session>,
    /// Keyed by their number.
    pub(super) spliced: FlowTable<u64, Spliced<S>>,
    /// How many of these, and of the other workers', began outside.
    pub(super) inbound_spliced: Quota,
    /// Clients whose way is not known yet, by both ends as the guest sees them.
    pub(super) reaching: FlowTable<TcpKey, Reaching<S>>,
    pub(super) publish_path: PublishPath,
    pub(super) short_way: Trust,
    /// Who went the short way lately, from this worker or another.
    pub(super) trail: Trail,
    pub(super) relayed: FlowTable<RelayKey, Relayed<S>>,
    pub(super) exposures: Exposures,
    pub(super) ledger: Ledger,
    pub(super) started: Instant,
    /// Shared by the sockets of all mappings.
    pub(super) batch: Batch,
    pub(super) outbox: Outbox,
    pub(super) fragment_ident: u32,
    pub(super) wheel: Wheel<Token>,
    pub(super) hash: ahash::RandomState,
    pub(super) ack_list: Vec<Token>,
    /// Since when something has been on that list.
    pub(super) acks_since: Option<Instant>,
    /// Sockets of clients and datagrams that have more, and TCP flows that have: these need slabs,
    /// the others go on without.
    pub(super) run_list: VecDeque<Token>,
    pub(super) read_list: VecDeque<Token>,
    /// Reused between calls; empty between calls.
    pub(super) actions: Vec<Action>,
    pub(super) answers: Vec<Vec<u8>>,
    pub(super) reading: Reading,
    /// Flows with payloads among the frames at hand.
    pub(super) send_list: Vec<Token>,
    pub(super) due: Vec<Token>,
    tap_ready: bool,
    /// The batch may hold memory.
    pub(super) batch_used: bool,
    pub(super) trim_at: Option<Instant>,
    pub(super) housekeeping_entry: Option<Instant>,
    /// The other workers, if there may be some.
    pub(super) team: Option<Member<S>>,
    /// What the loop around has to do for the team.
    pub(super) orders: VecDeque<Order>,
    /// What this worker, as a porter, has of another's flow.
    pub(super) load: Option<Load<S>>,
    /// Limits of a worker without others.
    pub(super) limits: Limits,
    /// Frames may come by the queue.
    pub(super) queue_attached: bool,
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A worker without flows.
    pub fn new(now: Instant, frames: F, host: S, options: Options) -> Worker<F, S> {
        let Options { plan, vnet_header, uso, big_packets, publish_path, limits, seed } = options;
        let tcp_options = [20, 40].map(|ip_header| {
            // An MTU is at least 68 (RFC 791).
            let mss = plan.mtu.saturating_sub(ip_header + 20).max(48);
            TcpOptions {
                mss,
                receive_limit: limits.receive_window,
                first_window: FIRST_WINDOW,
                in_flight_limit: limits.in_flight,
                frame_limit: if vnet_header && big_packets {
                    BURST_LEN as u32
                } else {
                    MAX_PAYLOAD as u32
                },
                resend_limit: MAX_PAYLOAD as u32,
                // A second is ten thousand round trips on this link.
                time_wait: Duration::from_secs(1),
            }
        });
        let mut worker = Worker {
            io: Io {
                frames,
                host,
                pool: Pool::new(limits.slabs),
                pipes: Pipes::default(),
                limits,
                counters: Counters::default(),
                backlog_bytes: 0,
                promised: 0,
                checksum: if vnet_header { Checksum::Partial } else { Checksum::Full },
                gateway_mac: plan.gateway_mac,
                passed_on: 0,
                errands: Vec::new(),
                spare_frames: Vec::new(),
                frames_at_hand: None,
            },
            vnet_header,
            uso: uso && vnet_header,
            tcp_options,
            services: Services::new(plan.clone(), now),
            tcp: FlowTable::new(Kind::Tcp, limits.tcp_flows),
            inbound_tcp: Quota::default(),
            resting: Resting::default(),
            syn_backlog: SynBacklog::default(),
            udp: FlowTable::new(Kind::Udp, limits.udp_flows),
            echo: FlowTable::new(Kind::Echo, limits.echo_flows),
            listeners: FlowTable::new(Kind::Listener, MAX_PUBLISHED),
            datagram_ports: FlowTable::new(Kind::DatagramPort, MAX_PUBLISHED),
            sockets_published: 0,
            sessions: FlowTable::new(Kind::Session, limits.udp_flows),
            spliced: FlowTable::new(Kind::Spliced, limits.tcp_flows),
            inbound_spliced: Quota::default(),
            reaching: FlowTable::new(Kind::Reaching, MAX_REACHING),
            publish_path,
            short_way: Trust::default(),
            trail: Trail::default(),
            relayed: FlowTable::new(Kind::Relayed, limits.relayed),
            exposures: Exposures::default(),
            ledger: Ledger::default(),
            started: now,
            batch: Batch::new(DATAGRAM_BATCH, HEADROOM),
            outbox: Outbox::default(),
            fragment_ident: seed as u32,
            reassembly: Reassembly::new(),
            dns_queries: PendingQueries::default(),
            resolvers: Vec::new(),
            wheel: Wheel::new(now),
            hash: ahash::RandomState::with_seed(seed as usize),
            ack_list: Vec::new(),
            acks_since: None,
            run_list: VecDeque::new(),
            read_list: VecDeque::new(),
            actions: Vec::new(),
            answers: Vec::new(),
            reading: Reading::default(),
            send_list: Vec::new(),
            due: Vec::new(),
            tap_ready: false,
            batch_used: false,
            trim_at: None,
            housekeeping_entry: None,
            team: None,
            orders: VecDeque::new(),
            load: None,
            limits,
            queue_attached: true,
            plan,
        };
        worker.schedule_housekeeping();
        worker
    }

    /// Counters so far.
    pub fn counters(&self) -> &Counters {
        &self.io.counters
    }

    /// The host edge.
    pub fn host_mut(&mut self) -> &mut S {
        &mut self.io.host
    }

    /// The guest edge.
    pub fn frames_mut(&mut self) -> &mut F {
        &mut self.io.frames
    }

    /// How many flows are open.
    pub fn flow_count(&self) -> usize {
        let by_the_link = self.tcp.len() + self.udp.len() + self.echo.len() + self.sessions.len();
        by_the_link + self.spliced.len() + self.relayed.len() + self.reaching.len()
    }

    /// What is held beside the flows themselves.
    pub fn held(&self) -> Held {
        Held {
            slabs: self.io.pool.in_use(),
            copied_bytes: self.io.pool.copied(),
            backlog_bytes: self.io.backlog_bytes,
            promised_bytes: self.io.promised,
            reassembly_bytes: self.reassembly.bytes(),
            timers: self.wheel.len(),
            queued: self.run_list.len() + self.read_list.len() + self.resting.len(),
            syn_bytes: self.syn_backlog.bytes(),
            mail_bytes: self.team.as_ref().map_or(0, Member::waiting),
            listed: self.team.as_ref().and_then(Member::directory).map_or(0, Directory::len),
        }
    }

    /// Whether some TCP connection's guest may have more to send, or sent what is not passed on yet.
    pub fn guest_unfinished(&self) -> bool {
        self.tcp.iter().any(|(_, _, flow)| flow.machine.guest_unfinished())
            || self.spliced.iter().any(|(_, _, spliced)| spliced.guest_unfinished())
    }

    /// Bytes from the guest that wait for host sockets.
    pub fn backlog(&self) -> usize {
        self.io.backlog_bytes
    }

    /// How long [`SocketPort::wait`] may sleep; `None` is for ever.
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        let can_read = !self.read_list.is_empty() && !self.io.pool.is_exhausted();
        let can_run = (can_read || !self.run_list.is_empty()) && !self.io.frames.is_congested();
        if can_run || !self.syn_backlog.is_empty() || self.io.frames.has_frame() {
            return Some(Duration::ZERO);
        }
        let next = [self.wheel.next(), self.trim_at].into_iter().flatten().min()?;
        Some(next.since(now))
    }

    /// Waits for events of the host edge, for at most `timeout`.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> std::io::Result<()> {
        self.io.host.wait(timeout, events)
    }

    /// One turn: everything that `events` and `now` ask for. `Err` if the guest link is gone,
    /// `UnexpectedEof` if the guest has closed it.
    pub fn turn(&mut self, now: Instant, events: &[Event]) -> std::io::Result<()> {
        self.syn_backlog.begin_turn();
        for event in events {
            if !matches!(event.token.kind, Kind::Tap | Kind::Tcp | Kind::Mail) {
                self.note_other();
            }
            match event.token.kind {
                Kind::Tap => {
                    self.tap_ready = true;
                    self.io.frames.on_readiness();
                }
                Kind::Tcp => self.on_tcp_readiness(now, event.token, event.readiness),
                Kind::Udp | Kind::Echo => {
                    self.on_datagram_readiness(now, event.token, event.readiness);
                }
                Kind::Listener => self.accept(now, event.token),
                Kind::DatagramPort => {
                    self.on_port_readiness(now, event.token, event.readiness);
                }
                Kind::Load => self.on_load_readiness(event.token),
                Kind::Mail => {
                    if let Some(team) = &self.team {
                        team.inbox.bell.silence();
                    }
                    self.read_mail(now);
                }
                Kind::Spliced => self.on_spliced(now, event.token, End::Client, event.readiness),
                Kind::SplicedTarget => {
                    self.on_spliced(now, event.token, End::Target, event.readiness);
                }
                Kind::Relayed => self.on_relayed(now, event.token),
                Kind::Reaching => self.on_reached(now, event.token, event.readiness),
                Kind::Commands | Kind::Housekeeping | Kind::Session | Kind::Team => {}
            }
        }
        if self.tap_ready || self.io.frames.has_frame() {
            self.tap_ready = false;
            self.read_frames(now)?;
        }
        self.open_waiting(now);
        self.run_flows(now);
        // A worker that never has to wait would keep them for ever.
        let late = self.acks_since.is_some_and(|since| now.since(since) >= ACK_DELAY);
        self.flush_acknowledgments(late);
        self.run_timers(now);
        if !self.ack_list.is_empty() && self.acks_since.is_none() {
            self.acks_since = Some(now);
        }
        if !self.io.errands.is_empty() {
            self.send_errands(None);
        }
        self.trim(now);
        Ok(())
    }

    fn on_tcp_readiness(&mut self, now: Instant, token: Token, readiness: Readiness) {
        let failure = self.with_tcp(token, |flow, io, actions| {
            flow.on_readiness(now, readiness, io, actions).err()
        });
        if let Some(Some(failure)) = failure {
            self.on_connect_failure(token, &failure.0);
        }
    }

    fn run_flows(&mut self, now: Instant) {
        if self.io.frames.is_congested() {
            return;
        }
        for _ in 0..self.run_list.len() {
            let Some(token) = self.run_list.pop_front() else { break };
            self.note_other();
            match token.kind {
                Kind::Listener => {
                    if let Some(listener) = self.listeners.get_mut(token) {
                        listener.on_run_list = false;
                        self.accept(now, token);
                    }
                }
                Kind::DatagramPort => {
                    if let Some(port) = self.datagram_ports.get_mut(token) {
                        port.on_run_list = false;
                        self.receive_from_clients(now, token, true);
                    }
                }
                Kind::Spliced => self.run_spliced(now, token),
                Kind::Relayed => {
                    if let Some(relayed) = self.relayed.get_mut(token) {
                        relayed.on_run_list = false;
                        self.on_relayed(now, token);
                    }
                }
                _ => {
                    let table =
                        if token.kind == Kind::Udp { &mut self.udp } else { &mut self.echo };
                    if let Some(flow) = table.get_mut(token) {
                        flow.on_run_list = false;
                        self.receive(now, token, true);
                    }
                }
            }
        }
        for _ in 0..self.read_list.len() {
            if self.io.pool.is_exhausted() || self.io.frames.is_congested() {
                return;
            }
            let Some(token) = self.read_list.pop_front() else { return };
            self.with_tcp(token, |flow, io, actions| {
                flow.on_read_list = false;
                flow.read(now, io, actions);
            });
        }
    }

    /// Sends the acknowledgments that nothing else will carry: to be called before a wait.
    pub fn before_wait(&mut self) {
        self.flush_acknowledgments(true);
    }

    /// Sends acknowledgments that are owed, either all or those that cannot wait for data.
    pub(super) fn flush_acknowledgments(&mut self, all: bool) {
        let mut list = std::mem::take(&mut self.ack_list);
        list.retain(|&token| {
            let waits = self.tcp.get_mut(token).is_some_and(|flow| {
                flow.on_ack_list = flow.machine.ack_owed() && !flow.machine.ack_pressing() && !all;
                flow.on_ack_list
            });
            if !waits {
                self.with_tcp(token, |flow, io, actions| flow.flush(io, actions));
            }
            waits
        });
        self.ack_list.append(&mut list);
        if self.ack_list.is_empty() {
            self.acks_since = None;
        }
    }

    /// Sends the frames that a service put into `answers`.
    pub(super) fn send_answers(&mut self) {
        for frame in std::mem::take(&mut self.answers) {
            self.io.write_plain(&frame);
        }
    }

    /// Removes a flow; its host socket, if there still is one, is closed.
    pub(super) fn end_tcp(&mut self, token: Token) {
        if let Some((_, flow)) = self.tcp.remove(token) {
            self.resting.tidy(&flow, &self.tcp);
            self.forget_tcp(flow);
        }
    }

    /// A flow is over that is in no table any more.
    pub(super) fn forget_tcp(&mut self, flow: TcpFlow<S>) {
        if flow.account.direction == Direction::Inbound {
            self.inbound_tcp.give_back();
        }
        self.release_key(&flow.key);
        self.ledger.close(FlowTransport::Tcp, &flow.account, flow.answered);
        flow.release(&mut self.io);
    }

    /// Tells the team of a piece of work that is for no TCP flow of this worker.
    pub(super) fn note_other(&mut self) {
        if let Some(team) = &mut self.team {
            team.meter.note_other();
        }
    }

    /// Lets `act` work on a flow, then sees to what the flow needs next: its acknowledgment at the
    /// end of the batch, another read, its timer, or its end. `None` if there is no such flow.
    pub(super) fn with_tcp<R>(
        &mut self,
        token: Token,
        act: impl FnOnce(&mut TcpFlow<S>, &mut Io<F, S>, &mut Vec<Action>) -> R,
    ) -> Option<R> {
        let flow = self.tcp.get_mut(token)?;
        if let Some(team) = &mut self.team {
            team.meter.note(token);
        }
        flow.machine.set_receive_limit(self.io.receive_limit());
        let result = act(flow, &mut self.io, &mut self.actions);
        flow.settle(&mut self.io);
        if flow.machine.is_closed() {
            self.end_tcp(token);
            return Some(result);
        }
        if !flow.on_rest_list && room::rests(flow) {
            flow.on_rest_list = true;
            self.resting.add(flow.account.direction, token);
        }
        if flow.machine.ack_owed() && !flow.on_ack_list {
            flow.on_ack_list = true;
            self.ack_list.push(token);
        }
        if flow.has_gathered() && !flow.on_send_list {
            flow.on_send_list = true;
            self.send_list.push(token);
        }
        if flow.wants_read() && !flow.on_read_list {
            flow.on_read_list = true;
            self.read_list.push_back(token);
        }
        if let Some(deadline) = flow.machine.next_deadline()
            && flow.wheel_entry.is_none_or(|entry| deadline < entry)
        {
            flow.wheel_entry = Some(deadline);
            self.wheel.insert(deadline, token);
        }
        Some(result)
    }
}
