//! The host side: stream sockets whose peers follow a script, and datagram sockets that echo.
//!
//! Behaves like Linux where the engine can tell: sockets have buffers of their own, readiness is
//! edge-triggered and tells the whole state, a reset discards what was not read, and closing a
//! socket with unread bytes resets the peer.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use tapway::base::Instant;
use tapway::engine::MappingKey;
use tapway::engine::ports::{Accepted, Event, Reached, Readiness, SocketPort, StreamFacts};
use tapway::engine::token::Token;
use tapway::sys::datagram::{Batch, Marks, Origin, Outgoing, SocketError};

use crate::peer::{End, Script, Seen, StreamState};

/// A datagram that waits for the engine, or several that the kernel has joined.
struct Waiting {
    source: SocketAddr,
    marks: Marks,
    payload: Vec<u8>,
    segment_size: Option<u16>,
}

impl Waiting {
    fn one(source: SocketAddr, payload: Vec<u8>) -> Waiting {
        Waiting { source, marks: Marks::DEFAULT, payload, segment_size: None }
    }
}

struct DatagramState {
    token: Token,
    queue: VecDeque<Waiting>,
    /// A published socket: what is sent does not come back, but is kept here.
    answers: Option<Vec<(SocketAddr, Vec<u8>)>>,
    dont_fragment: bool,
}

/// A client that waits to be accepted, and what its connection does.
struct Client {
    address: Option<SocketAddr>,
    port: u16,
    script: Script,
}

#[derive(Default)]
struct ListenerState {
    token: Option<Token>,
    queue: VecDeque<Client>,
}

/// All sockets of the host.
#[derive(Default)]
pub struct Host {
    now: u64,
    scripts: BTreeMap<u16, Script>,
    next_id: u64,
    streams: BTreeMap<u64, StreamState>,
    datagrams: BTreeMap<u64, DatagramState>,
    listeners: BTreeMap<u64, ListenerState>,
    /// What happened to streams that are over, by port, in order of their end.
    over: Vec<(u16, Seen)>,
    ports: BTreeMap<u64, u16>,
    /// Events, and for which worker.
    pending: Vec<(usize, Event)>,
    /// The errno that opening a socket gives.
    pub exhausted: Option<Errno>,
    /// Whether servers of the guest are reached without its link in the name of clients.
    pub short_way: bool,
    /// Both ends of those connections, the client's first.
    pub short_ways: Vec<(SocketAddr, SocketAddr)>,
    /// Pipes that can still be made.
    pub pipes: usize,
    pub dns_queries: Vec<u64>,
    pub connects: u64,
    pub datagrams_sent: u64,
    /// The first byte of each datagram that was sent unfragmentable.
    pub unfragmentable: Vec<u8>,
    /// System calls that it took to send them.
    pub datagram_calls: u64,
    /// The errno that sending to a port gives.
    pub unreachable: BTreeMap<u16, Errno>,
    /// The longest datagram that can be one of several in a send; without it all can.
    pub join_limit: Option<u16>,
    /// How often a stream was adopted by another worker.
    pub adoptions: u64,
    /// How often another worker was given a handle of a stream.
    pub shares: u64,
    /// How many sends had several datagrams.
    pub joined_sends: u64,
    /// Sends to streams.
    pub stream_sends: u64,
}

impl Host {
    /// Says what the server at `port` does; ports without a script refuse.
    pub fn serve(&mut self, port: u16, script: Script) {
        self.scripts.insert(port, script);
    }

    /// What the server at `port` does.
    pub fn script(&self, port: u16) -> Script {
        self.scripts[&port].clone()
    }

    /// Has the peers of all open streams send up to `total` bytes.
    pub fn send_more(&mut self, total: u64) {
        for stream in self.streams.values_mut() {
            stream.script.sends = total;
            stream.wake();
        }
    }

    /// Has the peers of all open streams close their direction.
    pub fn end_all(&mut self) {
        for stream in self.streams.values_mut() {
            stream.script.waits_for_end = false;
            stream.wake();
        }
    }

