//! What the control thread tells a worker, and how the worker takes it.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use socket2::Socket;

use crate::base::Instant;
use crate::gate::forward::{Exposure, ForwardId, Transport};
use crate::observe::{FlowPage, FlowQuery, Stats};

use super::host::HostSockets;
use super::ports::FramePort;
use super::published::{Led, LedId, Published, Withdrawal};
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

/// What the control thread tells a worker.
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
    /// List flows.
    Flows(FlowQuery, Reply<FlowPage>),
    /// Tell all counters.
    Stats(Reply<Stats>),
    /// The guest's command is over: pass on what it has sent, then end.
    Drain,
}

impl<F: FramePort> Worker<F, HostSockets> {
    /// A command from the control thread.
    pub fn on_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::DnsAnswer { token, message } => self.on_dns_answer(token, &message),
            Command::SetSearch(search) => {
                self.services.set_search(now, search);
                self.schedule_housekeeping();
            }
            Command::SetResolvers(resolvers) => self.resolvers = resolvers,
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
            // The loop around the worker sees to it.
            Command::Drain => {}
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
