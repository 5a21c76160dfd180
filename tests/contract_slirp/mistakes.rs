//! Command lines that start nothing, and what is said then; help and version.

use crate::helpers;
use crate::support::bare_namespace;

/// What goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Out {
    Usage,
    Nothing,
}

#[test]
fn mistakes_are_told_as_ever() {
    use Out::{Nothing, Usage};
    let target = bare_namespace();
    let pid = &target.pid().to_string();
    let long = format!("/tmp/{}", "x".repeat(108));
    let too_long = format!("--api-socket={long}");
    let mtu = "MTU must be a positive integer (< 65522)\n";
    let not_a_pid = "PID must be a positive integer\n";
    let no_path = "existing path expected when --netns-type=path: No such file or directory\n";
    let conflict = |option: &str| format!("--{option} conflicts with --target-type=bess\n");
    for (arguments, out, error) in [
        // getopt
        (&["--bogus"][..], Usage, "slirp4netns: unrecognized option '--bogus'\n"),
        (&["--bogus=1", "--help"], Usage, "slirp4netns: unrecognized option '--bogus=1'\n"),
        (
            &["--m=1"],
            Usage,
            "slirp4netns: option '--m=1' is ambiguous; possibilities: '--mtu' '--macaddress'\n",
        ),
        (&["--mtu"], Usage, "slirp4netns: option '--mtu' requires an argument\n"),
        (&["--conf=1"], Usage, "slirp4netns: option '--configure' doesn't allow an argument\n"),
        (&["-cZ"], Usage, "slirp4netns: invalid option -- 'Z'\n"),
        (&["-cm"], Usage, "slirp4netns: option requires an argument -- 'm'\n"),
        // other words
        (&[], Usage, ""),
        (&[pid], Usage, ""),
        (&["0", "tap0"], Usage, not_a_pid),
        (&["12x", "tap0"], Usage, not_a_pid),
        (&["-1", "tap0"], Usage, "slirp4netns: invalid option -- '1'\n"),
        (&["--", "-1", "tap0"], Usage, not_a_pid),
        (&["-", "tap0"], Usage, not_a_pid),
        (&["--", "-c", "tap0"], Usage, not_a_pid),
        (&["99999999999999999999", "tap0"], Usage, not_a_pid),
        (&["--netns-type=", "/nonexistent", "tap0"], Usage, no_path),
        (&["--netns-type=path", "", "tap0"], Usage, no_path),
        (&["--netns-type=path"], Usage, ""),
        (&["--netns-type=path", "/tmp"], Usage, ""),
        (&["--netns-type=path", "/nonexistent", "tap0"], Usage, no_path),
        (&["--netns-type=anything", "/nonexistent", "tap0"], Usage, no_path),
        // values
        (&["-m0", pid, "tap0"], Usage, mtu),
        (&["--mtu=65522", pid, "tap0"], Usage, mtu),
        (&["--mtu=", pid, "tap0"], Usage, mtu),
        (&["-m", "100x", pid, "tap0"], Usage, mtu),
        (&["-m", "-5", pid, "tap0"], Usage, mtu),
        (&["-m", "99999999999", pid, "tap0"], Usage, mtu),
        (&["-m", "0x100", pid, "tap0"], Usage, mtu),
        (&["-r", "-1", pid, "tap0"], Usage, "ready-fd must be a non-negative integer\n"),
        (&["-e", "1x", pid, "tap0"], Usage, "exit-fd must be a non-negative integer\n"),
        (&["-e-1", pid, "tap0"], Usage, "exit-fd must be a non-negative integer\n"),
        (&["-rx", pid, "tap0"], Usage, "ready-fd must be a non-negative integer\n"),
        (&["--cidr=24", pid, "tap0"], Nothing, "invalid CIDR: 24\n"),
        (&["--cidr=foo", pid, "tap0"], Nothing, "invalid CIDR: foo\n"),
        (&["--cidr=10.0.2.0", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0\n"),
        (&["--cidr=10.0.2.0/24x", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0/24x\n"),
        (&["--cidr=", pid, "tap0"], Nothing, "invalid CIDR: \n"),
        (&["--cidr=10.0.2.0/", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0/\n"),
        (&["--cidr=10.0.2.0/-1", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0/-1\n"),
        (&["--cidr=10.0.2.0/024", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0/024\n"),
        (&["--cidr=10.0.2.0/24/24", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2.0/24/24\n"),
        (&["--cidr=10.0.2/24", pid, "tap0"], Nothing, "invalid CIDR: 10.0.2/24\n"),
        (&["--cidr=fd00::/64", pid, "tap0"], Nothing, "invalid CIDR: fd00::/64\n"),
        (&["--cidr= 10.0.2.0/24", pid, "tap0"], Nothing, "invalid CIDR:  10.0.2.0/24\n"),
        (&["--cidr=300.0.2.0/24", pid, "tap0"], Nothing, "invalid network address: 300.0.2.0\n"),
        (&["--cidr=010.0.2.0/24", pid, "tap0"], Nothing, "invalid network address: 010.0.2.0\n"),
        (&["--cidr=10.0.2.0/33", pid, "tap0"], Nothing, "prefix length needs to be 1-25\n"),
        (&["--cidr=10.0.2.100/26", pid, "tap0"], Nothing, "prefix length needs to be 1-25\n"),
        (&["--cidr=10.0.2.0/0", pid, "tap0"], Nothing, "prefix length needs to be 1-25\n"),
        (
            &["--cidr=10.0.2.100/24", pid, "tap0"],
            Nothing,
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24\n",
        ),
        (
            &["--userns-path=/nonexistent", pid, "tap0"],
            Usage,
            "userns path doesn't exist: /nonexistent\n",
        ),
        (
            &["--macaddress=02:00:00:00:00:01", pid, "tap0"],
            Usage,
            "--macaddr cannot be specified when --configure or -c is not specified\n",
        ),
        (
            &["--target-type=foo", pid, "tap0"],
            Usage,
            "--target-type must be either \"netns\" or \"bess\"\n",
        ),
        (
            &["--target-type=", pid, "tap0"],
            Usage,
            "--target-type must be either \"netns\" or \"bess\"\n",
        ),
        (&["--target-type=bess"], Usage, ""),
        (&["--target-type=bess", "/tmp/x", "tap0"], Usage, "too many arguments\n"),
        (
            &["--target-type=bess", "--userns-path=/proc/self/ns/user", "/tmp/x"],
            Usage,
            &conflict("userns-path"),
        ),
        (&["--userns-path=", pid, "tap0"], Usage, "userns path doesn't exist: \n"),
        (
            &["--enable-sandbox=1", pid, "tap0"],
            Usage,
            "slirp4netns: option '--enable-sandbox' doesn't allow an argument\n",
        ),
        (&["--help=1"], Usage, "slirp4netns: option '--help' doesn't allow an argument\n"),
        (
            &["--enable", pid, "tap0"],
            Usage,
            "slirp4netns: option '--enable' is ambiguous; possibilities: '--enable-ipv6' \
             '--enable-sandbox' '--enable-seccomp'\n",
        ),
        (
            &["--disable", pid, "tap0"],
            Usage,
            "slirp4netns: option '--disable' is ambiguous; possibilities: \
             '--disable-host-loopback' '--disable-dns'\n",
        ),
        (&["-Zh"], Usage, "slirp4netns: invalid option -- 'Z'\n"),
        (&["--target-type=bess", "-c", "/tmp/x"], Usage, &conflict("configure")),
        (&["--target-type=bess", "--netns-type=pid", "/tmp/x"], Usage, &conflict("netns-type")),
    ] {
        for helper in helpers() {
            let ran = helper.run(arguments);
            let said = if ran.stdout.starts_with("Usage: slirp4netns ") { Usage } else { Nothing };
            let expected = (Some(1), out, error);
            assert_eq!((ran.status, said, &*ran.stderr), expected, "{helper:?} {arguments:?}");
        }
    }
    // Where the wording is the program's own, the status and the cause count.
    for (arguments, named) in [
        (&["999999", "tap0"][..], "999999"),
        (&["--macaddress=zz", "-c", pid, "tap0"], "\"zz\" is an invalid MAC address"),
        (&["--macaddress=", "-c", pid, "tap0"], "\"\" is an invalid MAC address"),
        (&["--macaddress=02:00:00:00:00:01:02", "-c", pid, "tap0"], "Is it too long?"),
        (&["--macaddress=ff:ff:ff:ff:ff:ff", "-c", pid, "tap0"], "MAC address"),
        (&["--macaddress=00:00:00:00:00:00", "-c", pid, "tap0"], "MAC address"),
        (&["-cm", "10", pid, "tap0"], "MTU"),
        (&["--netns-type=path", "/tmp", "tap0"], ""),
        (&["--netns-type=path", "/proc/self/ns/user", "tap0"], ""),
        (&["--outbound-addr=", pid, "tap0"], "outbound-addr has to be valid ipv4 address or"),
        (&["--outbound-addr=nobody0", pid, "tap0"], ""),
        (&["--outbound-addr6=", pid, "tap0"], "outbound-addr has to be valid"),
        (&["--outbound-addr6=127.0.0.1", pid, "tap0"], ""),
        (&["--outbound-addr6=::g", pid, "tap0"], "outbound-addr has to be valid"),
        (&["-a", "/tmp", pid, "tap0"], ""),
        (&["-a", ".", pid, "tap0"], ""),
        (&[pid, "a/b"], ""),
        (&[pid, "."], ""),
        (&["--target-type=bess", &long], "the specified BESS socket path is too long (>= 108)"),
        (&["--netns-type=path", "/etc/passwd", "tap0"], ""),
        (&["--outbound-addr=300.1.1.1", pid, "tap0"], ""),
        (&["--outbound-addr6=nobody", pid, "tap0"], ""),
        (&[&too_long, pid, "tap0"], "the specified API socket path is too long (>= 108)"),
        (&["-a", "/nonexistent/socket", pid, "tap0"], ""),
        (&[pid, "lo"], ""),
        (&["--target-type=bess", "/nonexistent/x"], ""),
    ] {
        for helper in helpers() {
            let ran = helper.run(arguments);
            assert_eq!(ran.status, Some(1), "{helper:?} {arguments:?}: {ran:?}");
            assert!(ran.stderr.contains(named), "{helper:?} {arguments:?}: {ran:?}");
            assert_ne!(ran.stderr, "", "{helper:?} {arguments:?}");
        }
    }
}

#[test]
fn help_and_version_hold_what_engines_search_for() {
    for helper in helpers() {
        let help = helper.run(&["-c", "--help", "--bogus"]);
        assert_eq!((help.status, &*help.stderr), (Some(0), ""), "{helper:?}");
        for option in [
            "disable-host-loopback",
            "mtu",
            "enable-sandbox",
            "enable-seccomp",
            "cidr",
            "outbound-addr",
            "enable-ipv6",
            "netns-type",
            "api-socket",
        ] {
            assert!(help.stdout.contains(&format!("--{option}")), "{helper:?}: {option}");
        }
        let version = helper.run(&["--version"]);
        assert_eq!((version.status, &*version.stderr), (Some(0), ""), "{helper:?}");
        let lines: Vec<&str> = version.stdout.lines().collect();
        assert!(lines[0].starts_with("slirp4netns version 1."), "{version:?}");
        let known: u32 =
            lines[3].strip_prefix("SLIRP_CONFIG_VERSION_MAX: ").unwrap().parse().unwrap();
        assert!(known >= 4, "{version:?}");
    }
}
