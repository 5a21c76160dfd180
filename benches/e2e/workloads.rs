//! The workloads: what each contender is made to do, and what is read off.
//!
//! A workload is one command of a well-known load generator where there is one (iperf3, wrk,
//! sockperf), so that anyone can repeat a cell by hand. Servers are started for the cell: a
//! client that had to be ended early cannot leave one behind that refuses the next.

mod idle;
mod ping;
mod start;
mod udp;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;

use crate::base::{Failure, output_of};
use crate::contenders::{Contender, Guest, Programs};
use crate::crowd;
use crate::engines::{Engine, Load, Ports};
use crate::lab::{Lab, Namespace, SERVER, Transport};
use crate::published;

pub use idle::{idle, while_idle};
pub use start::{launch, start};
pub use udp::Sending;

/// MTU at which everything but the MTU comparison runs: what engines give slirp4netns and pasta.
pub const MTU: u32 = 65520;
/// The other MTU of the comparison: Ethernet's.
pub const SMALL_MTU: u32 = 1500;

/// Which way the payload goes, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Up,
    Down,
}

impl Way {
    /// The name in ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What a contender is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Nothing, just after the start.
    Idle,
    /// iperf3 with this many streams.
    Tcp { way: Way, streams: u32, mtu: u32 },
    /// Datagrams as fast as they go, in a way of sending them.
    Udp { way: Way, sending: Sending },
    /// One stream of one QUIC connection.
    Quic { way: Way },
    /// wrk on 32 connections that stay open.
    KeepAlive,
    /// wrk on 32 connections at a time, a new one for each request.
    ConnectionEach,
    /// sockperf ping-pong with 64 bytes, alone or beside one stream from the guest.
    PingPong { over: Transport, beside_stream: bool },
    /// 10,000 connections that are open and silent.
    Connections,
    /// As many as 100,000, and others that come and go.
    Crowd,
    /// From the start of the helper to the first instruction of the command inside.
    Start,
    /// iperf3 with this many streams between a client outside and a published port.
    Published { way: Way, streams: u32 },
    /// The same with one stream of a client on the host, which asks at the host's loopback.
    PublishedLocal { way: Way },
    /// wrk as in [`Workload::ConnectionEach`], from outside to a published port.
    PublishedRate,
    /// Ports published on a helper that runs.
    PublishAdd,
    /// A helper that publishes 20,000 ports.
    PublishedPorts,
    /// Through a container of a real engine.
    Engine(Engine, Load),
}

impl Workload {
    /// All of them, in the order in which they are run.
    pub const ALL: [Workload; 47] = [
        Workload::PublishedPorts,
        Workload::Idle,
        Workload::Tcp { way: Way::Up, streams: 1, mtu: MTU },
        Workload::Tcp { way: Way::Down, streams: 1, mtu: MTU },
        Workload::Tcp { way: Way::Up, streams: 4, mtu: MTU },
        Workload::Tcp { way: Way::Down, streams: 4, mtu: MTU },
        Workload::Udp { way: Way::Up, sending: Sending::Gso },
        Workload::Udp { way: Way::Down, sending: Sending::Gso },
        Workload::Udp { way: Way::Up, sending: Sending::Plain },
        Workload::Udp { way: Way::Down, sending: Sending::Plain },
        Workload::Udp { way: Way::Up, sending: Sending::Small },
        Workload::Udp { way: Way::Down, sending: Sending::Small },
        Workload::Quic { way: Way::Up },
        Workload::Quic { way: Way::Down },
        Workload::KeepAlive,
        Workload::ConnectionEach,
        Workload::PingPong { over: Transport::Tcp, beside_stream: false },
        Workload::PingPong { over: Transport::Udp, beside_stream: false },
        Workload::PingPong { over: Transport::Tcp, beside_stream: true },
        Workload::PingPong { over: Transport::Udp, beside_stream: true },
        Workload::Tcp { way: Way::Up, streams: 1, mtu: SMALL_MTU },
        Workload::Tcp { way: Way::Down, streams: 1, mtu: SMALL_MTU },
        Workload::Published { way: Way::Up, streams: 1 },
        Workload::Published { way: Way::Down, streams: 1 },
        Workload::Published { way: Way::Up, streams: 4 },
        Workload::Published { way: Way::Down, streams: 4 },
        Workload::PublishedLocal { way: Way::Up },
        Workload::PublishedLocal { way: Way::Down },
        Workload::PublishedRate,
        Workload::PublishAdd,
        Workload::Connections,
        Workload::Crowd,
        Workload::Start,
        Workload::Engine(Engine::Podman, Load::Up),
        Workload::Engine(Engine::Podman, Load::Down),
        Workload::Engine(Engine::Podman, Load::Rate(Ports::Helpers)),
        Workload::Engine(Engine::Podman, Load::Rate(Ports::Engines)),
        Workload::Engine(Engine::Podman, Load::Start),
        Workload::Engine(Engine::Rootlesskit, Load::Up),
        Workload::Engine(Engine::Rootlesskit, Load::Down),
        Workload::Engine(Engine::Rootlesskit, Load::Rate(Ports::Helpers)),
        Workload::Engine(Engine::Rootlesskit, Load::Rate(Ports::Engines)),
        Workload::Engine(Engine::Rootlesskit, Load::Start),
        // podman 5's own forwarder serves bridges only.
        Workload::Engine(Engine::Podman5, Load::Up),
        Workload::Engine(Engine::Podman5, Load::Down),
        Workload::Engine(Engine::Podman5, Load::Rate(Ports::Helpers)),
        Workload::Engine(Engine::Podman5, Load::Start),
    ];

