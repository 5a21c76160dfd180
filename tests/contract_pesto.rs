//! The contract of pesto, as a table: what a command line says, and what the tables of rules are
//! then. Every row runs with tapway under both names, pesto's and pasta's. Where the originals are
//! (passt 2026-07 or later; from `PATH`, or `PESTO_BIN` and `PASTA_BIN`), it runs with them too,
//! each beside ours and both together, which proves the table.
//!
//! Blanks are not part of it: runs of them count as one, and none at the ends.

mod support;

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use Refusal::{Add, Conflict, Differs, DualStack, Missing, Says};
use support::{Background, Ran, binary, scratch, user};

/// Why the tables stay as they are.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// In these words.
    Says(&'static str),
    /// For this reason, this rule is not added.
    Add(&'static str, &'static str),
    /// The rule wants a port of another one.
    Conflict(&'static str, &'static str),
    /// The target's family is not the only one of the rule's.
    DualStack(&'static str, &'static str),
    /// There is no such rule.
    Missing(&'static str),
    /// There is another rule.
    Differs(&'static str, &'static str),
}

impl Refusal {
    fn text(self) -> String {
        let (why, verb, rule) = match self {
            Says(text) => return text.to_owned(),
            Add(why, rule) => (why.to_owned(), "add", rule),
            Conflict(rule, old) => {
                (format!("Forwarding configuration conflict: {rule} versus {old}"), "add", rule)
            }
            DualStack(target, rule) => {
                let (family, any) =
                    if target.contains(':') { ("IPv6", "[::]") } else { ("IPv4", "0.0.0.0") };
                let why = format!(
                    "Dual stack forward to {family} address {target} unsupported\n\
                     Did you mean {any}/... instead?"
                );
                (why, "add", rule)
            }
            Missing(rule) => {
                (format!("Couldn't find forwarding rule to delete: {rule}"), "delete", rule)
            }
            Differs(rule, old) => {
                let why = format!(
                    "Specifier {rule} conflicts with rule {old} , but doesn't match it, can't \
                     delete"
                );
                (why, "delete", rule)
            }
        };
        format!("{why}\nUnable to {verb} rule {rule}")
    }
}

/// What every row begins with: the rules of `HOST` and those of `SPLICE`, which `…` stands for.
const BEFORE: (&str, &str) =
    ("TCP [*]:4070 => 4070; UDP [*]:4071 => 4071", "TCP [*]%lo:4072 => 4072");

/// Command lines that do something, with the rules of `HOST` and of `SPLICE` after them.
const DONE: &[(&str, &str, &str)] = &[
    ("PATH -A -t 4080", "…; TCP [*]:4080 => 4080", "…"),
    ("-At 4080", "…; TCP [*]:4080 => 4080", "…"),
    ("-At4080", "…; TCP [*]:4080 => 4080", "…"),
    ("--add --tcp-ports=4080", "…; TCP [*]:4080 => 4080", "…"),
    ("--ad --tcp-p 4080", "…; TCP [*]:4080 => 4080", "…"),
    ("--cl SPLICE", "…", ""),
    ("--clear=HOST", "", "…"),
    ("-A -A -D -A -t 4080", "…; TCP [*]:4080 => 4080", "…"),
    ("-A", "…", "…"),
    ("-D", "…", "…"),
    ("-t 4080", "TCP [*]:4080 => 4080", "…"),
    ("-u 4080", "UDP [*]:4080 => 4080", "…"),
    ("-T 4080", "…", "TCP [*]%lo:4080 => 4080"),
    ("-U 4080", "…", "UDP [*]%lo:4080 => 4080"),
    ("-t 4080 -u 4081", "TCP [*]:4080 => 4080; UDP [*]:4081 => 4081", "…"),
    ("-u 4081 -t 4080", "UDP [*]:4081 => 4081; TCP [*]:4080 => 4080", "…"),
    ("-t 4080 -t 4081", "TCP [*]:4080 => 4080; TCP [*]:4081 => 4081", "…"),
    ("-t 4080 -T 4081", "TCP [*]:4080 => 4080", "TCP [*]%lo:4081 => 4081"),
    ("-t none", "", "…"),
    ("-u none", "", "…"),
    ("-T none", "…", ""),
    ("-U none", "…", ""),
    ("-t none -u none -T none -U none", "", ""),
    ("-t none -t 4080", "TCP [*]:4080 => 4080", "…"),
    ("-A -U none", "…", "…"),
    ("-D -U none", "…", "…"),
    ("-t 4080 -A -t 4081", "TCP [*]:4080 => 4080; TCP [*]:4081 => 4081", "…"),
    ("-A -t 4080 -t 4081", "…; TCP [*]:4080 => 4080; TCP [*]:4081 => 4081", "…"),
    ("-A -t 4080 -D -t 4070", "UDP [*]:4071 => 4071; TCP [*]:4080 => 4080", "…"),
    ("-D -t 4070", "UDP [*]:4071 => 4071", "…"),
    ("-D -t 4070 -u 4071 -T 4072", "", ""),
    ("-C HOST", "", "…"),
    ("-C SPLICE", "…", ""),
    ("-C HOST -t 4080", "TCP [*]:4080 => 4080", "…"),
    ("-t 4080 -C HOST", "", "…"),
    ("-t 4080 -C HOST -t 4081", "TCP [*]:4081 => 4081", "…"),
    ("-A -u 90 -t 80 -C HOST -t 81", "TCP [*]:81 => 81", "…"),
    ("-C SPLICE -t 4080", "TCP [*]:4080 => 4080", ""),
    ("-A -u 4070", "…; UDP [*]:4070 => 4070", "…"),
    ("-A -T 4070", "…", "…; TCP [*]%lo:4070 => 4070"),
    (
        "-A -t 127.0.0.1/4090 -t 127.0.0.2/4090",
        "…; TCP [127.0.0.1]:4090 => 4090; TCP [127.0.0.2]:4090 => 4090",
        "…",
    ),
    ("-A -t 0.0.0.0/4090 -t ::/4090", "…; TCP [0.0.0.0]:4090 => 4090; TCP [::]:4090 => 4090", "…"),
    (
        "-A -t 127.0.0.1/4081-4083:4091-4093,~4082",
        "…; TCP [127.0.0.1]:4081 => 4091; TCP [127.0.0.1]:4083 => 4093",
        "…",
    ),
    (
        "-A -t 0.0.0.0/4099:192.0.2.7/80 -t [::]/4099:2001:db8::7/80",
        "…; TCP [0.0.0.0]:4099 => 192.0.2.7:80; TCP [::]:4099 => 2001:db8::7:80",
        "…",
    ),
    ("-A -t 4099:fd00::1/80", "…; TCP [4099:fd00::1]:80 => 80", "…"),
    ("-A -t 0.0.0.0/4099:127.0.0.1", "…; TCP [0.0.0.0]:4099 => 127.0.0.1:4099", "…"),
    ("-A -t 224.0.0.1/4099", "…; TCP [224.0.0.1]:4099 => 4099", "…"),
    ("-A -t %nosuch0/4090", "…; TCP [*]%nosuch0:4090 => 4090", "…"),
    ("-A -t 65000-65535:1-536", "…; TCP [*]:65000-65535 => 1-536", "…"),
    ("-A -t auto,4090", "…; TCP [*]:4090 => 4090 (auto-scan)", "…"),
    ("-A -t ~1-32767,~61000-65535", "…", "…"),
    ("-A -t 4090,~4090", "…", "…"),
    ("-A -t _4090", "…; TCP [*]:4090 => 4090", "…"),
    ("-A -T 4080:4081,4090", "…", "…; TCP [*]%lo:4080 => 4081; TCP [*]%lo:4090 => 4090"),
    ("-A -T 4080:4081,auto", "…", "…; TCP [*]%lo:4080 => 4081 (auto-scan)"),
    ("-u 0.0.0.0/5300:53 -U 53", "UDP [0.0.0.0]:5300 => 53", "UDP [*]%lo:53 => 53"),
    ("-A -t 010", "…; TCP [*]:10 => 10", "…"),
    ("-A -t 0,~0", "…", "…"),
    ("-A -t [127.0.0.1]/4090", "…; TCP [127.0.0.1]:4090 => 4090", "…"),
    ("-A -t *%*/4090", "…; TCP [*]%*:4090 => 4090", "…"),
    ("-A -t 0.0.0.0/4090:0.0.0.0/80", "…; TCP [0.0.0.0]:4090 => 80", "…"),
    ("-A -t 4090:::/80", "…; TCP [*]:4090 => 80", "…"),
    (
        "-A -t 0.0.0.0/auto,4090:192.0.2.1/80",
        "…; TCP [0.0.0.0]:4090 => 192.0.2.1:80 (auto-scan)",
        "…",
    ),
];

/// Command lines that change nothing, and why.
const REFUSED: &[(&str, Refusal)] = &[
    ("-t 4080 -t none", Says("-t none conflicts with previous options")),
    ("-A -t none", Says("-t none conflicts with previous options")),
    ("-D -t none", Says("-t none conflicts with previous options")),
    ("-D -t 4070 -t 4070", Missing("TCP [*]:4070 => 4070")),
    ("-D -t 0.0.0.0/4070", Differs("TCP [0.0.0.0]:4070 => 4070", "TCP [*]:4070 => 4070")),
    ("-D -t 4070:4071", Differs("TCP [*]:4070 => 4071", "TCP [*]:4070 => 4070")),
    ("-D -t 4069-4071", Differs("TCP [*]:4069-4071 => 4069-4071", "TCP [*]:4070 => 4070")),
    ("-D -t 4090", Missing("TCP [*]:4090 => 4090")),
    ("-D -u 4070", Missing("UDP [*]:4070 => 4070")),
    ("-D -T 4070", Missing("TCP [*]%lo:4070 => 4070")),
    (
        "-D -t ~1-4069,~4071-65535",
        Differs("TCP [*]:4070 => 4070 (best effort)", "TCP [*]:4070 => 4070"),
    ),
    ("-C host", Says("Unsupported pif name host")),
    ("-C TAP", Says("Unsupported pif name TAP")),
    ("-C ''", Says("Unsupported pif name")),
    ("-A -t 4070", Conflict("TCP [*]:4070 => 4070", "TCP [*]:4070 => 4070")),
    ("-A -t 127.0.0.1/4070", Conflict("TCP [127.0.0.1]:4070 => 4070", "TCP [*]:4070 => 4070")),
    ("-A -t ::1/4070", Conflict("TCP [::1]:4070 => 4070", "TCP [*]:4070 => 4070")),
    ("-A -t 4070:80", Conflict("TCP [*]:4070 => 80", "TCP [*]:4070 => 4070")),
    ("-A -t 4060-4075", Conflict("TCP [*]:4060-4075 => 4060-4075", "TCP [*]:4070 => 4070")),
    ("-A -t %lo/4070", Conflict("TCP [*]%lo:4070 => 4070", "TCP [*]:4070 => 4070")),
    ("-A -t 4090-4095,4092", Conflict("TCP [*]:4092 => 4092", "TCP [*]:4090-4095 => 4090-4095")),
    (
        "-A -t 0.0.0.0/4090 -t 127.0.0.2/4090",
        Conflict("TCP [127.0.0.2]:4090 => 4090", "TCP [0.0.0.0]:4090 => 4090"),
    ),
    ("-A -t 0.0.0.0/4090 -t 4090", Conflict("TCP [*]:4090 => 4090", "TCP [0.0.0.0]:4090 => 4090")),
    (
        "-A -t 127.0.0.1%lo/4090 -t 127.0.0.1%d0/4090",
        Conflict("TCP [127.0.0.1]%d0:4090 => 4090", "TCP [127.0.0.1]%lo:4090 => 4090"),
    ),
    ("-A -t 4099:1.2.3.4", DualStack("1.2.3.4", "TCP [*]:4099 => 1.2.3.4:4099")),
    (
        "-A -t 127.0.0.1/4099:::1/80",
        Add(
            "Forward from IPv4 (127.0.0.1) to IPv6 (::1) unsupported",
            "TCP [127.0.0.1]:4099 => ::1:80",
        ),
    ),
    (
        "-A -t ::1/4099:127.0.0.1/80",
        Add(
            "Forward from IPv6 (::1) to IPv4 (127.0.0.1) unsupported",
            "TCP [::1]:4099 => 127.0.0.1:80",
        ),
    ),
    (
        "-A -t 0.0.0.0/4099:224.0.0.1",
        Add(
            "Multicast target address 224.0.0.1 for forwarding rule",
            "TCP [0.0.0.0]:4099 => 224.0.0.1:4099",
        ),
    ),
    (
        "-A -t 0.0.0.0/4099:255.255.255.255",
        Add(
            "Multicast target address 255.255.255.255 for forwarding rule",
            "TCP [0.0.0.0]:4099 => 255.255.255.255:4099",
        ),
    ),
    ("-A -t 0", Add("Forwarding rule attempts to map from port 0", "TCP [*]:0 => 0")),
    ("-A -t 0-3", Add("Forwarding rule attempts to map from port 0", "TCP [*]:0-3 => 0-3")),
    ("-A -t 4090:0", Add("Forwarding rule attempts to map to port 0", "TCP [*]:4090 => 0")),
    ("-A -t all", Conflict("TCP [*]:1-32767 => 1-32767 (best effort)", "TCP [*]:4070 => 4070")),
    (
        "-A -t auto",
        Conflict("TCP [*]:1-32767 => 1-32767 (best effort) (auto-scan)", "TCP [*]:4070 => 4070"),
    ),
    (
        "-A -t all,auto",
        Conflict("TCP [*]:1-32767 => 1-32767 (best effort) (auto-scan)", "TCP [*]:4070 => 4070"),
    ),
    (
        "-A -t 0.0.0.0/all:1.2.3.4",
        Conflict("TCP [0.0.0.0]:1-32767 => 1.2.3.4:1-32767 (best effort)", "TCP [*]:4070 => 4070"),
    ),
    ("-A -t all:1.2.3.4", DualStack("1.2.3.4", "TCP [*]:1-32767 => 1.2.3.4:1-32767 (best effort)")),
    ("-A -t ~22", Conflict("TCP [*]:23-32767 => 23-32767 (best effort)", "TCP [*]:4070 => 4070")),
    (
        "-A -T auto",
        Conflict(
            "TCP [*]%lo:1-32767 => 1-32767 (best effort) (auto-scan)",
            "TCP [*]%lo:4072 => 4072",
        ),
    ),
    ("-A -T 127.0.0.1/80", Says("Listening address not allowed for -T 127.0.0.1/80")),
    ("-A -T %lo/80", Says("Listening address not allowed for -T %lo/80")),
    ("-A -T /80", Says("Listening address not allowed for -T /80")),
    ("-A -T 80:127.0.0.1", DualStack("127.0.0.1", "TCP [*]%lo:80 => 127.0.0.1:80")),
    ("-A -T 80:1.2.3.4", DualStack("1.2.3.4", "TCP [*]%lo:80 => 1.2.3.4:80")),
    ("-D -T 4072 -U 4072", Missing("UDP [*]%lo:4072 => 4072")),
    ("-A -t 4090,0", Add("Forwarding rule attempts to map from port 0", "TCP [*]:0 => 0")),
    ("-A -t 0:4090", Add("Forwarding rule attempts to map from port 0", "TCP [*]:0 => 4090")),
    ("-A -t ~0", Conflict("TCP [*]:1-32767 => 1-32767 (best effort)", "TCP [*]:4070 => 4070")),
    ("-A -t ~0-5", Conflict("TCP [*]:6-32767 => 6-32767 (best effort)", "TCP [*]:4070 => 4070")),
    (
        "-A -t 0,auto",
        Add("Forwarding rule attempts to map from port 0", "TCP [*]:0 => 0 (auto-scan)"),
    ),
    ("-D -t 0", Missing("TCP [*]:0 => 0")),
    ("-D -t x", Says("Invalid port specifier 'x'")),
    ("-D -t %lo/x", Says("Invalid port specifier 'x'")),
    ("-A -t 4090,4090", Conflict("TCP [*]:4090 => 4090", "TCP [*]:4090 => 4090")),
    ("-D -t 0.0.0.0/4099:239.1.1.1/80", Missing("TCP [0.0.0.0]:4099 => 239.1.1.1:80")),
    ("-D -t 4099:1.2.3.4", Missing("TCP [*]:4099 => 1.2.3.4:4099")),
    (
        "-A -t 4099:224.0.0.1",
        Add(
            "Multicast target address 224.0.0.1 for forwarding rule",
            "TCP [*]:4099 => 224.0.0.1:4099",
        ),
    ),
    (
        "-A -t 0.0.0.0/4099:ff02::1",
        Add(
            "Multicast target address ff02::1 for forwarding rule",
            "TCP [0.0.0.0]:4099 => ff02::1:4099",
        ),
    ),
    (
        "-A -t ::/4099:224.0.0.1",
        Add(
            "Multicast target address 224.0.0.1 for forwarding rule",
            "TCP [::]:4099 => 224.0.0.1:4099",
        ),
    ),
    (
        "-A -t 0.0.0.0/0:224.0.0.1/1",
        Add("Forwarding rule attempts to map from port 0", "TCP [0.0.0.0]:0 => 224.0.0.1:1"),
    ),
    (
        "-A -t 0.0.0.0/4070:1.2.3.4",
        Conflict("TCP [0.0.0.0]:4070 => 1.2.3.4:4070", "TCP [*]:4070 => 4070"),
    ),
    (
        "-A -t 127.0.0.1/all:10.0.0.1,auto",
        Conflict(
            "TCP [127.0.0.1]:1-32767 => 10.0.0.1:1-32767 (best effort) (auto-scan)",
            "TCP [*]:4070 => 4070",
        ),
    ),
    (
        "-A -t 127.0.0.1/all:10.0.0.1,all:10.0.0.2",
        Conflict(
            "TCP [127.0.0.1]:1-32767 => 10.0.0.2:1-32767 (best effort)",
            "TCP [*]:4070 => 4070",
        ),
    ),
    (
        "-A -t 127.0.0.1/all:fd00::1",
        Add(
            "Forward from IPv4 (127.0.0.1) to IPv6 (fd00::1) unsupported",
            "TCP [127.0.0.1]:1-32767 => fd00::1:1-32767 (best effort)",
        ),
    ),
    (
        "-A -t auto,4090:192.0.2.1/80",
        DualStack("192.0.2.1", "TCP [*]:4090 => 192.0.2.1:80 (auto-scan)"),
    ),
];

/// Specifications that are none, each behind `-A -t`.
const INVALID: &[&str] = &[
    "%toolonginterfacename/4090",
    "%/4090",
    "x",
    "''",
    "65536",
    "4090-4080",
    "4090:4091-4092",
    "4090-4091:65535",
    "65535-65536",
    "4090,none",
    "none,4090",
    "all,none",
    "auto:1.2.3.4",
    "all:",
    "~",
    "~4090:80",
    "1.2.3/80",
    "[::1/80",
    "[::1%lo]/92",
    "127.0.0.1",
    "::1",
    "4090/tcp",
    "4090,",
    ",4090",
    "4090,,4091",
    "4090_",
    "-4090",
    "4090-",
    "99999999999999999999",
    "4070,x",
    "x,4070",
    "0,x",
    "4090-0",
    "4090:x",
    "0-1:4090",
    "0:4090-4091",
    "4090,~x",
    "**/4090",
    "none/4090",
    "all/4090",
    "NONE",
    "All",
];

/// The same, with the part at fault.
const INVALID_PART: &[(&str, &str)] = &[
    ("%a/b/4090", "b/4090"),
    ("127.0.0.1/", ""),
    ("127.0.0.1/22,127.0.0.1/23", "22,127.0.0.1/23"),
    ("127.0.0.1/80/81", "80/81"),
    ("/none", "none"),
    ("*/none", "none"),
    ("127.0.0.1/all:x", "all:x"),
    ("127.0.0.1/all:10.0.0.1/80", "all:10.0.0.1/80"),
];

/// Command lines with which nothing is even asked, and what is said before the usage. `PATH` is
/// where it stands. The original dies of its filter of system calls with most of them.
const WRONG: &[(&str, &str)] = &[
    ("--tcp 1 PATH", "option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'"),
    ("--udp 1 PATH", "option '--udp' is ambiguous; possibilities: '--udp-ports' '--udp-ns'"),
    ("--d PATH", "option '--d' is ambiguous; possibilities: '--delete' '--debug'"),
    ("--bogus PATH", "unrecognized option '--bogus'"),
    ("--bogus --help", "unrecognized option '--bogus'"),
    ("-x PATH", "invalid option -- 'x'"),
    ("-sx PATH", "invalid option -- 'x'"),
    ("--add=3 PATH", "option '--add' doesn't allow an argument"),
    ("--show=1 PATH", "option '--show' doesn't allow an argument"),
    ("-t", "option requires an argument -- 't'"),
    ("--tcp-ports", "option '--tcp-ports' requires an argument"),
    ("-C", "option requires an argument -- 'C'"),
    ("PATH PATH", ""),
    ("-A -t 4080", ""),
    ("", ""),
];

/// Paths at which nobody answers.
const NOBODY: &[(&str, &str)] = &[
    ("''", "Invalid socket path \"\""),
    ("/nonexistent", "Failed to connect to /nonexistent: No such file or directory"),
    ("/tmp", "Failed to connect to /tmp: Connection refused"),
    ("/etc/passwd", "Failed to connect to /etc/passwd: Permission denied"),
];

/// What is shown on standard output, and with `-d` on standard error.
const SHOWN: &[(&str, &str, &str)] = &[
    ("PATH", "passt/pasta", ""),
    ("-s PATH", "passt/pasta", ""),
    ("PATH -s", "passt/pasta", ""),
    ("-- PATH", "passt/pasta", ""),
    (
        "-d PATH",
        "passt/pasta",
        "debug_flag=1, path=\"PATH\"\n\
         Connected to passt/pasta control socket\n\
         Receiving config for PIF 1\n\
         PIF 1: HOST, 2 rules, capabilities 0x3f: IPv4 IPv6 TCP UDP scan ifname\n\
         Receiving config for PIF 3\n\
         PIF 3: SPLICE, 1 rules, capabilities 0x3f: IPv4 IPv6 TCP UDP scan ifname",
    ),
    ("-s -A -t 4080 PATH", "Previous", ""),
];

/// A client and a server, one of which at least is ours or both are the originals.
struct Pair {
    what: String,
    client: PathBuf,
    server: PathBuf,
}

/// A server, and a client for it.
struct Lab {
    client: PathBuf,
    socket: PathBuf,
    _server: Background,
    _directory: tempfile::TempDir,
}

/// The original's program, if there is one that is new enough.
fn original(variable: &str, name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        let path = user("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
        let path = String::from_utf8(path.stdout).unwrap();
        (!path.trim().is_empty()).then(|| path.trim().into())
    });
    let found = found.filter(|program| {
        let help = Command::new(program).arg("--help").output();
        let help = help.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        name == "pesto" || String::from_utf8_lossy(&help).contains("--conf-path")
    });
    if found.is_none() {
        let mut terminal = std::io::stderr();
        let _ = writeln!(terminal, "NOT PROVED: no original {name} (passt 2026-07 or later) here");
    }
    found
}

