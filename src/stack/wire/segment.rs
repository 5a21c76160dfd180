//! A TCP segment from the guest as the TCP room sees it: numbers and flags, no bytes.

use crate::base::{DropReason, Seq};

use super::formats::{TcpOption, TcpPacket};

/// The control bits that the TCP room looks at (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Synchronize sequence numbers.
    pub syn: bool,
    /// No more data from the sender.
    pub fin: bool,
    /// Reset the connection.
    pub rst: bool,
    /// Push.
    pub psh: bool,
}

/// Up to three SACK blocks (RFC 2018 §3; four would leave no room for timestamps and never occur).
pub type SackRanges = [Option<(Seq, Seq)>; 3];

/// One segment without its payload bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source port, never 0.
    pub source_port: u16,
    /// Destination port, never 0.
    pub target_port: u16,
    /// First sequence number.
    pub seq: Seq,
    /// Acknowledgment number, if the ACK bit is set.
    pub ack: Option<Seq>,
    /// Control bits.
    pub flags: Flags,
    /// The window field, unscaled.
    pub window: u16,
    /// Maximum segment size option (SYN only).
    pub mss: Option<u16>,
    /// Window scale option (SYN only, RFC 7323 §2; at most 14).
    pub window_scale: Option<u8>,
    /// SACK-permitted option (SYN only).
    pub sack_permitted: bool,
    /// Selective acknowledgments.
    pub sack: SackRanges,
    /// Payload bytes.
    pub len: u32,
}

impl Segment {
    /// Reads the header of `packet` (TCP header and payload). The second value is the offset of the
    /// payload in bytes. The checksum is the caller's business.
    pub fn parse(packet: &[u8]) -> Result<(Segment, usize), DropReason> {
        let view = TcpPacket::new_checked(packet).map_err(|_| DropReason::BadTransportHeader)?;
        let header_len = usize::from(view.header_len());
        let (source_port, target_port) = (view.src_port(), view.dst_port());
        if source_port == 0 || target_port == 0 {
            return Err(DropReason::PortZero);
        }
        let mut segment = Segment {
            source_port,
            target_port,
            seq: Seq(view.seq_number().0.cast_unsigned()),
            ack: view.ack().then(|| Seq(view.ack_number().0.cast_unsigned())),
            flags: Flags { syn: view.syn(), fin: view.fin(), rst: view.rst(), psh: view.psh() },
            window: view.window_len(),
            mss: None,
            window_scale: None,
            sack_permitted: false,
            sack: [None; 3],
            // An IP packet is at most 65,575 bytes long.
            len: (packet.len() - header_len) as u32,
        };
        if header_len > 20 {
            segment.parse_options(view.options())?;
        }
        Ok((segment, header_len))
    }

    fn parse_options(&mut self, mut options: &[u8]) -> Result<(), DropReason> {
        while !options.is_empty() {
            let (rest, option) =
                TcpOption::parse(options).map_err(|_| DropReason::BadTransportHeader)?;
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => self.mss = Some(mss),
                // RFC 7323 §2.3: a larger shift is used as 14.
                TcpOption::WindowScale(shift) => self.window_scale = Some(shift.min(14)),
                TcpOption::SackPermitted => self.sack_permitted = true,
                TcpOption::SackRange(ranges) => {
                    self.sack = ranges.map(|r| r.map(|(left, right)| (Seq(left), Seq(right))));
                }
                _ => {}
            }
            options = rest;
        }
        Ok(())
    }

    /// Sequence numbers that the segment occupies: payload, SYN and FIN.
    pub fn sequence_len(&self) -> u32 {
        self.len + u32::from(self.flags.syn) + u32::from(self.flags.fin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN as Linux 6.18 sends it over a 1500-byte link (tcpdump of `curl`, TCP header only).
    const SYN: [u8; 40] = [
        0x9c, 0x40, 0x00, 0x50, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0, 0,
        0, 0, 0x02, 0x04, 0x05, 0xb4, 0x04, 0x02, 0x08, 0x0a, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0,
        0x01, 0x03, 0x03, 0x07,
    ];

    #[test]
    fn a_linux_syn_is_understood() {
        let (segment, header_len) = Segment::parse(&SYN).unwrap();
        assert_eq!(header_len, 40);
        assert_eq!(
            segment,
            Segment {
                source_port: 40000,
                target_port: 80,
                seq: Seq(0xffff_fff0),
                ack: None,
                flags: Flags { syn: true, ..Flags::default() },
                window: 64240,
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                sack: [None; 3],
                len: 0,
            }
        );
        assert_eq!(segment.sequence_len(), 1);
    }

    #[test]
    fn bad_lengths_ports_and_options_are_refused() {
        assert_eq!(Segment::parse(&SYN[..19]), Err(DropReason::BadTransportHeader));
        assert_eq!(Segment::parse(&SYN[..39]), Err(DropReason::BadTransportHeader));
        let mut short_offset = SYN;
        short_offset[12] = 0x40;
        assert_eq!(Segment::parse(&short_offset), Err(DropReason::BadTransportHeader));
        let mut port_zero = SYN;
        port_zero[2..4].fill(0);
        assert_eq!(Segment::parse(&port_zero), Err(DropReason::PortZero));
        let mut endless_option = SYN;
        endless_option[21] = 0;
        assert_eq!(Segment::parse(&endless_option), Err(DropReason::BadTransportHeader));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(0u8.., 0..120)) {
            if let Ok((segment, offset)) = Segment::parse(&bytes) {
                proptest::prop_assert_eq!(offset + segment.len as usize, bytes.len());
            }
        }
    }
}