    /// The engine whose containers it needs.
    pub fn engine(self) -> Option<Engine> {
        match self {
            Self::Engine(engine, _) => Some(engine),
            _ => None,
        }
    }

    /// The name for `--only`, and the beginning of the ids of its rows.
    pub fn id(self) -> String {
        match self {
            Self::Tcp { way, streams, mtu } => {
                let streams = if streams == 1 { String::new() } else { streams.to_string() };
                format!("tcp{streams}-{}-{mtu}", way.name())
            }
            Self::Udp { way, sending } => format!("udp-{}-{}", sending.name(), way.name()),
            Self::Quic { way } => format!("quic-{}", way.name()),
            Self::KeepAlive => "http-keepalive".into(),
            Self::ConnectionEach => "http-close".into(),
            Self::PingPong { over, beside_stream } => {
                let over = if over == Transport::Udp { "-udp" } else { "" };
                format!("latency{over}{}", if beside_stream { "-busy" } else { "" })
            }
            Self::Idle => "idle".into(),
            Self::Connections => "conns-10k".into(),
            Self::Crowd => "conns-100k".into(),
            Self::Start => "start".into(),
            Self::Published { way, streams: 1 } => format!("published-{}", way.name()),
            Self::Published { way, streams } => format!("published{streams}-{}", way.name()),
            Self::PublishedLocal { way } => format!("published-local-{}", way.name()),
            Self::PublishedRate => "published-rate".into(),
            Self::PublishAdd => "publish-add".into(),
            Self::PublishedPorts => "published-ports".into(),
            Self::Engine(engine, load) => format!("{}-{}", engine.name(), load.name()),
        }
    }

    /// Whether one round is enough: it hardly varies and takes long.
    pub fn once(self) -> bool {
        matches!(self, Self::Connections | Self::Crowd | Self::PublishedPorts)
    }

    /// Whether `contender` can do it: where the kernel does the work there is no helper to watch.
    pub fn suits(self, contender: Contender) -> bool {
        match self {
            Self::Idle | Self::Connections => contender.is_rootless(),
            // What slirp4netns does for a packet grows with its connections, and the bridge would
            // measure connection tracking; direct is what the kernel itself takes.
            Self::Crowd => {
                matches!(contender, Contender::Direct | Contender::Pasta | Contender::Tapway)
            }
            // slirp4netns and the bridge have no way to run a command; direct is the floor.
            Self::Start => !matches!(contender, Contender::Bridge | Contender::Slirp4netns),
            // The bridge's rules are for what comes in from outside.
            Self::PublishedLocal { .. } => contender != Contender::Bridge,
            // pasta is told all its ports at the start; what the kernel does, `nft` is told.
            Self::PublishAdd => matches!(contender, Contender::Slirp4netns | Contender::Tapway),
            // slirp4netns knows its ports only from requests, one by one.
            Self::PublishedPorts => matches!(contender, Contender::Pasta | Contender::Tapway),
            Self::Engine(engine, load) => {
                let is_floor = load == Load::Start && contender == Contender::Direct;
                contender == engine.peer() || contender == Contender::Tapway || is_floor
            }
            _ => true,
        }
    }

