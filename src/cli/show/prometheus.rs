//! Counters in Prometheus' text exposition format, version 0.0.4: families with HELP and TYPE,
//! each once and in one piece; names of counters end in `_total`, units are base units.

use std::fmt::Write;

use crate::observe::{FlowTransport, Stats, Traffic};

/// Families, each a heading with its samples.
struct Families<'a> {
    instance: &'a str,
    text: String,
    name: &'static str,
}

impl Families<'_> {
    fn begin(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // A String takes whatever is written to it.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.text, "{}{{instance=\"{}\"", self.name, escaped(self.instance));
        for (label, text) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escaped(text));
        }
        let _ = writeln!(self.text, "}} {value}");
    }
}

/// A label's value: backslash, quote and line feed escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All counters of the instance `name`.
pub(super) fn text(name: &str, stats: &Stats) -> String {
    let mut families = Families { instance: name, text: String::new(), name: "" };
    let out = &mut families;
    out.begin("tapway_uptime_seconds", "gauge", "Time since the instance started.");
    out.sample(&[], stats.uptime.as_secs_f64());
    out.begin("tapway_workers", "gauge", "Workers that share the flows.");
    out.sample(&[], stats.workers as f64);
    link(out, stats);
    flows(out, stats);
    forwards(out, stats);
    out.begin("tapway_drops_total", "counter", "Frames and packets that went nowhere.");
    for (reason, number) in &stats.drops.0 {
        out.sample(&[("reason", reason)], number);
    }
    held(out, stats);
    families.text
}

const TO_HOST: (&str, &str) = ("direction", "to_host");
const TO_GUEST: (&str, &str) = ("direction", "to_guest");

fn bytes(out: &mut Families<'_>, labels: &[(&str, &str)], traffic: &Traffic) {
    out.sample(&[labels, &[TO_HOST]].concat(), traffic.bytes_to_host);
    out.sample(&[labels, &[TO_GUEST]].concat(), traffic.bytes_to_guest);
}

fn packets(out: &mut Families<'_>, labels: &[(&str, &str)], traffic: &Traffic) {
    out.sample(&[labels, &[TO_HOST]].concat(), traffic.packets_to_host);
    out.sample(&[labels, &[TO_GUEST]].concat(), traffic.packets_to_guest);
}

fn link(out: &mut Families<'_>, stats: &Stats) {
    out.begin("tapway_link_frames_total", "counter", "Frames on the guest link.");
    packets(out, &[], &stats.frames);
    out.begin("tapway_link_bytes_total", "counter", "Bytes of frames on the guest link.");
    bytes(out, &[], &stats.frames);
    let help = "Frames that the guest's interface dropped.";
    out.begin("tapway_tap_dropped_total", "counter", help);
    out.sample(&[TO_HOST], stats.tap.dropped_to_host);
    out.sample(&[TO_GUEST], stats.tap.dropped_to_guest);
}

fn flows(out: &mut Families<'_>, stats: &Stats) {
    let transports = [FlowTransport::Tcp, FlowTransport::Udp, FlowTransport::Icmp]
        .map(|transport| (transport.to_string(), stats.of(transport)));
    out.begin("tapway_flows", "gauge", "Flows now.");
    for (transport, of) in &transports {
        out.sample(&[("transport", transport)], of.open);
    }
    out.begin("tapway_flows_opened_total", "counter", "Flows that began.");
    for (transport, of) in &transports {
        out.sample(&[("transport", transport)], of.opened);
    }
    let help = "Flows that could not begin: limits, no descriptor.";
    out.begin("tapway_flows_refused_total", "counter", help);
    for (transport, of) in &transports {
        out.sample(&[("transport", transport)], of.refused);
    }
    out.begin("tapway_flow_bytes_total", "counter", "Bytes of payload that flows carried.");
    for (transport, of) in &transports {
        bytes(out, &[("transport", transport)], &of.traffic);
    }
    out.begin("tapway_flow_packets_total", "counter", "Packets that flows carried.");
    for (transport, of) in &transports {
        packets(out, &[("transport", transport)], &of.traffic);
    }
}

fn forwards(out: &mut Families<'_>, stats: &Stats) {
    let forwards = || stats.forwards.iter().map(|of| (of.id.0.to_string(), of));
    let help = "Connections through a published or exposed port.";
    out.begin("tapway_forward_connections_total", "counter", help);
    for (id, of) in forwards() {
        out.sample(&[("forward", &id)], of.connections);
    }
    let help = "Connections through a port that were reset because nothing answered.";
    out.begin("tapway_forward_refused_total", "counter", help);
    for (id, of) in forwards() {
        out.sample(&[("forward", &id)], of.refused);
    }
    out.begin("tapway_forward_bytes_total", "counter", "Bytes of payload through a port.");
    for (id, of) in forwards() {
        bytes(out, &[("forward", &id)], &of.traffic);
    }
}

fn held(out: &mut Families<'_>, stats: &Stats) {
    let memory = &stats.memory;
    out.begin("tapway_held_bytes", "gauge", "Bytes held for the guest now.");
    out.sample(&[("what", "unacknowledged")], memory.unacknowledged_bytes);
    out.sample(&[("what", "backlog")], memory.backlog_bytes);
    out.sample(&[("what", "reassembly")], memory.reassembly_bytes);
    out.begin("tapway_timers", "gauge", "Entries in the timer wheel.");
    out.sample(&[], memory.timers);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::base::DropCounters;
    use crate::gate::forward::ForwardId;
    use crate::observe::{DropTable, ForwardStats};

    fn stats() -> Stats {
        let mut stats = Stats { uptime: Duration::from_millis(1500), ..Stats::default() };
        stats.drops = DropTable::from(&DropCounters::default());
        stats.udp.traffic.bytes_to_guest = 77;
        for id in [1, 2] {
            let traffic = Traffic { bytes_to_host: 5, ..Traffic::default() };
            stats.forwards.push(ForwardStats {
                id: ForwardId(id),
                connections: 3,
                refused: 0,
                traffic,
            });
        }
        stats
    }

    #[test]
    fn families_are_whole_and_samples_unique() {
        let text = text("web", &stats());
        let mut families = HashSet::new();
        let mut samples = HashSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap();
                assert!(families.insert(family), "{family} begins twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert!(sample.starts_with(&format!("{family}{{instance=\"web\"")), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(samples.insert(sample), "{sample} is there twice");
            }
        }
        for line in [
            "tapway_uptime_seconds{instance=\"web\"} 1.5",
            "tapway_flow_bytes_total{instance=\"web\",transport=\"udp\",direction=\"to_guest\"} 77",
            "tapway_forward_connections_total{instance=\"web\",forward=\"2\"} 3",
            "tapway_drops_total{instance=\"web\",reason=\"forged_source\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
