//! What the control thread tells a worker, and how the worker takes it.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use socket2::Socket;

use crate::base::Instant;
use crate::gate::forward::{Exposure, ForwardId, Transport};
use crate::observe::{FlowPage, FlowQuery, Stats};

use super::host::HostSockets;
use super::ports::{FramePort, SocketPort};
use super::published::{Led, LedId, Published, Withdrawal};
use super::team::mail::Mail;
use super::walk_team::Order;
use super::worker::Worker;

/// Takes an answer to where it is awaited. Called on the worker's thread, so it must not wait.
pub struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Reply<T> {
    /// A reply that goes to `take`.
    pub fn new(take: impl FnOnce(T) + Send + 'static) -> Reply<T> {
        Reply(Box::new(take))
    }

    /// Gives the answer.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Answers that have come in, and where they go when all have.
struct Gathered<T> {
    /// By worker.
    answers: Vec<Option<T>>,
    missing: usize,
    done: Option<Reply<Vec<T>>>,
}

/// Replies of `count` workers, of which the last sends all answers to `done`, in the workers' order.
fn gather<T: Send + 'static>(count: usize, done: Reply<Vec<T>>) -> Vec<Reply<T>> {
    let answers = std::iter::repeat_with(|| None).take(count).collect();
    let gathered = Gathered { answers, missing: count, done: Some(done) };
    let gathered = Arc::new(Mutex::new(gathered));
    let reply = |worker: usize, gathered: Arc<Mutex<Gathered<T>>>| {
        Reply::new(move |answer| {
            // It is whole between calls, whoever panicked.
            let mut gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.answers[worker] = Some(answer);
            gathered.missing -= 1;
            if gathered.missing == 0
                && let Some(done) = gathered.done.take()
            {
                done.send(gathered.answers.drain(..).flatten().collect());
            }
        })
    };
    (0..count).map(|worker| reply(worker, Arc::clone(&gathered))).collect()
}

/// What the control thread tells a worker: the lead, where there are several, which passes on what
/// concerns all.
#[derive(Debug)]
pub enum Command {
    /// The DNS service's answer to the query of this number.
    DnsAnswer {
        /// The number that the query had.
        token: u64,
        /// The DNS message.
        message: Vec<u8>,
    },
    /// The search domains have changed.
    SetSearch(Vec<String>),
    /// These are the host's resolvers, whose encrypted service the guest reaches by the DNS
    /// address.
    SetResolvers(Vec<IpAddr>),
    /// Serve clients of these sockets, which listen (or are bound, for UDP) and do not block.
    Publish(Vec<(Published, OwnedFd)>),
    /// Let these ports of the gateway lead to services of the host.
    Expose(Vec<(ForwardId, Exposure)>),
    /// Serve clients of these sockets, which are the guest's: as with [`Command::Publish`].
    Lead(Vec<(Led, OwnedFd)>),
    /// Close led ports. The answer comes when their sockets are closed.
    CloseLed(Vec<LedId>, Reply<()>),
    /// Close what was published or exposed. The answer comes when the host sockets are closed.
    Withdraw(Vec<Withdrawal>, Reply<()>),
    /// Close what was published, all of it: the end has come. The answer is as of [`Self::Withdraw`].
    Retire(Reply<()>),
    /// List flows.
    Flows(FlowQuery, Reply<FlowPage>),
    /// Tell all counters.
    Stats(Reply<Stats>),
    /// The guest's command is over: pass on what it has sent, then end.
    Drain,
}

