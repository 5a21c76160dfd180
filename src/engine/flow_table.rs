//! Flows by place, by key and by age: constant time for each packet, event and eviction.
//!
//! Generic over what a flow carries. The hash is keyed at random, because the guest chooses the
//! keys; places carry a generation, because epoll may still hold an event of a flow that is gone.
//!
//! Small and quick with a hundred thousand flows: keys stand with their flows only, and the index
//! holds eight bytes for each, hash included, so that it grows without looking at the flows.

use std::hash::Hash;
use std::ops::Range;

use hashbrown::HashTable;

use super::token::{Kind, Token};

const NONE: u32 = u32::MAX;

/// The bits of a token's generation.
const GENERATIONS: u32 = 0xff_ffff;

struct Place<K, F> {
    generation: u32,
    /// Neighbours in the order of use, while occupied.
    older: u32,
    newer: u32,
    content: Option<(K, F)>,
}

/// An entry of the index: where a flow is whose key has this hash.
#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    place: u32,
}

/// A hash as the index wants it: it uses the lowest bits, and the highest seven, of which there are
/// enough in the half that an [`Entry`] keeps.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// A bounded table of flows of one kind.
pub struct FlowTable<K, F> {
    kind: Kind,
    limit: usize,
    places: Vec<Place<K, F>>,
    free: Vec<u32>,
    index: HashTable<Entry>,
    hash: ahash::RandomState,
    oldest: u32,
    newest: u32,
    /// Of a place that is used for the first time.
    first_generation: u32,
}

impl<K: Copy + Eq + Hash, F> FlowTable<K, F> {
    /// Bytes that a flow takes here: its place, and in the index, half empty at worst, two entries
    /// with a byte of the hash beside each. The place of a flow that is gone stays for the next one.
    pub const FLOW_BYTES: usize = size_of::<Place<K, F>>() + 2 * (size_of::<Entry>() + 1);

    /// An empty table for at most `limit` flows, whose tokens are of `kind`.
    pub fn new(kind: Kind, limit: usize) -> Self {
        FlowTable {
            kind,
            limit,
            places: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hash: ahash::RandomState::new(),
            oldest: NONE,
            newest: NONE,
            first_generation: 0,
        }
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether no further flow fits.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The flow with `key`.
    pub fn find(&self, key: &K) -> Option<Token> {
        let hash = self.hash_of(key);
        let entry = self.index.find(spread(hash), |entry| self.is_for(entry, hash, key))?;
        Some(self.token(entry.place))
    }

    fn hash_of(&self, key: &K) -> u32 {
        // Half of it will do.
        self.hash.hash_one(key) as u32
    }

    fn is_for(&self, entry: &Entry, hash: u32, key: &K) -> bool {
        let content = &self.places[entry.place as usize].content;
        entry.hash == hash && content.as_ref().is_some_and(|(of, _)| of == key)
    }

    fn token(&self, index: u32) -> Token {
        let generation = self.places[index as usize].generation;
        Token { kind: self.kind, generation, index }
    }

    /// The token that the next [`FlowTable::insert`] will give; for registering a descriptor first.
    pub fn next_token(&self) -> Token {
        match self.free.last() {
            Some(&index) => self.token(index),
            // Bounded by `limit`, itself far below 2^32.
            None => Token {
                kind: self.kind,
                generation: self.first_generation,
                index: self.places.len() as u32,
            },
        }
    }

    /// Adds a flow, whose key must be new. `None` (and the flow dropped) if the table is full.
    pub fn insert(&mut self, key: K, flow: F) -> Option<Token> {
        if self.is_full() || self.find(&key).is_some() {
            return None;
        }
        let token = self.next_token();
        if self.free.pop().is_none() {
            let generation = token.generation;
            self.grow();
            self.places.push(Place { generation, older: NONE, newer: NONE, content: None });
        }
        self.places[token.index as usize].content = Some((key, flow));
        let entry = Entry { hash: self.hash_of(&key), place: token.index };
        self.index.insert_unique(spread(entry.hash), entry, |entry| spread(entry.hash));
        self.append_newest(token.index);
        Some(token)
    }

    /// Makes sure that there is room for another place: twice as much each time, but never for more
    /// than there may be.
    fn grow(&mut self) {
        let taken = self.places.len();
        if taken == self.places.capacity() {
            self.places.reserve_exact(taken.clamp(4, self.limit.saturating_sub(taken).max(4)));
        }
    }

    /// The flow named by `token`, if it still lives.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut F> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        place.content.as_mut().map(|(_, flow)| flow)
    }

