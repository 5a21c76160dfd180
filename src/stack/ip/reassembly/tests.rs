//! Fragments in every way that a guest can send them: what the table promises, one by one.

use super::*;
use crate::stack::ip::parse_v4;
use crate::stack::wire::{IpHeader, packet, protocol};

/// A fragment of a UDP packet of the guest.
#[derive(Clone, Copy)]
struct Sent<'a> {
    v6: bool,
    ident: u16,
    offset: u16,
    more: bool,
    ecn: u8,
    data: &'a [u8],
}

/// Next header of IPv6: a fragment header.
const FRAGMENT: u8 = 44;

impl Sent<'_> {
    fn packet(self) -> Vec<u8> {
        let [source, target] = match self.v6 {
            true => ["fd74:6170:7761:79::100", "2001:db8::7"],
            false => ["10.0.2.100", "192.0.2.7"],
        };
        let mut transport = vec![];
        if self.v6 {
            transport.extend([protocol::UDP, 0]);
            // In eights, shifted by three: the offset itself, with the flag at the end.
            transport.extend((self.offset | u16::from(self.more)).to_be_bytes());
            transport.extend(u32::from(self.ident).to_be_bytes());
        }
        transport.extend(self.data);
        let header = IpHeader {
            source: source.parse().unwrap(),
            target: target.parse().unwrap(),
            protocol: if self.v6 { FRAGMENT } else { protocol::UDP },
            tos: self.ecn,
            hop_limit: 64,
        };
        let mut bytes = packet(&header, &transport, transport.len()).unwrap();
        if !self.v6 {
            let mut view = Ipv4Packet::new_unchecked(&mut bytes[..]);
            view.set_ident(self.ident);
            view.set_more_frags(self.more);
            view.set_frag_offset(self.offset);
            view.fill_checksum();
        }
        bytes
    }
}

/// Two halves, of which the first has a UDP header's length.
const DATA: [u8; 32] = {
    let mut data = [0; 32];
    let mut at = 0;
    while at < 32 {
        data[at] = at as u8 + 1;
        at += 1;
    }
    data
};

fn piece(v6: bool, from: u16, to: u16) -> Sent<'static> {
    let data = &DATA[usize::from(from)..usize::from(to)];
    Sent { v6, ident: 7, offset: from, more: to < 32, ecn: 0, data }
}

const SPOILT: Verdict = Verdict::Drop(DropReason::BadFragment);

