//! What a hundred thousand connections make a worker hold, to the byte.
//!
//! In a program of its own, because the allocator counts for all threads of it. What the same
//! connections cost in time, `cargo bench --bench connections` prints.

#[path = "support/crowd.rs"]
mod crowd;

use std::alloc::System;
use std::sync::Mutex;
use std::time::Duration;

use cap::Cap;
use tapway::engine::{FLOW_BYTES, Limits};

use crate::crowd::Crowd;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What 150 MB allow each of 100,000.
const MOST: usize = 1_500;

/// What a worker keeps beside its connections: buffers, lists of a turn, slots of the timer wheel.
const BESIDE: usize = 4 << 20;

/// What it keeps without any: small buffers, and slots of the timer wheel.
const EMPTY: usize = 256 << 10;

/// After that much silence everything that can be given back has been.
const SILENCE: Duration = Duration::from_secs(5);

/// One test at a time: what another allocates would count as well.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn idle_connections_take_what_the_limits_say() {
    let _alone = ALONE.lock();
    let limit = Limits::default().tcp_flows;
    let mut crowd = Crowd::new(limit);
    let before = ALLOCATOR.allocated();
    for count in [100_000, limit] {
        let first = crowd.flow_count();
        crowd.open(count);
        for number in first..count {
            crowd.request(number);
            crowd.answer(number);
        }
        crowd.rest(SILENCE);
        let bytes = ALLOCATOR.allocated() - before;
        assert_eq!((crowd.flow_count(), crowd.dropped()), (count, 0));
        assert!(bytes <= MOST * count, "{bytes} bytes for {count}");
        if count == limit {
            assert!(bytes <= FLOW_BYTES * count + BESIDE, "{bytes} bytes for {count}");
        }
    }
}

#[test]
fn connections_that_are_over_take_nothing() {
    let _alone = ALONE.lock();
    let mut crowd = Crowd::new(0);
    let before = ALLOCATOR.allocated();
    (0..20_000).for_each(|_| crowd.pass());
    assert!(crowd.flow_count() > 5_000, "they are remembered for a second");
    crowd.rest(SILENCE);
    assert_eq!((crowd.flow_count(), crowd.dropped()), (0, 0));
    let bytes = ALLOCATOR.allocated().saturating_sub(before);
    assert!(bytes <= EMPTY, "{bytes} bytes");
}
