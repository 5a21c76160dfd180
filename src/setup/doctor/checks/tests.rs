//! Every verdict and every remedy, on facts that no machine has to have.

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::super::super::idmap::IdRange;
use super::super::facts::*;
use super::super::report::{Check, Verdict};
use super::judge;
use crate::sys::probe::{Outcome, Step, Trial};

/// An ordinary user on a machine where everything works.
fn healthy() -> Facts {
    let skipped = [Step::SingleQueueTap, Step::TcpOffloads];
    let trial = Step::ALL
        .into_iter()
        .filter(|step| !skipped.contains(step))
        .fold(Trial::default(), |trial, step| trial.with(step, Outcome::Passed));
    let ids = |first| Subordinate {
        ranges: vec![range(first, 65_536)],
        next_free: first + 65_536,
        source: None,
    };
    let helper =
        |path: &str| Helper { path: path.into(), setuid_root: true, capable: false, nosuid: false };
    Facts {
        caller: Caller {
            uid: 1000,
            gid: 1001,
            groups: vec![27],
            name: Some("alice".to_owned()),
            ..Caller::default()
        },
        kernel: Kernel {
            release: "6.18.2-generic".to_owned(),
            landlock: Ok(7),
            peek_offset: Ok(()),
            pidfd: Ok(()),
            sock_diag: Ok(()),
        },
        sysctls: Sysctls {
            max_user_namespaces: Some(31_000),
            max_net_namespaces: Some(31_001),
            max_mnt_namespaces: Some(31_002),
            ping_group_range: Some((0, 2_147_483_647)),
            unprivileged_port_start: Some(0),
            disable_ipv6: Some(0),
            ..Sysctls::default()
        },
        trial,
        tun_loaded: true,
        subuids: ids(100_000),
        subgids: ids(200_000),
        newuidmap: Some(helper("/usr/bin/newuidmap")),
        newgidmap: Some(helper("/usr/bin/newgidmap")),
        ping4: Ok(()),
        ping6: Ok(()),
        low_port: Ok(()),
        descriptors: (1024, 524_288),
        ipv4: via("eth0", "192.0.2.7", 1500),
        ipv6: via("eth1", "2001:db8::7", 1480),
        resolvers: Resolvers::Listed(vec![("127.0.0.53".to_owned(), true)]),
        runtime_dir: RuntimeDir::Directory {
            path: "/run/user/1000".to_owned(),
            owner: 1000,
            mode: 0o700,
        },
        fallback: Fallback::default(),
    }
}

fn via(interface: &str, source: &str, mtu: u32) -> Path {
    Path::Via { interface: Some(interface.to_owned()), source: source.parse().unwrap(), mtu }
}

/// The checks that differ from those of the healthy machine after `change`.
fn changed(change: impl FnOnce(&mut Facts)) -> Vec<Check> {
    let mut facts = healthy();
    change(&mut facts);
    let before = judge(&healthy());
    judge(&facts).into_iter().filter(|check| !before.contains(check)).collect()
}

fn fails(facts: &mut Facts, step: Step, outcome: Outcome) {
    facts.trial = facts.trial.clone().with(step, outcome);
}

/// A trial that was refused a user namespace and could only open the device.
fn no_user_namespace(facts: &mut Facts, errno: Errno) {
    facts.trial = Trial::default()
        .with(Step::UserNamespace, Outcome::Failed(errno))
        .with(Step::OpenTun, Outcome::Passed)
        .with(Step::TunFeatures, Outcome::Passed);
}

/// Asserts that `change` spoils the check `name` and nothing else that is judged. `seen` and `mend`
/// are parts of its texts.
#[track_caller]
fn spoils(
    name: &str,
    verdict: Verdict,
    seen: &str,
    mend: &str,
    change: impl FnOnce(&mut Facts),
) -> Check {
    let mut bad = changed(change);
    bad.retain(|check| check.verdict != Verdict::Ok);
    let [check] = &bad[..] else { panic!("{name} alone should be spoilt: {bad:#?}") };
    assert_eq!((check.name, check.verdict), (name, verdict));
    assert!(check.seen.contains(seen), "{:?} lacks {seen:?}", check.seen);
    assert!(check.lost.as_ref().is_some_and(|lost| !lost.is_empty()));
    let given = check.mend.as_deref().unwrap_or_default();
    assert!(given.contains(mend), "{given:?} lacks {mend:?}");
    check.clone()
}

