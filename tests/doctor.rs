//! Doctor on a real kernel: for root and for an ordinary user, in namespaces where one thing at a
//! time is broken. Each test compares two reports from surroundings that differ in that thing only,
//! and wants exactly the right checks to change.
//!
//! The body of each report is this test binary again ([`report_of_this_process`]), started by a
//! shell that has prepared the surroundings in namespaces of its own; nothing outlives it. Needs
//! root, to mask devices and to set sysctls of new namespaces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;
use tapway::setup::doctor::{self, Options};

/// An ordinary user without a name, without subordinate ids and with a group of its own.
const USER: &str = "setpriv --reuid=54321 --regid=54322 --clear-groups --inh-caps=-all --";

/// A network namespace with one device that leads out, the TUN device open to all, and a runtime
/// directory: everything that an ordinary user can be given.
const HEALTHY: &str = r#"
    mount -t tmpfs tmpfs /dev/net
    mknod -m 0666 /dev/net/tun c 10 200
    mkdir /dev/net/run /dev/net/etc
    cp -a /etc/. /dev/net/etc
    mount --bind /dev/net/etc /etc
    rm -f /etc/resolv.conf /etc/nsswitch.conf
    echo nameserver 192.0.2.53 > /etc/resolv.conf
    echo 54321:200000:65536 > /etc/subuid
    echo 54321:300000:65536 > /etc/subgid
    chown 54321:54322 /dev/net/run
    chmod 0700 /dev/net/run
    export XDG_RUNTIME_DIR=/dev/net/run
    ip link set lo up
    ip link add out0 type veth peer name far0
    ip link set far0 up
    ip link set out0 mtu 1400 up
    ip addr add 192.0.2.7/24 dev out0
    ip addr add 2001:db8::7/64 dev out0 nodad
    ip route add default via 192.0.2.1
    ip -6 route add default via 2001:db8::1
    sysctl -qw net.ipv4.ping_group_range="54322 54322"
    sysctl -qw net.ipv4.ip_unprivileged_port_start=0
"#;

#[derive(Debug)]
struct Outcome {
    status: i64,
    verdict: String,
    checks: BTreeMap<String, Value>,
}

impl Outcome {
    fn text<'a>(&'a self, check: &str, field: &str) -> &'a str {
        self.checks[check][field].as_str().unwrap_or_default()
    }

    /// The names of checks that came out differently in verdict or in what was seen.
    fn differing(&self, other: &Outcome) -> Vec<&str> {
        assert!(self.checks.keys().eq(other.checks.keys()), "the list of checks is fixed");
        let differs = |name: &&String| {
            let key = |outcome: &Outcome| {
                (outcome.text(name, "verdict").to_owned(), outcome.text(name, "seen").to_owned())
            };
            key(self) != key(other)
        };
        self.checks.keys().filter(differs).map(String::as_str).collect()
    }

    fn not_ok(&self) -> Vec<&str> {
        let bad = |name: &&String| self.text(name, "verdict") != "ok";
        self.checks.keys().filter(bad).map(String::as_str).collect()
    }
}

/// The report of doctor after `script`, started through `prefix`, in new network and mount
/// namespaces.
fn report(script: &str, prefix: &str) -> Outcome {
    in_namespaces("unshare --net --mount --propagation private --", script, prefix)
}

fn in_namespaces(unshare: &str, script: &str, prefix: &str) -> Outcome {
    assert!(nix::unistd::geteuid().is_root(), "the tests of doctor need root");
    // By descriptor, so that the user need not be able to walk the path to it.
    let binary = File::open(std::env::current_exe().expect("a test has a binary")).unwrap();
    let body = format!("/proc/self/fd/{}", binary.as_raw_fd());
    let mut words = unshare.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["sh", "-ec"]).arg(format!(
        "{script}\nexec {prefix} {body} --ignored --exact report_of_this_process --nocapture"
    ));
    command.env_remove("XDG_RUNTIME_DIR").env_remove("NO_COLOR");
    fcntl(&binary, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let output = command.output().expect("unshare and sh are installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = || format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", said());
    let line = |mark: &str| {
        text.lines().find(|line| line.starts_with(mark)).unwrap_or_else(|| panic!("{}", said()))
    };
    let document: Value = serde_json::from_str(line("{")).unwrap();
    assert_eq!(document["version"], 1);
    let status = line("status ").trim_start_matches("status ").parse().unwrap();
    let checks = document["checks"].as_array().unwrap().iter();
    Outcome {
        status,
        verdict: document["verdict"].as_str().unwrap().to_owned(),
        checks: checks
            .map(|check| (check["name"].as_str().unwrap().to_owned(), check.clone()))
            .collect(),
    }
}

