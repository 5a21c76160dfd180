//! The walk in: clients of published stream sockets become connections to the guest.
//!
//! ```text
//!   listener ready ─▶ accept ─▶ gate::inbound (who is seen as whom) ─▶ flow table ─▶ SYN to guest
//! ```
//! Some clients go another way ([`super::walk_splice`], [`super::walk_short`]).
//! The host's kernel has completed the client's handshake by then. If the guest refuses, or does
//! not answer, the client's connection is reset.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;

use crate::base::{DropReason, Instant, Mac};
use crate::gate::forward::{Exposure, ForwardId, Transport};
use crate::observe::{Direction, FlowTransport};
use crate::stack::tcp::Connection;

use super::ports::{Accepted, FramePort, SocketPort};
use super::published::{DatagramPort, Led, LedId, Listener, Published, Rule, Withdrawal};
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::mail::Mail;
use super::token::Token;
use super::worker::Worker;

/// Clients accepted from one socket before others get their turn.
const ACCEPT_BATCH: usize = 32;

/// Clients accepted from a socket before it is closed: as many as its queue holds
/// ([`crate::setup::listen`]).
const LAST_BATCH: usize = 4096;

/// When to accept again after that failed, mostly for lack of descriptors. Clients wait in the
/// socket's queue.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Ports that are tried for a client whose own is taken by another flow.
pub(super) const PORT_ATTEMPTS: u32 = 16;

