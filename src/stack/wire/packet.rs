//! Whole IP packets that tapway makes itself: ICMP errors, echo replies. Rare and small next to the
//! data path, so they are summed in full and copied.

use std::net::IpAddr;

use super::formats::{IpProtocol, Ipv4Packet, Ipv6Packet};
use super::{checksum, protocol};

/// Length of an IPv4 header without options.
const IPV4_HEADER_LEN: usize = 20;
/// Length of an IPv6 header.
const IPV6_HEADER_LEN: usize = 40;

/// The header fields of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub target: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// A packet with `transport` behind its header; `None` if the families differ or it is too long.
/// `claimed_len` is what the header says of the transport's length: more than there is for the
/// quotation of a packet that was longer.
pub fn packet(header: &IpHeader, transport: &[u8], claimed_len: usize) -> Option<Vec<u8>> {
    let mut bytes;
    match (header.source, header.target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            bytes = vec![0; IPV4_HEADER_LEN];
            let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
            ip.set_version(4);
            // A constant that fits its field.
            ip.set_header_len(IPV4_HEADER_LEN as u8);
            ip.set_dscp(header.tos >> 2);
            ip.set_ecn(header.tos & 3);
            ip.set_total_len(u16::try_from(IPV4_HEADER_LEN + claimed_len).ok()?);
            ip.set_hop_limit(header.hop_limit);
            ip.set_next_header(IpProtocol::from(header.protocol));
            ip.set_src_addr(source);
            ip.set_dst_addr(target);
            ip.fill_checksum();
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            bytes = vec![0; IPV6_HEADER_LEN];
            let mut ip = Ipv6Packet::new_unchecked(&mut bytes);
            ip.set_version(6);
            ip.set_traffic_class(header.tos);
            ip.set_payload_len(u16::try_from(claimed_len).ok()?);
            ip.set_next_header(IpProtocol::from(header.protocol));
            ip.set_hop_limit(header.hop_limit);
            ip.set_src_addr(source);
            ip.set_dst_addr(target);
        }
        _ => return None,
    }
    bytes.extend_from_slice(transport);
    Some(bytes)
}

/// Fills the checksum of an ICMP or ICMPv6 message, which begins with its type.
pub fn fill_icmp_checksum(message: &mut [u8], source: IpAddr, target: IpAddr) {
    if message.len() < 4 {
        return;
    }
    message[2..4].fill(0);
    let pseudo = match source {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => {
            let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
            checksum::pseudo_header(source, target, protocol::ICMPV6, len)
        }
    };
    let sum = !checksum::fold(pseudo + checksum::sum(message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}
