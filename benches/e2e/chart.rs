//! The bar chart: one panel per row of the table, one bar per contender, as SVG.
//!
//! Text and background follow the reader's light or dark scheme; tapway's bar has a colour of its
//! own, the others differ in shade and are named, so that the chart also reads without colour.

use std::fmt::Write as _;

use crate::contenders::Contender;
use crate::figures::GROUPS;
use crate::machine::Machine;
use crate::report::{Better, Results, Row, Summary};

/// Lengths in the SVG's user units (pixels at its natural size).
const COLUMNS: usize = 3;
const PANEL_WIDTH: usize = 330;
const NAME_WIDTH: usize = 82;
const BAR_WIDTH: usize = 160;
const BAR_STEP: usize = 17;
const BAR: usize = 13;
const PANEL_HEAD: usize = 40;
const PANEL_GAP: usize = 16;
const GROUP_HEAD: usize = 34;
const MARGIN: usize = 24;
const TITLE: usize = 20;
const LINE: usize = 18;

const STYLE: &str = "\
text { font: 12px system-ui, 'Liberation Sans', Arial, sans-serif; fill: #1f2328; }
.title { font-size: 18px; font-weight: 600; } .panel { font-weight: 600; }
.group { font-size: 15px; font-weight: 600; } .rule { stroke: #d1d9e0; }
.soft { fill: #59636e; } .page { fill: #ffffff; }
.range { stroke: #1f2328; stroke-width: 1; }
.direct { fill: #d0d7de; } .bridge { fill: #afb8c1; } .slirp4netns { fill: #8c959f; }
.pasta { fill: #6e7781; } .tapway { fill: #0969da; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .soft { fill: #9198a1; } .page { fill: #0d1117; }
.rule { stroke: #3d444d; }
.range { stroke: #e6edf3; }
.direct { fill: #3d444d; } .bridge { fill: #525b66; } .slirp4netns { fill: #6a737d; }
.pasta { fill: #848d97; } .tapway { fill: #4493f8; }
}";

/// Draws the measured rows of all groups.
pub fn svg(machine: &Machine, results: &Results) -> String {
    let height_of = |row: &Row| PANEL_HEAD + bars(results, row).len() * BAR_STEP + PANEL_GAP;
    let (width, mut body) = (2 * MARGIN + COLUMNS * PANEL_WIDTH, String::new());
    let mut y = MARGIN + TITLE;
    let mut is_marked = false;
    for group in &GROUPS {
        let rows: Vec<&Row> = group.rows(results).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(
            body,
            "<line class=\"rule\" x1=\"{MARGIN}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>\
             <text class=\"group\" x=\"{MARGIN}\" y=\"{}\">{}</text>",
            width - MARGIN,
            y + 20,
            escaped(group.title)
        );
        y += GROUP_HEAD;
        for line in rows.chunks(COLUMNS) {
            for (column, row) in line.iter().enumerate() {
                panel(&mut body, results, row, MARGIN + column * PANEL_WIDTH, y);
                is_marked |=
                    bars(results, row).iter().any(|(c, _)| !results.mark(row, *c).is_empty());
            }
            y += line.iter().map(|row| height_of(row)).max().unwrap_or(0);
        }
    }
    let mut foot = machine.lines().to_vec();
    foot.push("Medians; the line in a bar spans the rounds.".into());
    if is_marked {
        foot.push("* The client's address is lost.".into());
    }
    for line in &foot {
        y += LINE;
        let _ = writeln!(
            body,
            "<text class=\"soft\" x=\"{MARGIN}\" y=\"{y}\">{}</text>",
            escaped(line)
        );
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"tapway compared\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"{}\">A guest's network: no helper, rootful bridge, \
         slirp4netns, pasta, tapway</text>\n{body}</svg>\n",
        MARGIN + 6
    )
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
    let (label, own) = row.parts();
    let own = own.map_or(String::new(), |own| format!("{own}, "));
    let _ = writeln!(
        out,
        "<text class=\"panel\" x=\"{x}\" y=\"{}\">{}</text>\
         <text class=\"soft\" x=\"{x}\" y=\"{}\">{}{}, {better}</text>",
        y + 12,
        escaped(label),
        y + 27,
        escaped(&own),
        escaped(row.unit)
    );
    let start = x + NAME_WIDTH;
    for (n, (contender, summary)) in bars.iter().enumerate() {
        let top = y + PANEL_HEAD - 5 + n * BAR_STEP;
        let (middle, name) = (top + BAR / 2, contender.name());
        let from = start as f64 + length(summary.least);
        let to = start as f64 + length(summary.most);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{name}\" x=\"{start}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\" \
             rx=\"2\"/>\
             <line class=\"range\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" \
             y2=\"{middle}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}{}</text>",
            start - 8,
            top + 11,
            length(summary.median).max(1.0),
            to + 8.0,
            top + 11,
            row.figure(summary.median),
            results.mark(row, *contender),
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
