//! What of the table is shown to readers of the README: the rows in groups, for the chart and for a
//! Markdown table, and the promises that a run did not keep.
//!
//! The text stands between two marks of a file, so that a run renews it in place.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::base::Failure;
use crate::contenders::Contender;
use crate::criteria::criteria;
use crate::machine::Machine;
use crate::report::{Results, Row};

/// Rows that belong together.
pub struct Group {
    pub title: &'static str,
    /// How their ids begin.
    begin: &'static [&'static str],
    /// How the part behind the `/` of their ids may begin; empty is a row without one.
    ends: &'static [&'static str],
}

/// In the order in which they are shown. What no group takes explains figures or hardly varies.
pub const GROUPS: [Group; 6] = [
    Group { title: "TCP", begin: &["tcp"], ends: &[""] },
    Group { title: "Processor time of the helper", begin: &["tcp"], ends: &["cpu"] },
    Group { title: "Datagrams and QUIC", begin: &["udp", "quic"], ends: &[""] },
    Group { title: "Requests and answers", begin: &["http", "latency"], ends: &["", "p99"] },
    Group { title: "Published ports", begin: &["publish"], ends: &["", "p99", "count", "each"] },
    Group {
        title: "Memory, connections, start",
        begin: &["idle", "conns", "start"],
        ends: &["", "count", "each", "rss", "rate"],
    },
];

impl Group {
    /// Its rows of which any cell was measured.
    pub fn rows<'r>(&'r self, results: &'r Results) -> impl Iterator<Item = &'static Row> + 'r {
        results.rows().filter(|row| {
            let (owner, end) = row.id.split_once('/').unwrap_or((row.id, ""));
            let is_shown = |begin: &&str| match *begin {
                "" => end.is_empty(),
                begin => end.starts_with(begin),
            };
            let is_ours = self.begin.iter().any(|begin| owner.starts_with(begin));
            is_ours && self.ends.iter().any(is_shown)
        })
    }
}

/// Where the text begins and ends in a file that has more.
const MARKS: [&str; 2] = ["<!-- figures -->", "<!-- end of figures -->"];

/// Writes the Markdown text to `file`: between its marks if it has them, as all of it otherwise.
pub fn write(file: &Path, machine: &Machine, results: &Results) -> Result<(), Failure> {
    let text = markdown(machine, results);
    let old = fs::read_to_string(file).unwrap_or_default();
    let new = renewed(&old, &text).unwrap_or(text);
    fs::write(file, new).map_err(|e| Failure::because(format_args!("write {}", file.display()), e))
}

/// `old` with `text` between its marks.
fn renewed(old: &str, text: &str) -> Option<String> {
    let [begin, end] = MARKS;
    let (before, rest) = old.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}

fn markdown(machine: &Machine, results: &Results) -> String {
    let contenders = results.contenders();
    let mut out = String::new();
    for line in machine.lines() {
        let _ = writeln!(out, "{line}  ");
    }
    let names = contenders.iter().map(|c| match c {
        Contender::Direct => "no helper",
        Contender::Bridge => "rootful bridge",
        other => other.name(),
    });
    let names: Vec<&str> = names.chain(["/ bridge", "/ best peer"]).collect();
    let _ = writeln!(out, "\n| | {} |", names.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(names.len()));
    for row in GROUPS.iter().flat_map(|group| group.rows(results)) {
        let figure = |c: &Contender| match results.median_of(row.id, *c) {
            Some(value) => row.figure(value) + results.mark(row, *c),
            None => "–".into(),
        };
        let [bridge, _, peer] = results.ratios(row);
        let ratios = [bridge, peer].map(|r| r.map_or(String::new(), |r| format!("{r:.2}")));
        let cells: Vec<String> = contenders.iter().map(figure).chain(ratios).collect();
        let _ = writeln!(out, "| {}, {} | {} |", row.name(), row.unit, cells.join(" | "));
    }
    if contenders.iter().any(|c| results.keeps_address(*c) == Some(false)) {
        let _ = writeln!(out, "\n\\* The address of a published port's client is lost.");
    }
    if let Some(line) = results.calm.line() {
        let _ = writeln!(out, "\n{line}");
    }
    let judged = criteria(results);
    let known = judged.iter().filter(|c| c.met.is_some()).count();
    let short: Vec<_> = judged.iter().filter(|c| c.met == Some(false)).collect();
    let _ = writeln!(out, "\n{} of {known} promises are kept.", known - short.len());
    if !short.is_empty() {
        let _ = writeln!(out, "These are not:\n");
    }
    for c in short {
        let _ = writeln!(out, "- {}: {}, promised {}", c.what, c.measured, c.required);
    }
    out
}
