//! The end of a guest whose link another guest may take: nothing of the one is left to the other.
//!
//! Published ports stay open. Connections are reset, unless the guest had ended its direction and
//! all of it was passed on; a client that waits in the queue of a listening socket meets the next
//! guest.

use crate::base::Instant;
use crate::stack::ip::reassembly::Reassembly;
use crate::stack::tcp::State;

use super::ports::{FramePort, SocketPort};
use super::syn_backlog::SynBacklog;
use super::tcp_flow::TcpFlow;
use super::token::Token;
use super::worker::Worker;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Ends all flows, and forgets what the guest has told of itself.
    pub(super) fn forget_guest(&mut self, now: Instant) {
        // What it sent last is still sent on, as on any network.
        self.flush_datagrams();
        let finished = |flow: &TcpFlow<S>| {
            !flow.machine.guest_unfinished() && flow.machine.state() != State::SynSent
        };
        let flows = self.tcp.iter().map(|(token, _, flow)| (token, finished(flow)));
        let flows: Vec<(Token, bool)> = flows.collect();
        for (token, finished) in flows {
            if !finished {
                self.with_tcp(token, |flow, io, actions| flow.abort_silently(io, actions));
            }
            // Where the host has everything, it also sends everything.
            self.end_tcp(token);
        }
        let mappings: Vec<Token> =
            self.udp.iter().chain(self.echo.iter()).map(|(token, ..)| token).collect();
        for token in mappings {
            self.end_mapping(token);
        }
        let sessions: Vec<Token> = self.sessions.iter().map(|(token, ..)| token).collect();
        for token in sessions {
            self.end_session(token);
        }
        self.syn_backlog = SynBacklog::default();
        self.dns_queries.forget();
        self.reassembly = Reassembly::new();
        self.services.forget_guest(now);
        self.schedule_housekeeping();
    }
}
