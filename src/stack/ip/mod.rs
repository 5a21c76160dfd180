//! IPv4 and IPv6 headers of packets from the guest: what is whole, what is a fragment, what is
//! wrong.
//!
//! Follows RFC 791, RFC 1122 §3.2.1, RFC 8200. Departs: IPv4 options are skipped, not processed (a
//! source route in particular is ignored, RFC 7126); of IPv6 extension headers, hop-by-hop,
//! destination options, a routing header with no segments left and fragment are walked, others end
//! the packet.
//!
//! Hostile input: all of it. Every length is checked against the bytes that are there.
#![forbid(unsafe_code)]

pub mod fragment;
pub mod reassembly;

use std::net::IpAddr;

use crate::base::DropReason;
use crate::stack::wire::formats::{Ipv4Packet, Ipv6Packet};

/// One IP packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub target: IpAddr,
    /// Transport protocol number, after extension headers.
    pub protocol: u8,
    /// Where in `bytes` that number stands: in the header before the payload.
    pub protocol_at: usize,
    /// TTL or hop limit, never 0.
    pub hop_limit: u8,
    /// Type of service or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The sender forbids fragmentation; always so for IPv6 (RFC 8200 §5).
    pub dont_fragment: bool,
    /// What follows the headers, without link padding.
    pub payload: &'a [u8],
    /// The whole packet, without link padding.
    pub bytes: &'a [u8],
}

/// What an IP packet turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Ready for its transport.
    Whole(Packet<'a>),
    /// A piece for reassembly; `payload` and `protocol` are not meaningful.
    Fragment(Packet<'a>),
}

/// The most IPv6 extension headers that are walked (RFC 8504 §5.3 lets a host set limits).
const MAX_EXTENSION_HEADERS: usize = 8;

/// Reads the IPv4 packet in `bytes`; link padding behind its total length is cut off.
pub fn parse_v4(bytes: &[u8]) -> Result<Parsed<'_>, DropReason> {
    let view = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::BadIpHeader)?;
    if view.version() != 4 || view.header_len() < 20 {
        return Err(DropReason::BadIpHeader);
    }
    if !view.verify_checksum() {
        return Err(DropReason::BadIpChecksum);
    }
    if view.hop_limit() == 0 {
        return Err(DropReason::HopLimit);
    }
    let bytes = &bytes[..usize::from(view.total_len())];
    let packet = Packet {
        source: view.src_addr().into(),
        target: view.dst_addr().into(),
        protocol: view.next_header().into(),
        protocol_at: 9,
        hop_limit: view.hop_limit(),
        tos: view.dscp() << 2 | view.ecn(),
        dont_fragment: view.dont_frag(),
        payload: &bytes[usize::from(view.header_len())..],
        bytes,
    };
    if view.more_frags() || view.frag_offset() != 0 {
        return Ok(Parsed::Fragment(packet));
    }
    Ok(Parsed::Whole(packet))
}

/// Reads the IPv6 packet in `bytes`; link padding behind its payload length is cut off.
pub fn parse_v6(bytes: &[u8]) -> Result<Parsed<'_>, DropReason> {
    let view = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::BadIpHeader)?;
    if view.version() != 6 {
        return Err(DropReason::BadIpHeader);
    }
    if view.hop_limit() == 0 {
        return Err(DropReason::HopLimit);
    }
    let bytes = &bytes[..view.total_len()];
    let mut packet = Packet {
        source: view.src_addr().into(),
        target: view.dst_addr().into(),
        protocol: view.next_header().into(),
        protocol_at: 6,
        hop_limit: view.hop_limit(),
        tos: view.traffic_class(),
        dont_fragment: true,
        payload: &bytes[40..],
        bytes,
    };
    for _ in 0..MAX_EXTENSION_HEADERS {
        match extension(packet.protocol, packet.payload)? {
            Extension::None => return Ok(Parsed::Whole(packet)),
            Extension::Fragment => return Ok(Parsed::Fragment(packet)),
            Extension::Skip { next, len } => {
                packet.protocol = next;
                packet.protocol_at = bytes.len() - packet.payload.len();
                packet.payload = &packet.payload[len..];
            }
        }
    }
    Err(DropReason::BadExtensionHeader)
}

