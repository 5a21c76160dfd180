//! The command line from outside: texts, exit statuses, and one clear sentence for every bad input.

mod support;

use support::{Background, inside, run, scratch, tapway};

/// Arguments, exit status, and words that the one sentence on standard error must have.
type Bad<'a> = (&'a [&'a str], i32, &'a [&'a str]);

fn is_refused((arguments, status, words): &Bad<'_>) {
    let ran = run(arguments);
    let context = format!("tapway {}: {ran:?}", arguments.join(" "));
    assert_eq!(ran.status, Some(*status), "{context}");
    assert_eq!(ran.stdout, "", "{context}");
    let lines: Vec<_> = ran.stderr.lines().collect();
    let (first, rest) = lines.split_first().expect(&context);
    assert!(first.starts_with("tapway: "), "{context}");
    for word in *words {
        assert!(first.contains(word), "no {word:?} in {context}");
    }
    assert!(rest.len() <= 1 && rest.iter().all(|l| l.starts_with("tapway: hint: ")), "{context}");
}

#[test]
fn bad_options_are_named() {
    let run = |words: &'static [&'static str]| [&["run"], words, &["--", "true"]].concat();
    let bad: &[(&'static [&'static str], &[&str])] = &[
        (&["--bogus"], &["--bogus"]),
        (&["--ifname", "a/b"], &["--ifname", "a/b"]),
        (&["--mtu", "67", "--ipv6", "off"], &["--mtu", "68"]),
        (&["--mtu", "1279"], &["--mtu 1279", "--ipv6 off"]),
        (&["--mtu", "70000"], &["--mtu", "70000"]),
        (&["--mac", "01:00:5e:00:00:01"], &["--mac", "01:00:5e:00:00:01"]),
        (&["--ipv4", "10.0.2.0"], &["--ipv4", "10.0.2.0"]),
        (&["--ipv4", "10.0.2.0/30"], &["--ipv4 10.0.2.0/30", "29"]),
        (&["--ipv4", "10.0.2.3/24"], &["--ipv4 10.0.2.3/24", "DNS"]),
        (&["--ipv6", "fd00::/63"], &["--ipv6 fd00::/63", "64"]),
        (&["--ipv4", "off", "--ipv6", "off"], &["--ipv4 off"]),
        (&["--dns", "resolver.example"], &["--dns", "resolver.example"]),
        (&["--dns-search", "a b"], &["--dns-search", "a b"]),
        (&["--add-host", "db"], &["--add-host", "db"]),
        (&["--host-loopback", "127.0.0.1"], &["--host-loopback 127.0.0.1"]),
        (&["--outbound-interface", "nosuch0"], &["--outbound-interface nosuch0"]),
        (&["-p", "8080:80/sctp"], &["--publish", "8080:80/sctp", "/tcp or /udp"]),
        (&["-p", "127.0.0.1:80"], &["--publish", "127.0.0.1::80"]),
        (&["-p", "80:80", "-p", "[::1]:80:81"], &["--publish [::1]:80:81/tcp overlaps 80:80/tcp"]),
        (&["--expose-host", "5432:db:5432"], &["--expose-host", "\"db\""]),
        (&["--name", "a b"], &["--name", "a b"]),
        (&["--threads", "0"], &["--threads", "0"]),
        (&["--threads", "65"], &["--threads 65", "64 at most"]),
        (&["--log-level", "loud"], &["--log-level", "loud"]),
    ];
    for (options, words) in bad {
        is_refused(&(&run(options), 2, words));
    }
}

#[test]
fn options_that_the_host_cannot_serve_are_named() {
    for (option, value, words) in [
        ("--outbound-addr", "192.0.2.254", &["192.0.2.254"][..]),
        ("--pcap", "/nosuch/file", &["/nosuch/file", "No such file"]),
        ("--log-file", "/nosuch/file", &["/nosuch/file", "No such file"]),
    ] {
        is_refused(&(&["run", option, value, "--", "true"], 125, words));
        is_refused(&(&["attach", option, value, "1"], 1, words));
    }
    // A file that opens, and on which nothing fits.
    let full = ["run", "--pcap", "/dev/full", "--", "true"];
    is_refused(&(&full, 125, &["capture file", "No space left"]));
}

#[test]
fn bad_command_lines_say_what_is_missing() {
    for bad in [
        (&[][..], 2, &["tapway run"][..]),
        (&["walk"], 2, &["walk"]),
        (&["--bogus"], 2, &["--bogus"]),
        (&["attach"], 2, &["PID"]),
        (&["attach", "one"], 2, &["one"]),
        (&["attach", "1", "--netns", "/x"], 2, &["--netns"]),
        (&["attach", "--mtu", "1", "1"], 2, &["--mtu 1"]),
        (&["attach", "0"], 2, &["0 is not a process id"]),
        (&["completions", "cmd.exe"], 2, &["cmd.exe"]),
    ] {
        is_refused(&bad);
    }
}

#[test]
fn help_has_two_lengths_and_the_sections_of_a_man_page() {
    for verb in ["run", "attach"] {
        let long = run(&[verb, "--help"]);
        let short = run(&[verb, "-h"]);
        assert_eq!((long.status, short.status), (Some(0), Some(0)));
        assert!(short.stdout.lines().count() < long.stdout.lines().count() / 2);
        for section in ["EXIT STATUS", "EXAMPLES", "Interface:", "Names:", "Host:", "Instance:"] {
            assert!(long.stdout.contains(section), "{verb}: {section}");
        }
        for option in [
            "--ifname",
            "--mtu",
            "--mac",
            "--ipv4",
            "--ipv6",
            "--dns",
            "--dns-search",
            "--add-host",
            "--host-loopback",
            "--outbound-addr",
            "--outbound-interface",
            "--publish",
            "--expose-host",
            "--name",
            "--threads",
            "--pcap",
            "--log-level",
            "--log-file",
        ] {
            assert!(long.stdout.contains(&format!("{option} <")), "{verb}: {option}");
            assert!(short.stdout.contains(&format!("{option} <")), "{verb} -h: {option}");
        }
        assert!(long.stdout.lines().all(|line| line.chars().count() <= 100));
    }
    let version = run(&["--version"]);
    assert_eq!(version.stdout, format!("tapway {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completion_scripts_ask_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.status, Some(0));
        assert!(ran.stdout.contains("_TAPWAY_COMPLETE"), "{shell}");
    }
}

#[test]
fn a_name_belongs_to_one_instance() {
    let mut first = Background::start(&mut tapway(&[
        "run",
        "--name",
        "cli-test",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]));
    assert_eq!(first.line(), "up");
    let again = &["run", "--name", "cli-test", "--", "true"];
    is_refused(&(again, 125, &["cli-test", "already running"]));
    // However the first one ends, its name is free at once.
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.end();
    assert_eq!(run(again).status, Some(0));
}

#[test]
fn the_log_goes_to_its_file() {
    let directory = scratch();
    let log = directory.path().join("log");
    let log_option = log.to_str().unwrap();
    inside(&["--log-file", log_option, "--log-level", "trace"], "true");
    inside(&["--log-file", log_option], "true");
    // The library that draws the log says nothing without colours being asked for.
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
}
