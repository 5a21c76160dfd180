//! DHCP for IPv4 (RFC 2131, options of RFC 2132) with the gateway as its server.
//!
//! ```text
//!   DISCOVER ------------> OFFER      the client's address, held for a minute
//!   REQUEST  ------------> ACK, NAK   leased for a day; NAK if it is not the client's address
//!   INFORM   ------------> ACK        parameters alone
//!   RELEASE, DECLINE       silence
//! ```
//! The guest's own MAC gets the plan's guest address or the lease that the plan names for it,
//! always. Other MACs (containers on a bridge in the guest) get addresses from a small pool, kept
//! until the lease runs out.
//!
//! Departs: a REQUEST of a client without a record is answered, not ignored (RFC 2131 §4.3.2): no
//! other server can be on this link. Parameters are sent whether asked for or not. The client
//! identifier is returned (RFC 6842) but the MAC is what identifies a client, since frames go to
//! it.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::base::{DropReason, Instant, Mac};
use crate::gate::{AddressPlan, Plan4};
use crate::stack::wire::formats::{
    ArpHardware, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpFlags, DhcpMessageType, DhcpOpCode,
    DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
};

use super::frame::{self, Link};
use super::search;

/// How long a client keeps its address without asking again.
const LEASE: Duration = Duration::from_secs(86_400);

/// How long an offer is held for the client's REQUEST; clients repeat it within 64 s
/// (RFC 2131 §4.1).
const OFFER: Duration = Duration::from_secs(60);

/// How long an address that a client found in use is not given out.
const DECLINED: Duration = Duration::from_secs(600);

/// Addresses for clients other than the guest's own interface: their offsets in the network.
const POOL: std::ops::RangeInclusive<u32> = 15..=30;

/// Longest message that every client accepts: an IP packet of 576 bytes (RFC 2131 §2).
const MAX_MESSAGE: usize = 576 - 28;

/// BOOTP clients and relays want at least this much (RFC 1542 §2.1).
const MIN_MESSAGE: usize = 300;

/// What comes before the name of option 81 (RFC 4702 §2.1): its form is that of the wire (the E
/// bit), nobody updates a zone, and the two deprecated octets are 255.
const FQDN_HEAD: [u8; 3] = [4, 255, 255];

/// Most resolvers that the wire library puts into one option.
const MAX_RESOLVERS: usize = 3;

/// The magic cookie of RFC 2131 §3.
const COOKIE: u32 = 0x6382_5363;

/// Option codes (RFC 2132, RFC 3397, RFC 4702).
mod option {
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN_NAME: u8 = 15;
    pub(super) const INTERFACE_MTU: u8 = 26;
    pub(super) const BROADCAST_ADDRESS: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER_IDENTIFIER: u8 = 54;
    pub(super) const CLIENT_IDENTIFIER: u8 = 61;
    pub(super) const CLIENT_FQDN: u8 = 81;
    pub(super) const DOMAIN_SEARCH: u8 = 119;
}

/// What the server gives out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    pub(super) plan: &'a AddressPlan,
    pub(super) v4: &'a Plan4,
    pub(super) search: &'a [String],
}

/// Who has which address of the pool, and which are in use by somebody unknown.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// At most one per pool address.
    held: Vec<Lease>,
    /// At most one per pool address.
    declined: Vec<(Ipv4Addr, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    client: Mac,
    address: Ipv4Addr,
    expires: Instant,
}

/// The parts of a client's message that matter here.
#[derive(Debug)]
struct Request {
    kind: DhcpMessageType,
    transaction: u32,
    client: Mac,
    broadcast: bool,
    /// ciaddr, unless zero: the client uses this address already.
    current: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// At most 255 octets, returned as they came.
    client_identifier: Option<Vec<u8>>,
}

impl Leases {
    /// Answers the message in `payload`, which came from `ip_src`.
    pub(super) fn on_message(
        &mut self,
        now: Instant,
        server: &Server<'_>,
        ip_src: Ipv4Addr,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let request = Request::parse(payload)?;
        match request.kind {
            DhcpMessageType::Discover => self.on_discover(now, server, &request).map(Some),
            DhcpMessageType::Request => self.on_request(now, server, &request),
            DhcpMessageType::Inform => server.on_inform(&request, ip_src).map(Some),
            DhcpMessageType::Release => {
                self.held
                    .retain(|l| l.client != request.client || Some(l.address) != request.current);
                Ok(None)
            }
            DhcpMessageType::Decline => {
                self.on_decline(now, &request);
                Ok(None)
            }
            _ => Err(DropReason::BadService),
        }
    }