impl<F: FramePort> Worker<F, HostSockets> {
    /// A command from the control thread, with sockets of the host.
    pub(super) fn on_host_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Publish(sockets) => {
                for (rule, socket) in sockets {
                    self.publish(rule, socket);
                }
            }
            Command::Lead(sockets) => {
                for (rule, socket) in sockets {
                    self.lead(rule, socket);
                }
            }
            Command::CloseLed(ids, reply) => {
                self.close_led(now, &ids);
                reply.send(());
            }
            Command::Retire(reply) => {
                self.withdraw_all(now, Transport::Tcp);
                self.withdraw_all(now, Transport::Udp);
                reply.send(());
            }
            command => self.on_command(now, command),
        }
    }

    fn publish(&mut self, rule: Published, socket: OwnedFd) {
        let published = match rule.transport {
            Transport::Tcp => self.publish_stream(rule, Socket::from(socket)),
            Transport::Udp => self.publish_datagrams(rule, socket),
        };
        if let Err(error) = published {
            let Published { guest_port, transport, .. } = rule;
            tracing::error!(%error, "guest port {guest_port}/{transport} is not published");
        }
    }

    fn lead(&mut self, rule: Led, socket: OwnedFd) {
        let led = match rule.transport {
            Transport::Tcp => self.lead_stream(rule, Socket::from(socket)),
            Transport::Udp => self.lead_datagrams(rule, socket),
        };
        if let Err(error) = led {
            let Led { host_port, transport, .. } = rule;
            tracing::error!(%error, "nothing leads to host port {host_port}/{transport}");
        }
    }
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A command from the control thread. [`Command::Publish`] takes real sockets, which
    /// [`Worker::publish_stream`] and [`Worker::publish_datagrams`] take of any kind.
    pub fn on_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::DnsAnswer { token, message } => self.on_dns_answer(token, &message),
            Command::SetSearch(search) => {
                self.services.set_search(now, search);
                self.schedule_housekeeping();
            }
            Command::Publish(_) => {}
            Command::Drain => self.drain_team(),
            command => {
                let own = self.pass_on(command);
                self.obey(now, own);
            }
        }
    }

    /// As the lead: tells the others what concerns them too. What is left is the lead's own part.
    fn pass_on(&mut self, command: Command) -> Command {
        let Some(team) = &self.team else { return command };
        let others: Vec<_> = team.others().collect();
        if others.is_empty() {
            return command;
        }
        let count = others.len() + 1;
        let mut commands: Vec<Command> = match command {
            Command::SetResolvers(resolvers) => {
                (0..count).map(|_| Command::SetResolvers(resolvers.clone())).collect()
            }
            Command::Expose(exposures) => {
                (0..count).map(|_| Command::Expose(exposures.clone())).collect()
            }
            Command::Withdraw(withdrawals, reply) => {
                let replies = gather(count, Reply::new(|_| reply.send(())));
                let withdraw = |reply| Command::Withdraw(withdrawals.clone(), reply);
                replies.into_iter().map(withdraw).collect()
            }
            Command::Flows(query, reply) => {
                let length = query.page_length();
                let done = Reply::new(move |pages| reply.send(FlowPage::merge(pages, length)));
                let flows = |reply| Command::Flows(query.clone(), reply);
                gather(count, done).into_iter().map(flows).collect()
            }
            Command::Stats(reply) => {
                let done = Reply::new(|all| reply.send(Stats::sum(all)));
                gather(count, done).into_iter().map(Command::Stats).collect()
            }
            command => return command,
        };
        for (worker, command) in others.into_iter().zip(commands.drain(1..)) {
            team.send(worker, Mail::Command(Box::new(command)));
        }
        // There is one for each worker, so one is left.
        commands.remove(0)
    }

    /// A command that concerns every worker.
    pub(super) fn obey(&mut self, now: Instant, command: Command) {
        match command {
            Command::SetResolvers(resolvers) => self.resolvers = resolvers,
            Command::Expose(exposures) => {
                for (id, exposure) in exposures {
                    self.expose(id, exposure);
                }
            }
            Command::Withdraw(withdrawals, reply) => {
                self.withdraw(now, &withdrawals);
                reply.send(());
            }
            Command::Flows(query, reply) => reply.send(self.list_flows(now, &query)),
            Command::Stats(reply) => reply.send(self.stats(now)),
            Command::Drain => {
                // Nobody is let in any more; ports of UDP are needed for the guest's last answers.
                self.withdraw_all(now, Transport::Tcp);
                self.orders.push_back(Order::Drain);
            }
            // These are the lead's, who passes none of them on.
            Command::DnsAnswer { .. }
            | Command::SetSearch(_)
            | Command::Publish(_)
            | Command::Lead(_)
            | Command::CloseLed(..)
            | Command::Retire(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_answers_brings_them_all() {
        let (sender, answers) = std::sync::mpsc::channel();
        let mut replies = gather(3, Reply::new(move |all: Vec<u8>| sender.send(all).unwrap()));
        replies.pop().unwrap().send(1);
        replies.pop().unwrap().send(2);
        assert!(answers.try_recv().is_err());
        replies.pop().unwrap().send(3);
        assert_eq!(answers.try_recv().unwrap(), [3, 2, 1]);
    }
}