use Verdict::{Degraded, Missing};

#[test]
fn a_healthy_machine_has_nothing_to_mend_and_names_are_unique() {
    let checks = judge(&healthy());
    let names: std::collections::HashSet<_> = checks.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), checks.len());
    for check in checks {
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        assert!(!check.seen.is_empty());
        assert_eq!((check.lost, check.mend, check.keep), (None, None, None));
    }
}

#[test]
fn a_refused_user_namespace_has_its_cause_named() {
    const NAME: &str = "user-namespaces";
    let check = spoils(
        NAME,
        Missing,
        "user.max_user_namespaces = 0",
        "sudo sysctl -w user.max_user_namespaces=15000",
        |facts| {
            no_user_namespace(facts, Errno::ENOSPC);
            facts.sysctls.max_user_namespaces = Some(0);
        },
    );
    assert_eq!(
        check.keep.as_deref(),
        Some("echo 'user.max_user_namespaces=15000' | sudo tee -a /etc/sysctl.d/60-tapway.conf")
    );
    spoils(
        NAME,
        Missing,
        "unprivileged_userns_clone = 0",
        "sysctl -w kernel.unprivileged_userns_clone=1",
        |facts| {
            no_user_namespace(facts, Errno::EPERM);
            facts.sysctls.unprivileged_userns_clone = Some(0);
        },
    );
    spoils(
        NAME,
        Missing,
        "apparmor",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        |facts| {
            no_user_namespace(facts, Errno::EACCES);
            facts.sysctls.apparmor_restrict_userns = Some(1);
        },
    );
    spoils(NAME, Missing, "chroot", "outside of the chroot", |facts| {
        no_user_namespace(facts, Errno::EPERM);
        facts.caller.chrooted = true;
    });
    spoils(NAME, Missing, "no user namespaces", "CONFIG_USER_NS=y", |facts| {
        no_user_namespace(facts, Errno::EINVAL);
    });
    spoils(NAME, Missing, "killed by SIGSYS", "outside of the container", |facts| {
        facts.trial = Trial::default().with(Step::UserNamespace, Outcome::Killed(Signal::SIGSYS));
    });
    spoils(NAME, Missing, "security module", "dmesg", |facts| {
        no_user_namespace(facts, Errno::EPERM);
    });
    spoils(NAME, Missing, "uid_map may not be written (EPERM", "dmesg", |facts| {
        fails(facts, Step::MapUser, Outcome::Failed(Errno::EPERM));
    });
    spoils(NAME, Missing, "no process could be started", "ulimit -u", |facts| {
        facts.trial = Trial::default();
        facts.trial.not_started = Some(Errno::EAGAIN);
    });
}

#[test]
fn a_seccomp_filter_is_blamed_before_a_security_module() {
    let checks = changed(|facts| {
        no_user_namespace(facts, Errno::EPERM);
        facts.caller.seccomp = true;
    });
    let namespaces = checks.iter().find(|check| check.name == "user-namespaces").unwrap();
    assert!(namespaces.seen.contains("seccomp filter of a container"), "{namespaces:?}");
}

#[test]
fn ubuntus_restriction_shows_where_the_power_inside_is_needed() {
    // There the user namespace itself is made, and everything inside is refused.
    spoils("user-namespaces", Missing, "without power inside", "apparmor", |facts| {
        facts.sysctls.apparmor_restrict_userns = Some(1);
        fails(facts, Step::MapUser, Outcome::Failed(Errno::EPERM));
    });
    spoils("network-namespaces", Missing, "AppArmor", "apparmor", |facts| {
        facts.sysctls.apparmor_restrict_userns = Some(1);
        fails(facts, Step::NetworkNamespace, Outcome::Failed(Errno::EPERM));
    });
}

