//! Headers towards the guest, written in place in front of a payload.
//!
//! ```text
//!   buffer   [ ....... | vnet 12 | Ethernet 14 | IP 20/40 | TCP 20..32 / UDP 8 | payload ]
//!            0         ^ start                                                 ^ HEADROOM
//! ```
//! A payload is received straight to `HEADROOM`; the headers grow backwards from there, so one
//! contiguous write puts the frame on the TAP and no payload byte is copied or summed (D1, D3).

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

use crate::base::{Mac, Seq};

use super::checksum;
use super::formats::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber,
    UdpPacket,
};
use super::segment::{Flags, SackRanges};
use super::vnet::{Gso, VNET_HEADER_LEN, VnetHeader};
use super::{ETHERNET_HEADER_LEN, protocol};

/// Bytes in front of a payload: room for all headers, rounded up to two cache lines.
pub const HEADROOM: usize = 128;

/// Largest TCP payload whose packet an IP length field can say: 65,535 bytes less 40 and 60 bytes
/// of headers.
pub const MAX_PAYLOAD: usize = 65_535 - 40 - 60;

/// Bytes of the hop-by-hop header with a jumbo payload option (RFC 2675 §2).
const JUMBO_HEADER_LEN: usize = 8;

/// Who finishes the transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The guest's kernel, if it ever has to (`NEEDS_CSUM`): only the pseudo-header is summed.
    Partial,
    /// We do, because the TAP has no virtio-net header.
    Full,
}

/// Link and network addresses of a flow, as they stand in packets towards the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Our MAC on the TAP.
    pub gateway_mac: Mac,
    /// The guest's MAC.
    pub guest_mac: Mac,
    /// The peer that the guest talks to; the packet's source.
    pub peer: SocketAddr,
    /// The guest's side; the packet's target.
    pub guest: SocketAddr,
}

/// The TCP header fields of one segment towards the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    /// First sequence number.
    pub seq: Seq,
    /// Acknowledgment number; absent only in some resets.
    pub ack: Option<Seq>,
    /// Control bits.
    pub flags: Flags,
    /// The window field, already scaled.
    pub window: u16,
    /// Options of a SYN.
    pub mss: Option<u16>,
    /// Window scale option of a SYN.
    pub window_scale: Option<u8>,
    /// SACK-permitted option of a SYN.
    pub sack_permitted: bool,
    /// Largest payload of one segment: more than that is left to segmentation offload.
    pub segment_size: u16,
    /// SACK blocks (RFC 2018 §3), not in a SYN.
    pub sack: SackRanges,
}

/// The UDP header fields of one datagram towards the guest come from [`Addresses`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    /// Type of service or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Identification for IPv4; matters only if the packet is fragmented afterwards.
    pub ident: u16,
    /// IPv4's DF bit.
    pub dont_fragment: bool,
    /// Payload bytes of one datagram if the payload is several of them (USO).
    pub segment_size: Option<u16>,
}

/// Offset of the checksum field in a TCP header (RFC 9293 §3.1).
const TCP_CHECKSUM: usize = 16;

/// TTL and hop limit of segments that tapway itself makes (Linux's default, ip-sysctl.rst).
const DEFAULT_HOP_LIMIT: u8 = 64;

impl TcpHeader {
    /// Header length with options in bytes.
    fn len(&self) -> usize {
        let mss = if self.mss.is_some() { 4 } else { 0 };
        let scale = if self.window_scale.is_some() { 4 } else { 0 };
        let sack = if self.sack_permitted { 4 } else { 0 };
        20 + mss + scale + sack + self.sack_len()
    }

    fn sack_len(&self) -> usize {
        match self.sack.iter().flatten().count() {
            0 => 0,
            blocks => 4 + 8 * blocks,
        }
    }

