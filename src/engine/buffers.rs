//! The bytes that a TCP flow holds: slabs towards the guest until acknowledged, a backlog towards
//! the host until taken (D3). An idle flow holds none.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::stack::wire::{HEADROOM, MAX_PAYLOAD};

/// Bytes of one slab: header room and the largest payload.
pub(super) const SLAB_LEN: usize = HEADROOM + MAX_PAYLOAD;

/// A payload up to this size is copied out of its slab for the time until it is acknowledged, so
/// that many small answers do not hold 64 KiB each.
const SMALL: usize = 4096;

/// A buffer for one frame.
pub(super) type Slab = Box<[u8]>;

/// Slabs that are free, newest first so that the cache still knows them.
pub(super) struct Pool {
    free: Vec<Slab>,
    /// Slabs that flows hold.
    in_use: usize,
    limit: usize,
}

/// Free slabs that are kept while there is traffic: 4 MiB.
const KEEP: usize = 64;

impl Pool {
    /// A pool that lends at most `limit` slabs.
    pub(super) fn new(limit: usize) -> Self {
        Pool { free: Vec::new(), in_use: 0, limit }
    }

    /// Lends a slab; `None` at the limit.
    pub(super) fn take(&mut self) -> Option<Slab> {
        if self.in_use >= self.limit {
            return None;
        }
        self.in_use += 1;
        Some(self.free.pop().unwrap_or_else(|| vec![0; SLAB_LEN].into_boxed_slice()))
    }

    pub(super) fn give_back(&mut self, slab: Slab) {
        self.in_use -= 1;
        if self.free.len() < KEEP {
            self.free.push(slab);
        }
    }

    /// Slabs that are lent.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether [`Pool::take`] would refuse.
    pub(super) fn is_exhausted(&self) -> bool {
        self.in_use >= self.limit
    }

    /// Whether [`Pool::trim`] would free something.
    pub(super) fn can_trim(&self) -> bool {
        !self.free.is_empty()
    }

    /// Frees what is not lent; for when traffic has ceased.
    pub(super) fn trim(&mut self) {
        self.free = Vec::new();
    }
}

enum Chunk {
    /// Payload at [`HEADROOM`] of a slab.
    Slab { slab: Slab, len: usize },
    /// A copy of a small payload.
    Small(Box<[u8]>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Slab { slab, len } => &slab[HEADROOM..HEADROOM + len],
            Chunk::Small(bytes) => bytes,
        }
    }
}

/// What was sent to the guest and is not acknowledged, oldest first.
#[derive(Default)]
pub(super) struct RetransmitQueue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are already acknowledged.
    acked: usize,
}

impl RetransmitQueue {
    /// Keeps the `len` payload bytes of `slab`, which was just sent.
    pub(super) fn push(&mut self, slab: Slab, len: usize, pool: &mut Pool) {
        if len <= SMALL {
            self.chunks.push_back(Chunk::Small(slab[HEADROOM..HEADROOM + len].into()));
            pool.give_back(slab);
        } else {
            self.chunks.push_back(Chunk::Slab { slab, len });
        }
    }

    /// Drops the oldest `len` bytes.
    pub(super) fn release(&mut self, len: u32, pool: &mut Pool) {
        self.acked += len as usize;
        while let Some(first) = self.chunks.front() {
            let first_len = first.bytes().len();
            if self.acked < first_len {
                return;
            }
            self.acked -= first_len;
            if let Some(Chunk::Slab { slab, .. }) = self.chunks.pop_front() {
                pool.give_back(slab);
            }
        }
        // Everything is acknowledged; the memory of the deque goes too.
        *self = RetransmitQueue::default();
    }

    /// The bytes `offset..offset + len` behind the acknowledged ones, as they lie.
    pub(super) fn slices<'a>(&'a self, offset: u32, len: u32, out: &mut Vec<IoSlice<'a>>) {
        let mut skip = self.acked + offset as usize;
        let mut left = len as usize;
        for chunk in &self.chunks {
            let bytes = chunk.bytes();
            if skip >= bytes.len() {
                skip -= bytes.len();
                continue;
            }
            let taken = left.min(bytes.len() - skip);
            out.push(IoSlice::new(&bytes[skip..skip + taken]));
            left -= taken;
            skip = 0;
            if left == 0 {
                break;
            }
        }
    }

    /// Gives all slabs back.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        for chunk in self.chunks.drain(..) {
            if let Chunk::Slab { slab, .. } = chunk {
                pool.give_back(slab);
            }
        }
        *self = RetransmitQueue::default();
    }
}

/// Bytes from the guest that the host socket has not taken yet, oldest first.
#[derive(Default)]
pub(super) struct Backlog(VecDeque<u8>);

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// All bytes, in at most two pieces.
    pub(super) fn slices(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.0.as_slices();
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Drops the oldest `len` bytes; an empty backlog holds no memory.
    pub(super) fn consume(&mut self, len: usize) {
        self.0.drain(..len.min(self.0.len()));
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(pool: &mut Pool, queue: &mut RetransmitQueue, fill: u8, len: usize) {
        let mut slab = pool.take().unwrap();
        slab[HEADROOM..HEADROOM + len].fill(fill);
        queue.push(slab, len, pool);
    }

    fn read(queue: &RetransmitQueue, offset: u32, len: u32) -> Vec<u8> {
        let mut slices = vec![];
        queue.slices(offset, len, &mut slices);
        slices.iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn ranges_are_found_across_chunks_and_after_partial_acknowledgment() {
        let mut pool = Pool::new(8);
        let mut queue = RetransmitQueue::default();
        sent(&mut pool, &mut queue, b'a', 5000);
        sent(&mut pool, &mut queue, b'b', 3);
        sent(&mut pool, &mut queue, b'c', 6000);
        assert_eq!(pool.in_use, 2);
        assert_eq!(read(&queue, 4999, 6), b"abbbcc");
        queue.release(5001, &mut pool);
        assert_eq!(pool.in_use, 1);
        assert_eq!(read(&queue, 0, 3), b"bbc");
        queue.release(6002, &mut pool);
        assert_eq!(pool.in_use, 0);
        assert_eq!(read(&queue, 0, 3), b"");
    }

    #[test]
    fn the_pool_lends_no_more_than_its_limit() {
        let mut pool = Pool::new(2);
        let first = pool.take().unwrap();
        let _second = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.give_back(first);
        assert!(pool.can_trim());
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_backlog_is_first_in_first_out() {
        let mut backlog = Backlog::default();
        backlog.push(b"hello ");
        backlog.push(b"world");
        backlog.consume(3);
        let text: Vec<u8> = backlog.slices().iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(text, b"lo world");
        backlog.consume(99);
        assert!(backlog.is_empty());
    }
}
