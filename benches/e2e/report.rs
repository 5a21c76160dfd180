//! From samples to medians and ratios, and the text and JSON forms of all that a run gave.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::calm::Calm;
use crate::contenders::Contender;
use crate::criteria::{Criterion, criteria, verdicts};
use crate::lab::SERVER;
use crate::machine::Machine;
use crate::published;
use crate::wan;

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    pub id: &'static str,
    pub label: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// Digits after the point.
    digits: usize,
}

impl Row {
    /// A figure of this row as text, without its unit.
    pub fn figure(&self, value: f64) -> String {
        format!("{value:.digits$}", digits = self.digits)
    }

    /// What it is about, and what of that: in the table, a row that begins with spaces belongs to
    /// one above it.
    pub fn parts(&self) -> (&'static str, Option<&'static str>) {
        let owner_of = |id: &'static str| id.split('/').next();
        let owner = ROWS.iter().find(|row| owner_of(row.id) == owner_of(self.id));
        match (self.label.strip_prefix("  "), owner) {
            (Some(own), Some(owner)) => (owner.label, Some(own)),
            _ => (self.label, None),
        }
    }

    /// What it is about, outside the table.
    pub fn name(&self) -> String {
        match self.parts() {
            (label, None) => label.to_owned(),
            (owner, Some(own)) => {
                // What follows the last comma of some labels says which of their figures it is.
                let owner = [", mean", ", median"]
                    .iter()
                    .find_map(|end| owner.strip_suffix(end))
                    .unwrap_or(owner);
                format!("{owner}, {}", own.trim_start_matches("its "))
            }
        }
    }

    /// Whether it is about traffic from clients to a published port.
    fn has_clients(&self) -> bool {
        ["published-up", "published-down", "published4", "published-rate"]
            .iter()
            .any(|id| self.id.starts_with(id))
    }
}

const fn row(
    id: &'static str,
    label: &'static str,
    unit: &'static str,
    better: Better,
    digits: usize,
) -> Row {
    Row { id, label, unit, better, digits }
}

