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
//! Hostile input: all of a message. It is read two levels deep, by what it says of its lengths as
//! far as that is true, up to limits on its size and on what it asks for.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use crate::base::{DropReason, Mac};
use crate::gate::{AddressPlan, Plan6};

use super::frame::{self, Link};
use super::search;

/// Ports of clients and servers (RFC 8415 §7.2).
const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;

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

/// Types of messages (RFC 8415 §7.3).
mod message {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const DECLINE: u8 = 9;
    pub(super) const INFORMATION_REQUEST: u8 = 11;
}

/// Option codes (RFC 8415 §21, RFC 3646, RFC 4704).
mod option {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const IA_NA: u16 = 3;
    pub(super) const IA_ADDRESS: u16 = 5;
    pub(super) const PREFERENCE: u16 = 7;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const DNS_SERVERS: u16 = 23;
    pub(super) const DOMAIN_LIST: u16 = 24;
    pub(super) const IA_PD: u16 = 25;
    pub(super) const CLIENT_FQDN: u16 = 39;
}

/// Status codes (RFC 8415 §21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Success = 0,
    NoAddrsAvail = 2,
    NotOnLink = 4,
    NoPrefixAvail = 6,
}

/// Fixed parts of options that hold options: IAID, T1 and T2; address and lifetimes.
const IA_LEN: usize = 12;
const IA_ADDRESS_LEN: usize = 24;