    fn on_discover(
        &mut self,
        now: Instant,
        server: &Server<'_>,
        request: &Request,
    ) -> Result<Vec<u8>, DropReason> {
        let address = self
            .assign(now, server, request.client, request.requested, OFFER)
            .ok_or(DropReason::NoLease)?;
        Ok(server.reply(DhcpMessageType::Offer, request, address))
    }

    fn on_request(
        &mut self,
        now: Instant,
        server: &Server<'_>,
        request: &Request,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        if request.server.is_some_and(|chosen| chosen != server.v4.gateway) {
            // The client took another server's offer.
            self.held.retain(|lease| lease.client != request.client);
            return Ok(None);
        }
        let wanted = request.requested.or(request.current).ok_or(DropReason::BadService)?;
        let assigned = self.assign(now, server, request.client, Some(wanted), LEASE);
        Ok(Some(if assigned == Some(wanted) {
            server.reply(DhcpMessageType::Ack, request, wanted)
        } else {
            server.refuse(request)
        }))
    }

    fn on_decline(&mut self, now: Instant, request: &Request) {
        self.declined.retain(|&(_, until)| now < until);
        let declined =
            |l: &Lease| l.client == request.client && Some(l.address) == request.requested;
        if let Some(position) = self.held.iter().position(declined) {
            let lease = self.held.remove(position);
            self.declined.push((lease.address, now + DECLINED));
        }
    }

    /// The address of `client`, from now on held for `span` at least: the one it has, the one it
    /// wants if that is free, or any free one. `None` if the pool is used up.
    fn assign(
        &mut self,
        now: Instant,
        server: &Server<'_>,
        client: Mac,
        wanted: Option<Ipv4Addr>,
        span: Duration,
    ) -> Option<Ipv4Addr> {
        // On a shared link, other addresses are other hosts'.
        if client == server.plan.guest_mac || server.plan.sharing.is_some() {
            return Some(server.own_lease());
        }
        let expires = now + span;
        if let Some(lease) = self.held.iter_mut().find(|lease| lease.client == client) {
            lease.expires = lease.expires.max(expires);
            return Some(lease.address);
        }
        self.held.retain(|lease| now < lease.expires);
        let free = |address: &Ipv4Addr| {
            self.held.iter().all(|lease| lease.address != *address)
                && self.declined.iter().all(|&(taken, until)| taken != *address || now >= until)
        };
        let wanted = wanted.filter(|wanted| server.pool().any(|a| a == *wanted) && free(wanted));
        let address = wanted.or_else(|| server.pool().find(free))?;
        self.held.push(Lease { client, address, expires });
        Some(address)
    }
}