/// Ours, and what there is of the originals.
fn pairs(directory: &Path) -> Vec<Pair> {
    let [client, server] = ["pesto", "pasta"].map(|name| {
        let link = directory.join(name);
        symlink(binary(), &link).unwrap();
        link
    });
    let clients = [
        Some(("our client", client)),
        original("PESTO_BIN", "pesto").map(|at| ("their client", at)),
    ];
    let servers = [
        Some(("our server", server)),
        original("PASTA_BIN", "pasta").map(|at| ("their server", at)),
    ];
    let pair = |(one, client): &(&str, PathBuf), (other, server): &(&str, PathBuf)| Pair {
        what: format!("{one}, {other}"),
        client: client.clone(),
        server: server.clone(),
    };
    let servers: Vec<_> = servers.into_iter().flatten().collect();
    let pairs_of =
        |client| servers.iter().map(move |server| pair(&client, server)).collect::<Vec<_>>();
    clients.into_iter().flatten().flat_map(pairs_of).collect()
}

impl Pair {
    fn start(&self) -> Lab {
        let directory = scratch();
        let socket = directory.path().join("pasta.sock");
        let mut server = user(&self.server);
        server.args(["--foreground", "--quiet", "--config-net", "-t", "none", "-u", "none"]);
        // Both families, whatever the host has.
        server.args(["-T", "none", "-U", "none", "-a", "192.0.2.7", "-a", "2001:db8::7"]);
        server.arg("--conf-path").arg(&socket);
        server.args(["--", "sh", "-c", "echo up; exec sleep 1000"]);
        // Ports that others have are told there.
        let mut server = Background::start_logged(&mut server, &directory.path().join("log"));
        assert_eq!(server.line(), "up", "{}", self.what);
        Lab { client: self.client.clone(), socket, _server: server, _directory: directory }
    }
}

