//! `tapway flows`.

use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::instances::Candidate;
use super::table::{Align, Table, count, or_dash, round_trip, time};
use super::{Instances, ShowError, print, print_json};
use crate::cli::complete;
use crate::control::api::ClientError;
use crate::observe::{Direction, FlowQuery, FlowRecord, FlowTransport};
use crate::sys::terminal;

/// What `tapway flows --help` begins with.
pub(super) const ABOUT: &str = "\
        Lists what goes through an instance, one line for each TCP connection, UDP mapping \
        and ICMP echo identifier, as `conntrack -L` and `ss -i` do for the kernel.\n\n\
        INSTANCE may be left out when exactly one runs.";

/// Arguments of `tapway flows`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "COLUMNS\n  \
        PROTO    tcp, udp or icmp\n  \
        DIR      out: begun by the guest; in: through a published port\n  \
        PATH     tap: over the guest's link; spliced: from socket to socket\n  \
        STATE    of TCP as in RFC 9293, seen from tapway's end towards the guest;\n           \
                 of the others unreplied or replied\n  \
        GUEST    the guest's address and port\n  \
        PEER     the other end, as the guest knows it\n  \
        HOST     the host socket's own address; with \"=>\" where it leads if not to PEER\n  \
        B/P OUT  bytes of payload and packets from the guest\n  \
        B/P IN   bytes of payload and packets to the guest\n  \
        AGE      time since it began\n  \
        IDLE     time since the last packet\n  \
        RTT      round-trip time of the host socket (TCP_INFO)\n  \
        RETR     segments sent again, to the peer/to the guest\n  \
        VIA      number of the published or exposed port that it came through\n\n\
        EXAMPLES\n  \
        tapway flows web --watch\n  \
        tapway flows --proto tcp --port 443\n  \
        tapway flows web --json | jq 'select(.rtt_us > 100000) | .peer'\n\n\
        EXIT STATUS\n  \
        0  listed\n  \
        1  failed\n  \
        2  bad command line")]
pub struct FlowsArguments {
    /// The instance
    #[arg(add = complete::instances())]
    instance: Option<String>,

    /// Only tcp, udp or icmp
    #[arg(long, value_name = "PROTO", value_parser = transport)]
    proto: Option<FlowTransport>,

    /// Only with this port at either end
    #[arg(long, value_parser = port)]
    port: Option<u16>,

    /// Only with this address at either end
    #[arg(long, value_name = "ADDR")]
    address: Option<IpAddr>,

    /// Print a line of JSON for each
    #[arg(long)]
    json: bool,

    /// List again and again [default: every second]
    ///
    /// On a terminal the list is redrawn and cut to the screen; otherwise lists follow each other,
    /// with an empty line in front of each further one. Ends with the instance.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = interval
    )]
    watch: Option<Duration>,
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|&port| port > 0).ok_or("ports are 1 to 65535")
}

fn transport(text: &str) -> Result<FlowTransport, &'static str> {
    match text {
        "tcp" => Ok(FlowTransport::Tcp),
        "udp" => Ok(FlowTransport::Udp),
        "icmp" => Ok(FlowTransport::Icmp),
        _ => Err("not one of tcp, udp, icmp"),
    }
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or("not a number of seconds from 0.1 to 3600")
}

pub(super) fn run(
    arguments: &FlowsArguments,
    instances: &Instances,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    instances.with(arguments.instance.as_deref(), |of| {
        list(arguments, of, out)?;
        let Some(interval) = arguments.watch else { return Ok(()) };
        // Once listed, the end of the instance is the end of the list.
        match watch(arguments, of, interval, out) {
            Err(ShowError::Client(ClientError::Absent(_))) => Ok(()),
            result => result,
        }
    })?
}

fn list(
    arguments: &FlowsArguments,
    of: Candidate<'_>,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    let query = FlowQuery {
        transport: arguments.proto,
        port: arguments.port,
        address: arguments.address,
        ..FlowQuery::default()
    };
    let flows = of.client().flows(query)?;
    if arguments.json {
        flows.iter().try_for_each(|flow| print_json(out, flow))?;
    } else {
        let lines = table(&flows).lines();
        match screen(arguments) {
            Some(size) => print(out, &redrawn(&lines, size))?,
            None => lines.iter().try_for_each(|line| print(out, &format!("{line}\n")))?,
        }
    }
    out.flush().map_err(ShowError::Output)
}

fn watch(
    arguments: &FlowsArguments,
    of: Candidate<'_>,
    interval: Duration,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
    let stdout = std::io::stdout();
    loop {
        // A wait that ends early when the reader has gone away.
        let mut reader = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut reader, timeout) {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(ShowError::Output(error.into())),
        }
        if !arguments.json && screen(arguments).is_none() {
            print(out, "\n")?;
        }
        list(arguments, of, out)?;
    }
}

/// Rows and columns of the terminal on which the list is redrawn.
fn screen(arguments: &FlowsArguments) -> Option<(u16, u16)> {
    arguments.watch?;
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let (rows, columns) = terminal::size(stdout.as_fd()).ok()?;
    (rows > 1 && columns > 1).then_some((rows, columns))
}