    /// The flow named by `token` with its key, if it still lives.
    pub fn get_with_key(&mut self, token: Token) -> Option<(K, &mut F)> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        place.content.as_mut().map(|(key, flow)| (*key, flow))
    }

    /// The flow named by `token`, if it still lives.
    pub fn get(&self, token: Token) -> Option<&F> {
        let place = self.places.get(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        place.content.as_ref().map(|(_, flow)| flow)
    }

    /// Takes the flow named by `token` out.
    pub fn remove(&mut self, token: Token) -> Option<(K, F)> {
        self.get(token)?;
        self.unlink(token.index);
        let place = &mut self.places[token.index as usize];
        let content = place.content.take()?;
        place.generation = (place.generation + 1) & GENERATIONS;
        let hash = spread(self.hash_of(&content.0));
        if let Ok(entry) = self.index.find_entry(hash, |entry| entry.place == token.index) {
            entry.remove();
        }
        self.free.push(token.index);
        self.shrink();
        Some(content)
    }

    /// Gives memory back after a burst: the index map and the free places of an empty table.
    fn shrink(&mut self) {
        if self.index.is_empty() && self.places.len() > 1024 {
            // Events of old flows that epoll gave out with this turn's are still to come.
            let latest = self.places.iter().map(|place| place.generation).max();
            self.first_generation = latest.map_or(0, |latest| (latest + 1) & GENERATIONS);
            self.places = Vec::new();
            self.free = Vec::new();
            self.index = HashTable::new();
        }
    }

    /// Marks the flow as the most recently used.
    pub fn touch(&mut self, token: Token) {
        if self.newest != token.index && self.get(token).is_some() {
            self.unlink(token.index);
            self.append_newest(token.index);
        }
    }

    /// The least recently used flow.
    pub fn oldest(&self) -> Option<Token> {
        (self.oldest != NONE).then(|| self.token(self.oldest))
    }

    /// The keys of the flows in some places, of which the first is 0; `None` if there are no such
    /// places. For going through a large table in steps.
    pub fn keys(&self, places: Range<usize>) -> Option<impl Iterator<Item = &K>> {
        let end = places.end.min(self.places.len());
        let places = self.places.get(places.start..end).filter(|places| !places.is_empty())?;
        Some(places.iter().filter_map(|place| place.content.as_ref().map(|(key, _)| key)))
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &K, &F)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let (key, flow) = place.content.as_ref()?;
            let token =
                Token { kind: self.kind, generation: place.generation, index: index as u32 };
            Some((token, key, flow))
        })
    }

    fn unlink(&mut self, index: u32) {
        let Place { older, newer, .. } = self.places[index as usize];
        match older {
            NONE => self.oldest = newer,
            _ => self.places[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.places[newer as usize].older = older,
        }
    }

    fn append_newest(&mut self, index: u32) {
        let older = self.newest;
        let place = &mut self.places[index as usize];
        place.older = older;
        place.newer = NONE;
        match older {
            NONE => self.oldest = index,
            _ => self.places[older as usize].newer = index,
        }
        self.newest = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> FlowTable<u16, &'static str> {
        FlowTable::new(Kind::Udp, 3)
    }

    #[test]
    fn a_late_token_does_not_reach_the_next_flow_in_its_place() {
        let mut table = table();
        let first = table.insert(7, "first").unwrap();
        assert_eq!(table.remove(first), Some((7, "first")));
        let expected = table.next_token();
        let second = table.insert(7, "second").unwrap();
        assert_eq!(second, expected);
        assert_eq!(second.index, first.index);
        assert_eq!(table.get(first), None);
        assert_eq!(table.get(second), Some(&"second"));
        assert_eq!(table.find(&7), Some(second));
    }

    #[test]
    fn a_late_token_does_not_reach_a_flow_of_a_table_that_gave_its_memory_back() {
        let mut table = FlowTable::new(Kind::Tcp, 5000);
        let old: Vec<Token> = (0..2000).map(|key| table.insert(key, "old").unwrap()).collect();
        assert!(old.iter().all(|&token| table.remove(token).is_some()));
        assert!(table.places.is_empty());
        let new: Vec<Token> = (0..2000).map(|key| table.insert(key, "new").unwrap()).collect();
        assert!(old.iter().all(|&token| table.get(token).is_none()));
        assert!(new.iter().all(|&token| table.get(token) == Some(&"new")));
    }

    #[test]
    fn going_through_a_table_in_steps_meets_every_flow_once() {
        let mut table = FlowTable::new(Kind::Tcp, 100);
        let tokens: Vec<Token> = (0..100).map(|key| table.insert(key, "x").unwrap()).collect();
        assert!(tokens.iter().step_by(3).all(|&token| table.remove(token).is_some()));
        let (mut met, mut first) = (vec![], 0);
        while let Some(keys) = table.keys(first..first + 7) {
            met.extend(keys.copied());
            first += 7;
        }
        assert_eq!(met, (0..100).filter(|key| key % 3 != 0).collect::<Vec<u16>>());
        assert!(table.keys(usize::MAX..usize::MAX).is_none());
    }

    #[test]
    fn places_are_not_made_for_more_flows_than_there_may_be() {
        let mut table = FlowTable::new(Kind::Tcp, 1500);
        assert!((0..1500).all(|key: u16| table.insert(key, "x").is_some()));
        assert_eq!(table.places.capacity(), 1500);
    }

    #[test]
    fn the_limit_holds_and_keys_are_unique() {
        let mut table = table();
        for key in 1..=3 {
            assert!(table.insert(key, "x").is_some());
        }
        assert!(table.insert(4, "x").is_none());
        let oldest = table.oldest().unwrap();
        table.remove(oldest);
        assert!(table.insert(2, "x").is_none());
        assert!(table.insert(4, "x").is_some());
    }

    #[test]
    fn the_least_recently_used_is_the_oldest() {
        let mut table = table();
        let [a, b, c] = [1, 2, 3].map(|key| table.insert(key, "x").unwrap());
        table.touch(a);
        assert_eq!(table.oldest(), Some(b));
        table.touch(b);
        table.touch(b);
        assert_eq!(table.oldest(), Some(c));
        table.remove(c);
        table.remove(a);
        assert_eq!(table.oldest(), Some(b));
        table.remove(b);
        assert_eq!(table.oldest(), None);
        assert!(table.is_empty());
    }
}
