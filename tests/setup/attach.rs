//! `attach`: a network for a namespace that is there.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::{
    Background, as_root, bare_namespace, binary, ends, in_namespace_of, loudly, run, scratch,
    tapway,
};

/// Waits until tapway has set up its guest, which it seals itself after. (The interface and its
/// routes are there earlier, and in the case of a persistent TAP have been there before.)
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
        loudly("SKIPPED: `ip netns add` needs root");
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
