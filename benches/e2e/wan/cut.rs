//! What a frame of the link holds, and how some of its segments are taken out of it.
//!
//! Between two TAPs with virtio-net headers a frame may carry many TCP segments (TSO): the wire of
//! a real path never sees it, only the segments. So each of them has its own fate. A frame of which
//! nothing is lost passes as it is, at the cost of one; from another, each run of segments that is
//! left becomes a frame of its own, as if the sender's device had cut it and the receiver's had
//! joined what arrived. (Linux's netem throws the dice once for such a frame and loses all of it:
//! at the same proportion of lost bytes a sender then meets forty times fewer losses, each of them
//! a whole flight, and that is not what a path does.)
//!
//! Frames come from the kernel, which wrote all of the offsets that are believed here; a frame that
//! does not make sense counts as one segment, and is passed or lost whole.

use std::ops::Range;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};
use tapway::stack::wire::{Gso, VNET_HEADER_LEN, VnetHeader};

/// Preamble, check sum and gap that Ethernet spends on each frame besides its bytes (IEEE 802.3).
const WIRE_OVERHEAD: usize = 8 + 4 + 12;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// How the segments of a frame lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// All headers, from the virtio-net header on, in bytes.
    headers: usize,
    /// Payload of every segment but the last, in bytes.
    segment: usize,
    /// Payload of all segments together, in bytes.
    payload: usize,
    vnet: VnetHeader,
}

impl Shape {
    /// Looks at a frame that begins with a virtio-net header.
    pub fn of(frame: &[u8]) -> Shape {
        Self::of_segments(frame).unwrap_or_else(|| {
            let headers = frame.len().min(VNET_HEADER_LEN + ETHERNET);
            let payload = frame.len() - headers;
            Shape { headers, segment: usize::MAX, payload, vnet: VnetHeader::default() }
        })
    }

    fn of_segments(frame: &[u8]) -> Option<Shape> {
        let vnet = VnetHeader::parse(frame).ok()?;
        let Some(Gso::Tcp4(segment) | Gso::Tcp6(segment)) = vnet.gso else { return None };
        let (start, _) = vnet.partial_checksum?;
        let transport = VNET_HEADER_LEN + usize::from(start);
        let tcp = TcpPacket::new_checked(frame.get(transport..)?).ok()?;
        let headers = transport + usize::from(tcp.header_len());
        let payload = frame.len() - headers;
        Some(Shape { headers, segment: segment.into(), payload, vnet })
    }

    /// How many segments the wire would see.
    pub fn segments(&self) -> usize {
        self.payload.div_ceil(self.segment).max(1)
    }

    /// Bytes that segment `index` takes on an Ethernet.
    pub fn wire_bytes(&self, index: usize) -> usize {
        self.headers.saturating_sub(VNET_HEADER_LEN)
            + self.payload_of(&(index..index + 1)).len()
            + WIRE_OVERHEAD
    }

    /// Where the payload of these segments lies, counted from the first payload byte.
    fn payload_of(&self, segments: &Range<usize>) -> Range<usize> {
        let at = |index: usize| index.saturating_mul(self.segment).min(self.payload);
        at(segments.start)..at(segments.end)
    }

    /// The frame that carries only these `segments` of `frame`.
    pub fn piece(&self, frame: &[u8], segments: &Range<usize>) -> Vec<u8> {
        if segments.len() == self.segments() {
            return frame.to_vec();
        }
        let payload = self.payload_of(segments);
        let mut out = Vec::with_capacity(self.headers + payload.len());
        out.extend_from_slice(&frame[..self.headers]);
        out.extend_from_slice(&frame[self.headers..][payload.clone()]);
        let mut vnet = self.vnet;
        if segments.len() == 1 {
            vnet.gso = None;
        }
        vnet.emit(&mut out);
        let ends = payload.end == self.payload;
        // Headers that cannot be mended are not the kernel's.
        let _ = mend_headers(&mut out[VNET_HEADER_LEN..], segments.start, payload.start, ends);
        out
    }
}

/// Makes the headers of an Ethernet frame, copied from one whose payload began `skipped` bytes and
/// `index` segments earlier, those of a frame of its own.
fn mend_headers(frame: &mut [u8], index: usize, skipped: usize, ends: bool) -> Option<()> {
    let mut ethernet = EthernetFrame::new_checked(frame).ok()?;
    let kind = ethernet.ethertype();
    let packet = ethernet.payload_mut();
    let len = u16::try_from(packet.len()).ok()?;
    // The kernel leaves behind `NEEDS_CSUM` the sum of the pseudo-header, in which the length of
    // the TCP part stands: that alone changes.
    let (transport, shorter_by) = match kind {
        EthernetProtocol::Ipv4 => {
            let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
            let before = ip.total_len();
            ip.set_total_len(len);
            // One number per segment, as the kernel counts them up.
            ip.set_ident(ip.ident().wrapping_add(index as u16));
            ip.fill_checksum();
            (usize::from(ip.header_len()), before.checked_sub(len)?)
        }
        EthernetProtocol::Ipv6 => {
            const HEADER: u16 = 40;
            let mut ip = Ipv6Packet::new_unchecked(&mut *packet);
            let before = ip.payload_len();
            ip.set_payload_len(len.checked_sub(HEADER)?);
            (usize::from(HEADER), before.checked_sub(len.checked_sub(HEADER)?)?)
        }
        _ => return None,
    };
    let mut tcp = TcpPacket::new_unchecked(packet.get_mut(transport..)?);
    tcp.set_seq_number(tcp.seq_number() + skipped);
    if !ends {
        tcp.set_fin(false);
        tcp.set_psh(false);
    }
    // Ones' complement: less is adding the complement, with the carry brought round (RFC 1071).
    let sum = u32::from(tcp.checksum()) + u32::from(!shorter_by);
    tcp.set_checksum(((sum & 0xffff) + (sum >> 16)) as u16);
    Some(())
}