/// All rows, in the order of the table. "up" is guest → server, "down" server → guest.
pub const ROWS: [Row; 104] = {
    use Better::{Less, More};
    [
        row("tcp-up-65520", "TCP up, 1 stream, MTU 65520", "Gbit/s", More, 2),
        row("tcp-down-65520", "TCP down, 1 stream, MTU 65520", "Gbit/s", More, 2),
        row("tcp-up-1500", "TCP up, 1 stream, MTU 1500", "Gbit/s", More, 2),
        row("tcp-down-1500", "TCP down, 1 stream, MTU 1500", "Gbit/s", More, 2),
        row("tcp4-up-65520", "TCP up, 4 streams, MTU 65520", "Gbit/s", More, 2),
        row("tcp4-down-65520", "TCP down, 4 streams, MTU 65520", "Gbit/s", More, 2),
        row("tcp-up-65520/cpu", "helper CPU, up, MTU 65520", "s/GB", Less, 2),
        row("tcp-down-65520/cpu", "helper CPU, down, MTU 65520", "s/GB", Less, 2),
        row("tcp-up-1500/cpu", "helper CPU, up, MTU 1500", "s/GB", Less, 2),
        row("tcp-down-1500/cpu", "helper CPU, down, MTU 1500", "s/GB", Less, 2),
        row("udp-gso-up", "UDP up, 1400 bytes, offload", "Gbit/s", More, 2),
        row("udp-gso-down", "UDP down, 1400 bytes, offload", "Gbit/s", More, 2),
        row("udp-1400-up", "UDP up, 1400 bytes, one by one", "Gbit/s", More, 2),
        row("udp-1400-down", "UDP down, 1400 bytes, one by one", "Gbit/s", More, 2),
        row("udp-small-up", "UDP up, 64 bytes, one by one", "M/s", More, 3),
        row("udp-small-down", "UDP down, 64 bytes, one by one", "M/s", More, 3),
        row("udp-gso-up/cpu", "helper CPU, UDP up, offload", "s/GB", Less, 2),
        row("udp-gso-down/cpu", "helper CPU, UDP down, offload", "s/GB", Less, 2),
        row("udp-1400-up/cpu", "helper CPU, UDP up, 1400 bytes", "s/GB", Less, 2),
        row("udp-1400-down/cpu", "helper CPU, UDP down, 1400 bytes", "s/GB", Less, 2),
        row("udp-small-up/cpu", "helper CPU, UDP up, 64 bytes", "s/GB", Less, 2),
        row("udp-small-down/cpu", "helper CPU, UDP down, 64 bytes", "s/GB", Less, 2),
        row("quic-up", "QUIC up, 1 stream", "Gbit/s", More, 2),
        row("quic-down", "QUIC down, 1 stream", "Gbit/s", More, 2),
        row("quic-up/cpu", "helper CPU, QUIC up", "s/GB", Less, 2),
        row("quic-down/cpu", "helper CPU, QUIC down", "s/GB", Less, 2),
        row("http-keepalive", "HTTP, 32 kept connections", "req/s", More, 0),
        row("http-keepalive/p99", "  its 99th percentile", "ms", Less, 2),
        row("http-close", "HTTP, a connection per request", "conn/s", More, 0),
        row("http-close/p99", "  its 99th percentile", "ms", Less, 2),
        row("latency", "TCP ping-pong 64 B, one way, mean", "µs", Less, 1),
        row("latency/p99", "  its 99th percentile", "µs", Less, 1),
        row("latency-udp", "UDP ping-pong 64 B, one way, mean", "µs", Less, 1),
        row("latency-udp/p99", "  its 99th percentile", "µs", Less, 1),
        row("latency-busy", "TCP ping-pong beside a stream, median", "µs", Less, 1),
        row("latency-busy/p99", "  its 99th percentile", "µs", Less, 1),
        row("latency-busy/stream", "  the stream meanwhile", "Gbit/s", More, 2),
        row("latency-udp-busy", "UDP ping-pong beside a stream, median", "µs", Less, 1),
        row("latency-udp-busy/p99", "  its 99th percentile", "µs", Less, 1),
        row("latency-udp-busy/stream", "  the stream meanwhile", "Gbit/s", More, 2),
        row("idle/rss", "resident, idle", "MB", Less, 2),
        row("idle/anon", "  of it anonymous", "MB", Less, 2),
        row("idle/wakeups", "wake-ups, idle", "per s", Less, 2),
        row("conns-10k/rss", "resident, 10,000 idle connections", "MB", Less, 1),
        row("conns-10k/cpu", "CPU, 10,000 idle connections", "% core", Less, 1),
        row("conns-10k/wakeups", "wake-ups, 10,000 idle connections", "per s", Less, 2),
        row("conns-100k/count", "connections that the limit of files allows", "open", More, 0),
        row("conns-100k/each", "resident, with that many, for each", "bytes", Less, 0),
        row("conns-100k/rss", "resident, 100,000 idle connections", "MB", Less, 1),
        row("conns-100k/cpu", "CPU, that many or 100,000 idle", "% core", Less, 1),
        row("conns-100k/wakeups", "wake-ups, that many or 100,000 idle", "per s", Less, 2),
        row("conns-100k/rate-100", "new connections, 100 others open", "conn/s", More, 0),
        row("conns-100k/rate-10k", "new connections, 10,000 others open", "conn/s", More, 0),
        row("conns-100k/rate-100k", "new connections, 100,000 others open", "conn/s", More, 0),
        row("conns-100k/rate-most", "new connections, that many others open", "conn/s", More, 0),
        row("start", "start to first instruction", "ms", Less, 1),
        row("start/total", "start to end of the command", "ms", Less, 1),
        row("published-up", "published TCP up, 1 stream", "Gbit/s", More, 2),
        row("published-down", "published TCP down, 1 stream", "Gbit/s", More, 2),
        row("published4-up", "published TCP up, 4 streams", "Gbit/s", More, 2),
        row("published4-down", "published TCP down, 4 streams", "Gbit/s", More, 2),
        row("published-local-up", "published TCP up, client on the host", "Gbit/s", More, 2),
        row("published-local-down", "published TCP down, client on the host", "Gbit/s", More, 2),
        row("published-local-up/cpu", "helper CPU, published, up, same host", "s/GB", Less, 2),
        row("published-local-down/cpu", "helper CPU, published, down, same host", "s/GB", Less, 2),
        row("published-up/cpu", "helper CPU, published, up", "s/GB", Less, 2),
        row("published-down/cpu", "helper CPU, published, down", "s/GB", Less, 2),
        row("published-rate", "published HTTP, a connection per request", "conn/s", More, 0),
        row("published-rate/p99", "  its 99th percentile", "ms", Less, 2),
        row("publish-add", "publish one port more", "ms", Less, 3),
        row("published-ports", "start with 20,000 published ports", "ms", Less, 1),
        row("published-ports/count", "ports that the limit of files allows", "open", More, 0),
        row("published-ports/each", "start with that many, for each", "µs", Less, 1),
        row("published-ports/rss", "resident, that many or 20,000 ports", "MB", Less, 2),
        row("published-ports/anon", "  of it anonymous", "MB", Less, 2),
        row("published-ports/wakeups", "wake-ups, that many or 20,000 ports", "per s", Less, 2),
        row("podman-up", "podman: TCP up, 1 stream", "Gbit/s", More, 2),
        row("podman-down", "podman: TCP down, 1 stream", "Gbit/s", More, 2),
        row("podman-up/cpu", "podman: helper CPU, up", "s/GB", Less, 2),
        row("podman-down/cpu", "podman: helper CPU, down", "s/GB", Less, 2),
        row("podman-rate", "podman: published HTTP, connections", "conn/s", More, 0),
        row("podman-rate/p99", "  its 99th percentile", "ms", Less, 2),
        row("podman-rate-engine", "podman: the same, port handler rootlesskit", "conn/s", More, 0),
        row("podman-rate-engine/p99", "  its 99th percentile", "ms", Less, 2),
        row("podman-start", "podman: a short command, in all", "ms", Less, 1),
        row("podman-start/first", "  to its first instruction", "ms", Less, 1),
        row("rootlesskit-up", "rootlesskit: TCP up, 1 stream", "Gbit/s", More, 2),
        row("rootlesskit-down", "rootlesskit: TCP down, 1 stream", "Gbit/s", More, 2),
        row("rootlesskit-up/cpu", "rootlesskit: helper CPU, up", "s/GB", Less, 2),
        row("rootlesskit-down/cpu", "rootlesskit: helper CPU, down", "s/GB", Less, 2),
        row("rootlesskit-rate", "rootlesskit: published HTTP, connections", "conn/s", More, 0),
        row("rootlesskit-rate/p99", "  its 99th percentile", "ms", Less, 2),
        row(
            "rootlesskit-rate-engine",
            "rootlesskit: the same, port driver builtin",
            "conn/s",
            More,
            0,
        ),
        row("rootlesskit-rate-engine/p99", "  its 99th percentile", "ms", Less, 2),
        row("rootlesskit-start", "rootlesskit: a short command, in all", "ms", Less, 1),
        row("rootlesskit-start/first", "  to its first instruction", "ms", Less, 1),
        row("podman5-up", "podman 5, pasta: TCP up, 1 stream", "Gbit/s", More, 2),
        row("podman5-down", "podman 5, pasta: TCP down, 1 stream", "Gbit/s", More, 2),
        row("podman5-up/cpu", "podman 5, pasta: helper CPU, up", "s/GB", Less, 2),
        row("podman5-down/cpu", "podman 5, pasta: helper CPU, down", "s/GB", Less, 2),
        row("podman5-rate", "podman 5, pasta: published HTTP, connections", "conn/s", More, 0),
        row("podman5-rate/p99", "  its 99th percentile", "ms", Less, 2),
        row("podman5-start", "podman 5, pasta: a short command, in all", "ms", Less, 1),
        row("podman5-start/first", "  to its first instruction", "ms", Less, 1),
    ]
};

