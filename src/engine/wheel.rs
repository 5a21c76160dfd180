//! A hierarchical timer wheel (Varghese and Lauck, scheme 7): constant time to insert and to expire.
//!
//! Entries are never moved or cancelled. A flow keeps its own earliest entry in mind, lets an
//! entry that came too early fire, and inserts again: a retransmission time-out that is pushed
//! back with every acknowledgment costs nothing until it would fire. When entries that
//! nobody waits for any more have become too many, the owner clears the wheel and inserts anew.

use crate::base::Instant;

/// One tick is 2^20 ns, a little over a millisecond.
const TICK_SHIFT: u32 = 20;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Six levels of 64 slots reach 2^36 ticks: over two years.
const LEVELS: usize = 6;

struct Level<T> {
    occupied: u64,
    slots: [Vec<(u64, T)>; SLOTS],
}

/// Values by the time when they are due.
pub struct Wheel<T> {
    /// Ticks up to which everything has fired.
    elapsed: u64,
    levels: [Level<T>; LEVELS],
    len: usize,
    /// Slots emptied and entries put into one, so far.
    #[cfg(test)]
    work: usize,
}

impl<T: Copy> Wheel<T> {
    /// Bytes that an entry takes.
    pub const ENTRY_BYTES: usize = size_of::<(u64, T)>();

    /// An empty wheel that starts at `now`.
    pub fn new(now: Instant) -> Self {
        let level = || Level { occupied: 0, slots: std::array::from_fn(|_| Vec::new()) };
        Wheel {
            elapsed: now.as_nanos() >> TICK_SHIFT,
            levels: std::array::from_fn(|_| level()),
            len: 0,
            #[cfg(test)]
            work: 0,
        }
    }

    /// Whether nothing is due ever.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets every entry, and the memory that they took.
    pub fn clear(&mut self) {
        for level in &mut self.levels {
            level.occupied = 0;
            level.slots = std::array::from_fn(|_| Vec::new());
        }
        self.len = 0;
    }

    /// Adds `value`, due at `at`, or at the next tick if that has passed. It never fires early.
    pub fn insert(&mut self, at: Instant, value: T) {
        let tick = (at.as_nanos() >> TICK_SHIFT) + 1;
        self.len += 1;
        self.place(tick.max(self.elapsed + 1), value);
    }

    fn place(&mut self, tick: u64, value: T) {
        self.count_work();
        // The level is that of the highest bit in which the tick differs from now.
        let differing = (tick ^ self.elapsed) | (SLOTS as u64 - 1);
        let level = (63 - differing.leading_zeros()) / SLOT_BITS;
        let level = (level as usize).min(LEVELS - 1);
        let slot = slot_of(tick, level);
        self.levels[level].occupied |= 1 << slot;
        self.levels[level].slots[slot].push((tick, value));
    }

    /// When [`Wheel::expire`] has something to do: no later than the earliest entry, and no more
    /// than one slot of its level earlier.
    pub fn next(&self) -> Option<Instant> {
        let (level, slot) = self.next_slot()?;
        let tick = self.slot_start(level, slot);
        Some(Instant::from_nanos(tick << TICK_SHIFT))
    }

    fn next_slot(&self) -> Option<(usize, usize)> {
        self.levels.iter().enumerate().find_map(|(level, content)| {
            if content.occupied == 0 {
                return None;
            }
            let here = slot_of(self.elapsed, level) as u32;
            let ahead = content.occupied.rotate_right(here).trailing_zeros();
            Some((level, ((here + ahead) as usize) % SLOTS))
        })
    }

    /// The first tick of a slot, at or after now.
    fn slot_start(&self, level: usize, slot: usize) -> u64 {
        let width = SLOT_BITS * level as u32;
        let turn = self.elapsed >> (width + SLOT_BITS);
        let start = (turn << SLOT_BITS | slot as u64) << width;
        if start + (1 << width) <= self.elapsed {
            start + (1 << (width + SLOT_BITS))
        } else {
            start.max(self.elapsed)
        }
    }