#[test]
fn the_other_namespaces_have_limits_of_their_own() {
    for (name, key, step) in [
        ("network-namespaces", "user.max_net_namespaces", Step::NetworkNamespace),
        ("mount-namespaces", "user.max_mnt_namespaces", Step::MountNamespace),
    ] {
        let mend = format!("sudo sysctl -w {key}=15000");
        spoils(name, Missing, key, &mend, |facts| {
            fails(facts, step, Outcome::Failed(Errno::ENOSPC));
        });
        spoils(name, Missing, "hung", "container", |facts| {
            for later in Step::ALL.into_iter().skip(step as usize) {
                fails(facts, later, Outcome::NotTried);
            }
            fails(facts, step, Outcome::Hung);
        });
    }
    spoils("mount-namespaces", Missing, "a bind mount inside is refused (EACCES", "dmesg", |f| {
        fails(f, Step::BindMount, Outcome::Failed(Errno::EACCES));
    });
    // Not tried, for want of a user namespace, but hopeless all the same.
    let checks = changed(|facts| {
        no_user_namespace(facts, Errno::EPERM);
        facts.sysctls.max_net_namespaces = Some(0);
    });
    let bad: Vec<_> =
        checks.iter().filter(|c| c.verdict != Verdict::Ok).map(|check| check.name).collect();
    assert_eq!(bad, ["user-namespaces", "network-namespaces"]);
}

#[test]
fn the_device_has_a_remedy_for_each_way_to_be_away() {
    const NAME: &str = "tun-device";
    for (outcome, loaded, seen, mend) in [
        (Errno::ENOENT, true, "does not exist", "mknod -m 0666 /dev/net/tun c 10 200"),
        (Errno::ENOENT, false, "module is not loaded", "sudo modprobe tun"),
        (Errno::ENODEV, false, "no driver", "sudo modprobe tun"),
        (Errno::EACCES, true, "may not be opened", "sudo chmod 0666 /dev/net/tun"),
        (Errno::EPERM, true, "device control group", "--device /dev/net/tun"),
        (Errno::EIO, true, "does not open (EIO", "modprobe"),
    ] {
        spoils(NAME, Missing, seen, mend, |facts| {
            facts.tun_loaded = loaded;
            for step in Step::ALL.into_iter().skip(Step::OpenTun as usize) {
                fails(facts, step, Outcome::NotTried);
            }
            fails(facts, Step::OpenTun, Outcome::Failed(outcome));
        });
    }
    spoils(NAME, Missing, "not the TUN device", "mknod", |facts| {
        for step in Step::ALL.into_iter().skip(Step::MultiQueueTap as usize) {
            fails(facts, step, Outcome::NotTried);
        }
        fails(facts, Step::TunFeatures, Outcome::Failed(Errno::ENOTTY));
    });
    let keep = changed(|facts| fails(facts, Step::OpenTun, Outcome::Failed(Errno::EACCES)));
    assert!(keep[0].keep.as_ref().unwrap().contains("/etc/udev/rules.d/"), "{keep:?}");
}

#[test]
fn a_tap_without_its_features_is_degraded_and_none_at_all_is_missing() {
    spoils("tap-queues", Degraded, "one queue on a TAP, tried", "3.8", |facts| {
        fails(facts, Step::MultiQueueTap, Outcome::Failed(Errno::EINVAL));
        fails(facts, Step::SingleQueueTap, Outcome::Passed);
    });
    spoils("udp-offloads", Degraded, "tried", "boot Linux 6.2", |facts| {
        fails(facts, Step::UdpOffloads, Outcome::Failed(Errno::EINVAL));
        fails(facts, Step::TcpOffloads, Outcome::Passed);
    });
    let verdict = |change: fn(&mut Facts), name: &str| {
        changed(change).into_iter().find(|check| check.name == name).map(|check| check.verdict)
    };
    let no_offloads: fn(&mut Facts) = |facts| {
        fails(facts, Step::UdpOffloads, Outcome::Failed(Errno::EINVAL));
        fails(facts, Step::TcpOffloads, Outcome::Failed(Errno::EINVAL));
    };
    assert_eq!(verdict(no_offloads, "tap"), Some(Degraded));
    let no_tap: fn(&mut Facts) = |facts| {
        fails(facts, Step::MultiQueueTap, Outcome::Failed(Errno::EPERM));
        fails(facts, Step::SingleQueueTap, Outcome::Failed(Errno::EPERM));
    };
    assert_eq!(verdict(no_tap, "tap"), Some(Missing));
    let hung: fn(&mut Facts) = |facts| fails(facts, Step::MultiQueueTap, Outcome::Hung);
    assert_eq!(verdict(hung, "tap"), Some(Missing));
}

