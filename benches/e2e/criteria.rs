//! What tapway promises about speed and memory, and whether a run shows it.
//!
//! A promise is about medians of one run: a limit, or a ratio to another contender's median of the
//! same row. Where a figure that it needs is missing, it is neither kept nor broken.

use std::net::IpAddr;

use crate::contenders::Contender;
use crate::lab::SERVER;
use crate::report::{Better, ROWS, Results, Row};

/// One thing that tapway promises, and whether this run shows it.
#[derive(Debug)]
pub struct Criterion {
    pub what: String,
    pub required: String,
    pub measured: String,
    /// `None` when a figure that it needs was not measured.
    pub met: Option<bool>,
}

/// "Not slower" for what takes a quarter of a second, most of it the engine's: medians of the same
/// helper against itself differ by up to this factor.
const NOT_SLOWER: f64 = 1.05;

/// What a figure of tapway is measured against, in the same run.
#[derive(Debug, Clone, Copy)]
enum Against {
    One(Contender),
    /// The better of the rootless peers.
    Peer,
    /// The better of those peers whose published ports keep the client's address.
    KeepingPeer,
}

use Against::{KeepingPeer, One, Peer};
use Better::{Less, More};

const DIRECT: Against = One(Contender::Direct);
const BRIDGE: Against = One(Contender::Bridge);
const SLIRP: Against = One(Contender::Slirp4netns);
const PASTA: Against = One(Contender::Pasta);

/// Ratios: the row, at least or at most, how much, of whose figure. A row that a run does not know
/// is left out.
const FACTORS: [(&str, Better, f64, Against); 53] = [
    ("tcp-up-65520", More, 0.8, BRIDGE),
    ("tcp-up-65520", More, 3.0, SLIRP),
    ("tcp-down-65520", More, 0.8, BRIDGE),
    ("tcp-down-65520", More, 3.0, SLIRP),
    ("tcp-up-1500", More, 0.8, BRIDGE),
    ("tcp-up-1500", More, 6.0, Peer),
    ("tcp-down-1500", More, 0.8, BRIDGE),
    ("tcp-down-1500", More, 6.0, Peer),
    ("tcp4-up-65520", More, 1.0, BRIDGE),
    ("tcp4-up-65520", More, 2.5, Peer),
    ("tcp4-down-65520", More, 1.0, BRIDGE),
    ("tcp4-down-65520", More, 2.5, Peer),
    ("tcp-up-65520/cpu", Less, 0.5, Peer),
    ("tcp-down-65520/cpu", Less, 0.5, Peer),
    ("tcp-up-1500/cpu", Less, 0.5, Peer),
    ("tcp-down-1500/cpu", Less, 0.5, Peer),
    ("udp-gso-up", More, 3.0, Peer),
    ("udp-gso-down", More, 3.0, Peer),
    ("udp-1400-up", More, 1.5, Peer),
    ("udp-1400-down", More, 1.5, Peer),
    ("udp-small-up", More, 1.5, Peer),
    ("udp-small-down", More, 1.5, Peer),
    ("quic-up", More, 0.7, DIRECT),
    ("quic-down", More, 0.7, DIRECT),
    ("http-keepalive", More, 0.95, BRIDGE),
    ("http-keepalive/p99", Less, 1.3, BRIDGE),
    ("http-close", More, 0.7, BRIDGE),
    ("http-close", More, 2.0, Peer),
    ("latency", Less, 1.3, BRIDGE),
    ("latency-udp", Less, 1.3, BRIDGE),
    ("published-up", More, 0.9, BRIDGE),
    ("published-up", More, 1.0, Peer),
    ("published-up", More, 1.5, KeepingPeer),
    ("published-down", More, 0.9, BRIDGE),
    ("published-down", More, 1.0, Peer),
    ("published-down", More, 1.5, KeepingPeer),
    ("published4-up", More, 0.9, BRIDGE),
    ("published4-up", More, 1.0, Peer),
    ("published4-down", More, 0.9, BRIDGE),
    ("published4-down", More, 1.0, Peer),
    ("published-local-up", More, 1.0, PASTA),
    ("published-local-down", More, 1.0, PASTA),
    ("published-rate", More, 2.0, Peer),
    ("podman-up", More, 3.0, SLIRP),
    ("podman-down", More, 3.0, SLIRP),
    ("podman-rate", More, 2.0, SLIRP),
    ("podman-start", Less, NOT_SLOWER, SLIRP),
    ("rootlesskit-up", More, 3.0, SLIRP),
    ("rootlesskit-down", More, 3.0, SLIRP),
    ("rootlesskit-rate", More, 2.0, SLIRP),
    ("rootlesskit-start", Less, NOT_SLOWER, SLIRP),
    ("podman5-rate", More, 2.0, One(Contender::Pasta)),
    ("podman5-start", Less, NOT_SLOWER, One(Contender::Pasta)),
];

/// Limits: the row, and the most that it may be in the row's unit.
const LIMITS: [(&str, f64); 6] = [
    ("conns-10k/rss", 40.0),
    ("conns-10k/cpu", 0.0),
    ("idle/rss", 5.0),
    ("idle/wakeups", 0.0),
    ("start", 8.0),
    ("publish-add", 2.0),
];

