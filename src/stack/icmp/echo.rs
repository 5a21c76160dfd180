//! Echo through ping sockets: the kernel owns the identifier and the checksum (icmp(7)), so the
//! guest's identifier is put back into what returns.

use std::net::IpAddr;

use crate::base::DropReason;
use crate::stack::wire::{IpHeader, fill_icmp_checksum, packet, protocol};

/// Type, code, checksum, identifier, sequence number.
const HEADER_LEN: usize = 8;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// The identifier of an echo request; 0 is as good as any. `Err` if `message` is something else.
pub fn request_ident(message: &[u8], ipv6: bool) -> Result<u16, DropReason> {
    let header = message.first_chunk::<HEADER_LEN>().ok_or(DropReason::BadTransportHeader)?;
    let wanted = if ipv6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST };
    if header[0] != wanted || header[1] != 0 {
        return Err(DropReason::UnhandledIcmp);
    }
    Ok(u16::from_be_bytes([header[4], header[5]]))
}

/// Puts `ident` into an echo message.
pub fn set_ident(message: &mut [u8], ident: u16) {
    if let Some(field) = message.get_mut(4..6) {
        field.copy_from_slice(&ident.to_be_bytes());
    }
}

/// The packet that brings `reply`, as a ping socket gave it, to the guest under its identifier.
/// `None` if it is no echo reply.
pub fn reply_packet(
    reply: &mut [u8],
    ident: u16,
    peer: IpAddr,
    guest: IpAddr,
    tos: u8,
    hop_limit: u8,
) -> Option<Vec<u8>> {
    let (wanted, protocol) = match guest {
        IpAddr::V4(_) => (ECHO_REPLY, protocol::ICMP),
        IpAddr::V6(_) => (ECHO_REPLY_V6, protocol::ICMPV6),
    };
    if reply.len() < HEADER_LEN || reply[0] != wanted {
        return None;
    }
    set_ident(reply, ident);
    fill_icmp_checksum(reply, peer, guest);
    let header = IpHeader { source: peer, target: guest, protocol, tos, hop_limit };
    packet(&header, reply, reply.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::ip::{Parsed, parse_v4, parse_v6};
    use crate::stack::wire::checksum;

    #[test]
    fn requests_are_told_from_the_rest() {
        assert_eq!(request_ident(&[8, 0, 0, 0, 0, 0, 0, 1], false), Ok(0));
        assert_eq!(request_ident(&[128, 0, 0, 0, 0xab, 0xcd, 0, 1, 9], true), Ok(0xabcd));
        let other = Err(DropReason::UnhandledIcmp);
        assert_eq!(request_ident(&[0, 0, 0, 0, 0, 0, 0, 1], false), other);
        assert_eq!(request_ident(&[8, 0, 0, 0, 0, 0, 0, 1], true), other);
        assert_eq!(request_ident(&[8, 0, 0], false), Err(DropReason::BadTransportHeader));
    }

    #[test]
    fn a_reply_carries_the_guests_identifier_and_right_sums() {
        let (peer, guest) = ("192.0.2.7".parse().unwrap(), "10.0.2.100".parse().unwrap());
        let mut reply = vec![0, 0, 0xde, 0xad, 0x11, 0x22, 0, 5, 1, 2, 3];
        let bytes = reply_packet(&mut reply, 0x7788, peer, guest, 0xb8, 57).unwrap();
        let Ok(Parsed::Whole(packet)) = parse_v4(&bytes) else { panic!("not whole") };
        assert_eq!((packet.tos, packet.hop_limit, packet.protocol), (0xb8, 57, 1));
        assert_eq!(packet.payload[4..], [0x77, 0x88, 0, 5, 1, 2, 3]);
        assert_eq!(checksum::fold(checksum::sum(packet.payload)), 0xffff);

        let (peer, guest) = ("2001:db8::7".parse().unwrap(), "fd74::100".parse().unwrap());
        let mut reply = vec![129, 0, 0, 0, 0x11, 0x22, 0, 5];
        let bytes = reply_packet(&mut reply, 0, peer, guest, 0, 57).unwrap();
        let Ok(Parsed::Whole(packet)) = parse_v6(&bytes) else { panic!("not whole") };
        assert!(checksum::verify(peer, guest, 58, packet.payload));
        assert_eq!(packet.payload[4..6], [0, 0]);
        assert!(reply_packet(&mut [8, 0, 0, 0, 0, 0, 0, 0], 0, peer, guest, 0, 1).is_none());
    }
}
