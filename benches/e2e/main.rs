//! End-to-end comparison: what does a guest's network cost, in speed and memory, with tapway and
//! without?
//!
//! Run as root: `cargo bench --bench e2e`, or `cargo e2e`; `-- --help` lists the options. The
//! rootless helpers and all clients run as an unprivileged account nevertheless.
//!
//! # Method
//!
//! A lab of network namespaces ([`lab`]) has one server and, for each contender ([`contenders`]),
//! a host and a guest of its own. The same work ([`workloads`]) is done through each contender in
//! turn, and the whole is repeated in rounds: what disturbs the machine for a while disturbs all
//! of them. Reported are medians and ranges over the rounds. Helpers are started anew for each
//! round and each MTU. A cell counts only if
//!  - the server saw the guest as the host that belongs to this contender, and no other,
//!  - the guest's device carried at least the bytes that the load generator counted,
//!  - the helper is still there, and used processor time to move them.
//!
//! # Reading the table
//!
//! Absolutes belong to the machine; the report begins with its description. Everything runs on
//! one machine, so client, server and helper share its cores and no real wire slows anyone down:
//! ratios between columns say what a helper costs, not what a network carries. "up" is guest →
//! server. "direct" and "bridge" have no TAP and are there as the ceiling; the bridge is the
//! rootful way to do the same job. CPU per GB (10⁹ bytes) is the helper's own time, without what
//! the kernel does for it in interrupts; under "direct" stands what one TCP stream costs the
//! client itself, whose system calls a helper has to make as well: it cannot cost less than that
//! and what it takes to fetch the bytes from the guest. MB are 10⁶ bytes of `VmRSS`, so pages
//! shared with other processes count in full. Wake-ups are voluntary context switches of all of a
//! helper's threads.
//!
//! Below it stands what tapway promises, with the verdict of this run. A frame dropped by tapway's
//! TAP is a defect whatever the speed was. A published path whose figures bear a `*` does not show
//! the guest's server its client's address: it does less, and does not count among the peers that
//! tapway's published streams are measured against. With `--check` an unmet promise fails the run.
//!
//! The WAN cells ([`wan`]) stand in a table of their own: one stream over paths of delay and loss,
//! whose times follow from the round trip and not from `--seconds`. A few of them are part of a run
//! without `--only`; `--only wan` runs all 90, about ten minutes a round. The paths carry
//! 2.5 Gbit/s, which a direct socket and a helper can both fill with the processors of this machine:
//! the question is what a helper loses of a path, not what it takes of the processors, which the
//! table without a WAN tells. `--wan-rate 0` takes the limit away; with little delay the ratios are
//! then those of processor time.
//!
//! A measurement from which the hypervisor takes processors is repeated ([`calm`]); the report says
//! how often that was, and what was taken from those that it shows. What fills a guest or publishes
//! in it is done once.
//!
//! Where the two ends keep a core each busy (QUIC above all, of which neither end loses a datagram in
//! these cells), a helper needs a third. On a machine that has other work at the same time, it gets
//! less of it than it needs, and the ratio to "direct" is lower without a cause in the helper: the
//! report says how busy the machine was before the run.
//!
//! # Engines
//!
//! The rows of podman and rootlesskit are of containers that these start, the helper being all
//! that differs ([`engines`]); "direct" is a container without a network. They run where the
//! engines are installed; podman 5 over pasta where `--podman5` names a root directory with it.
//!
//! Needs iperf3, wrk, nginx, sockperf, nftables and iproute2, and the peers' packages.

#![expect(unreachable_pub, reason = "in a program, `pub` marks what a module offers the others")]

mod agent;
mod base;
mod calm;
mod chart;
mod contenders;
mod criteria;
mod crowd;
mod datagrams;
mod engines;
mod figures;
mod keeper;
mod lab;
mod machine;
mod published;
mod quic;
#[path = "../../tests/support/quic.rs"]
mod quic_ends;
mod report;
mod wan;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tapway::sys::clock;

