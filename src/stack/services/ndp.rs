//! Neighbour discovery (RFC 4861 §7) for the addresses that are ours, and the validity rules of
//! all messages that a router hears.
//!
//! Solicitations from the unspecified address (duplicate address detection, RFC 4862 §5.4) are
//! answered to all nodes. Departs: no delay and no rate limit on answers, one guest hears them;
//! the guest's own reachability is not probed, frames go to it whatever it says.

use std::net::Ipv6Addr;

use crate::base::{DropReason, Mac};
use crate::gate::AddressPlan;
use crate::stack::wire::formats::{
    EthernetAddress, Icmpv6Message, Icmpv6Packet, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use super::frame::{self, Link, NDP_HOP_LIMIT};

/// ff02::1, and the MAC that frames to it carry (RFC 2464 §7).
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// A valid message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    NeighborSolicit { target: Ipv6Addr, source_mac: Option<Mac> },
    NeighborAdvert { target: Ipv6Addr, target_mac: Option<Mac> },
    RouterSolicit,
}

/// Applies RFC 4861 §6.1.1, §7.1.1 and §7.1.2.
pub(super) fn parse(
    ip_src: Ipv6Addr,
    ip_dst: Ipv6Addr,
    hop_limit: u8,
    icmp: &[u8],
) -> Result<Heard, DropReason> {
    let not_for_us =
        if ip_dst.is_multicast() { DropReason::Multicast } else { DropReason::UnhandledIcmp };
    let &[kind, code, ..] = icmp else { return Err(DropReason::BadTransportHeader) };
    // Only these three are read any further: a guest has no business advertising routes.
    if !matches!(
        Icmpv6Message::from(kind),
        Icmpv6Message::RouterSolicit
            | Icmpv6Message::NeighborSolicit
            | Icmpv6Message::NeighborAdvert
    ) {
        return Err(not_for_us);
    }
    let packet = Icmpv6Packet::new_checked(icmp).map_err(|_| DropReason::BadTransportHeader)?;
    if !packet.verify_checksum(&ip_src, &ip_dst) {
        return Err(DropReason::BadTransportChecksum);
    }
    if hop_limit != NDP_HOP_LIMIT || code != 0 || ip_src.is_multicast() {
        return Err(DropReason::BadService);
    }
    // Refuses options of length zero and options that run past the end.
    match NdiscRepr::parse(&packet).map_err(|_| DropReason::BadService)? {
        NdiscRepr::RouterSolicit { lladdr } => {
            let source_mac = link_layer(lladdr)?;
            if ip_src.is_unspecified() && source_mac.is_some() {
                return Err(DropReason::BadService);
            }
            Ok(Heard::RouterSolicit)
        }
        NdiscRepr::NeighborSolicit { target_addr: target, lladdr } => {
            let source_mac = link_layer(lladdr)?;
            let bad_probe =
                ip_src.is_unspecified() && (source_mac.is_some() || !is_solicited_node(ip_dst));
            if target.is_multicast() || bad_probe {
                return Err(DropReason::BadService);
            }
            Ok(Heard::NeighborSolicit { target, source_mac })
        }
        NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr } => {
            let target_mac = link_layer(lladdr)?;
            let solicited_to_all =
                ip_dst.is_multicast() && flags.contains(NdiscNeighborFlags::SOLICITED);
            if target.is_multicast() || solicited_to_all {
                return Err(DropReason::BadService);
            }
            Ok(Heard::NeighborAdvert { target, target_mac })
        }
        _ => Err(not_for_us),
    }
}

/// A link-layer address option as a MAC; an address of another length or a group one is refused.
fn link_layer(option: Option<RawHardwareAddress>) -> Result<Option<Mac>, DropReason> {
    let Some(raw) = option else { return Ok(None) };
    let octets = raw.as_bytes().try_into().map_err(|_| DropReason::BadService)?;
    let mac = Mac(octets);
    if mac.is_multicast() { Err(DropReason::BadService) } else { Ok(Some(mac)) }
}

/// Whether `address` is in ff02::1:ff00:0/104 (RFC 4291 §2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.octets()[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

/// The advertisement for `target`, if it is ours. `link` leads back to the solicitor.
pub(super) fn answer(
    plan: &AddressPlan,
    link: Link,
    solicitor: Ipv6Addr,
    target: Ipv6Addr,
) -> Option<Vec<u8>> {
    let ours = match solicitor.is_unspecified() {
        true => plan.defends(target.into()),
        false => plan.answers_for(target.into()),
    };
    if !ours {
        return None;
    }
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    let (link, to) = if solicitor.is_unspecified() {
        (Link { target: ALL_NODES_MAC, ..link }, ALL_NODES)
    } else {
        flags |= NdiscNeighborFlags::SOLICITED;
        (link, solicitor)
    };
    let lladdr = Some(EthernetAddress(plan.gateway_mac.0).into());
    let advert = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr };
    Some(frame::ndp(link, target, to, &advert, &[]))
}
