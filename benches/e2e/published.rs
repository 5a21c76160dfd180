//! Published ports: how each contender is told of them, and the workloads that are about nothing
//! else.
//!
//! The lab's server namespace plays the client. Its connections come from [`SERVER`], an address
//! that is on no link of any host, so that what the guest's server sees as its peer tells whether
//! the client's address was kept on the way: [`Guest::start`] asks for it before anything else is
//! measured, through one of the published ports.
//!
//! | contender   | told by                                          |
//! |-------------|--------------------------------------------------|
//! | bridge      | nftables: destination NAT ahead of routing       |
//! | slirp4netns | requests to its API socket, once it runs         |
//! | pasta       | `-t`                                             |
//! | tapway      | `-p`                                             |
//!
//! With [`Contender::Direct`] the servers are on the host, and nothing has to be published.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::base::{Failure, output_of};
use crate::contenders::{Contender, Guest, Programs};
use crate::keeper;
use crate::lab::{Host, Lab, Namespace, SERVER, WHOAMI_PORT};
use crate::report::median;
use crate::workloads::{self, Figure, HTTP_PORT, IPERF_PORT, MTU};

/// TCP ports of the host that lead to the same ports of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    Nothing,
    /// Those of the lab's servers.
    Services,
    /// 20,000 of them, or as many as the limit of open files allows.
    Many,
}

impl Published {
    fn ports(self) -> Vec<RangeInclusive<u16>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Services => [IPERF_PORT, WHOAMI_PORT, HTTP_PORT].map(|port| port..=port).to_vec(),
            Self::Many => vec![many_ports()],
        }
    }

    /// Their numbers, one by one.
    pub fn numbers(self) -> Vec<u16> {
        self.ports().into_iter().flatten().collect()
    }

    /// The port that proves that they lead into the guest: the last to be set up.
    fn probed(self) -> Option<u16> {
        match self {
            Self::Nothing => None,
            Self::Services => Some(WHOAMI_PORT),
            Self::Many => Some(*many_ports().end()),
        }
    }

    /// pasta's and tapway's options for them.
    pub fn options(self, contender: Contender) -> Vec<String> {
        let ports = self.ports();
        match contender {
            // Without the option, pasta would look for listening ports once a second.
            Contender::Pasta if ports.is_empty() => vec!["-t".into(), "none".into()],
            Contender::Pasta => {
                let list: Vec<String> = ports.iter().map(|range| text(range, "-")).collect();
                vec!["-t".into(), list.join(",")]
            }
            Contender::Tapway => ports
                .iter()
                .flat_map(|range| {
                    let ports = text(range, "-");
                    ["-p".into(), format!("{ports}:{ports}")]
                })
                .collect(),
            Contender::Direct | Contender::Bridge | Contender::Slirp4netns => Vec::new(),
        }
    }

    /// Publishes on a slirp4netns that runs already.
    pub fn request(self, lab: &Lab, at: &Host) -> Result<(), Failure> {
        for range in self.ports() {
            request(lab, at, &control_socket(lab, Contender::Slirp4netns)?, &range)?;
        }
        Ok(())
    }

    /// The way of a rootful engine, in place of what was published before; `guest` is its address
    /// on the bridge.
    pub fn translate(self, net: &Namespace, guest: &str) -> Result<(), Failure> {
        let ports: Vec<String> = self.ports().iter().map(|range| text(range, "-")).collect();
        let mut rules = "add chain ip e2e pre { type nat hook prerouting priority dstnat; }\n\
                         flush chain ip e2e pre\n"
            .to_owned();
        if ports.is_empty() {
            // A chain without a rule would still be one more hook than the guest needs.
            rules.push_str("delete chain ip e2e pre\n");
        } else {
            let (uplink, ports) = (Host::UPLINK, ports.join(", "));
            rules.push_str(&format!(
                "add rule ip e2e pre iifname {uplink} tcp dport {{ {ports} }} dnat to {guest}\n"
            ));
        }
        output_of(net.command(None, Path::new("nft")).arg(rules)).map(drop)
    }

    /// The address that a server of the guest sees as its client's, who is [`SERVER`]; `None` when
    /// nothing is published.
    pub fn client_seen(self, lab: &Lab, guest: &Guest) -> Result<Option<IpAddr>, Failure> {
        self.probed().map(|port| ask(lab, guest, port)).transpose()
    }
}

/// The first of the ports of [`Published::Many`], and how many there are if that is allowed.
const FIRST: u16 = 20_000;
const MOST: u16 = 20_000;

/// Descriptors for anything but the ports, each of which takes one at the least.
const SPARE: u64 = 300;

/// The ports of [`Published::Many`]: thousands of them.
fn many_ports() -> RangeInclusive<u16> {
    let allowed =
        keeper::descriptors().map_or(0, |limit| limit.saturating_sub(SPARE) / 1000 * 1000);
    // At least the thousands without which no run begins.
    FIRST..=FIRST + u16::try_from(allowed).map_or(MOST, |allowed| allowed.clamp(1, MOST)) - 1
}

