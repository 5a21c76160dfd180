//! DHCPv6 (RFC 8415) with one address for each client, and no state.
//!
//! ```text
//!   SOLICIT                    ADVERTISE, or REPLY with rapid commit     address, resolver, domains
//!   REQUEST, RENEW, REBIND     REPLY                                     the same
//!   CONFIRM                    REPLY: are these addresses on this link?
//!   RELEASE, DECLINE           REPLY: success
//!   INFORMATION-REQUEST        REPLY                                     resolver, domains
//! ```
//! The guest's own MAC gets the plan's guest address; any other gets an address that holds its
//! MAC. So there is no lease to keep, none to exhaust, and nothing for a release or decline to
//! change. Only the first IA_NA of a message gets the address; there are no prefixes to delegate.
//!
//! Departs: messages sent to our unicast address are answered like those to ff02::1:2, where
//! RFC 8415 §18.4 wants UseMulticast.
//!
//! Hostile input: dhcproto decodes options inside options without a limit on depth and subtracts
//! from lengths before it checks them, so [`screen`] goes first: it lets pass only the options
//! that are used here, with lengths that are right, two levels deep, of a message of bounded size.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use dhcproto::v6::{
    CLIENT_PORT, DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, OptionCode,
    SERVER_PORT, Status, StatusCode, UnknownOption,
};
use dhcproto::{Decodable, Encodable};

use crate::base::{DropReason, Mac};
use crate::gate::{AddressPlan, Plan6};

use super::frame::{self, Link};
use super::search;

/// Preferred and valid lifetime of an address, and when to renew and rebind (RFC 8415 §21.4
/// advises 0.5 and 0.8 of it), in seconds.
const LIFETIME: u32 = 86_400;
const T1: u32 = LIFETIME / 2;
const T2: u32 = LIFETIME / 5 * 4;

/// Ends a client's wait for better servers at once (RFC 8415 §18.2.1).
const HIGHEST_PREFERENCE: u8 = 255;

/// Most octets of search domains in a reply, so that it fits 1280 with everything else.
const MAX_SEARCH: usize = 480;

/// Longest message that is read. A client's message has no reason to be fragmented.
const MAX_MESSAGE: usize = 1500;

/// Most identity associations of one kind, and most addresses in one, that are read.
const MAX_ITEMS: usize = 4;

/// What the server gives out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server<'a> {
    pub(super) plan: &'a AddressPlan,
    pub(super) v6: &'a Plan6,
    pub(super) search: &'a [String],
}