#[test]
fn without_a_trial_the_kernels_version_decides_about_udp_offloads() {
    for (release, verdict) in [("6.2.0", Verdict::Ok), ("6.1.99", Degraded)] {
        let mut facts = healthy();
        no_user_namespace(&mut facts, Errno::EPERM);
        facts.kernel.release = release.to_owned();
        let check = judge(&facts).into_iter().find(|check| check.name == "udp-offloads").unwrap();
        assert_eq!(check.verdict, verdict);
        assert!(check.seen.contains("not tried"));
    }
}

fn range(first: u32, count: u32) -> IdRange {
    IdRange { first, count }
}

#[test]
fn subordinate_ids_are_offered_where_nobody_has_them() {
    spoils(
        "subordinate-uids",
        Degraded,
        "/etc/subuid has no range for alice",
        "echo 'alice:165536:65536' | sudo tee -a /etc/subuid",
        |facts| facts.subuids.ranges.clear(),
    );
    spoils(
        "subordinate-gids",
        Degraded,
        "/etc/subgid: 200000:65535",
        "echo 'alice:265536:65536' | sudo tee -a /etc/subgid",
        |facts| facts.subgids.ranges = vec![range(200_000, 65_535)],
    );
    let summed =
        changed(|facts| facts.subuids.ranges = vec![range(100_000, 65_535), range(300_000, 1)]);
    assert!(summed.iter().all(|check| check.verdict == Verdict::Ok), "{summed:?}");
    let elsewhere = changed(|facts| {
        facts.subuids = Subordinate { source: Some("sss".to_owned()), ..Subordinate::default() };
    });
    assert!(elsewhere[0].verdict == Verdict::Ok && elsewhere[0].seen.contains("sss"));
    let nameless = changed(|facts| {
        facts.caller.name = None;
        facts.subuids.ranges.clear();
    });
    let ids = nameless.iter().find(|check| check.name == "subordinate-uids").unwrap();
    assert!(ids.mend.as_ref().unwrap().contains("'1000:165536:65536'"), "{ids:?}");
}

#[test]
fn the_id_map_helpers_need_their_power() {
    spoils("newuidmap", Degraded, "search path", "uidmap (Debian", |f| f.newuidmap = None);
    spoils("newgidmap", Degraded, "cap_setgid", "sudo chmod u+s /usr/bin/newgidmap", |facts| {
        facts.newgidmap.as_mut().unwrap().setuid_root = false;
    });
    spoils("newuidmap", Degraded, "nosuid", "remount,suid", |facts| {
        facts.newuidmap.as_mut().unwrap().nosuid = true;
    });
    spoils("new-privileges", Degraded, "no_new_privs is set", "NoNewPrivileges=no", |facts| {
        facts.caller.no_new_privs = true;
    });
    let capable = changed(|facts| {
        let helper = facts.newuidmap.as_mut().unwrap();
        (helper.setuid_root, helper.capable) = (false, true);
    });
    assert_eq!(capable[0].verdict, Verdict::Ok);
    assert!(capable[0].seen.contains("cap_setuid"));
}

#[test]
fn root_needs_no_subordinate_ids_and_types_no_sudo() {
    let checks = changed(|facts| {
        facts.caller = Caller { name: Some("root".to_owned()), ..Caller::default() };
        facts.subuids.ranges.clear();
        facts.subgids.ranges.clear();
        facts.newuidmap = None;
        facts.newgidmap = None;
        facts.caller.no_new_privs = true;
        facts.ping4 = Err(Errno::EACCES);
        facts.ping6 = Err(Errno::EACCES);
        facts.sysctls.ping_group_range = Some((1, 0));
        facts.runtime_dir = RuntimeDir::Unset;
    });
    let bad: Vec<_> = checks.iter().filter(|check| check.verdict != Verdict::Ok).collect();
    assert_eq!(bad.iter().map(|c| c.name).collect::<Vec<_>>(), ["runtime-dir", "ping-sockets"]);
    for check in bad {
        for text in [&check.mend, &check.keep].into_iter().flatten() {
            assert!(!text.contains("sudo"), "{text}");
        }
    }
}