    /// The events for a worker.
    pub fn events_of(&mut self, worker: usize) -> Vec<Event> {
        self.pending.extract_if(.., |(whose, _)| *whose == worker).map(|(_, event)| event).collect()
    }

    /// Lets the peers act until `now`; the events that follow are for the engine.
    pub fn advance(&mut self, now: u64) {
        self.now = now;
        for stream in self.streams.values_mut() {
            let mut edge = false;
            if !stream.connected && stream.error.is_none() && now >= stream.connect_at {
                match stream.script.connect_error {
                    Some((errno, _)) => stream.error = Some(errno),
                    None => stream.connected = true,
                }
                stream.next_step = Some(now);
                edge = true;
            }
            if stream.connected && stream.next_step.is_some_and(|at| at <= now) {
                let before = stream.seen.clone();
                edge |= stream.step(now);
                stream.stepped = now;
                stream.next_step = None;
                if before != stream.seen {
                    stream.wake();
                }
                let opens = stream.connect_at + stream.script.reads_from;
                if opens > now {
                    let next = stream.next_step.map_or(opens, |next| next.min(opens));
                    stream.next_step = Some(next);
                }
            }
            if edge && !stream.closed {
                self.pending.extend(stream.events());
            }
        }
        let over: Vec<u64> =
            self.streams.iter().filter(|(_, s)| s.is_over()).map(|(&id, _)| id).collect();
        for id in over {
            if let Some(stream) = self.streams.remove(&id) {
                self.over.push((self.ports[&id], stream.seen));
            }
        }
    }

    /// When [`Host::advance`] has something to do.
    pub fn next(&self) -> Option<u64> {
        if !self.pending.is_empty() {
            return Some(self.now);
        }
        let due = |stream: &StreamState| {
            if stream.error.is_some() || stream.reset {
                None
            } else if !stream.connected {
                Some(stream.connect_at)
            } else {
                stream.next_step
            }
        };
        self.streams.values().filter_map(due).min()
    }

    /// What the peers at `port` have seen: those that are over first, then the others.
    pub fn seen(&self, port: u16) -> Vec<Seen> {
        let over = self.over.iter().filter(|(p, _)| *p == port).map(|(_, seen)| seen.clone());
        let live = self.streams.iter().filter(|(id, _)| self.ports[id] == port);
        over.chain(live.map(|(_, stream)| stream.seen.clone())).collect()
    }

    /// Bytes that the engine has written to streams of a port, read by the peer or not.
    pub fn passed_on(&self, port: u16) -> u64 {
        let live = self.streams.iter().filter(|(id, _)| self.ports[id] == port);
        let unread: usize = live.map(|(_, stream)| stream.outbox.len()).sum();
        self.seen(port).iter().map(|seen| seen.received).sum::<u64>() + unread as u64
    }

    /// Sockets that the engine has not closed.
    pub fn open_sockets(&self) -> usize {
        self.streams.values().filter(|stream| !stream.closed).count() + self.datagrams.len()
    }

    /// Streams that a second worker has a handle of.
    pub fn shared(&self) -> usize {
        self.streams.values().filter(|stream| stream.handles > 1).count()
    }

    /// A client from `address` connects to a listener; what it sees is listed under `port`.
    pub fn client(&mut self, listener: u64, address: &str, port: u16, script: Script) {
        self.scripts.insert(port, script.clone());
        let Some(state) = self.listeners.get_mut(&listener) else { return };
        state.queue.push_back(Client { address: address.parse().ok(), port, script });
        if let Some(token) = state.token {
            self.tell_readable(token);
        }
    }

    /// As epoll does, once for all that became readable since the engine last asked.
    fn tell_readable(&mut self, token: Token) {
        let readiness = Readiness { readable: true, ..Readiness::default() };
        let event = (LEAD, Event { token, readiness });
        if !self.pending.contains(&event) {
            self.pending.push(event);
        }
    }