    /// About how many seconds one cell takes, of which `seconds` are measured; for whoever waits.
    pub fn expected(self, seconds: u32) -> f64 {
        let beside = match self {
            Self::Connections | Self::Crowd => 12.0,
            Self::PublishedPorts | Self::Engine(_, Load::Start) => 8.0,
            Self::PingPong { beside_stream: true, .. } => 3.0,
            Self::PingPong { .. } | Self::Start => 1.8,
            _ => 0.8,
        };
        let measured = match self {
            Self::Start | Self::PublishAdd | Self::Engine(_, Load::Start) => 0,
            Self::Crowd => 4 * seconds,
            _ => seconds,
        };
        beside + f64::from(measured)
    }

    /// Whether a second time on the same guest is like the first: nothing is filled or published.
    pub fn leaves_no_trace(self) -> bool {
        !matches!(self, Self::Connections | Self::Crowd | Self::PublishAdd)
    }

    /// Whether it needs guests whose servers are reached from outside.
    pub fn needs_published(self) -> bool {
        self.has_clients() || self == Self::PublishAdd
    }

    /// Whether clients ask at a published port.
    fn has_clients(self) -> bool {
        matches!(self, Self::Published { .. } | Self::PublishedLocal { .. } | Self::PublishedRate)
    }
}

/// One figure: the id of its row (see [`crate::report`]) and the value in the row's unit.
pub type Figure = (String, f64);

/// What one cell gave.
#[derive(Debug, Default)]
pub struct Cell {
    pub figures: Vec<Figure>,
    /// Payload that must have crossed the guest's device towards the server, in bytes.
    pub sent: u64,
    /// The same towards the guest.
    pub received: u64,
    /// Processor time of the client, in seconds, where it tells.
    pub client_busy: Option<f64>,
    /// Why some figures of the cell could not be had.
    pub lacking: Option<Failure>,
}

/// A cell that was measured.
#[derive(Debug)]
pub struct Outcome {
    pub figures: Vec<Figure>,
    /// Frames that the device dropped meanwhile.
    pub dropped: u64,
    /// Why some figures of the cell could not be had.
    pub lacking: Option<Failure>,
}

/// Runs `workload` through `guest` for `seconds`.
///
/// The guest's device must have carried at least the payload that the load generator counted, be it
/// its loopback where a helper joins the clients of a published port to the guest's servers there, and
/// after a bulk transfer the helper must have used processor time. Otherwise the figure would be
/// of something else, and the cell fails.
pub fn measure(
    lab: &Lab,
    programs: &Programs,
    guest: &mut Guest,
    workload: Workload,
    seconds: u32,
) -> Result<Outcome, Failure> {
    let before = guest.counters(lab, workload.has_clients())?;
    let usage_before = guest.usage();
    let cell = match workload {
        Workload::Tcp { way, streams, .. } => {
            tcp(lab, &Ends::outward(lab, guest), way, streams, seconds)
        }
        Workload::Published { way, streams } => {
            tcp(lab, &Ends::inward(lab, guest), way, streams, seconds)
        }
        Workload::PublishedLocal { way } => tcp(lab, &Ends::local(lab, guest), way, 1, seconds),
        Workload::Udp { way, sending } => udp::cell(lab, guest, way, sending, seconds),
        Workload::Engine(_, Load::Up) => tcp(lab, &Ends::outward(lab, guest), Way::Up, 1, seconds),
        Workload::Engine(_, Load::Down) => {
            tcp(lab, &Ends::outward(lab, guest), Way::Down, 1, seconds)
        }
        Workload::Engine(_, Load::Rate(_)) => http(lab, &Ends::inward(lab, guest), seconds, CLOSE),
        Workload::Quic { way } => udp::quic(lab, guest, way, seconds),
        Workload::KeepAlive => http(lab, &Ends::outward(lab, guest), seconds, &[]),
        Workload::ConnectionEach => http(lab, &Ends::outward(lab, guest), seconds, CLOSE),
        Workload::PublishedRate => http(lab, &Ends::inward(lab, guest), seconds, CLOSE),
        Workload::PublishAdd => {
            published::add(lab, guest).map(|figures| Cell { figures, ..Cell::default() })
        }
        Workload::PingPong { over, beside_stream: false } => ping::alone(lab, guest, over, seconds),
        Workload::PingPong { over, beside_stream: true } => {
            ping::beside_stream(lab, guest, over, seconds)
        }
        Workload::Connections => idle::connections(lab, guest, seconds),
        Workload::Crowd => crowd::cell(lab, programs, guest, seconds),
        Workload::Idle
        | Workload::Start
        | Workload::PublishedPorts
        | Workload::Engine(_, Load::Start) => {
            Err(Failure(format!("{} is not measured cell by cell", workload.id())))
        }
    };
    guest.still_runs(lab)?;
    let mut cell = cell?;
    for (row, _) in &mut cell.figures {
        row.insert_str(0, &workload.id());
    }
    let moved = guest.counters(lab, workload.has_clients())?.since(before);
    if matches!(workload, Workload::Engine(_, Load::Rate(Ports::Engines))) {
        if moved.received >= cell.received || moved.sent >= cell.sent {
            return Err(Failure(format!(
                "{} carried {} bytes in, though the engine forwards ports past it",
                guest.device, moved.received
            )));
        }
    } else if moved.sent < cell.sent || moved.received < cell.received {
        return Err(Failure(format!(
            "{} carried {} bytes out and {} in, the client counted {} and {}: the traffic went \
             elsewhere",
            guest.device, moved.sent, moved.received, cell.sent, cell.received
        )));
    }
    let is_stream = matches!(
        workload,
        Workload::Tcp { streams: 1, .. }
            | Workload::Published { streams: 1, .. }
            | Workload::PublishedLocal { .. }
            | Workload::Engine(_, Load::Up | Load::Down)
            | Workload::Udp { .. }
            | Workload::Quic { .. }
    );
    if let (true, Some(from), Some(to)) = (is_stream, usage_before, guest.usage()) {
        let busy = to.seconds() - from.seconds();
        let bytes = cell.sent + cell.received;
        if busy <= 0.0 && bytes > BULK {
            return Err(Failure("the helper used no processor time: it did not do this".into()));
        }
        cell.figures.push((format!("{}/cpu", workload.id()), busy / (bytes as f64 / 1e9)));
    }
    let no_helper = guest.contender == Contender::Direct;
    if let (Workload::Tcp { streams: 1, .. }, true, Some(busy)) =
        (workload, no_helper, cell.client_busy)
    {
        let bytes = cell.sent + cell.received;
        cell.figures.push((format!("{}/cpu", workload.id()), busy / (bytes as f64 / 1e9)));
    }
    // Who sends datagrams as fast as it can fills every queue, and QUIC finds out by losses how
    // fast that is; what did not fit is not counted.
    let overrun = matches!(workload, Workload::Udp { .. } | Workload::Quic { .. });
    let dropped = if overrun { 0 } else { moved.dropped() };
    Ok(Outcome { figures: cell.figures, dropped, lacking: cell.lacking })
}

