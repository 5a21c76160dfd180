//! Spliced connections: two TCP sockets of the kernel, one on each side of a namespace's border,
//! and bytes that go from one to the other without a frame on the link.
//!
//! ```text
//!   client ── socket ─▶ pipe ─▶ socket ── target        two lanes, one for each direction
//! ```
//! Three kinds of clients come here: those on the host's loopback, for whom a socket made inside the
//! guest's namespace connects to a server of the guest ([`crate::gate::Splicing`]); those of
//! published ports whose own address that socket can have (`walk_short`); and those on the guest's
//! loopback, at ports that lead to the host's.
//!
//! **Ends.** The end of each direction is passed on when all bytes before it are. What fails on one
//! side is a reset on the other. The kernel has accepted a client by the time we hear of it, so one
//! whose target refuses is reset: nothing is read from it before, so that it can tell that nothing
//! was heard. (To have ports refuse by themselves while nobody listens is what `auto` is for.)
//!
//! **Memory.** splice(2) moves the kernel's own pages, and a lane holds no more than one such move
//! brought ([`lane`]). It counts as backlog ([`Io::receive_limit`]): under pressure moves get
//! smaller. An idle connection holds nothing but its sockets.

mod lane;
mod pipes;
mod relayed;

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::SocketAddr;

use lane::{Lane, Step};
pub(super) use pipes::Pipes;
pub(super) use relayed::{RelayKey, Relayed};

use super::io::Io;
use super::ledger::Account;
use super::ports::{FramePort, Readiness, SocketPort};
use crate::observe::{Direction, FlowState};

/// Moves in a row before other connections get their turn.
const TURNS: usize = 16;

/// The most that is moved at once: what keeps the other side busy while the next move is made.
const MOVE: usize = 512 << 10;

/// The most that is copied at once, where there is no pipe.
const COPY: usize = 64 << 10;

/// One side of a spliced connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Who has connected to us.
    Client = 0,
    /// Whom we have connected to.
    Target = 1,
}

impl End {
    pub(super) fn other(self) -> End {
        match self {
            End::Client => End::Target,
            End::Target => End::Client,
        }
    }
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for its ends.
    Rests,
    /// It has more to do at once.
    Runs,
    /// Both directions have ended.
    Over,
    /// It ends with resets.
    Failed,
}

/// What a lane holds.
enum Store<P> {
    Empty,
    Pipe(P),
    /// Bytes, and where those begin that are left.
    Copied(Vec<u8>, usize),
}

/// A spliced connection.
pub(super) struct Spliced<S: SocketPort> {
    pub(super) account: Account,
    /// The guest's end, and the other as far as it is known without asking.
    pub(super) guest: SocketAddr,
    pub(super) peer: SocketAddr,
    /// By [`End`].
    streams: [S::Stream; 2],
    /// By the end from which the bytes come.
    lanes: [Lane; 2],
    stores: [Store<S::Pipe>; 2],
    connected: bool,
    /// How much of the backlog it was when that was last reckoned.
    reckoned: usize,
    pub(super) on_run_list: bool,
}

impl<S: SocketPort> Spliced<S> {
    /// A connection of `client`'s, and one to its target that is on its way, or `connected`. The
    /// guest knows them as `guest` and `peer`.
    pub(super) fn new(
        account: Account,
        client: S::Stream,
        target: S::Stream,
        guest: SocketAddr,
        peer: SocketAddr,
        connected: bool,
    ) -> Spliced<S> {
        let mut spliced = Spliced {
            account,
            guest,
            peer,
            streams: [client, target],
            lanes: Default::default(),
            stores: [Store::Empty, Store::Empty],
            connected,
            reckoned: 0,
            on_run_list: false,
        };
        // Who has just connected takes bytes.
        spliced.lane(End::Target).sink_is_ready();
        if connected {
            spliced.lane(End::Client).sink_is_ready();
        }
        spliced
    }

    fn lane(&mut self, from: End) -> &mut Lane {
        &mut self.lanes[from as usize]
    }

    /// The socket at `end`.
    pub(super) fn stream(&self, end: End) -> &S::Stream {
        &self.streams[end as usize]
    }

    /// The end that is the guest's.
    pub(super) fn guest_end(&self) -> End {
        match self.account.direction {
            Direction::Inbound => End::Target,
            Direction::Outbound => End::Client,
        }
    }

    /// Whether its target has answered.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether the guest has said something that is not passed on.
    pub(super) fn guest_unfinished(&self) -> bool {
        self.lanes[self.guest_end() as usize].is_unfinished()
    }

    /// How far it is, as the guest's side of a flow is told.
    pub(super) fn state(&self) -> FlowState {
        let ended = |end: End| self.lanes[end as usize].is_over();
        let guest = self.guest_end();
        match (self.connected, ended(guest), ended(guest.other())) {
            (false, ..) if guest == End::Target => FlowState::SynSent,
            (false, ..) => FlowState::Connecting,
            (true, false, false) => FlowState::Established,
            (true, true, false) => FlowState::CloseWait,
            (true, false, true) => FlowState::FinWait2,
            (true, true, true) => FlowState::Closed,
        }
    }

