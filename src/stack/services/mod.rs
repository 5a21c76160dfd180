//! What tapway itself answers on the guest link: address resolution, router discovery, DHCP, echo.
//!
//! ```text
//!   ARP, neighbour solicitation   for our addresses         -> reply, advertisement   arp, ndp
//!   router solicitation, timer    one /64, DNS, MTU         -> router advertisement   router
//!   DHCP, DHCPv6                  the plan's guest address  -> lease                  dhcp4, dhcp6
//!   echo request                  to gateway or DNS address -> echo reply             echo
//! ```
//! One [`Services`] per guest owns the little state there is: which MAC has which guest address,
//! the leases of further clients behind a bridge in the guest, and when the next router
//! advertisement is due. The guest's own address is never in doubt: the address plan says it.
//!
//! An answer is a complete Ethernet frame with all checksums in place, appended to the caller's
//! `out`; silence is `Ok(())` with nothing appended. Nothing here forwards: multicast that is not
//! neighbour discovery (mDNS, IGMP, MLD) is dropped.
//!
//! Follows RFC 826, RFC 5227 (the answering side), RFC 4861, RFC 8106, RFC 2131, RFC 8415; each
//! file says where it departs. Hostile input: everything, all of it comes from the guest. Every
//! table has a bound, and no message is answered by more than one frame.
#![forbid(unsafe_code)]

mod arp;
mod dhcp4;
mod dhcp6;
mod echo;
#[cfg(test)]
mod fixture;
mod frame;
mod ndp;
mod neighbours;
mod router;
mod search;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::base::{DropReason, Instant, Mac};
use crate::gate::AddressPlan;

use self::dhcp4::Leases;
use self::frame::Link;
use self::neighbours::Neighbours;
use self::router::Router;

/// The services of one guest link.
#[derive(Debug)]
pub struct Services {
    plan: AddressPlan,
    search: Vec<String>,
    neighbours: Neighbours,
    router: Router,
    leases: Leases,
    /// When the log last said that the guest claims an address of ours.
    claim_reported: Option<Instant>,
}

/// How often the log may say that the guest claims an address of ours: the guest can provoke it.
const CLAIM_REPORT_INTERVAL: Duration = Duration::from_secs(60);

impl Services {
    /// The services for `plan`; the first router advertisement is due at `now`.
    pub fn new(plan: AddressPlan, now: Instant) -> Self {
        Services {
            search: plan.search.clone(),
            neighbours: Neighbours::new(&plan),
            router: Router::new(now),
            leases: Leases::default(),
            claim_reported: None,
            plan,
        }
    }

    /// Replaces the search domains. Router advertisements say so soon, and withdraw the domains
    /// that are gone; DHCP clients learn it with their next renewal.
    pub fn set_search(&mut self, now: Instant, search: Vec<String>) {
        if search != self.search {
            self.router.search_changed(now, &self.search, &search);
            self.search = search;
        }
    }

    /// The guest is gone, and another one may come: what it told of itself is forgotten, and router
    /// advertisements begin anew.
    pub fn forget_guest(&mut self, now: Instant) {
        let search = std::mem::take(&mut self.search);
        *self = Services { search, ..Services::new(self.plan.clone(), now) };
    }

    /// A message for the link itself came from `mac`: that is the guest's, where nobody knew it.
    pub fn heard_from(&mut self, mac: Mac) {
        self.neighbours.suppose(mac);
    }

