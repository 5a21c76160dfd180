//! How long a contender takes from its start to the first instruction of a command inside.

use std::path::Path;

use crate::base::{Failure, output_of};
use crate::contenders::{Contender, Programs, run_args};
use crate::lab::Lab;
use crate::published::Published;
use crate::report::median;

use super::Figure;

/// Starts the contender with a command inside and gives the medians.
///
/// For [`Contender::Direct`] it is the bare command: the part of the figures that no helper can
/// save.
pub fn start(
    lab: &Lab,
    programs: &Programs,
    contender: Contender,
    host: usize,
) -> Result<Vec<Figure>, Failure> {
    /// Enough for a median; the slowest contender needs two seconds for them.
    const STARTS: u32 = 20;
    let (first, total) = launch(lab, programs, contender, host, Published::Nothing, STARTS)?;
    Ok(vec![("start".into(), first), ("start/total".into(), total)])
}

/// Starts the contender `starts` times with `published` ports and a command inside: the median
/// milliseconds to the command's first instruction, and to the end of everything.
pub fn launch(
    lab: &Lab,
    programs: &Programs,
    contender: Contender,
    host: usize,
    published: Published,
    starts: u32,
) -> Result<(f64, f64), Failure> {
    let net = &lab.hosts[host].net;
    let mut command = lab.as_user(net, Path::new("timeout"));
    command.args(["--signal=KILL", "60"]).arg(&lab.agent);
    command.args(["agent", "launch", &starts.to_string()]);
    if contender.is_rootless() {
        command.arg(&programs.get(contender)?.runs).args(run_args(contender, published));
    }
    let report = output_of(command.arg(&lab.agent).args(["agent", "stamp"]))?;
    let (mut first, mut total) = (Vec::new(), Vec::new());
    for line in report.lines() {
        let mut nanos = line.split_whitespace().map_while(|w| w.parse::<f64>().ok());
        if let (Some(to_first), Some(to_end)) = (nanos.next(), nanos.next()) {
            first.push(to_first / 1e6);
            total.push(to_end / 1e6);
        }
    }
    let medians = median(&first).zip(median(&total));
    medians.ok_or_else(|| Failure::because("the launcher's report", report.trim()))
}
