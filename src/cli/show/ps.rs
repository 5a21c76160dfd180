//! `tapway ps`.

use std::io::Write;

use clap::Args;

use super::table::{Align, Table, time};
use super::{Instances, ShowError, print, print_json};
use crate::observe::Info;

/// What `tapway ps --help` begins with.
pub(super) const ABOUT: &str = "\
        Lists the instances of tapway that you run: name, process, the guest's addresses, \
        published and exposed ports (a range counts once), time since the start, and command.\n\n\
        Socket files that a killed instance has left behind are removed.";

/// Arguments of `tapway ps`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "EXAMPLES\n  \
        tapway ps\n  \
        tapway ps -q | xargs -n1 tapway stats\n  \
        tapway ps --json | jq -r '.[].guest[0]'\n\n\
        EXIT STATUS\n  \
        0  listed, also if none runs\n  \
        1  an instance did not answer; the others are listed")]
pub struct PsArguments {
    /// Print a JSON array, with everything that instances tell of themselves
    #[arg(long, conflicts_with = "quiet")]
    json: bool,

    /// Print names only, one in a line
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(
    arguments: &PsArguments,
    instances: &Instances,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    if arguments.quiet {
        return instances
            .up_and_tidied()
            .into_iter()
            .try_for_each(|name| print(out, &(name + "\n")));
    }
    let mut found = Vec::new();
    let mut failure = None;
    for (_, answer) in instances.running() {
        match answer {
            Ok(info) => found.push(info),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match arguments.json {
        true => print_json(out, &found)?,
        false => print(out, &listing(&found))?,
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn listing(instances: &[Info]) -> String {
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("PID", Align::Right),
        ("ADDRESSES", Align::Left),
        ("PORTS", Align::Right),
        ("UPTIME", Align::Right),
        ("COMMAND", Align::Left),
    ]);
    for info in instances {
        let addresses: Vec<String> = info.guest.iter().map(ToString::to_string).collect();
        let command = match info.command.is_empty() {
            true => format!("({})", info.namespace),
            false => info.command.join(" "),
        };
        table.row([
            info.name.clone(),
            info.pid.to_string(),
            addresses.join(","),
            info.ports.to_string(),
            time(info.uptime),
            command,
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_instance_is_a_line() {
        let info = Info {
            name: "web".to_owned(),
            pid: 4711,
            version: String::new(),
            protocol: 1,
            guest: vec!["10.0.2.100".parse().unwrap(), "fd00::100".parse().unwrap()],
            gateway: vec![],
            dns: vec![],
            mtu: 1500,
            ifname: "tap0".to_owned(),
            namespace: "/proc/99/ns/net".to_owned(),
            command: vec!["nginx".to_owned(), "-g".to_owned()],
            started: 0,
            uptime: Duration::from_secs(725),
            ports: 2,
        };
        let attached = Info { name: "x".to_owned(), command: vec![], ..info.clone() };
        assert_eq!(
            listing(&[info, attached]),
            "NAME   PID  ADDRESSES             PORTS  UPTIME  COMMAND\n\
             web   4711  10.0.2.100,fd00::100      2  12m05s  nginx -g\n\
             x     4711  10.0.2.100,fd00::100      2  12m05s  (/proc/99/ns/net)\n"
        );
    }
}
