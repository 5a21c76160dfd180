//! Set-up and life of guests, in real namespaces, as a real unprivileged user.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use support::{
    Background, PATIENCE, as_root, bare_namespace, binary, ends, in_namespace_of, inside,
    owner_of_proc, run, scratch, tapway, uid, user,
};

// --- what the command finds ---

#[test]
fn the_interface_has_addresses_and_routes_before_the_command_starts() {
    let addresses =
        inside(&["--mtu", "1432", "--mac", "52:54:00:12:34:56"], "ip -o addr; ip -o link");
    for part in [
        "lo    inet 127.0.0.1/8",
        "tap0    inet 10.0.2.100/24 brd 10.0.2.255 scope global",
        "tap0    inet6 fd74:6170:7761:79::100/64 scope global",
        "52:54:00:12:34:56",
        "mtu 1432 qdisc noqueue",
        "qlen 32768",
    ] {
        assert!(addresses.contains(part), "no {part:?} in\n{addresses}");
    }
    // Tentative addresses cannot be used yet.
    assert!(!addresses.contains("tentative"), "{addresses}");
    let routes = inside(&[], "ip route show default; ip -6 route show default");
    assert!(routes.contains("default via 10.0.2.2 dev tap0"), "{routes}");
    assert!(routes.contains("default via fd74:6170:7761:79::2 dev tap0"), "{routes}");
}

#[test]
fn options_choose_the_name_and_the_families() {
    let options = ["--ifname", "eth5", "--ipv4", "10.9.8.7/28", "--ipv6", "off"];
    let addresses = inside(&options, "ip -o addr show eth5; ip route");
    assert!(addresses.contains("inet 10.9.8.7/28"), "{addresses}");
    assert!(addresses.contains("default via 10.9.8.2 dev eth5"), "{addresses}");
    assert!(!addresses.contains("inet6"), "{addresses}");
    let options = ["--ipv4", "off", "--ipv6", "fd00:7::77/64"];
    let addresses = inside(&options, "ip -o addr show tap0");
    assert!(addresses.contains("inet6 fd00:7::77/64"), "{addresses}");
    assert!(!addresses.contains("inet 10."), "{addresses}");
}

#[test]
fn the_interface_has_what_the_data_path_needs() {
    let details = inside(&[], "ip -d link show tap0");
    assert!(details.contains("tun type tap pi off vnet_hdr on multi_queue"), "{details}");
}