#[test]
fn ping_sockets_are_judged_by_trying() {
    const NAME: &str = "ping-sockets";
    spoils(
        NAME,
        Degraded,
        "not allowed to any group of the caller (ping_group_range = 1 0)",
        "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        |facts| {
            facts.sysctls.ping_group_range = Some((1, 0));
            facts.ping4 = Err(Errno::EACCES);
            facts.ping6 = Err(Errno::EACCES);
        },
    );
    // A supplementary group suffices (ping_init_sock), so the refusal has another cause.
    spoils(NAME, Degraded, "although the groups fit", "outside of the container", |facts| {
        facts.sysctls.ping_group_range = Some((27, 27));
        facts.ping4 = Err(Errno::EPERM);
    });
    let no_ipv6 = changed(|facts| {
        facts.ping6 = Err(Errno::EAFNOSUPPORT);
        facts.ipv6 = Path::NoFamily;
    });
    let ping = no_ipv6.iter().find(|check| check.name == NAME).unwrap();
    assert_eq!(ping.verdict, Verdict::Ok);
}

#[test]
fn low_ports_depend_on_the_floor_and_on_the_caller() {
    const NAME: &str = "low-ports";
    let refused = |facts: &mut Facts| {
        facts.sysctls.unprivileged_port_start = Some(1024);
        facts.low_port = Err(Errno::EACCES);
    };
    let check = spoils(
        NAME,
        Degraded,
        "from 1024 on",
        "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=0",
        refused,
    );
    assert_eq!(check.lost.as_deref(), Some("publishing ports 1 to 1023"));
    let capable = changed(|facts| facts.sysctls.unprivileged_port_start = Some(1024));
    assert_eq!((capable[0].name, capable[0].verdict), (NAME, Verdict::Ok));
}

#[test]
fn few_descriptors_are_few_flows() {
    let check = spoils(
        "descriptors",
        Degraded,
        "4096 (raised to that from 256), enough for about 4032 flows",
        "sudo prlimit --pid $$ --nofile=256:524288",
        |facts| facts.descriptors = (256, 4096),
    );
    assert!(check.keep.unwrap().contains("'alice hard nofile 524288'"));
    let level = changed(|facts| facts.descriptors = (20_000, 20_000));
    assert_eq!(level[0].seen, "limit of open files: 20000, enough for about 19936 flows");
    for hard in [16_384, u64::MAX] {
        let checks = changed(|facts| facts.descriptors = (1024, hard));
        assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Ok));
    }
}

#[test]
fn kernel_features_name_the_kernel_that_has_them() {
    spoils("kernel", Degraded, "5.4.0", "boot Linux 5.10", |facts| {
        facts.kernel.release = "5.4.0".to_owned();
    });
    spoils("process-descriptors", Missing, "pidfd_open", "boot Linux 5.3", |facts| {
        facts.kernel.pidfd = Err(Errno::ENOSYS);
    });
    spoils("process-descriptors", Missing, "EPERM", "outside of the container", |facts| {
        facts.kernel.pidfd = Err(Errno::EPERM);
    });
    spoils("landlock", Degraded, "switched on", "lsm=", |facts| {
        facts.kernel.landlock = Err(Errno::EOPNOTSUPP);
    });
    spoils("landlock", Degraded, "does not have", "boot Linux 5.13", |facts| {
        facts.kernel.landlock = Err(Errno::ENOSYS);
    });
    spoils("peek-offset", Degraded, "SO_PEEK_OFF", "boot Linux 6.9", |facts| {
        facts.kernel.peek_offset = Err(Errno::EOPNOTSUPP);
    });
}

#[test]
fn each_family_has_its_way_out() {
    spoils("ipv4-route", Degraded, "no default route", "default route", |facts| {
        facts.ipv4 = Path::NoRoute(Errno::ENETUNREACH);
    });
    spoils("ipv6-route", Degraded, "no default route", "--ipv6 off", |facts| {
        facts.ipv6 = Path::NoRoute(Errno::ENETUNREACH);
    });
    let key = "sudo sysctl -w net.ipv6.conf.all.disable_ipv6=0";
    spoils("ipv6-route", Degraded, "disable_ipv6 = 1", key, |facts| {
        facts.ipv6 = Path::NoRoute(Errno::EADDRNOTAVAIL);
        facts.sysctls.disable_ipv6 = Some(1);
    });
    spoils("ipv6-route", Degraded, "no sockets", "CONFIG_IPV6", |facts| {
        facts.ipv6 = Path::NoFamily;
    });
    spoils("path-mtu", Degraded, "1500 (IPv4), 1279 (IPv6)", "ip link set dev tun0 mtu", |facts| {
        facts.ipv6 = via("tun0", "2001:db8::9", 1279);
    });
    let checks = changed(|facts| facts.ipv6 = via("tun0", "2001:db8::9", 1280));
    assert!(checks.iter().all(|check| check.verdict == Verdict::Ok));
}

