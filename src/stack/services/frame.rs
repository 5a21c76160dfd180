//! Complete frames towards the guest: Ethernet, IP and UDP or ICMPv6 around a small payload.
//!
//! Service answers are rare and small, so they are summed here in full and need no offload.

use std::net::{SocketAddrV4, SocketAddrV6};

use crate::base::Mac;
use crate::stack::wire::formats::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Address,
    Ipv6Packet, Ipv6Repr, NdiscRepr, UDP_HEADER_LEN, UdpPacket,
};

/// The two MACs of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) source: Mac,
    pub(super) target: Mac,
}

/// TTL and hop limit of answers that no RFC fixes at 255 (Linux's default, ip-sysctl.rst).
pub(super) const HOP_LIMIT: u8 = 64;

/// RFC 4861 §4: a neighbour discovery message that crossed a router shows it by its hop limit.
pub(super) const NDP_HOP_LIMIT: u8 = 255;

/// A frame with its Ethernet header and `len` zero bytes.
pub(super) fn ethernet(link: Link, protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_HEADER_LEN + len];
    EthernetRepr {
        src_addr: EthernetAddress(link.source.0),
        dst_addr: EthernetAddress(link.target.0),
        ethertype: protocol,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
    frame
}

/// A UDP datagram over IPv4. `payload` is at most a kilobyte or so: lengths are not in danger.
pub(super) fn udp4(
    link: Link,
    source: SocketAddrV4,
    target: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let udp_len = UDP_HEADER_LEN + payload.len();
    let mut frame = ethernet(link, EthernetProtocol::Ipv4, IPV4_HEADER_LEN + udp_len);
    let (header, udp) = frame[ETHERNET_HEADER_LEN..].split_at_mut(IPV4_HEADER_LEN);
    let mut ip = Ipv4Packet::new_unchecked(header);
    ip.set_version(4);
    // A constant that fits its field.
    ip.set_header_len(IPV4_HEADER_LEN as u8);
    ip.set_total_len((IPV4_HEADER_LEN + udp_len) as u16);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_next_header(IpProtocol::Udp);
    ip.set_src_addr(*source.ip());
    ip.set_dst_addr(*target.ip());
    ip.fill_checksum();
    let (source_ip, target_ip) = ((*source.ip()).into(), (*target.ip()).into());
    let mut udp = emit_udp(udp, source.port(), target.port(), payload);
    udp.fill_checksum(&source_ip, &target_ip);
    frame
}

/// A UDP datagram over IPv6. `payload` is at most a kilobyte or so: lengths are not in danger.
pub(super) fn udp6(
    link: Link,
    source: SocketAddrV6,
    target: SocketAddrV6,
    payload: &[u8],
) -> Vec<u8> {
    let udp_len = UDP_HEADER_LEN + payload.len();
    let header = Ipv6Repr {
        src_addr: *source.ip(),
        dst_addr: *target.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp_len,
        hop_limit: HOP_LIMIT,
    };
    let (mut frame, at) = ipv6(link, &header);
    let (source_ip, target_ip) = ((*source.ip()).into(), (*target.ip()).into());
    let mut udp = emit_udp(&mut frame[at..], source.port(), target.port(), payload);
    udp.fill_checksum(&source_ip, &target_ip);
    frame
}

/// A neighbour discovery message, followed by `options` beyond those that `message` knows.
pub(super) fn ndp(
    link: Link,
    source: Ipv6Address,
    target: Ipv6Address,
    message: &NdiscRepr<'_>,
    options: &[u8],
) -> Vec<u8> {
    let known = message.buffer_len();
    let header = Ipv6Repr {
        src_addr: source,
        dst_addr: target,
        next_header: IpProtocol::Icmpv6,
        payload_len: known + options.len(),
        hop_limit: NDP_HOP_LIMIT,
    };
    let (mut frame, at) = ipv6(link, &header);
    let icmp = &mut frame[at..];
    message.emit(&mut Icmpv6Packet::new_unchecked(&mut icmp[..known]));
    icmp[known..].copy_from_slice(options);
    Icmpv6Packet::new_unchecked(icmp).fill_checksum(&source, &target);
    frame
}

/// A frame with its Ethernet and IPv6 headers, and where its payload begins.
fn ipv6(link: Link, header: &Ipv6Repr) -> (Vec<u8>, usize) {
    let mut frame = ethernet(link, EthernetProtocol::Ipv6, IPV6_HEADER_LEN + header.payload_len);
    header.emit(&mut Ipv6Packet::new_unchecked(&mut frame[ETHERNET_HEADER_LEN..]));
    (frame, ETHERNET_HEADER_LEN + IPV6_HEADER_LEN)
}

fn emit_udp<'a>(
    bytes: &'a mut [u8],
    source_port: u16,
    target_port: u16,
    payload: &[u8],
) -> UdpPacket<&'a mut [u8]> {
    let len = bytes.len() as u16;
    let mut udp = UdpPacket::new_unchecked(bytes);
    udp.set_src_port(source_port);
    udp.set_dst_port(target_port);
    udp.set_len(len);
    udp.payload_mut().copy_from_slice(payload);
    udp
}