/// A frame that a device dropped is news whoever lost it; for tapway it is a defect.
#[derive(Debug, Clone)]
pub struct Dropped {
    pub contender: Contender,
    pub workload: String,
    pub round: u32,
    pub frames: u64,
}

/// A cell that gave no figure.
#[derive(Debug, Clone)]
pub struct Missing {
    pub contender: Contender,
    pub workload: String,
    pub round: u32,
    pub why: String,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Results {
    /// Per row id and contender, one value per round.
    samples: BTreeMap<String, BTreeMap<Contender, Vec<f64>>>,
    /// What the guest's server took for the address of the client of a published port.
    pub seen: BTreeMap<Contender, IpAddr>,
    pub dropped: Vec<Dropped>,
    pub missing: Vec<Missing>,
    /// The cells of the WAN grid.
    pub wan: wan::table::Table,
    /// What others took of the processors meanwhile.
    pub calm: Calm,
}

/// The summary of one cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub rounds: usize,
}

/// The middle of `values`, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

impl Results {
    /// Adds a value of row `id`.
    pub fn add(&mut self, id: &str, contender: Contender, value: f64) {
        let row = self.samples.entry(id.to_owned()).or_default();
        row.entry(contender).or_default().push(value);
    }

    /// Keeps as what address a client of a published port was seen. An address that is not the
    /// client's own stays: once is enough.
    pub fn saw(&mut self, contender: Contender, address: IpAddr) {
        let seen = self.seen.entry(contender).or_insert(address);
        if published::is_kept(*seen) {
            *seen = address;
        }
    }

