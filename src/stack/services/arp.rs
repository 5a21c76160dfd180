//! ARP (RFC 826) for the addresses that are ours on the guest link.
//!
//! Probes for one of ours are answered, which is what makes a guest give up a conflicting address
//! (RFC 5227 §2.1.1). Departs: an announcement of one of ours is reported, not fought over
//! (RFC 5227 §2.4): the guest harms only itself.

use std::net::Ipv4Addr;

use crate::base::{DropReason, Mac};
use crate::gate::AddressPlan;
use crate::stack::wire::formats::{
    ArpOperation, ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetProtocol,
};

use super::frame::{self, Link};

/// What an ARP packet says.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) sender: Ipv4Addr,
    pub(super) sender_mac: Mac,
    /// The sender gives an address of ours as its own.
    pub(super) claims_ours: bool,
    /// The address asked for, in a request.
    wanted: Option<Ipv4Addr>,
}

/// Reads an ARP packet; link padding behind it is ignored.
pub(super) fn parse(plan: &AddressPlan, arp: &[u8]) -> Result<Heard, DropReason> {
    let packet = ArpPacket::new_checked(arp).map_err(|_| DropReason::BadArp)?;
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return Err(DropReason::BadArp);
    };
    let sender_mac = Mac(mac);
    if sender_mac.is_multicast() || mac == [0; 6] {
        return Err(DropReason::BadArp);
    }
    let wanted = match operation {
        ArpOperation::Request => Some(target),
        ArpOperation::Reply => None,
        ArpOperation::Unknown(_) => return Err(DropReason::BadArp),
    };
    Ok(Heard { sender, sender_mac, claims_ours: plan.is_reserved(sender.into()), wanted })
}

impl Heard {
    /// The reply, if this asks for an address of ours.
    pub(super) fn answer(&self, plan: &AddressPlan) -> Result<Option<Vec<u8>>, DropReason> {
        match self.wanted {
            Some(wanted) if self.sender.is_unspecified() && !plan.defends(wanted.into()) => {
                Ok(None)
            }
            Some(wanted) if plan.answers_for(wanted.into()) => Ok(Some(self.reply(plan, wanted))),
            // Announcements, probes and replies are news about the guest itself.
            None => Ok(None),
            Some(wanted) if wanted == self.sender || self.sender.is_unspecified() => Ok(None),
            Some(_) => Err(DropReason::ArpNotOurs),
        }
    }

    fn reply(&self, plan: &AddressPlan, wanted: Ipv4Addr) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(plan.gateway_mac.0),
            source_protocol_addr: wanted,
            target_hardware_addr: EthernetAddress(self.sender_mac.0),
            target_protocol_addr: self.sender,
        };
        let link = Link { source: plan.gateway_mac, target: self.sender_mac };
        let mut frame = frame::ethernet(link, EthernetProtocol::Arp, repr.buffer_len());
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER_LEN..]));
        frame
    }
}
