//! `tapway doctor`: whether this machine lets the caller run guests, what is lost where it does
//! not, and the command that mends it.
//!
//! ```text
//!   gather (files, sockets, a trial) -> Facts -> checks::judge (pure) -> Report -> render
//! ```
//! What matters is tried for real in a child that goes away (`sys::probe`), never concluded from a
//! version number where trying is possible; settings are read to name the cause of a refusal.
//! Doctor needs no privilege, writes nothing but its report, sends no packet, and ends within
//! seconds even when a probe hangs.
//!
//! # Verdicts and exit status
//!
//! | verdict | meaning | exit status | with `strict` |
//! |---|---|---|---|
//! | `ok` | all of it works | 0 | 0 |
//! | `degraded` | guests run; what the line names is lost | 0 | 3 |
//! | `missing` | `tapway run` cannot start a guest | 1 | 1 |
//!
//! So `tapway doctor && tapway run …` does what it looks like. 2 is left to errors of the command
//! line.
//!
//! # JSON, version 1
//!
//! ```json
//! {"version":1,"verdict":"degraded","checks":[{"name":"low-ports","verdict":"degraded",
//!  "seen":"…","lost":"…","mend":"sudo sysctl -w …","keep":"echo … | sudo tee -a …"}]}
//! ```
//! One line. `verdict` at the top is the worst one. `seen` is always a string; `lost`, `mend` and
//! `keep` are null where there is nothing to say. `mend` works at once; `keep` makes it last over a
//! reboot where `mend` alone would not. Names of checks and verdicts are stable; texts are for
//! people. Later versions may add fields and checks without changing the number.

mod checks;
mod facts;
mod gather;
mod render;
mod report;

use std::io::{self, IsTerminal, Write};

pub use report::{Check, Report, Verdict};

/// How to report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// JSON instead of text.
    pub json: bool,
    /// A degraded machine fails too.
    pub strict: bool,
    /// Colours in the text; [`colour_on`] tells whether they are wanted.
    pub colour: bool,
}

/// Checks this machine, reports to `out` and returns the exit status.
///
/// # Errors
/// Only those of writing to `out`.
pub fn run(options: Options, out: &mut dyn Write) -> io::Result<u8> {
    let report = examine();
    if options.json {
        render::json(&report, out)?;
    } else {
        render::text(&report, options.colour, out)?;
    }
    out.flush()?;
    Ok(report.exit_status(options.strict))
}

/// Checks this machine for the calling user.
pub fn examine() -> Report {
    Report { checks: checks::judge(&gather::gather()) }
}

/// Whether `stream` wants colours: it is a terminal, and `NO_COLOR` is unset or empty
/// (no-color.org).
pub fn colour_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
