//! The WAN grid: what a helper leaves of a path that has delay and loss.
//!
//! ```text
//!   guest ── helper ─┐
//!                    ├─ host ── wan0 ══ stage ══ wanN ── ext (198.51.100.2)
//!   direct client ───┘
//! ```
//! A helper that ends the guest's connection and opens its own has the host's kernel do the work
//! of the path: congestion control, recovery, windows that grow with the round trip. It can only
//! lose what that kernel achieves: by buffers smaller than a flight, by reading or writing late.
//! So a cell is one stream, through tapway and from a client on the host itself, both over the same
//! stage, in turn; what counts is the ratio of their medians.
//!
//! The outside link has an MTU of 1500 in all cells; the guest's varies. Each path begins with a
//! seed of its own for the stage's dice, the same for all who take part: the n-th segment of a
//! direction is lost for all or for none. Nothing is remembered from one connection for the next
//! (`tcp_no_metrics_save`). Measured is the rate at which the receiver reads, after a warm-up that
//! leaves slow start out (see [`load`]), and over a whole number of round trips, since a window
//! arrives once in each.
//!
//! Losses begin when slow start is over. One in it makes BBR take the path for a small one, and
//! the senders of this machine need seconds to find out: at 100 ms and 1 % one connection in six
//! carried a quarter of what the others did, with a helper as often as without. A median of few
//! rounds tells then who was hit.

pub mod cut;
pub mod line;
pub mod load;
pub mod pump;
pub mod stage;
pub mod table;

use std::io::BufReader;
use std::mem;
use std::net::Ipv4Addr;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::base::{Failure, Process, read_line, wait_until};
use crate::contenders::{Contender, Guest, Programs};
use crate::lab::{Lab, Namespace};
use crate::published::Published;
use crate::report::{Dropped, Missing, Results};
use crate::workloads::Way;

use line::Conditions;
use stage::Stage;
use table::{Path, Who};

/// Where the servers behind the stage are reached (TEST-NET-2, RFC 5737).
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Port of the flood or the gauge in `ext`.
const PORT: u16 = 5301;

/// What the paths carry unless the user says otherwise, in Mbit/s (2.5GBASE-T, IEEE 802.3bz).
///
/// A path without a rate is no path: with little delay the machine's processors would be all that
/// limits a stream, and a helper takes its part of them. What that comes to is told by the rows
/// without delay.
pub const RATE: u32 = 2500;

/// Share of the processors' time that a hypervisor may take from a cell. A path that stands still
/// while its machine does is another path, for some: a sender that estimates what the path carries
/// is wrong for seconds.
const STOLEN: f64 = 0.1;

/// MTU of the guest's device.
const MTUS: [u32; 3] = [1500, 9000, 65520];

/// Which cells are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A few cells, for the normal table.
    Quick,
    /// All 90.
    Grid,
}

impl Extent {
    /// What `--only` asks for: nothing said, or `wan-quick`, is the short form.
    pub fn asked(only: &[String]) -> Option<Extent> {
        if only.iter().any(|word| word == "wan") {
            return Some(Extent::Grid);
        }
        let quick = only.is_empty() || only.iter().any(|word| word == "wan-quick");
        quick.then_some(Extent::Quick)
    }

    fn paths(self) -> Vec<Path> {
        let conditions: Vec<(u32, u32)> = match self {
            Self::Quick => vec![(1, 0), (20, 1_000), (100, 0), (100, 10_000)],
            Self::Grid => [0, 1, 20, 100, 300]
                .into_iter()
                .flat_map(|rtt| [0, 1_000, 10_000].map(|loss| (rtt, loss)))
                .collect(),
        };
        let ways =
            |(rtt_ms, loss_ppm)| [Way::Up, Way::Down].map(|way| Path { rtt_ms, loss_ppm, way });
        conditions.into_iter().flat_map(ways).collect()
    }

    fn mtus(self) -> &'static [u32] {
        match self {
            Self::Quick => &[1500, 65520],
            Self::Grid => &MTUS,
        }
    }
}

/// What the user chose.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'o> {
    pub extent: Extent,
    pub rounds: u32,
    /// Congestion control of both senders on the path, if not their namespaces' own.
    pub congestion: Option<&'o str>,
    /// Megabits per second of the path, if it has a limit.
    pub rate: Option<u32>,
    /// The peer whose guest is compared as well.
    pub peer: Option<Contender>,
}

