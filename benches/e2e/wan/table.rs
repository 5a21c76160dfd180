//! The cells of the WAN grid: their names, their times, their figures, and what they come to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::contenders::Contender;
use crate::criteria::Criterion;
use crate::report::median;
use crate::workloads::Way;

/// Round trips of slow start: from ten segments it is past 14 MB then, more than any window here.
const SLOW_START: u32 = 10;

/// Round trips until a sender has taken in that the path loses segments: BBR's estimate of what a
/// path carries is the best of its last ten.
const ADAPTATION: u32 = 10;

/// Least share of a direct socket's rate that tapway promises to leave in each cell.
const LEAST: f64 = 0.9;

/// One path and a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    pub rtt_ms: u32,
    /// Of a million segments.
    pub loss_ppm: u32,
    pub way: Way,
}

impl Path {
    /// The name of the path in messages.
    pub fn name(self) -> String {
        let loss = f64::from(self.loss_ppm) / 1e4;
        format!("wan-{}-{}ms-{loss}%", self.way.name(), self.rtt_ms)
    }

    /// The id of a cell.
    pub fn id(self, who: Who) -> String {
        match who.contender {
            Contender::Direct => self.name(),
            _ => format!("{}-{}", self.name(), who.mtu),
        }
    }

    pub fn round_trip(self) -> Duration {
        Duration::from_millis(self.rtt_ms.into())
    }

    /// From the connection to the first segment that may be lost.
    pub fn spared(self) -> Duration {
        (SLOW_START * self.round_trip()).max(Duration::from_millis(300))
    }

    /// From the connection to the first byte that counts.
    pub fn warm_up(self) -> Duration {
        match self.loss_ppm {
            0 => self.spared(),
            _ => self.spared() + (ADAPTATION * self.round_trip()).max(Duration::from_millis(300)),
        }
    }

    /// Over which bytes are counted: whole round trips, and so many of them where losses make one
    /// unlike the other that two runs differ by a few percent.
    pub fn time(self) -> Duration {
        let round_trips = if self.loss_ppm == 0 { 4 } else { 32 };
        (round_trips * self.round_trip()).max(Duration::from_millis(1600))
    }

    /// After which nothing comes any more: a SYN may be lost twice.
    pub fn bound(self) -> Duration {
        self.warm_up() + self.time() + Duration::from_secs(10)
    }
}

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub contender: Contender,
    /// Of the guest's device.
    pub mtu: u32,
}

impl Who {
    const DIRECT: Who = Who { contender: Contender::Direct, mtu: 1500 };

    /// All who take part, in the order of their turns.
    pub fn all(mtus: &[u32], peer: Option<Contender>) -> Vec<Who> {
        let tapway = mtus.iter().map(|&mtu| Who { contender: Contender::Tapway, mtu });
        // At the MTU that engines give it.
        let peer = peer.map(|contender| Who { contender, mtu: crate::workloads::MTU });
        std::iter::once(Who::DIRECT).chain(tapway).chain(peer).collect()
    }

    fn label(self) -> String {
        match self.contender {
            Contender::Direct => "direct".into(),
            contender => format!("{} {}", contender.name(), self.mtu),
        }
    }
}

/// All figures of the grid, in Mbit/s.
#[derive(Debug, Default)]
pub struct Table {
    /// Congestion control of both senders on the path, its rate, and the unit.
    pub title: String,
    samples: BTreeMap<Path, BTreeMap<Who, Samples>>,
}

/// Figures by round.
type Samples = BTreeMap<u32, f64>;

impl Table {
    /// Adds the figure of one round.
    pub fn add(&mut self, path: Path, who: Who, round: u32, rate: f64) {
        self.samples.entry(path).or_default().entry(who).or_default().insert(round, rate);
    }

    /// Whether there are no figures.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// A median over that of the direct socket, from the rounds in which both were measured: each
    /// round loses other segments.
    fn ratio(&self, path: Path, who: Who) -> Option<f64> {
        let row = self.samples.get(&path)?;
        let (ours, direct) = (row.get(&who)?, row.get(&Who::DIRECT)?);
        let shared = |of: &Samples, with: &Samples| {
            let rounds = of.iter().filter(|(round, _)| with.contains_key(round));
            median(&rounds.map(|(_, rate)| *rate).collect::<Vec<_>>())
        };
        let ratio = shared(ours, direct)? / shared(direct, ours)?;
        ratio.is_finite().then_some(ratio)
    }

