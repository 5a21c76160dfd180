//! A virtual machine's processors are lent. While the hypervisor gives them to others, a figure is
//! one of the others' work; the kernel says how much was taken (`steal`, proc_stat(5)).
//!
//! So a measurement from which much was taken is done again. Whether it is, depends on nothing but
//! that: not on its figure, and not on whose it is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::base::{Processors, pause};
use crate::report::median;

/// Share of all processors' time that may be taken from a measurement. Loads keep two to four of
/// four busy, so it is a sixteenth of what they have at most.
pub const STOLEN: f64 = 0.03;

/// How often a measurement is done before the one from which least was taken has to do.
const ATTEMPTS: u32 = 5;

/// How long the first new attempt waits; each one after it waits so much longer.
const WAIT: Duration = Duration::from_secs(1);

/// What was taken from the measurements of a run.
#[derive(Debug, Default)]
pub struct Calm {
    /// From each that was kept, as a share of all processors' time.
    kept: Vec<f64>,
    /// How many were done again.
    again: usize,
}

impl Calm {
    /// Does `work` until no more than `limit` of the processors' time is taken from it.
    pub fn measure<T>(&mut self, what: &str, limit: f64, mut work: impl FnMut() -> T) -> T {
        let mut attempt = || {
            let before = Processors::now();
            let made = work();
            (Processors::now().stolen_since(before), made)
        };
        let mut best = attempt();
        for number in 1..ATTEMPTS {
            if best.0 <= limit {
                break;
            }
            eprintln!(
                "{what}: others took {:.0} % or more of the processors' time: again",
                100.0 * best.0
            );
            self.again += 1;
            pause(number * WAIT);
            let next = attempt();
            if next.0 < best.0 {
                best = next;
            }
        }
        self.kept.push(best.0);
        best.1
    }

    /// What a reader has to know: nothing, on a machine of one's own.
    pub fn line(&self) -> Option<String> {
        let most = self.kept.iter().copied().fold(0.0, f64::max);
        if self.again == 0 && most <= STOLEN {
            return None;
        }
        let above = self.kept.iter().filter(|stolen| **stolen > STOLEN).count();
        Some(format!(
            "The hypervisor gave processors to others: {} attempts were repeated; of {} measurements \
             kept, the middle one lacked {:.1} % of their time, {above} more than {:.0} %, and one \
             {:.0} %.",
            self.again,
            self.kept.len(),
            100.0 * median(&self.kept).unwrap_or(0.0),
            100.0 * STOLEN,
            100.0 * most,
        ))
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({ "repeated": self.again, "stolen": self.kept })
    }
}
