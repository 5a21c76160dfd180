//! `pesto`: shows and changes the forwarding tables of a running instance, ours or the original's.
//!
//! The command line is read by `getopt_long`, options and the socket's path in any order. What the
//! options say is done one after the other on a copy of the tables, which then replaces them:
//!
//! - At first, specifications replace: the first one for a table clears it. `--add` and `--delete`
//!   say what those behind them do instead; `--clear` empties a table and says nothing else.
//! - `none` is for a table that has no rule of that transport.
//! - Nothing is sent when something fails, and what was sent is not answered: success says that
//!   the instance was told, not that it could.
//!
//! Status 0, or 1 for whatever goes wrong.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::getopt::{Flag, Getopt, GetoptError, Item, Order};
use super::table_spec::{self, Change, ChangeError, PortOption};
use crate::control::pesto::{Client, ClientError, HOST, PifTable, SPLICE};
use crate::gate::forward::PortRange;
use crate::gate::table::Caps;

/// Status of success.
const OK: u8 = 0;

/// Status of every failure.
const FAILED: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Add,
    Delete,
    Clear,
    Ports(PortOption),
    Show,
    Debug,
    Help,
    Version,
}

const TABLE: [Flag<Key>; 11] = [
    Flag::both(b'A', "add", false, Key::Add),
    Flag::both(b'D', "delete", false, Key::Delete),
    Flag::both(b'C', "clear", true, Key::Clear),
    Flag::both(b't', "tcp-ports", true, Key::Ports(PortOption::TCP)),
    Flag::both(b'u', "udp-ports", true, Key::Ports(PortOption::UDP)),
    Flag::both(b'T', "tcp-ns", true, Key::Ports(PortOption::TCP_NS)),
    Flag::both(b'U', "udp-ns", true, Key::Ports(PortOption::UDP_NS)),
    Flag::both(b's', "show", false, Key::Show),
    Flag::both(b'd', "debug", false, Key::Debug),
    Flag::both(b'h', "help", false, Key::Help),
    Flag::long("version", false, Key::Version),
];

const USAGE: &str = "\
Usage: pesto [OPTION]... PATH

Shows the ports that the instance of pasta or tapway with the control socket
PATH forwards, or changes them while it runs.

  -t, --tcp-ports SPEC	TCP ports of the host that lead into the guest
  -u, --udp-ports SPEC	the same for UDP
  -T, --tcp-ns SPEC	TCP ports of the guest's loopback that lead to the host's
  -U, --udp-ns SPEC	the same for UDP
  -A, --add		what follows is added; without -A and -D the first
			of -t and -u replaces all of both, of -T and -U likewise
  -D, --delete		what follows is deleted; rules have to match exactly
  -C, --clear PIF	delete all rules of HOST (-t, -u) or SPLICE (-T, -U)
  -s, --show		show the rules before and after
  -d, --debug		tell what happens
  -h, --help		show this text and exit
  --version		show the version and exit

SPEC is 'none', or [ADDRESS[%INTERFACE]/]PORTS, where PORTS is a list of
  80 or 80-90		these ports
  80:8080		port 80 here, port 8080 there
  80:10.0.0.2/8080	the same at an address of that side
  ~22 or ~20-25		not these
  all			all that are free and not for clients
  auto			only while something listens behind them
";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Wish {
    path: PathBuf,
    commands: Vec<Command>,
    show: bool,
    debug: bool,
}

/// A change of the tables, or of what the changes behind it do.
#[derive(Debug)]
enum Command {
    Mode(Mode),
    Clear(String),
    Ports(PortOption, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Replace,
    Add,
    Delete,
}

/// Why there is nothing to do but to say so.
enum NoWish {
    Help,
    Version,
    Wrong(Option<GetoptError>),
}

/// Why the tables are not changed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("Unsupported pif name {0}")]
    NoPif(String),
    #[error("Can't use {0}, no inbound interface")]
    NoInbound(PortOption),
    #[error("Can't use {0}, no outbound interface")]
    NoOutbound(PortOption),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("write: {0}")]
    Output(#[from] io::Error),
}