    /// The MAC that answers for a guest-side address: learned from ARP and neighbour discovery,
    /// for the plan's own guest addresses known from the start.
    pub fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        self.neighbours.get(address)
    }

    /// An ARP packet (`arp` is the frame's payload) in a frame from `frame_src`.
    pub fn on_arp(
        &mut self,
        now: Instant,
        frame_src: Mac,
        arp: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), DropReason> {
        let heard = arp::parse(&self.plan, arp)?;
        if heard.claims_ours {
            self.report_claim(now, frame_src, heard.sender.into());
            return Err(DropReason::ForgedSource);
        }
        self.neighbours.learn(&self.plan, heard.sender.into(), heard.sender_mac);
        out.extend(heard.answer(&self.plan)?);
        Ok(())
    }

    /// An ICMPv6 message for the link itself: neighbour and router discovery, in a frame from
    /// `frame_src`. `icmp` begins with the ICMPv6 type.
    #[expect(clippy::too_many_arguments, reason = "the fields of three headers, as they came")]
    pub fn on_ndp(
        &mut self,
        now: Instant,
        frame_src: Mac,
        ip_src: Ipv6Addr,
        ip_dst: Ipv6Addr,
        hop_limit: u8,
        icmp: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), DropReason> {
        let v6 = self.plan.v6.ok_or(DropReason::UnhandledIcmp)?;
        let link = Link { source: self.plan.gateway_mac, target: frame_src };
        match ndp::parse(ip_src, ip_dst, hop_limit, icmp)? {
            ndp::Heard::NeighborSolicit { target, source_mac } => {
                if let Some(mac) = source_mac {
                    if self.plan.is_reserved(ip_src.into()) {
                        self.report_claim(now, frame_src, ip_src.into());
                        return Err(DropReason::ForgedSource);
                    }
                    self.neighbours.learn(&self.plan, ip_src.into(), mac);
                }
                out.extend(ndp::answer(&self.plan, link, ip_src, target));
            }
            ndp::Heard::NeighborAdvert { target, target_mac } => {
                if self.plan.is_reserved(target.into()) {
                    self.report_claim(now, frame_src, target.into());
                    return Err(DropReason::ForgedSource);
                }
                if let Some(mac) = target_mac {
                    self.neighbours.learn(&self.plan, target.into(), mac);
                }
            }
            ndp::Heard::RouterSolicit if !self.plan.services().routers => {}
            ndp::Heard::RouterSolicit => {
                let advert = router::Advert { plan: &self.plan, v6: &v6, search: &self.search };
                let unicast = (!ip_src.is_unspecified()).then_some((ip_src, frame_src));
                out.extend(self.router.on_solicit(now, &advert, unicast));
            }
        }
        Ok(())
    }

    /// The payload of a datagram to port 67, from `ip_src`.
    pub fn on_dhcp4(
        &mut self,
        now: Instant,
        ip_src: Ipv4Addr,
        udp_payload: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), DropReason> {
        let serves = self.plan.services().dhcp4;
        let v4 = self.plan.v4.filter(|_| serves).ok_or(DropReason::Broadcast)?;
        let server = dhcp4::Server { plan: &self.plan, v4: &v4, search: &self.search };
        out.extend(self.leases.on_message(now, &server, ip_src, udp_payload)?);
        Ok(())
    }

    /// The payload of a datagram to port 547, from `ip_src`, in a frame from `frame_src`.
    pub fn on_dhcp6(
        &mut self,
        frame_src: Mac,
        ip_src: Ipv6Addr,
        udp_payload: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), DropReason> {
        let serves = self.plan.services().dhcp6;
        let v6 = self.plan.v6.filter(|_| serves).ok_or(DropReason::Multicast)?;
        let server = dhcp6::Server { plan: &self.plan, v6: &v6, search: &self.search };
        out.extend(server.answer(frame_src, ip_src, udp_payload)?);
        Ok(())
    }

    /// The answer to `packet`, a whole IP packet with an echo request to the gateway or the DNS
    /// address. It is an IP packet, not a frame, and may exceed the MTU: the caller fragments it.
    pub fn on_echo(&self, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
        echo::answer(&self.plan, packet)
    }

    /// Sends what is due at `now`.
    pub fn on_deadline(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        if let Some(v6) = self.plan.v6.as_ref().filter(|_| self.plan.services().routers) {
            let advert = router::Advert { plan: &self.plan, v6, search: &self.search };
            out.extend(self.router.on_deadline(now, &advert));
        }
    }

    /// When [`Services::on_deadline`] wants to be called; `None` without router advertisements.
    pub fn next_deadline(&self) -> Option<Instant> {
        let advertises = self.plan.v6.is_some() && self.plan.services().routers;
        advertises.then(|| self.router.next_deadline())
    }

    fn report_claim(&mut self, now: Instant, claimant: Mac, address: IpAddr) {
        if self.claim_reported.is_none_or(|at| now.since(at) >= CLAIM_REPORT_INTERVAL) {
            self.claim_reported = Some(now);
            tracing::warn!(%address, %claimant, "the guest claims an address of the gateway");
        }
    }
}

#[cfg(test)]
mod tests;
