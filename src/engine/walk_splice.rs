//! Clients whose connections are spliced: their beginning, their turns, their end.
//!
//! ```text
//!   listener ready ─▶ accept ─▶ splice_way ─▶ socket on the other side connects ─▶ lanes
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::{DropReason, Instant};
use crate::gate::forward::ForwardId;
use crate::observe::{Direction, FlowTransport};
use crate::sys::datagram::Marks;

use super::ports::{FramePort, Readiness, SocketPort};
use super::published::Rule;
use super::splice::{End, Fate, Spliced};
use super::tcp_flow::TcpKey;
use super::token::{Kind, Token};
use super::worker::Worker;

/// Where a client is joined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To this server of the guest, by a socket inside.
    Inside(SocketAddr),
    /// To this server of the host.
    Outside(SocketAddr),
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Where a client at `client` of the port of `rule` is joined to; `None` if it goes by the
    /// link.
    pub(super) fn splice_way(&self, rule: &Rule, client: IpAddr) -> Option<Way> {
        match rule {
            Rule::Published(rule) if rule.guest_address.is_some() => None,
            Rule::Published(rule) => {
                let target = self.plan.splice_target(client)?;
                Some(Way::Inside(SocketAddr::new(target, rule.guest_port)))
            }
            Rule::Led(rule) => {
                let loopback: IpAddr = match client {
                    IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                Some(Way::Outside(SocketAddr::new(loopback, rule.host_port)))
            }
        }
    }

    /// Host-side sockets of connections that began outside.
    pub(super) fn inbound_sockets(&self) -> usize {
        self.inbound_tcp.in_use() + 2 * self.inbound_spliced.in_use()
    }

    /// Whether there is no room for the two sockets of one more connection.
    fn is_full_for(&self, way: Way) -> bool {
        let inbound = matches!(way, Way::Inside(_));
        let limits = &self.io.limits;
        let crowded = inbound && self.inbound_sockets() + 2 > limits.inbound_tcp_flows();
        crowded || self.lacks_room(2)
    }

    /// Whether there cannot be so many more sockets of connections.
    pub(super) fn lacks_room(&self, more: usize) -> bool {
        // Those that began inside are all of one worker, the lead.
        let spliced = self.spliced.len().max(self.inbound_spliced.in_use());
        self.tcp_count() + 2 * spliced + more > self.io.limits.tcp_flows
    }

    /// A client is there: the other side gets a connection too.
    pub(super) fn open_spliced(
        &mut self,
        now: Instant,
        forward: Option<ForwardId>,
        way: Way,
        client: SocketAddr,
        stream: S::Stream,
    ) {
        if self.is_full_for(way) {
            self.io.drop_frame(DropReason::FlowLimit);
            self.ledger.refuse(FlowTransport::Tcp);
            return self.io.host.reset(stream);
        }
        let token = self.spliced.next_token();
        let far = Token { kind: Kind::SplicedTarget, ..token };
        let host = &mut self.io.host;
        // It was accepted for the link.
        host.forget(&stream);
        let target = host.adopt(token, &stream).and_then(|()| match way {
            Way::Inside(target) => host.connect_inside(far, target),
            Way::Outside(target) => host.connect(far, target, Marks::DEFAULT),
        });
        let Ok(target) = target else {
            self.ledger.refuse(FlowTransport::Tcp);
            return self.io.host.reset(stream);
        };
        for stream in [&stream, &target] {
            // Each side has decided already what belongs together.
            self.io.host.no_delay(stream);
        }
        let (direction, guest, peer) = match way {
            Way::Inside(server) => (Direction::Inbound, server, client),
            Way::Outside(server) => (Direction::Outbound, client, server),
        };
        let account = self.ledger.open(now, FlowTransport::Tcp, direction, forward);
        let id = account.id;
        let spliced = Spliced::new(account, stream, target, guest, peer, false);
        if self.spliced.insert(id, spliced).is_some() && direction == Direction::Inbound {
            self.inbound_spliced.take(usize::MAX);
        }
    }

    /// A socket of a spliced connection reports readiness.
    pub(super) fn on_spliced(
        &mut self,
        now: Instant,
        token: Token,
        end: End,
        readiness: Readiness,
    ) {
        let token = Token { kind: Kind::Spliced, ..token };
        let Some(spliced) = self.spliced.get_mut(token) else { return };
        let fate = spliced.on_readiness(end, readiness, &mut self.io);
        self.settle_spliced(now, token, fate);
    }

    /// A spliced connection that had more to do has its turn.
    pub(super) fn run_spliced(&mut self, now: Instant, token: Token) {
        let Some(spliced) = self.spliced.get_mut(token) else { return };
        spliced.on_run_list = false;
        let fate = spliced.run(&mut self.io);
        self.settle_spliced(now, token, fate);
    }

    fn settle_spliced(&mut self, now: Instant, token: Token, fate: Fate) {
        let Some(spliced) = self.spliced.get_mut(token) else { return };
        spliced.account.last_use = now;
        match fate {
            Fate::Rests => {}
            Fate::Runs if spliced.on_run_list => {}
            Fate::Runs => {
                spliced.on_run_list = true;
                self.run_list.push_back(token);
            }
            Fate::Over | Fate::Failed => {
                let Some((_, spliced)) = self.spliced.remove(token) else { return };
                if spliced.account.direction == Direction::Inbound {
                    self.inbound_spliced.give_back();
                }
                if self.publish_path.joins() {
                    self.trail.leave(now, TcpKey::new(spliced.guest, spliced.peer));
                }
                let answered = spliced.is_connected();
                self.ledger.close(FlowTransport::Tcp, &spliced.account, answered);
                spliced.close(fate == Fate::Failed, &mut self.io);
            }
        }
    }
}
