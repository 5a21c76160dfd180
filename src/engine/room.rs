//! Room for new connections: those that only remember that they were give way.
//!
//! A connection in TIME-WAIT keeps its place for a second, without a descriptor. A guest that opens
//! and closes thousands of connections a second would so fill its table with what is over, and wait
//! for that second. So the longest in TIME-WAIT goes when there is no other room, as in any kernel
//! with too many of them; a late repetition of the guest's FIN is then answered by a reset, which
//! ends its connection as well.

use std::collections::VecDeque;

use crate::observe::Direction;
use crate::stack::tcp::State;

use super::flow_table::FlowTable;
use super::ports::{FramePort, SocketPort};
use super::tcp_flow::{TcpFlow, TcpKey};
use super::team::Member;
use super::token::Token;
use super::worker::Worker;

/// The part of all places that the workers of a team leave free where they can: for those of them
/// that have nothing to let go, such as one that has just been called.
const SPARE: usize = 64;

/// The connections that may go, by who began them, the longest in TIME-WAIT first. Some are gone
/// already, but for the first of them.
#[derive(Default)]
pub(super) struct Resting([VecDeque<Token>; 2]);

impl Resting {
    fn list(&mut self, direction: Direction) -> &mut VecDeque<Token> {
        &mut self.0[usize::from(direction == Direction::Inbound)]
    }

    pub(super) fn add(&mut self, direction: Direction, token: Token) {
        self.list(direction).push_back(token);
    }

    /// How many are on the lists, those included that are gone.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    /// Forgets those for which `lives` does not hold.
    pub(super) fn retain(&mut self, lives: impl Fn(Token) -> bool) {
        self.0.iter_mut().for_each(|list| list.retain(|&token| lives(token)));
    }

    fn first(&self, directions: &[Direction]) -> Option<Token> {
        let lists = directions.iter().map(|&d| &self.0[usize::from(d == Direction::Inbound)]);
        lists.filter_map(|list| list.front()).next().copied()
    }

    /// `flow` has been taken out of `table`. Those at the front that are gone are forgotten: so the
    /// first is always there. The others have come within the second that it has to live, unless
    /// the guest repeats its FIN and so keeps it ([`Worker::sweep_lists`]).
    pub(super) fn tidy<S: SocketPort>(
        &mut self,
        flow: &TcpFlow<S>,
        table: &FlowTable<TcpKey, TcpFlow<S>>,
    ) {
        if !flow.on_rest_list {
            return;
        }
        let list = self.list(flow.account.direction);
        while list.front().is_some_and(|token| table.get(*token).is_none()) {
            list.pop_front();
        }
        if list.is_empty() {
            *list = VecDeque::new();
        }
    }
}

/// Whether nothing is left to do for a connection but to remember it.
pub(super) fn rests<S: SocketPort>(flow: &TcpFlow<S>) -> bool {
    flow.machine.state() == State::TimeWait && !flow.machine.guest_unfinished()
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Has a connection of this worker's in TIME-WAIT give way if no new one fits, or hardly one of
    /// another worker's. That one may be in its place, so the table's next token is to be asked for
    /// afterwards.
    pub(super) fn make_room(&mut self, direction: Direction) {
        use Direction::{Inbound, Outbound};
        let shared = self.team.as_ref().and_then(Member::directory).is_some();
        let fits = |taken: usize, most: usize| {
            let spare = if shared { most / SPARE } else { 0 };
            taken < most - spare
        };
        let crowded =
            direction == Inbound && !fits(self.inbound_sockets(), self.limits.inbound_tcp_flows());
        if !crowded && fits(self.tcp_count(), self.limits.tcp_flows) {
            return;
        }
        let candidates: &[Direction] = match direction {
            Inbound if crowded => &[Inbound],
            Inbound => &[Inbound, Outbound],
            Outbound => &[Outbound, Inbound],
        };
        if let Some(token) = self.resting.first(candidates) {
            self.end_tcp(token);
        }
    }
}