impl Server<'_> {
    /// The address for the guest's own interface.
    fn own_lease(&self) -> Ipv4Addr {
        self.plan.habits.lease.unwrap_or(self.v4.guest)
    }

    /// Addresses that further clients may get.
    fn pool(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let network = u32::from(self.v4.network());
        POOL.map(move |offset| Ipv4Addr::from(network.saturating_add(offset))).filter(|&address| {
            address != self.v4.guest
                && address != self.own_lease()
                && self.plan.source_allowed(address.into())
                && !self.plan.host_loopback.contains(&address.into())
        })
    }

    fn on_inform(&self, request: &Request, ip_src: Ipv4Addr) -> Result<Vec<u8>, DropReason> {
        let client = request.current.unwrap_or(ip_src);
        if !self.plan.source_allowed(client.into()) {
            return Err(DropReason::BadService);
        }
        // RFC 2131 §4.3.5: no address, no lease time, sent to the client's own address.
        let message = self.message(DhcpMessageType::Ack, request, None);
        Ok(self.send(&message, request.client, client))
    }

    /// An OFFER or ACK of `address`, sent as RFC 2131 §4.1 says.
    fn reply(&self, kind: DhcpMessageType, request: &Request, address: Ipv4Addr) -> Vec<u8> {
        let message = self.message(kind, request, Some(address));
        match request.current {
            Some(current) => self.send(&message, request.client, current),
            None if request.broadcast => self.broadcast(&message),
            None => self.send(&message, request.client, address),
        }
    }

    /// A NAK. It is broadcast: the client has no address that it could be sent to.
    fn refuse(&self, request: &Request) -> Vec<u8> {
        let mut repr = self.repr(DhcpMessageType::Nak, request);
        repr.broadcast = true;
        let identifier = request.client_identifier_option();
        repr.additional_options = identifier.as_slice();
        self.broadcast(&emit(&repr))
    }

    fn message(
        &self,
        kind: DhcpMessageType,
        request: &Request,
        address: Option<Ipv4Addr>,
    ) -> Vec<u8> {
        let mut repr = self.repr(kind, request);
        repr.client_ip = request.current.unwrap_or(Ipv4Addr::UNSPECIFIED);
        repr.your_ip = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        repr.router = Some(self.v4.gateway);
        repr.subnet_mask = Some(Ipv4Addr::from(self.v4.mask()));
        let resolvers = self.plan.resolvers(false);
        let resolvers = resolvers
            .iter()
            .filter_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })
            .take(MAX_RESOLVERS);
        repr.dns_servers = (resolvers.clone().next().is_some()).then(|| resolvers.collect());
        repr.lease_duration = address.map(|_| u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX));

        let mtu = self.plan.mtu.to_be_bytes();
        let broadcast = self.v4.broadcast().octets();
        let mut options = vec![
            DhcpOption { kind: option::INTERFACE_MTU, data: &mtu },
            DhcpOption { kind: option::BROADCAST_ADDRESS, data: &broadcast },
        ];
        options.extend(request.client_identifier_option());
        // Names get what is left of a message that every client takes.
        let spare = |options: &[DhcpOption<'_>]| {
            let added: usize = options.iter().map(|option| 2 + option.data.len()).sum();
            MAX_MESSAGE.saturating_sub(repr.buffer_len() + added + 2)
        };
        let sharing = self.plan.sharing.as_ref();
        let hostname = sharing.and_then(|sharing| sharing.hostname.as_ref());
        if let Some(name) = hostname.filter(|name| name.len() <= spare(&options)) {
            options.push(DhcpOption { kind: option::HOST_NAME, data: name.as_bytes() });
        }
        let fqdn = sharing.and_then(|sharing| sharing.fqdn.as_ref());
        let fqdn = fqdn.map(|name| [&FQDN_HEAD, &search::encode(&[name], 252)[..]].concat());
        if let Some(data) = fqdn.as_ref().filter(|data| data.len() <= spare(&options)) {
            options.push(DhcpOption { kind: option::CLIENT_FQDN, data });
        }
        // The first of the domains is the domain name, all are the search list.
        let room = spare(&options);
        if let Some(domain) = search::first(self.search).filter(|domain| domain.len() <= room) {
            options.push(DhcpOption { kind: option::DOMAIN_NAME, data: domain.as_bytes() });
        }
        let names = search::encode(self.search, spare(&options).min(255));
        if !names.is_empty() {
            options.push(DhcpOption { kind: option::DOMAIN_SEARCH, data: &names });
        }
        repr.additional_options = &options;
        emit(&repr)
    }

    /// What all messages of the server have in common.
    fn repr(&self, kind: DhcpMessageType, request: &Request) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type: kind,
            transaction_id: request.transaction,
            secs: 0,
            client_hardware_address: EthernetAddress(request.client.0),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(self.v4.gateway),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    fn broadcast(&self, message: &[u8]) -> Vec<u8> {
        self.send(message, Mac::BROADCAST, Ipv4Addr::BROADCAST)
    }

    fn send(&self, message: &[u8], mac: Mac, address: Ipv4Addr) -> Vec<u8> {
        let link = Link { source: self.plan.gateway_mac, target: mac };
        let source = SocketAddrV4::new(self.v4.gateway, DHCP_SERVER_PORT);
        frame::udp4(link, source, SocketAddrV4::new(address, DHCP_CLIENT_PORT), message)
    }
}

