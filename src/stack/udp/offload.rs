//! Several datagrams in one: which may be joined, and where a joined one is cut (D10).
//!
//! UDP keeps the bounds of datagrams, so they can only be joined where whoever cuts them knows the
//! bounds again. Both `UDP_SEGMENT` and `UDP_GRO` (udp(7)) and the frames of virtio-net's
//! `GSO_UDP_L4` do by one number:
//!
//! ```text
//!   | size bytes | size bytes | size bytes | 1 to size bytes |    one address, one port, one TOS
//! ```
//! A [`Train`] is such a row in the making. An empty datagram cannot be part of it: behind others
//! it would have no bound, and in front it would give the size 0.
//!
//! Hostile input: sizes that the guest chose. [`segment`] judges those of frames that it has
//! joined itself.
#![forbid(unsafe_code)]

use crate::base::DropReason;

/// Datagrams in one train: what kernels before 6.9 take with one `UDP_SEGMENT` send, and the most
/// that `UDP_GRO` makes (`UDP_MAX_SEGMENTS`, `UDP_GRO_CNT_MAX`). Receivers size their memory by it.
pub const MAX_TRAIN: usize = 64;

/// Payload bytes of one train: the longest UDP payload of an IPv4 packet.
pub const MAX_TRAIN_LEN: usize = 65_535 - 20 - 8;

/// Datagrams in one frame of the guest: `UDP_MAX_SEGMENTS` of kernels since 6.9.
const MAX_FROM_GUEST: usize = 128;

/// A row of datagrams that can travel as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    size: usize,
    len: usize,
    count: usize,
    /// Whether another datagram could follow.
    open: bool,
}

impl Train {
    /// A train of one datagram with `len` bytes of payload.
    pub fn of(len: usize) -> Train {
        Train { size: len, len, count: 1, open: len > 0 }
    }

    /// Adds a datagram with `len` bytes of payload; false if it cannot be part of the row.
    pub fn add(&mut self, len: usize) -> bool {
        let fits = self.open
            && (1..=self.size).contains(&len)
            && self.count < MAX_TRAIN
            && self.len + len <= MAX_TRAIN_LEN;
        if fits {
            self.len += len;
            self.count += 1;
            self.open = len == self.size;
        }
        fits
    }

    /// Payload bytes of all of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no payload: one empty datagram.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many datagrams it has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Payload bytes of a datagram, the last one perhaps excepted, if there is more than one.
    pub fn segment_size(&self) -> Option<u16> {
        // At most MAX_TRAIN_LEN with two of them.
        (self.count > 1).then_some(self.size as u16)
    }
}

/// The segment size that a frame from the guest with `len` bytes of UDP payload claims: `None` if
/// it is one datagram after all.
///
/// # Errors
/// [`DropReason::BadOffload`] if it would be more datagrams than a kernel joins: a frame must not
/// cost more than it may stand for.
pub fn segment(claimed: Option<u16>, len: usize) -> Result<Option<u16>, DropReason> {
    let Some(size) = claimed.filter(|&size| usize::from(size) < len) else { return Ok(None) };
    if size == 0 || len.div_ceil(usize::from(size)) > MAX_FROM_GUEST {
        return Err(DropReason::BadOffload);
    }
    Ok(Some(size))
}

/// How many datagrams `len` bytes of payload are, cut into pieces of `size`.
pub fn count(len: usize, size: Option<u16>) -> usize {
    match size {
        Some(size) => len.div_ceil(usize::from(size).max(1)).max(1),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn train(lengths: &[usize]) -> Train {
        let (first, rest) = lengths.split_first().unwrap();
        let mut train = Train::of(*first);
        rest.iter().for_each(|len| assert!(train.add(*len), "{len} after {train:?}"));
        train
    }

    #[test]
    fn equal_datagrams_are_joined_and_a_shorter_one_is_the_last() {
        let mut row = train(&[1400, 1400, 1400]);
        assert_eq!((row.len(), row.count(), row.segment_size()), (4200, 3, Some(1400)));
        assert!(!row.add(1401), "a longer one would have no bound");
        assert!(row.add(1));
        assert!(!row.add(1), "behind the shorter one nothing can follow");
        assert_eq!((row.len(), row.count(), row.segment_size()), (4201, 4, Some(1400)));
    }

    #[test]
    fn empty_datagrams_travel_alone() {
        let mut empty = Train::of(0);
        assert!(!empty.add(0) && !empty.add(5));
        assert_eq!((empty.is_empty(), empty.count(), empty.segment_size()), (true, 1, None));
        assert!(!train(&[5, 5]).add(0));
    }

    #[test]
    fn a_train_has_an_end() {
        let mut row = train(&[9; MAX_TRAIN]);
        assert!(!row.add(9), "64 are the most");
        row = train(&[30_000, 30_000]);
        assert!(!row.add(5508) && row.add(5507), "65,507 bytes are the most");
        assert_eq!(Train::of(65_507).segment_size(), None);
    }

    #[test]
    fn what_the_guest_claims_is_judged() {
        assert_eq!(segment(None, 9000), Ok(None));
        assert_eq!(segment(Some(1400), 9000), Ok(Some(1400)));
        // One datagram: there is nothing to cut.
        assert_eq!(segment(Some(1400), 1400), Ok(None));
        assert_eq!(segment(Some(1400), 0), Ok(None));
        assert_eq!(segment(Some(500), 64_000), Ok(Some(500)), "128 datagrams");
        assert_eq!(segment(Some(500), 64_001), Err(DropReason::BadOffload));
        assert_eq!(segment(Some(1), 65_507), Err(DropReason::BadOffload));
        assert_eq!(segment(Some(0), 10), Err(DropReason::BadOffload));
    }

    proptest! {
        #[test]
        fn whoever_cuts_a_train_gets_what_was_joined(
            lengths in proptest::collection::vec(
                prop_oneof![Just(1400usize), Just(64), 0usize..3, 0usize..65_508], 1..200),
        ) {
            // As the engine does it: who does not fit begins a train of its own.
            let mut trains: Vec<(Train, Vec<usize>)> = Vec::new();
            for len in lengths {
                if let Some((train, members)) = trains.last_mut()
                    && train.add(len)
                {
                    members.push(len);
                } else {
                    trains.push((Train::of(len), vec![len]));
                }
            }
            for (train, members) in trains {
                prop_assert_eq!(train.count(), members.len());
                prop_assert!(train.len() <= MAX_TRAIN_LEN && train.count() <= MAX_TRAIN);
                prop_assert_eq!(count(train.len(), train.segment_size()), members.len());
                let bytes = vec![0u8; train.len()];
                let size = train.segment_size().map_or(train.len().max(1), usize::from);
                let mut cut: Vec<usize> = bytes.chunks(size).map(<[u8]>::len).collect();
                if cut.is_empty() {
                    cut.push(0);
                }
                prop_assert_eq!(cut, members);
            }
        }
    }
}
