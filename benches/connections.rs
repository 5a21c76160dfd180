//! What connections cost the engine when there are many of them: bytes that each makes it hold, and
//! whether what is done for one of them takes longer.
//!
//! `cargo bench --bench connections`
//!
//! The whole engine works, between edges in memory: see `tests/support/crowd.rs`. So the figures are
//! of no descriptor and no system call, and no limit of the machine stands in the way. What the
//! kernel does for connections comes on top and is part of the end-to-end comparison.
//!
//! Engines of all sizes stand side by side, and each action is measured through all of them in turn,
//! in rounds: what disturbs the machine for a while disturbs all of them. Medians are printed. An
//! action through "any" connection goes through all of them in a stride, so that the processor's
//! caches do not have it: that it takes longer is not work that grows, and with as many connections
//! as fit a cache there is nothing to see. The action on one connection has them.

#[path = "../tests/support/crowd.rs"]
mod crowd;

use std::alloc::System;
use std::time::Duration;

use cap::Cap;
use tapway::engine::Limits;
use tapway::sys::clock;

use crate::crowd::Crowd;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Connections that are open; with the last there is still room for those that come and go.
const SIZES: [usize; 4] = [100, 10_000, 100_000, 150_000];

const ROUNDS: usize = 15;

/// Prime to all sizes.
const STRIDE: usize = 7_919;

/// What is measured: its name, how often it is done in a round, and how.
struct Action {
    name: &'static str,
    times: usize,
    act: fn(&mut Crowd, usize),
}

const ACTIONS: [Action; 8] = [
    Action { name: "a connection that comes and goes", times: 2_000, act: |crowd, _| crowd.pass() },
    Action { name: "a request, one connection", times: 5_000, act: |crowd, _| crowd.request(0) },
    Action { name: "a request, any connection", times: 5_000, act: Crowd::request },
    Action { name: "an answer, one connection", times: 5_000, act: |crowd, _| crowd.answer(0) },
    Action { name: "an answer, any connection", times: 5_000, act: Crowd::answer },
    Action { name: "a tick of the timer wheel", times: 2_000, act: |crowd, _| crowd.tick() },
    Action { name: "a page of the list", times: 1, act: |crowd, _| assert!(crowd.list() > 0) },
    Action { name: "all counters", times: 1, act: |crowd, _| assert!(crowd.stats() > 0) },
];

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        println("connections: not a test; run it with `cargo bench --bench connections`");
        return;
    }
    assert!(SIZES[3] < Limits::default().tcp_flows);
    let mut crowds = SIZES.map(filled);
    let names = SIZES.map(|size| size.to_string());
    println(&format!("{:34}{}", "connections", cells(&names)));
    for (row, of) in [("bytes allocated for each", 0), ("bytes resident for each", 1)] {
        let each = crowds.each_ref().map(|(_, bytes)| bytes[of].to_string());
        println(&format!("{row:34}{}", cells(&each)));
    }
    // The ratio at the end is that of 100,000 to 100.
    let mut number = 0;
    for Action { name, times, act } in ACTIONS {
        let mut samples: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            for ((crowd, _), samples) in crowds.iter_mut().zip(&mut samples) {
                let size = crowd.size();
                crowd.rest(Duration::from_secs(2));
                let start = clock::now();
                for _ in 0..times {
                    number += STRIDE;
                    act(crowd, number % size);
                }
                let took = clock::now().since(start).as_nanos() as f64;
                samples.push(took / times as f64);
            }
        }
        let medians = samples.map(|mut values| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        });
        let text = medians.map(|median| format!("{median:.0} ns"));
        println(&format!("{name:34}{}   {:.2} ×", cells(&text), medians[2] / medians[0]));
    }
    assert!(crowds.iter().all(|(crowd, _)| crowd.dropped() == 0), "every frame has to be taken");
}

/// An engine with so many connections that have been used and are idle, and what each of them makes
/// it hold: bytes allocated, and bytes resident.
fn filled(size: usize) -> (Crowd, [usize; 2]) {
    let mut crowd = Crowd::new(size);
    let held = || [ALLOCATOR.allocated(), resident()];
    let before = held();
    crowd.open(size);
    for number in 0..size {
        crowd.request(number);
        crowd.answer(number);
    }
    crowd.rest(Duration::from_secs(5));
    let after = held();
    (crowd, [0, 1].map(|of| after[of].saturating_sub(before[of]) / size))
}

/// Bytes of this program in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|word| word.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn cells(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text:>14}")).collect()
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
fn println(text: &str) {
    println!("{text}");
}