    /// Writes all headers in front of the `payload_len` bytes at [`HEADROOM`] of `buffer`.
    /// Returns where the frame starts; it ends at `HEADROOM + payload_len`.
    ///
    /// With [`Checksum::Full`] the payload must be in the buffer; with `Partial` it may follow
    /// from elsewhere and `buffer` may end at `HEADROOM`. A payload beyond [`MAX_PAYLOAD`] makes a
    /// packet that only a kernel with "BIG TCP" takes: over IPv4 the total length is 0
    /// (`iph_set_totlen` in the kernel), over IPv6 there is a jumbo payload option.
    ///
    /// # Panics
    /// If `buffer` is shorter than that, or the two addresses differ in family.
    pub fn emit(
        &self,
        buffer: &mut [u8],
        payload_len: usize,
        addresses: &Addresses,
        checksum: Checksum,
    ) -> usize {
        let header_len = self.len();
        let tcp_at = HEADROOM - header_len;
        self.emit_tcp(&mut buffer[tcp_at..HEADROOM], addresses);
        let transport_len = header_len + payload_len;
        let ip_at = emit_ip(
            &mut buffer[..tcp_at],
            addresses,
            protocol::TCP,
            transport_len,
            &UdpHeader {
                tos: 0,
                hop_limit: DEFAULT_HOP_LIMIT,
                ident: 0,
                dont_fragment: true,
                segment_size: None,
            },
        );
        let needs_segmentation = payload_len > usize::from(self.segment_size);
        let gso = needs_segmentation.then_some(match addresses.guest {
            SocketAddr::V4(_) => Gso::Tcp4(self.segment_size),
            SocketAddr::V6(_) => Gso::Tcp6(self.segment_size),
        });
        let field = TCP_CHECKSUM;
        let placement = Transport { at: tcp_at, header_len, field, len: transport_len };
        finish(buffer, ip_at, addresses, protocol::TCP, &placement, checksum, gso)
    }

    /// Bytes of options, by which a segment's payload has to be shorter (RFC 6691 §2).
    pub fn options_len(&self) -> usize {
        self.len() - 20
    }

    /// Writes all headers of a segment whose payload follows from elsewhere, complete checksum
    /// included, so that they end where `headers` ends; returns where they start. There is no
    /// virtio-net header.
    ///
    /// # Panics
    /// If the two addresses differ in family.
    pub fn emit_before(
        &self,
        headers: &mut [u8; HEADROOM],
        payload: &[IoSlice<'_>],
        addresses: &Addresses,
    ) -> usize {
        let payload_len = payload.iter().map(|part| part.len()).sum();
        let start = self.emit(headers, payload_len, addresses, Checksum::Partial);
        let tcp_at = HEADROOM - self.len();
        // The field holds the sum of the pseudo-header, which is thereby in the sum.
        let parts = payload.iter().map(|part| &part[..]);
        let sum = checksum::sum_parts(std::iter::once(&headers[tcp_at..]).chain(parts));
        let field = tcp_at + TCP_CHECKSUM;
        headers[field..field + 2].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
        start + VNET_HEADER_LEN
    }

    fn emit_tcp(&self, bytes: &mut [u8], addresses: &Addresses) {
        let header_len = bytes.len();
        let mut tcp = TcpPacket::new_unchecked(bytes);
        tcp.set_src_port(addresses.peer.port());
        tcp.set_dst_port(addresses.guest.port());
        tcp.set_seq_number(TcpSeqNumber(self.seq.0.cast_signed()));
        tcp.set_ack_number(TcpSeqNumber(self.ack.unwrap_or_default().0.cast_signed()));
        tcp.clear_flags();
        // At most 48 by `len`: a SYN has no blocks.
        tcp.set_header_len(header_len as u8);
        tcp.set_syn(self.flags.syn);
        tcp.set_fin(self.flags.fin);
        tcp.set_rst(self.flags.rst);
        tcp.set_psh(self.flags.psh);
        tcp.set_ack(self.ack.is_some());
        tcp.set_window_len(self.window);
        tcp.set_checksum(0);
        tcp.set_urgent_at(0);
        let mut options = tcp.options_mut();
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            options = put(options, [2, 4, high, low]);
        }
        if let Some(shift) = self.window_scale {
            options = put(options, [1, 3, 3, shift]);
        }
        if self.sack_permitted {
            options = put(options, [1, 1, 4, 2]);
        }
        if self.sack_len() > 0 {
            // At most 26.
            options = put(options, [1, 1, 5, (self.sack_len() - 2) as u8]);
            for (left, right) in self.sack.iter().flatten() {
                options = put(options, left.0.to_be_bytes());
                options = put(options, right.0.to_be_bytes());
            }
        }
    }
}