/// Sends pieces at the start of time and returns what became of the last; all before are kept.
fn last_of(table: &mut Reassembly, pieces: &[Sent<'_>]) -> Verdict {
    let (last, before) = pieces.split_last().unwrap();
    for piece in before {
        assert_eq!(table.on_fragment(Instant::ZERO, &piece.packet()), Verdict::Hold);
    }
    table.on_fragment(Instant::ZERO, &last.packet())
}

/// What the whole packet carries.
fn payload(verdict: &Verdict) -> &[u8] {
    let Verdict::Whole(bytes) = verdict else { panic!("not whole: {verdict:?}") };
    let parsed = if bytes[0] >> 4 == 6 { parse_v6(bytes) } else { parse_v4(bytes) };
    let Ok(Parsed::Whole(packet)) = parsed else { panic!("{parsed:?}") };
    assert_eq!((packet.protocol, packet.bytes), (protocol::UDP, &bytes[..]));
    packet.payload
}

#[test]
fn a_repetition_is_dropped_alone() {
    for v6 in [false, true] {
        let mut table = Reassembly::new();
        let (first, last) = (piece(v6, 0, 16), piece(v6, 16, 32));
        assert_eq!(last_of(&mut table, &[first, first]), SPOILT);
        assert_eq!(payload(&last_of(&mut table, &[last])), DATA);
        assert_eq!((table.bytes(), table.next_deadline()), (0, None));
    }
}

#[test]
fn an_overlap_or_contradiction_spoils_the_packet_until_its_time_is_over() {
    for v6 in [false, true] {
        let (first, last) = (piece(v6, 0, 16), piece(v6, 16, 32));
        let changed = Sent { data: &[9; 16], ..first };
        let second_end = Sent { more: false, ..piece(v6, 8, 24) };
        for pieces in [
            &[first, piece(v6, 8, 24)][..],
            &[piece(v6, 8, 24), first],
            &[first, changed],
            // Two ends, an end before what was there, and something behind the end.
            &[last, second_end],
            &[piece(v6, 16, 24), Sent { more: false, ..piece(v6, 8, 16) }],
            &[Sent { more: false, ..piece(v6, 8, 16) }, piece(v6, 16, 24)],
        ] {
            let mut table = Reassembly::new();
            assert_eq!(last_of(&mut table, pieces), SPOILT);
            assert_eq!(table.bytes(), 0);
            // What would have completed it comes too late.
            assert_eq!(last_of(&mut table, &[first]), SPOILT);
            assert_eq!(last_of(&mut table, &[last]), SPOILT);
            let mut told = vec![];
            assert_eq!(table.on_deadline(table.next_deadline().unwrap(), &mut told), 1);
            assert!(told.is_empty(), "nobody is told of it");
            assert_eq!(payload(&last_of(&mut table, &[first, last])), DATA);
        }
    }
}

#[test]
fn what_no_fragment_can_be_is_dropped_and_leaves_nothing() {
    let mut table = Reassembly::new();
    for v6 in [false, true] {
        for bad in [
            Sent { more: true, data: &DATA[..15], ..piece(v6, 0, 16) },
            Sent { data: &[], ..piece(v6, 16, 32) },
            // Its end is beyond what a length field can say.
            Sent { offset: 65_528, data: &[1; 8], ..piece(v6, 16, 32) },
        ] {
            assert_eq!(last_of(&mut table, &[bad]), SPOILT);
        }
    }
    // RFC 8200 §4.5: all headers are in the first fragment, of TCP twenty octets.
    let mut tcp = piece(true, 0, 16).packet();
    tcp[40] = protocol::TCP;
    assert_eq!(table.on_fragment(Instant::ZERO, &tcp), SPOILT);
    for junk in [&[][..], &[0x30; 60]] {
        let verdict = table.on_fragment(Instant::ZERO, junk);
        assert_eq!(verdict, Verdict::Drop(DropReason::BadIpHeader));
    }
    assert_eq!((table.bytes(), table.next_deadline()), (0, None));
}

#[test]
fn when_its_time_is_over_a_packet_is_given_up_and_its_first_fragment_returned() {
    for (v6, timeout) in [(false, TIMEOUT_V4), (true, TIMEOUT_V6)] {
        let mut table = Reassembly::new();
        let (first, last) = (piece(v6, 0, 16), piece(v6, 16, 32));
        let headless = Sent { ident: 8, ..last };
        last_of(&mut table, &[first, headless]);
        let end = Instant::ZERO + timeout;
        assert_eq!(table.next_deadline(), Some(end));
        let mut told = vec![];
        let before = Instant::ZERO + (timeout - Duration::from_nanos(1));
        assert_eq!((table.on_deadline(before, &mut told), told.len()), (0, 0));
        assert_eq!(table.on_deadline(end, &mut told), 2);
        assert_eq!(told, [first.packet()]);
        assert_eq!((table.bytes(), table.next_deadline()), (0, None));
        // Whoever acts late on a deadline does not revive what is over.
        last_of(&mut table, &[first]);
        assert_eq!(table.on_fragment(end, &last.packet()), Verdict::Hold);
        assert_eq!(table.next_deadline(), Some(end + timeout));
    }
}

#[test]
fn packets_are_told_apart_by_family_and_number() {
    let mut table = Reassembly::new();
    let other = |sent: Sent<'static>| Sent { ident: 8, ..sent };
    for v6 in [false, true] {
        let first = piece(v6, 0, 16);
        assert_eq!(last_of(&mut table, &[first, other(first)]), Verdict::Hold);
    }
    for v6 in [false, true] {
        let last = piece(v6, 16, 32);
        for last in [last, other(last)] {
            assert_eq!(payload(&last_of(&mut table, &[last])), DATA);
        }
    }
}

/// RFC 6946: one that has nothing to wait for is whole, whatever else is held under its number.
#[test]
fn an_atomic_fragment_is_a_packet() {
    let mut table = Reassembly::new();
    let (first, last) = (piece(true, 0, 16), piece(true, 16, 32));
    let atomic = Sent { more: false, ..first };
    assert_eq!(payload(&last_of(&mut table, &[first, atomic])), &DATA[..16]);
    assert_eq!(payload(&last_of(&mut table, &[last])), DATA);
}

/// RFC 3168 §5.3.
#[test]
fn congestion_that_a_fragment_met_is_the_packets() {
    for v6 in [false, true] {
        for (first, last, expected) in
            [(0, 0, Some(0)), (1, 1, Some(1)), (2, 3, Some(3)), (3, 1, Some(3)), (0, 3, None)]
        {
            let first = Sent { ecn: first, ..piece(v6, 0, 16) };
            let last = Sent { ecn: last, ..piece(v6, 16, 32) };
            let verdict = last_of(&mut Reassembly::new(), &[first, last]);
            match expected {
                None => assert_eq!(verdict, SPOILT),
                Some(ecn) => {
                    let Verdict::Whole(bytes) = verdict else { panic!("not whole") };
                    let tos = if v6 { bytes[1] >> 4 } else { bytes[1] };
                    assert_eq!(tos, ecn);
                }
            }
        }
    }
}

#[test]
fn a_flood_of_packets_pushes_out_the_oldest() {
    let mut table = Reassembly::new();
    let number = |ident: u16| Sent { ident, ..piece(false, 0, 16) };
    for ident in 0..1000 {
        assert_eq!(last_of(&mut table, &[number(ident)]), Verdict::Hold);
        assert!(table.entries.len() <= MAX_PACKETS && table.bytes() <= MAX_BYTES);
    }
    assert_eq!((table.take_evicted(), table.take_evicted()), (1000 - MAX_PACKETS as u64, 0));
    let end = |ident: u16| Sent { ident, ..piece(false, 16, 32) };
    assert_eq!(payload(&last_of(&mut table, &[end(999)])), DATA);
    assert_eq!(last_of(&mut table, &[end(0)]), Verdict::Hold);
}

#[test]
fn tiny_fragments_are_not_free() {
    let mut table = Reassembly::new();
    let mut sent = 0;
    for ident in 0..4 {
        // Every other eight bytes, so that no packet is ever whole.
        for offset in (0..65_000_u16).step_by(16) {
            let tiny = Sent { ident, offset, data: &DATA[..8], ..piece(false, 0, 16) };
            assert_eq!(last_of(&mut table, &[tiny]), Verdict::Hold);
            assert!(table.bytes() <= MAX_BYTES);
            sent += 8 + PIECE_PRICE;
        }
    }
    assert!(sent > MAX_BYTES && table.take_evicted() > 0, "{sent} bytes are within the bound");
}
