//! Reassembly of fragmented packets from the guest, IPv4 and IPv6 in one bounded table.
//!
//! ```text
//!   fragment -> key -> entry: pieces by offset, total length once the last piece is there
//!                      all bytes there --------> the packet, as if it had never been fragmented
//!                      overlap, contradiction -> entry is spoilt: nothing comes of it until it
//!                                                times out, whatever else arrives
//!                      time over --------------> the first fragment, for an ICMP error
//! ```
//! Follows RFC 791 §3.2 and RFC 1122 §3.3.2 (IPv4), RFC 8200 §4.5, RFC 5722 (overlaps) and RFC 6946
//! (atomic fragments) for IPv6, RFC 3168 §5.3 (ECN). Departs: overlapping IPv4 fragments spoil the
//! packet as in IPv6, where RFC 791 lets the later win; an exact repetition is dropped alone, which
//! RFC 8200 allows; malformed fragments are counted, not answered with a parameter problem.
//!
//! Hostile input: all of it. The table holds at most [`MAX_PACKETS`] and [`MAX_BYTES`], counting a
//! fixed price for each piece so that tiny fragments are not free; the oldest entry makes room.
//! IPv4 header checksums have been verified by [`super::parse_v4`].

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::base::{DropReason, Instant};
use crate::stack::wire::formats::{
    IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet,
};

use super::{Parsed, parse_v6};

/// Most packets in reassembly at a time.
pub const MAX_PACKETS: usize = 64;

/// Most bytes of pieces and their bookkeeping, for all packets together.
pub const MAX_BYTES: usize = 1 << 20;

/// Longest packet: the total length field of IPv4, and for IPv6 what a payload length can say.
const MAX_PACKET: usize = 65_535;

/// What a piece costs beyond its data: the vector that holds it and the allocation behind it.
const PIECE_PRICE: usize = 64;

/// How long an IPv4 packet may take (Linux: ipfrag_time; RFC 791 suggests 15 s at first).
const TIMEOUT_V4: Duration = Duration::from_secs(30);

/// How long an IPv6 packet may take (RFC 8200 §4.5: 60 s from the first-arriving fragment).
const TIMEOUT_V6: Duration = Duration::from_secs(60);

/// Length of the IPv6 fragment header.
const FRAGMENT_HEADER_LEN: usize = 8;

/// What became of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is whole; it has no fragment fields or header any more.
    Whole(Vec<u8>),
    /// Kept until the rest arrives.
    Hold,
    /// Dropped, possibly with everything that was held for its packet.
    Drop(DropReason),
}

/// The table.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// Oldest first.
    entries: Vec<Entry>,
    /// The price of all pieces.
    bytes: usize,
    evicted: u64,
}

/// What tells the packets of one guest apart: RFC 791 "identification", RFC 8200 §4.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    V4 { source: Ipv4Addr, target: Ipv4Addr, protocol: IpProtocol, ident: u16 },
    V6 { source: Ipv6Addr, target: Ipv6Addr, ident: u32 },
}

#[derive(Debug)]
struct Entry {
    key: Key,
    deadline: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Collecting(Pieces),
    /// RFC 5722 §4: fragments yet to come are discarded as well.
    Spoilt,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Headers of the fragment at offset 0, fragment header included.
    head: Option<Vec<u8>>,
    /// By offset, without overlap.
    data: Vec<Piece>,
    /// Bytes in `data`.
    held: usize,
    /// Where the last fragment ends.
    total: Option<usize>,
    /// One bit for each ECN codepoint seen.
    ecn_seen: u8,
}

#[derive(Debug)]
struct Piece {
    offset: usize,
    bytes: Vec<u8>,
}

/// A fragment, taken apart.
#[derive(Debug)]
struct Fragment<'a> {
    key: Key,
    head: &'a [u8],
    data: &'a [u8],
    offset: usize,
    more: bool,
    ecn: u8,
}