use crate::base::Failure;
use crate::contenders::{Contender, Guest, Programs};
use crate::criteria::criteria;
use crate::engines::{Engine, Engines, Load, Ports};
use crate::keeper::{Entered, Premises};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::published::Published;
use crate::report::{Dropped, Missing, Results};
use crate::wan::Extent;
use crate::workloads::{Figure, MTU, Outcome, SMALL_MTU, Workload};

/// Compares tapway with slirp4netns, pasta, a rootful bridge and no helper at all.
#[derive(Debug, Parser)]
#[command(name = "e2e")]
struct Options {
    /// Workloads to run, by the beginning of their ids: tcp, tcp-up-1500, tcp4, udp (udp-gso,
    /// udp-1400, udp-small), quic, http-keepalive, http-close, latency, idle, conns (conns-10k,
    /// conns-100k), start, published (published-up,
    /// published-down, published4, published-local, published-rate, published-ports), publish-add;
    /// podman, rootlesskit, podman5 (each with -up, -down, -rate, -rate-engine, -start); wan-quick, or wan
    /// for all of its 90 cells.
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    only: Vec<String>,
    /// Who takes part.
    #[arg(long, value_delimiter = ',', default_values = ALL_NAMES)]
    contenders: Vec<Contender>,
    /// A root directory of Debian 13 with podman 5, crun and passt: measures them as well.
    #[arg(long, value_name = "DIRECTORY")]
    podman5: Option<PathBuf>,
    /// How often everything is repeated (idle connections and 20,000 published ports run once).
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each cell is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Congestion control of both senders of the WAN cells, instead of the machine's.
    #[arg(long, value_name = "NAME")]
    wan_congestion: Option<String>,
    /// Mbit/s that the WAN paths carry, behind a queue of a round trip; 0 for what the machine can.
    #[arg(long, value_name = "MBIT", default_value_t = wan::RATE)]
    wan_rate: u32,
    /// A peer that takes part in the WAN cells as well, at its usual MTU.
    #[arg(long, value_name = "CONTENDER")]
    wan_peer: Option<Contender>,
    /// Writes all samples, medians, ratios and verdicts here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table for the README here: between its two marks, if the file has them.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draws the bar chart here.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Fails if tapway misses a criterion or drops a frame.
    #[arg(long)]
    check: bool,
    /// Given by `cargo bench`; without it (`cargo test --benches`) nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,
}

const ALL_NAMES: [&str; 5] = ["direct", "bridge", "slirp4netns", "pasta", "tapway"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = args.split_first()
        && first == "agent"
    {
        return finish(agent::run(rest).map(|answer| {
            println(&answer);
            0
        }));
    }
    let options = Options::parse();
    if !options.bench {
        println("e2e: not a test; run it with `cargo bench --bench e2e`");
        return ExitCode::SUCCESS;
    }
    finish(keeper::enter_or_keep().and_then(|entered| match entered {
        Entered::Kept(code) => Ok(code),
        Entered::Inside(premises) => run(&options, premises),
    }))
}

