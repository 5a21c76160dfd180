//! `tapway port`.

use std::io::Write;

use clap::{Args, Subcommand};

use super::instances::Candidate;
use super::table::{Align, Table};
use super::{Instances, ShowError, print, print_json};
use crate::cli::complete;
use crate::cli::publish::parse_rules;
use crate::control::api::ClientError;
use crate::gate::forward::ForwardId;
use crate::observe::{HostEnd, PortKind, PortRecord};

/// What `tapway port --help` begins with.
pub(super) const ABOUT: &str = "\
        Adds, removes and lists published ports (host to guest) and exposed ports (guest \
        to host) of a running instance. Established connections outlive the removal of the port \
        that they came through.\n\n\
        INSTANCE may be left out when exactly one runs.";

/// Arguments of `tapway port`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "EXAMPLES\n  \
        tapway port add web 8080:80\n  \
        tapway port add web 127.0.0.1:5000-5010:6000-6010/udp unix:/run/user/1000/web.sock:80\n  \
        tapway port add --expose-host web 5432\n  \
        tapway port list web\n  \
        tapway port rm web 3 8080:80\n\n\
        EXIT STATUS\n  \
        0  done\n  \
        1  failed; ports named before the one that failed stay added or removed\n  \
        2  bad command line, or a SPEC that is none")]
pub struct PortArguments {
    #[command(subcommand)]
    verb: PortVerb,
}

#[derive(Clone, Debug, Subcommand)]
enum PortVerb {
    /// Publish or expose ports
    ///
    /// Prints each port that was added, with its number and the host port that was picked for it.
    Add {
        /// The instance, and ports in the grammar of --publish: 8080:80,
        /// 127.0.0.1:5000-5010:6000-6010, 8053:53/udp, :80 for a free host port, unix:PATH:80
        #[arg(value_names = ["[INSTANCE] SPEC"], required = true, num_args = 1..,
            add = complete::instances())]
        words: Vec<String>,

        /// SPEC is in the grammar of --expose-host: ports of the host for the guest
        #[arg(long)]
        expose_host: bool,

        /// Listen on the host only while something listens inside
        #[arg(long, conflicts_with = "expose_host")]
        when_listening: bool,

        /// Print a line of JSON for each port
        #[arg(long)]
        json: bool,
    },
    /// Remove ports
    Rm {
        /// The instance, and ports: their numbers in `tapway port list`, or the SPEC that added
        /// them
        #[arg(value_names = ["[INSTANCE] ID|SPEC"], required = true, num_args = 1..,
            add = complete::instances())]
        words: Vec<String>,

        /// SPEC is in the grammar of --expose-host
        #[arg(long)]
        expose_host: bool,

        /// Print a line of JSON for each port that was removed
        #[arg(long)]
        json: bool,
    },
    /// List ports
    ///
    /// A published port behind which nothing listens is marked "no listener inside".
    List {
        /// The instance
        #[arg(add = complete::instances())]
        instance: Option<String>,

        /// Print a line of JSON for each port
        #[arg(long)]
        json: bool,
    },
}

fn kind(expose_host: bool) -> PortKind {
    if expose_host { PortKind::Expose } else { PortKind::Publish }
}

pub(super) fn run(
    arguments: &PortArguments,
    instances: &Instances,
    out: &mut dyn Write,
) -> Result<(), ShowError> {
    match &arguments.verb {
        PortVerb::Add { words, expose_host, when_listening, json } => {
            let kind = kind(*expose_host);
            let add = |of: Candidate<'_>, spec: &str| of.client().add(kind, spec, *when_listening);
            // None is added if one is mistaken.
            let check = |spec: &str| match parse_rules(kind, spec) {
                Ok(_) => Ok(()),
                Err(why) => Err(ShowError::Spec(why)),
            };
            each(words, instances, *json, out, check, add)
        }
        PortVerb::Rm { words, expose_host, json } => {
            let kind = kind(*expose_host);
            each(
                words,
                instances,
                *json,
                out,
                |_| Ok(()),
                |of, word| match word.parse() {
                    Ok(id) => of.client().remove(ForwardId(id)),
                    Err(_) => of.client().remove_spec(kind, word),
                },
            )
        }
        PortVerb::List { instance, json } => {
            let records = instances.with(instance.as_deref(), |of| of.client().forwards())??;
            match json {
                true => records.iter().try_for_each(|record| print_json(out, record)),
                false => print(out, &listing(&records)),
            }
        }
    }
}