/// RFC 8415 §11.1: a two-octet type and at most 128 octets more, of which there is at least one.
const DUID_LEN: std::ops::RangeInclusive<usize> = 3..=130;

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
        let request = Request::parse(payload)?;
        let Some(reply) = self.reply(client, &request)? else { return Ok(None) };
        let link = Link { source: self.plan.gateway_mac, target: client };
        let source = SocketAddrV6::new(self.v6.gateway_link_local, SERVER_PORT, 0, 0);
        let target = SocketAddrV6::new(ip_src, CLIENT_PORT, 0, 0);
        Ok(Some(frame::udp6(link, source, target, &reply)))
    }

    /// RFC 8415 §16 (what must be in a message) and §18.3 (what its answer is).
    fn reply(&self, client: Mac, request: &Request<'_>) -> Result<Option<Vec<u8>>, DropReason> {
        let duid = self.duid();
        if request.server_id.is_some_and(|id| id != duid) {
            return Ok(None);
        }
        let (names_itself, names_us) = (request.client_id.is_some(), request.server_id.is_some());
        let well_formed = match request.kind {
            message::SOLICIT | message::CONFIRM | message::REBIND => names_itself && !names_us,
            message::REQUEST | message::RENEW | message::RELEASE | message::DECLINE => {
                names_itself && names_us
            }
            message::INFORMATION_REQUEST => {
                request.associations.is_empty() && request.prefixes.is_empty()
            }
            _ => false,
        };
        if !well_formed {
            return Err(DropReason::BadService);
        }
        let advertises = request.kind == message::SOLICIT && !request.rapid_commit;
        let mut answer = match advertises {
            true => vec![message::ADVERTISE],
            false => vec![message::REPLY],
        };
        answer.extend(request.transaction);
        put(option::SERVER_ID, &duid, &mut answer);
        if let Some(id) = request.client_id {
            put(option::CLIENT_ID, id, &mut answer);
        }
        match request.kind {
            message::SOLICIT | message::REQUEST | message::RENEW | message::REBIND => {
                if advertises {
                    put(option::PREFERENCE, &[HIGHEST_PREFERENCE], &mut answer);
                } else if request.kind == message::SOLICIT {
                    put(option::RAPID_COMMIT, &[], &mut answer);
                }
                self.put_associations(client, request, &mut answer);
                self.put_parameters(&mut answer);
            }
            message::CONFIRM => match self.confirm(request) {
                Some(verdict) => put_status(verdict, &mut answer),
                // RFC 8415 §18.3.3: nothing to confirm, nothing to say.
                None => return Ok(None),
            },
            message::INFORMATION_REQUEST => self.put_parameters(&mut answer),
            // Release and Decline: `well_formed` leaves no other.
            _ => put_status(Status::Success, &mut answer),
        }
        Ok(Some(answer))
    }

    /// Resolver (RFC 3646) and search domains.
    fn put_parameters(&self, answer: &mut Vec<u8>) {
        let resolvers = self.plan.resolvers(true);
        let resolvers: Vec<u8> = resolvers
            .iter()
            .filter_map(
                |address| if let IpAddr::V6(v6) = address { Some(v6.octets()) } else { None },
            )
            .flatten()
            .collect();
        if !resolvers.is_empty() {
            put(option::DNS_SERVERS, &resolvers, answer);
        }
        let fqdn = self.plan.sharing.as_ref().and_then(|sharing| sharing.fqdn.as_ref());
        if let Some(name) = fqdn {
            // Nobody updates a zone: no bit is set (RFC 4704 §4.1).
            let data = [&[0][..], &search::encode(&[name], MAX_SEARCH)].concat();
            put(option::CLIENT_FQDN, &data, answer);
        }
        let names = search::encode(self.search, MAX_SEARCH);
        if !names.is_empty() {
            put(option::DOMAIN_LIST, &names, answer);
        }
    }

    /// An answer to each identity association.
    fn put_associations(&self, client: Mac, request: &Request<'_>, answer: &mut Vec<u8>) {
        let own = self.address_of(client);
        for (position, asked) in request.associations.iter().enumerate() {
            let mut association = asked.id.to_vec();
            association.extend([T1, T2].map(u32::to_be_bytes).as_flattened());
            if position == 0 {
                put_lease(own, LIFETIME, &mut association);
                // RFC 8415 §18.3.4: what the client must give up has lifetimes of zero.
                let stale = asked.addresses.iter().filter(|&&address| address != own);
                stale.for_each(|&address| put_lease(address, 0, &mut association));
            } else {
                put_status(Status::NoAddrsAvail, &mut association);
            }
            put(option::IA_NA, &association, answer);
        }
        for id in &request.prefixes {
            let mut association = id.to_vec();
            association.extend([0; 8]);
            put_status(Status::NoPrefixAvail, &mut association);
            put(option::IA_PD, &association, answer);
        }
    }

    /// Whether the addresses that the client has belong to this link.
    fn confirm(&self, request: &Request<'_>) -> Option<Status> {
        let mut all = request.associations.iter().flat_map(|asked| &asked.addresses).peekable();
        all.peek()?;
        Some(if all.all(|&address| self.v6.contains(address)) {
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

/// The parts of a client's message that matter here.
#[derive(Debug)]
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client_id: Option<&'a [u8]>,
    server_id: Option<&'a [u8]>,
    rapid_commit: bool,
    /// At most [`MAX_ITEMS`].
    associations: Vec<Association>,
    /// The identifiers of IA_PDs, as many.
    prefixes: Vec<[u8; 4]>,
}

/// An IA_NA.
#[derive(Debug)]
struct Association {
    id: [u8; 4],
    /// At most [`MAX_ITEMS`].
    addresses: Vec<Ipv6Addr>,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Result<Request<'a>, DropReason> {
        let (&[kind, t0, t1, t2], rest) = message
            .split_first_chunk()
            .filter(|_| message.len() <= MAX_MESSAGE)
            .ok_or(DropReason::BadService)?;
        let mut request = Request {
            kind,
            transaction: [t0, t1, t2],
            client_id: None,
            server_id: None,
            rapid_commit: false,
            associations: Vec::new(),
            prefixes: Vec::new(),
        };
        for option in Options(rest) {
            let (code, data) = option?;
            match code {
                option::CLIENT_ID | option::SERVER_ID if !DUID_LEN.contains(&data.len()) => {
                    return Err(DropReason::BadService);
                }
                option::CLIENT_ID => request.client_id = request.client_id.or(Some(data)),
                option::SERVER_ID => request.server_id = request.server_id.or(Some(data)),
                option::RAPID_COMMIT if data.is_empty() => request.rapid_commit = true,
                option::RAPID_COMMIT => return Err(DropReason::BadService),
                option::IA_NA => {
                    let association = Association::parse(data)?;
                    if request.associations.len() < MAX_ITEMS {
                        request.associations.push(association);
                    }
                }
                option::IA_PD => {
                    let (id, _) = association_head(data)?;
                    if request.prefixes.len() < MAX_ITEMS {
                        request.prefixes.push(id);
                    }
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

impl Association {
    fn parse(data: &[u8]) -> Result<Association, DropReason> {
        let (id, rest) = association_head(data)?;
        let mut addresses = Vec::new();
        for option in Options(rest) {
            let (code, data) = option?;
            if code == option::IA_ADDRESS {
                let fixed = data.get(..IA_ADDRESS_LEN).ok_or(DropReason::BadService)?;
                let octets: &[u8; 16] = fixed.first_chunk().ok_or(DropReason::BadService)?;
                if addresses.len() < MAX_ITEMS {
                    addresses.push(Ipv6Addr::from(*octets));
                }
            }
        }
        Ok(Association { id, addresses })
    }
}

/// The identifier of an identity association, and the options in it.
fn association_head(data: &[u8]) -> Result<([u8; 4], &[u8]), DropReason> {
    let (fixed, options) = data.split_first_chunk::<IA_LEN>().ok_or(DropReason::BadService)?;
    let [i0, i1, i2, i3, ..] = *fixed;
    Ok(([i0, i1, i2, i3], options))
}

/// Appends an option. What goes into one here is far below 64 KiB.
fn put(code: u16, data: &[u8], out: &mut Vec<u8>) {
    out.extend(code.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
}

/// Appends an address of an association, with its preferred and valid lifetime in seconds.
fn put_lease(address: Ipv6Addr, lifetime: u32, out: &mut Vec<u8>) {
    let lifetime = lifetime.to_be_bytes();
    put(option::IA_ADDRESS, &[&address.octets()[..], &lifetime, &lifetime].concat(), out);
}

/// Appends a status without words.
fn put_status(status: Status, out: &mut Vec<u8>) {
    put(option::STATUS, &(status as u16).to_be_bytes(), out);
}

/// Codes and contents of options; an error where one runs past the end.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
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

#[cfg(test)]
mod tests;