/// More bytes than any helper can carry in less than one tick of processor time.
const BULK: u64 = 1_000_000_000;

/// How much longer than asked a load generator may take; the slowest contenders do.
const GRACE: u32 = 10;

/// Between whom a load runs.
struct Ends<'a> {
    client: &'a Namespace,
    server: &'a Namespace,
    /// Where the client finds the server.
    address: Ipv4Addr,
    /// Whether the server is the guest, behind published ports.
    inward: bool,
}

impl<'a> Ends<'a> {
    /// A client in the guest, and the lab's server.
    fn outward(lab: &'a Lab, guest: &'a Guest) -> Self {
        Ends { client: guest.net(lab), server: &lab.ext, address: SERVER, inward: false }
    }

    /// A client on the host, and a server in the guest.
    fn local(lab: &'a Lab, guest: &'a Guest) -> Self {
        let client = &guest.host(lab).net;
        Ends { client, server: guest.net(lab), address: Ipv4Addr::LOCALHOST, inward: true }
    }

    /// A client outside, and a server in the guest.
    fn inward(lab: &'a Lab, guest: &'a Guest) -> Self {
        let address = guest.host(lab).address;
        Ends { client: &lab.ext, server: guest.net(lab), address, inward: true }
    }

    /// A cell for which the client sent and received so many bytes.
    fn cell(&self, figures: Vec<Figure>, to_server: u64, to_client: u64) -> Cell {
        let (sent, received) =
            if self.inward { (to_client, to_server) } else { (to_server, to_client) };
        Cell { figures, sent, received, ..Cell::default() }
    }
}

/// Runs a client as the account, and ends it when it overruns its time.
fn client(lab: &Lab, net: &Namespace, seconds: u32, words: &[&str]) -> Result<String, Failure> {
    let mut command = lab.as_user(net, Path::new("timeout"));
    let bound = (seconds + GRACE).to_string();
    let text = output_of(command.args(["--signal=KILL", &bound]).args(words));
    text.map_err(|e| match e.0.contains("signal: 9") || e.0.contains("status: 137") {
        true => Failure(format!("{} was not done after {bound} s", words[0])),
        false => e,
    })
}

/// iperf3's own default.
pub const IPERF_PORT: u16 = 5201;