    /// Who gave any figure besides the direct socket.
    fn guests(&self) -> Vec<Who> {
        let mut all: Vec<Who> = self.samples.values().flat_map(|row| row.keys().copied()).collect();
        all.retain(|who| *who != Who::DIRECT);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The cells for the report, the first line being the head.
    pub fn lines(&self) -> Vec<Vec<String>> {
        let guests = self.guests();
        let mut head = vec![self.title.clone(), "loss".into(), "direct".into()];
        head.extend(guests.iter().map(|who| who.label()));
        head.extend(guests.iter().map(|who| format!("/{}", who.label())));
        head.push("within 10 %".into());
        let mut lines = vec![head];
        for &path in self.samples.keys() {
            let figure = |who| match self.samples[&path].get(&who) {
                None => "–".into(),
                Some(samples) => {
                    let values: Vec<f64> = samples.values().copied().collect();
                    let (least, most) =
                        values.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (v.min(l), v.max(m)));
                    let middle = median(&values).unwrap_or(f64::NAN);
                    match values.len() {
                        1 => format!("{middle:.1}"),
                        _ => format!("{middle:.1} ({least:.1}–{most:.1})"),
                    }
                }
            };
            let mut line = vec![
                format!("{} ms {}", path.rtt_ms, path.way.name()),
                format!("{} %", f64::from(path.loss_ppm) / 1e4),
                figure(Who::DIRECT),
            ];
            line.extend(guests.iter().map(|who| figure(*who)));
            let ratio = |who: &Who| self.ratio(path, *who).map(|r| format!("{r:.2}"));
            line.extend(guests.iter().map(|who| ratio(who).unwrap_or_default()));
            let judged: Vec<f64> = guests
                .iter()
                .filter(|who| who.contender == Contender::Tapway)
                .filter_map(|who| self.ratio(path, *who))
                .collect();
            let kept = judged.iter().filter(|ratio| **ratio >= LEAST).count();
            line.push(match judged.len() {
                0 => "–".into(),
                all if kept == all => "yes".into(),
                all => format!("NO, {} of {all}", all - kept),
            });
            lines.push(line);
        }
        lines
    }

    /// What tapway promises of every cell.
    pub fn criterion(&self) -> Option<Criterion> {
        let is_tapway = |who: &Who| who.contender == Contender::Tapway;
        let tapway: Vec<Who> = self.guests().into_iter().filter(is_tapway).collect();
        let cells = self.samples.keys().flat_map(|&path| tapway.iter().map(move |&w| (path, w)));
        let judged: Vec<(f64, String)> =
            cells.filter_map(|(path, w)| Some((self.ratio(path, w)?, path.id(w)))).collect();
        let (worst, name) = judged.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        let short = judged.iter().filter(|(ratio, _)| *ratio < LEAST).count();
        Some(Criterion {
            what: format!("WAN, {} cells, the worst being {name}", judged.len()),
            required: format!("≥ {LEAST} × direct"),
            measured: format!("{worst:.2} ×, {} cells kept", judged.len() - short),
            met: Some(short == 0),
        })
    }

    /// Every sample, and the ratios.
    pub fn json(&self) -> Value {
        let cell = |(path, row): (&Path, &BTreeMap<Who, Samples>)| {
            let who = |(who, samples): (&Who, &Samples)| {
                let values: Vec<f64> = samples.values().copied().collect();
                json!({ "contender": who.contender.name(), "mtu": who.mtu, "samples": values,
                        "median": median(&values), "over_direct": self.ratio(*path, *who) })
            };
            json!({ "rtt_ms": path.rtt_ms, "loss_ppm": path.loss_ppm, "way": path.way.name(),
                    "unit": "Mbit/s", "who": row.iter().map(who).collect::<Vec<_>>() })
        };
        let cells: Vec<Value> = self.samples.iter().map(cell).collect();
        json!({ "title": self.title, "cells": cells })
    }
}