/// Does `perform` for each port that `words` name, if all pass `check`, and prints what it concerned.
fn each(
    words: &[String],
    instances: &Instances,
    json: bool,
    out: &mut dyn Write,
    check: impl Fn(&str) -> Result<(), ShowError>,
    perform: impl Fn(Candidate<'_>, &str) -> Result<Vec<PortRecord>, ClientError>,
) -> Result<(), ShowError> {
    let (instance, ports) = split(words, |name| instances.is_up(name));
    ports.iter().try_for_each(|port| check(port))?;
    instances.with(instance, |of| {
        for port in ports {
            for record in perform(of, port)? {
                match json {
                    true => print_json(out, &record)?,
                    false => print(out, &(line(&record) + "\n"))?,
                }
            }
        }
        Ok(())
    })?
}

/// The instance, where one is named, and the ports.
///
/// A name may look like a port ("80") and a wrong name must not be taken for one. So the first of
/// several words is a name if an instance has it or if it cannot be a port.
fn split(words: &[String], is_up: impl Fn(&str) -> bool) -> (Option<&str>, &[String]) {
    match words {
        [first, rest @ ..] if !rest.is_empty() && (is_up(first) || !like_port(first)) => {
            (Some(first), rest)
        }
        // A word alone is a port. If it is none, that is what is told.
        _ => (None, words),
    }
}

fn like_port(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        || word.contains([':', '/', '%'])
        || word == "auto"
}

fn line(record: &PortRecord) -> String {
    let (from, to) = ends(record);
    // A Unix socket in front has no transport to speak of.
    let transport = match (record.kind, &record.host) {
        (PortKind::Publish, HostEnd::Unix { .. }) => String::new(),
        _ => format!("/{}", record.transport),
    };
    format!("{}: {} {from}{transport} -> {to}", record.id.0, record.kind)
}

/// Where connections come to, and where they lead.
fn ends(record: &PortRecord) -> (String, String) {
    let (host, guest) = (record.host.to_string(), record.guest.to_string());
    match record.kind {
        PortKind::Publish => (host, guest),
        PortKind::Expose => (guest, host),
    }
}

fn listing(records: &[PortRecord]) -> String {
    let mut table = Table::new([
        ("ID", Align::Right),
        ("KIND", Align::Left),
        ("PROTO", Align::Left),
        ("LISTENS AT", Align::Left),
        ("LEADS TO", Align::Left),
        ("REMARK", Align::Left),
    ]);
    for record in records {
        let (from, to) = ends(record);
        table.row([
            record.id.0.to_string(),
            record.kind.to_string(),
            record.transport.to_string(),
            from,
            to,
            record.remark().to_owned(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::forward::Transport;
    use crate::observe::GuestEnd;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_first_word_is_an_instance_if_it_is_no_port() {
        let running = |name: &str| name == "80" || name == "web";
        for (text, instance, ports) in [
            ("web 8080:80", Some("web"), 1),
            ("80 8080:80", Some("80"), 1),
            ("8080:80", None, 1),
            ("80", None, 1),
            ("8080:80 9090:90", None, 2),
            ("unix:/a.sock:80 9090", None, 2),
            // A mistake is named as what it was meant to be.
            ("wbe 8080:80", Some("wbe"), 1),
        ] {
            let words = words(text);
            let (name, rest) = split(&words, running);
            assert_eq!((name, rest.len()), (instance, ports), "{text}");
        }
    }

    #[test]
    fn ports_read_from_where_connections_come() {
        let published = PortRecord {
            id: ForwardId(3),
            kind: PortKind::Publish,
            transport: Transport::Tcp,
            host: HostEnd::Ports {
                address: None,
                interface: None,
                first_port: 8080,
                last_port: 8081,
            },
            guest: GuestEnd { address: None, first_port: 80, last_port: 81 },
            auto: false,
            when_listening: false,
            listening: Some(false),
        };
        let exposed = PortRecord {
            id: ForwardId(4),
            kind: PortKind::Expose,
            host: HostEnd::Unix { unix: "/run/db".into() },
            listening: None,
            ..published.clone()
        };
        assert_eq!(line(&published), "3: publish *:8080-8081/tcp -> *:80-81");
        assert_eq!(line(&exposed), "4: expose *:80-81/tcp -> unix:/run/db");
        let socket = PortRecord { kind: PortKind::Publish, ..exposed.clone() };
        assert_eq!(line(&socket), "4: publish unix:/run/db -> *:80-81");
        assert_eq!(
            listing(&[published, exposed]),
            "ID  KIND     PROTO  LISTENS AT   LEADS TO      REMARK\n \
             3  publish  tcp    *:8080-8081  *:80-81       no listener inside\n \
             4  expose   tcp    *:80-81      unix:/run/db\n"
        );
    }
}