fn tcp(lab: &Lab, ends: &Ends<'_>, way: Way, streams: u32, seconds: u32) -> Result<Cell, Failure> {
    let port = IPERF_PORT.to_string();
    let options = ["-s", "-1", "-p", &port];
    let _server = lab.serve(ends.server, "iperf3", &options, IPERF_PORT, "iperf3.log")?;
    let (time, count, server) =
        (seconds.to_string(), streams.to_string(), ends.address.to_string());
    let mut words = vec!["iperf3", "-J", "-c", &server, "-p", &port, "-t", &time, "-P", &count];
    let to_client = (way == Way::Down) != ends.inward;
    if to_client {
        words.push("-R");
    }
    let report: Value = serde_json::from_str(&client(lab, ends.client, seconds, &words)?)
        .map_err(|e| Failure::because("iperf3's report", e))?;
    let number = |path: &str| {
        let found = report.pointer(path).and_then(Value::as_f64);
        found.ok_or_else(|| Failure(format!("iperf3 reports no {path}")))
    };
    let rate = number("/end/sum_received/bits_per_second")?;
    let bytes = number("/end/sum_received/bytes")? as u64;
    let busy = number("/end/cpu_utilization_percent/host_total")? / 100.0;
    let client_busy = Some(busy * number("/end/sum_received/seconds")?);
    let figures = vec![(String::new(), rate / 1e9)];
    let (to_server, to_client) = if to_client { (0, bytes) } else { (bytes, 0) };
    Ok(Cell { client_busy, ..ends.cell(figures, to_server, to_client) })
}

/// What the web server sends: a small page, so that requests count and not bytes.
const PAGE_BYTES: usize = 128;

/// One process, no log, and no limit of requests per connection: the server is never what differs.
const NGINX: &str = "\
daemon off; master_process off; pid DIR/nginx.pid; error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off; keepalive_requests 1000000000; default_type text/plain;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
    server { listen 8080 backlog=4096; root DIR/www; }
}
";

/// Port of the web server, as its configuration has it.
pub const HTTP_PORT: u16 = 8080;

/// wrk's options for a connection per request.
const CLOSE: &[&str] = &["-H", "Connection: close"];

fn http(lab: &Lab, ends: &Ends<'_>, seconds: u32, extra: &[&str]) -> Result<Cell, Failure> {
    let home = lab.home();
    let home_name = home.to_string_lossy().into_owned();
    let config = home.join("nginx.conf");
    let www = home.join("www");
    fs::create_dir_all(&www)
        .and_then(|()| fs::write(www.join("page"), vec![b'x'; PAGE_BYTES]))
        .and_then(|()| fs::write(&config, NGINX.replace("DIR", &home_name)))
        .map_err(|e| Failure::because("write the web server's files", e))?;
    let config = config.to_string_lossy().into_owned();
    let options = ["-p", &home_name, "-c", &config, "-e", "stderr"];
    let _server = lab.serve(ends.server, "nginx", &options, HTTP_PORT, "nginx.log")?;

    let (time, url) = (format!("{seconds}s"), format!("http://{}:{HTTP_PORT}/page", ends.address));
    let mut words = vec!["wrk", "-t", "1", "-c", "32", "-d", &time, "--latency"];
    words.extend(extra);
    words.push(&url);
    let report = client(lab, ends.client, seconds, &words)?;
    let bad = "wrk's report";
    if let Some(line) = report.lines().find(|l| l.contains("Non-2xx")) {
        return Err(Failure::because("the web server refused", line.trim()));
    }
    let rate = after(&report, "Requests/sec:").and_then(|w| w.parse::<f64>().ok());
    let requests = report
        .lines()
        .find(|l| l.contains(" requests in "))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    // Elsewhere a share of the requests may end in the same digits.
    let p99 = report.lines().find_map(|line| line.trim_start().strip_prefix("99% "));
    let p99 = p99.and_then(|time| milliseconds(time.trim()));
    let (Some(rate), Some(requests), Some(p99)) = (rate, requests, p99) else {
        return Err(Failure::because(bad, report.trim()));
    };
    let figures = vec![(String::new(), rate), ("/p99".into(), p99)];
    let request_bytes = "GET /page HTTP/1.1".len() as u64;
    Ok(ends.cell(figures, requests * request_bytes, requests * PAGE_BYTES as u64))
}

/// The word behind `label` in a report.
fn after<'r>(report: &'r str, label: &str) -> Option<&'r str> {
    report.split_once(label)?.1.split_whitespace().next()
}

/// wrk's times: `12.3us`, `1.2ms`, `3.4s`.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let factor = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor)
}