impl Reassembly {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `packet`, a whole IP packet that is a fragment of another one.
    pub fn on_fragment(&mut self, now: Instant, packet: &[u8]) -> Verdict {
        let fragment = match Fragment::parse(packet) {
            Ok(fragment) => fragment,
            Err(reason) => return Verdict::Drop(reason),
        };
        if fragment.is_atomic() {
            // RFC 6946 §4: whatever is held under the same key is another matter.
            return match fragment.key.rebuild(fragment.head, fragment.data, fragment.ecn) {
                Some(packet) => Verdict::Whole(packet),
                None => Verdict::Drop(DropReason::BadFragment),
            };
        }
        let position = self.find_or_insert(now, fragment.key);
        let Entry { state, key, .. } = &mut self.entries[position];
        let State::Collecting(pieces) = state else {
            return Verdict::Drop(DropReason::BadFragment);
        };
        let price_before = pieces.price();
        match pieces.add(&fragment) {
            Added::Kept => {
                self.bytes += pieces.price() - price_before;
                if !pieces.is_complete() {
                    return self.make_room(fragment.key);
                }
                let packet = pieces.join(*key);
                self.remove(position);
                match packet {
                    Some(packet) => Verdict::Whole(packet),
                    None => Verdict::Drop(DropReason::BadFragment),
                }
            }
            Added::Repetition => Verdict::Drop(DropReason::BadFragment),
            Added::Conflict => {
                *state = State::Spoilt;
                self.bytes -= price_before;
                Verdict::Drop(DropReason::BadFragment)
            }
        }
    }

    /// Gives up packets whose time is over at `now`, and returns how many. Appends to `first` the
    /// first fragment of each that had arrived: an ICMP "reassembly time exceeded" about it is due.
    pub fn on_deadline(&mut self, now: Instant, first: &mut Vec<Vec<u8>>) -> usize {
        let before = self.entries.len();
        let mut position = 0;
        while let Some(entry) = self.entries.get(position) {
            if now < entry.deadline {
                position += 1;
                continue;
            }
            if let State::Collecting(pieces) = self.remove(position).state {
                first.extend(pieces.into_first_fragment());
            }
        }
        before - self.entries.len()
    }

    /// When [`Reassembly::on_deadline`] wants to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.iter().map(|entry| entry.deadline).min()
    }

    /// Bytes held, with the price of each piece; at most [`MAX_BYTES`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many packets were given up for lack of room since this was last asked
    /// ([`DropReason::FragmentLimit`]).
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn find_or_insert(&mut self, now: Instant, key: Key) -> usize {
        // An entry whose time is over but whose deadline nobody has acted on yet is not revived.
        if let Some(found) = self.entries.iter().position(|entry| entry.key == key) {
            if now < self.entries[found].deadline {
                return found;
            }
            self.remove(found);
        }
        if self.entries.len() == MAX_PACKETS {
            self.remove(0);
            self.evicted += 1;
        }
        let timeout = match key {
            Key::V4 { .. } => TIMEOUT_V4,
            Key::V6 { .. } => TIMEOUT_V6,
        };
        let state = State::Collecting(Pieces::default());
        self.entries.push(Entry { key, deadline: now + timeout, state });
        self.entries.len() - 1
    }

    /// Evicts the oldest packets until the bytes are within bounds; the one under `key` may be
    /// among them.
    fn make_room(&mut self, key: Key) -> Verdict {
        let mut verdict = Verdict::Hold;
        while self.bytes > MAX_BYTES {
            // Spoilt entries hold no bytes, but they are as good as any to lose.
            if self.remove(0).key == key {
                verdict = Verdict::Drop(DropReason::FragmentLimit);
            } else {
                self.evicted += 1;
            }
        }
        verdict
    }

    fn remove(&mut self, position: usize) -> Entry {
        let entry = self.entries.remove(position);
        if let State::Collecting(pieces) = &entry.state {
            self.bytes -= pieces.price();
        }
        entry
    }
}

enum Added {
    Kept,
    Repetition,
    Conflict,
}

