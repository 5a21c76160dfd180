//! The short way in: clients of published ports whose connections need no frame on the guest's
//! link, although the guest sees their addresses (D8 b).
//!
//! ```text
//!   accept ─▶ gate::inbound ─▶ trail ─▶ socket inside, bound to what the guest sees as the client
//!     connected ─▶ spliced        refused, late, impossible ─▶ the walk in, by the link
//! ```
//! Nothing may differ for the guest or the client, so whatever does not succeed here is tried by
//! the link, before a byte of the client's is read: a port where nobody listens may still lead
//! somewhere by the guest's own rules, and if not, the guest's answer by the link is the one that
//! counts. [`super::short_way`] makes the connection; `setup::short_way` tells what the guest's
//! namespace does for it.
//!
//! It costs less for a byte and more for a connection, by some ten system calls. Clients from
//! elsewhere are served as fast by the link, where the kernel does a part of the work on another
//! processor; those on the host itself are not. So these go the short way unless the user wants it
//! otherwise ([`PublishPath`]), and not by thousands a minute ([`super::trail`]).
//!
//! Whoever comes back from the same port while the guest's end of its last connection is in
//! TIME-WAIT has to come by the same way. The [`Trail`](super::trail::Trail) tells who went the
//! short way: such a client goes it again, or by the link under another port. Nothing has to be
//! known of those who went by the link: if the guest's end does not take the new connection for a
//! newer one, it says so by the link, is reset there, and is gone when we try [`AGAIN`].
//!
//! The guest can take the means away at any time. Its answers then go to the link, where they
//! belong to nobody and are reset, and ours waits for them: for [`PATIENCE`]. After that the short
//! way is not trusted until the next look at the guest's namespace ([`Trust`]), which tells a guest
//! that has taken the means away from a server that is slow to accept.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{Instant, Mac};
use crate::gate::PublishPath;
use crate::observe::{Direction, FlowTransport};

use super::ports::{Accepted, FramePort, Reached, Readiness, SocketPort};
use super::published::Published;
use super::splice::Spliced;
use super::tcp_flow::TcpKey;
use super::team::Member;
use super::token::{Kind, Token};
use super::trail::Step;
use super::worker::Worker;

/// How long a connection inside may take, of which both ends are on this machine. A queue of a
/// listening socket that is full takes longer, and is waited for by the link.
const PATIENCE: Duration = Duration::from_millis(200);

/// When a connection inside is tried anew: loopback has answered long ago, unless what the first
/// met was the end of an older connection.
const AGAIN: Duration = Duration::from_millis(10);

/// Clients at a time that wait so: others go by the link meanwhile.
pub(super) const MAX_REACHING: usize = 64;

/// A client who is to go the short way.
struct Walker<S: SocketPort> {
    rule: Published,
    guest_mac: Option<Mac>,
    client: SocketAddr,
    stream: S::Stream,
    /// The first port under which it may be seen if it goes by the link.
    port: u32,
    /// It is tried for the second time, which is the last.
    again: bool,
}