impl Choice<'_> {
    /// About how many seconds they take.
    pub fn expected(&self) -> f64 {
        /// What a cell takes beside its own times: programs that start and end.
        const BESIDE: f64 = 0.5;
        let of =
            |path: &Path| (path.warm_up() + path.time() + path.round_trip()).as_secs_f64() + BESIDE;
        let turns = Who::all(self.extent.mtus(), self.peer).len() as f64;
        let round = turns * self.extent.paths().iter().map(of).sum::<f64>();
        f64::from(self.rounds) * round
    }
}

/// Runs the cells on the last host of the lab and keeps what they give in `results`.
pub fn run(lab: &Lab, programs: &Programs, choice: Choice<'_>, results: &mut Results) {
    let everything = |why: Failure, results: &mut Results| {
        let (contender, Failure(why)) = (Contender::Tapway, why);
        results.missing.push(Missing { contender, workload: "wan".into(), round: 1, why });
    };
    let host = lab.hosts.len() - 1;
    let mut site = match Site::build(lab, host, choice.congestion) {
        Ok(site) => site,
        Err(why) => return everything(why, results),
    };
    let rate = choice.rate.map_or("no limit".into(), |rate| format!("path of {rate}"));
    results.wan.title = format!("WAN, {}, {rate}, Mbit/s", site.congestion);
    for round in 1..=choice.rounds {
        let mut guests = Vec::new();
        for who in Who::all(choice.extent.mtus(), choice.peer) {
            let Who { contender, mtu } = who;
            match Guest::start(lab, programs, contender, host, mtu, Published::Nothing) {
                Ok(guest) => guests.push((who, guest)),
                Err(why) => everything(why, results),
            }
        }
        // What changes about the machine while a path is measured is not always at the same one's cost.
        if round % 2 == 0 {
            guests.reverse();
        }
        for path in choice.extent.paths() {
            for (who, guest) in &mut guests {
                let (contender, workload) = (who.contender, path.id(*who));
                let what = format!("round {round}  {workload:<28} {:<12}", contender.name());
                let mut calm = mem::take(&mut results.calm);
                let rate = calm.measure(&what, STOLEN, || {
                    site.cell(lab, guest, path, choice.rate, round, results)
                });
                results.calm = calm;
                match rate {
                    Ok(rate) => {
                        let name = contender.name();
                        eprintln!("round {round}  {workload:<28} {name:<12} {rate:.2}");
                        results.wan.add(path, *who, round, rate);
                    }
                    Err(Failure(why)) => {
                        eprintln!("round {round}  {workload}: no figure: {why}");
                        results.missing.push(Missing { contender, workload, round, why });
                    }
                }
            }
        }
    }
}

/// The path between a host and `ext`.
struct Site {
    stage: Stage,
    congestion: String,
}

impl Site {
    fn build(lab: &Lab, host: usize, congestion: Option<&str>) -> Result<Site, Failure> {
        let (net, ext) = (&lab.hosts[host].net, &lab.ext);
        let (near, far) = ("wan0", format!("wan{host}"));
        let stage = Stage::build(lab, (net, near), (ext, &far))?;
        let control = match congestion {
            Some(name) => format!(" congctl {name}"),
            None => String::new(),
        };
        let (near_at, far_at) = (format!("10.78.{host}.2"), format!("10.78.{host}.1"));
        let (near_mac, far_mac) = ("02:00:00:78:00:02", "02:00:00:78:00:01");
        for (net, name, at, mac, other, other_mac) in [
            (net, near, &near_at, near_mac, &far_at, far_mac),
            (ext, far.as_str(), &far_at, far_mac, &near_at, near_mac),
        ] {
            net.sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")?;
            net.sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
            net.ip(&format!("link set {name} address {mac}"))?;
            net.ip(&format!("address add {at}/32 peer {other} dev {name}"))?;
            net.ip(&format!("route replace {other} dev {name}{control}"))?;
            // A question for an address could be lost like anything else.
            net.ip(&format!("neighbour add {other} lladdr {other_mac} dev {name} nud permanent"))?;
        }
        ext.ip(&format!("address replace {SERVER}/32 dev lo"))?;
        net.ip(&format!("route add {SERVER} via {far_at} dev {near}{control}"))?;
        let own = || net.sysctl_value("net.ipv4.tcp_congestion_control");
        let congestion = congestion.map_or_else(own, |name| Ok(name.to_owned()))?;
        Ok(Site { stage, congestion })
    }