    /// Moves everything that is due at `now` into `due`.
    pub fn expire(&mut self, now: Instant, due: &mut Vec<T>) {
        let now = now.as_nanos() >> TICK_SHIFT;
        while let Some((level, slot)) = self.next_slot() {
            let start = self.slot_start(level, slot);
            if start > now {
                break;
            }
            self.count_work();
            self.elapsed = start;
            self.levels[level].occupied &= !(1 << slot);
            let mut entries = std::mem::take(&mut self.levels[level].slots[slot]);
            for (tick, value) in entries.drain(..) {
                if tick <= now {
                    self.len -= 1;
                    due.push(value);
                } else {
                    self.place(tick, value);
                }
            }
            // Keep a small buffer for the next entries of this slot, not the memory of a burst.
            if self.levels[level].slots[slot].is_empty() && entries.capacity() <= 64 {
                self.levels[level].slots[slot] = entries;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    fn count_work(&mut self) {
        #[cfg(test)]
        {
            self.work += 1;
        }
    }
}

fn slot_of(tick: u64, level: usize) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn drain(wheel: &mut Wheel<u32>, now: Instant) -> Vec<u32> {
        let mut due = vec![];
        wheel.expire(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn entries_fire_in_time_and_never_early() {
        let start = Instant::from_millis(123_456);
        let mut wheel = Wheel::new(start);
        let delays = [1, 5, 63, 67, 72, 200, 4_000, 75_000, 7_200_000];
        for (index, delay) in delays.into_iter().enumerate() {
            wheel.insert(start + Duration::from_millis(delay), index as u32);
        }
        for (index, delay) in delays.into_iter().enumerate() {
            let at = start + Duration::from_millis(delay);
            let early = Instant::from_nanos(at.as_nanos() - 1);
            assert!(!drain(&mut wheel, early).contains(&(index as u32)), "{delay} ms early");
            assert!(wheel.next().unwrap() <= at + Duration::from_millis(3));
            assert_eq!(
                drain(&mut wheel, at + Duration::from_millis(3)),
                [index as u32],
                "{delay} ms"
            );
        }
        assert!(wheel.is_empty());
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn sleeping_until_next_reaches_every_entry_in_few_steps() {
        let start = Instant::from_nanos(77);
        let mut wheel = Wheel::new(start);
        wheel.insert(start + Duration::from_secs(7200), 9);
        let mut now = start;
        let mut steps = 0;
        let mut fired = vec![];
        while let Some(next) = wheel.next() {
            assert!(next >= now);
            now = next;
            wheel.expire(now, &mut fired);
            steps += 1;
            assert!(steps <= 2 * LEVELS);
        }
        assert_eq!(fired, [9]);
    }

    #[test]
    fn work_does_not_depend_on_how_many_entries_there_are() {
        let mut now = Instant::from_millis(77);
        let work = [100, 100_000].map(|entries| {
            let mut wheel = Wheel::new(now);
            // As keep-alives: they have hours, and begin within seconds of each other.
            for entry in 0..entries {
                wheel.insert(now + Duration::from_secs(7200) + Duration::from_micros(entry), 0);
            }
            let (before, mut due) = (wheel.work, vec![]);
            // As retransmissions, pushed back or not, and a look at the clock each millisecond.
            for _ in 0..10_000 {
                now = now + Duration::from_millis(1);
                wheel.insert(now + Duration::from_millis(200), 1);
                wheel.expire(now, &mut due);
                wheel.next();
            }
            assert!(due.iter().all(|&value| value == 1) && due.len() > 9_000);
            wheel.work - before
        });
        assert!(work[1] <= work[0] + LEVELS, "{work:?}");
        // An entry and its slot, at each of two levels.
        assert!(work[0] <= 4 * 10_000, "{work:?}");
    }

    #[test]
    fn an_entry_moves_once_a_level_at_most() {
        const ENTRIES: u64 = 100_000;
        let start = Instant::from_millis(123_456);
        let mut wheel = Wheel::new(start);
        for entry in 0..ENTRIES {
            wheel.insert(start + Duration::from_millis(entry * 72), 0);
        }
        let mut fired = vec![];
        while let Some(next) = wheel.next() {
            wheel.expire(next, &mut fired);
        }
        assert_eq!(fired.len() as u64, ENTRIES);
        // To begin with and when its slot is emptied, that is; two hours are four levels.
        assert!(wheel.work as u64 <= 2 * 4 * ENTRIES, "{}", wheel.work);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_or_early(delays in proptest::collection::vec(0u64..10_000_000, 1..200),
                                    steps in proptest::collection::vec(1u64..200_000, 1..200)) {
            let mut now = Instant::from_millis(5);
            let mut wheel = Wheel::new(now);
            let mut dues = vec![];
            for (index, delay) in delays.iter().enumerate() {
                let at = now + Duration::from_micros(*delay);
                dues.push(at);
                wheel.insert(at, index);
            }
            let mut fired = vec![false; dues.len()];
            for step in steps.iter().chain([&20_000_000]) {
                now = now + Duration::from_micros(*step);
                let mut due = vec![];
                wheel.expire(now, &mut due);
                for index in due {
                    proptest::prop_assert!(!fired[index] && dues[index] <= now);
                    fired[index] = true;
                }
                for (index, at) in dues.iter().enumerate() {
                    let late = at.since(Instant::ZERO) + Duration::from_millis(3)
                        < now.since(Instant::ZERO);
                    proptest::prop_assert!(!late || fired[index]);
                }
            }
            proptest::prop_assert!(fired.iter().all(|&f| f) && wheel.is_empty());
        }
    }
}
