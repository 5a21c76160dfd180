//! The bytes that a TCP flow holds: slabs towards the guest until acknowledged, a backlog towards
//! the host until taken (D3). An idle flow holds none.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use crate::stack::wire::{HEADROOM, MAX_PAYLOAD};

/// Bytes of one slab: header room and the largest payload.
pub(super) const SLAB_LEN: usize = HEADROOM + MAX_PAYLOAD;

/// Slabs that one frame may fill. Beyond 256 KiB the kernel runs short of page fragments for one
/// packet (`MAX_SKB_FRAGS` of 32 KiB), and nothing is gained any more.
pub(super) const BURST: usize = 4;

/// Largest payload of one frame.
pub(super) const BURST_LEN: usize = BURST * MAX_PAYLOAD;

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
    /// Bytes that flows hold outside of slabs, which count as well: a peer that sends in small
    /// pieces to a guest that acknowledges nothing would else fill the memory beside the pool.
    copied: usize,
    limit: usize,
}

/// What is lent of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    slabs: usize,
    /// Bytes outside of slabs.
    copied: usize,
}

/// Free slabs that are kept while there is traffic: 4 MiB.
const KEEP: usize = 64;

impl Pool {
    /// A pool that lends at most `limit` slabs.
    pub(super) fn new(limit: usize) -> Self {
        Pool { free: Vec::new(), in_use: 0, copied: 0, limit }
    }