    /// Whether the guest's server saw the client's own address, if that was looked at.
    pub fn keeps_address(&self, contender: Contender) -> Option<bool> {
        self.seen.get(&contender).copied().map(published::is_kept)
    }

    /// Marks figures of published paths that do not keep the client's address.
    pub fn mark(&self, row: &Row, contender: Contender) -> &'static str {
        let is_measured = row.has_clients() && self.summary(row.id, contender).is_some();
        let is_lost = is_measured && self.keeps_address(contender) == Some(false);
        if is_lost { "*" } else { "" }
    }

    /// Median and range of a cell, if it was measured.
    pub fn summary(&self, id: &str, contender: Contender) -> Option<Summary> {
        let values = self.samples.get(id)?.get(&contender)?;
        Some(Summary {
            median: median(values)?,
            least: values.iter().copied().reduce(f64::min)?,
            most: values.iter().copied().reduce(f64::max)?,
            rounds: values.len(),
        })
    }

    /// The median of a cell, if it was measured.
    pub fn median_of(&self, id: &str, contender: Contender) -> Option<f64> {
        self.summary(id, contender).map(|s| s.median)
    }

    /// The best median among the rootless peers.
    pub fn best_peer(&self, row: &Row) -> Option<f64> {
        self.best_of(row, |_| true)
    }

    /// The best median among the peers whose published path keeps the client's address.
    pub fn best_keeping_peer(&self, row: &Row) -> Option<f64> {
        self.best_of(row, |peer| self.keeps_address(peer) == Some(true))
    }

    fn best_of(&self, row: &Row, counts: impl Fn(Contender) -> bool) -> Option<f64> {
        let peers = Contender::PEERS.into_iter().filter(|peer| counts(*peer));
        let peers = peers.filter_map(|peer| self.median_of(row.id, peer));
        match row.better {
            Better::More => peers.reduce(f64::max),
            Better::Less => peers.reduce(f64::min),
        }
    }

    /// tapway's figure over another's, where both exist.
    pub fn ratio(&self, row: &Row, other: Option<f64>) -> Option<f64> {
        let ratio = self.median_of(row.id, Contender::Tapway)? / other?;
        ratio.is_finite().then_some(ratio)
    }

    /// tapway over bridge, over slirp4netns at MTU 65520 (bulk rows only), over the best peer.
    pub fn ratios(&self, row: &Row) -> [Option<f64>; 3] {
        let wide = row.id.replace("-1500", "-65520");
        let is_bulk = row.id.starts_with("tcp") && row.better == Better::More;
        let slirp = is_bulk.then(|| self.median_of(&wide, Contender::Slirp4netns)).flatten();
        [
            self.ratio(row, self.median_of(row.id, Contender::Bridge)),
            self.ratio(row, slirp),
            self.ratio(row, self.best_peer(row)),
        ]
    }

    /// Frames that tapway's TAP dropped.
    pub fn tapway_drops(&self) -> u64 {
        self.dropped.iter().filter(|d| d.contender == Contender::Tapway).map(|d| d.frames).sum()
    }

    /// The rows of which any cell was measured.
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(|row| self.samples.contains_key(row.id))
    }

    /// The contenders that gave any figure.
    pub fn contenders(&self) -> Vec<Contender> {
        let measured = |c: &Contender| self.samples.values().any(|row| row.contains_key(c));
        Contender::ALL.into_iter().filter(measured).collect()
    }
}

/// The whole report as text.
pub fn text(machine: &Machine, results: &Results) -> String {
    let mut out = machine.text();
    out.push('\n');
    if results.rows().next().is_some() {
        out.push_str(&table(&cells(results)));
        out.push_str("\n↑ more is better, ↓ less is better. Medians (least–most of the rounds).\n");
        out.push_str("The columns behind tapway are its figure divided by the other's.\n");
    }
    if !results.wan.is_empty() {
        out.push('\n');
        out.push_str(&table(&results.wan.lines()));
        out.push_str("\nMTU is the guest's. Behind the figures: each divided by the direct one.\n");
        out.push_str("Losses meet the same segments of all, and begin when slow start is over; ");
        out.push_str("the counted time begins ten round trips later.\n");
    }
    for (contender, address) in &results.seen {
        let name = contender.name();
        let _ = match published::is_kept(*address) {
            true => writeln!(out, "{name} keeps the address of a published port's client."),
            false => writeln!(
                out,
                "* {name} does not keep the address of a published port's client: {SERVER} is seen \
                 as {address}."
            ),
        };
    }
    if let Some(line) = results.calm.line() {
        let _ = writeln!(out, "{line}");
    }
    for missing in &results.missing {
        let Missing { contender, workload, round, why } = missing;
        let _ = writeln!(out, "no figure: {} {workload}, round {round}: {why}", contender.name());
    }
    for dropped in &results.dropped {
        let defect = if dropped.contender == Contender::Tapway { "DEFECT: " } else { "" };
        let Dropped { contender, workload, round, frames } = dropped;
        let name = contender.name();
        let _ = writeln!(
            out,
            "{defect}{name} dropped {frames} frames on its device during {workload}, round {round}"
        );
    }
    if results.contenders().contains(&Contender::Tapway) || !results.wan.is_empty() {
        out.push('\n');
        out.push_str(&table(&verdicts(&criteria(results))));
    }
    out
}