#[test]
fn the_command_is_root_inside_or_oneself() {
    let mine = uid();
    assert_eq!(inside(&[], "id -u; id -g").split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    assert_eq!(inside(&["--map-user"], "id -u").trim(), mine.to_string());
    // Root inside may change its network, oneself may not.
    inside(&[], "ip link set tap0 mtu 1300");
    let denied = run(&["run", "--map-user", "--", "ip", "link", "set", "tap0", "mtu", "1300"]);
    assert_ne!(denied.status, Some(0));
    for options in [&[][..], &["--map-user"]] {
        let range = inside(options, "cat /proc/sys/net/ipv4/ping_group_range; id -g");
        let numbers: Vec<u32> = range.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [low, high, group] = numbers[..] else { panic!("{range}") };
        assert!((low..=high).contains(&group), "{range}");
    }
}

/// A user with subordinate ids, if the machine has one.
fn user_with_subids() -> Option<String> {
    let names = fs::read_to_string("/etc/subuid").ok()?;
    let groups = fs::read_to_string("/etc/subgid").ok()?;
    names
        .lines()
        .filter_map(|line| line.split(':').next())
        .find(|name| *name != "root" && groups.contains(&format!("{name}:")))
        .map(str::to_owned)
}

#[test]
fn subordinate_ids_become_the_other_users_inside() {
    let Some(name) = user_with_subids().filter(|_| as_root()) else {
        support::loudly("SKIPPED: needs root and a user in /etc/subuid and /etc/subgid");
        return;
    };
    let as_user = |arguments: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid", &name, "--regid", &name, "--init-groups"])
            .arg(binary())
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let script = "cat /proc/self/uid_map /proc/self/gid_map; setpriv --reuid 33 --regid 33 \
                  --clear-groups id -u";
    let text = as_user(&["run", "--", "sh", "-c", script]);
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!((rows[0][0], rows[0][2]), ("0", "1"), "{text}");
    assert_eq!(rows[1][0], "1", "{text}");
    assert_eq!(rows.last().unwrap(), &["33"], "{text}");
    let text = as_user(&["run", "--map-user", "--", "id", "-un"]);
    assert_eq!(text.trim(), name);
}

#[test]
fn root_can_use_it_too() {
    if !as_root() {
        support::loudly("SKIPPED: needs root");
        return;
    }
    let directory = scratch();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let script = format!("id -u; ip -o -4 addr show tap0; chown 33:34 {}", file.display());
    let output = Command::new(binary()).args(["run", "--", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("0\n") && text.contains("10.0.2.100/24"), "{output:?}");
    let owner = fs::metadata(&file).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (33, 34), "{output:?}");
}

#[test]
fn resolv_conf_and_hosts_are_the_guests_alone() {
    let before = fs::read("/etc/resolv.conf").unwrap();
    let options = ["--dns-search", "corp.example", "--add-host", "db:198.51.100.4"];
    let text = inside(&options, "cat /etc/resolv.conf /etc/hosts; stat -c %a /etc/hosts");
    for line in [
        "nameserver 10.0.2.3",
        "nameserver fd74:6170:7761:79::3",
        "search corp.example",
        "options edns0",
        "198.51.100.4\tdb",
        "644",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
    }
    for line in fs::read_to_string("/etc/hosts").unwrap().lines() {
        assert!(text.contains(line), "the host's line {line:?} is missing in\n{text}");
    }
    assert_eq!(inside(&["--dns", "off"], "cat /etc/resolv.conf").as_bytes(), before);
    // The guest's root may write to its files, and the host does not see it.
    inside(&[], "echo 192.0.2.1 x >> /etc/hosts && echo '# x' > /etc/resolv.conf");
    assert_eq!(fs::read("/etc/resolv.conf").unwrap(), before);
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains("tapway /etc"));
}

#[test]
fn host_loopback_is_where_the_hosts_names_lead() {
    let hosts = inside(&["--host-loopback", "10.0.2.2"], "cat /etc/hosts");
    let line = "10.0.2.2\thost.tapway.internal host.docker.internal host.containers.internal";
    assert!(hosts.lines().any(|l| l == line), "{hosts}");
}

#[test]
fn the_command_inherits_nothing_of_ours() {
    // Whatever the caller left open is the command's, as with any other program; nothing is added.
    let script = "ls /proc/self/fd";
    let outside = user("sh").args(["-c", script]).output().unwrap();
    assert_eq!(inside(&[], script).as_bytes(), outside.stdout);
    let script = "grep -E 'Sig(Blk|Ign)|Cap(Inh|Amb)|NoNewPrivs' /proc/self/status";
    let outside = user("sh").args(["-c", script]).output().unwrap();
    assert_eq!(inside(&[], script).as_bytes(), outside.stdout);
    let limit = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let outside = limit(user("sh").args(["-c", "ulimit -S -n 300; ulimit -n"]).output().unwrap());
    let script = format!("ulimit -S -n 300; {} run -- sh -c 'ulimit -n'", binary().display());
    assert_eq!(limit(user("sh").args(["-c", &script]).output().unwrap()), outside);
}

