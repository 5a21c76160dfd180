//! A UDP header (RFC 768).
//!
//! The length field may say less than the IP packet holds: what follows is padding, not covered by
//! the checksum, and dropped as Linux does. It may not say more.

use crate::base::DropReason;

use super::formats::UdpPacket;

/// Ports and payload of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source port, never 0: an answer could not be delivered.
    pub source_port: u16,
    /// Destination port, never 0.
    pub target_port: u16,
    /// The payload; may be empty.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads the header of `packet`. The checksum is the caller's business.
    pub fn parse(packet: &'a [u8]) -> Result<Datagram<'a>, DropReason> {
        let view = UdpPacket::new_checked(packet).map_err(|_| DropReason::BadTransportHeader)?;
        let (source_port, target_port) = (view.src_port(), view.dst_port());
        if source_port == 0 || target_port == 0 {
            return Err(DropReason::PortZero);
        }
        Ok(Datagram { source_port, target_port, payload: view.payload() })
    }

    /// The bytes of `packet` that its length field claims, header included: those that the checksum
    /// covers.
    pub fn covered(packet: &[u8]) -> Result<&[u8], DropReason> {
        let view = UdpPacket::new_checked(packet).map_err(|_| DropReason::BadTransportHeader)?;
        // Checked just now to lie between a header's length and that of `packet`.
        Ok(&packet[..usize::from(view.len())])
    }

    /// Whether the sender left the checksum out, which IPv4 allows and IPv6 does not (RFC 8200
    /// §8.1).
    pub fn without_checksum(packet: &[u8]) -> bool {
        packet.get(6..8) == Some(&[0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_claimed_length_is_padding() {
        let packet = [0x30, 0x39, 0x00, 0x35, 0x00, 0x0a, 0x00, 0x00, 0xab, 0xcd, 0xee, 0xee];
        assert_eq!(Datagram::covered(&packet), Ok(&packet[..10]));
        assert_eq!(Datagram::parse(&packet).unwrap().payload, [0xab, 0xcd]);
        for len in 0..10 {
            assert_eq!(Datagram::covered(&packet[..len]), Err(DropReason::BadTransportHeader));
        }
    }

    #[test]
    fn lengths_and_ports_are_checked() {
        let packet = [0x30, 0x39, 0x00, 0x35, 0x00, 0x0a, 0x00, 0x00, 0xab, 0xcd];
        let datagram = Datagram::parse(&packet).unwrap();
        assert_eq!((datagram.source_port, datagram.target_port), (12345, 53));
        assert_eq!(datagram.payload, [0xab, 0xcd]);
        assert_eq!(Datagram::parse(&packet[..7]), Err(DropReason::BadTransportHeader));
        assert_eq!(Datagram::parse(&packet[..9]), Err(DropReason::BadTransportHeader));
        let mut zero = packet;
        zero[2..4].fill(0);
        assert_eq!(Datagram::parse(&zero), Err(DropReason::PortZero));
        let mut length_below_header = packet;
        length_below_header[5] = 7;
        assert_eq!(Datagram::parse(&length_below_header), Err(DropReason::BadTransportHeader));
    }
}