fn cells(results: &Results) -> Vec<Vec<String>> {
    let contenders = results.contenders();
    let with_ratios = contenders.contains(&Contender::Tapway);
    let mut head = vec![String::new(), String::new()];
    head.extend(contenders.iter().map(|c| c.name().to_owned()));
    if with_ratios {
        head.extend(["/bridge", "/slirp 65520", "/best peer"].map(str::to_owned));
    }
    let mut lines = vec![head];
    for row in results.rows() {
        let arrow = if row.better == Better::More { "↑" } else { "↓" };
        let mut line = vec![row.label.to_owned(), format!("{} {arrow}", row.unit)];
        line.extend(
            contenders
                .iter()
                .map(|c| cell(row, results.summary(row.id, *c)) + results.mark(row, *c)),
        );
        if with_ratios {
            let ratio = |r: Option<f64>| r.map_or(String::new(), |r| format!("{r:.2}"));
            line.extend(results.ratios(row).map(ratio));
        }
        lines.push(line);
    }
    lines
}

fn cell(row: &Row, summary: Option<Summary>) -> String {
    let Some(Summary { median, least, most, rounds }) = summary else { return "–".into() };
    let digits = row.digits;
    match rounds {
        1 => format!("{median:.digits$}"),
        _ => format!("{median:.digits$} ({least:.digits$}–{most:.digits$})"),
    }
}

/// Lines up columns: the first to the left, the others to the right; the first line is the head.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        for (column, (text, &width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(out, "{text:<width$}"),
                _ => write!(out, "  {text:>width$}"),
            };
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        if n == 0 {
            let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
            out.push_str(&"─".repeat(total));
            out.push('\n');
        }
    }
    out
}

/// The whole report for programs: every sample, and what is derived from them.
pub fn json(machine: &Machine, results: &Results) -> Value {
    let rows: Vec<Value> = results
        .rows()
        .map(|row| {
            let mut contenders = serde_json::Map::new();
            for contender in results.contenders() {
                if let Some(s) = results.summary(row.id, contender) {
                    let samples = &results.samples[row.id][&contender];
                    let value = json!({ "median": s.median, "min": s.least, "max": s.most,
                                        "samples": samples });
                    contenders.insert(contender.name().to_owned(), value);
                }
            }
            let [bridge, slirp, peer] = results.ratios(row);
            json!({
                "id": row.id,
                "label": row.label.trim(),
                "unit": row.unit,
                "better": if row.better == Better::More { "more" } else { "less" },
                "contenders": contenders,
                "tapway_over": { "bridge": bridge, "slirp4netns_65520": slirp, "best_peer": peer },
            })
        })
        .collect();
    let dropped = |d: &Dropped| {
        json!({ "contender": d.contender.name(), "workload": d.workload, "round": d.round,
                "frames": d.frames })
    };
    let seen = |(contender, address): (&Contender, &IpAddr)| {
        let value = json!({ "address": address.to_string(), "kept": published::is_kept(*address) });
        (contender.name().to_owned(), value)
    };
    let missing = |m: &Missing| {
        json!({ "contender": m.contender.name(), "workload": m.workload, "round": m.round,
                "why": m.why })
    };
    let clients = results.seen.iter().map(seen).collect();
    let criterion = |c: &Criterion| {
        json!({ "what": c.what.trim(), "required": c.required, "measured": c.measured,
                "met": c.met })
    };
    json!({
        "machine": machine.json(),
        "rows": rows,
        "wan": results.wan.json(),
        "dropped": results.dropped.iter().map(dropped).collect::<Vec<_>>(),
        "published_client_seen_as": Value::Object(clients),
        "calm": results.calm.json(),
        "missing": results.missing.iter().map(missing).collect::<Vec<_>>(),
        "criteria": criteria(results).iter().map(criterion).collect::<Vec<_>>(),
    })
}