impl Pieces {
    fn add(&mut self, fragment: &Fragment<'_>) -> Added {
        let start = fragment.offset;
        let end = start + fragment.data.len();
        let at = self.data.partition_point(|piece| piece.offset < start);
        if let Some(same) = self.data.get(at).filter(|piece| piece.offset == start) {
            let was_last = self.total == Some(end);
            return if same.bytes == fragment.data && fragment.more != was_last {
                Added::Repetition
            } else {
                Added::Conflict
            };
        }
        let overlaps_next = self.data.get(at).is_some_and(|next| next.offset < end);
        let overlaps_previous =
            at > 0 && self.data.get(at - 1).is_some_and(|previous| previous.end() > start);
        let beyond = match (fragment.more, self.total) {
            // Two last fragments, or one with more data behind it.
            (false, Some(_)) => true,
            (false, None) => self.data.last().is_some_and(|piece| piece.end() > end),
            (true, Some(total)) => end > total,
            (true, None) => false,
        };
        if overlaps_next || overlaps_previous || beyond {
            return Added::Conflict;
        }
        if start == 0 {
            self.head = Some(fragment.head.to_vec());
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.ecn_seen |= 1 << fragment.ecn;
        self.held += fragment.data.len();
        self.data.insert(at, Piece { offset: start, bytes: fragment.data.to_vec() });
        Added::Kept
    }

    /// Without overlaps, as many bytes as the total are all the bytes.
    fn is_complete(&self) -> bool {
        self.total == Some(self.held)
    }

    fn price(&self) -> usize {
        let head = self.head.as_ref().map_or(0, Vec::len);
        head + self.held + self.data.len() * PIECE_PRICE
    }

    fn join(&self, key: Key) -> Option<Vec<u8>> {
        let mut data = Vec::with_capacity(self.held);
        self.data.iter().for_each(|piece| data.extend(&piece.bytes));
        key.rebuild(self.head.as_ref()?, &data, self.ecn()?)
    }

    /// RFC 3168 §5.3: congestion that one fragment met is the packet's; a mixture of "not capable"
    /// and "congested" has no honest meaning.
    fn ecn(&self) -> Option<u8> {
        const NOT_CAPABLE: u8 = 0;
        const CONGESTED: u8 = 3;
        let seen = |ecn: u8| self.ecn_seen & (1 << ecn) != 0;
        match (seen(NOT_CAPABLE), seen(CONGESTED)) {
            (true, true) => None,
            (false, true) => Some(CONGESTED),
            _ => Some(self.ecn_seen.trailing_zeros().try_into().unwrap_or(NOT_CAPABLE)),
        }
    }

    /// The fragment at offset 0 as it arrived, if it did.
    fn into_first_fragment(self) -> Option<Vec<u8>> {
        let mut packet = self.head?;
        packet.extend(&self.data.first()?.bytes);
        Some(packet)
    }
}

impl Piece {
    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }
}

