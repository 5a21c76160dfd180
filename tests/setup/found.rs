//! What the command finds in its network and around it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{as_root, binary, inside, loudly, run, scratch, uid, user};

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
        let lowest = inside(options, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
        assert_eq!(lowest, "0\n", "who is not root serves at low ports too");
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
        loudly("SKIPPED: needs root and a user in /etc/subuid and /etc/subgid");
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
        loudly("SKIPPED: needs root");
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