    /// What was sent through the published socket `id`.
    pub fn answers(&self, id: u64) -> &[(SocketAddr, Vec<u8>)] {
        self.datagrams[&id].answers.as_deref().unwrap_or_default()
    }

    /// Bytes that wait between the engine and the peers.
    pub fn is_quiet(&self) -> bool {
        self.streams.is_empty()
    }

    /// Gives a datagram from `source` to every datagram socket.
    pub fn inject(&mut self, source: SocketAddr, payload: &[u8]) {
        self.inject_as(source, Marks::DEFAULT, payload, None);
    }

    /// As [`Host::inject`], with marks, and perhaps several datagrams that the kernel has joined.
    pub fn inject_as(
        &mut self,
        source: SocketAddr,
        marks: Marks,
        payload: &[u8],
        segment_size: Option<u16>,
    ) {
        let mut tokens = vec![];
        for socket in self.datagrams.values_mut() {
            let payload = payload.to_vec();
            socket.queue.push_back(Waiting { source, marks, payload, segment_size });
            tokens.push(socket.token);
        }
        tokens.into_iter().for_each(|token| self.tell_readable(token));
    }

    /// Gives a datagram from `source` to the published socket `id`.
    pub fn inject_into(&mut self, id: u64, source: SocketAddr, payload: &[u8]) {
        let Some(socket) = self.datagrams.get_mut(&id) else { return };
        socket.queue.push_back(Waiting::one(source, payload.to_vec()));
        let token = socket.token;
        self.tell_readable(token);
    }

    /// Resets every stream from its far end.
    pub fn reset_all(&mut self) {
        for stream in self.streams.values_mut().filter(|stream| !stream.closed) {
            stream.reset = true;
            stream.inbox.clear();
            stream.error = Some(Errno::ECONNRESET);
            stream.seen.end.get_or_insert(End::Reset);
            self.pending.extend(stream.events());
        }
    }

    /// What the engine sends at once: a datagram, or several, as `udp_send_skb` takes them.
    fn take(&mut self, socket: &Datagram, datagram: &Outgoing<'_>) -> io::Result<()> {
        let Some(size) = datagram.segment_size else { return self.take_one(socket, datagram) };
        let pieces = datagram.payload.chunks(usize::from(size));
        if self.join_limit.is_some_and(|limit| size > limit) {
            return Err(Errno::EMSGSIZE.into());
        }
        if pieces.len() > 128 || datagram.payload.len() > 65_507 {
            return Err(Errno::EINVAL.into());
        }
        self.joined_sends += 1;
        for payload in pieces {
            self.take_one(socket, &Outgoing { payload, segment_size: None, ..*datagram })?;
        }
        Ok(())
    }

    /// A datagram from the engine, which comes back from where it was sent to.
    fn take_one(&mut self, socket: &Datagram, datagram: &Outgoing<'_>) -> io::Result<()> {
        if let Some(&errno) = self.unreachable.get(&datagram.target.port()) {
            return Err(errno.into());
        }
        self.datagrams_sent += 1;
        let state = self.datagrams.get_mut(&socket.id).ok_or(Errno::EBADF)?;
        if state.dont_fragment {
            self.unfragmentable.extend(datagram.payload.first());
        }
        let mut payload = datagram.payload.to_vec();
        if let Some(answers) = &mut state.answers {
            answers.push((datagram.target, payload));
            return Ok(());
        }
        if state.token.kind == tapway::engine::token::Kind::Echo
            && let Some(kind @ (8 | 128)) = payload.first_mut()
        {
            // Echo reply: 0 of ICMP, 129 of ICMPv6.
            *kind = if *kind == 8 { 0 } else { 129 };
        }
        let marks = datagram.marks;
        let back = Waiting { marks, ..Waiting::one(datagram.target, payload) };
        state.queue.push_back(back);
        let readiness = Readiness { readable: true, writable: true, ..Readiness::default() };
        self.pending.push((LEAD, Event { token: state.token, readiness }));
        Ok(())
    }
}