#[test]
#[ignore = "the body of the other tests, in processes that they start"]
fn report_of_this_process() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut document = Vec::new();
    let options = Options { json: true, ..Options::default() };
    let status = doctor::run(options, &mut document).expect("a Vec takes everything");
    assert_eq!(descriptors(), before, "no descriptor is left open");
    assert_eq!(
        nix::sys::wait::waitpid(None, None),
        Err(nix::errno::Errno::ECHILD),
        "no child is left behind"
    );
    // Not by `println!`, which would share its line with the name of the test.
    let mut out = io::stdout().lock();
    out.write_all(b"\n").unwrap();
    out.write_all(&document).unwrap();
    writeln!(out, "status {status}").unwrap();
}

#[test]
fn an_ordinary_user_with_everything_has_nothing_to_mend() {
    let healthy = report(HEALTHY, USER);
    // What this machine's kernel and packages lack is theirs; what the surroundings give must be
    // ok.
    let of_the_machine = ["kernel", "landlock", "peek-offset", "udp-offloads", "descriptors"];
    let bad: Vec<_> =
        healthy.not_ok().into_iter().filter(|name| !of_the_machine.contains(name)).collect();
    assert!(bad.is_empty(), "{bad:?} in {healthy:#?}");
    assert_eq!(healthy.status, 0);
    assert!(healthy.text("caller", "seen").contains("uid 54321"));
    assert!(healthy.text("tap", "seen").starts_with("tried, works"));
    assert_eq!(healthy.text("ipv4-route", "seen"), "by out0 from 192.0.2.7");
    assert_eq!(healthy.text("ipv6-route", "seen"), "by out0 from 2001:db8::7");
    assert_eq!(healthy.text("path-mtu", "seen"), "1400 (IPv4), 1400 (IPv6)");
    assert_eq!(healthy.text("subordinate-uids", "seen"), "/etc/subuid: 200000:65536");
}

