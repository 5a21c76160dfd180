//! A number that workers count together, up to a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is in use of something, by all that hold a clone.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Quota(Arc<AtomicUsize>);

impl Quota {
    /// Takes one, unless `limit` are in use; whether it did.
    pub(in crate::engine) fn take(&self, limit: usize) -> bool {
        let taken = self.0.fetch_add(1, Ordering::Relaxed) < limit;
        if !taken {
            self.give_back();
        }
        taken
    }

    /// Gives back one that was taken.
    pub(in crate::engine) fn give_back(&self) {
        self.give_back_all(1);
    }

    /// Gives back `count` that were taken.
    pub(in crate::engine) fn give_back_all(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// How many are in use.
    pub(in crate::engine) fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_count_keep_within_one_limit() {
        let quota = Quota::default();
        let other = quota.clone();
        assert!(quota.take(2) && other.take(2));
        assert!(!quota.take(2) && !other.take(2));
        assert_eq!(quota.in_use(), 2);
        other.give_back();
        assert!(quota.take(2));
    }
}