/// A client whose connection inside is on its way.
pub(super) struct Reaching<S: SocketPort> {
    walker: Walker<S>,
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
        let Some((client, ends)) = client
            .filter(|_| self.publish_path.joins() && self.plan.has_link())
            .and_then(|client| Some((client, self.short_ends(rule, client)?)))
        else {
            return by_the_link(stream, 0);
        };
        let port = if self.trail.is_known(now, &ends) { OTHER_PORT } else { 0 };
        let passable = self.is_for_short_way(client, &stream)
            && self.short_way.is_given(now)
            && !self.reaching.is_full()
            && !self.spliced.is_full()
            && !self.lacks_room_for_two()
            && !self.is_taken(&ends);
        if !passable {
            return by_the_link(stream, port);
        }
        match self.trail.enter(now, ends) {
            Step::Taken => {}
            Step::Busy => return by_the_link(stream, OTHER_PORT),
            Step::Full => return by_the_link(stream, port),
        }
        let walker = Walker { rule, guest_mac, client, stream, port, again: false };
        let (walker, error) = self.reach(now, ends, walker).err()?;
        self.trail.turn_back(now, &ends);
        let port = self.port_after(&walker, &error);
        self.short_way.heed(now, &error);
        by_the_link(walker.stream, port)
    }

    /// Whether a client is one of those who are to go the short way.
    fn is_for_short_way(&mut self, client: SocketAddr, stream: &S::Stream) -> bool {
        match self.publish_path {
            PublishPath::Tap => false,
            PublishPath::Short => true,
            // Whoever speaks to an address of its own gets that address for itself, if it has not
            // chosen another.
            PublishPath::Auto => {
                let same = |own: SocketAddr| own.ip() == client.ip();
                client.ip().is_loopback() || self.io.host.addressed(stream).is_some_and(same)
            }
        }
    }

    /// The ends of a client's connection as the guest sees them.
    fn short_ends(&self, rule: Published, client: SocketAddr) -> Option<TcpKey> {
        let ends = self.plan.inbound(Some(client.ip()), rule.guest_address)?;
        let guest = SocketAddr::new(ends.guest, rule.guest_port);
        Some(TcpKey::new(guest, SocketAddr::new(ends.client, client.port())))
    }

    /// Whether there is a connection by the link between these ends, or another client on its way.
    fn is_taken(&self, ends: &TcpKey) -> bool {
        let directory = self.team.as_ref().and_then(Member::directory);
        self.tcp.find(ends).is_some()
            || self.reaching.find(ends).is_some()
            || directory.is_some_and(|directory| directory.owner(ends).is_some())
    }

    /// Begins a client's connection inside. A client who cannot have one comes back.
    fn reach(
        &mut self,
        now: Instant,
        ends: TcpKey,
        walker: Walker<S>,
    ) -> Result<(), (Walker<S>, io::Error)> {
        let host = &mut self.io.host;
        let Reached { stream: target, connected } =
            match host.connect_as(now, ends.peer(), ends.guest()) {
                Ok(reached) => reached,
                Err(error) => return Err((walker, error)),
            };
        if !connected && let Err(error) = host.adopt(self.reaching.next_token(), &target) {
            return Err((walker, error));
        }
        if !walker.again {
            // It was accepted for the link.
            host.forget(&walker.stream);
        }
        if connected {
            self.begin_short(now, ends, walker, target);
            return Ok(());
        }
        let until = now + if walker.again { PATIENCE } else { AGAIN };
        if let Some(token) = self.reaching.insert(ends, Reaching { walker, target, until }) {
            self.wheel.insert(until, token);
        }
        Ok(())
    }

    /// Whether there is no room for the two sockets of one more client.
    fn lacks_room_for_two(&self) -> bool {
        let more = 2 * (self.reaching.len() + 1);
        let most = self.limits.inbound_tcp_flows();
        self.inbound_sockets() + more > most || self.lacks_room(more)
    }

    /// The guest has answered: the client's connection and the one inside become one.
    fn begin_short(&mut self, now: Instant, ends: TcpKey, walker: Walker<S>, target: S::Stream) {
        let Walker { rule, stream, .. } = walker;
        let token = self.spliced.next_token();
        let host = &mut self.io.host;
        let far = Token { kind: Kind::SplicedTarget, ..token };
        if host.adopt(token, &stream).and_then(|()| host.adopt(far, &target)).is_err() {
            // No memory for another event: as if the host had lost the connection.
            self.trail.leave(now, ends);
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
        let Some((ends, Reaching { walker, target, .. })) = self.reaching.remove(token) else {
            return;
        };
        match error {
            None => {
                self.io.host.forget(&target);
                self.begin_short(now, ends, walker, target);
            }
            Some(error) => {
                // First, so that the guest hears of one connection at a time.
                drop(target);
                self.give_up(now, ends, walker, &error);
            }
        }
    }

    /// A connection inside has not come about for long enough.
    pub(super) fn on_reach_deadline(&mut self, now: Instant, token: Token) {
        // An entry of one that had the same token is none of ours.
        if self.reaching.get(token).is_none_or(|reaching| reaching.until > now) {
            return;
        }
        let Some((ends, Reaching { walker, target, .. })) = self.reaching.remove(token) else {
            return;
        };
        if self.io.host.stream_facts(&target).peer.is_some() {
            // It has come about, and we are late to hear of it.
            self.io.host.forget(&target);
            return self.begin_short(now, ends, walker, target);
        }
        drop(target);
        let failed = match walker.again {
            true => Err((walker, ErrorKind::TimedOut.into())),
            false => self.reach(now, ends, Walker { again: true, ..walker }),
        };
        if let Err((walker, error)) = failed {
            tracing::debug!(guest = %ends.guest(), %error, "no answer on the short way");
            self.give_up(now, ends, walker, &error);
        }
    }

    /// The first port for a client who goes by the link after this.
    fn port_after(&self, walker: &Walker<S>, error: &io::Error) -> u32 {
        match error.kind() {
            // Another client has its port, as a client of another published port.
            ErrorKind::AddrNotAvailable => OTHER_PORT,
            _ => walker.port,
        }
    }

    /// A client whose stream is not watched goes by the link after all.
    fn give_up(&mut self, now: Instant, ends: TcpKey, walker: Walker<S>, error: &io::Error) {
        self.short_way.heed(now, error);
        match error.kind() {
            ErrorKind::TimedOut => self.trail.leave(now, ends),
            _ => self.trail.turn_back(now, &ends),
        }
        let port = self.port_after(&walker, error);
        let Walker { rule, guest_mac, client, stream, .. } = walker;
        self.make_room(Direction::Inbound);
        if self.io.host.adopt(self.tcp.next_token(), &stream).is_err() {
            self.ledger.refuse(FlowTransport::Tcp);
            return self.io.host.reset(stream);
        }
        let accepted = Accepted { stream, client: Some(client) };
        self.take_client(now, rule, guest_mac, accepted, port);
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
