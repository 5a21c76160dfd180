//! The bar chart: one panel per workload, one bar per contender, as SVG.
//!
//! Text and background follow the reader's light or dark scheme; tapway's bar has a colour of its
//! own, the others differ in shade and are named, so that the chart also reads without colour.

use std::fmt::Write as _;

use crate::contenders::Contender;
use crate::machine::Machine;
use crate::report::{Better, Results, Row, Summary};

/// What the chart shows of the table, in panels of three columns.
const PANELS: [&str; 16] = [
    "tcp-up-65520",
    "tcp-down-65520",
    "tcp-up-1500",
    "tcp-down-1500",
    "http-keepalive",
    "http-close",
    "latency",
    "start",
    "idle/rss",
    "conns-10k/rss",
    "tcp-up-1500/cpu",
    "tcp-down-1500/cpu",
    "published-up",
    "published-down",
    "published-rate",
    "published-ports",
];

/// Lengths in the SVG's user units (pixels at its natural size).
const COLUMNS: usize = 2;
const PANEL_WIDTH: usize = 460;
const NAME_WIDTH: usize = 90;
const BAR_WIDTH: usize = 250;
const BAR_STEP: usize = 22;
const PANEL_HEAD: usize = 34;
const PANEL_GAP: usize = 12;
const MARGIN: usize = 24;
const TITLE: usize = 40;

const STYLE: &str = "\
text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.title { font-size: 18px; font-weight: 600; } .panel { font-weight: 600; }
.soft { fill: #59636e; font-size: 12px; } .page { fill: #ffffff; }
.range { stroke: #1f2328; stroke-width: 1; }
.direct { fill: #d0d7de; } .bridge { fill: #afb8c1; } .slirp4netns { fill: #8c959f; }
.pasta { fill: #6e7781; } .tapway { fill: #0969da; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .soft { fill: #9198a1; } .page { fill: #0d1117; }
.range { stroke: #e6edf3; }
.direct { fill: #3d444d; } .bridge { fill: #525b66; } .slirp4netns { fill: #6a737d; }
.pasta { fill: #848d97; } .tapway { fill: #4493f8; }
}";

/// Draws the measured rows that the chart has a panel for.
pub fn svg(machine: &Machine, results: &Results) -> String {
    let rows: Vec<&Row> =
        PANELS.iter().filter_map(|id| results.rows().find(|row| row.id == *id)).collect();
    let height_of = |row: &Row| PANEL_HEAD + bars(results, row).len() * BAR_STEP + PANEL_GAP;
    let mut body = String::new();
    let mut y = MARGIN + TITLE;
    for line in rows.chunks(COLUMNS) {
        for (column, row) in line.iter().enumerate() {
            panel(&mut body, results, row, MARGIN + column * PANEL_WIDTH, y);
        }
        y += line.iter().map(|row| height_of(row)).max().unwrap_or(0);
    }
    let (width, height) = (2 * MARGIN + COLUMNS * PANEL_WIDTH, y + MARGIN);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"tapway compared\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"{}\">A guest's network: no helper, bridge, \
         slirp4netns, pasta, tapway</text>",
        MARGIN + 14
    );
    out.push_str(&body);
    let is_marked =
        |row: &&Row| bars(results, row).iter().any(|(c, _)| !results.mark(row, *c).is_empty());
    let lost = match rows.iter().any(is_marked) {
        true => "; * the client's address is lost",
        false => "",
    };
    let _ = writeln!(
        out,
        "<text class=\"soft\" x=\"{MARGIN}\" y=\"{y}\">{}; medians, the line spans the \
         rounds{lost}</text>\n</svg>",
        escaped(&machine.line())
    );
    out
}

fn bars(results: &Results, row: &Row) -> Vec<(Contender, Summary)> {
    let cell = |c: Contender| Some((c, results.summary(row.id, c)?));
    Contender::ALL.into_iter().filter_map(cell).collect()
}

fn panel(out: &mut String, results: &Results, row: &Row, x: usize, y: usize) {
    let bars = bars(results, row);
    let longest = bars.iter().map(|(_, s)| s.most).fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value / longest * BAR_WIDTH as f64;
    let better = if row.better == Better::More { "more is better" } else { "less is better" };
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{}\"><tspan class=\"panel\">{}</tspan>\
         <tspan class=\"soft\" dx=\"8\">{}, {better}</tspan></text>",
        y + 14,
        escaped(row.label),
        escaped(row.unit)
    );
    let start = x + NAME_WIDTH;
    for (n, (contender, summary)) in bars.iter().enumerate() {
        let top = y + PANEL_HEAD - 8 + n * BAR_STEP;
        let (middle, name) = (top + BAR_STEP / 2 - 3, contender.name());
        let from = start as f64 + length(summary.least);
        let to = start as f64 + length(summary.most);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{name}\" x=\"{start}\" y=\"{top}\" width=\"{:.1}\" height=\"16\" \
             rx=\"2\"/>\
             <line class=\"range\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" \
             y2=\"{middle}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}{}</text>",
            start - 8,
            top + 13,
            length(summary.median).max(1.0),
            to + 8.0,
            top + 13,
            row.figure(summary.median),
            results.mark(row, *contender),
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