/// Acts on `arguments`, which `program` was called with. `ephemeral` are the ports that this host
/// hands out to clients.
///
/// # Errors
/// None: what goes wrong is written to `errors`. The status to exit with.
pub fn run(
    program: &OsStr,
    arguments: Vec<OsString>,
    ephemeral: PortRange,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    // Whoever does not read what is written does not want to know.
    match read(arguments) {
        Ok(wish) => match act(&wish, ephemeral, out, errors) {
            Ok(()) => OK,
            Err(failure) => {
                let _ = writeln!(errors, "{failure}");
                FAILED
            }
        },
        Err(NoWish::Help) => {
            let _ = out.write_all(USAGE.as_bytes());
            OK
        }
        Err(NoWish::Version) => {
            let _ = writeln!(out, "pesto {} (tapway)", env!("CARGO_PKG_VERSION"));
            OK
        }
        Err(NoWish::Wrong(error)) => {
            if let Some(error) = error {
                let _ = writeln!(errors, "{}: {error}", program.display());
            }
            let _ = errors.write_all(USAGE.as_bytes());
            FAILED
        }
    }
}

fn read(arguments: Vec<OsString>) -> Result<Wish, NoWish> {
    let mut wish = Wish::default();
    let mut paths = Vec::new();
    for item in Getopt::new(&TABLE, Order::Permute, arguments) {
        let (key, value) = match item.map_err(|error| NoWish::Wrong(Some(error)))? {
            Item::Option(key, value) => (key, value.unwrap_or_default()),
            Item::Word(word) => {
                paths.push(word);
                continue;
            }
        };
        let value = value.to_string_lossy().into_owned();
        match key {
            Key::Add => wish.commands.push(Command::Mode(Mode::Add)),
            Key::Delete => wish.commands.push(Command::Mode(Mode::Delete)),
            Key::Clear => wish.commands.push(Command::Clear(value)),
            Key::Ports(option) => wish.commands.push(Command::Ports(option, value)),
            Key::Show => wish.show = true,
            Key::Debug => wish.debug = true,
            Key::Help => return Err(NoWish::Help),
            Key::Version => return Err(NoWish::Version),
        }
    }
    match <[OsString; 1]>::try_from(paths) {
        Ok([path]) => Ok(Wish { path: path.into(), ..wish }),
        Err(_) => Err(NoWish::Wrong(None)),
    }
}

