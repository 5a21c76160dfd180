//! The walk out: a frame from the guest, door by door, to the flow or service that it is for.

use std::net::{IpAddr, Ipv4Addr};

use crate::base::{DropReason, Instant, Mac};
use crate::gate::Destination;
use crate::stack::icmp::error::Problem;
use crate::stack::ip::reassembly::Verdict;
use crate::stack::ip::{self, Packet, Parsed};
use crate::stack::link::{self, Carried};
use crate::stack::wire::{Datagram, VNET_HEADER_LEN, VnetHeader, checksum, protocol};

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

/// DHCP's server port (RFC 2131 §4.1).
const DHCP_SERVER: u16 = 67;
/// DHCPv6's server port (RFC 8415 §7.2).
const DHCP6_SERVER: u16 = 547;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A frame as it was read from the TAP. `Err` says why it went nowhere.
    pub(super) fn on_frame(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DropReason> {
        let (vnet, frame) = if self.vnet_header {
            (VnetHeader::parse(bytes)?, &bytes[VNET_HEADER_LEN..])
        } else {
            (VnetHeader::default(), bytes)
        };
        let frame = link::from_guest(frame, self.plan.gateway_mac)?;
        let parsed = match frame.carried {
            Carried::Arp => {
                if let Some(verdict) = self.hand_to_lead(bytes, None) {
                    return verdict;
                }
                self.services.heard_from(frame.source);
                let verdict =
                    self.services.on_arp(now, frame.source, frame.payload, &mut self.answers);
                self.send_answers();
                return verdict;
            }
            Carried::Ipv4 => ip::parse_v4(frame.payload)?,
            Carried::Ipv6 => ip::parse_v6(frame.payload)?,
        };
        if !matches!(&parsed, Parsed::Whole(packet) if packet.protocol == protocol::TCP) {
            self.note_other();
        }
        if let Some(verdict) = self.hand_to_lead(bytes, Some(&parsed)) {
            return verdict;
        }
        match parsed {
            Parsed::Whole(packet) => {
                self.on_packet(now, &vnet, frame.source, frame.to_group, &packet)
            }
            Parsed::Fragment(_) if frame.to_group => Err(DropReason::Multicast),
            Parsed::Fragment(packet) => self.on_fragment(now, frame.source, &packet),
        }
    }

    /// A piece of a packet; the whole, once complete, goes on as if it had come in one frame.
    fn on_fragment(
        &mut self,
        now: Instant,
        source_mac: Mac,
        fragment: &Packet<'_>,
    ) -> Result<(), DropReason> {
        if !self.plan.source_allowed(fragment.source) {
            return Err(DropReason::ForgedSource);
        }
        let verdict = self.reassembly.on_fragment(now, fragment.bytes);
        for _ in 0..self.reassembly.take_evicted() {
            self.io.drop_frame(DropReason::FragmentLimit);
        }
        self.schedule_housekeeping();
        let whole = match verdict {
            Verdict::Hold => return Ok(()),
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Whole(bytes) => bytes,
        };
        let parsed = match fragment.source {
            IpAddr::V4(_) => ip::parse_v4(&whole)?,
            IpAddr::V6(_) => ip::parse_v6(&whole)?,
        };
        match parsed {
            // Who sends fragments allows them, also over IPv6.
            Parsed::Whole(packet) => {
                let packet = Packet { dont_fragment: false, ..packet };
                self.on_packet(now, &VnetHeader::default(), source_mac, false, &packet)
            }
            Parsed::Fragment(_) => Err(DropReason::BadFragment),
        }
    }

    pub(super) fn on_packet(
        &mut self,
        now: Instant,
        vnet: &VnetHeader,
        source_mac: Mac,
        to_group: bool,
        packet: &Packet<'_>,
    ) -> Result<(), DropReason> {
        self.check_sum(vnet, packet)?;
        if let Some(verdict) = self.on_link_service(now, source_mac, packet) {
            self.send_answers();
            self.schedule_housekeeping();
            return verdict;
        }
        if !self.plan.source_allowed(packet.source) {
            return Err(DropReason::ForgedSource);
        }
        let destination = self.plan.destination(packet.target);
        match destination {
            Destination::Link(reason) => return Err(reason),
            Destination::Martian => return Err(DropReason::MartianDestination),
            _ if to_group => return Err(DropReason::Broadcast),
            Destination::Dns if self.plan.habits.dns_is_silent && !is_icmp(packet) => {
                return Err(DropReason::MartianDestination);
            }
            _ => {}
        }
        if !self.carries(packet.protocol) {
            return Err(DropReason::UnknownProtocol);
        }
        match packet.protocol {
            protocol::TCP => self.on_tcp(now, source_mac, packet, destination),
            protocol::UDP => self.on_udp(now, vnet, source_mac, packet, destination),
            protocol::ICMP if packet.source.is_ipv4() => {
                self.on_icmp(now, source_mac, packet, destination)
            }
            protocol::ICMPV6 if packet.source.is_ipv6() => {
                self.on_icmp(now, source_mac, packet, destination)
            }
            // RFC 8200 §4.7: what follows is to be ignored.
            protocol::NO_NEXT_HEADER if packet.source.is_ipv6() => Err(DropReason::UnknownProtocol),
            _ => {
                // An offset in a packet of at most 64 KiB.
                let problem = Problem::UnknownProtocol(packet.protocol_at as u32);
                self.answer_problem(source_mac, problem, packet.bytes);
                Err(DropReason::UnknownProtocol)
            }
        }
    }

    /// Whether the protocol was not switched off.
    fn carries(&self, protocol: u8) -> bool {
        let services = self.plan.services();
        match protocol {
            protocol::TCP => services.tcp,
            protocol::UDP => services.udp,
            protocol::ICMP | protocol::ICMPV6 => services.icmp,
            _ => true,
        }
    }

    /// Transport checksums, unless the guest's kernel still owes them or vouches for them (D1).
    fn check_sum(&self, vnet: &VnetHeader, packet: &Packet<'_>) -> Result<(), DropReason> {
        if vnet.partial_checksum.is_some() || vnet.checksum_valid {
            return Ok(());
        }
        let verify = |bytes| checksum::verify(packet.source, packet.target, packet.protocol, bytes);
        let good = match packet.protocol {
            protocol::UDP => {
                let datagram = Datagram::covered(packet.payload)?;
                (packet.source.is_ipv4() && Datagram::without_checksum(datagram))
                    || verify(datagram)
            }
            protocol::TCP | protocol::ICMPV6 => verify(packet.payload),
            protocol::ICMP => checksum::fold(checksum::sum(packet.payload)) == 0xffff,
            _ => true,
        };
        if good { Ok(()) } else { Err(DropReason::BadTransportChecksum) }
    }

    /// What is for the link's own services, before any address is judged: DHCP clients have no
    /// address yet, neighbour discovery has its own rules. `None` if the packet is something else.
    fn on_link_service(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
    ) -> Option<Result<(), DropReason>> {
        let out = &mut self.answers;
        match (packet.protocol, packet.source, packet.target) {
            (protocol::UDP, IpAddr::V4(source), IpAddr::V4(target)) => {
                let datagram = Datagram::parse(packet.payload).ok()?;
                let to_us = target == Ipv4Addr::BROADCAST
                    || self.plan.v4.is_some_and(|v4| target == v4.gateway);
                if datagram.target_port != DHCP_SERVER || !to_us {
                    return None;
                }
                self.services.heard_from(source_mac);
                Some(self.services.on_dhcp4(now, source, datagram.payload, out))
            }
            (protocol::UDP, IpAddr::V6(source), IpAddr::V6(target)) => {
                let datagram = Datagram::parse(packet.payload).ok()?;
                if datagram.target_port != DHCP6_SERVER || !target.is_multicast() {
                    return None;
                }
                self.services.heard_from(source_mac);
                Some(self.services.on_dhcp6(source_mac, source, datagram.payload, out))
            }
            (protocol::ICMPV6, IpAddr::V6(source), IpAddr::V6(target)) => {
                // RFC 4861 §4: types 133 to 137.
                if !matches!(packet.payload.first(), Some(133..=137)) {
                    return None;
                }
                self.services.heard_from(source_mac);
                Some(self.services.on_ndp(
                    now,
                    source_mac,
                    source,
                    target,
                    packet.hop_limit,
                    packet.payload,
                    out,
                ))
            }
            _ => None,
        }
    }
}

/// Whether an ICMP message is in `packet`.
fn is_icmp(packet: &Packet<'_>) -> bool {
    matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
}