/// Limits of cells that need more open files than some machines allow: the row of the whole, and the
/// row of as many as are allowed, of which the same is asked for each.
const AS_ALLOWED: [[(&str, f64); 2]; 2] = [
    // 150 MB for 100,000 connections.
    [("conns-100k/rss", 150.0), ("conns-100k/each", 1_500.0)],
    // A second for 20,000 ports.
    [("published-ports", 1000.0), ("published-ports/each", 50.0)],
];

impl Against {
    fn name(self) -> &'static str {
        match self {
            One(contender) => contender.name(),
            Peer => "the better peer",
            KeepingPeer => "the better peer that keeps the address",
        }
    }

    fn figure(self, results: &Results, row: &Row) -> Option<f64> {
        match self {
            One(contender) => results.median_of(row.id, contender),
            Peer => results.best_peer(row),
            KeepingPeer => results.best_keeping_peer(row),
        }
    }
}

fn factor(
    results: &Results,
    row: &Row,
    (sign, limit, against): (Better, f64, Against),
) -> Criterion {
    let ratio = results.ratio(row, against.figure(results, row));
    let mark = if sign == More { "≥" } else { "≤" };
    Criterion {
        what: row.name(),
        required: format!("{mark} {limit} × {}", against.name()),
        measured: ratio.map_or(NOT_MEASURED.into(), |r| format!("{r:.2} ×")),
        met: ratio.map(|r| if sign == More { r >= limit } else { r <= limit }),
    }
}

fn limit(results: &Results, row: &Row, limit: f64) -> Criterion {
    let value = results.median_of(row.id, Contender::Tapway);
    Criterion {
        what: row.name(),
        required: format!("≤ {limit} {}", row.unit),
        measured: value.map_or(NOT_MEASURED.into(), |v| format!("{} {}", row.figure(v), row.unit)),
        met: value.map(|v| v <= limit),
    }
}

const NOT_MEASURED: &str = "not measured";

/// The promises of the project about speed and memory, judged by `results`.
pub fn criteria(results: &Results) -> Vec<Criterion> {
    let of = |id: &str, contender| results.median_of(id, contender);
    let find = |id: &str| ROWS.iter().find(|row| row.id == id);
    let mut list = Vec::new();
    for (id, sign, much, against) in FACTORS {
        list.extend(find(id).map(|row| factor(results, row, (sign, much, against))));
    }
    for (id, most) in LIMITS {
        list.extend(find(id).map(|row| limit(results, row, most)));
    }
    for [whole, each] in AS_ALLOWED {
        let (id, most) = if of(each.0, Contender::Tapway).is_some() { each } else { whole };
        list.extend(find(id).map(|row| limit(results, row, most)));
    }
    list.push(crowd_rate(results));
    list.extend(results.wan.criterion());
    let seen = results.seen.get(&Contender::Tapway);
    list.push(Criterion {
        what: "client of a published port, seen in the guest".into(),
        required: SERVER.to_string(),
        measured: seen.map_or(NOT_MEASURED.into(), IpAddr::to_string),
        met: results.keeps_address(Contender::Tapway),
    });
    // Starting commands and opening ports move nothing that could be dropped.
    const SILENT: [&str; 5] = ["start", "idle", "publish-add", "published-ports", "rate-engine"];
    let is_silent = |row: &Row| {
        SILENT.iter().any(|id| row.id.starts_with(id) || row.id.contains(&format!("-{id}")))
    };
    let measured_tapway = ROWS
        .iter()
        .filter(|row| !is_silent(row))
        .any(|row| of(row.id, Contender::Tapway).is_some())
        || !results.wan.is_empty();
    let drops = results.tapway_drops();
    list.push(Criterion {
        what: "frames dropped on the TAP".into(),
        required: "0".into(),
        measured: if measured_tapway { drops.to_string() } else { NOT_MEASURED.into() },
        met: measured_tapway.then_some(drops == 0),
    });
    list
}

/// The part of the rate of new connections that is left when 100,000 are open.
const LEFT: f64 = 0.8;

/// Beside 100,000 open connections, or as many as the limit of open files allows.
fn crowd_rate(results: &Results) -> Criterion {
    let of = |end| results.median_of(&format!("conns-100k/{end}"), Contender::Tapway);
    let (many, others) = match of("count") {
        Some(count) => (of("rate-most"), format!("{count} (the limit of files)")),
        None => (of("rate-100k"), "100,000".into()),
    };
    let left = many.zip(of("rate-100")).map(|(many, few)| many / few);
    Criterion {
        what: format!("new connections, {others} others open"),
        required: format!("≥ {LEFT} × with 100 open"),
        measured: left.map_or(NOT_MEASURED.into(), |left| format!("{left:.2} ×")),
        met: left.map(|left| left >= LEFT),
    }
}

/// The criteria as lines of a table, the first being the head.
pub fn verdicts(criteria: &[Criterion]) -> Vec<Vec<String>> {
    let mut lines = vec![["criterion", "required", "measured", "met"].map(str::to_owned).to_vec()];
    for c in criteria {
        let met = match c.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "–",
        };
        lines.push(vec![c.what.clone(), c.required.clone(), c.measured.clone(), met.to_owned()]);
    }
    lines
}
