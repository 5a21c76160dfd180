//! Flows and counters as records, for whoever looks from outside.

use crate::base::Instant;
use crate::observe::{
    Direction, DropTable, FlowPage, FlowPath, FlowQuery, FlowRecord, FlowState, FlowTransport,
    MemoryStats, Selection, Stats, TapStats, Traffic,
};

use super::buffers::SLAB_LEN;
use super::ledger::Account;
use super::ports::{FramePort, SocketPort, StreamFacts};
use super::splice::Spliced;
use super::token::{Kind, Token};
use super::worker::Worker;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// One page of the flows that `query` asks for. Costs a look at every flow, and system calls
    /// for those on the page.
    pub fn list_flows(&mut self, now: Instant, query: &FlowQuery) -> FlowPage {
        let mut selection = Selection::new(query);
        let mut offer = |transport, guest, peer, account: &Account, token: Token| {
            if query.wants(account.id, transport, guest, peer) {
                selection.offer(account.id, token);
            }
        };
        for (token, key, flow) in self.tcp.iter() {
            offer(FlowTransport::Tcp, key.guest(), key.peer(), &flow.account, token);
        }
        for (token, key, session) in self.sessions.iter() {
            offer(FlowTransport::Udp, key.guest, key.client, &session.account, token);
        }
        for (token, _, spliced) in self.spliced.iter() {
            let Spliced { account, guest, peer, .. } = spliced;
            offer(FlowTransport::Tcp, *guest, *peer, account, token);
        }
        for (token, key, relayed) in self.relayed.iter() {
            let (guest, peer) = relayed.ends(key);
            offer(FlowTransport::Udp, guest, peer, &relayed.account, token);
        }
        for (transport, table) in
            [(FlowTransport::Udp, &self.udp), (FlowTransport::Icmp, &self.echo)]
        {
            for (token, key, flow) in table.iter() {
                let peer = flow.last_peer.unwrap_or(key.guest);
                offer(transport, key.guest, peer, &flow.account, token);
            }
        }
        selection.page(|_, token| self.record(now, token))
    }

    fn record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        match token.kind {
            Kind::Tcp => self.tcp_record(now, token),
            Kind::Session => self.session_record(now, token),
            Kind::Spliced => self.spliced_record(now, token),
            Kind::Relayed => self.relayed_record(now, token),
            _ => self.mapping_record(now, token),
        }
    }

    fn tcp_record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        let flow = self.tcp.get(token)?;
        let facts = flow.stream().map(|stream| self.io.host.stream_facts(stream));
        let StreamFacts { local, peer, rtt_us, retransmits } = facts.unwrap_or_default();
        Some(FlowRecord {
            state: flow.machine.state().into(),
            host_local: local,
            host_peer: peer,
            rtt_us,
            retransmits,
            retransmits_to_guest: Some(flow.machine.retransmits()),
            ..blank(now, FlowTransport::Tcp, flow.key.guest(), flow.key.peer(), &flow.account)
        })
    }

    fn session_record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        let (key, session) = self.sessions.get_with_key(token)?;
        let port = self.datagram_ports.get(session.port)?;
        let mut local = self.io.host.datagram_local(&port.socket);
        if let (Some(bound), Some(used)) = (&mut local, session.local) {
            bound.set_ip(used);
        }
        Some(FlowRecord {
            state: udp_state(session.replied),
            host_local: local,
            host_peer: Some(session.client),
            ..blank(now, FlowTransport::Udp, key.guest, key.client, &session.account)
        })
    }

    fn spliced_record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        let spliced = self.spliced.get(token)?;
        let guest_end = spliced.guest_end();
        let inside = self.io.host.stream_facts(spliced.stream(guest_end));
        let outside = self.io.host.stream_facts(spliced.stream(guest_end.other()));
        let peer = inside.local.unwrap_or(spliced.peer);
        Some(FlowRecord {
            path: FlowPath::Spliced,
            state: spliced.state(),
            host_local: outside.local,
            host_peer: outside.peer,
            rtt_us: outside.rtt_us,
            retransmits: outside.retransmits,
            retransmits_to_guest: inside.retransmits,
            ..blank(now, FlowTransport::Tcp, spliced.guest, peer, &spliced.account)
        })
    }

    fn relayed_record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        let (key, relayed) = self.relayed.get_with_key(token)?;
        let (guest, peer) = relayed.ends(&key);
        let far = self.io.host.datagram_local(&relayed.socket);
        let mut near = self.io.host.datagram_local(&self.datagram_ports.get(key.port)?.socket);
        if let (Some(bound), Some(used)) = (&mut near, relayed.local) {
            bound.set_ip(used);
        }
        let (host_local, host_peer, peer) = match relayed.account.direction {
            Direction::Inbound => (near, Some(key.client), far.unwrap_or(peer)),
            Direction::Outbound => (far, Some(relayed.target), near.unwrap_or(peer)),
        };
        Some(FlowRecord {
            path: FlowPath::Spliced,
            state: udp_state(relayed.replied),
            host_local,
            host_peer,
            ..blank(now, FlowTransport::Udp, guest, peer, &relayed.account)
        })
    }

    fn mapping_record(&mut self, now: Instant, token: Token) -> Option<FlowRecord> {
        let (transport, table) = match token.kind {
            Kind::Udp => (FlowTransport::Udp, &mut self.udp),
            _ => (FlowTransport::Icmp, &mut self.echo),
        };
        let (key, flow) = table.get_with_key(token)?;
        let peer = flow.last_peer.unwrap_or(key.guest);
        Some(FlowRecord {
            state: udp_state(flow.mapping.is_replied()),
            host_local: self.io.host.datagram_local(&flow.socket),
            ..blank(now, transport, key.guest, peer, &flow.account)
        })
    }

    /// All counters.
    pub fn stats(&self, now: Instant) -> Stats {
        let tcp = self.tcp.iter().map(|(.., flow)| (FlowTransport::Tcp, &flow.account));
        let udp = self.udp.iter().map(|(.., flow)| (FlowTransport::Udp, &flow.account));
        let icmp = self.echo.iter().map(|(.., flow)| (FlowTransport::Icmp, &flow.account));
        let sessions =
            self.sessions.iter().map(|(.., session)| (FlowTransport::Udp, &session.account));
        let spliced =
            self.spliced.iter().map(|(.., spliced)| (FlowTransport::Tcp, &spliced.account));
        let relayed =
            self.relayed.iter().map(|(.., relayed)| (FlowTransport::Udp, &relayed.account));
        let live = tcp.chain(udp).chain(icmp).chain(sessions).chain(spliced).chain(relayed);
        let ([tcp, udp, icmp], forwards) = self.ledger.sums(live);
        let counters = self.counters();
        let held = self.held();
        Stats {
            uptime: now.since(self.started),
            workers: usize::from(self.queue_attached),
            frames: Traffic {
                bytes_to_host: counters.bytes_from_guest,
                packets_to_host: counters.frames_from_guest,
                bytes_to_guest: counters.bytes_to_guest,
                packets_to_guest: counters.frames_to_guest,
            },
            tcp,
            udp,
            icmp,
            forwards,
            drops: DropTable::from(&counters.drops),
            tap: TapStats::default(),
            memory: MemoryStats {
                unacknowledged_bytes: (held.slabs * SLAB_LEN + held.copied_bytes) as u64,
                backlog_bytes: held.backlog_bytes as u64,
                reassembly_bytes: held.reassembly_bytes as u64,
                timers: held.timers as u64,
            },
        }
    }
}

fn udp_state(replied: bool) -> FlowState {
    if replied { FlowState::Replied } else { FlowState::Unreplied }
}

/// What all records have in common.
fn blank(
    now: Instant,
    transport: FlowTransport,
    guest: std::net::SocketAddr,
    peer: std::net::SocketAddr,
    account: &Account,
) -> FlowRecord {
    FlowRecord {
        id: account.id,
        transport,
        direction: account.direction,
        path: FlowPath::Tap,
        state: FlowState::Closed,
        guest,
        peer,
        host_local: None,
        host_peer: None,
        traffic: account.traffic,
        age: now.since(account.opened),
        idle: now.since(account.last_use),
        rtt_us: None,
        retransmits: None,
        retransmits_to_guest: None,
        forward: account.forward,
        rule: None,
    }
}
