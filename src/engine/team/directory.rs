//! Who owns which TCP connection, while there are several workers.
//!
//! A worker looks here only for a packet that belongs to none of its own flows; births and deaths
//! of flows are entered. So the locks are taken once or twice in the life of a flow, and the shards
//! keep workers out of each other's way. With one worker at work the directory is empty.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::WorkerId;
use super::quota::Quota;
use crate::engine::tcp_flow::TcpKey;

/// Why a connection could not be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Refusal {
    /// This worker has one between the same ends.
    Taken(WorkerId),
    /// There are as many as there may be.
    Full,
}

/// Parts with a lock each.
const SHARDS: usize = 16;

type Shard = HashMap<TcpKey, WorkerId, ahash::RandomState>;

/// The directory. Holds at most as many entries as those who enter allow.
pub(in crate::engine) struct Directory {
    shards: [Mutex<Shard>; SHARDS],
    len: Quota,
    hash: ahash::RandomState,
}

impl Directory {
    pub(super) fn new() -> Directory {
        Directory {
            shards: std::array::from_fn(|_| Mutex::default()),
            len: Quota::default(),
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
        self.len.in_use()
    }

    /// The owner of a connection.
    pub(in crate::engine) fn owner(&self, key: &TcpKey) -> Option<WorkerId> {
        self.shard(key).get(key).copied()
    }

    /// Enters a new connection, unless there are `limit` already.
    pub(in crate::engine) fn claim(
        &self,
        key: TcpKey,
        me: WorkerId,
        limit: usize,
    ) -> Result<(), Refusal> {
        match self.shard(&key).entry(key) {
            Entry::Occupied(owner) => Err(Refusal::Taken(*owner.get())),
            Entry::Vacant(vacant) => {
                if !self.len.take(limit) {
                    return Err(Refusal::Full);
                }
                vacant.insert(me);
                Ok(())
            }
        }
    }

    /// A connection changes hands: `send` puts it on its way. Both happen under one lock. So
    /// whoever finds the new owner finds the connection in that owner's mail; and what the new
    /// owner does with it, such as pass it on or end it, is entered after this.
    pub(in crate::engine) fn pass(&self, key: &TcpKey, to: WorkerId, send: impl FnOnce()) {
        let mut shard = self.shard(key);
        send();
        if let Some(owner) = shard.get_mut(key) {
            *owner = to;
        }
    }

    /// A connection is over.
    pub(in crate::engine) fn release(&self, key: &TcpKey) {
        if self.shard(key).remove(key).is_some() {
            self.len.give_back();
        }
    }

    /// Forgets everything and gives the memory back.
    pub(in crate::engine) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.len.give_back_all(shard.len());
            *shard = Shard::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> TcpKey {
        TcpKey::new(([10, 0, 2, 100], port).into(), ([192, 0, 2, 1], 443).into())
    }

    #[test]
    fn a_connection_has_one_owner() {
        let directory = Directory::new();
        let (one, two) = (WorkerId(1), WorkerId(2));
        assert_eq!(directory.owner(&key(1)), None);
        assert_eq!(directory.claim(key(1), one, 9), Ok(()));
        assert_eq!(directory.claim(key(1), two, 9), Err(Refusal::Taken(one)));
        directory.pass(&key(1), two, || ());
        assert_eq!(directory.owner(&key(1)), Some(two));
        directory.release(&key(1));
        assert_eq!(directory.owner(&key(1)), None);
    }

    #[test]
    fn what_is_over_is_not_passed_on() {
        let directory = Directory::new();
        directory.pass(&key(1), WorkerId(1), || ());
        assert_eq!(directory.owner(&key(1)), None);
    }

    #[test]
    fn nobody_acts_on_a_connection_before_it_is_entered_whose_it_is() {
        let directory = Directory::new();
        directory.claim(key(1), WorkerId(1), 9).unwrap();
        std::thread::scope(|scope| {
            let (sent, mail) = std::sync::mpsc::channel();
            let directory = &directory;
            // The receiver passes it on at once.
            scope.spawn(move || {
                mail.recv().unwrap();
                directory.pass(&key(1), WorkerId(3), || ());
            });
            directory.pass(&key(1), WorkerId(2), || {
                sent.send(()).unwrap();
                (0..1000).for_each(|_| std::thread::yield_now());
            });
        });
        assert_eq!(directory.owner(&key(1)), Some(WorkerId(3)));
    }

    #[test]
    fn no_more_are_entered_than_all_together_may_have() {
        let directory = Directory::new();
        let entered: usize = std::thread::scope(|scope| {
            let enter = |worker: u8| {
                let first = u16::from(worker) * 1000;
                let ports = first..first + 1000;
                let claim = |port| directory.claim(key(port), WorkerId(worker), 1500).is_ok();
                ports.filter(|&port| claim(port)).count()
            };
            let threads = [1, 2, 3].map(|worker| scope.spawn(move || enter(worker)));
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!((entered, directory.len()), (1500, 1500));
    }

    #[test]
    fn nothing_is_left_after_clearing() {
        let directory = Directory::new();
        (0..100).for_each(|port| directory.claim(key(port), WorkerId(1), 100).unwrap());
        assert_eq!(directory.len(), 100);
        directory.clear();
        assert_eq!(directory.len(), 0);
        assert!((0..100).all(|port| directory.owner(&key(port)).is_none()));
    }
}