fn put(options: &mut [u8], option: [u8; 4]) -> &mut [u8] {
    let (head, rest) = options.split_at_mut(4);
    head.copy_from_slice(&option);
    rest
}

impl UdpHeader {
    /// Writes all headers in front of the `payload_len` bytes at [`HEADROOM`] of `buffer`.
    /// Returns where the frame starts; it ends at `HEADROOM + payload_len`.
    ///
    /// The payload is that of one datagram or of several that are joined: at most 65,507 bytes over
    /// IPv4, 65,527 over IPv6.
    ///
    /// # Panics
    /// If `buffer` is too short, or the families differ.
    pub fn emit(
        &self,
        buffer: &mut [u8],
        payload_len: usize,
        addresses: &Addresses,
        checksum: Checksum,
    ) -> usize {
        let udp_at = HEADROOM - 8;
        let transport_len = 8 + payload_len;
        let mut udp = UdpPacket::new_unchecked(&mut buffer[udp_at..HEADROOM]);
        udp.set_src_port(addresses.peer.port());
        udp.set_dst_port(addresses.guest.port());
        debug_assert!(transport_len <= usize::from(u16::MAX), "longer than UDP can say");
        udp.set_len(transport_len as u16);
        udp.set_checksum(0);
        let ip_at = emit_ip(&mut buffer[..udp_at], addresses, protocol::UDP, transport_len, self);
        let gso = self.segment_size.map(Gso::Udp);
        let placement = Transport { at: udp_at, header_len: 8, field: 6, len: transport_len };
        finish(buffer, ip_at, addresses, protocol::UDP, &placement, checksum, gso)
    }
}

/// Writes the IP header so that it ends where `buffer` ends; returns where it starts.
fn emit_ip(
    buffer: &mut [u8],
    addresses: &Addresses,
    protocol: u8,
    transport_len: usize,
    fields: &UdpHeader,
) -> usize {
    let end = buffer.len();
    match (addresses.peer.ip(), addresses.guest.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let at = end - 20;
            let total = u16::try_from(20 + transport_len).unwrap_or(0);
            let mut ip = Ipv4Packet::new_unchecked(&mut buffer[at..]);
            ip.set_version(4);
            ip.set_header_len(20);
            ip.set_dscp(fields.tos >> 2);
            ip.set_ecn(fields.tos & 3);
            ip.set_total_len(total);
            ip.set_ident(fields.ident);
            ip.clear_flags();
            ip.set_dont_frag(fields.dont_fragment);
            ip.set_frag_offset(0);
            ip.set_hop_limit(fields.hop_limit);
            ip.set_next_header(IpProtocol::from(protocol));
            ip.set_src_addr(source);
            ip.set_dst_addr(target);
            ip.fill_checksum();
            at
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let (payload, next_header, end) = match u16::try_from(transport_len) {
                Ok(len) => (len, protocol, end),
                Err(_) => (0, protocol::HOP_BY_HOP, emit_jumbo(buffer, protocol, transport_len)),
            };
            let at = end - 40;
            let mut ip = Ipv6Packet::new_unchecked(&mut buffer[at..end]);
            ip.set_version(6);
            ip.set_traffic_class(fields.tos);
            ip.set_flow_label(0);
            ip.set_payload_len(payload);
            ip.set_next_header(IpProtocol::from(next_header));
            ip.set_hop_limit(fields.hop_limit);
            ip.set_src_addr(source);
            ip.set_dst_addr(target);
            at
        }
        _ => unreachable!("both ends of a flow have one address family"),
    }
}

