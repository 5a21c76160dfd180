//! One direction of a path: how long it takes, what it loses, how much it carries.
//!
//! ```text
//!   frame ─▶ dice, one throw a segment ─▶ queue of the wire (rate) ─▶ delay ─▶ due
//! ```
//! Sans-IO: time comes in, frames come out when they are due, in the order in which they came.
//! What is held is bounded by [`HELD_LIMIT`] bytes, whatever the delay, and where the path has a
//! rate, the queue in front of its wire by [`Conditions::queue`].

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tapway::base::Instant;

use super::cut::Shape;

/// Most bytes that one direction holds. The kernel's send buffers, a few megabytes a connection,
/// are what keeps a path from ever getting there.
pub const HELD_LIMIT: usize = 64 << 20;

/// Fewest bytes that the queue of a path with a rate holds: a few of the largest frames.
const LEAST_QUEUE: u64 = 256 << 10;

/// The least time that a full queue takes to drain. What waits for a pump that the machine does not
/// run for some milliseconds arrives all at once.
const LEAST_TIME: Duration = Duration::from_millis(10);

/// What a path does to each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Time from one end to the other.
    pub delay: Duration,
    /// How many of a million segments are lost, each independently of all others.
    pub loss_ppm: u32,
    /// Bits per second on an Ethernet wire; without, a wire takes no time.
    pub rate: Option<u64>,
    /// Which segments are lost.
    pub seed: u64,
    /// Time from the first frame on in which the dice are thrown and nothing is lost.
    pub spared: Duration,
}

impl Conditions {
    /// A wire from one TAP to the other.
    pub const NONE: Conditions = Conditions {
        delay: Duration::ZERO,
        loss_ppm: 0,
        rate: None,
        seed: 0,
        spared: Duration::ZERO,
    };

    /// Bytes that may wait for the wire: what it carries in a round trip, as a router's buffer is
    /// commonly measured.
    fn queue(&self, rate: u64) -> u64 {
        let time = (2 * self.delay).max(LEAST_TIME).as_micros() as u64;
        (rate / 8).saturating_mul(time).saturating_div(1_000_000).max(LEAST_QUEUE)
    }
}

/// What became of the segments of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Segments that came.
    pub segments: u64,
    /// Of these, lost by the dice.
    pub lost: u64,
    /// Of these, for which the queue of the wire had no room.
    pub queue_full: u64,
    /// Of these, beyond [`HELD_LIMIT`]: a path that cannot be had here.
    pub over_limit: u64,
}

/// Splitmix64: small, fast, the same everywhere.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// Whether one of `ppm` in a million falls.
    fn falls(&mut self, ppm: u32) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The upper half, scaled to a million.
        ((z >> 32) * 1_000_000) >> 32 < u64::from(ppm)
    }
}

/// One direction of a path, and the frames that are on it.
#[derive(Debug)]
pub struct Line {
    conditions: Conditions,
    dice: Dice,
    /// When losses begin, once the first frame has come.
    lossy_from: Option<Instant>,
    /// When the wire has sent everything that waits for it.
    idle_at: Instant,
    /// Frames under way, with the time at which each arrives.
    held: VecDeque<(Instant, Vec<u8>)>,
    held_bytes: usize,
    tally: Tally,
    /// Runs of segments that are left of the frame at hand.
    left: Vec<Range<usize>>,
}

impl Line {
    /// An empty line.
    pub fn new(conditions: Conditions) -> Line {
        Line {
            conditions,
            dice: Dice(conditions.seed),
            lossy_from: None,
            idle_at: Instant::ZERO,
            held: VecDeque::new(),
            held_bytes: 0,
            tally: Tally::default(),
            left: Vec::new(),
        }
    }

    /// What became of all segments so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether the frame at hand, which `admit` passed whole, may go on at once: nothing is in
    /// front of it, and it takes no time.
    pub fn is_transparent(&self) -> bool {
        self.conditions.delay.is_zero() && self.conditions.rate.is_none() && self.held.is_empty()
    }

    /// Decides the fate of a frame's segments. Whole frames are to be given to [`Line::put`], or
    /// forwarded if [`Line::is_transparent`]; of others, what is left is put here.
    pub fn admit(&mut self, now: Instant, frame: &[u8]) -> Admitted {
        let shape = Shape::of(frame);
        let count = shape.segments();
        self.tally.segments += count as u64;
        self.left.clear();
        let spared = now < *self.lossy_from.get_or_insert(now + self.conditions.spared);
        for index in 0..count {
            if self.dice.falls(self.conditions.loss_ppm) && !spared {
                self.tally.lost += 1;
            } else if !self.wire_takes(now, shape.wire_bytes(index)) {
                self.tally.queue_full += 1;
            } else {
                match self.left.last_mut() {
                    Some(run) if run.end == index => run.end += 1,
                    _ => self.left.push(index..index + 1),
                }
            }
        }
        if let [whole] = self.left.as_slice()
            && whole.len() == count
        {
            return Admitted::Whole(count);
        }
        let runs = std::mem::take(&mut self.left);
        for run in &runs {
            self.put(now, shape.piece(frame, run), run.len());
        }
        self.left = runs;
        Admitted::Settled
    }

    /// Whether the queue of the wire takes so many bytes more; then it does.
    fn wire_takes(&mut self, now: Instant, bytes: usize) -> bool {
        let Some(rate) = self.conditions.rate else { return true };
        let waiting = self.idle_at.since(now).as_nanos() as u64;
        let queued = u128::from(waiting) * u128::from(rate) / 8_000_000_000;
        if queued + bytes as u128 > u128::from(self.conditions.queue(rate)) {
            return false;
        }
        let time = Duration::from_nanos(bytes as u64 * 8_000_000_000 / rate.max(1));
        self.idle_at = self.idle_at.max(now) + time;
        true
    }

    /// Sends a frame of `segments` segments on its way.
    pub fn put(&mut self, now: Instant, frame: Vec<u8>, segments: usize) {
        if self.held_bytes + frame.capacity() > HELD_LIMIT {
            self.tally.over_limit += segments as u64;
            return;
        }
        self.held_bytes += frame.capacity();
        // The last bit leaves when the wire is idle again.
        let sent = self.idle_at.max(now);
        self.held.push_back((sent + self.conditions.delay, frame));
    }

    /// When the next frame arrives.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.front().map(|(due, _)| *due)
    }

    /// The next frame, if it has arrived by `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let (_, frame) = self.held.pop_front()?;
        self.held_bytes -= frame.capacity();
        Some(frame)
    }
}

/// What [`Line::admit`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Nothing is lost of these segments: the frame itself may go.
    Whole(usize),
    /// What is left of it, if anything, is on the line.
    Settled,
}