/// The first worker, and the only one that has sockets of datagrams and listeners.
const LEAD: usize = 0;

/// A worker's handle of the host, with its place in the team.
#[derive(Clone, Default)]
pub struct HostPort(pub Rc<RefCell<Host>>, pub usize);

/// One of the engine's handles of a stream; dropping the last closes the socket.
pub struct Stream {
    id: u64,
    host: HostPort,
    /// Another handle was there before.
    is_second: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut host = self.host.0.borrow_mut();
        let Some(stream) = host.streams.get_mut(&self.id) else { return };
        stream.handles -= 1;
        if stream.handles > 0 {
            // epoll goes on watching what is open somewhere.
            assert!(!self.is_second || stream.second.is_none(), "what is closed is forgotten");
            return;
        }
        stream.closed = true;
        stream.outbox_ended = true;
        stream.wake();
        if !stream.connected || stream.lingers_not || !stream.inbox.is_empty() {
            // close(2) with unread bytes resets the connection (RFC 1122 §4.2.2.13).
            stream.reset = true;
            stream.seen.end.get_or_insert(End::Reset);
        }
    }
}

/// The engine's handle of one datagram socket.
pub struct Datagram {
    id: u64,
    host: HostPort,
}

impl Drop for Datagram {
    fn drop(&mut self) {
        self.host.0.borrow_mut().datagrams.remove(&self.id);
    }
}

impl HostPort {
    fn open(&mut self, token: Token) -> io::Result<Datagram> {
        let mut host = self.0.borrow_mut();
        if let Some(errno) = host.exhausted {
            return Err(errno.into());
        }
        host.next_id += 1;
        let id = host.next_id;
        let state =
            DatagramState { token, queue: VecDeque::new(), answers: None, dont_fragment: false };
        host.datagrams.insert(id, state);
        Ok(Datagram { id, host: self.clone() })
    }

    /// A listening socket, and its name for [`Host::client`].
    pub fn listener(&self) -> (Listener, u64) {
        let mut host = self.0.borrow_mut();
        host.next_id += 1;
        let id = host.next_id;
        host.listeners.insert(id, ListenerState::default());
        (Listener { id, host: self.clone() }, id)
    }

    /// A UDP socket to publish, and its name for [`Host::answers`].
    pub fn datagram_port(&mut self) -> (Datagram, u64) {
        let socket = self.open(Token::only(tapway::engine::token::Kind::DatagramPort)).unwrap();
        let id = socket.id;
        self.0.borrow_mut().datagrams.get_mut(&id).unwrap().answers = Some(vec![]);
        (socket, id)
    }

    fn stream(&self, host: &mut Host, token: Token, port: u16, script: Script) -> Stream {
        host.next_id += 1;
        let id = host.next_id;
        let connect_at = host.now + script.connect_delay;
        let stream = StreamState {
            watcher: Some(self.1),
            token,
            second: None,
            lingers_not: false,
            handles: 1,
            connect_at,
            script,
            connected: false,
            error: None,
            inbox: VecDeque::new(),
            inbox_ended: false,
            outbox: VecDeque::new(),
            outbox_ended: false,
            wants_room: false,
            closed: false,
            reset: false,
            next_step: None,
            stepped: 0,
            echo: VecDeque::new(),
            seen: Seen::default(),
        };
        host.streams.insert(id, stream);
        host.ports.insert(id, port);
        Stream { id, host: self.clone(), is_second: false }
    }
}

/// The engine's handle of one listening socket.
pub struct Listener {
    id: u64,
    host: HostPort,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.host.0.borrow_mut().listeners.remove(&self.id);
    }
}

impl SocketPort for HostPort {
    type Stream = Stream;
    type Listener = Listener;
    type Datagram = Datagram;
    type Pipe = RefCell<VecDeque<u8>>;

