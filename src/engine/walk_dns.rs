//! Queries to the DNS address: out to the DNS service by number, back to whoever asked.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::base::{DropReason, Mac};
use crate::stack::wire::{Addresses, HEADROOM, UdpHeader};

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

/// Queries that may be under way; the oldest is forgotten for a new one.
const PENDING: usize = 1024;

/// The port of DNS over TLS and over QUIC (RFC 7858 §3.1, RFC 9250 §4.1.1).
const SECURE_PORT: u16 = 853;

/// Who asked.
#[derive(Clone, Copy, Debug)]
struct Asker {
    token: u64,
    guest: SocketAddr,
    guest_mac: Mac,
    server: SocketAddr,
}

/// The queries that the DNS service has not answered.
#[derive(Debug, Default)]
pub(super) struct PendingQueries {
    /// In the order of their numbers.
    askers: VecDeque<Asker>,
    next_token: u64,
}

impl PendingQueries {
    fn add(&mut self, guest: SocketAddr, guest_mac: Mac, server: SocketAddr) -> u64 {
        if self.askers.len() >= PENDING {
            self.askers.pop_front();
        }
        let token = self.next_token;
        self.next_token += 1;
        self.askers.push_back(Asker { token, guest, guest_mac, server });
        token
    }

    /// Forgets all of them: their answers go nowhere.
    pub(super) fn forget(&mut self) {
        self.askers.clear();
    }

    fn take(&mut self, token: u64) -> Option<Asker> {
        let position = self.askers.binary_search_by_key(&token, |asker| asker.token).ok()?;
        self.askers.remove(position)
    }
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// The host's resolver that is meant by `peer`, the DNS address, at the port of encrypted DNS
    /// (RFC 7858, RFC 9250): its sessions are between the guest and the resolver, so they are
    /// passed on as they are.
    pub(super) fn secure_resolver(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let family = |address: &&IpAddr| address.is_ipv6() == peer.is_ipv6();
        let resolver = self.resolvers.iter().find(family).filter(|_| peer.port() == SECURE_PORT)?;
        Some(SocketAddr::new(*resolver, SECURE_PORT))
    }

    /// A datagram from the guest to port 53 of the DNS address.
    pub(super) fn on_dns_query(
        &mut self,
        guest: SocketAddr,
        guest_mac: Mac,
        server: SocketAddr,
        query: &[u8],
    ) -> Result<(), DropReason> {
        let token = self.dns_queries.add(guest, guest_mac, server);
        if self.io.host.ask_dns(token, query) {
            Ok(())
        } else {
            self.dns_queries.take(token);
            Err(DropReason::HostResources)
        }
    }

    /// The DNS service has answered the query of this number.
    pub(super) fn on_dns_answer(&mut self, token: u64, message: &[u8]) {
        let Some(asker) = self.dns_queries.take(token) else { return };
        // RFC 768 and RFC 791: what one datagram can carry.
        if message.len() > 65_507 {
            return self.io.drop_frame(DropReason::TooBig);
        }
        let mut buffer = vec![0; HEADROOM + message.len()];
        buffer[HEADROOM..].copy_from_slice(message);
        let addresses = Addresses {
            gateway_mac: self.io.gateway_mac,
            guest_mac: asker.guest_mac,
            peer: asker.server,
            guest: asker.guest,
        };
        let header =
            UdpHeader { tos: 0, hop_limit: 64, ident: 0, dont_fragment: true, segment_size: None };
        let mtu = usize::from(self.plan.mtu);
        self.send_datagram(&mut buffer, message.len(), &addresses, &header, mtu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_asker_once_and_old_queries_are_forgotten() {
        let mut pending = PendingQueries::default();
        let server = "10.0.2.3:53".parse().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let first = pending.add("10.0.2.100:1000".parse().unwrap(), mac, server);
        let second = pending.add("10.0.2.100:1001".parse().unwrap(), mac, server);
        assert_eq!(pending.take(second).unwrap().guest.port(), 1001);
        assert!(pending.take(second).is_none());
        for _ in 0..PENDING {
            pending.add("10.0.2.100:9".parse().unwrap(), mac, server);
        }
        assert!(pending.take(first).is_none());
        assert_eq!(pending.askers.len(), PENDING);
    }
}
