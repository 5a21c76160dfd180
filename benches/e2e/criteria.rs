//! What tapway promises about speed and memory, and whether a run shows it.
//!
//! A promise is about medians of one run: a limit, or a ratio to another contender's median of the
//! same row. Where a figure that it needs is missing, it is neither kept nor broken.

use std::net::IpAddr;

use crate::contenders::Contender;
use crate::engines::Engine;
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

/// The promises of the project about speed and memory, judged by `results`.
pub fn criteria(results: &Results) -> Vec<Criterion> {
    let of = |id: &str, contender| results.median_of(id, contender);
    let find = |id: &str| ROWS.iter().find(|row| row.id == id);
    let mut list = Vec::new();
    let mut factor = |id: &str, sign: Better, limit: f64, over: &str, other: Option<f64>| {
        let Some(row) = find(id) else { return };
        let ratio = results.ratio(row, other);
        list.push(Criterion {
            what: row.label.to_owned(),
            required: format!("{} {limit} × {over}", if sign == Better::More { "≥" } else { "≤" }),
            measured: ratio.map_or("not measured".into(), |r| format!("{r:.2} ×")),
            met: ratio.map(|r| if sign == Better::More { r >= limit } else { r <= limit }),
        });
    };
    for mtu in ["65520", "1500"] {
        for way in ["up", "down"] {
            let id = format!("tcp-{way}-{mtu}");
            if mtu == "65520" {
                let slirp = of(&id, Contender::Slirp4netns);
                factor(&id, Better::More, 3.0, "slirp4netns", slirp);
            } else {
                let peer = find(&id).and_then(|row| results.best_peer(row));
                factor(&id, Better::More, 6.0, "the better peer", peer);
            }
            factor(&id, Better::More, 0.6, "bridge", of(&id, Contender::Bridge));
        }
    }
    for (kind, limit) in [("gso", 3.0), ("1400", 1.5), ("small", 1.5)] {
        for way in ["up", "down"] {
            let id = format!("udp-{kind}-{way}");
            let peer = find(&id).and_then(|row| results.best_peer(row));
            factor(&id, Better::More, limit, "the better peer", peer);
        }
    }
    for id in ["quic-up", "quic-down"] {
        factor(id, Better::More, 0.7, "direct", of(id, Contender::Direct));
    }
    let bridge = |id: &str| of(id, Contender::Bridge);
    factor("http-keepalive", Better::More, 0.85, "bridge", bridge("http-keepalive"));
    let peer = find("http-close").and_then(|row| results.best_peer(row));
    factor("http-close", Better::More, 2.0, "the better peer", peer);
    factor("latency", Better::Less, 1.6, "bridge", bridge("latency"));
    for id in ["published-up", "published-down"] {
        factor(id, Better::More, 0.6, "bridge", bridge(id));
        let peer = find(id).and_then(|row| results.best_keeping_peer(row));
        factor(id, Better::More, 1.5, "the better peer that keeps the address", peer);
    }
    let peer = find("published-rate").and_then(|row| results.best_peer(row));
    factor("published-rate", Better::More, 2.0, "the better peer", peer);
    for engine in Engine::ALL {
        let (name, peer) = (engine.name(), engine.peer());
        let mut promise = |load: &str, sign, limit| {
            let id = format!("{name}-{load}");
            factor(&id, sign, limit, peer.name(), of(&id, peer));
        };
        if peer == Contender::Slirp4netns {
            promise("up", Better::More, 3.0);
            promise("down", Better::More, 3.0);
        }
        promise("rate", Better::More, 2.0);
        promise("start", Better::Less, NOT_SLOWER);
    }

    for (id, limit) in [
        ("conns-10k/rss", 40.0),
        ("conns-10k/cpu", 0.0),
        ("conns-100k/rss", 150.0),
        ("idle/rss", 5.0),
        ("idle/wakeups", 0.0),
        ("start", 8.0),
        ("publish-add", 2.0),
        ("published-ports", 1000.0),
    ] {
        let Some(row) = find(id) else { continue };
        let value = of(id, Contender::Tapway);
        list.push(Criterion {
            what: row.label.to_owned(),
            required: format!("≤ {limit} {}", row.unit),
            measured: value
                .map_or("not measured".into(), |v| format!("{} {}", row.figure(v), row.unit)),
            met: value.map(|v| v <= limit),
        });
    }
    list.push(crowd_rate(results));
    list.extend(results.wan.criterion());
    let seen = results.seen.get(&Contender::Tapway);
    list.push(Criterion {
        what: "client of a published port, seen in the guest".into(),
        required: SERVER.to_string(),
        measured: seen.map_or("not measured".into(), IpAddr::to_string),
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
        measured: if measured_tapway { drops.to_string() } else { "not measured".into() },
        met: measured_tapway.then_some(drops == 0),
    });
    list
}

/// The part of the rate of new connections that is left when 100,000 are open.
const LEFT: f64 = 0.8;

fn crowd_rate(results: &Results) -> Criterion {
    let rate = |open| results.median_of(&format!("conns-100k/rate-{open}"), Contender::Tapway);
    let left = rate("100k").zip(rate("100")).map(|(many, few)| many / few);
    Criterion {
        what: "new connections, 100,000 others open".into(),
        required: format!("≥ {LEFT} × with 100 open"),
        measured: left.map_or("not measured".into(), |left| format!("{left:.2} ×")),
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