#[test]
fn one_broken_thing_changes_one_check() {
    let healthy = report(HEALTHY, USER);
    for (broken, check, verdict, mend) in [
        (
            "sysctl -qw net.ipv4.ping_group_range='1 0'",
            "ping-sockets",
            "degraded",
            "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
        (
            "sysctl -qw net.ipv4.ip_unprivileged_port_start=81",
            "low-ports",
            "degraded",
            "sysctl -w net.ipv4.ip_unprivileged_port_start=0",
        ),
        ("rm /dev/net/tun", "tun-device", "missing", "mknod"),
        ("chmod 0600 /dev/net/tun", "tun-device", "missing", "chmod 0666 /dev/net/tun"),
        ("rm /dev/net/tun; mkfifo -m 0666 /dev/net/tun", "tun-device", "missing", "mknod"),
        ("mount --bind /dev/null /dev/net/tun", "tun-device", "missing", "mknod"),
        ("echo 54321:300000:10 > /etc/subgid", "subordinate-gids", "degraded", "'54321:300010:"),
        ("rm /etc/subuid", "subordinate-uids", "degraded", "'54321:100000:65536'"),
        ("ulimit -n 1000", "descriptors", "degraded", "--nofile=1000:524288"),
        ("unset XDG_RUNTIME_DIR", "runtime-dir", "degraded", "/run/user/54321"),
        ("chmod 0775 /dev/net/run", "runtime-dir", "degraded", "chmod 0700"),
        ("rm /etc/resolv.conf", "resolvers", "degraded", "--dns"),
        ("ip -6 route del default", "ipv6-route", "degraded", "IPv6 network"),
    ] {
        let now = report(&format!("{HEALTHY}\n{broken}"), USER);
        // A device that does not open leaves nothing to try a TAP with, and a path is gone with its
        // route; both are seen on other lines, which stay ok.
        let derived = ["tap", "udp-offloads", "tap-queues", "path-mtu"];
        let mut differing = now.differing(&healthy);
        differing.retain(|&name| {
            !(derived.contains(&name) && now.text(name, "verdict") == healthy.text(name, "verdict"))
        });
        assert_eq!(differing, [check], "after {broken}: {now:#?}");
        assert_eq!(now.text(check, "verdict"), verdict, "after {broken}");
        assert!(now.text(check, "mend").contains(mend), "after {broken}: {now:#?}");
        assert_eq!(now.status, i64::from(verdict == "missing"), "after {broken}");
    }
}

#[test]
fn programs_that_gain_privileges_are_missed_when_they_cannot() {
    let healthy = report(HEALTHY, USER);
    let script = format!("{HEALTHY}\nsetpriv=$(command -v setpriv)\nPATH=/nowhere");
    let away = report(&script, &USER.replace("setpriv", "$setpriv"));
    assert_eq!(away.differing(&healthy), ["newgidmap", "newuidmap"], "{away:#?}");
    let powerless = report(HEALTHY, &USER.replace("setpriv", "setpriv --no-new-privs"));
    assert_eq!(powerless.differing(&healthy), ["new-privileges"], "{powerless:#?}");
    assert_eq!((away.status, powerless.status), (0, 0));
}

#[test]
fn a_limit_of_no_user_namespaces_is_seen_from_inside_a_nested_one() {
    let nested = "unshare --user --map-root-user --net --";
    let free = in_namespaces(nested, "", "");
    let limited = in_namespaces(nested, "echo 0 > /proc/sys/user/max_user_namespaces", "");
    assert_eq!(free.text("user-namespaces", "verdict"), "ok", "{free:#?}");
    assert!(free.text("caller", "seen").contains("inside a user namespace"));
    let changed: Vec<_> = limited
        .differing(&free)
        .into_iter()
        .filter(|&name| limited.text(name, "verdict") != free.text(name, "verdict"))
        .collect();
    assert_eq!(changed, ["user-namespaces"], "{limited:#?}");
    assert_eq!(limited.text("user-namespaces", "seen"), "refused: user.max_user_namespaces = 0");
    assert_eq!(limited.text("user-namespaces", "mend"), "sysctl -w user.max_user_namespaces=15000");
    assert_eq!((limited.status, limited.verdict.as_str()), (1, "missing"));
}

#[test]
fn a_chroot_is_named_as_the_cause() {
    // The new root is a plain directory, as it is for whoever unpacks a system and enters it.
    let root = r#"
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/root
        for dir in bin sbin lib lib32 lib64 usr etc dev proc sys run; do
            if [ -L /$dir ]; then cp -P /$dir /mnt/root/
            elif [ -d /$dir ]; then mkdir /mnt/root/$dir; mount --rbind /$dir /mnt/root/$dir
            fi
        done
    "#;
    let jailed = report(&format!("{HEALTHY}\n{root}"), &format!("chroot /mnt/root {USER}"));
    let free = report(HEALTHY, USER);
    let changed: Vec<_> = jailed
        .differing(&free)
        .into_iter()
        .filter(|&name| jailed.text(name, "verdict") != free.text(name, "verdict"))
        .collect();
    assert_eq!(changed, ["user-namespaces"], "{jailed:#?}");
    assert!(jailed.text("user-namespaces", "seen").contains("chroot"), "{jailed:#?}");
    assert_eq!(jailed.status, 1);
}

#[test]
fn root_is_told_apart_and_needs_no_ranges() {
    let root = report(&format!("{HEALTHY}\nrm /etc/subuid /etc/subgid"), "");
    assert!(root.text("caller", "seen").starts_with("root"));
    for name in ["subordinate-uids", "subordinate-gids", "newuidmap", "newgidmap"] {
        assert_eq!(root.text(name, "verdict"), "ok");
    }
    // Root too is kept from ping sockets by a range that its group is not in (ping_init_sock).
    assert_eq!(root.text("ping-sockets", "verdict"), "degraded");
    assert!(root.text("ping-sockets", "mend").starts_with("sysctl -w"));
}