#[test]
fn signals_that_the_caller_ignores_stay_ignored() {
    let script = format!("trap '' HUP CHLD; {} run -- cat /proc/self/status", binary().display());
    let output = user("sh").args(["-c", &script]).output().unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    let line =
        status.lines().find(|l| l.starts_with("SigIgn:")).unwrap_or_else(|| panic!("{status}"));
    let ignored = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
    let bit = |signal: Signal| 1u64 << (signal as i32 - 1);
    assert_ne!(ignored & bit(Signal::SIGHUP), 0, "{line}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_guest_can_have_guests() {
    let script = format!("{} run -- ip -o addr show tap0", binary().display());
    let text = inside(&[], &script);
    assert!(text.contains("10.0.2.100/24"), "{text}");
}

// --- how it ends ---

#[test]
fn the_exit_status_is_the_commands() {
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        ("kill -34 $$", 128 + 34),
    ] {
        let ran = run(&["run", "--", "sh", "-c", script]);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(status), ""), "{script}");
    }
}

#[test]
fn commands_that_cannot_be_executed_have_the_shells_statuses() {
    let directory = scratch();
    let script = directory.path().join("script");
    fs::write(&script, "#!/nosuch/interpreter\n").unwrap();
    make_executable(&script);
    let script = script.to_str().unwrap();
    for (command, status, sentence) in [
        ("nosuchcommand", 127, "tapway: command not found: nosuchcommand\n"),
        ("/nosuch/command", 127, "tapway: command not found: /nosuch/command\n"),
        ("/etc/passwd", 126, "tapway: cannot execute /etc/passwd: Permission denied"),
        ("/", 126, "tapway: cannot execute /: Permission denied"),
        (script, 126, "the interpreter that it names does not exist"),
    ] {
        let ran = run(&["run", "--", command]);
        assert_eq!(ran.status, Some(status), "{command}");
        assert!(ran.stderr.contains(sentence), "{command}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    // A directory of PATH that may not be searched does not make a missing command "forbidden".
    let mut closed = tapway(&["run", "--", "nosuchcommand"]);
    let closed = closed.env("PATH", "/proc/1/fd:/usr/bin").output().unwrap();
    assert_eq!(closed.status.code(), Some(127));
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A guest that prints the pid of its command, and the signals that it gets.
fn listening_guest() -> (Background, Pid) {
    let script = "for s in INT TERM HUP USR1 USR2 WINCH QUIT; do trap \"echo $s\" $s; done
                  echo $$; while :; do sleep 30 >/dev/null 2>&1 & wait; done";
    let mut guest = Background::start(&mut tapway(&["run", "--", "bash", "-c", script]));
    let pid = guest.line().parse().unwrap();
    (guest, Pid::from_raw(pid))
}

#[test]
fn signals_sent_to_tapway_reach_the_command() {
    let (mut guest, _) = listening_guest();
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
        (Signal::SIGQUIT, "QUIT"),
    ] {
        guest.signal(signal);
        assert_eq!(guest.line(), name);
    }
}

#[test]
fn a_command_that_stops_stops_tapway_which_continues_it() {
    let (mut guest, command) = listening_guest();
    nix::sys::signal::kill(command, Signal::SIGSTOP).unwrap();
    let state = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    let tapway = guest.pid();
    guest.until("tapway is stopped", || state(tapway) == 'T');
    assert_eq!(state(command), 'T');
    guest.signal(Signal::SIGCONT);
    guest.until("both go on", || state(tapway) != 'T' && state(command) != 'T');
    guest.signal(Signal::SIGUSR1);
    assert_eq!(guest.line(), "USR1");
}

#[test]
fn the_command_dies_with_tapway() {
    let mut guest =
        Background::start(&mut tapway(&["run", "--", "sh", "-c", "echo $$; exec sleep 1000"]));
    let command = Pid::from_raw(guest.line().parse().unwrap());
    guest.signal(Signal::SIGKILL);
    assert!(ends(command, PATIENCE), "the command outlives tapway");
    assert_eq!(guest.end().signal, Some(9));
}

#[test]
fn tapway_ends_when_the_command_is_killed() {
    let (guest, command) = listening_guest();
    nix::sys::signal::kill(command, Signal::SIGKILL).unwrap();
    assert_eq!(guest.end().status, Some(128 + 9));
}

#[test]
fn nothing_that_can_be_given_up_is_kept() {
    if !as_root() {
        support::loudly("SKIPPED: only root can look into an undumpable process");
        return;
    }
    let target = bare_namespace();
    let (guest, _) = listening_guest();
    let attached = Background::start(&mut tapway(&["attach", &target.pid().to_string()]));
    let mut both = [guest, attached];
    for tapway in &mut both {
        let pid = tapway.pid();
        tapway.until("it is sealed", || owner_of_proc(pid) == 0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        let [soft, hard] = files.split_whitespace().skip(3).take(2).collect::<Vec<_>>()[..] else {
            panic!("{files}")
        };
        assert_eq!(soft, hard);
    }
}

// --- attach ---

/// Waits until tapway has set up its guest, which it seals itself after. (The interface and its routes
/// are there earlier, and in the case of a persistent TAP have been there before.)
fn until_set_up(tapway: &mut Background) {
    let status = format!("/proc/{}/status", tapway.pid());
    tapway.until("it is sealed", || {
        fs::read_to_string(&status).unwrap().contains("NoNewPrivs:\t1\n")
    });
}

/// tapway attached to `target`, with its interface there.
fn attach(target: &Background, options: &[&str]) -> Background {
    let pid = target.pid().to_string();
    let mut tapway =
        Background::start(&mut tapway(&[&["attach"], options, &[pid.as_str()]].concat()));
    until_set_up(&mut tapway);
    tapway.until("the interface is up", || {
        in_namespace_of(target, "ip -6 route").stdout.contains("default via fd74:6170:7761:79::2")
    });
    tapway
}

fn interfaces(target: &Background) -> Vec<String> {
    let text = in_namespace_of(target, "ip -o link").stdout;
    text.lines().map(|l| l.split(": ").nth(1).unwrap().to_owned()).collect()
}

#[test]
fn attach_lasts_as_long_as_its_target() {
    let target = bare_namespace();
    let tapway = attach(&target, &["--ifname", "eth3"]);
    let text = in_namespace_of(&target, "ip -o addr; ip route").stdout;
    assert!(text.contains("eth3    inet 10.0.2.100/24"), "{text}");
    assert!(text.contains("lo    inet 127.0.0.1/8"), "{text}");
    assert!(text.contains("default via 10.0.2.2 dev eth3"), "{text}");
    drop(target);
    let ran = tapway.end();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn attach_takes_its_interface_along_however_it_ends() {
    let target = bare_namespace();
    for (signal, status) in [
        (Signal::SIGTERM, Some(0)),
        (Signal::SIGINT, Some(0)),
        (Signal::SIGHUP, Some(0)),
        (Signal::SIGKILL, None),
    ] {
        let tapway = attach(&target, &[]);
        assert_eq!(interfaces(&target), ["lo", "tap0"]);
        tapway.signal(signal);
        assert_eq!(tapway.end().status, status);
        assert_eq!(interfaces(&target), ["lo"]);
    }
}

#[test]
fn an_interface_has_one_tapway() {
    let target = bare_namespace();
    let pid = target.pid().to_string();
    let _first = attach(&target, &[]);
    let second = run(&["attach", &pid]);
    assert_eq!(second.status, Some(1));
    assert!(
        second.stderr.starts_with("tapway: the interface tap0 is already in use there\n"),
        "{}",
        second.stderr
    );
    let other = run(&["attach", "--ifname", "lo", &pid]);
    assert!(other.stderr.contains("interface lo already, and it is not a TAP"), "{}", other.stderr);
    assert_eq!(interfaces(&target), ["lo", "tap0"]);
}

#[test]
fn a_persistent_tap_is_used_and_left() {
    let target = bare_namespace();
    for flags in ["", "multi_queue"] {
        let make = format!("ip tuntap add dev tap0 mode tap {flags}");
        assert_eq!(in_namespace_of(&target, &make).status, Some(0));
        let tapway = attach(&target, &[]);
        let text = in_namespace_of(&target, "ip -o addr show tap0").stdout;
        assert!(text.contains("10.0.2.100/24"), "{text}");
        if flags == "multi_queue" {
            // Nor may anybody take a queue of a TAP that is persistent and in use.
            let second = run(&["attach", &target.pid().to_string()]);
            assert!(second.stderr.contains("already in use"), "{second:?}");
        }
        tapway.signal(Signal::SIGTERM);
        let ran = tapway.end();
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert_eq!(interfaces(&target), ["lo", "tap0"]);
        // A second time, when it has its addresses already.
        let tapway = attach(&target, &[]);
        tapway.signal(Signal::SIGTERM);
        let ran = tapway.end();
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert_eq!(in_namespace_of(&target, "ip link delete tap0").status, Some(0));
    }
}

#[test]
fn bad_targets_are_told_apart() {
    let target = bare_namespace();
    let pid = target.pid();
    let file = |name: &str| format!("/proc/{pid}/ns/{name}");
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    };
    let own = std::process::id().to_string();
    let mut cases = vec![
        (vec!["attach", &gone], format!("there is no process {gone}")),
        (vec!["attach", "--netns", "/etc/passwd"], "/etc/passwd is not a namespace".into()),
        (vec!["attach", "--netns", "/nosuch"], "open the namespace /nosuch: No such file".into()),
        (vec!["attach", "--netns", "/proc/self/ns/net"], "in which tapway itself runs".into()),
    ];
    let user_file = file("user");
    let net_file = file("net");
    let wrong = format!("{user_file} is a user namespace, not a network namespace");
    cases.push((vec!["attach", "--netns", &user_file], wrong));
    let wrong = format!("{net_file} is a network namespace, not a user namespace");
    cases.push((vec!["attach", "--netns", &net_file, "--userns", &net_file], wrong));
    if as_root() {
        cases.push((vec!["attach", &own], format!("process {own} is not yours")));
    }
    for (arguments, sentence) in cases {
        let ran = run(&arguments);
        assert_eq!(ran.status, Some(1), "{arguments:?}");
        let first = ran.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("tapway: ") && first.contains(&sentence), "{}", ran.stderr);
    }
    assert_eq!(interfaces(&target), ["lo"]);
}

#[test]
fn namespace_files_of_processes_end_with_the_process() {
    let target = bare_namespace();
    let directory = scratch();
    let link = directory.path().join("net");
    std::os::unix::fs::symlink(format!("/proc/{}/ns/net", target.pid()), &link).unwrap();
    for path in [format!("/proc/{}/ns/net", target.pid()), link.display().to_string()] {
        let mut tapway = Background::start(&mut tapway(&["attach", "--netns", &path]));
        until_set_up(&mut tapway);
        tapway.until("the interface is there", || interfaces(&target).contains(&"tap0".into()));
        tapway.signal(Signal::SIGTERM);
        let ran = tapway.end();
        assert_eq!(ran.status, Some(0), "{ran:?}");
    }
    let mut tapway = Background::start(&mut tapway(&["attach", "--netns", link.to_str().unwrap()]));
    until_set_up(&mut tapway);
    tapway.until("the interface is there", || interfaces(&target).contains(&"tap0".into()));
    drop(target);
    assert_eq!(tapway.end().status, Some(0));
}

#[test]
fn a_named_namespace_ends_with_its_name() {
    if !as_root() {
        support::loudly("SKIPPED: `ip netns add` needs root");
        return;
    }
    let name = format!("setup-test-{}", std::process::id());
    let netns = |verb: &str| {
        assert!(Command::new("ip").args(["netns", verb, &name]).status().unwrap().success());
    };
    netns("add");
    let path = format!("/run/netns/{name}");
    let stranger = run(&["attach", "--netns", &path]);
    assert_eq!(stranger.status, Some(1));
    assert!(stranger.stderr.contains("hint: run tapway as the user who made"), "{stranger:?}");

    let mut tapway = Background::start(
        Command::new(binary()).args(["attach", "--netns", &path]).stdin(Stdio::null()),
    );
    tapway.until("the interface is up", || {
        let output = Command::new("ip").args(["-n", &name, "-6", "route"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("default via fd74:6170:7761:79::2")
    });
    // Another name that comes and goes in the same directory means nothing.
    fs::write(format!("{path}-other"), "").unwrap();
    fs::remove_file(format!("{path}-other")).unwrap();
    assert!(!ends(tapway.pid(), 200));
    netns("delete");
    assert_eq!(tapway.end().status, Some(0));
}

// --- hosts that lack something ---

/// Runs `script` as root of a user and mount namespace made by the unprivileged user, with tapway as
/// `$TAPWAY`.
fn on_a_lesser_host(script: &str) -> support::Ran {
    user("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c", script])
        .env("TAPWAY", binary())
        .output()
        .unwrap()
        .into()
}

#[test]
fn a_missing_device_is_named_with_its_remedy() {
    let ran = on_a_lesser_host("mount -t tmpfs none /dev/net && $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: open /dev/net/tun: No such file"), "{ran:?}");
    assert!(ran.stderr.contains("modprobe tun"), "{ran:?}");
    // What is there instead may be no TUN driver at all.
    let ran = on_a_lesser_host(
        "mount -t tmpfs none /dev/net && echo > /dev/net/tun && $TAPWAY run -- true",
    );
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make the TAP tap0: Inappropriate"), "{ran:?}");
}

#[test]
fn a_closed_device_is_named_with_its_remedy() {
    if !as_root() {
        support::loudly("SKIPPED: only root can close a device to its user");
        return;
    }
    let script = format!(
        "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 600 /dev/net/tun c 10 200 &&
         exec setpriv --reuid {0} --regid {0} --clear-groups {1} run -- true",
        uid(),
        binary().display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.starts_with("tapway: open /dev/net/tun: Permission denied"), "{text}");
    assert!(text.contains("chmod 0666 /dev/net/tun"), "{text}");
}

#[test]
fn forbidden_namespaces_are_named_with_their_remedy() {
    let ran =
        on_a_lesser_host("echo 0 > /proc/sys/user/max_user_namespaces && exec $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make a user namespace: No space left"), "{ran:?}");
    assert!(ran.stderr.contains("user.max_user_namespaces"), "{ran:?}");
    let ran =
        on_a_lesser_host("echo 0 > /proc/sys/user/max_net_namespaces && exec $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make network and mount namespaces: "), "{ran:?}");
}