fn finish(result: Result<u8, Failure>) -> ExitCode {
    result.map_or_else(
        |e| {
            eprintln!("e2e: {e}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn println(text: &str) {
    println!("{text}");
}

/// Measures, reports, and returns the exit status.
fn run(options: &Options, premises: Premises) -> Result<u8, Failure> {
    let chosen: Vec<Workload> = Workload::ALL
        .into_iter()
        .filter(|w| {
            options.only.is_empty() || options.only.iter().any(|o| w.id().starts_with(o.as_str()))
        })
        .collect();
    let wanted = |c| options.contenders.contains(&c);
    let wan = Extent::asked(&options.only)
        .filter(|_| wanted(Contender::Direct) && wanted(Contender::Tapway));
    if chosen.is_empty() && wan.is_none() {
        let mut ids: Vec<String> = Workload::ALL.into_iter().map(Workload::id).collect();
        ids.extend(["wan-quick", "wan"].map(str::to_owned));
        return Err(Failure(format!("--only names no workload; there are {}", ids.join(", "))));
    }
    // The WAN has a host of its own, the last.
    let lab = Lab::build(premises, options.contenders.len() + usize::from(wan.is_some()))?;
    let programs = Programs::find(&lab, &options.contenders);
    let wanted_engines: Vec<Engine> = Engine::ALL
        .into_iter()
        // Nobody expects podman 5 who has not asked for it.
        .filter(|engine| *engine != Engine::Podman5 || options.podman5.is_some())
        .filter(|engine| chosen.iter().any(|w| w.engine() == Some(*engine)))
        .collect();
    let engines = Engines::find(&lab, &programs, &wanted_engines, options.podman5.as_deref());
    let rounds = if options.rounds == 1 { "round" } else { "rounds" };
    let settings = format!("{} {rounds} of {} s", options.rounds, options.seconds);
    let machine = Machine::look(&lab, &programs, &engines, settings);
    let mut run = Run { engines, lab, programs, options, chosen, results: Results::default() };
    let wan = wan.map(|extent| wan::Choice {
        extent,
        rounds: options.rounds,
        congestion: options.wan_congestion.as_deref(),
        rate: (options.wan_rate > 0).then_some(options.wan_rate),
        peer: options.wan_peer.filter(|peer| run.programs.allow(*peer)),
    });
    let expected = run.expected() + wan.as_ref().map_or(0.0, wan::Choice::expected);
    eprintln!("e2e: this will take about {:.0} minutes", (expected / 60.0).ceil());
    let start = clock::now();
    for round in 1..=options.rounds {
        run.round(round);
    }
    if let Some(choice) = wan {
        wan::run(&run.lab, &run.programs, choice, &mut run.results);
    }
    let took = clock::now().since(start).as_secs();
    eprintln!("e2e: this took {} min {} s", took / 60, took % 60);
    let results = run.results;

    println(&report::text(&machine, &results));
    let write = |file: &Option<PathBuf>, text: String| match file {
        Some(file) => std::fs::write(file, text)
            .map_err(|e| Failure::because(format_args!("write {}", file.display()), e)),
        None => Ok(()),
    };
    write(&options.json, format!("{:#}\n", report::json(&machine, &results)))?;
    write(&options.svg, chart::svg(&machine, &results))?;
    if let Some(file) = &options.markdown {
        figures::write(file, &machine, &results)?;
    }
    let failed = results.missing.iter().any(|m| m.contender == Contender::Tapway);
    let unmet = failed || criteria(&results).iter().any(|c| c.met == Some(false));
    Ok(u8::from(options.check && unmet))
}

/// How the lines on stderr begin.
fn label(round: u32, workload: Workload, contender: Contender) -> String {
    format!("round {round}  {:<16} {:<12}", workload.id(), contender.name())
}

/// How guests are set up.
#[derive(Clone, Copy)]
enum Setting {
    /// As the contenders' own commands do, with this MTU and these ports.
    Plain(u32, Published),
    /// By an engine.
    Engine(Engine, Ports),
}

/// A run under way.
struct Run<'o> {
    engines: Engines,
    lab: Lab,
    programs: Programs,
    options: &'o Options,
    chosen: Vec<Workload>,
    results: Results,
}

impl Run<'_> {
    /// About how many seconds all rounds take.
    fn expected(&self) -> f64 {
        /// What it takes to set guests up, in a round.
        const SET_UP: f64 = 8.0;
        let Options { rounds, seconds, .. } = *self.options;
        let cells = |w: &Workload| {
            let times = if w.once() { 1 } else { rounds };
            let is_possible =
                w.engine().is_none_or(|engine| self.engines.found().contains(&engine));
            let suits = self.contenders().iter().filter(|(_, c)| w.suits(*c)).count();
            // All who are idle are watched at once.
            let turns = if *w == Workload::Idle { 1 } else { suits };
            if is_possible { f64::from(times) * turns as f64 * w.expected(seconds) } else { 0.0 }
        };
        self.chosen.iter().map(cells).sum::<f64>() + f64::from(rounds) * SET_UP
    }

    /// Every chosen workload through every contender once.
    fn round(&mut self, round: u32) {
        let chosen: Vec<Workload> =
            self.chosen.iter().copied().filter(|w| round == 1 || !w.once()).collect();
        // First of all: no port of theirs may still be in TIME_WAIT from what other cells did.
        if chosen.contains(&Workload::PublishedPorts) {
            self.one_by_one(round, Workload::PublishedPorts);
        }
        for mtu in [MTU, SMALL_MTU] {
            let on_these = |w: &Workload| match w {
                Workload::Tcp { mtu: of, .. } => *of == mtu,
                Workload::Connections
                | Workload::Crowd
                | Workload::Start
                | Workload::PublishedPorts
                | Workload::Engine(..) => false,
                _ => mtu == MTU && !w.needs_published(),
            };
            let these = chosen.iter().copied().filter(on_these).collect();
            self.on_fresh_guests(round, Setting::Plain(mtu, Published::Nothing), these);
        }
        let published = chosen.iter().copied().filter(|w| w.needs_published());
        let services = Setting::Plain(MTU, Published::Services);
        self.on_fresh_guests(round, services, published.collect());
        // Alone, since it fills and grows what the other workloads would then start from.
        for alone in [Workload::Connections, Workload::Crowd] {
            let these = chosen.iter().copied().filter(|w| *w == alone);
            let nothing = Setting::Plain(MTU, Published::Nothing);
            self.on_fresh_guests(round, nothing, these.collect());
        }
        if chosen.contains(&Workload::Start) {
            self.one_by_one(round, Workload::Start);
        }
        for engine in self.engines.found() {
            self.in_engine(round, engine, &chosen);
        }
    }

    /// Those of `chosen` that run in containers of `engine`.
    fn in_engine(&mut self, round: u32, engine: Engine, chosen: &[Workload]) {
        for ports in [Ports::Helpers, Ports::Engines] {
            let on_these = |w: &Workload| match w {
                Workload::Engine(of, Load::Start) if *of == engine => false,
                Workload::Engine(of, load) => *of == engine && load.ports() == ports,
                _ => false,
            };
            let these = chosen.iter().copied().filter(on_these).collect();
            self.on_fresh_guests(round, Setting::Engine(engine, ports), these);
        }
        let start = Workload::Engine(engine, Load::Start);
        if chosen.contains(&start) {
            let contenders: Vec<_> =
                self.contenders().into_iter().filter(|(_, c)| start.suits(*c)).collect();
            let figures = self.engines.start(&self.lab, &self.programs, engine, &contenders);
            for (contender, figures) in figures {
                self.record(round, start, contender, figures);
            }
        }
    }

    /// Runs a workload that starts its helpers itself.
    fn one_by_one(&mut self, round: u32, workload: Workload) {
        for (host, contender) in self.contenders() {
            if !workload.suits(contender) {
                continue;
            }
            let (lab, programs) = (&self.lab, &self.programs);
            let what = label(round, workload, contender);
            let figures = match workload {
                // The ports of the first attempt would be in TIME_WAIT at the second.
                Workload::PublishedPorts => {
                    published::many(lab, programs, contender, host, self.options.seconds)
                }
                _ => self.results.calm.measure(&what, calm::STOLEN, || {
                    workloads::start(lab, programs, contender, host)
                }),
            };
            self.record(round, workload, contender, figures);
        }
    }

    /// The contenders that can take part, with the numbers of their hosts.
    fn contenders(&self) -> Vec<(usize, Contender)> {
        let listed = self.options.contenders.iter().copied().enumerate();
        listed.filter(|(_, contender)| self.programs.allow(*contender)).collect()
    }

    /// Sets up every contender anew and runs `workloads`, each through all of them in turn.
    fn on_fresh_guests(&mut self, round: u32, setting: Setting, workloads: Vec<Workload>) {
        let wanted = |contender| workloads.iter().any(|w| w.suits(contender));
        let mut guests = Vec::new();
        for (host, contender) in self.contenders().into_iter().filter(|(_, c)| wanted(*c)) {
            let guest = match setting {
                Setting::Plain(mtu, published) => {
                    Guest::start(&self.lab, &self.programs, contender, host, mtu, published)
                }
                Setting::Engine(engine, ports) => {
                    let (lab, programs, who) = (&self.lab, &self.programs, (contender, host));
                    Guest::in_engine(lab, programs, &self.engines, who, engine, ports)
                }
            };
            match guest {
                Ok(guest) => {
                    // An engine may publish in its own way: that is no property of the helper.
                    let is_plain = matches!(setting, Setting::Plain(..));
                    if let (true, Some(address)) = (is_plain, guest.client_seen) {
                        self.results.saw(contender, address);
                    }
                    guests.push(guest);
                }
                Err(why) => {
                    for workload in workloads.iter().filter(|w| w.suits(contender)) {
                        self.record(round, *workload, contender, Err(why.clone()));
                    }
                }
            }
        }
        for workload in workloads {
            if workload == Workload::Idle {
                let rootless: Vec<&Guest> =
                    guests.iter().filter(|g| workload.suits(g.contender)).collect();
                let figures = workloads::idle(&self.lab, &rootless, self.options.seconds);
                for (contender, figures) in figures {
                    self.record(round, workload, contender, Ok(figures));
                }
                continue;
            }
            for guest in guests.iter_mut().filter(|g| workload.suits(g.contender)) {
                let contender = guest.contender;
                let (lab, programs) = (&self.lab, &self.programs);
                let seconds = self.options.seconds;
                let what = label(round, workload, contender);
                let mut dropped = 0;
                let limit = if workload.leaves_no_trace() { calm::STOLEN } else { 1.0 };
                let outcome = self.results.calm.measure(&what, limit, || {
                    let outcome = workloads::measure(lab, programs, guest, workload, seconds);
                    // A frame that an attempt lost is lost, whether its figures count or not.
                    dropped += outcome.as_ref().map_or(0, |outcome| outcome.dropped);
                    outcome
                });
                if dropped > 0 {
                    let (workload, frames) = (workload.id(), dropped);
                    self.results.dropped.push(Dropped { contender, workload, round, frames });
                }
                let figures = outcome.map(|Outcome { figures, lacking, .. }| {
                    if let Some(why) = lacking {
                        self.tell_missing(round, workload, contender, why);
                    }
                    figures
                });
                self.record(round, workload, contender, figures);
            }
        }
    }

    /// Keeps what a cell gave and tells it on stderr: a run takes minutes.
    fn record(
        &mut self,
        round: u32,
        workload: Workload,
        contender: Contender,
        figures: Result<Vec<Figure>, Failure>,
    ) {
        match figures {
            Ok(figures) => {
                let first = figures.first().map_or(f64::NAN, |(_, value)| *value);
                eprintln!("{} {first:.2}", label(round, workload, contender));
                for (row, value) in figures {
                    self.results.add(&row, contender, value);
                }
            }
            Err(why) => self.tell_missing(round, workload, contender, why),
        }
    }

    /// Keeps why a cell, or a part of it, gave nothing.
    fn tell_missing(
        &mut self,
        round: u32,
        workload: Workload,
        contender: Contender,
        Failure(why): Failure,
    ) {
        eprintln!("{} no figure: {why}", label(round, workload, contender));
        let workload = workload.id();
        self.results.missing.push(Missing { contender, workload, round, why });
    }
}