    /// The rate in Mbit/s at which `guest` sends or receives over `path`.
    fn cell(
        &mut self,
        lab: &Lab,
        guest: &mut Guest,
        path: Path,
        rate: Option<u32>,
        round: u32,
        results: &mut Results,
    ) -> Result<f64, Failure> {
        let before = guest.counters(lab, false)?;
        self.stage.set(Conditions {
            delay: path.round_trip() / 2,
            loss_ppm: path.loss_ppm,
            rate: rate.map(|megabits| u64::from(megabits) * 1_000_000),
            seed: u64::from(round) << 32 | u64::from(path.rtt_ms * 7 + path.loss_ppm),
            spared: path.spared(),
        })?;
        let bytes = transfer(lab, guest.net(lab), path)?;
        guest.still_runs(lab)?;

        let tallies = self.stage.tell()?;
        let (tally, moved) = (
            if path.way == Way::Up { tallies.up } else { tallies.down },
            guest.counters(lab, false)?.since(before),
        );
        if tally.over_limit > 0 {
            return Err(Failure(format!(
                "the stage had no room for {} segments",
                tally.over_limit
            )));
        }
        /// Payload of a segment on a link whose MTU is 1500, at most.
        const SEGMENT: u64 = 1460;
        if (tally.segments - tally.lost - tally.queue_full) * SEGMENT < bytes {
            return Err(Failure("the stage did not carry it: the traffic went elsewhere".into()));
        }
        // What a client on the host itself sends crosses no other device.
        let crosses = guest.contender != Contender::Direct;
        if crosses && if path.way == Way::Up { moved.sent } else { moved.received } < bytes {
            return Err(Failure("the guest's device did not carry it".into()));
        }
        if crosses && moved.dropped() > 0 {
            let (contender, workload) = (guest.contender, path.name());
            let frames = moved.dropped();
            results.dropped.push(Dropped { contender, workload, round, frames });
        }
        Ok(bytes as f64 * 8e-6 / path.time().as_secs_f64())
    }
}

/// One stream over `path` between `net` and `ext`: the bytes that were read in [`Path::time`].
fn transfer(lab: &Lab, net: &Namespace, path: Path) -> Result<u64, Failure> {
    let nanos = |time: Duration| time.as_nanos().to_string();
    let gauge = |end: String| vec!["gauge".into(), end, nanos(path.warm_up()), nanos(path.time())];
    let flood = |end: String| vec!["flood".into(), end];
    let (there, here) = (PORT.to_string(), format!("{SERVER}:{PORT}"));
    let (server, client) = match path.way {
        Way::Up => (gauge(there), flood(here)),
        Way::Down => (flood(there), gauge(here)),
    };
    let bound = path.bound();
    let mut server = start(lab, &lab.ext, bound, &server)?;
    if !wait_until(Duration::from_secs(5), || lab.ext.listening().contains(&PORT)) {
        return Err(Failure(format!("no server on port {PORT} within 5 s")));
    }
    let mut client = start(lab, net, bound, &client)?;
    let (gauge, flood) = match path.way {
        Way::Up => (&mut server, &mut client),
        Way::Down => (&mut client, &mut server),
    };
    let answer = gauge.child().stdout.take();
    let answer = answer.ok_or_else(|| Failure("the gauge has no stdout".into()))?;
    let text =
        read_line(&mut BufReader::new(answer)).map_err(|e| Failure::because("the gauge", e))?;
    // The gauge's reset is on its way. A sender that it does not reach would go on for a while, and
    // be the first on the next path.
    let bound = 2 * path.round_trip() + Duration::from_millis(100);
    let _ = wait_until(bound, || flood.ended().is_some());
    text.parse().map_err(|_| Failure::because("the gauge's answer", text))
}

/// Starts an agent that is ended when it has not come to its end within `bound`.
fn start(
    lab: &Lab,
    net: &Namespace,
    bound: Duration,
    words: &[String],
) -> Result<Process, Failure> {
    let mut command: Command = lab.as_user(net, FilePath::new("timeout"));
    command.args(["--signal=KILL", &bound.as_secs().to_string()]).arg(&lab.agent);
    command.arg("agent").args(words);
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()))
}