/// The lines that fit, drawn over what was there: cursor home, each line's old rest erased, then
/// the rest of the screen (ECMA-48 CUP, EL, ED).
fn redrawn(lines: &[String], (rows, columns): (u16, u16)) -> String {
    let (rows, columns) = (usize::from(rows), usize::from(columns));
    let mut text = "\x1b[H".to_owned();
    // The cursor needs the last row.
    let fitting = rows - 1;
    let shown = if lines.len() > fitting { fitting - 1 } else { lines.len() };
    for line in &lines[..shown.min(lines.len())] {
        text.extend(line.chars().take(columns));
        text.push_str("\x1b[K\n");
    }
    if shown < lines.len() {
        let more = format!("and {} more", lines.len() - shown);
        text.extend(more.chars().take(columns));
        text.push_str("\x1b[K\n");
    }
    text.push_str("\x1b[J");
    text
}

fn table(flows: &[FlowRecord]) -> Table<14> {
    let mut table = Table::new([
        ("PROTO", Align::Left),
        ("DIR", Align::Left),
        ("PATH", Align::Left),
        ("STATE", Align::Left),
        ("GUEST", Align::Left),
        ("PEER", Align::Left),
        ("HOST", Align::Left),
        ("B/P OUT", Align::Right),
        ("B/P IN", Align::Right),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
        ("RTT", Align::Right),
        ("RETR", Align::Right),
        ("VIA", Align::Left),
    ]);
    for flow in flows {
        table.row(row(flow));
    }
    table
}

fn row(flow: &FlowRecord) -> [String; 14] {
    let direction = match flow.direction {
        Direction::Outbound => "out",
        Direction::Inbound => "in",
    };
    let elsewhere = flow.host_peer.filter(|&peer| peer != flow.peer);
    let host = match (flow.host_local, elsewhere) {
        (Some(local), Some(peer)) => format!("{local}=>{peer}"),
        (Some(local), None) => local.to_string(),
        (None, Some(peer)) => format!("=>{peer}"),
        (None, None) => "-".to_owned(),
    };
    let retransmits = match (flow.retransmits, flow.retransmits_to_guest) {
        (None, None) => "-".to_owned(),
        (host, guest) => format!(
            "{}/{}",
            or_dash(host, |n| count(n.into())),
            or_dash(guest, |n| count(n.into()))
        ),
    };
    let via = flow.rule.clone().or(flow.forward.map(|id| format!("port {}", id.0)));
    let traffic = &flow.traffic;
    [
        flow.transport.to_string(),
        direction.to_owned(),
        flow.path.to_string(),
        flow.state.to_string(),
        flow.guest.to_string(),
        flow.peer.to_string(),
        host,
        format!("{}/{}", count(traffic.bytes_to_host), count(traffic.packets_to_host)),
        format!("{}/{}", count(traffic.bytes_to_guest), count(traffic.packets_to_guest)),
        time(flow.age),
        time(flow.idle),
        or_dash(flow.rtt_us, round_trip),
        retransmits,
        or_dash(via, |via| via),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::forward::ForwardId;
    use crate::observe::{FlowPath, FlowState, Traffic};

    fn flow() -> FlowRecord {
        FlowRecord {
            id: 1,
            transport: FlowTransport::Tcp,
            direction: Direction::Inbound,
            path: FlowPath::Tap,
            state: FlowState::Established,
            guest: "10.0.2.100:80".parse().unwrap(),
            peer: "203.0.113.9:45678".parse().unwrap(),
            host_local: Some("192.0.2.7:8080".parse().unwrap()),
            host_peer: Some("203.0.113.9:45678".parse().unwrap()),
            traffic: Traffic {
                bytes_to_host: 1500,
                packets_to_host: 2,
                bytes_to_guest: 3,
                packets_to_guest: 40_000,
            },
            age: Duration::from_secs(61),
            idle: Duration::from_millis(200),
            rtt_us: Some(1250),
            retransmits: Some(4),
            retransmits_to_guest: Some(0),
            forward: Some(ForwardId(5)),
            rule: None,
        }
    }

    #[test]
    fn a_flow_is_a_line() {
        let lines = table(&[flow()]).lines();
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        let expected = [
            "tcp",
            "in",
            "tap",
            "established",
            "10.0.2.100:80",
            "203.0.113.9:45678",
            "192.0.2.7:8080",
            "1.5k/2",
            "3/40k",
            "1m01s",
            "0.2s",
            "1.2ms",
            "4/0",
            "port",
            "5",
        ];
        assert_eq!(words, expected);
        let translated = FlowRecord {
            host_peer: Some("127.0.0.1:53".parse().unwrap()),
            transport: FlowTransport::Udp,
            rtt_us: None,
            retransmits: None,
            retransmits_to_guest: None,
            forward: None,
            ..flow()
        };
        let row = row(&translated);
        assert_eq!(row[6], "192.0.2.7:8080=>127.0.0.1:53");
        assert_eq!(row[11..], ["-", "-", "-"]);
    }

    #[test]
    fn a_list_is_cut_to_the_screen() {
        let lines = ["one", "two", "three"].map(str::to_owned);
        assert_eq!(redrawn(&lines, (4, 4)), "\x1b[Hone\x1b[K\ntwo\x1b[K\nthre\x1b[K\n\x1b[J");
        assert_eq!(redrawn(&lines, (3, 80)), "\x1b[Hone\x1b[K\nand 2 more\x1b[K\n\x1b[J");
    }

    #[test]
    fn intervals_have_a_reasonable_length() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e9", "x", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
