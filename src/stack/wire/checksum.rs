//! The Internet checksum (RFC 1071) where smoltcp's own emitters are not used: in-place headers.

use std::net::IpAddr;

use super::formats::Ipv4Address;

/// The sum over `bytes`, not folded into 16 bits beyond what fits, not inverted.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total: u64 = 0;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        // The chunk has exactly four bytes.
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut rest = words.remainder();
    if let [high, low, tail @ ..] = rest {
        total += u64::from(u16::from_be_bytes([*high, *low]));
        rest = tail;
    }
    if let [last] = rest {
        total += u64::from(u16::from_be_bytes([*last, 0]));
    }
    let folded = (total & 0xffff_ffff) + (total >> 32);
    let folded = (folded & 0xffff) + (folded >> 16 & 0xffff) + (folded >> 32);
    u32::try_from(folded).unwrap_or(u32::MAX)
}

/// As [`sum`], over bytes that stand in several `parts`, of any length each.
pub fn sum_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let (mut total, mut odd) = (0, false);
    for part in parts {
        let folded = fold(sum(part));
        // RFC 1071 §2 (B): a sum of swapped bytes is the swapped sum.
        total += u32::from(if odd { folded.swap_bytes() } else { folded });
        total = u32::from(fold(total));
        odd ^= part.len() % 2 == 1;
    }
    total
}

/// Folds a sum into 16 bits; the one's complement of the result is the checksum.
pub fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // Folded to at most 0xffff by the loop.
    total as u16
}

/// The pseudo-header sum of RFC 9293 §3.1 and RFC 8200 §8.1, not inverted.
pub fn pseudo_header(source: IpAddr, target: IpAddr, protocol: u8, length: u32) -> u32 {
    let addresses = match (source, target) {
        (IpAddr::V4(s), IpAddr::V4(t)) => octets4(s) + octets4(t),
        (IpAddr::V6(s), IpAddr::V6(t)) => sum(&s.octets()) + sum(&t.octets()),
        // Both ends of a packet have one family; a mixed pair has no pseudo-header.
        _ => 0,
    };
    addresses + u32::from(protocol) + (length >> 16) + (length & 0xffff)
}

fn octets4(address: Ipv4Address) -> u32 {
    sum(&address.octets())
}

/// Whether a transport packet with its checksum field filled in sums up right.
pub fn verify(source: IpAddr, target: IpAddr, protocol: u8, packet: &[u8]) -> bool {
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    fold(pseudo_header(source, target, protocol, length) + sum(packet)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        // RFC 1071 §3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2 (with the carry folded in).
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn odd_length_is_padded_with_a_zero_octet() {
        assert_eq!(fold(sum(&[1, 2, 3])), fold(sum(&[1, 2, 3, 0])));
        assert_eq!(fold(sum(&[1, 2, 3, 4, 5])), fold(sum(&[1, 2, 3, 4, 5, 0])));
    }

    #[test]
    fn a_sum_is_the_same_wherever_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..23_u32).map(|at| (at * 37 + 200) as u8).collect();
        let whole = fold(sum(&bytes));
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(fold(sum_parts(parts)), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn large_sums_do_not_lose_carries() {
        assert_eq!(fold(sum(&vec![0xff; 65536])), 0xffff);
    }
}
