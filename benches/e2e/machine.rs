//! What the figures were measured on: absolutes do not travel, so the report says where from.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::{ENTERED, Processors, output_of, pause};
use crate::contenders::Programs;
use crate::engines::Engines;
use crate::lab::{Lab, Namespace};

/// The fact that says how busy the machine was before the run.
const BUSY: &str = "busy before";

/// How long that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A share of the processors' time that nobody notices in the figures.
const LITTLE: f64 = 0.05;

/// The machine, the programs and the settings of a run.
#[derive(Debug)]
pub struct Machine {
    /// Name and value, in the order of the report.
    facts: Vec<(&'static str, String)>,
    programs: Value,
    /// Name and version of each program, short.
    versions: Vec<String>,
    /// Share of the processors' time that others took before the run.
    busy: f64,
}

impl Machine {
    /// Asks the machine and the lab.
    pub fn look(lab: &Lab, programs: &Programs, engines: &Engines, settings: String) -> Machine {
        let before = Processors::now();
        pause(LOOK);
        let busy = Processors::now().busy_since(before);
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut facts = vec![
            ("kernel", first_line("/proc/sys/kernel/osrelease")),
            ("processor", format!("{}, {cores} cores", processor())),
            (BUSY, format!("{:.0} % of the processors had other work", 100.0 * busy)),
            ("congestion control", congestion_control(lab)),
            ("settings", settings),
            ("tools", tools()),
        ];
        facts.extend(engines.facts.iter().cloned());
        let mut list = serde_json::Map::new();
        let mut versions = Vec::new();
        for (contender, program) in &programs.0 {
            // Of a package the version is the last word; of what says its own, too.
            let last = program.version.split_whitespace().last().unwrap_or("of no version");
            versions.push(format!("{} {last}", contender.name()));
            let path = program.path.display().to_string();
            let text = format!("{path}: {} (sha256 {}…)", program.version, program.digest);
            facts.push((contender.name(), text));
            let entry =
                json!({ "path": path, "version": program.version, "sha256": program.digest });
            list.insert(contender.name().to_owned(), entry);
        }
        Machine { facts, programs: Value::Object(list), versions, busy }
    }

    /// One fact per line.
    pub fn text(&self) -> String {
        self.facts.iter().fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "{name:<20}{value}");
            out
        })
    }

    /// The machine and the settings, and what was compared, in a line each.
    pub fn lines(&self) -> [String; 2] {
        let of = |name: &str| {
            self.facts.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value.as_str())
        };
        let (kernel, control) = (of("kernel"), of("congestion control"));
        // Who competes with busy ends for the last free core loses more than who does not.
        let busy = match self.busy > LITTLE {
            true => format!(", {} before the run", of(BUSY)),
            false => String::new(),
        };
        let machine = format!(
            "{}, Linux {kernel}{busy}; congestion control: {control}; {}.",
            of("processor"),
            of("settings")
        );
        [machine, self.versions.join(", ") + "."]
    }

    /// All facts and the programs.
    pub fn json(&self) -> Value {
        let mut object = serde_json::Map::new();
        for (name, value) in &self.facts {
            object.insert((*name).to_owned(), json!(value));
        }
        object.insert("programs".into(), self.programs.clone());
        Value::Object(object)
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown".into(), |(_, name)| name.trim().to_owned())
}

/// It is a setting of each network namespace: the server's, the helpers' and the guest clients'.
fn congestion_control(lab: &Lab) -> String {
    let of = |net: Option<&Namespace>| net?.sysctl_value("net.ipv4.tcp_congestion_control").ok();
    // Every guest is such a fresh namespace.
    let guest = Namespace::new(&lab.agent, Command::new("unshare").args(["--net", ENTERED])).ok();
    let [server, host, guest] =
        [of(Some(&lab.ext)), of(lab.hosts.first().map(|h| &h.net)), of(guest.as_ref())]
            .map(|name| name.unwrap_or_else(|| "unknown".into()));
    if server == host && host == guest {
        return server;
    }
    format!("server {server}, host {host}, guest {guest}")
}

/// The versions of the load generators and of the web server.
fn tools() -> String {
    let format = "--showformat=${Package} ${Version}\\n";
    let packages = ["iperf3", "wrk", "sockperf", "nginx"];
    let said = output_of(Command::new("dpkg-query").args(["-W", format]).args(packages));
    said.map_or("unknown".into(), |text| text.lines().collect::<Vec<_>>().join(", "))
}