fn emit(repr: &DhcpRepr<'_>) -> Vec<u8> {
    let mut message = vec![0; repr.buffer_len().max(MIN_MESSAGE)];
    let written = repr.emit(&mut DhcpPacket::new_unchecked(&mut message[..]));
    debug_assert!(written.is_ok(), "buffer_len counts every option, none exceeds 255 octets");
    message
}

impl Request {
    fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let packet = DhcpPacket::new_checked(payload).map_err(|_| DropReason::BadService)?;
        let EthernetAddress(mac) = packet.client_hardware_address();
        let client = Mac(mac);
        let well_formed = packet.opcode() == DhcpOpCode::Request
            && packet.hardware_type() == ArpHardware::Ethernet
            && packet.hardware_len() == 6
            && packet.magic_number() == COOKIE
            // There is no relay agent between a guest and us.
            && packet.relay_agent_ip().is_unspecified()
            && !client.is_multicast()
            && mac != [0; 6];
        if !well_formed {
            return Err(DropReason::BadService);
        }
        let mut request = Request {
            kind: DhcpMessageType::Unknown(0),
            transaction: packet.transaction_id(),
            client,
            broadcast: packet.flags().contains(DhcpFlags::BROADCAST),
            current: Some(packet.client_ip()).filter(|address| !address.is_unspecified()),
            requested: None,
            server: None,
            client_identifier: None,
        };
        for DhcpOption { kind, data } in packet.options() {
            match (kind, data) {
                (option::MESSAGE_TYPE, &[kind]) => request.kind = kind.into(),
                (option::REQUESTED_ADDRESS, &[a, b, c, d]) => {
                    request.requested = Some([a, b, c, d].into());
                }
                (option::SERVER_IDENTIFIER, &[a, b, c, d]) => {
                    request.server = Some([a, b, c, d].into());
                }
                (option::CLIENT_IDENTIFIER, data) => {
                    request.client_identifier = Some(data.to_vec());
                }
                _ => {}
            }
        }
        Ok(request)
    }

    fn client_identifier_option(&self) -> Option<DhcpOption<'_>> {
        let data = self.client_identifier.as_deref()?;
        Some(DhcpOption { kind: option::CLIENT_IDENTIFIER, data })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::plan;
    use super::*;
    use crate::gate::Sharing;

    /// The answer to a client that looks for a server.
    fn offer(plan: &AddressPlan) -> Vec<u8> {
        let v4 = plan.v4.unwrap();
        let server = Server { plan, v4: &v4, search: &[] };
        let client = Request {
            kind: DhcpMessageType::Discover,
            transaction: 7,
            client: plan.guest_mac,
            broadcast: true,
            current: None,
            requested: None,
            server: None,
            client_identifier: None,
        };
        let asked = emit(&DhcpRepr {
            server_identifier: None,
            ..server.repr(DhcpMessageType::Discover, &client)
        });
        let asked = [&[1], &asked[1..]].concat();
        let answer =
            Leases::default().on_message(Instant::ZERO, &server, Ipv4Addr::UNSPECIFIED, &asked);
        answer.unwrap().unwrap()
    }

    fn has(message: &[u8], option: &[u8]) -> bool {
        message.windows(option.len()).any(|window| window == option)
    }

    #[test]
    fn names_are_told_as_rfc_2132_and_rfc_4702_have_them() {
        let sharing = |hostname: &str, fqdn: &str| Sharing {
            hostname: Some(hostname.to_owned()),
            fqdn: Some(fqdn.to_owned()),
            ..Sharing::default()
        };
        let named = AddressPlan { sharing: Some(sharing("box7", "box7.example.org")), ..plan() };
        let message = offer(&named);
        assert!(has(&message, b"\x0c\x04box7"));
        // Flags, two octets of 255, and the name in the form of RFC 1035 §3.1.
        assert!(has(&message, b"\x51\x15\x04\xff\xff\x04box7\x07example\x03org\x00"));
        // Names that would not fit in a message that every client takes are left out.
        let long = ["a"; 120].join(".");
        let message = offer(&AddressPlan { sharing: Some(sharing(&long, &long)), ..plan() });
        assert!(has(&message, long.as_bytes()));
        assert!(message.len() <= 14 + 576, "{}", message.len());
        assert!(!has(&offer(&plan()), b"box7"));
    }
}
