//! Who owns which TCP connection, while there are several workers.
//!
//! A worker looks here only for a packet that belongs to none of its own flows; births and deaths
//! of flows are entered. So the locks are taken once or twice in the life of a flow, and the shards
//! keep workers out of each other's way. With one worker at work the directory is empty.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::WorkerId;
use crate::engine::tcp_flow::TcpKey;

/// Parts with a lock each.
const SHARDS: usize = 16;

type Shard = HashMap<TcpKey, WorkerId, ahash::RandomState>;

/// The directory. Bounded by the limits on flows of the workers that write into it.
pub(in crate::engine) struct Directory {
    shards: [Mutex<Shard>; SHARDS],
    len: AtomicUsize,
    hash: ahash::RandomState,
}

impl Directory {
    pub(super) fn new() -> Directory {
        Directory {
            shards: std::array::from_fn(|_| Mutex::default()),
            len: AtomicUsize::new(0),
            hash: ahash::RandomState::new(),
        }
    }

    fn shard(&self, key: &TcpKey) -> MutexGuard<'_, Shard> {
        // Below `SHARDS` by the remainder.
        let index = (self.hash.hash_one(key) % SHARDS as u64) as usize;
        // A map is whole between calls, whoever panicked.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections are entered.
    pub(in crate::engine) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The owner of a connection.
    pub(in crate::engine) fn owner(&self, key: &TcpKey) -> Option<WorkerId> {
        self.shard(key).get(key).copied()
    }

    /// Enters a new connection. `Err` is the owner of one that has the same ends.
    pub(in crate::engine) fn claim(&self, key: TcpKey, me: WorkerId) -> Result<(), WorkerId> {
        match self.shard(&key).entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(me);
                self.len.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Entry::Occupied(owner) if *owner.get() == me => Ok(()),
            Entry::Occupied(owner) => Err(*owner.get()),
        }
    }

    /// A connection has changed hands, unless it is over meanwhile.
    pub(in crate::engine) fn pass(&self, key: &TcpKey, to: WorkerId) {
        if let Some(owner) = self.shard(key).get_mut(key) {
            *owner = to;
        }
    }

    /// A connection is over.
    pub(in crate::engine) fn release(&self, key: &TcpKey) {
        if self.shard(key).remove(key).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets everything and gives the memory back.
    pub(in crate::engine) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.len.fetch_sub(shard.len(), Ordering::Relaxed);
            *shard = Shard::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> TcpKey {
        TcpKey { guest: ([10, 0, 2, 100], port).into(), peer: ([192, 0, 2, 1], 443).into() }
    }

    #[test]
    fn a_connection_has_one_owner() {
        let directory = Directory::new();
        let (one, two) = (WorkerId(1), WorkerId(2));
        assert_eq!(directory.owner(&key(1)), None);
        assert_eq!(directory.claim(key(1), one), Ok(()));
        assert_eq!(directory.claim(key(1), one), Ok(()));
        assert_eq!(directory.claim(key(1), two), Err(one));
        directory.pass(&key(1), two);
        assert_eq!(directory.owner(&key(1)), Some(two));
        directory.release(&key(1));
        assert_eq!(directory.owner(&key(1)), None);
    }

    #[test]
    fn what_is_over_is_not_passed_on() {
        let directory = Directory::new();
        directory.pass(&key(1), WorkerId(1));
        assert_eq!(directory.owner(&key(1)), None);
    }

    #[test]
    fn nothing_is_left_after_clearing() {
        let directory = Directory::new();
        (0..100).for_each(|port| directory.claim(key(port), WorkerId(1)).unwrap());
        assert_eq!(directory.len(), 100);
        directory.clear();
        assert_eq!(directory.len(), 0);
        assert!((0..100).all(|port| directory.owner(&key(port)).is_none()));
    }
}