impl Lab {
    /// Runs the client with `line`, in which `PATH` is the socket, `_` a blank and `''` nothing.
    fn says(&self, line: &str) -> Ran {
        let word = |word: &str| match word {
            "PATH" => self.socket.to_str().unwrap().to_owned(),
            "''" => String::new(),
            word => word.replace('_', " "),
        };
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        let mut client = user(&self.client);
        // The name by which messages begin.
        let ran: Ran = client.args(words).output().unwrap().into();
        let named = |text: String| {
            let text = text.replace(self.socket.to_str().unwrap(), "PATH");
            text.replace(&format!("{}: ", self.client.display()), "pesto: ")
        };
        Ran { stdout: named(ran.stdout), stderr: named(ran.stderr), ..ran }
    }

    /// The rules of both tables.
    fn rules(&self) -> (String, String) {
        let shown = self.says("PATH");
        assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""), "{shown:?}");
        let (_, tables) = shown.stdout.split_once("  HOST\n").unwrap();
        let (host, splice) = tables.split_once("  SPLICE\n").unwrap();
        let rules = |table: &str| table.lines().map(single).collect::<Vec<_>>().join("; ");
        (rules(host), rules(splice))
    }

    /// Brings the tables to [`BEFORE`].
    fn reset(&self) {
        let ran = self.says("-C HOST -C SPLICE -A -t 4070 -u 4071 -T 4072 PATH");
        assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    }
}