    /// The socket at `end` reports readiness.
    pub(super) fn on_readiness<F: FramePort>(
        &mut self,
        end: End,
        ready: Readiness,
        io: &mut Io<F, S>,
    ) -> Fate {
        let connecting = end == End::Target && !self.connected;
        // While somebody is still to read from a socket, its error comes behind the bytes.
        if ready.failed
            && (connecting || self.lane(end).has_ended())
            && io.host.take_error(&self.streams[end as usize]).is_some()
        {
            return Fate::Failed;
        }
        if ready.writable {
            self.connected |= connecting;
            self.lane(end.other()).sink_is_ready();
        }
        if ready.readable {
            self.lane(end).source_is_ready();
        }
        self.run(io)
    }

    /// Moves what can be moved, within bounds.
    pub(super) fn run<F: FramePort>(&mut self, io: &mut Io<F, S>) -> Fate {
        let mut fate = Fate::Runs;
        for _ in 0..TURNS {
            match (self.step(End::Client, io), self.step(End::Target, io)) {
                (Err(_), _) | (_, Err(_)) => fate = Fate::Failed,
                (Ok(false), Ok(false)) => fate = Fate::Rests,
                _ => continue,
            }
            break;
        }
        if fate != Fate::Failed && self.lanes.iter().all(Lane::is_over) {
            fate = Fate::Over;
        }
        self.reckon(io);
        fate
    }

    /// One step of the lane from `from`; whether there was anything to do.
    fn step<F: FramePort>(&mut self, from: End, io: &mut Io<F, S>) -> io::Result<bool> {
        match self.lane(from).next() {
            Step::Rest => return Ok(false),
            Step::Fill => self.fill(from, io)?,
            Step::Drain => self.drain(from, io)?,
            Step::Shut => {
                io.host.shutdown_write(&self.streams[from.other() as usize]);
                self.lane(from).was_shut();
            }
        }
        Ok(true)
    }

    fn fill<F: FramePort>(&mut self, from: End, io: &mut Io<F, S>) -> io::Result<()> {
        let most = (io.receive_limit() as usize).min(MOVE);
        let source = &self.streams[from as usize];
        let (taken, store) = match io.pipes.take(|| io.host.open_pipe()) {
            Some(pipe) => (io.host.fill(source, &pipe, most), Store::Pipe(pipe)),
            None => {
                let mut bytes = vec![0; most.min(COPY)];
                let taken = io.host.recv(source, &mut [IoSliceMut::new(&mut bytes)]);
                bytes.truncate(*taken.as_ref().unwrap_or(&0));
                (taken, Store::Copied(bytes, 0))
            }
        };
        let lane = self.lane(from);
        match taken {
            Ok(bytes @ 1..) => {
                lane.filled(bytes);
                self.stores[from as usize] = store;
                return Ok(());
            }
            Ok(0) => lane.filled(0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => lane.source_is_empty(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                discard(store, &mut io.pipes);
                return Err(error);
            }
        }
        if let Store::Pipe(pipe) = store {
            io.pipes.give_back(pipe);
        }
        Ok(())
    }

    fn drain<F: FramePort>(&mut self, from: End, io: &mut Io<F, S>) -> io::Result<()> {
        let guest_end = self.guest_end();
        let lane = &mut self.lanes[from as usize];
        let store = &mut self.stores[from as usize];
        let sink = &self.streams[from.other() as usize];
        let given = match store {
            Store::Pipe(pipe) => io.host.drain(pipe, sink, lane.held()),
            Store::Copied(bytes, at) => {
                let given = io.host.send(sink, &[IoSlice::new(&bytes[*at..])]);
                *at += *given.as_ref().unwrap_or(&0);
                given
            }
            // Nothing is held without a store.
            Store::Empty => Ok(lane.held()),
        };
        match given {
            Ok(0) => lane.sink_is_full(),
            Ok(bytes) => {
                lane.drained(bytes);
                let traffic = &mut self.account.traffic;
                if from == guest_end {
                    traffic.bytes_to_host += bytes as u64;
                } else {
                    traffic.bytes_to_guest += bytes as u64;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => lane.sink_is_full(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if self.lanes[from as usize].held() == 0
            && let Store::Pipe(pipe) =
                std::mem::replace(&mut self.stores[from as usize], Store::Empty)
        {
            io.pipes.give_back(pipe);
        }
        Ok(())
    }

    /// Keeps account of what is held.
    fn reckon<F: FramePort>(&mut self, io: &mut Io<F, S>) {
        let held: usize = self.lanes.iter().map(Lane::held).sum();
        io.backlog_bytes = io.backlog_bytes + held - self.reckoned;
        io.promised = io.promised + held - self.reckoned;
        self.reckoned = held;
    }

    /// Closes both sockets, with resets if it has `failed`.
    pub(super) fn close<F: FramePort>(self, failed: bool, io: &mut Io<F, S>) {
        io.backlog_bytes -= self.reckoned;
        io.promised -= self.reckoned;
        for store in self.stores {
            discard(store, &mut io.pipes);
        }
        for stream in self.streams {
            if failed {
                io.host.reset(stream);
            }
        }
    }
}

/// Does away with bytes that nobody is to get.
fn discard<P>(store: Store<P>, pipes: &mut Pipes<P>) {
    if let Store::Pipe(pipe) = store {
        pipes.discard(pipe);
    }
}