/// Writes the hop-by-hop header of a packet beyond 65,535 bytes so that it ends where `buffer`
/// ends; returns where it starts.
fn emit_jumbo(buffer: &mut [u8], protocol: u8, transport_len: usize) -> usize {
    const JUMBO_PAYLOAD: u8 = 0xc2;
    let at = buffer.len() - JUMBO_HEADER_LEN;
    let length = (JUMBO_HEADER_LEN + transport_len) as u32;
    buffer[at..at + 4].copy_from_slice(&[protocol, 0, JUMBO_PAYLOAD, 4]);
    buffer[at + 4..].copy_from_slice(&length.to_be_bytes());
    at
}

/// Where the transport header stands in the buffer, in bytes.
struct Transport {
    at: usize,
    header_len: usize,
    /// Offset of the checksum field in the header.
    field: usize,
    /// Header and payload.
    len: usize,
}

/// Checksum, Ethernet and virtio-net headers.
fn finish(
    buffer: &mut [u8],
    ip_at: usize,
    addresses: &Addresses,
    protocol: u8,
    transport: &Transport,
    checksum: Checksum,
    gso: Option<Gso>,
) -> usize {
    let length = u32::try_from(transport.len).unwrap_or(u32::MAX);
    let pseudo =
        checksum::pseudo_header(addresses.peer.ip(), addresses.guest.ip(), protocol, length);
    let field = transport.at + transport.field;
    let value = match checksum {
        Checksum::Partial => checksum::fold(pseudo),
        Checksum::Full => {
            let bytes = &buffer[transport.at..transport.at + transport.len];
            match !checksum::fold(pseudo + checksum::sum(bytes)) {
                // RFC 768: a computed zero is sent as all ones; for TCP both mean the same.
                0 => 0xffff,
                sum => sum,
            }
        }
    };
    buffer[field..field + 2].copy_from_slice(&value.to_be_bytes());

    let eth_at = ip_at - ETHERNET_HEADER_LEN;
    let mut ethernet = EthernetFrame::new_unchecked(&mut buffer[eth_at..ip_at]);
    ethernet.set_dst_addr(super::formats::EthernetAddress(addresses.guest_mac.0));
    ethernet.set_src_addr(super::formats::EthernetAddress(addresses.gateway_mac.0));
    ethernet.set_ethertype(match addresses.guest {
        SocketAddr::V4(_) => EthernetProtocol::Ipv4,
        SocketAddr::V6(_) => EthernetProtocol::Ipv6,
    });
    if checksum == Checksum::Full {
        return eth_at;
    }
    let start = eth_at - VNET_HEADER_LEN;
    // All offsets are below HEADROOM.
    VnetHeader {
        partial_checksum: Some(((transport.at - eth_at) as u16, transport.field as u16)),
        checksum_valid: false,
        gso,
        header_len: (transport.at + transport.header_len - eth_at) as u16,
    }
    .emit(&mut buffer[start..eth_at]);
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::wire::Segment;

    fn addresses(guest: &str, peer: &str) -> Addresses {
        Addresses {
            gateway_mac: Mac([0x52, 0x55, 10, 0, 2, 2]),
            guest_mac: Mac([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]),
            peer: peer.parse().unwrap(),
            guest: guest.parse().unwrap(),
        }
    }

    fn syn_ack() -> TcpHeader {
        TcpHeader {
            seq: Seq(0xffff_fffe),
            ack: Some(Seq(0x1234_5678)),
            flags: Flags { syn: true, ..Flags::default() },
            window: 65535,
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            segment_size: 1460,
            sack: [None; 3],
        }
    }

    #[test]
    fn sack_blocks_read_back() {
        let addresses = addresses("[fd74::100]:40000", "[2001:db8::7]:80");
        let sack =
            [Some((Seq(0xffff_fff0), Seq(9))), Some((Seq(30), Seq(50))), Some((Seq(70), Seq(71)))];
        for blocks in 1..=3 {
            let mut some = [None; 3];
            some[..blocks].copy_from_slice(&sack[..blocks]);
            let header = TcpHeader {
                mss: None,
                window_scale: None,
                sack_permitted: false,
                flags: Flags::default(),
                sack: some,
                ..syn_ack()
            };
            let mut buffer = [0u8; HEADROOM];
            header.emit(&mut buffer, 0, &addresses, Checksum::Partial);
            // RFC 2018 §3: kind, length and eight bytes for each block, here behind two NOPs.
            let tcp_at = HEADROOM - (20 + 4 + 8 * blocks);
            let (segment, len) = Segment::parse(&buffer[tcp_at..]).unwrap();
            assert_eq!((segment.sack, segment.len, len), (some, 0, 24 + 8 * blocks));
        }
    }

    #[test]
    fn a_syn_ack_reads_back_with_a_right_checksum() {
        for (guest, peer) in
            [("10.0.2.100:40000", "192.0.2.7:80"), ("[fd74::100]:40000", "[2001:db8::7]:80")]
        {
            let addresses = addresses(guest, peer);
            let mut buffer = [0u8; HEADROOM];
            let start = syn_ack().emit(&mut buffer, 0, &addresses, Checksum::Full);
            let frame = EthernetFrame::new_checked(&buffer[start..]).unwrap();
            assert_eq!(frame.dst_addr().0, addresses.guest_mac.0);
            assert_eq!(frame.src_addr().0, addresses.gateway_mac.0);
            let tcp_at = HEADROOM - 32;
            assert!(checksum::verify(
                addresses.peer.ip(),
                addresses.guest.ip(),
                protocol::TCP,
                &buffer[tcp_at..]
            ));
            let (segment, _) = Segment::parse(&buffer[tcp_at..]).unwrap();
            assert_eq!((segment.source_port, segment.target_port), (80, 40000));
            assert_eq!((segment.seq, segment.ack), (Seq(0xffff_fffe), Some(Seq(0x1234_5678))));
            assert_eq!((segment.mss, segment.window_scale), (Some(1460), Some(7)));
            assert!(segment.sack_permitted && segment.flags.syn && !segment.flags.fin);
        }
    }

    #[test]
    fn headers_before_a_payload_elsewhere_are_those_before_one_in_place() {
        let payload: Vec<u8> = (0..777_u32).map(|at| (at * 31 + 5) as u8).collect();
        let header = TcpHeader {
            mss: None,
            window_scale: None,
            sack_permitted: false,
            flags: Flags { psh: true, ..Flags::default() },
            sack: [Some((Seq(7), Seq(9))), None, None],
            ..syn_ack()
        };
        assert_eq!(header.options_len(), 12);
        for (guest, peer) in
            [("10.0.2.100:40000", "192.0.2.7:80"), ("[fd74::100]:40000", "[2001:db8::7]:80")]
        {
            let addresses = addresses(guest, peer);
            let mut whole = vec![0; HEADROOM + payload.len()];
            whole[HEADROOM..].copy_from_slice(&payload);
            let start = header.emit(&mut whole, payload.len(), &addresses, Checksum::Full);
            let mut headers = [0; HEADROOM];
            let parts = [IoSlice::new(&payload[..333]), IoSlice::new(&payload[333..])];
            let at = header.emit_before(&mut headers, &parts, &addresses);
            assert_eq!(headers[at..], whole[start..HEADROOM]);
        }
    }

    #[test]
    fn a_large_payload_is_left_to_segmentation_with_a_partial_sum() {
        let addresses = addresses("10.0.2.100:40000", "192.0.2.7:80");
        let mut buffer = vec![0u8; HEADROOM + 3000];
        let header = TcpHeader {
            mss: None,
            window_scale: None,
            sack_permitted: false,
            flags: Flags { psh: true, ..Flags::default() },
            ..syn_ack()
        };
        let start = header.emit(&mut buffer, 3000, &addresses, Checksum::Partial);
        assert_eq!(HEADROOM - start, 12 + 14 + 20 + 20);
        let vnet = VnetHeader::parse(&buffer[start..]).unwrap();
        assert_eq!(vnet.gso, Some(Gso::Tcp4(1460)));
        assert_eq!(vnet.partial_checksum, Some((34, 16)));
        assert_eq!(vnet.header_len, 54);
        let ip = Ipv4Packet::new_checked(&buffer[start + 26..]).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(usize::from(ip.total_len()), 20 + 20 + 3000);
    }

    /// A segment of data with no option, its payload beyond what an IP length field can say.
    fn emit_big(addresses: &Addresses, payload_len: usize) -> Vec<u8> {
        let header = TcpHeader {
            mss: None,
            window_scale: None,
            sack_permitted: false,
            flags: Flags::default(),
            ..syn_ack()
        };
        // The payload may follow from elsewhere.
        let mut buffer = vec![0u8; HEADROOM];
        let start = header.emit(&mut buffer, payload_len, addresses, Checksum::Partial);
        buffer.split_off(start)
    }

    #[test]
    fn a_packet_beyond_64_kib_over_ipv4_has_a_total_length_of_zero() {
        let frame = emit_big(&addresses("10.0.2.100:40000", "192.0.2.7:80"), 200_000);
        let vnet = VnetHeader::parse(&frame).unwrap();
        assert_eq!((vnet.gso, vnet.header_len), (Some(Gso::Tcp4(1460)), 54));
        let ip = Ipv4Packet::new_unchecked(&frame[26..]);
        assert_eq!(ip.total_len(), 0);
        assert!(ip.verify_checksum());
    }

    #[test]
    fn a_packet_beyond_64_kib_over_ipv6_is_a_jumbogram() {
        let addresses = addresses("[fd74::100]:40000", "[2001:db8::7]:80");
        let frame = emit_big(&addresses, 200_000);
        let vnet = VnetHeader::parse(&frame).unwrap();
        assert_eq!((vnet.gso, vnet.header_len), (Some(Gso::Tcp6(1460)), 14 + 40 + 8 + 20));
        assert_eq!(vnet.partial_checksum, Some((14 + 40 + 8, 16)));
        let ip = Ipv6Packet::new_unchecked(&frame[26..]);
        assert_eq!((ip.payload_len(), u8::from(ip.next_header())), (0, protocol::HOP_BY_HOP));
        // RFC 2675 §2: next header, length 0, type 0xc2, 4 bytes of everything behind the header
        // of 40 bytes: 8 of this one, 20 of TCP, 200,000 of payload.
        assert_eq!(frame[66..74], [protocol::TCP, 0, 0xc2, 4, 0x00, 0x03, 0x0d, 0x5c]);
        // The sum of the pseudo-header has the transport's length (RFC 2675 §4), not the packet's.
        let pseudo = checksum::pseudo_header(
            addresses.peer.ip(),
            addresses.guest.ip(),
            protocol::TCP,
            200_020,
        );
        assert_eq!(frame[74 + 16..74 + 18], checksum::fold(pseudo).to_be_bytes());
    }

    #[test]
    fn a_datagram_keeps_its_traffic_class_and_hop_limit() {
        let addresses = addresses("[fd74::100]:5353", "[2001:db8::7]:53");
        let mut buffer = vec![0u8; HEADROOM + 5];
        buffer[HEADROOM..].copy_from_slice(b"hello");
        let header = UdpHeader {
            tos: 0xb9,
            hop_limit: 17,
            ident: 9,
            dont_fragment: true,
            segment_size: None,
        };
        let start = header.emit(&mut buffer, 5, &addresses, Checksum::Full);
        let ip = Ipv6Packet::new_checked(&buffer[start + 14..]).unwrap();
        assert_eq!((ip.traffic_class(), ip.hop_limit()), (0xb9, 17));
        assert!(checksum::verify(
            addresses.peer.ip(),
            addresses.guest.ip(),
            protocol::UDP,
            &buffer[HEADROOM - 8..]
        ));
    }
}
