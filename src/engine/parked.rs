//! Bytes of one connection that arrived beyond a gap, at their places.

use std::collections::VecDeque;

/// The bytes behind the next one that is expected, gaps filled with zeros. The machine knows which
/// of them are real, and keeps them inside the window that was offered. Few flows ever have any, so
/// it is little where there is none.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "24 bytes less in every flow")]
pub(super) struct Parked(Option<Box<VecDeque<u8>>>);

impl Parked {
    /// Keeps `bytes`, the first of which is `offset` bytes behind the next one expected.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let parked = self.0.get_or_insert_default();
        if parked.len() < end {
            parked.resize(end, 0);
        }
        for (slot, &byte) in parked.range_mut(offset..end).zip(bytes) {
            *slot = byte;
        }
    }

    /// The next `len` bytes arrived otherwise.
    pub(super) fn skip(&mut self, len: usize) {
        if let Some(parked) = &mut self.0 {
            parked.drain(..len.min(parked.len()));
        }
    }

    /// The next `len` bytes are no longer beyond a gap.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        let Some(parked) = &mut self.0 else { return Vec::new() };
        parked.drain(..len.min(parked.len())).collect()
    }

    /// Forgets everything and holds no memory.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_at_their_places_until_the_gap_before_them_is_closed() {
        let mut parked = Parked::default();
        parked.put(4, b"efg");
        parked.put(10, b"klm");
        parked.put(7, b"hij");
        parked.skip(3);
        parked.put(0, b"d");
        assert_eq!(parked.take(4), b"defg");
        assert_eq!(parked.take(6), b"hijklm");
        parked.skip(5);
        assert_eq!(parked.take(1), b"");
        parked.clear();
        assert!(parked.0.is_none());
    }
}
