//! Fragmentation of packets towards the guest that are larger than its MTU: long datagrams.
//!
//! Follows RFC 791 §2.3 and RFC 8200 §4.5. The packets are tapway's own, so they have no IPv4
//! options and no IPv6 extension headers; others are refused. Checksums of the transport must be
//! complete: they cover the whole packet, and no offload does that across fragments.

use crate::base::DropReason;
use crate::stack::wire::formats::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet,
};

/// Length of the IPv6 fragment header.
const FRAGMENT_HEADER_LEN: usize = 8;

/// Appends to `out` the fragments of the IP packet `packet`, each at most `mtu` bytes, or the
/// packet itself if it fits. `ident` tells the fragments of one packet from those of another
/// between the same two addresses; IPv4 has room for its low 16 bits.
///
/// # Errors
/// [`DropReason::TooBig`] if it may not be fragmented (DF) or `mtu` leaves no room for eight bytes
/// of payload; [`DropReason::BadIpHeader`] or [`DropReason::BadExtensionHeader`] if it is not a
/// plain packet, or is a fragment itself.
pub fn fragment(
    packet: &[u8],
    mtu: usize,
    ident: u32,
    out: &mut Vec<Vec<u8>>,
) -> Result<(), DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => fragment_v4(packet, mtu, ident, out),
        Some(6) => fragment_v6(packet, mtu, ident, out),
        _ => Err(DropReason::BadIpHeader),
    }
}

fn fragment_v4(
    packet: &[u8],
    mtu: usize,
    ident: u32,
    out: &mut Vec<Vec<u8>>,
) -> Result<(), DropReason> {
    let view = Ipv4Packet::new_checked(packet).map_err(|_| DropReason::BadIpHeader)?;
    let packet = &packet[..usize::from(view.total_len())];
    if packet.len() <= mtu {
        out.push(packet.to_vec());
        return Ok(());
    }
    let is_plain = usize::from(view.header_len()) == IPV4_HEADER_LEN
        && !view.more_frags()
        && view.frag_offset() == 0;
    if !is_plain {
        return Err(DropReason::BadIpHeader);
    }
    if view.dont_frag() {
        return Err(DropReason::TooBig);
    }
    let (header, payload) = packet.split_at(IPV4_HEADER_LEN);
    let room = room(mtu, IPV4_HEADER_LEN)?;
    for (position, piece) in payload.chunks(room).enumerate() {
        let offset = position * room;
        let mut fragment = Vec::with_capacity(IPV4_HEADER_LEN + piece.len());
        fragment.extend(header);
        fragment.extend(piece);
        let mut view = Ipv4Packet::new_unchecked(&mut fragment[..]);
        // Length and offset are less than the packet's length, which is a u16.
        view.set_total_len((IPV4_HEADER_LEN + piece.len()) as u16);
        view.set_ident(ident as u16);
        view.set_more_frags(offset + piece.len() < payload.len());
        view.set_frag_offset(offset as u16);
        view.fill_checksum();
        out.push(fragment);
    }
    Ok(())
}

fn fragment_v6(
    packet: &[u8],
    mtu: usize,
    ident: u32,
    out: &mut Vec<Vec<u8>>,
) -> Result<(), DropReason> {
    let view = Ipv6Packet::new_checked(packet).map_err(|_| DropReason::BadIpHeader)?;
    let packet = &packet[..view.total_len()];
    if packet.len() <= mtu {
        out.push(packet.to_vec());
        return Ok(());
    }
    let protocol = view.next_header();
    if !matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmpv6) {
        return Err(DropReason::BadExtensionHeader);
    }
    let (header, payload) = packet.split_at(IPV6_HEADER_LEN);
    let room = room(mtu, IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN)?;
    for (position, piece) in payload.chunks(room).enumerate() {
        let offset = position * room;
        let mut fragment = Vec::with_capacity(IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN + piece.len());
        fragment.extend(header);
        // Next header, a reserved octet, and the six that the view below covers.
        fragment.extend([protocol.into(), 0, 0, 0, 0, 0, 0, 0]);
        fragment.extend(piece);
        let mut view = Ipv6Packet::new_unchecked(&mut fragment[..]);
        // At most the MTU; were that larger than a u16, the packet would have fitted it.
        view.set_payload_len((FRAGMENT_HEADER_LEN + piece.len()) as u16);
        view.set_next_header(IpProtocol::Ipv6Frag);
        let field = &mut fragment[IPV6_HEADER_LEN + 2..][..FRAGMENT_HEADER_LEN - 2];
        let mut view = Ipv6FragmentHeader::new_unchecked(field);
        // Counted in units of eight bytes, `room` being a multiple of them.
        view.set_frag_offset((offset / 8) as u16);
        view.set_more_frags(offset + piece.len() < payload.len());
        view.set_ident(ident);
        out.push(fragment);
    }
    Ok(())
}