    fn connect(&mut self, token: Token, target: SocketAddr, _: Marks) -> io::Result<Stream> {
        let mut host = self.0.borrow_mut();
        if let Some(errno) = host.exhausted {
            return Err(errno.into());
        }
        host.connects += 1;
        let refused =
            Script { connect_error: Some((Errno::ECONNREFUSED, false)), ..Script::default() };
        let script = host.scripts.get(&target.port()).cloned().unwrap_or(refused);
        if let Some((errno, true)) = script.connect_error {
            return Err(errno.into());
        }
        Ok(self.stream(&mut host, token, target.port(), script))
    }

    fn connect_unix(&mut self, token: Token, _: &Path) -> io::Result<Stream> {
        self.connect(token, SocketAddr::from(([127, 0, 0, 1], 1)), Marks::DEFAULT)
    }

    fn watch_listener(&mut self, token: Token, listener: &Listener) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.listeners.get_mut(&listener.id).ok_or(Errno::EBADF)?.token = Some(token);
        let readiness = Readiness { readable: true, ..Readiness::default() };
        host.pending.push((LEAD, Event { token, readiness }));
        Ok(())
    }

    fn accept(&mut self, listener: &Listener, token: Token) -> io::Result<Accepted<Stream>> {
        let host = &mut *self.0.borrow_mut();
        if let Some(errno) = host.exhausted {
            return Err(errno.into());
        }
        let state = host.listeners.get_mut(&listener.id).ok_or(Errno::EBADF)?;
        let client = state.queue.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let stream = self.stream(host, token, client.port, client.script);
        let now = host.now;
        if let Some(state) = host.streams.get_mut(&stream.id) {
            state.connected = true;
            state.next_step = Some(now);
        }
        Ok(Accepted { stream, client: client.address })
    }

    fn forget(&mut self, stream: &Stream) {
        let host = &mut *self.0.borrow_mut();
        let Some(state) = host.streams.get_mut(&stream.id) else { return };
        if stream.is_second {
            let second = state.second.take().expect("who forgets a stream watches it");
            return host.pending.retain(|(whose, event)| (*whose, event.token) != second);
        }
        assert_eq!(state.watcher.take(), Some(self.1), "who forgets a stream watches it");
        // What epoll has already given out, it has given out; see `Crew`.
        let (me, old) = (self.1, state.token);
        host.pending.retain(|(whose, event)| *whose != me || event.token != old);
    }

    fn adopt(&mut self, token: Token, stream: &Stream) -> io::Result<()> {
        let host = &mut *self.0.borrow_mut();
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        if stream.is_second {
            assert_eq!(state.second.replace((self.1, token)), None, "one other worker watches");
        } else {
            assert_eq!(state.watcher.replace(self.1), None, "a stream is watched by one worker");
            state.token = token;
            host.adoptions += 1;
        }
        let events = state.events();
        host.pending.extend(events);
        Ok(())
    }

    fn share(&mut self, stream: &Stream) -> io::Result<Stream> {
        let mut host = self.0.borrow_mut();
        if let Some(errno) = host.exhausted {
            return Err(errno.into());
        }
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        // One porter may not have closed its own yet when the next is to come.
        state.handles += 1;
        host.shares += 1;
        Ok(Stream { id: stream.id, host: self.clone(), is_second: true })
    }

    fn connect_inside(&mut self, token: Token, target: SocketAddr) -> io::Result<Stream> {
        self.connect(token, target, Marks::DEFAULT)
    }

    fn connect_as(
        &mut self,
        _: Instant,
        client: SocketAddr,
        target: SocketAddr,
    ) -> io::Result<Reached<Stream>> {
        if !self.0.borrow().short_way {
            return Err(ErrorKind::Unsupported.into());
        }
        let token = Token::only(tapway::engine::token::Kind::Reaching);
        let stream = self.connect(token, target, Marks::DEFAULT)?;
        let host = &mut *self.0.borrow_mut();
        host.short_ways.push((client, target));
        let now = host.now;
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        // Whoever adopts it watches it.
        state.watcher = None;
        state.connected = state.connect_at <= now && state.script.connect_error.is_none();
        let connected = state.connected;
        if connected {
            state.next_step = Some(now);
        }
        Ok(Reached { stream, connected })
    }

    fn open_pipe(&mut self) -> io::Result<Self::Pipe> {
        let mut host = self.0.borrow_mut();
        if host.pipes == 0 {
            return Err(Errno::EMFILE.into());
        }
        host.pipes -= 1;
        Ok(RefCell::default())
    }

    fn fill(&mut self, stream: &Stream, pipe: &Self::Pipe, most: usize) -> io::Result<usize> {
        let mut bytes = vec![0; most];
        let taken = self.recv(stream, &mut [IoSliceMut::new(&mut bytes)])?;
        assert!(pipe.borrow().is_empty(), "a pipe is filled when it is empty");
        pipe.borrow_mut().extend(&bytes[..taken]);
        Ok(taken)
    }

    fn drain(&mut self, pipe: &Self::Pipe, stream: &Stream, most: usize) -> io::Result<usize> {
        let mut pipe = pipe.borrow_mut();
        assert_eq!(pipe.len(), most, "a pipe holds what its lane says");
        let taken = self.send(stream, &[IoSlice::new(pipe.make_contiguous())])?;
        pipe.drain(..taken);
        Ok(taken)
    }

    fn stream_facts(&mut self, _: &Stream) -> StreamFacts {
        StreamFacts::default()
    }

    fn watch_datagrams(&mut self, token: Token, socket: &Datagram) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.datagrams.get_mut(&socket.id).ok_or(Errno::EBADF)?.token = token;
        Ok(())
    }

    fn datagram_local(&mut self, _: &Datagram) -> Option<SocketAddr> {
        None
    }

    fn connect_dns(&mut self, token: Token) -> io::Result<Stream> {
        let address = SocketAddr::from(([127, 0, 0, 53], 53));
        self.connect(token, address, Marks::DEFAULT)
    }

    fn ask_dns(&mut self, token: u64, _: &[u8]) -> bool {
        self.0.borrow_mut().dns_queries.push(token);
        true
    }

    fn send(&mut self, stream: &Stream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut host = self.0.borrow_mut();
        host.stream_sends += 1;
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        if let Some(errno) = state.error.take() {
            return Err(errno.into());
        }
        if state.reset || state.outbox_ended {
            return Err(Errno::EPIPE.into());
        }
        let room = state.script.buffer.saturating_sub(state.outbox.len());
        if !state.connected || room == 0 {
            state.wants_room = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let before = state.outbox.len();
        state.outbox.extend(parts.iter().flat_map(|part| part.iter()).take(room));
        let taken = state.outbox.len() - before;
        state.wake();
        if taken < parts.iter().map(|part| part.len()).sum() {
            state.wants_room = true;
        }
        Ok(taken)
    }

    fn recv(&mut self, stream: &Stream, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut host = self.0.borrow_mut();
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        if let Some(errno) = state.error.take() {
            return Err(errno.into());
        }
        if state.inbox.is_empty() {
            let ended = state.inbox_ended || state.reset;
            return if ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let room: usize = parts.iter().map(|part| part.len()).sum();
        let before = state.before_urgent().filter(|&len| len > 0).unwrap_or(usize::MAX);
        let len = room.min(state.inbox.len()).min(before);
        state.wake();
        let slots = parts.iter_mut().flat_map(|part| part.iter_mut());
        for (slot, byte) in slots.zip(state.inbox.drain(..len)) {
            *slot = byte;
        }
        Ok(len)
    }

    fn at_end(&mut self, stream: &Stream) -> io::Result<bool> {
        let mut host = self.0.borrow_mut();
        let state = host.streams.get_mut(&stream.id).ok_or(Errno::EBADF)?;
        if !state.inbox.is_empty() {
            return Ok(false);
        }
        if let Some(errno) = state.error.take() {
            return Err(errno.into());
        }
        let ended = state.inbox_ended || state.reset;
        if ended { Ok(true) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn take_error(&mut self, stream: &Stream) -> Option<io::Error> {
        let mut host = self.0.borrow_mut();
        let errno = host.streams.get_mut(&stream.id)?.error.take()?;
        Some(errno.into())
    }

    fn shutdown_write(&mut self, stream: &Stream) {
        let mut host = self.0.borrow_mut();
        let Some(state) = host.streams.get_mut(&stream.id) else { return };
        state.outbox_ended = true;
        state.wake();
        if state.inbox_ended {
            // Both directions are closed: EPOLLHUP.
            let events = state.events();
            host.pending.extend(events);
        }
    }

    fn reset(&mut self, stream: Stream) {
        let mut host = self.0.borrow_mut();
        if let Some(state) = host.streams.get_mut(&stream.id) {
            // SO_LINGER: the reset goes out when the last handle is closed.
            state.lingers_not = true;
        }
    }

    fn connect_error(&mut self, stream: &Stream) -> Option<SocketError<'static>> {
        let host = self.0.borrow();
        let script = &host.streams.get(&stream.id)?.script;
        let ((errno, _), (router, kind, code)) = (script.connect_error?, script.router?);
        Some(SocketError {
            errno: errno as i32,
            origin: if router.is_ipv4() { Origin::Icmp } else { Origin::Icmp6 },
            kind,
            code,
            info: 0,
            offender: Some(router),
            target: SocketAddr::new(router, host.ports[&stream.id]),
            quoted: &[],
        })
    }

    fn connected(&mut self, _: &Stream) {}

    fn no_delay(&mut self, _stream: &Self::Stream) {}

    fn keep_alive(&mut self, stream: &Stream) {
        if let Some(state) = self.0.borrow_mut().streams.get_mut(&stream.id) {
            state.seen.keep_alive = true;
        }
    }

    fn open_udp(&mut self, token: Token, _: MappingKey) -> io::Result<Datagram> {
        self.open(token)
    }

    fn open_ping(&mut self, token: Token, _: MappingKey) -> io::Result<Datagram> {
        self.open(token)
    }

    fn open_relay(&mut self, token: Token, _: bool, _: u16, _: SocketAddr) -> io::Result<Datagram> {
        self.open(token)
    }

    fn send_datagrams(
        &mut self,
        socket: &Datagram,
        datagrams: &[Outgoing<'_>],
    ) -> io::Result<usize> {
        self.0.borrow_mut().datagram_calls += 1;
        for (sent, datagram) in datagrams.iter().enumerate() {
            match self.0.borrow_mut().take(socket, datagram) {
                Err(error) if sent == 0 => return Err(error),
                Err(_) => return Ok(sent),
                Ok(()) => {}
            }
        }
        Ok(datagrams.len())
    }

    fn recv_datagrams(&mut self, socket: &Datagram, batch: &mut Batch) -> io::Result<usize> {
        let mut host = self.0.borrow_mut();
        let state = host.datagrams.get_mut(&socket.id).ok_or(Errno::EBADF)?;
        batch.clear();
        let mut count = 0;
        while let Some(waiting) = state.queue.front() {
            let Waiting { source, marks, payload, segment_size } = waiting;
            if !batch.push_joined(*source, *marks, payload, *segment_size)? {
                break;
            }
            state.queue.pop_front();
            count += 1;
        }
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn next_error<'a>(&mut self, _: &Datagram, _: &'a mut [u8]) -> Option<SocketError<'a>> {
        None
    }

    fn set_dont_fragment(&mut self, socket: &Datagram, _: bool, on: bool) {
        if let Some(state) = self.0.borrow_mut().datagrams.get_mut(&socket.id) {
            state.dont_fragment = on;
        }
    }

    fn wait(&mut self, _: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        *events = self.0.borrow_mut().events_of(self.1);
        Ok(())
    }
}
