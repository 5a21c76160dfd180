//! The short way in: clients of published ports whose connections need no frame on the guest's
//! link, although the guest sees their addresses (D8 b).
//!
//! ```text
//!   accept ─▶ gate::inbound ─▶ socket inside, bound to what the guest sees as the client ─▶ connect
//!      answered ─▶ spliced        refused, late, impossible ─▶ the walk in, by the link
//! ```
//! Nothing may differ for the guest or the client, so whatever does not succeed here is tried by
//! the link, before a byte of the client's is read: a port where nobody listens may still lead
//! somewhere by the guest's own rules, and if not, the guest's answer by the link is the one that
//! counts. [`super::short_way`] makes the connection; `setup::short_way` tells what the guest's
//! namespace does for it.
//!
//! It costs less for a byte and more for a connection, by some ten system calls. And whoever comes
//! back from the same port while the guest's end of its last connection is in TIME-WAIT has to come
//! by the same way: the mark of that end sends what the guest answers to `lo`. So the choice is the
//! user's, for all clients.
//!
//! The guest can take the means away at any time. Its answers then go to the link, where they
//! belong to nobody and are reset, and ours waits for them: for [`PATIENCE`]. After that the short
//! way is not trusted until the next look at the guest's namespace ([`Trust`]), which tells a guest
//! that has taken the means away from a server that is slow to accept.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{Instant, Mac};
use crate::observe::{Direction, FlowTransport};

use super::ports::{Accepted, FramePort, Reached, Readiness, SocketPort};
use super::published::Published;
use super::splice::Spliced;
use super::tcp_flow::TcpKey;
use super::team::Member;
use super::token::{Kind, Token};
use super::worker::Worker;

/// How long a connection inside may take, of which both ends are on this machine. A queue of a
/// listening socket that is full takes longer, and is waited for by the link.
const PATIENCE: Duration = Duration::from_millis(200);

/// Clients at a time that wait so: others go by the link meanwhile.
pub(super) const MAX_REACHING: usize = 64;

/// A client whose connection inside is on its way.
pub(super) struct Reaching<S: SocketPort> {
    rule: Published,
    guest_mac: Option<Mac>,
    client: SocketAddr,
    stream: S::Stream,
    target: S::Stream,
    /// Until when it may take.
    pub(super) until: Instant,
}

/// Whether the short way is worth trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// As far as is known.
    #[default]
    Given,
    /// Not before then.
    Suspended(Instant),
    /// There is none.
    Never,
}

/// For how long the short way is not tried after the guest's namespace forbade it, or nobody
/// answered. By then what was known of the namespace is old, and it is looked at anew
/// ([`super::short_way`]).
const DISTRUST: Duration = Duration::from_secs(1);

impl Trust {
    /// Whether it is to be tried.
    fn is_given(&mut self, now: Instant) -> bool {
        if matches!(self, Trust::Suspended(until) if *until <= now) {
            *self = Trust::Given;
        }
        *self == Trust::Given
    }

    /// It was tried, and this came of it.
    fn heed(&mut self, now: Instant, error: &io::Error) {
        match error.kind() {
            ErrorKind::Unsupported | ErrorKind::BrokenPipe => *self = Trust::Never,
            ErrorKind::TimedOut | ErrorKind::PermissionDenied => {
                *self = Trust::Suspended(now + DISTRUST);
            }
            _ => {}
        }
    }
}

