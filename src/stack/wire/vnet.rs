//! The virtio-net header in front of every frame on the TAP (D1).
//!
//! Layout: `struct virtio_net_hdr_v1` of linux/virtio_net.h, 12 bytes, in host byte order (a TUN
//! device is "legacy" unless TUNSETVNETLE says otherwise).
//!
//! Trust: from the guest's side every field is what its kernel, or a raw socket in it, chose. The
//! offsets are only believed after [`VnetHeader::check`].

use crate::base::DropReason;

/// Length of the header in bytes (TUNSETVNETHDRSZ).
pub const VNET_HEADER_LEN: usize = 12;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a frame larger than the MTU is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP segments over IPv4 of this many payload bytes.
    Tcp4(u16),
    /// TCP segments over IPv6 of this many payload bytes.
    Tcp6(u16),
    /// UDP datagrams of this many payload bytes (USO).
    Udp(u16),
}

/// The fields that tapway uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum field holds only the pseudo-header sum: start of the summed area and offset of
    /// the field in it, both in bytes, the start counted from the Ethernet header.
    pub partial_checksum: Option<(u16, u16)>,
    /// The sender's kernel vouches for the checksum.
    pub checksum_valid: bool,
    /// Segmentation that is still owed.
    pub gso: Option<Gso>,
    /// Length of all headers in bytes, a hint for the receiving kernel.
    pub header_len: u16,
}

impl VnetHeader {
    /// Reads the header at the start of `frame`.
    pub fn parse(frame: &[u8]) -> Result<VnetHeader, DropReason> {
        let bytes: &[u8; VNET_HEADER_LEN] = frame.first_chunk().ok_or(DropReason::Truncated)?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let size = word(4);
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Gso::Tcp4(size)),
            GSO_TCPV6 => Some(Gso::Tcp6(size)),
            GSO_UDP_L4 => Some(Gso::Udp(size)),
            GSO_UDP => return Err(DropReason::BadOffload),
            _ => return Err(DropReason::BadOffload),
        };
        let header = VnetHeader {
            partial_checksum: (bytes[0] & F_NEEDS_CSUM != 0).then(|| (word(6), word(8))),
            checksum_valid: bytes[0] & F_DATA_VALID != 0,
            gso,
            header_len: word(2),
        };
        header.check(frame.len() - VNET_HEADER_LEN)?;
        Ok(header)
    }

    /// Whether offsets and sizes fit an Ethernet frame of `frame_len` bytes.
    fn check(&self, frame_len: usize) -> Result<(), DropReason> {
        if let Some((start, offset)) = self.partial_checksum
            && usize::from(start) + usize::from(offset) + 2 > frame_len
        {
            return Err(DropReason::BadOffload);
        }
        match self.gso {
            Some(Gso::Tcp4(0) | Gso::Tcp6(0) | Gso::Udp(0)) => Err(DropReason::BadOffload),
            _ => Ok(()),
        }
    }

    /// Writes the header into the first 12 bytes of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`VNET_HEADER_LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let (kind, size) = match self.gso {
            None => (GSO_NONE, 0),
            Some(Gso::Tcp4(size)) => (GSO_TCPV4, size),
            Some(Gso::Tcp6(size)) => (GSO_TCPV6, size),
            Some(Gso::Udp(size)) => (GSO_UDP_L4, size),
        };
        let (start, offset) = self.partial_checksum.unwrap_or((0, 0));
        let valid = if self.checksum_valid { F_DATA_VALID } else { 0 };
        out[0] = if self.partial_checksum.is_some() { F_NEEDS_CSUM } else { valid };
        out[1] = kind;
        out[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        out[4..6].copy_from_slice(&size.to_ne_bytes());
        out[6..8].copy_from_slice(&start.to_ne_bytes());
        out[8..10].copy_from_slice(&offset.to_ne_bytes());
        out[10..12].copy_from_slice(&0u16.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emit_and_parse_agree() {
        let header = VnetHeader {
            partial_checksum: Some((34, 16)),
            checksum_valid: false,
            gso: Some(Gso::Tcp4(1448)),
            header_len: 66,
        };
        let mut frame = [0u8; 100];
        header.emit(&mut frame);
        // linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
        assert_eq!(frame[0..2], [1, 1]);
        assert_eq!(VnetHeader::parse(&frame), Ok(header));
    }

    #[test]
    fn offsets_outside_the_frame_are_refused() {
        let header = VnetHeader { partial_checksum: Some((90, 16)), ..VnetHeader::default() };
        let mut frame = [0u8; 100];
        header.emit(&mut frame);
        assert_eq!(VnetHeader::parse(&frame), Err(DropReason::BadOffload));
        assert_eq!(VnetHeader::parse(&frame[..11]), Err(DropReason::Truncated));
    }

    #[test]
    fn segmentation_without_a_size_is_refused() {
        let mut frame = [0u8; 80];
        frame[1] = GSO_TCPV6;
        assert_eq!(VnetHeader::parse(&frame), Err(DropReason::BadOffload));
        frame[1] = 77;
        assert_eq!(VnetHeader::parse(&frame), Err(DropReason::BadOffload));
    }
}
