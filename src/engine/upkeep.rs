//! What a worker does by the clock: the timers of flows and services, and giving memory back.

use std::time::Duration;

use crate::base::{DropReason, Instant};

use super::ports::{FramePort, SocketPort};
use super::team::Member;
use super::token::{Kind, Token};
use super::worker::Worker;

/// Free slabs are given back this long after the first of them became free for good.
const TRIM_AFTER: Duration = Duration::from_secs(2);

/// Entries, beside two for each flow, from which on the wheel or a list is rid of those that nobody
/// waits for.
const SPARE_ENTRIES: usize = 4096;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    pub(super) fn run_timers(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(now, &mut due);
        for token in due.drain(..) {
            match token.kind {
                Kind::Tcp => {
                    self.with_tcp(token, |flow, io, actions| {
                        flow.wheel_entry = flow.wheel_entry.filter(|entry| *entry > now);
                        if flow.machine.next_deadline().is_some_and(|deadline| deadline <= now) {
                            flow.on_deadline(now, io, actions);
                        }
                    });
                }
                Kind::Housekeeping => self.keep_house(now),
                Kind::Udp | Kind::Echo => self.on_mapping_deadline(now, token),
                Kind::Session => self.on_session_deadline(now, token),
                Kind::Listener => self.resume_accepting(now, token),
                Kind::Team => self.review_team(now),
                Kind::Relayed => self.on_relay_deadline(now, token),
                Kind::Reaching => self.on_reach_deadline(now, token),
                Kind::Tap
                | Kind::Commands
                | Kind::DatagramPort
                | Kind::Mail
                | Kind::Spliced
                | Kind::SplicedTarget
                | Kind::Load => {}
            }
        }
        self.due = due;
        self.flush_acknowledgments(false);
        self.sweep_timers();
        self.sweep_lists();
    }

    /// Entries of flows that are gone, or that look at a later time again, must not pile up: a
    /// keep-alive entry stands for two hours. Filling the wheel anew costs as much as the entries
    /// that it rids us of.
    fn sweep_timers(&mut self) {
        if self.wheel.len() <= 2 * self.flow_count() + SPARE_ENTRIES {
            return;
        }
        self.wheel.clear();
        self.housekeeping_entry = None;
        self.schedule_housekeeping();
        let tokens: Vec<Token> = self.tcp.iter().map(|(token, ..)| token).collect();
        for token in tokens {
            let Some(flow) = self.tcp.get_mut(token) else { continue };
            flow.wheel_entry = flow.machine.next_deadline();
            if let Some(deadline) = flow.wheel_entry {
                self.wheel.insert(deadline, token);
            }
        }
        for table in [&mut self.udp, &mut self.echo] {
            let tokens: Vec<Token> = table.iter().map(|(token, ..)| token).collect();
            for token in tokens {
                let Some(flow) = table.get_mut(token) else { continue };
                let deadline = flow.mapping.deadline();
                flow.wheel_entry = Some(deadline);
                self.wheel.insert(deadline, token);
            }
        }
        let tokens: Vec<Token> = self.sessions.iter().map(|(token, ..)| token).collect();
        for token in tokens {
            let Some(session) = self.sessions.get_mut(token) else { continue };
            session.wheel_entry = None;
            self.settle_session(token);
        }
        let tokens: Vec<Token> = self.relayed.iter().map(|(token, ..)| token).collect();
        for token in tokens {
            let Some(relayed) = self.relayed.get_mut(token) else { continue };
            relayed.wheel_entry = None;
            self.settle_relay(token);
        }
        if let Some(at) = self.team.as_ref().and_then(|team| team.lead.review_at) {
            self.wheel.insert(at, Token::only(Kind::Team));
        }
        for (token, _, reaching) in self.reaching.iter() {
            self.wheel.insert(reaching.until, token);
        }
        for (token, _, listener) in self.listeners.iter() {
            if let Some(at) = listener.retry_at {
                self.wheel.insert(at, token);
            }
        }
    }

    /// Flows that are gone must not pile up on lists either while nothing is taken off them. The
    /// guest decides how long that is: it holds every slab, takes no frames, or has the connection
    /// stay in TIME-WAIT for which others are kept in mind.
    pub(super) fn sweep_lists(&mut self) {
        let sockets = self.listeners.len() + self.datagram_ports.len();
        let most = 2 * (self.flow_count() + sockets) + SPARE_ENTRIES;
        if self.read_list.len() > most {
            self.read_list.retain(|&token| self.tcp.get(token).is_some());
        }
        if self.resting.len() > most {
            self.resting.retain(|token| self.tcp.get(token).is_some());
        }
        if self.run_list.len() > most {
            let mut list = std::mem::take(&mut self.run_list);
            list.retain(|&token| self.is_runnable(token));
            self.run_list = list;
        }
    }

    /// Whether what was put on the list of those that have more to do is still there.
    fn is_runnable(&self, token: Token) -> bool {
        match token.kind {
            Kind::Listener => self.listeners.get(token).is_some(),
            Kind::DatagramPort => self.datagram_ports.get(token).is_some(),
            Kind::Spliced => self.spliced.get(token).is_some(),
            Kind::Relayed => self.relayed.get(token).is_some(),
            Kind::Udp => self.udp.get(token).is_some(),
            Kind::Echo => self.echo.get(token).is_some(),
            _ => false,
        }
    }

    /// Timers of the services.
    fn keep_house(&mut self, now: Instant) {
        self.housekeeping_entry = None;
        if self.services_deadline().is_some_and(|deadline| deadline <= now) {
            self.services.on_deadline(now, &mut self.answers);
            self.send_answers();
        }
        let mut first_fragments = Vec::new();
        for _ in 0..self.reassembly.on_deadline(now, &mut first_fragments) {
            self.io.drop_frame(DropReason::FragmentTimeout);
        }
        for first in first_fragments {
            self.answer_reassembly_timeout(&first);
        }
        self.schedule_housekeeping();
    }

    /// When a service has something to do; they are the lead's alone.
    fn services_deadline(&self) -> Option<Instant> {
        let leads = self.team.as_ref().is_none_or(Member::is_lead);
        leads.then(|| self.services.next_deadline()).flatten()
    }

    /// Makes sure that the wheel holds an entry for the earliest of the housekeeping deadlines.
    pub(super) fn schedule_housekeeping(&mut self) {
        let deadlines = [self.services_deadline(), self.reassembly.next_deadline()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return };
        if self.housekeeping_entry.is_none_or(|entry| deadline < entry) {
            self.housekeeping_entry = Some(deadline);
            self.wheel.insert(deadline, Token::only(Kind::Housekeeping));
        }
    }

    /// Gives slabs back some time after the last use.
    pub(super) fn trim(&mut self, now: Instant) {
        match self.trim_at {
            Some(at) if at <= now => {
                self.io.pool.trim();
                self.io.pipes.trim();
                self.batch.release();
                self.batch_used = false;
                self.outbox.release();
                self.reading.release();
                self.trim_at = None;
            }
            None if self.io.pool.can_trim()
                || self.io.pipes.can_trim()
                || self.batch_used
                || self.outbox.can_release()
                || self.reading.can_release() =>
            {
                self.trim_at = Some(now + TRIM_AFTER)
            }
            _ => {}
        }
    }
}