/// The second of the ports under which a client may be seen.
const OTHER_PORT: u32 = 1;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Sends a client the short way if there is one. Otherwise gives it back, for the link, with the
    /// first port under which it may be seen there ([`Worker::client_port`]).
    pub(super) fn try_short_way(
        &mut self,
        now: Instant,
        rule: Published,
        guest_mac: Option<Mac>,
        accepted: Accepted<S::Stream>,
    ) -> Option<(Accepted<S::Stream>, u32)> {
        let Accepted { stream, client } = accepted;
        let by_the_link = |stream, port| Some((Accepted { stream, client }, port));
        let trusted = self.short_way.is_given(now) && self.plan.has_link();
        let Some((client, ends)) = client
            .filter(|_| trusted && !self.reaching.is_full())
            .and_then(|client| Some((client, self.short_ends(rule, client)?)))
        else {
            return by_the_link(stream, 0);
        };
        if self.spliced.is_full() || self.lacks_room_for_two() {
            return by_the_link(stream, 0);
        }
        let reached = match self.io.host.connect_as(now, ends.peer(), ends.guest()) {
            Ok(reached) => reached,
            // Another client has its port, as a client of another published port.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                return by_the_link(stream, OTHER_PORT);
            }
            Err(error) => {
                self.short_way.heed(now, &error);
                return by_the_link(stream, 0);
            }
        };
        let Reached { stream: target, connected } = reached;
        if !connected && self.io.host.adopt(self.reaching.next_token(), &target).is_err() {
            return by_the_link(stream, 0);
        }
        // It was accepted for the link.
        self.io.host.forget(&stream);
        let until = now + PATIENCE;
        let reaching = Reaching { rule, guest_mac, client, stream, target, until };
        if connected {
            self.begin_short(now, ends, reaching);
        } else if let Some(token) = self.reaching.insert(ends, reaching) {
            self.wheel.insert(until, token);
        }
        None
    }

    /// The ends of a client's connection on the short way; `None` if it is to go by the link.
    fn short_ends(&self, rule: Published, client: SocketAddr) -> Option<TcpKey> {
        let ends = self.plan.inbound(Some(client.ip()), rule.guest_address)?;
        let guest = SocketAddr::new(ends.guest, rule.guest_port);
        let key = TcpKey::new(guest, SocketAddr::new(ends.client, client.port()));
        let directory = self.team.as_ref().and_then(Member::directory);
        let taken = self.tcp.find(&key).is_some()
            || self.reaching.find(&key).is_some()
            || directory.is_some_and(|directory| directory.owner(&key).is_some());
        (!taken).then_some(key)
    }

    /// Whether there is no room for the two sockets of one more client.
    fn lacks_room_for_two(&self) -> bool {
        let more = 2 * (self.reaching.len() + 1);
        let most = self.limits.inbound_tcp_flows();
        self.inbound_sockets() + more > most || self.lacks_room(more)
    }

    /// The guest has answered: the client's connection and the one inside become one.
    fn begin_short(&mut self, now: Instant, ends: TcpKey, reaching: Reaching<S>) {
        let Reaching { rule, stream, target, .. } = reaching;
        let token = self.spliced.next_token();
        let host = &mut self.io.host;
        let far = Token { kind: Kind::SplicedTarget, ..token };
        if host.adopt(token, &stream).and_then(|()| host.adopt(far, &target)).is_err() {
            // No memory for another event: as if the host had lost the connection.
            self.ledger.refuse(FlowTransport::Tcp);
            host.reset(target);
            return host.reset(stream);
        }
        for stream in [&stream, &target] {
            // Each side has decided already what belongs together.
            host.no_delay(stream);
        }
        // The guest's kernel tells us of an end of its own; nobody tells of a client that is gone.
        host.keep_alive(&stream);
        let forward = Some(rule.forward);
        let account = self.ledger.open(now, FlowTransport::Tcp, Direction::Inbound, forward);
        let id = account.id;
        let spliced = Spliced::new(account, stream, target, ends.guest(), ends.peer(), true);
        if self.spliced.insert(id, spliced).is_some() {
            self.inbound_spliced.take(usize::MAX);
        }
    }

    /// A connection inside has come about, or not.
    pub(super) fn on_reached(&mut self, now: Instant, token: Token, readiness: Readiness) {
        let Some(reaching) = self.reaching.get(token) else { return };
        let error = match readiness {
            Readiness { failed: false, writable: false, .. } => return,
            Readiness { failed: false, .. } => None,
            _ => Some(self.io.host.take_error(&reaching.target).unwrap_or_else(refused)),
        };
        let Some((ends, reaching)) = self.reaching.remove(token) else { return };
        match error {
            None => {
                self.io.host.forget(&reaching.target);
                self.begin_short(now, ends, reaching);
            }
            Some(error) => self.give_up(now, reaching, &error),
        }
    }

    /// A connection inside has not come about for long enough.
    pub(super) fn on_reach_deadline(&mut self, now: Instant, token: Token) {
        // An entry of one that had the same token is none of ours.
        if self.reaching.get(token).is_none_or(|reaching| reaching.until > now) {
            return;
        }
        let Some((ends, reaching)) = self.reaching.remove(token) else { return };
        tracing::debug!(guest = %ends.guest(), "no answer on the short way");
        self.give_up(now, reaching, &ErrorKind::TimedOut.into());
    }

    /// A client goes by the link after all.
    fn give_up(&mut self, now: Instant, reaching: Reaching<S>, error: &io::Error) {
        self.short_way.heed(now, error);
        let Reaching { rule, guest_mac, client, stream, target, .. } = reaching;
        // First, so that the guest hears of one connection at a time.
        drop(target);
        self.make_room(Direction::Inbound);
        if self.io.host.adopt(self.tcp.next_token(), &stream).is_err() {
            self.ledger.refuse(FlowTransport::Tcp);
            return self.io.host.reset(stream);
        }
        let accepted = Accepted { stream, client: Some(client) };
        self.take_client(now, rule, guest_mac, accepted, 0);
    }
}

/// What a socket failed of that does not say it.
fn refused() -> io::Error {
    ErrorKind::ConnectionRefused.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_comes_back_unless_there_is_no_such_way() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        for (error, back_after) in [
            (ErrorKind::ConnectionRefused, Some(0)),
            (ErrorKind::HostUnreachable, Some(0)),
            (ErrorKind::PermissionDenied, Some(1_000)),
            (ErrorKind::TimedOut, Some(1_000)),
            (ErrorKind::Unsupported, None),
        ] {
            let mut trust = Trust::default();
            assert!(trust.is_given(at(5)));
            trust.heed(at(5), &error.into());
            if let Some(later) = back_after.filter(|later| *later > 0) {
                assert!(!trust.is_given(at(4 + later)), "{error}");
            }
            let far = at(5 + back_after.unwrap_or(1_000_000_u64));
            assert_eq!(trust.is_given(far), back_after.is_some(), "{error}");
        }
    }
}