/// Ports that [`add`] publishes one by one; none of them is published from the start.
const ADDED: RangeInclusive<u16> = 10_000..=10_099;

/// `FIRST`, or `FIRST-LAST` with this sign between them.
fn text(range: &RangeInclusive<u16>, sign: &str) -> String {
    let (first, last) = (range.start(), range.end());
    if first == last { first.to_string() } else { format!("{first}{sign}{last}") }
}

/// Serves on `port` in the guest, connects to it from outside, and tells the peer that the guest's
/// server saw.
fn ask(lab: &Lab, guest: &Guest, port: u16) -> Result<IpAddr, Failure> {
    let program = lab.agent.to_string_lossy().into_owned();
    let words = ["agent", "whoami", &port.to_string()];
    let _server = lab.serve(guest.net(lab), &program, &words, port, "whoami.log")?;
    let published = format!("{}:{port}", guest.host(lab).address);
    let mut probe = lab.as_user(&lab.ext, &lab.agent);
    let answer = output_of(probe.args(["agent", "probe", &published, "15"]))?;
    answer.trim().parse().map_err(|e| Failure::because("the guest's answer", e))
}

/// The name that the lab gives a tapway that serves a guest.
pub const INSTANCE: &str = "e2e";

/// Where a helper takes requests while it runs.
pub fn control_socket(lab: &Lab, contender: Contender) -> Result<PathBuf, Failure> {
    match contender {
        Contender::Slirp4netns => Ok(lab.home().join("slirp4netns.sock")),
        Contender::Tapway => Ok(lab.home().join(format!("tapway/{INSTANCE}.sock"))),
        _ => Err(Failure(format!("{} has no control socket", contender.name()))),
    }
}

/// Publishes `ports` one by one; returns the milliseconds that each took.
fn request(
    lab: &Lab,
    at: &Host,
    socket: &Path,
    ports: &RangeInclusive<u16>,
) -> Result<Vec<f64>, Failure> {
    let (first, last) = (ports.start().to_string(), ports.end().to_string());
    let mut command = lab.as_user(&at.net, &lab.agent);
    command.args(["agent", "publish"]).arg(socket).args([first, last]);
    let report = output_of(&mut command)?;
    let times: Vec<f64> =
        report.lines().filter_map(|l| l.parse::<f64>().ok()).map(|nanos| nanos / 1e6).collect();
    if times.len() == ports.len() {
        return Ok(times);
    }
    Err(Failure::because("the publisher's report", report.trim()))
}

/// Adds ports to a running helper, each by a connection to its control socket and one request: the
/// median time until the answer. All of them must then be open, and the last lead to the guest.
pub fn add(lab: &Lab, guest: &Guest) -> Result<Vec<Figure>, Failure> {
    let at = guest.host(lab);
    let times = request(lab, at, &control_socket(lab, guest.contender)?, &ADDED)?;
    expect_open(at, &ADDED)?;
    ask(lab, guest, *ADDED.end())?;
    let median = median(&times).ok_or_else(|| Failure("nothing was published".into()))?;
    Ok(vec![(String::new(), median)])
}

/// Fails unless the host listens on every one of `ports`.
fn expect_open(at: &Host, ports: &RangeInclusive<u16>) -> Result<(), Failure> {
    let open = at.net.listening();
    match ports.clone().filter(|port| !open.contains(port)).count() {
        0 => Ok(()),
        closed => {
            let (ports, count) = (text(ports, " to "), ports.len());
            Err(Failure(format!("{closed} of {count} published ports ({ports}) are not open")))
        }
    }
}

/// What 20,000 published ports cost: the time from the start of the helper to the first instruction
/// of the command inside, and the memory of one that serves a guest. Where fewer are allowed, the time
/// is told for each.
pub fn many(
    lab: &Lab,
    programs: &Programs,
    contender: Contender,
    host: usize,
    seconds: u32,
) -> Result<Vec<Figure>, Failure> {
    /// A start may take a second.
    const STARTS: u32 = 5;
    let ports = many_ports();
    let (first, _) = workloads::launch(lab, programs, contender, host, Published::Many, STARTS)?;
    let mut guest = Guest::start(lab, programs, contender, host, MTU, Published::Many)?;
    expect_open(guest.host(lab), &ports)?;
    let idle = workloads::idle(lab, &[&guest], seconds);
    guest.still_runs(lab)?;
    let mut figures = match ports.len() {
        count if count < usize::from(MOST) => vec![
            ("published-ports/each".to_owned(), first * 1e3 / count as f64),
            ("published-ports/count".to_owned(), count as f64),
        ],
        _ => vec![("published-ports".to_owned(), first)],
    };
    for (row, value) in idle.into_iter().flat_map(|(_, figures)| figures) {
        figures.push((row.replace("idle", "published-ports"), value));
    }
    Ok(figures)
}

/// Whether `seen` is the address that the client has.
pub fn is_kept(seen: IpAddr) -> bool {
    seen == IpAddr::V4(SERVER)
}
