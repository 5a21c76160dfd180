//! Ethernet: is the frame for us, and what is in it.
//!
//! Follows RFC 894 and RFC 2464 (Ethernet II only; 802.3 length fields are no EtherType). Hostile
//! input: every byte.
#![forbid(unsafe_code)]

use crate::base::{DropReason, Mac};
use crate::stack::wire::ETHERNET_HEADER_LEN;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// An ARP packet.
    Arp,
    /// An IPv4 packet.
    Ipv4,
    /// An IPv6 packet.
    Ipv6,
}

/// A frame from the guest that is for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Who sent it.
    pub source: Mac,
    /// Whether it was sent to a group: what it carries for one host only is then not for us
    /// (RFC 1122 §3.3.6).
    pub to_group: bool,
    /// What it carries.
    pub carried: Carried,
    /// What follows the Ethernet header, padding included.
    pub payload: &'a [u8],
}

/// Judges `frame`, which begins with its Ethernet header. It has to be for `ours` or for a group.
pub fn from_guest(frame: &[u8], ours: Mac) -> Result<Frame<'_>, DropReason> {
    let (header, payload) =
        frame.split_first_chunk::<ETHERNET_HEADER_LEN>().ok_or(DropReason::Truncated)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let target = Mac([d0, d1, d2, d3, d4, d5]);
    if target != ours && !target.is_multicast() {
        return Err(DropReason::ForeignMac);
    }
    let source = Mac([s0, s1, s2, s3, s4, s5]);
    if source.is_multicast() || source == ours {
        return Err(DropReason::ForgedSource);
    }
    let carried = match u16::from_be_bytes([t0, t1]) {
        0x0800 => Carried::Ipv4,
        0x0806 => Carried::Arp,
        0x86dd => Carried::Ipv6,
        _ => return Err(DropReason::UnknownEtherType),
    };
    Ok(Frame { source, to_group: target != ours, carried, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);

    fn frame(target: [u8; 6], source: [u8; 6], kind: u16) -> Vec<u8> {
        let mut bytes = target.to_vec();
        bytes.extend(source);
        bytes.extend(kind.to_be_bytes());
        bytes.push(0x45);
        bytes
    }

    #[test]
    fn frames_for_us_and_for_groups_pass() {
        for target in [OURS.0, [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            let bytes = frame(target, [2, 0, 0, 0, 0, 1], 0x0800);
            let frame = from_guest(&bytes, OURS).unwrap();
            assert_eq!(frame.source, Mac([2, 0, 0, 0, 0, 1]));
            assert_eq!((frame.carried, frame.payload), (Carried::Ipv4, &[0x45][..]));
            assert_eq!(frame.to_group, target != OURS.0);
        }
    }

    #[test]
    fn others_are_dropped_with_their_reason() {
        let good = [2, 0, 0, 0, 0, 1];
        let judge = |bytes: &[u8]| from_guest(bytes, OURS).unwrap_err();
        assert_eq!(judge(&frame([2; 6], good, 0x0800)), DropReason::ForeignMac);
        assert_eq!(judge(&frame(OURS.0, [0xff; 6], 0x0800)), DropReason::ForgedSource);
        assert_eq!(judge(&frame(OURS.0, OURS.0, 0x0800)), DropReason::ForgedSource);
        assert_eq!(judge(&frame(OURS.0, good, 0x0026)), DropReason::UnknownEtherType);
        assert_eq!(judge(&frame(OURS.0, good, 0x8100)), DropReason::UnknownEtherType);
        assert_eq!(judge(&frame(OURS.0, good, 0x0800)[..13]), DropReason::Truncated);
    }
}
