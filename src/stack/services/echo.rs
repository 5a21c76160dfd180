//! Echo requests to the gateway and to the DNS address (RFC 792, RFC 4443 §4.2).
//!
//! The answer is the request with its addresses swapped: same identifier, sequence number and
//! data. Echo to anywhere else is the business of ping sockets, elsewhere.

use crate::base::DropReason;
use crate::gate::AddressPlan;
use crate::stack::wire::formats::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet,
    IpProtocol, Ipv4Packet, Ipv6Packet, Ipv6Repr,
};

use super::frame::HOP_LIMIT;

/// The answer to the echo request in `packet`, a whole IP packet.
pub(super) fn answer(plan: &AddressPlan, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => answer4(plan, packet),
        Some(6) => answer6(plan, packet),
        _ => Err(DropReason::BadIpHeader),
    }
}

fn answer4(plan: &AddressPlan, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    let request = Ipv4Packet::new_checked(packet).map_err(|_| DropReason::BadIpHeader)?;
    let (source, target) = (request.src_addr(), request.dst_addr());
    if request.next_header() != IpProtocol::Icmp || !plan.answers_echo(target.into()) {
        return Err(DropReason::UnhandledIcmp);
    }
    let icmp = request.payload();
    let message = Icmpv4Packet::new_checked(icmp).map_err(|_| DropReason::BadTransportHeader)?;
    if message.msg_type() != Icmpv4Message::EchoRequest || message.msg_code() != 0 {
        return Err(DropReason::UnhandledIcmp);
    }
    if !message.verify_checksum() {
        return Err(DropReason::BadTransportChecksum);
    }
    // RFC 1122 §3.2.2.6 would return options reversed; none is processed, so none is returned.
    let mut reply = vec![0; IPV4_HEADER_LEN];
    reply.extend(icmp);
    let mut ip = Ipv4Packet::new_unchecked(&mut reply[..]);
    ip.set_version(4);
    // A constant that fits its field.
    ip.set_header_len(IPV4_HEADER_LEN as u8);
    ip.set_dscp(request.dscp());
    ip.set_ecn(request.ecn());
    // Not more than the request's, which is a u16.
    ip.set_total_len((IPV4_HEADER_LEN + icmp.len()) as u16);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_next_header(IpProtocol::Icmp);
    ip.set_src_addr(target);
    ip.set_dst_addr(source);
    ip.fill_checksum();
    let mut message = Icmpv4Packet::new_unchecked(&mut reply[IPV4_HEADER_LEN..]);
    message.set_msg_type(Icmpv4Message::EchoReply);
    message.fill_checksum();
    Ok(reply)
}

fn answer6(plan: &AddressPlan, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    let request = Ipv6Packet::new_checked(packet).map_err(|_| DropReason::BadIpHeader)?;
    let (source, target) = (request.src_addr(), request.dst_addr());
    if request.next_header() != IpProtocol::Icmpv6 || !plan.answers_echo(target.into()) {
        return Err(DropReason::UnhandledIcmp);
    }
    let icmp = request.payload();
    let message = Icmpv6Packet::new_checked(icmp).map_err(|_| DropReason::BadTransportHeader)?;
    if message.msg_type() != Icmpv6Message::EchoRequest || message.msg_code() != 0 {
        return Err(DropReason::UnhandledIcmp);
    }
    if !message.verify_checksum(&source, &target) {
        return Err(DropReason::BadTransportChecksum);
    }
    let header = Ipv6Repr {
        src_addr: target,
        dst_addr: source,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.len(),
        hop_limit: HOP_LIMIT,
    };
    let mut reply = vec![0; IPV6_HEADER_LEN];
    reply.extend(icmp);
    let mut ip = Ipv6Packet::new_unchecked(&mut reply[..]);
    header.emit(&mut ip);
    ip.set_traffic_class(request.traffic_class());
    let mut message = Icmpv6Packet::new_unchecked(&mut reply[IPV6_HEADER_LEN..]);
    message.set_msg_type(Icmpv6Message::EchoReply);
    message.fill_checksum(&target, &source);
    Ok(reply)
}