#[test]
fn a_host_without_resolv_conf_or_hosts_still_has_guests() {
    for make in ["ln -s /nosuch/file /etc/resolv.conf", "true"] {
        let script =
            format!("mount -t tmpfs none /etc && {make} && exec $TAPWAY run -- sh -c 'exit 5'");
        let ran = on_a_lesser_host(&script);
        assert_eq!(ran.status, Some(5), "{ran:?}");
        assert!(ran.stderr.contains("/etc/resolv.conf"), "{ran:?}");
    }
}

#[test]
fn a_symlinked_resolv_conf_is_followed() {
    let ran = on_a_lesser_host(
        "mount -t tmpfs none /etc && mkdir /etc/real && echo '# host' > /etc/real/resolv.conf &&
         echo '127.0.0.1 localhost' > /etc/hosts && ln -s real/resolv.conf /etc/resolv.conf &&
         $TAPWAY run -- cat /etc/resolv.conf && cat /etc/resolv.conf",
    );
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("nameserver 10.0.2.3\n"), "{ran:?}");
    assert!(ran.stdout.ends_with("# host\n"), "{ran:?}");
}

#[test]
fn a_host_without_network_still_has_guests() {
    let ran = on_a_lesser_host("$TAPWAY run -- ip -o link show tap0");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("mtu 1500"), "{ran:?}");
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    let script = format!("exec {} run -- sh -c 'exit 4' <&- >&- 2>&-", binary().display());
    assert_eq!(user("sh").args(["-c", &script]).status().unwrap().code(), Some(4));
}