    /// Lends a slab; `None` at the limit.
    pub(super) fn take(&mut self) -> Option<Slab> {
        if self.is_exhausted() {
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

    /// So much of what was lent is another pool's now.
    pub(super) fn forget(&mut self, held: Holding) {
        self.in_use -= held.slabs;
        self.copied -= held.copied;
    }

    /// So much that another pool has lent is ours now, even beyond the limit.
    pub(super) fn acquire(&mut self, held: Holding) {
        self.in_use += held.slabs;
        self.copied += held.copied;
    }

    /// Lends at most `limit` slabs from now on; what is lent stays.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Slabs that are lent.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Bytes that were copied out of slabs and are held.
    pub(super) fn copied(&self) -> usize {
        self.copied
    }

    /// Whether [`Pool::take`] would refuse.
    pub(super) fn is_exhausted(&self) -> bool {
        self.in_use + self.copied / SLAB_LEN >= self.limit
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

/// A payload on its way from the host socket into a frame, in as many slabs as it may need.
pub(super) struct Burst {
    slabs: [Option<Slab>; BURST],
    capacity: usize,
    len: usize,
}

impl Burst {
    /// Room for `capacity` bytes, or for less if the pool has less; `None` if it has nothing.
    pub(super) fn take(pool: &mut Pool, capacity: usize) -> Option<Burst> {
        let mut burst = Burst { slabs: [None, None, None, None], capacity, len: 0 };
        let wanted = capacity.div_ceil(MAX_PAYLOAD).min(BURST);
        let mut taken = 0;
        for slot in &mut burst.slabs[..wanted] {
            *slot = pool.take();
            taken += usize::from(slot.is_some());
        }
        burst.capacity = capacity.min(taken * MAX_PAYLOAD);
        (taken > 0).then_some(burst)
    }

    /// Bytes read so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether no further byte fits.
    pub(super) fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// Lets `read` fill the room that is left; what it gives is added to the length.
    pub(super) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let (mut skip, mut left) = (self.len, self.capacity - self.len);
        let mut count = 0;
        let mut parts = [const { None }; BURST];
        for slab in self.slabs.iter_mut().flatten() {
            let room = &mut slab[HEADROOM..];
            let from = skip.min(room.len());
            let to = room.len().min(from + left);
            skip -= from;
            left -= to - from;
            if from < to {
                parts[count] = Some(IoSliceMut::new(&mut room[from..to]));
                count += 1;
            }
        }
        let mut parts = parts.map(|part| part.unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let read = read(&mut parts[..count])?;
        self.len += read;
        Ok(read)
    }

    /// The slabs that hold bytes, each with how many.
    pub(super) fn pieces(&mut self) -> impl Iterator<Item = (&mut Slab, usize)> {
        let mut left = self.len;
        self.slabs.iter_mut().flatten().filter_map(move |slab| {
            let len = left.min(MAX_PAYLOAD);
            left -= len;
            (len > 0).then_some((slab, len))
        })
    }

    /// Gives everything back unused.
    pub(super) fn give_back(self, pool: &mut Pool) {
        self.slabs.into_iter().flatten().for_each(|slab| pool.give_back(slab));
    }
}

enum Chunk {
    /// Payload at [`HEADROOM`] of a slab.
    Slab { slab: Slab, len: usize },
    /// Copies of small payloads, one behind the other: at most [`SMALL`] bytes.
    Small(Vec<u8>),
}

impl Chunk {
    /// Gives back what the chunk holds of the pool.
    fn free(self, pool: &mut Pool) {
        match self {
            Chunk::Slab { slab, .. } => pool.give_back(slab),
            Chunk::Small(bytes) => pool.copied -= bytes.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Slab { slab, len } => &slab[HEADROOM..HEADROOM + len],
            Chunk::Small(bytes) => bytes,
        }
    }
}

/// What was sent to the guest and is not acknowledged, oldest first.
///
/// Two neighbours hold more than [`SMALL`] bytes together, so that what one frame sends again never
/// lies in more pieces than one `writev` takes (`IOV_MAX`, 1,024).
#[derive(Default)]
pub(super) struct RetransmitQueue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are already acknowledged.
    acked: usize,
}

impl RetransmitQueue {
    /// Keeps what `burst` holds, which was just sent, and gives its other slabs back.
    pub(super) fn keep(&mut self, burst: Burst, pool: &mut Pool) {
        let mut left = burst.len;
        for slab in burst.slabs.into_iter().flatten() {
            let len = left.min(MAX_PAYLOAD);
            left -= len;
            match len {
                0 => pool.give_back(slab),
                _ => self.push(slab, len, pool),
            }
        }
    }

    /// Keeps the `len` payload bytes of `slab`.
    fn push(&mut self, slab: Slab, len: usize, pool: &mut Pool) {
        if len > SMALL {
            return self.chunks.push_back(Chunk::Slab { slab, len });
        }
        let payload = &slab[HEADROOM..HEADROOM + len];
        match self.chunks.back_mut() {
            Some(Chunk::Small(bytes)) if bytes.len() + len <= SMALL => bytes.extend(payload),
            _ => self.chunks.push_back(Chunk::Small(payload.to_vec())),
        }
        pool.copied += len;
        pool.give_back(slab);
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
            if let Some(first) = self.chunks.pop_front() {
                first.free(pool);
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

    /// What is lent to this queue.
    pub(super) fn holding(&self) -> Holding {
        let mut held = Holding::default();
        for chunk in &self.chunks {
            match chunk {
                Chunk::Slab { .. } => held.slabs += 1,
                Chunk::Small(bytes) => held.copied += bytes.len(),
            }
        }
        held
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.chunks.drain(..).for_each(|chunk| chunk.free(pool));
        *self = RetransmitQueue::default();
    }
}

/// Bytes from the guest that the host socket has not taken yet, oldest first. Most flows never have
/// any, so it is little where there is none.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "24 bytes less in every flow")]
pub(super) struct Backlog(Option<Box<VecDeque<u8>>>);

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |bytes| bytes.len())
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.get_or_insert_default().extend(bytes);
    }

    /// Puts bytes in front of all others.
    pub(super) fn push_front(&mut self, parts: &[&[u8]]) {
        let behind = self.0.take();
        parts.iter().for_each(|part| self.push(part));
        if let Some(bytes) = behind {
            self.0.get_or_insert_default().extend(*bytes);
        }
    }

    /// All bytes, in at most two pieces.
    pub(super) fn slices(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.0.as_ref().map_or((&[][..], &[][..]), |bytes| bytes.as_slices());
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Drops the oldest `len` bytes; an empty backlog holds no memory.
    pub(super) fn consume(&mut self, len: usize) {
        let Some(bytes) = &mut self.0 else { return };
        bytes.drain(..len.min(bytes.len()));
        if bytes.is_empty() {
            self.0 = None;
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
    fn many_small_payloads_lie_in_few_pieces() {
        let mut pool = Pool::new(8);
        let mut queue = RetransmitQueue::default();
        for at in 0..3000_u32 {
            sent(&mut pool, &mut queue, at as u8, 1);
        }
        queue.release(700, &mut pool);
        let mut slices = vec![];
        queue.slices(300, 2000, &mut slices);
        assert!(slices.len() <= 2, "{} pieces", slices.len());
        let whole: Vec<u8> = (1000..3000).map(|at| at as u8).collect();
        assert_eq!(read(&queue, 300, 2000), whole);
        queue.release(2300, &mut pool);
        assert_eq!((pool.copied, pool.in_use), (0, 0));
    }

    #[test]
    fn copies_of_small_payloads_count_against_the_limit() {
        let mut pool = Pool::new(2);
        let mut queue = RetransmitQueue::default();
        let mut held = 0;
        while !pool.is_exhausted() {
            sent(&mut pool, &mut queue, b'x', 1000);
            held += 1000;
            assert!(held <= 2 * SLAB_LEN + 1000, "{held} bytes are held");
        }
        assert_eq!(pool.copied, held);
        queue.release(held as u32 / 2, &mut pool);
        assert!(!pool.is_exhausted());
        queue.clear(&mut pool);
        assert_eq!(pool.copied, 0);
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
        backlog.push_front(&[b"hal", b""]);
        let text: Vec<u8> = backlog.slices().iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(text, b"hallo world");
        backlog.consume(99);
        assert!(backlog.is_empty() && backlog.0.is_none());
    }
}
