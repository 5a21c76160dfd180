//! What a helper costs while nothing happens: just after its start, and with silent connections.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::base::{Failure, Process, Usage, pause, read_line};
use crate::contenders::{Contender, Guest};
use crate::lab::{Lab, SERVER};

use super::{Cell, Figure, GRACE};

/// How many connections stay open in [`Workload::Connections`](super::Workload::Connections).
const IDLE_CONNECTIONS: usize = 10_000;

/// Opens the connections one after the other, lets them be silent, and proves them open afterwards.
pub(super) fn connections(lab: &Lab, guest: &Guest, seconds: u32) -> Result<Cell, Failure> {
    const PORT: u16 = 7001;
    /// Seconds to open them all. A helper whose work per packet grows with its connections may
    /// not get there; its cell then says how far it came.
    const OPENING: u32 = 20;
    let program = lab.agent.to_string_lossy().into_owned();
    let _holder = lab.serve(&lab.ext, &program, &["agent", "hold", "7001"], PORT, "hold.log")?;
    let (server, count) = (format!("{SERVER}:{PORT}"), IDLE_CONNECTIONS.to_string());
    let mut command = lab.as_user(guest.net(lab), Path::new("timeout"));
    let bound = OPENING + 4 * GRACE + seconds;
    command.args(["--signal=KILL", &bound.to_string()]).arg(&lab.agent);
    command.args(["agent", "connect", &server, &count, &OPENING.to_string()]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut opener = Process::start(pipes)?;
    let child = opener.child();
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Failure("the client has no pipes".into()));
    };
    let mut answers = BufReader::new(stdout);
    if read_line(&mut answers).is_err() {
        let mut why = String::new();
        let _ = stderr.read_to_string(&mut why);
        return Err(Failure(why.trim().trim_start_matches("e2e: ").to_owned()));
    }
    let figures = while_idle(lab, guest, seconds);
    writeln!(stdin, "go").map_err(|e| Failure::because("ask the client", e))?;
    let alive = read_line(&mut answers)?;
    if alive != count {
        return Err(Failure(format!("only {alive} of {count} idle connections stayed open")));
    }
    // One byte of greeting for each.
    Ok(Cell { figures, received: IDLE_CONNECTIONS as u64, ..Cell::default() })
}

/// What the helper holds and uses while its connections are silent; nothing without a helper.
pub fn while_idle(lab: &Lab, guest: &Guest, seconds: u32) -> Vec<Figure> {
    settle(lab, &[guest]);
    let figures = watch(&[guest], seconds).into_iter().flat_map(|(_, interval)| {
        [
            ("/rss".into(), interval.resident_mb),
            ("/cpu".into(), interval.cpu_percent),
            ("/wakeups".into(), interval.wakeups_per_second),
        ]
    });
    figures.collect()
}

/// Measures all helpers at once while nothing happens; they hardly disturb each other.
pub fn idle(lab: &Lab, guests: &[&Guest], seconds: u32) -> Vec<(Contender, Vec<Figure>)> {
    settle(lab, guests);
    let figures = |interval: Interval| {
        vec![
            ("idle/rss".into(), interval.resident_mb),
            ("idle/anon".into(), interval.anonymous_mb),
            ("idle/wakeups".into(), interval.wakeups_per_second),
        ]
    };
    watch(guests, seconds).into_iter().map(|(who, interval)| (who, figures(interval))).collect()
}

/// Waits until no guest's device has moved a packet for two seconds, at most five: a new guest
/// announces itself (neighbour discovery, router solicitation), which is not idleness.
fn settle(lab: &Lab, guests: &[&Guest]) {
    const QUIET_STEPS: u32 = 4;
    const STEP: Duration = Duration::from_millis(500);
    const STEPS: u32 = 10;
    let packets = || -> Vec<Option<u64>> {
        guests.iter().map(|guest| Some(guest.counters(lab, false).ok()?.packets)).collect()
    };
    let (mut last, mut quiet) = (packets(), 0);
    for _ in 0..STEPS {
        pause(STEP);
        let now = packets();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if quiet == QUIET_STEPS {
            return;
        }
    }
}

/// What a helper used over an interval in which it had nothing to do.
struct Interval {
    /// Units of 10⁶ bytes.
    resident_mb: f64,
    anonymous_mb: f64,
    wakeups_per_second: f64,
    /// Of one core.
    cpu_percent: f64,
}

fn watch(guests: &[&Guest], seconds: u32) -> Vec<(Contender, Interval)> {
    let usages = || -> Vec<(Contender, Usage)> {
        guests.iter().filter_map(|g| Some((g.contender, g.usage()?))).collect()
    };
    let before = usages();
    pause(Duration::from_secs(seconds.into()));
    let after = usages();
    let time = f64::from(seconds);
    let interval = |from: Usage, to: Usage| Interval {
        resident_mb: to.resident as f64 / 1e6,
        anonymous_mb: to.anonymous as f64 / 1e6,
        wakeups_per_second: to.wakeups.saturating_sub(from.wakeups) as f64 / time,
        cpu_percent: 100.0 * (to.seconds() - from.seconds()) / time,
    };
    before
        .into_iter()
        .zip(after)
        .map(|((contender, from), (_, to))| (contender, interval(from, to)))
        .collect()
}
