//! `tapway stats`.

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;

use super::table::{Align, Table, count, time};
use super::{Instances, ShowError, print, print_json, prometheus};
use crate::cli::complete;
use crate::observe::{FlowTransport, Stats, Traffic};

/// What `tapway stats --help` begins with.
pub(super) const ABOUT: &str = "\
        Prints the counters of an instance since its start: the guest link, flows by \
        protocol, published and exposed ports, drops by reason, and what is held in memory now.\n\n\
        INSTANCE may be left out when exactly one runs.";

/// Arguments of `tapway stats`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "EXAMPLES\n  \
        tapway stats web\n  \
        tapway stats web --json | jq .drops.forged_source\n  \
        tapway stats web --prometheus > /var/lib/node_exporter/tapway-web.prom\n\n\
        EXIT STATUS\n  \
        0  printed\n  \
        1  failed\n  \
        2  bad command line")]
pub struct StatsArguments {
    /// The instance
    #[arg(add = complete::instances())]
    instance: Option<String>,

    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// Print metrics in Prometheus' text format
    #[arg(long)]
    prometheus: bool,
}

pub(super) fn run(
    arguments: &StatsArguments,
    instances: &Instances,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    let (name, stats) = instances.with(arguments.instance.as_deref(), |of| {
        of.client().stats().map(|stats| (of.name().to_owned(), stats))
    })??;
    if arguments.json {
        print_json(out, &stats)
    } else if arguments.prometheus {
        print(out, &prometheus::text(&name, &stats))
    } else {
        print(out, &text(&stats))
    }
}

fn text(stats: &Stats) -> String {
    let workers = match stats.workers {
        0 | 1 => String::new(),
        several => format!(", {several} workers"),
    };
    let mut text = format!("up {}{workers}\n\n", time(stats.uptime));
    let traffic = |traffic: &Traffic| {
        [
            count(traffic.bytes_to_host),
            count(traffic.packets_to_host),
            count(traffic.bytes_to_guest),
            count(traffic.packets_to_guest),
        ]
    };
    let mut flows = Table::new([
        ("", Align::Left),
        ("OPEN", Align::Right),
        ("OPENED", Align::Right),
        ("REFUSED", Align::Right),
        ("BYTES OUT", Align::Right),
        ("PACKETS OUT", Align::Right),
        ("BYTES IN", Align::Right),
        ("PACKETS IN", Align::Right),
    ]);
    let mut row = |name: String, counts: [String; 3], carried: &Traffic| {
        let [open, opened, refused] = counts;
        let [bytes_out, packets_out, bytes_in, packets_in] = traffic(carried);
        flows.row([name, open, opened, refused, bytes_out, packets_out, bytes_in, packets_in]);
    };
    row("link".to_owned(), Default::default(), &stats.frames);
    for transport in [FlowTransport::Tcp, FlowTransport::Udp, FlowTransport::Icmp] {
        let of = stats.of(transport);
        let counts = [of.open, of.opened, of.refused].map(count);
        row(transport.to_string(), counts, &of.traffic);
    }
    for forward in &stats.forwards {
        let counts = [String::new(), count(forward.connections), count(forward.refused)];
        row(format!("port {}", forward.id.0), counts, &forward.traffic);
    }
    text.push_str(&flows.text());
    let drops = drops(stats);
    if !drops.is_empty() {
        text.push_str("\ndropped\n");
        for (reason, number) in drops {
            // A String takes whatever is written to it.
            let _ = writeln!(text, "  {number:>5}  {reason}", number = count(number));
        }
    }
    let memory = &stats.memory;
    let _ = write!(
        text,
        "\nheld\n  {:>5}  bytes to the guest, not acknowledged\n  {:>5}  bytes from the guest, not \
         taken by the host\n  {:>5}  bytes of incomplete packets\n  {:>5}  timers\n",
        count(memory.unacknowledged_bytes),
        count(memory.backlog_bytes),
        count(memory.reassembly_bytes),
        count(memory.timers),
    );
    text
}

/// What was dropped at all, the device's drops first.
fn drops(stats: &Stats) -> Vec<(&str, u64)> {
    let device = [
        ("by the guest's interface, to the host", stats.tap.dropped_to_host),
        ("by the guest's interface, to the guest", stats.tap.dropped_to_guest),
    ];
    let reasons = stats.drops.0.iter().map(|(reason, &number)| (reason.as_str(), number));
    device.into_iter().chain(reasons).filter(|&(_, number)| number != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::forward::ForwardId;
    use crate::observe::{DropTable, ForwardStats};

    #[test]
    fn only_drops_that_occurred_are_printed() {
        let drops = [("forged_source".to_owned(), 3), ("hop_limit".to_owned(), 0)];
        let mut stats = Stats { drops: DropTable(drops.into()), ..Stats::default() };
        stats.tap.dropped_to_guest = 7;
        stats.tcp.opened = 1234;
        stats.forwards.push(ForwardStats {
            id: ForwardId(9),
            connections: 5,
            refused: 1,
            traffic: Traffic::default(),
        });
        let text = text(&stats);
        let has = |words: &[&str]| {
            text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words)
        };
        assert!(has(&["3", "forged_source"]), "{text}");
        assert!(has(&["7", "by", "the", "guest's", "interface,", "to", "the", "guest"]), "{text}");
        assert!(has(&["tcp", "0", "1.2k", "0", "0", "0", "0", "0"]), "{text}");
        assert!(has(&["port", "9", "5", "1", "0", "0", "0", "0"]), "{text}");
        assert!(!text.contains("hop_limit"), "{text}");
    }
}