#[test]
fn one_resolver_with_a_route_is_enough() {
    let listed = |servers: &[(&str, bool)]| {
        Resolvers::Listed(servers.iter().map(|&(s, usable)| (s.to_owned(), usable)).collect())
    };
    spoils("resolvers", Degraded, "names no resolver", "--dns", |facts| {
        facts.resolvers = listed(&[]);
    });
    spoils("resolvers", Degraded, "ENOENT", "--dns", |facts| {
        facts.resolvers = Resolvers::Unreadable(Errno::ENOENT);
    });
    spoils("resolvers", Degraded, "192.0.2.53 (no route there)", "--dns", |facts| {
        facts.resolvers = listed(&[("192.0.2.53", false)]);
    });
    let checks =
        changed(|facts| facts.resolvers = listed(&[("2001:db8::53", false), ("::1", true)]));
    assert_eq!(checks[0].verdict, Verdict::Ok);
    assert_eq!(checks[0].seen, "2001:db8::53 (no route there), ::1 (this host's own, forwarded)");
}

#[test]
fn control_sockets_are_where_nobody_else_may_write() {
    const NAME: &str = "runtime-dir";
    let directory = |owner, mode| RuntimeDir::Directory { path: "/r".to_owned(), owner, mode };
    let make = "install -d -m 0700 -o 1000 -g 1001 /run/user/1000";
    let tmp = "/tmp/tapway-1000";
    spoils(NAME, Degraded, tmp, make, |f| f.runtime_dir = RuntimeDir::Unset);
    spoils(NAME, Degraded, "/gone", make, |facts| {
        facts.runtime_dir = RuntimeDir::NotADirectory("/gone".to_owned());
    });
    spoils(NAME, Degraded, "uid 0", make, |f| f.runtime_dir = directory(0, 0o700));
    let check = spoils(NAME, Degraded, "belongs to uid 77", make, |facts| {
        facts.runtime_dir = RuntimeDir::Unset;
        facts.fallback.taken_by = Some(77);
    });
    assert!(check.lost.is_some_and(|lost| lost.contains("do not find guests")));
    for mode in [0o770, 0o1777] {
        let writable = |f: &mut Facts| f.runtime_dir = directory(1000, mode);
        spoils(NAME, Degraded, "others may write", "chmod 0700", writable);
    }
    assert_eq!(changed(|f| f.runtime_dir = directory(1000, 0o2755))[0].verdict, Verdict::Ok);
    let checks = changed(|facts| {
        facts.runtime_dir = directory(0, 0o700);
        facts.fallback.run_user = true;
    });
    assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Ok));
    assert!(checks[0].seen.ends_with("control sockets are in /run/user/1000/tapway"));
}

#[test]
fn a_kernel_that_does_not_tell_what_listens_is_asked_for_its_modules() {
    const NAME: &str = "listening-sockets";
    let check = spoils(NAME, Degraded, "udp_diag", "modprobe -a tcp_diag udp_diag", |facts| {
        facts.kernel.sock_diag = Err(Errno::ENOENT);
    });
    assert_eq!(
        check.keep.as_deref(),
        Some("printf 'tcp_diag\\nudp_diag\\n' | sudo tee /etc/modules-load.d/60-tapway.conf")
    );
    spoils(NAME, Degraded, "sock_diag", "CONFIG_INET_DIAG", |facts| {
        facts.kernel.sock_diag = Err(Errno::EPROTONOSUPPORT);
    });
    spoils(NAME, Degraded, "EPERM", "outside of the container", |facts| {
        facts.kernel.sock_diag = Err(Errno::EPERM);
    });
}