fn act(
    wish: &Wish,
    ephemeral: PortRange,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<(), Failure> {
    if wish.debug {
        writeln!(errors, "debug_flag=1, path=\"{}\"", wish.path.display())?;
    }
    let (client, mut tables) = Client::connect(&wish.path)?;
    if wish.debug {
        writeln!(errors, "Connected to passt/pasta control socket")?;
        for PifTable { pif, name, table } in &tables {
            let Caps(bits) = table.caps();
            let (count, caps) = (table.rules().len(), table.caps());
            writeln!(errors, "Receiving config for PIF {pif}")?;
            writeln!(errors, "PIF {pif}: {name}, {count} rules, capabilities {bits:#x}: {caps}")?;
        }
    }
    if wish.commands.is_empty() {
        return show("passt/pasta", &wish.path, &tables, out);
    }
    if wish.show {
        show("Previous", &wish.path, &tables, out)?;
    }
    change(&mut tables, &wish.commands, ephemeral)?;
    client.update(&tables)?;
    if wish.show {
        show("Updated", &wish.path, &tables, out)?;
    }
    Ok(())
}

fn show(which: &str, path: &Path, tables: &[PifTable], out: &mut dyn Write) -> Result<(), Failure> {
    let mut text = format!("{which} configuration ({})\n", path.display());
    for PifTable { name, table, .. } in tables {
        text += &format!("  {name}\n");
        for rule in table.rules() {
            text += &format!("    {rule}\n");
        }
    }
    out.write_all(text.as_bytes())?;
    Ok(())
}

/// Does what `commands` say, in their order.
fn change(
    tables: &mut [PifTable],
    commands: &[Command],
    ephemeral: PortRange,
) -> Result<(), Failure> {
    let mut mode = Mode::Replace;
    let mut replaced: Vec<u8> = Vec::new();
    for command in commands {
        match command {
            Command::Mode(new) => mode = *new,
            Command::Clear(name) => {
                let found = tables.iter_mut().find(|table| table.name == *name);
                found.ok_or_else(|| Failure::NoPif(name.clone()))?.table.clear();
            }
            Command::Ports(option, spec) => {
                let pif = if option.is_outbound() { SPLICE } else { HOST };
                let found = tables.iter_mut().find(|table| table.pif == pif);
                let table = &mut found.ok_or(match option.is_outbound() {
                    true => Failure::NoOutbound(*option),
                    false => Failure::NoInbound(*option),
                })?;
                if mode == Mode::Replace && !replaced.contains(&pif) {
                    table.table.clear();
                    replaced.push(pif);
                }
                let change = match mode {
                    Mode::Delete => Change::Delete,
                    Mode::Replace | Mode::Add => Change::Add,
                };
                table_spec::change(&mut table.table, change, *option, spec, ephemeral)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::table::Table;

    /// Tables of pasta with `-t 70 -u 71 -T 72`.
    fn tables() -> Vec<PifTable> {
        let pif =
            |pif, name: &str| PifTable { pif, name: name.to_owned(), table: Table::new(Caps::ALL) };
        let mut tables = vec![pif(HOST, "HOST"), pif(SPLICE, "SPLICE")];
        changed(&mut tables, &["-t", "70", "-u", "71", "-T", "72"]).unwrap();
        tables
    }

    fn changed(tables: &mut [PifTable], arguments: &[&str]) -> Result<String, String> {
        let arguments = arguments.iter().chain(&["path"]).map(OsString::from).collect();
        let Ok(wish) = read(arguments) else { panic!("it says nothing") };
        change(tables, &wish.commands, PortRange::new(32_768, 60_999).unwrap())
            .map_err(|failure| failure.to_string())?;
        let rules = tables.iter().flat_map(|table| table.table.rules());
        Ok(rules.map(|rule| rule.to_string().trim_end().to_owned() + "\n").collect())
    }

    /// What pesto 2026-10 made of the same tables.
    #[test]
    fn commands_act_one_after_the_other() {
        const TCP_70: &str = "TCP [*]:70  =>  70\n";
        const UDP_71: &str = "UDP [*]:71  =>  71\n";
        const TCP_80: &str = "TCP [*]:80  =>  80\n";
        const TCP_81: &str = "TCP [*]:81  =>  81\n";
        const UDP_81: &str = "UDP [*]:81  =>  81\n";
        const LO_72: &str = "TCP [*]%lo:72  =>  72\n";
        const LO_82: &str = "TCP [*]%lo:82  =>  82\n";
        for (arguments, expected) in [
            (&["-t", "80", "-A", "-t", "81"][..], &[TCP_80, TCP_81, LO_72][..]),
            (&["-A", "-t", "80"], &[TCP_70, UDP_71, TCP_80, LO_72]),
            (&["-C", "SPLICE", "-t", "80"], &[TCP_80]),
            (&["-t", "80", "-C", "SPLICE"], &[TCP_80]),
            (&["-t", "80", "-u", "81", "-T", "82"], &[TCP_80, UDP_81, LO_82]),
            (&["-T", "none"], &[TCP_70, UDP_71]),
            (&["-t", "none"], &[LO_72]),
            (&["-D", "-T", "72"], &[TCP_70, UDP_71]),
            (&["-A", "-t", "80", "-D", "-t", "80"], &[TCP_70, UDP_71, LO_72]),
            (&["-t", "80", "-A", "-u", "81", "-D", "-t", "80"], &[UDP_81, LO_72]),
            (&["-A", "-u", "90", "-t", "80", "-C", "HOST", "-t", "81"], &[TCP_81, LO_72]),
            (&["-A"], &[TCP_70, UDP_71, LO_72]),
        ] {
            assert_eq!(changed(&mut tables(), arguments).unwrap(), expected.concat());
        }
    }

    /// Texts of pesto 2026-10.
    #[test]
    fn what_cannot_be_done_is_told_in_the_originals_words() {
        for (arguments, text) in [
            (&["-A", "-t", "none"][..], "-t none conflicts with previous options"),
            (&["-t", "80", "-t", "none"], "-t none conflicts with previous options"),
            (&["-A", "-t", "1", "-u", "none"], "-u none conflicts with previous options"),
            (&["-C", "host"], "Unsupported pif name host"),
            (
                &["-A", "-t", "70"],
                "Forwarding configuration conflict: TCP [*]:70  =>  70  versus \
                 TCP [*]:70  =>  70 \nUnable to add rule TCP [*]:70  =>  70 ",
            ),
            (
                &["-D", "-t", "70,90"],
                "Couldn't find forwarding rule to delete: TCP [*]:90  =>  90 \n\
                 Unable to delete rule TCP [*]:90  =>  90 ",
            ),
            (
                &["-D", "-t", "70:71"],
                "Specifier TCP [*]:70  =>  71  conflicts with rule TCP [*]:70  =>  70 , but \
                 doesn't match it, can't delete\nUnable to delete rule TCP [*]:70  =>  71 ",
            ),
        ] {
            assert_eq!(changed(&mut tables(), arguments).unwrap_err(), text, "{arguments:?}");
        }
        let mut host_only = tables();
        host_only.pop();
        let refused = changed(&mut host_only, &["-T", "80"]).unwrap_err();
        assert_eq!(refused, "Can't use -T, no outbound interface");
        let mut splice_only = tables();
        splice_only.remove(0);
        let refused = changed(&mut splice_only, &["-u", "80"]).unwrap_err();
        assert_eq!(refused, "Can't use -u, no inbound interface");
    }

    fn ran(arguments: &[&str]) -> (u8, String, String) {
        let arguments = arguments.iter().map(OsString::from).collect();
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let status = run("pesto".as_ref(), arguments, PortRange::ANY, &mut out, &mut errors);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status, text(out), text(errors))
    }

    #[test]
    fn the_command_line_is_getopts() {
        assert_eq!(ran(&["--help", "--bogus"]), (0, USAGE.to_owned(), String::new()));
        let (status, version, _) = ran(&["--version", "--bogus"]);
        assert!(status == 0 && version.starts_with("pesto "), "{version}");
        let wrong = |words: &str| (1, String::new(), format!("{words}{USAGE}"));
        for (arguments, words) in [
            (&["--bogus", "--help"][..], "pesto: unrecognized option '--bogus'\n"),
            (&["-tq", "-x"], "pesto: invalid option -- 'x'\n"),
            (&["--add=3", "path"], "pesto: option '--add' doesn't allow an argument\n"),
            (
                &["--tcp", "1"],
                "pesto: option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'\n",
            ),
            (&["-t"], "pesto: option requires an argument -- 't'\n"),
            (&[], ""),
            (&["one", "two"], ""),
        ] {
            assert_eq!(ran(arguments), wrong(words), "{arguments:?}");
        }
        let long = "x".repeat(108);
        for (path, text) in [
            (
                "/nonexistent/socket",
                "Failed to connect to /nonexistent/socket: No such file or directory\n",
            ),
            ("/tmp", "Failed to connect to /tmp: Connection refused\n"),
            ("", "Invalid socket path \"\"\n"),
            (&long, &format!("Invalid socket path \"{long}\"\n")),
        ] {
            assert_eq!(ran(&[path]), (1, String::new(), text.to_owned()));
        }
    }
}