enum Extension {
    None,
    Fragment,
    Skip { next: u8, len: usize },
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Judges the header of type `protocol` at the start of `bytes`.
fn extension(protocol: u8, bytes: &[u8]) -> Result<Extension, DropReason> {
    match protocol {
        HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {}
        FRAGMENT if bytes.len() < 8 => return Err(DropReason::BadExtensionHeader),
        FRAGMENT => return Ok(Extension::Fragment),
        _ => return Ok(Extension::None),
    }
    let &[next, units, _, segments_left, ..] = bytes else {
        return Err(DropReason::BadExtensionHeader);
    };
    let len = (usize::from(units) + 1) * 8;
    // RFC 5095 deprecates source routing: with segments left it would be ours to forward.
    if len > bytes.len() || (protocol == ROUTING && segments_left != 0) {
        return Err(DropReason::BadExtensionHeader);
    }
    Ok(Extension::Skip { next, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total_len: u16, frame_len: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; frame_len];
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.set_version(4);
        packet.set_header_len(20);
        packet.set_total_len(total_len);
        packet.set_hop_limit(63);
        packet.set_dscp(46);
        packet.set_dont_frag(true);
        packet.set_next_header(17.into());
        packet.set_src_addr([10, 0, 2, 100].into());
        packet.set_dst_addr([192, 0, 2, 7].into());
        packet.fill_checksum();
        bytes
    }

    #[test]
    fn padding_of_a_short_frame_is_cut_off() {
        let bytes = v4(28, 46);
        let Ok(Parsed::Whole(packet)) = parse_v4(&bytes) else { panic!("not whole") };
        assert_eq!(packet.payload.len(), 8);
        assert_eq!(packet.bytes.len(), 28);
        assert_eq!((packet.tos, packet.hop_limit, packet.protocol), (46 << 2, 63, 17));
        assert!(packet.dont_fragment);
    }

    #[test]
    fn lengths_checksums_and_hop_limits_are_checked() {
        assert_eq!(parse_v4(&v4(47, 46)), Err(DropReason::BadIpHeader));
        assert_eq!(parse_v4(&v4(19, 46)), Err(DropReason::BadIpHeader));
        let mut wrong_sum = v4(28, 46);
        wrong_sum[10] ^= 1;
        assert_eq!(parse_v4(&wrong_sum), Err(DropReason::BadIpChecksum));
        let mut dead = v4(28, 46);
        dead[8] = 0;
        Ipv4Packet::new_unchecked(&mut dead).fill_checksum();
        assert_eq!(parse_v4(&dead), Err(DropReason::HopLimit));
        let mut short_header = v4(28, 46);
        short_header[0] = 0x44;
        assert_eq!(parse_v4(&short_header), Err(DropReason::BadIpHeader));
    }

    #[test]
    fn fragments_are_told_apart() {
        let mut first = v4(28, 46);
        let mut packet = Ipv4Packet::new_unchecked(&mut first);
        packet.set_dont_frag(false);
        packet.set_more_frags(true);
        packet.fill_checksum();
        assert!(matches!(parse_v4(&first), Ok(Parsed::Fragment(_))));
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 40];
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
        packet.set_version(6);
        packet.set_payload_len(rest.len() as u16);
        packet.set_hop_limit(255);
        packet.set_next_header(next.into());
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport() {
        let mut rest = vec![DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0];
        rest.extend([17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([0xaa; 8]);
        let bytes = v6(HOP_BY_HOP, &rest);
        let Ok(Parsed::Whole(packet)) = parse_v6(&bytes) else { panic!("not whole") };
        assert_eq!((packet.protocol, packet.payload), (17, &[0xaa; 8][..]));
        // Behind the IPv6 header and the first extension, the second says what follows it.
        assert_eq!((packet.protocol_at, bytes[packet.protocol_at]), (48, 17));
    }

    #[test]
    fn bad_extension_headers_are_refused() {
        let bad = Err(DropReason::BadExtensionHeader);
        assert_eq!(parse_v6(&v6(HOP_BY_HOP, &[17, 9, 0, 0, 0, 0, 0, 0])), bad);
        assert_eq!(parse_v6(&v6(HOP_BY_HOP, &[17])), bad);
        assert_eq!(parse_v6(&v6(FRAGMENT, &[17, 0, 0])), bad);
        assert_eq!(parse_v6(&v6(ROUTING, &[17, 0, 0, 1, 0, 0, 0, 0])), bad);
        let endless = [0u8, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        assert_eq!(parse_v6(&v6(HOP_BY_HOP, &endless)), bad);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = parse_v4(&bytes);
            let _ = parse_v6(&bytes);
        }

        #[test]
        fn any_bytes_behind_a_good_first_byte_parse_without_panic(
            mut bytes in proptest::collection::vec(0u8.., 40..200),
            next in proptest::sample::select(vec![0u8, 43, 44, 60, 6, 17]),
        ) {
            bytes[0] = 0x60;
            let payload_len = (bytes.len() - 40) as u16;
            bytes[4..6].copy_from_slice(&payload_len.to_be_bytes());
            bytes[6] = next;
            let _ = parse_v6(&bytes);
        }
    }
}
