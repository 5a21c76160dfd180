//! What the guest's kernel does between its stack and the TAP: it finishes checksums that are owed
//! and cuts frames that are larger than the MTU, guided by the virtio-net header alone; and it
//! leaves both to the reader of the TAP in the other direction.
//!
//! Every field of the header that the kernel would act on is checked against the frame, so that a
//! frame which only happens to work is a failure here.

use std::net::IpAddr;

use tapway::stack::wire::formats::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};
use tapway::stack::wire::{Gso, VNET_HEADER_LEN, VnetHeader, checksum};

use crate::rng::Rng;

const ETHERNET: usize = 14;

/// Where the headers of a frame lie and what they say.
#[derive(Clone, Copy)]
struct Layout {
    ipv4: bool,
    protocol: u8,
    transport_at: usize,
    /// Bytes of the transport packet.
    len: usize,
}

fn layout(frame: &[u8]) -> Option<Layout> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        // Beyond 64 KiB (`iph_totlen` in the kernel).
        EthernetProtocol::Ipv4 if frame.len() > 65_535 + ETHERNET => {
            let ip = Ipv4Packet::new_unchecked(ethernet.payload());
            assert_eq!((ip.total_len(), ip.header_len()), (0, 20));
            let transport_at = ETHERNET + 20;
            let len = frame.len() - transport_at;
            Some(Layout { ipv4: true, protocol: ip.next_header().into(), transport_at, len })
        }
        // The kernel's `ipv6_hop_jumbo`.
        EthernetProtocol::Ipv6 if frame.len() > 65_535 + ETHERNET + 40 => {
            let ip = Ipv6Packet::new_unchecked(ethernet.payload());
            assert_eq!((ip.payload_len(), ip.next_header()), (0, IpProtocol::HopByHop));
            let [protocol, 0, 0xc2, 4, length @ ..] = *frame[ETHERNET + 40..].first_chunk::<8>()?
            else {
                panic!("not a jumbo payload option alone: {:?}", &frame[ETHERNET + 40..][..8])
            };
            let transport_at = ETHERNET + 48;
            assert_eq!(u32::from_be_bytes(length) as usize, frame.len() - ETHERNET - 40);
            Some(Layout { ipv4: false, protocol, transport_at, len: frame.len() - transport_at })
        }
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let whole = !ip.more_frags() && ip.frag_offset() == 0;
            whole.then(|| Layout {
                ipv4: true,
                protocol: ip.next_header().into(),
                transport_at: ETHERNET + usize::from(ip.header_len()),
                len: ip.payload().len(),
            })
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            Some(Layout {
                ipv4: false,
                protocol: ip.next_header().into(),
                transport_at: ETHERNET + 40,
                len: ip.payload().len(),
            })
        }
        _ => None,
    }
}

/// The pseudo-header sum of a frame's transport packet, and the length of the packet.
fn pseudo_sum(frame: &[u8], layout: &Layout) -> (u32, usize) {
    let (source, target) = if layout.ipv4 {
        let ip = Ipv4Packet::new_unchecked(&frame[ETHERNET..]);
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let ip = Ipv6Packet::new_unchecked(&frame[ETHERNET..]);
        (ip.src_addr().into(), ip.dst_addr().into())
    };
    let len = layout.len;
    (checksum::pseudo_header(source, target, layout.protocol, len as u32), len)
}

/// Takes a frame off the TAP: the frames that the guest's stack sees of it, each complete.
pub fn from_engine(bytes: &[u8], vnet_header: bool, mtu: usize) -> Vec<Vec<u8>> {
    if !vnet_header {
        assert!(bytes.len() <= ETHERNET + mtu, "a frame beyond the MTU without offload");
        return vec![bytes.to_vec()];
    }
    let vnet = VnetHeader::parse(bytes).expect("a virtio-net header that fits its frame");
    let mut frame = bytes[VNET_HEADER_LEN..].to_vec();
    let Some((start, offset)) = vnet.partial_checksum else {
        assert!(frame.len() <= ETHERNET + mtu, "a frame beyond the MTU without offload");
        assert_eq!(vnet.gso, None, "segmentation needs a partial checksum");
        return vec![frame];
    };
    let layout = layout(&frame).expect("a checksum is owed on something that has none");
    let field = match layout.protocol {
        6 => 16,
        17 => 6,
        other => panic!("a checksum is owed on protocol {other}"),
    };
    assert_eq!(usize::from(start), layout.transport_at, "csum_start");
    assert_eq!(usize::from(offset), field, "csum_offset");
    let at = layout.transport_at + field;
    let owed = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (pseudo, len) = pseudo_sum(&frame, &layout);
    assert_eq!(owed, checksum::fold(pseudo), "the field must hold the pseudo-header sum");
    assert_eq!(layout.transport_at + len, frame.len(), "the IP length must be the frame's");
    if let Some(gso) = vnet.gso {
        return cut(&frame, &layout, gso, usize::from(vnet.header_len), mtu);
    }
    assert!(frame.len() <= ETHERNET + mtu, "a frame beyond the MTU without segmentation");
    fill(&mut frame, &layout, field);
    vec![frame]
}