/// `line` with single blanks.
fn single(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn singles(text: &str) -> String {
    text.lines().map(single).collect::<Vec<_>>().join("\n")
}

/// Calls `check` for every pair there is, with what it is, and says which failed.
fn with_every_pair(check: impl Fn(&str, &Lab)) {
    let directory = scratch();
    for pair in pairs(directory.path()) {
        check(&pair.what, &pair.start());
    }
}

#[test]
fn tables_become_what_the_command_line_says() {
    with_every_pair(|what, lab| {
        for (line, host, splice) in DONE {
            lab.reset();
            let line =
                if line.contains("PATH") { (*line).to_owned() } else { format!("{line} PATH") };
            let ran = lab.says(&line);
            let said = (ran.status, ran.stdout.as_str(), ran.stderr.as_str());
            assert_eq!(said, (Some(0), "", ""), "{what}: {line}");
            let after = |text: &str, before: &str| text.replacen('…', before, 1);
            let expected = (after(host, BEFORE.0), after(splice, BEFORE.1));
            assert_eq!(lab.rules(), expected, "{what}: {line}");
        }
    });
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    with_every_pair(|what, lab| {
        lab.reset();
        let whole = INVALID.iter().map(|spec| (*spec, *spec));
        let invalid = whole.chain(INVALID_PART.iter().copied()).map(|(spec, named)| {
            let named = named.replace('_', " ").replace("''", "");
            (format!("-A -t {spec}"), single(&format!("Invalid port specifier '{named}'")))
        });
        let refused = REFUSED.iter().map(|(line, refusal)| ((*line).to_owned(), refusal.text()));
        for (line, text) in refused.chain(invalid) {
            let ran = lab.says(&format!("{line} PATH"));
            let said = (ran.status, ran.stdout.as_str(), singles(&ran.stderr));
            assert_eq!(said, (Some(1), "", text), "{what}: {line}");
            assert_eq!(lab.rules(), (BEFORE.0.into(), BEFORE.1.into()), "{what}: {line}");
        }
    });
}

#[test]
fn what_is_no_command_line_gets_the_usage() {
    with_every_pair(|what, lab| {
        for (line, text) in WRONG {
            let ran = lab.says(line);
            // Its filter of system calls is in force before its options are read.
            if what.starts_with("their") && ran.signal == Some(libc::SIGSYS) {
                continue;
            }
            let text = if text.is_empty() { String::new() } else { format!("pesto: {text}\n") };
            assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""), "{what}: {line}");
            let usage = format!("{text}Usage: pesto [OPTION]... PATH\n");
            assert!(ran.stderr.starts_with(&usage), "{what}: {line}: {}", ran.stderr);
        }
        for line in ["--help", "-h PATH --bogus", "-Ah"] {
            let ran = lab.says(line);
            assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{what}: {line}");
            assert!(ran.stdout.starts_with("Usage: pesto [OPTION]... PATH\n"), "{what}: {line}");
        }
        let version = lab.says("--version --bogus");
        assert!(version.status == Some(0) && version.stdout.starts_with("pesto "), "{version:?}");
        for (path, text) in NOBODY {
            let ran = lab.says(path);
            let said = (ran.status, ran.stdout.as_str(), ran.stderr.trim_end());
            assert_eq!(said, (Some(1), "", *text), "{what}: {path}");
        }
    });
}

#[test]
fn tables_are_shown() {
    let table = |title: &str, more: &str| {
        format!(
            "{title} configuration (PATH)\nHOST\n{}{more}\nSPLICE\n{}\n",
            BEFORE.0.replace("; ", "\n"),
            BEFORE.1
        )
    };
    with_every_pair(|what, lab| {
        for (line, title, errors) in SHOWN {
            lab.reset();
            let ran = lab.says(line);
            let mut expected = table(title, "");
            if *title == "Previous" {
                expected += &table("Updated", "\nTCP [*]:4080 => 4080");
            }
            let said = (ran.status, singles(&ran.stdout), singles(&ran.stderr));
            let expected = (Some(0), expected.trim_end().to_owned(), (*errors).to_owned());
            assert_eq!(said, expected, "{what}: {line}");
        }
    });
}