impl Server<'_> {
    /// The frame that answers the message in `payload` from `ip_src` at `client`.
    pub(super) fn answer(
        &self,
        client: Mac,
        ip_src: Ipv6Addr,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        // RFC 8415 §17: a client sends from a link-local address.
        if !ip_src.is_unicast_link_local() || client.is_multicast() {
            return Err(DropReason::BadService);
        }
        let request = Message::from_bytes(&screen(payload)?).map_err(|_| DropReason::BadService)?;
        let Some(reply) = self.reply(client, &request)? else { return Ok(None) };
        let message = reply.to_vec().map_err(|_| DropReason::BadService)?;
        let link = Link { source: self.plan.gateway_mac, target: client };
        let source = SocketAddrV6::new(self.v6.gateway_link_local, SERVER_PORT, 0, 0);
        let target = SocketAddrV6::new(ip_src, CLIENT_PORT, 0, 0);
        Ok(Some(frame::udp6(link, source, target, &message)))
    }

    /// RFC 8415 §16 (what must be in a message) and §18.3 (what its answer is).
    fn reply(&self, client: Mac, request: &Message) -> Result<Option<Message>, DropReason> {
        let options = request.opts();
        let client_id = options.get(OptionCode::ClientId);
        let server_id = match options.get(OptionCode::ServerId) {
            Some(DhcpOption::ServerId(id)) if *id != self.duid() => return Ok(None),
            id => id,
        };
        let well_formed = match request.msg_type() {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                client_id.is_some() && server_id.is_none()
            }
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => client_id.is_some() && server_id.is_some(),
            MessageType::InformationRequest => {
                options.get(OptionCode::IANA).is_none() && options.get(OptionCode::IAPD).is_none()
            }
            _ => false,
        };
        if !well_formed {
            return Err(DropReason::BadService);
        }
        let mut kind = MessageType::Reply;
        let mut answer = DhcpOptions::new();
        match request.msg_type() {
            MessageType::Solicit => {
                if options.get(OptionCode::RapidCommit).is_some() {
                    answer.insert(DhcpOption::RapidCommit);
                } else {
                    kind = MessageType::Advertise;
                    answer.insert(DhcpOption::Preference(HIGHEST_PREFERENCE));
                }
                self.put_parameters(&mut answer);
                self.put_associations(client, options, &mut answer);
            }
            MessageType::Request | MessageType::Renew | MessageType::Rebind => {
                self.put_parameters(&mut answer);
                self.put_associations(client, options, &mut answer);
            }
            MessageType::Confirm => match self.confirm(options) {
                Some(verdict) => answer.insert(status(verdict)),
                // RFC 8415 §18.3.3: nothing to confirm, nothing to say.
                None => return Ok(None),
            },
            MessageType::InformationRequest => self.put_parameters(&mut answer),
            // Release and Decline: `well_formed` leaves no other.
            _ => answer.insert(status(Status::Success)),
        }
        answer.insert(DhcpOption::ServerId(self.duid()));
        if let Some(id) = client_id {
            answer.insert(id.clone());
        }
        // Made from the request, since `Message::new` asks the system for random numbers.
        let mut reply = request.clone();
        reply.set_msg_type(kind).set_opts(answer);
        Ok(Some(reply))
    }

    /// Resolver (RFC 3646) and search domains.
    fn put_parameters(&self, answer: &mut DhcpOptions) {
        let resolvers = self.plan.resolvers(true);
        let resolvers: Vec<Ipv6Addr> = resolvers
            .iter()
            .filter_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
            .collect();
        if !resolvers.is_empty() {
            answer.insert(DhcpOption::DomainNameServers(resolvers));
        }
        let fqdn = self.plan.sharing.as_ref().and_then(|sharing| sharing.fqdn.as_ref());
        if let Some(name) = fqdn {
            // Nobody updates a zone: no bit is set (RFC 4704 §4.1).
            let data = [&[0][..], &search::encode(&[name], MAX_SEARCH)].concat();
            let option = UnknownOption::new(OptionCode::ClientFqdn, data);
            answer.insert(DhcpOption::Unknown(option));
        }
        let names = search::encode(self.search, MAX_SEARCH);
        if !names.is_empty() {
            let option = UnknownOption::new(OptionCode::DomainSearchList, names);
            answer.insert(DhcpOption::Unknown(option));
        }
    }

    /// An answer to each identity association.
    fn put_associations(&self, client: Mac, options: &DhcpOptions, answer: &mut DhcpOptions) {
        let own = self.address_of(client);
        for (position, asked) in associations(options).enumerate() {
            let mut opts = DhcpOptions::new();
            if position == 0 {
                opts.insert(lease(own, LIFETIME));
                // RFC 8415 §18.3.4: what the client must give up has lifetimes of zero.
                let stale = addresses(asked).filter(|&address| address != own);
                stale.for_each(|address| opts.insert(lease(address, 0)));
            } else {
                opts.insert(status(Status::NoAddrsAvail));
            }
            answer.insert(DhcpOption::IANA(IANA { id: asked.id, t1: T1, t2: T2, opts }));
        }
        for option in options.get_all(OptionCode::IAPD).unwrap_or_default() {
            if let DhcpOption::IAPD(asked) = option {
                let opts = DhcpOptions::from_iter([status(Status::NoPrefixAvail)]);
                answer.insert(DhcpOption::IAPD(IAPD { id: asked.id, t1: 0, t2: 0, opts }));
            }
        }
    }

    /// Whether the addresses that the client has belong to this link.
    fn confirm(&self, options: &DhcpOptions) -> Option<Status> {
        let mut all = associations(options).flat_map(addresses).peekable();
        all.peek()?;
        Some(if all.all(|address| self.v6.contains(address)) {
            Status::Success
        } else {
            Status::NotOnLink
        })
    }

    /// The one address of a client. The interface identifier of a further client is 00d6 (which
    /// no identifier in the plan begins with) and its MAC.
    fn address_of(&self, client: Mac) -> Ipv6Addr {
        // On a shared link, other addresses are other hosts'.
        if client == self.plan.guest_mac || self.plan.sharing.is_some() {
            return self.v6.guest;
        }
        let mut octets = self.v6.network().octets();
        octets[9] = 0xd6;
        octets[10..].copy_from_slice(&client.0);
        octets.into()
    }

    /// A DUID made of the gateway's MAC: DUID-LL, Ethernet (RFC 8415 §11.4).
    fn duid(&self) -> Vec<u8> {
        [&[0, 3, 0, 1], &self.plan.gateway_mac.0[..]].concat()
    }
}