/// Payload bytes of a fragment that is not the last: a multiple of eight.
fn room(mtu: usize, headers: usize) -> Result<usize, DropReason> {
    match mtu.saturating_sub(headers) & !7 {
        0 => Err(DropReason::TooBig),
        room => Ok(room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Instant;
    use crate::stack::ip::reassembly::{Reassembly, Verdict};
    use proptest::prelude::*;

    /// A UDP packet from 192.0.2.7 (or 2001:db8::7) whose payload bytes all differ from their
    /// neighbours.
    fn packet(v6: bool, payload_len: usize) -> Vec<u8> {
        let payload = (0..payload_len).map(|n| (n % 251) as u8);
        if v6 {
            let mut packet = vec![0; 40];
            packet.extend(payload);
            let mut view = Ipv6Packet::new_unchecked(&mut packet[..]);
            view.set_version(6);
            view.set_traffic_class(0xb8);
            view.set_payload_len(payload_len as u16);
            view.set_next_header(IpProtocol::Udp);
            view.set_hop_limit(57);
            view.set_src_addr("2001:db8::7".parse().unwrap());
            view.set_dst_addr("fd74:6170:7761:79::100".parse().unwrap());
            packet
        } else {
            let mut packet = vec![0; 20];
            packet.extend(payload);
            let mut view = Ipv4Packet::new_unchecked(&mut packet[..]);
            view.set_version(4);
            view.set_header_len(20);
            view.set_dscp(46);
            view.set_total_len(20 + payload_len as u16);
            view.set_next_header(IpProtocol::Udp);
            view.set_hop_limit(57);
            view.set_src_addr([192, 0, 2, 7].into());
            view.set_dst_addr([10, 0, 2, 100].into());
            view.fill_checksum();
            packet
        }
    }

    #[test]
    fn v4_fragments_have_the_fields_of_rfc_791() {
        let mut out = Vec::new();
        fragment(&packet(false, 3000), 1500, 0xabcd_1234, &mut out).unwrap();
        let fields: Vec<_> = out
            .iter()
            .map(|fragment| {
                let view = Ipv4Packet::new_checked(&fragment[..]).unwrap();
                assert!(view.verify_checksum() && !view.dont_frag());
                assert_eq!((view.ident(), view.dscp(), view.hop_limit()), (0x1234, 46, 57));
                (view.total_len(), view.frag_offset(), view.more_frags())
            })
            .collect();
        assert_eq!(fields, [(1500, 0, true), (1500, 1480, true), (60, 2960, false)]);
    }

    #[test]
    fn v6_fragments_have_the_fields_of_rfc_8200() {
        let mut out = Vec::new();
        fragment(&packet(true, 3000), 1500, 0xabcd_1234, &mut out).unwrap();
        // 1448 = (1500 - 40 - 8) rounded down to eights; offsets are in eights, shifted by three.
        let headers: Vec<_> =
            out.iter().map(|fragment| (&fragment[..8], &fragment[40..48])).collect();
        assert_eq!(headers[0].0, [0x6b, 0x80, 0, 0, 0x05, 0xb0, 44, 57]);
        assert_eq!(headers[0].1, [17, 0, 0x00, 0x01, 0xab, 0xcd, 0x12, 0x34]);
        assert_eq!(headers[1].1, [17, 0, 0x05, 0xa9, 0xab, 0xcd, 0x12, 0x34]);
        assert_eq!(headers[2].0, [0x6b, 0x80, 0, 0, 0x00, 0x70, 44, 57]);
        assert_eq!(headers[2].1, [17, 0, 0x0b, 0x50, 0xab, 0xcd, 0x12, 0x34]);
        assert_eq!(out.len(), 3);
    }

    #[test]
    fn what_fits_stays_whole_and_what_must_not_be_split_is_refused() {
        let mut out = Vec::new();
        let small = packet(false, 1480);
        fragment(&small, 1500, 1, &mut out).unwrap();
        assert_eq!(out, [small]);
        let mut rigid = packet(false, 1481);
        Ipv4Packet::new_unchecked(&mut rigid[..]).set_dont_frag(true);
        assert_eq!(fragment(&rigid, 1500, 1, &mut out), Err(DropReason::TooBig));
        assert_eq!(fragment(&packet(true, 99), 55, 1, &mut out), Err(DropReason::TooBig));
        let mut extended = packet(true, 1481);
        extended[6] = 0;
        let refused = fragment(&extended, 1500, 1, &mut out);
        assert_eq!(refused, Err(DropReason::BadExtensionHeader));
        assert_eq!(out.len(), 1);
    }

    proptest! {
        #[test]
        fn fragments_make_the_packet_again_in_any_order(
            v6: bool,
            payload_len in 100usize..9000,
            mtu in 68usize..2000,
            ident: u32,
            order in proptest::collection::vec(any::<u16>(), 200),
        ) {
            let packet = packet(v6, payload_len);
            let mut fragments = Vec::new();
            fragment(&packet, mtu, ident, &mut fragments).unwrap();
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
            if fragments.len() == 1 {
                prop_assert_eq!(&fragments[0], &packet);
                return Ok(());
            }
            let mut keyed: Vec<_> = fragments.into_iter().enumerate().collect();
            keyed.sort_by_key(|(n, _)| order[n % order.len()]);
            let mut table = Reassembly::new();
            let mut verdicts = Vec::new();
            for (_, fragment) in &keyed {
                verdicts.push(table.on_fragment(Instant::ZERO, fragment));
            }
            let last = verdicts.pop().unwrap();
            prop_assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Hold));
            let Verdict::Whole(mut whole) = last else { panic!("not whole: {last:?}") };
            if !v6 {
                let mut view = Ipv4Packet::new_unchecked(&mut whole[..]);
                prop_assert!(view.verify_checksum());
                prop_assert_eq!(view.ident(), ident as u16);
                view.set_ident(0);
                view.fill_checksum();
            }
            prop_assert_eq!(whole, packet);
        }

        #[test]
        fn any_bytes_are_fragmented_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            mtu in 0usize..300,
        ) {
            let mut out = Vec::new();
            if fragment(&bytes, mtu, 1, &mut out).is_ok() {
                prop_assert!(out.iter().all(|fragment| fragment.len() <= mtu));
            }
        }
    }
}