/// What is known of the queue of a listening socket.
enum Queue {
    /// Nobody waits.
    Empty,
    /// Some wait who cannot be accepted now.
    Stuck,
    /// Others may wait.
    Unknown,
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Accepts clients of a listening stream socket from now on.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`; `StorageFull` at the limit of sockets.
    pub fn publish_stream(&mut self, rule: Published, socket: S::Listener) -> io::Result<()> {
        self.listen(rule.into(), socket)
    }

    /// Accepts clients of a stream socket that listens at the guest's loopback from now on.
    ///
    /// # Errors
    /// As [`Worker::publish_stream`].
    pub fn lead_stream(&mut self, rule: Led, socket: S::Listener) -> io::Result<()> {
        self.listen(rule.into(), socket)
    }

    fn listen(&mut self, rule: Rule, socket: S::Listener) -> io::Result<()> {
        let token = self.listeners.next_token();
        self.io.host.watch_listener(token, &socket)?;
        self.sockets_published += 1;
        let listener = Listener { rule, socket, retry_at: None, on_run_list: false };
        if self.listeners.insert(self.sockets_published, listener).is_none() {
            return Err(ErrorKind::StorageFull.into());
        }
        rule.forward().into_iter().for_each(|forward| self.add_forward(forward));
        Ok(())
    }

    /// Takes datagrams of clients from now on. The socket tells the addresses that clients use
    /// ([`crate::sys::datagram::DatagramOptions::tell_local`]).
    ///
    /// # Errors
    /// As [`Worker::publish_stream`].
    pub fn publish_datagrams(&mut self, rule: Published, socket: S::Datagram) -> io::Result<()> {
        self.take_datagrams(rule.into(), socket)
    }

    /// Takes datagrams of a socket of the guest's loopback from now on.
    ///
    /// # Errors
    /// As [`Worker::publish_stream`].
    pub fn lead_datagrams(&mut self, rule: Led, socket: S::Datagram) -> io::Result<()> {
        self.take_datagrams(rule.into(), socket)
    }

    fn take_datagrams(&mut self, rule: Rule, socket: S::Datagram) -> io::Result<()> {
        let token = self.datagram_ports.next_token();
        self.io.host.watch_datagrams(token, &socket)?;
        self.sockets_published += 1;
        let ipv6 = self.io.host.datagram_local(&socket).is_some_and(|local| local.is_ipv6());
        let port = DatagramPort {
            rule,
            socket,
            sessions: 0,
            dont_fragment: false,
            ipv6,
            joins_below: usize::MAX,
            on_run_list: false,
        };
        if self.datagram_ports.insert(self.sockets_published, port).is_none() {
            return Err(ErrorKind::StorageFull.into());
        }
        rule.forward().into_iter().for_each(|forward| self.add_forward(forward));
        Ok(())
    }

    /// Lets ports of the gateway lead to services of the host from now on.
    pub fn expose(&mut self, id: ForwardId, exposure: Exposure) {
        self.exposures.add(id, exposure);
        self.ledger.add_forward(id);
    }

    /// A port is published: whoever may be given its clients counts them.
    fn add_forward(&mut self, id: ForwardId) {
        let new = self.ledger.add_forward(id);
        let Some(team) = self.team.as_ref().filter(|_| new) else { return };
        team.others().for_each(|worker| {
            team.send(worker, Mail::Forward(id));
        });
    }

    /// Closes the host sockets of published ports and the ways of exposed ones. Connections go on,
    /// those that wait to be accepted included; clients of UDP ports are gone with the socket.
    pub fn withdraw(&mut self, now: Instant, withdrawals: &[Withdrawal]) {
        let closed: HashSet<(ForwardId, Option<u16>)> =
            withdrawals.iter().map(|what| (what.forward, what.guest_port)).collect();
        let whole = |id| closed.contains(&(id, None));
        self.close_ports(now, |rule| match rule {
            Rule::Published(rule) => {
                whole(rule.forward) || closed.contains(&(rule.forward, Some(rule.guest_port)))
            }
            Rule::Led(_) => false,
        });
        self.exposures.remove(whole);
        for &(id, _) in closed.iter().filter(|(_, port)| port.is_none()) {
            self.ledger.remove_forward(id);
        }
    }

    /// Closes led ports, as [`Worker::withdraw`] does with published ones.
    pub fn close_led(&mut self, now: Instant, ids: &[LedId]) {
        let closed: HashSet<LedId> = ids.iter().copied().collect();
        self.close_ports(now, |rule| matches!(rule, Rule::Led(rule) if closed.contains(&rule.id)));
    }

    /// Closes the sockets of the rules for which `closes` holds.
    fn close_ports(&mut self, now: Instant, closes: impl Fn(&Rule) -> bool) {
        let listeners = self.listeners.iter().map(|(token, _, listener)| (token, listener.rule));
        let ports = self.datagram_ports.iter().map(|(token, _, port)| (token, port.rule));
        let closing: Vec<(Token, Rule)> =
            listeners.chain(ports).filter(|(_, rule)| closes(rule)).collect();
        for &(token, rule) in &closing {
            match rule.transport() {
                Transport::Tcp => {
                    // To close the socket would reset who is in its queue.
                    self.take_clients(now, token, LAST_BATCH);
                    self.listeners.remove(token);
                }
                Transport::Udp => drop(self.datagram_ports.remove(token)),
            }
        }
        self.end_orphaned_sessions();
        self.end_orphaned_relays();
    }

    /// Closes the host sockets of all published ports that carry `transport`, before anything that
    /// takes the kernel long: whoever comes after us may want the ports at once.
    pub fn withdraw_all(&mut self, now: Instant, transport: Transport) {
        self.close_ports(now, |rule| rule.transport() == transport);
    }

    /// Takes clients from a listening socket until there are no more or others are due.
    pub(super) fn accept(&mut self, now: Instant, token: Token) {
        match self.take_clients(now, token, ACCEPT_BATCH) {
            Queue::Empty => {}
            Queue::Stuck => self.pause_accepting(now, token),
            // Edge-triggered: nobody tells again of those that are left.
            Queue::Unknown => {
                if let Some(listener) = self.listeners.get_mut(token)
                    && !listener.on_run_list
                {
                    listener.on_run_list = true;
                    self.run_list.push_back(token);
                }
            }
        }
    }

    /// Takes at most so many clients from a listening socket; what is left in its queue.
    fn take_clients(&mut self, now: Instant, token: Token, most: usize) -> Queue {
        for _ in 0..most {
            self.make_room(Direction::Inbound);
            let Some(listener) = self.listeners.get(token) else { return Queue::Empty };
            let rule = listener.rule;
            match self.io.host.accept(&listener.socket, self.tcp.next_token()) {
                Ok(accepted) => self.admit(now, rule, accepted),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Queue::Empty,
                Err(error) if is_of_one_client(&error) => {}
                Err(_) => return Queue::Stuck,
            }
        }
        Queue::Unknown
    }

    /// Sees to it that a socket is tried again later, once for however many clients failed.
    fn pause_accepting(&mut self, now: Instant, token: Token) {
        let Some(listener) = self.listeners.get_mut(token) else { return };
        if listener.retry_at.is_none() {
            listener.retry_at = Some(now + ACCEPT_PAUSE);
            self.wheel.insert(now + ACCEPT_PAUSE, token);
        }
    }

    /// A pause is over.
    pub(super) fn resume_accepting(&mut self, now: Instant, token: Token) {
        let Some(listener) = self.listeners.get_mut(token) else { return };
        // An entry of a listener that had the same token is none of ours.
        if listener.retry_at.take_if(|at| *at <= now).is_some() {
            self.accept(now, token);
        }
    }

    /// A client is there: it goes the way of its rule.
    fn admit(&mut self, now: Instant, rule: Rule, accepted: Accepted<S::Stream>) {
        let way = accepted.client.and_then(|client| self.splice_way(&rule, client.ip()));
        match (rule, way, accepted.client) {
            (_, Some(way), Some(client)) => {
                self.open_spliced(now, rule.forward(), way, client, accepted.stream);
            }
            (Rule::Published(rule), ..) if self.plan.has_link() => {
                self.open_inbound(now, rule, accepted);
            }
            _ => {
                self.ledger.refuse(FlowTransport::Tcp);
                self.io.host.reset(accepted.stream);
            }
        }
    }

    /// The guest, or the worker that is to serve it, hears of a client.
    fn open_inbound(&mut self, now: Instant, rule: Published, accepted: Accepted<S::Stream>) {
        let Accepted { stream, client } = accepted;
        if let Some(to) = self.another_for_client() {
            self.io.host.forget(&stream);
            let guest = self.plan.inbound(client.map(|client| client.ip()), rule.guest_address);
            let guest_mac = guest.and_then(|ends| self.services.mac_of(ends.guest));
            let guest_mac = guest_mac.unwrap_or(self.plan.guest_mac);
            let accepted = Accepted { stream, client };
            return self.send_client(to, Mail::Client { rule, guest_mac, accepted });
        }
        self.serve_client(now, rule, None, Accepted { stream, client });
    }

    /// A client that is this worker's, and whose readiness comes under the next token of the table
    /// of connections by the link: it goes the short way if there is one. `guest_mac` is told where
    /// another worker knows the link.
    pub(super) fn serve_client(
        &mut self,
        now: Instant,
        rule: Published,
        guest_mac: Option<Mac>,
        accepted: Accepted<S::Stream>,
    ) {
        if let Some(accepted) = self.try_short_way(now, rule, guest_mac, accepted) {
            let (accepted, first_port) = accepted;
            self.take_client(now, rule, guest_mac, accepted, first_port);
        }
    }

    /// The client's connection, whose readiness comes under the table's next token, becomes a
    /// flow. `attempt` is the first port under which the client may be seen
    /// ([`Worker::client_port`]).
    pub(super) fn take_client(
        &mut self,
        now: Instant,
        rule: Published,
        guest_mac: Option<Mac>,
        accepted: Accepted<S::Stream>,
        attempt: u32,
    ) {
        let Accepted { stream, client } = accepted;
        let most =
            self.limits.inbound_tcp_flows().saturating_sub(2 * self.inbound_spliced.in_use());
        let fits = self.inbound_tcp.take(most);
        let Some(key) = fits.then(|| self.inbound_key(now, rule, client, attempt)).flatten() else {
            if fits {
                self.inbound_tcp.give_back();
            }
            self.ledger.refuse(FlowTransport::Tcp);
            self.io.drop_frame(DropReason::FlowLimit);
            return self.io.host.reset(stream);
        };
        let known = guest_mac.or_else(|| self.services.mac_of(key.guest().ip()));
        let guest_mac = known.unwrap_or(self.plan.guest_mac);
        let mut options = self.tcp_options[usize::from(key.is_ipv6())];
        // Our SYN offers a window before the flow is asked what memory allows.
        options.first_window = options.first_window.min(self.io.receive_limit());
        let forward = Some(rule.forward);
        let account = self.ledger.open(now, FlowTransport::Tcp, Direction::Inbound, forward);
        let iss = self.initial_sequence(now, &key);
        let machine = Connection::to_guest(now, iss, options, &mut self.actions);
        let flow = TcpFlow::new(key, guest_mac, machine, stream, account);
        match self.tcp.insert(key, flow) {
            Some(token) => {
                self.with_tcp(token, |flow, io, actions| flow.begin(io, actions));
            }
            None => self.actions.clear(),
        }
    }

    /// The ends of a client's connection: its own port if no other flow has it, and `first` is 0.
    /// They are claimed. A port that is not its own may be that of somebody who went the short way.
    fn inbound_key(
        &self,
        now: Instant,
        rule: Published,
        client: Option<SocketAddr>,
        first: u32,
    ) -> Option<TcpKey> {
        let ends = self.plan.inbound(client.map(|client| client.ip()), rule.guest_address)?;
        let guest = SocketAddr::new(ends.guest, rule.guest_port);
        (first..PORT_ATTEMPTS)
            .map(|attempt| {
                let port = self.client_port(client, guest, attempt);
                let own = client.is_some() && attempt == 0;
                (own, TcpKey::new(guest, SocketAddr::new(ends.client, port)))
            })
            .filter(|(own, key)| *own || !self.trail.is_known(now, key))
            .map(|(_, key)| key)
            .find(|key| self.tcp.find(key).is_none() && self.claim_key(*key).is_ok())
    }

    /// The port under which the guest sees `client`: its own, or in further attempts (and behind a
    /// Unix socket) one that follows from both ends.
    pub(super) fn client_port(
        &self,
        client: Option<SocketAddr>,
        guest: SocketAddr,
        attempt: u32,
    ) -> u16 {
        match client {
            Some(client) if attempt == 0 => client.port(),
            None => self.high_port(self.hash.hash_one((guest, attempt, self.ledger.opened()))),
            client => self.high_port(self.hash.hash_one((client, guest, attempt))),
        }
    }

    /// A port from 1024 on.
    fn high_port(&self, hash: u64) -> u16 {
        // Below 65,536 by the remainder.
        (1024 + hash % (65_536 - 1024)) as u16
    }
}

/// Whether a failure of accept(2) is about the one client whose connection it takes off the queue:
/// gone again, or errors of the network that it came with. What else there is lasts (no
/// descriptors, a policy, a listener that somebody else has shut down), and would be met at once
/// by the next attempt.
fn is_of_one_client(error: &io::Error) -> bool {
    let passing = [
        Errno::ECONNABORTED,
        Errno::EINTR,
        Errno::ENETDOWN,
        Errno::EPROTO,
        Errno::ENOPROTOOPT,
        Errno::EHOSTDOWN,
        Errno::ENONET,
        Errno::EHOSTUNREACH,
        Errno::EOPNOTSUPP,
        Errno::ENETUNREACH,
    ];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|&errno| errno as i32 == code))
}