fn associations(options: &DhcpOptions) -> impl Iterator<Item = &IANA> {
    options.iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    })
}

fn addresses(association: &IANA) -> impl Iterator<Item = Ipv6Addr> + '_ {
    association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some(address.addr),
        _ => None,
    })
}

fn lease(addr: Ipv6Addr, lifetime: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: lifetime,
        valid_life: lifetime,
        opts: DhcpOptions::new(),
    })
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

/// Option codes that pass [`screen`] (RFC 8415 §21).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const RAPID_COMMIT: u16 = 14;
const IA_PD: u16 = 25;

/// Fixed parts of options that hold options.
const IA_LEN: usize = 12;
const IA_ADDRESS_LEN: usize = 24;

/// RFC 8415 §11.1: a two-octet type and at most 128 octets more, of which there is at least one.
const DUID_LEN: std::ops::RangeInclusive<usize> = 3..=130;

/// The message with only the options that are safe to decode and used here.
fn screen(message: &[u8]) -> Result<Vec<u8>, DropReason> {
    if message.len() > MAX_MESSAGE {
        return Err(DropReason::BadService);
    }
    let (header, rest) = message.split_at_checked(4).ok_or(DropReason::BadService)?;
    let mut safe = header.to_vec();
    let (mut ia_nas, mut ia_pds) = (0, 0);
    for option in RawOptions(rest) {
        let (code, data) = option?;
        match code {
            CLIENT_ID | SERVER_ID if DUID_LEN.contains(&data.len()) => put(code, data, &mut safe),
            RAPID_COMMIT if data.is_empty() => put(code, data, &mut safe),
            IA_NA if data.len() >= IA_LEN => {
                ia_nas += 1;
                if ia_nas <= MAX_ITEMS {
                    put(code, &screen_association(data)?, &mut safe);
                }
            }
            IA_PD if data.len() >= IA_LEN => {
                ia_pds += 1;
                if ia_pds <= MAX_ITEMS {
                    put(code, &data[..IA_LEN], &mut safe);
                }
            }
            CLIENT_ID | SERVER_ID | RAPID_COMMIT | IA_NA | IA_PD => {
                return Err(DropReason::BadService);
            }
            _ => {}
        }
    }
    Ok(safe)
}

/// An IA_NA with its addresses and nothing else. `data` holds at least its fixed part.
fn screen_association(data: &[u8]) -> Result<Vec<u8>, DropReason> {
    let (fixed, rest) = data.split_at(IA_LEN);
    let mut safe = fixed.to_vec();
    let mut kept = 0;
    for option in RawOptions(rest) {
        let (code, data) = option?;
        if code == IA_ADDRESS {
            let address = data.get(..IA_ADDRESS_LEN).ok_or(DropReason::BadService)?;
            kept += 1;
            if kept <= MAX_ITEMS {
                put(code, address, &mut safe);
            }
        }
    }
    Ok(safe)
}

fn put(code: u16, data: &[u8], safe: &mut Vec<u8>) {
    safe.extend(code.to_be_bytes());
    // Part of a message of at most MAX_MESSAGE octets.
    safe.extend((data.len() as u16).to_be_bytes());
    safe.extend(data);
}

/// Codes and contents of options; an error where one runs past the end.
struct RawOptions<'a>(&'a [u8]);

impl<'a> Iterator for RawOptions<'a> {
    type Item = Result<(u16, &'a [u8]), DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let option = self.0.split_first_chunk().and_then(|(&[c0, c1, l0, l1], rest)| {
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            let (data, rest) = rest.split_at_checked(len)?;
            Some((u16::from_be_bytes([c0, c1]), data, rest))
        });
        match option {
            Some((code, data, rest)) => {
                self.0 = rest;
                Some(Ok((code, data)))
            }
            None => {
                self.0 = &[];
                Some(Err(DropReason::BadService))
            }
        }
    }
}
