//! Router advertisements (RFC 4861 §6.2): the default route, one on-link prefix for
//! autoconfiguration, MTU, resolver and search domains (RFC 8106).
//!
//! ```text
//!   start, interval over ----------> to all nodes, next one in an interval
//!   solicitation, with source -----> to that node at once
//!   solicitation, without ---------> to all nodes, but 3 s after the last one at the earliest
//!   search domains changed --------> the same, and the domains that are gone are withdrawn
//! ```
//! The default route must outlive lost advertisements and a guest that was stopped for a while, and
//! an idle guest must not be woken often: lifetimes are fifteen intervals of ten minutes.
//!
//! Departs: no random jitter and no burst at the start (§6.2.4). Both keep many routers and lossy
//! links apart and reliable; a TAP has one router and loses nothing.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::base::{Instant, Mac};
use crate::gate::{AddressPlan, Plan6};
use crate::stack::wire::formats::{
    EthernetAddress, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::frame::{self, HOP_LIMIT, Link};
use super::ndp::{ALL_NODES, ALL_NODES_MAC};
use super::search;

/// Between unsolicited advertisements. RFC 4861 §6.2.1: 4 s to 1800 s, 600 s by default.
const INTERVAL: Duration = Duration::from_secs(600);

/// Lifetime of the default route, resolver and search domains. RFC 4861 §6.2.1: at most 9000 s;
/// RFC 8106 §5.1: three intervals or more.
const LIFETIME: Duration = Duration::from_secs(9000);

/// Lifetimes of the prefix (RFC 4861 §6.2.1 AdvValidLifetime, AdvPreferredLifetime).
const PREFIX_VALID: Duration = Duration::from_secs(2_592_000);
const PREFIX_PREFERRED: Duration = Duration::from_secs(604_800);

/// RFC 4861 §10 MIN_DELAY_BETWEEN_RAS, for advertisements to all nodes.
const MIN_DELAY: Duration = Duration::from_secs(3);

/// Most octets of names in one DNSSL option, so that an advertisement with two of them fits 1280.
const MAX_SEARCH: usize = 480;

/// Most resolvers in one RDNSS option: resolv.conf(5) takes no more either.
const MAX_RESOLVERS: usize = 3;

/// Option types of RFC 8106, which smoltcp does not know.
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// What is advertised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advert<'a> {
    pub(super) plan: &'a AddressPlan,
    pub(super) v6: &'a Plan6,
    pub(super) search: &'a [String],
}

/// When advertisements go out.
#[derive(Debug)]
pub(super) struct Router {
    next: Instant,
    last_to_all: Option<Instant>,
    /// Search domains that the next advertisement to all nodes withdraws.
    withdrawn: Vec<String>,
}

impl Router {
    pub(super) fn new(now: Instant) -> Self {
        Router { next: now, last_to_all: None, withdrawn: Vec::new() }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.next
    }

    /// A valid solicitation; `unicast` is its sender, unless it came from the unspecified address.
    pub(super) fn on_solicit(
        &mut self,
        now: Instant,
        advert: &Advert<'_>,
        unicast: Option<(Ipv6Addr, Mac)>,
    ) -> Option<Vec<u8>> {
        if let Some((address, mac)) = unicast {
            return Some(advert.frame(address, mac, &[]));
        }
        self.hurry(now);
        self.on_deadline(now, advert)
    }

    /// The domains were `old` and are `new` from now on.
    pub(super) fn search_changed(&mut self, now: Instant, old: &[String], new: &[String]) {
        let gone = old.iter().filter(|domain| !self.withdrawn.contains(domain)).cloned();
        let gone: Vec<_> = gone.collect();
        self.withdrawn.extend(gone);
        self.withdrawn.retain(|domain| !new.contains(domain));
        self.hurry(now);
    }

    /// The advertisement to all nodes, if it is due.
    pub(super) fn on_deadline(&mut self, now: Instant, advert: &Advert<'_>) -> Option<Vec<u8>> {
        if now < self.next {
            return None;
        }
        self.next = now + INTERVAL;
        self.last_to_all = Some(now);
        let withdrawn = std::mem::take(&mut self.withdrawn);
        Some(advert.frame(ALL_NODES, ALL_NODES_MAC, &withdrawn))
    }

    fn hurry(&mut self, now: Instant) {
        let earliest = self.last_to_all.map_or(now, |last| now.max(last + MIN_DELAY));
        self.next = self.next.min(earliest);
    }
}

impl Advert<'_> {
    fn frame(&self, to: Ipv6Addr, mac: Mac, withdrawn: &[String]) -> Vec<u8> {
        let message = NdiscRepr::RouterAdvert {
            hop_limit: HOP_LIMIT,
            // The plan's guest address is to be had from DHCPv6, for guests that run a client.
            flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
            router_lifetime: LIFETIME.into(),
            // Zero: not specified by this router.
            reachable_time: Duration::ZERO.into(),
            retrans_time: Duration::ZERO.into(),
            lladdr: Some(EthernetAddress(self.plan.gateway_mac.0).into()),
            mtu: self.plan.services().mtu.then(|| self.plan.mtu.into()),
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: self.v6.prefix,
                flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
                valid_lifetime: PREFIX_VALID.into(),
                preferred_lifetime: PREFIX_PREFERRED.into(),
                prefix: self.v6.network(),
            }),
        };
        let mut options = Vec::new();
        put_resolvers(&self.plan.resolvers(true), &mut options);
        put_search(self.search, LIFETIME, &mut options);
        put_search(withdrawn, Duration::ZERO, &mut options);
        let link = Link { source: self.plan.gateway_mac, target: mac };
        frame::ndp(link, self.v6.gateway_link_local, to, &message, &options)
    }
}

/// Appends the RDNSS option (RFC 8106 §5.1), if there is a resolver to name.
fn put_resolvers(resolvers: &[IpAddr], options: &mut Vec<u8>) {
    let resolvers: Vec<Ipv6Addr> = resolvers
        .iter()
        .filter_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
        .take(MAX_RESOLVERS)
        .collect();
    if resolvers.is_empty() {
        return;
    }
    // At most 1 + 2 * 3.
    put_header(RDNSS, 1 + 2 * resolvers.len() as u8, LIFETIME, options);
    options.extend(resolvers.iter().flat_map(Ipv6Addr::octets));
}

/// Appends the DNSSL option (RFC 8106 §5.2), if there is a domain to name. A lifetime of zero
/// withdraws the domains.
fn put_search(domains: &[String], lifetime: Duration, options: &mut Vec<u8>) {
    let names = search::encode(domains, MAX_SEARCH);
    if names.is_empty() {
        return;
    }
    let units = 1 + names.len().div_ceil(8);
    // At most 1 + 480 / 8.
    put_header(DNSSL, units as u8, lifetime, options);
    let end = options.len() + (units - 1) * 8;
    options.extend(names);
    options.resize(end, 0);
}

/// The eight octets that both options begin with; `units` counts them and what follows by eights.
fn put_header(kind: u8, units: u8, lifetime: Duration, options: &mut Vec<u8>) {
    options.extend([kind, units, 0, 0]);
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    options.extend(seconds.to_be_bytes());
}