fn fill(frame: &mut [u8], layout: &Layout, field: usize) {
    let at = layout.transport_at + field;
    frame[at..at + 2].fill(0);
    let (pseudo, len) = pseudo_sum(frame, layout);
    let packet = &frame[layout.transport_at..layout.transport_at + len];
    let sum = match !checksum::fold(pseudo + checksum::sum(packet)) {
        0 => 0xffff,
        sum => sum,
    };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Segmentation as `tcp_gso_segment` does it: sequence numbers move on, FIN and PSH stay with the
/// last segment, IPv4 identifications count up.
fn cut(frame: &[u8], layout: &Layout, gso: Gso, header_len: usize, mtu: usize) -> Vec<Vec<u8>> {
    let size = match gso {
        Gso::Tcp4(size) => {
            assert!(layout.ipv4 && layout.protocol == 6, "gso_type");
            size
        }
        Gso::Tcp6(size) => {
            assert!(!layout.ipv4 && layout.protocol == 6, "gso_type");
            size
        }
        Gso::Udp(size) => return cut_udp(frame, layout, usize::from(size), header_len, mtu),
    };
    let size = usize::from(size);
    let tcp = TcpPacket::new_checked(&frame[layout.transport_at..]).expect("a TCP header");
    let headers = layout.transport_at + usize::from(tcp.header_len());
    assert_eq!(header_len, headers, "hdr_len");
    let payload = &frame[headers..];
    assert!(payload.len() > size, "segmentation of what fits one segment");
    let count = payload.chunks(size).count();
    // The headers of one segment: without the jumbo option, if there was one.
    let plain_at = ETHERNET + if layout.ipv4 { 20 } else { 40 };
    let plain = Layout { transport_at: plain_at, ..*layout };
    let segment = plain_at - ETHERNET + headers - layout.transport_at + size;
    assert!(segment <= mtu, "gso_size beyond the MTU");
    let piece = |(index, bytes): (usize, &[u8])| {
        let mut piece = frame[..plain_at].to_vec();
        piece.extend_from_slice(&frame[layout.transport_at..headers]);
        piece.extend_from_slice(bytes);
        let plain = Layout { len: piece.len() - plain_at, ..plain };
        let ip_len = piece.len() - ETHERNET;
        if layout.ipv4 {
            let mut ip = Ipv4Packet::new_unchecked(&mut piece[ETHERNET..]);
            ip.set_total_len(ip_len as u16);
            ip.set_ident(ip.ident().wrapping_add(index as u16));
            ip.fill_checksum();
        } else {
            let mut ip = Ipv6Packet::new_unchecked(&mut piece[ETHERNET..]);
            ip.set_payload_len(ip_len as u16 - 40);
            ip.set_next_header(IpProtocol::from(layout.protocol));
        }
        let mut tcp = TcpPacket::new_unchecked(&mut piece[plain_at..]);
        tcp.set_seq_number(tcp.seq_number() + index * size);
        if index + 1 < count {
            tcp.set_fin(false);
            tcp.set_psh(false);
        }
        fill(&mut piece, &plain, 16);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Segmentation as `__udp_gso_segment` does it: each datagram has a header of its own.
fn cut_udp(
    frame: &[u8],
    layout: &Layout,
    size: usize,
    header_len: usize,
    mtu: usize,
) -> Vec<Vec<u8>> {
    assert_eq!(layout.protocol, 17, "gso_type");
    let headers = layout.transport_at + 8;
    assert_eq!(header_len, headers, "hdr_len");
    let payload = &frame[headers..];
    assert!(payload.len() > size, "segmentation of what is one datagram");
    assert!(headers - ETHERNET + size <= mtu, "gso_size beyond the MTU");
    let claimed = usize::from(u16::from_be_bytes([frame[headers - 4], frame[headers - 3]]));
    assert_eq!(claimed, 8 + payload.len(), "the UDP length is that of all of them");
    let piece = |(index, bytes): (usize, &[u8])| {
        let mut piece = [&frame[..headers], bytes].concat();
        let ip_len = (piece.len() - ETHERNET) as u16;
        if layout.ipv4 {
            let mut ip = Ipv4Packet::new_unchecked(&mut piece[ETHERNET..]);
            ip.set_total_len(ip_len);
            ip.set_ident(ip.ident().wrapping_add(index as u16));
            ip.fill_checksum();
        } else {
            Ipv6Packet::new_unchecked(&mut piece[ETHERNET..]).set_payload_len(ip_len - 40);
        }
        let len = 8 + bytes.len();
        piece[headers - 4..headers - 2].copy_from_slice(&(len as u16).to_be_bytes());
        fill(&mut piece, &Layout { len, ..*layout }, 6);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// A frame of the guest's stack that holds several datagrams of `size` bytes, as a socket with
/// `UDP_SEGMENT` makes them: `frame` is the datagram that they would be together.
pub fn joined(mut frame: Vec<u8>, size: u16) -> Vec<u8> {
    let layout = layout(&frame).expect("a UDP packet");
    let (pseudo, _) = pseudo_sum(&frame, &layout);
    let at = layout.transport_at + 6;
    frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let header = VnetHeader {
        partial_checksum: Some((layout.transport_at as u16, 6)),
        gso: Some(Gso::Udp(size)),
        header_len: layout.transport_at as u16 + 8,
        ..VnetHeader::default()
    };
    let mut bytes = vec![0; VNET_HEADER_LEN];
    header.emit(&mut bytes);
    bytes.extend(frame);
    bytes
}

/// Puts a complete frame of the guest's stack on the TAP. With a virtio-net header, its checksum
/// may be left to the reader, or vouched for, as the kernel does by the frame's origin.
pub fn to_engine(mut frame: Vec<u8>, vnet_header: bool, rng: &mut Rng) -> Vec<u8> {
    if !vnet_header {
        return frame;
    }
    let mut header = VnetHeader::default();
    if let Some(layout) = layout(&frame)
        && let Some(field) = match IpProtocol::from(layout.protocol) {
            IpProtocol::Tcp => Some(16),
            IpProtocol::Udp => Some(6),
            _ => None,
        }
    {
        // Damaged on the way: nobody vouches for it.
        let (pseudo, len) = pseudo_sum(&frame, &layout);
        let packet = &frame[layout.transport_at..layout.transport_at + len];
        let good = checksum::fold(pseudo + checksum::sum(packet)) == 0xffff;
        match rng.range(0, 2) {
            _ if !good => {}
            0 => header.checksum_valid = true,
            1 => {
                let at = layout.transport_at + field;
                frame[at..at + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
                header.partial_checksum = Some((layout.transport_at as u16, field as u16));
            }
            _ => {}
        }
    }
    let mut bytes = vec![0; VNET_HEADER_LEN];
    header.emit(&mut bytes);
    bytes.extend(frame);
    bytes
}

/// The transport packet that `frames` carry to `guest`, put together if they are fragments, with
/// its checksum verified.
pub fn defragment(frames: &[Vec<u8>], guest: IpAddr) -> Vec<u8> {
    let mut pieces = vec![];
    let mut sums = vec![];
    for frame in frames {
        let ip = &frame[ETHERNET..];
        let (source, target, protocol, offset, body): (IpAddr, IpAddr, u8, u16, &[u8]) =
            if guest.is_ipv4() {
                let ip = Ipv4Packet::new_checked(ip).expect("an IPv4 packet");
                assert!(ip.verify_checksum());
                let body = &frame[ETHERNET + 20..ETHERNET + usize::from(ip.total_len())];
                (
                    ip.src_addr().into(),
                    ip.dst_addr().into(),
                    ip.next_header().into(),
                    ip.frag_offset(),
                    body,
                )
            } else {
                let ip = Ipv6Packet::new_checked(ip).expect("an IPv6 packet");
                let body = &frame[ETHERNET + 40..ETHERNET + ip.total_len()];
                let (protocol, offset, body) = match (ip.next_header(), body) {
                    (IpProtocol::Ipv6Frag, [next, _, high, low, _, _, _, _, rest @ ..]) => {
                        (*next, u16::from_be_bytes([*high, *low & 0xf8]), rest)
                    }
                    (protocol, body) => (protocol.into(), 0, body),
                };
                (ip.src_addr().into(), ip.dst_addr().into(), protocol, offset, body)
            };
        assert_eq!(target, guest);
        sums.push((source, protocol));
        pieces.push((offset, body));
    }
    sums.dedup();
    let [(source, protocol)] = sums[..] else {
        panic!("not the fragments of one packet: {sums:?}")
    };
    pieces.sort_unstable();
    let mut packet = vec![];
    for (offset, body) in pieces {
        assert_eq!(usize::from(offset), packet.len(), "a hole between fragments");
        packet.extend_from_slice(body);
    }
    let sum = match protocol {
        1 => checksum::fold(checksum::sum(&packet)),
        _ => {
            let pseudo = checksum::pseudo_header(source, guest, protocol, packet.len() as u32);
            checksum::fold(pseudo + checksum::sum(&packet))
        }
    };
    assert_eq!(sum, 0xffff, "transport checksum");
    packet
}