impl<'a> Fragment<'a> {
    fn parse(packet: &'a [u8]) -> Result<Self, DropReason> {
        let fragment = match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet)?,
            Some(6) => Self::parse_v6(packet)?,
            _ => return Err(DropReason::BadIpHeader),
        };
        let end = fragment.offset + fragment.data.len();
        let headers = match fragment.key {
            Key::V4 { .. } => fragment.head.len(),
            // What is fragmented and what precedes it share the payload length.
            Key::V6 { .. } => fragment.head.len() - IPV6_HEADER_LEN - FRAGMENT_HEADER_LEN,
        };
        let good = headers + end <= MAX_PACKET
            && (!fragment.more || fragment.data.len().is_multiple_of(8))
            && (!fragment.data.is_empty() || fragment.is_atomic());
        if good { Ok(fragment) } else { Err(DropReason::BadFragment) }
    }

    fn parse_v4(packet: &'a [u8]) -> Result<Self, DropReason> {
        let view = Ipv4Packet::new_checked(packet).map_err(|_| DropReason::BadIpHeader)?;
        let key = Key::V4 {
            source: view.src_addr(),
            target: view.dst_addr(),
            protocol: view.next_header(),
            ident: view.ident(),
        };
        // Both lengths were checked against the buffer.
        let (head, data) =
            packet[..usize::from(view.total_len())].split_at(usize::from(view.header_len()));
        let offset = usize::from(view.frag_offset());
        Ok(Fragment { key, head, data, offset, more: view.more_frags(), ecn: view.ecn() })
    }

    fn parse_v6(packet: &'a [u8]) -> Result<Self, DropReason> {
        let Parsed::Fragment(outer) = parse_v6(packet)? else {
            return Err(DropReason::BadFragment);
        };
        let header = Ipv6FragmentHeader::new_checked(
            // `parse_v6` found eight octets there; the view begins behind the first two.
            outer.payload.get(2..FRAGMENT_HEADER_LEN).ok_or(DropReason::BadFragment)?,
        )
        .map_err(|_| DropReason::BadFragment)?;
        let data = &outer.payload[FRAGMENT_HEADER_LEN..];
        let view = Ipv6Packet::new_unchecked(outer.bytes);
        let key =
            Key::V6 { source: view.src_addr(), target: view.dst_addr(), ident: header.ident() };
        let fragment = Fragment {
            key,
            head: &outer.bytes[..outer.bytes.len() - data.len()],
            data,
            offset: usize::from(header.frag_offset()) * 8,
            more: header.more_frags(),
            ecn: outer.tos & 3,
        };
        fragment.check_first()?;
        Ok(fragment)
    }

    /// RFC 8200 §4.5: the first fragment holds all headers up to the upper layer's.
    fn check_first(&self) -> Result<(), DropReason> {
        if self.offset != 0 {
            return Ok(());
        }
        let alone = self.key.rebuild(self.head, self.data, self.ecn);
        let alone = alone.ok_or(DropReason::BadFragment)?;
        let Ok(Parsed::Whole(packet)) = parse_v6(&alone) else {
            return Err(DropReason::BadFragment);
        };
        let needed = match IpProtocol::from(packet.protocol) {
            IpProtocol::Tcp => 20,
            IpProtocol::Udp | IpProtocol::Icmpv6 => 8,
            _ => 0,
        };
        if packet.payload.len() >= needed { Ok(()) } else { Err(DropReason::BadFragment) }
    }

    fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

impl Key {
    /// The packet whose first fragment has the headers `head` and whose fragmented part is `data`.
    /// `None` if the headers are not those of a fragment, or the packet is too long.
    fn rebuild(&self, head: &[u8], data: &[u8], ecn: u8) -> Option<Vec<u8>> {
        match self {
            Key::V4 { .. } => rebuild_v4(head, data, ecn),
            Key::V6 { .. } => rebuild_v6(head, data, ecn),
        }
    }
}

fn rebuild_v4(head: &[u8], data: &[u8], ecn: u8) -> Option<Vec<u8>> {
    let total = u16::try_from(head.len() + data.len()).ok()?;
    let mut packet = [head, data].concat();
    let mut view = Ipv4Packet::new_unchecked(&mut packet[..]);
    view.set_total_len(total);
    view.clear_flags();
    view.set_frag_offset(0);
    view.set_ecn(ecn);
    view.fill_checksum();
    Some(packet)
}

fn rebuild_v6(head: &[u8], data: &[u8], ecn: u8) -> Option<Vec<u8>> {
    let (unfragmentable, fragment_header) =
        head.split_at_checked(head.len().checked_sub(FRAGMENT_HEADER_LEN)?)?;
    let next_header = *fragment_header.first()?;
    let payload_len = unfragmentable.len().checked_sub(IPV6_HEADER_LEN)? + data.len();
    let mut packet = [unfragmentable, data].concat();
    let link = next_header_field(unfragmentable)?;
    *packet.get_mut(link)? = next_header;
    let mut view = Ipv6Packet::new_unchecked(&mut packet[..]);
    view.set_payload_len(u16::try_from(payload_len).ok()?);
    view.set_traffic_class(view.traffic_class() & !3 | ecn);
    Some(packet)
}

/// Where the last header of an unfragmentable part names what follows it.
fn next_header_field(unfragmentable: &[u8]) -> Option<usize> {
    /// Position of the field in the IPv6 header; in an extension header it is the first octet.
    const IN_IPV6_HEADER: usize = 6;
    let mut field = IN_IPV6_HEADER;
    let mut at = IPV6_HEADER_LEN;
    // Each round passes eight octets or more, and `parse_v6` allowed few headers.
    while at < unfragmentable.len() {
        field = at;
        at += (usize::from(*unfragmentable.get(at + 1)?) + 1) * 8;
    }
    Some(field)
}

#[cfg(test)]
mod tests;
