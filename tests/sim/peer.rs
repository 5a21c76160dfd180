//! The far end of a host stream: a script, two socket buffers, and what came of it.

use std::collections::VecDeque;
use std::net::IpAddr;

use nix::errno::Errno;
use tapway::engine::ports::{Event, Readiness};
use tapway::engine::token::Token;

use crate::rng::pattern;

/// Salt of the bytes from the guest, and of those to it.
pub const FROM_GUEST: u8 = 17;
pub const TO_GUEST: u8 = 91;

/// What the peer of a stream does.
#[derive(Clone, Debug)]
pub struct Script {
    /// How long connecting takes, in nanoseconds.
    pub connect_delay: u64,
    /// Connecting fails, at once or after the delay.
    pub connect_error: Option<(Errno, bool)>,
    /// The router that said so by ICMP, with type and code.
    pub router: Option<(IpAddr, u8, u8)>,
    /// Bytes that the peer sends, if it is no echo.
    pub sends: u64,
    /// Everything received goes back; ends when the guest's direction has ended.
    pub echo: bool,
    /// The peer closes its direction only after it has seen the end of the guest's.
    pub waits_for_end: bool,
    /// Bytes that the peer reads, and writes, in each step.
    pub chunk: usize,
    /// Nanoseconds between steps.
    pub pace: u64,
    /// No reading before this time after connecting.
    pub reads_from: u64,
    /// Bytes that each socket buffer holds.
    pub buffer: usize,
    /// The peer resets after receiving this many bytes.
    pub resets_after: Option<u64>,
    /// The byte at this place is urgent: a read stops in front of it.
    pub urgent_at: Option<u64>,
    /// Salt of the bytes that come, and of those that the peer sends.
    pub salts: (u8, u8),
}

impl Default for Script {
    fn default() -> Self {
        Script {
            connect_delay: 100_000,
            connect_error: None,
            router: None,
            sends: 0,
            echo: false,
            waits_for_end: false,
            chunk: 65_536,
            pace: 50_000,
            reads_from: 0,
            buffer: 65_536,
            resets_after: None,
            urgent_at: None,
            salts: (FROM_GUEST, TO_GUEST),
        }
    }
}

/// How the peer saw the guest's direction end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Eof,
    Reset,
}

/// What a peer has seen; lives on when the socket is closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub received: u64,
    pub sent: u64,
    pub end: Option<End>,
    /// The first byte that was not what it should be.
    pub wrong_at: Option<u64>,
    pub keep_alive: bool,
}

/// A stream socket and its peer.
pub struct StreamState {
    /// The worker that hears of it, by this token.
    pub watcher: Option<usize>,
    pub token: Token,
    /// Another worker that hears of it by a handle of its own, and by which token.
    pub second: Option<(usize, Token)>,
    /// The engine's handles.
    pub handles: usize,
    /// It is reset when it is closed.
    pub lingers_not: bool,
    pub script: Script,
    pub connect_at: u64,
    pub connected: bool,
    pub error: Option<Errno>,
    /// Towards the engine.
    pub inbox: VecDeque<u8>,
    pub inbox_ended: bool,
    /// From the engine.
    pub outbox: VecDeque<u8>,
    pub outbox_ended: bool,
    /// The engine was told that there is no room.
    pub wants_room: bool,
    /// The engine's handles are gone.
    pub closed: bool,
    pub reset: bool,
    /// When the peer acts next; `None` while there is nothing that it could do.
    pub next_step: Option<u64>,
    /// When it acted last: it keeps its pace.
    pub stepped: u64,
    pub echo: VecDeque<u8>,
    pub seen: Seen,
}

impl StreamState {
    /// What epoll tells, and to which workers.
    pub fn events(&self) -> impl Iterator<Item = (usize, Event)> + use<> {
        let readiness = self.readiness();
        let watchers = [self.watcher.map(|worker| (worker, self.token)), self.second];
        let told = watchers.into_iter().flatten();
        told.map(move |(worker, token)| (worker, Event { token, readiness }))
    }

    pub fn readiness(&self) -> Readiness {
        let dead = self.reset || self.error.is_some();
        Readiness {
            readable: dead || self.inbox_ended || !self.inbox.is_empty(),
            writable: dead || (self.connected && self.outbox.len() < self.script.buffer),
            closed: dead || self.inbox_ended,
            failed: dead || (self.inbox_ended && self.outbox_ended),
            urgent: self.before_urgent().is_some(),
        }
    }

    /// Bytes in front of the urgent one, if that waits to be read.
    pub fn before_urgent(&self) -> Option<usize> {
        let first = self.seen.sent - self.inbox.len() as u64;
        let at = self.script.urgent_at.filter(|at| (first..self.seen.sent).contains(at))?;
        Some((at - first) as usize)
    }

    /// The engine or the last step left something to do.
    pub fn wake(&mut self) {
        let at = self.stepped + self.script.pace;
        self.next_step = Some(self.next_step.map_or(at, |next| next.min(at)));
    }

    /// One step of the peer; whether the engine's end has changed.
    pub fn step(&mut self, now: u64) -> bool {
        if self.reset || self.error.is_some() {
            return false;
        }
        let mut edge = false;
        if now >= self.connect_at + self.script.reads_from {
            edge |= self.read();
        }
        if self.script.resets_after.is_some_and(|limit| self.seen.received >= limit) {
            self.reset = true;
            self.inbox.clear();
            self.error = Some(Errno::ECONNRESET);
            self.seen.end = Some(End::Reset);
            return true;
        }
        edge | self.write()
    }

    fn read(&mut self) -> bool {
        let room = match self.script.echo {
            true => self.script.buffer.saturating_sub(self.echo.len()),
            false => usize::MAX,
        };
        let count = self.outbox.len().min(self.script.chunk).min(room);
        for byte in self.outbox.drain(..count) {
            if byte != pattern(self.script.salts.0, self.seen.received)
                && self.seen.wrong_at.is_none()
            {
                self.seen.wrong_at = Some(self.seen.received);
            }
            self.seen.received += 1;
            if self.script.echo {
                self.echo.push_back(byte);
            }
        }
        if self.outbox.is_empty() && self.outbox_ended && self.seen.end.is_none() {
            self.seen.end = Some(End::Eof);
        }
        let told = self.wants_room && self.outbox.len() <= self.script.buffer / 2;
        if told {
            self.wants_room = false;
        }
        told
    }

    fn write(&mut self) -> bool {
        if self.inbox_ended || self.closed {
            return false;
        }
        let room = self.script.buffer - self.inbox.len();
        let mut count = room.min(self.script.chunk);
        if self.script.echo {
            count = count.min(self.echo.len());
            self.inbox.extend(self.echo.drain(..count));
        } else {
            count = count.min((self.script.sends - self.seen.sent) as usize);
            self.inbox.extend(
                (0..count as u64).map(|i| pattern(self.script.salts.1, self.seen.sent + i)),
            );
        }
        self.seen.sent += count as u64;
        let guest_ended = self.seen.end == Some(End::Eof);
        let finished = match self.script.echo {
            true => guest_ended && self.echo.is_empty(),
            false => {
                self.seen.sent == self.script.sends && (guest_ended || !self.script.waits_for_end)
            }
        };
        self.inbox_ended = finished;
        count > 0 || finished
    }

    /// Whether nothing more can happen.
    pub fn is_over(&self) -> bool {
        self.closed && (self.reset || self.error.is_some() || self.seen.end.is_some())
    }
}
