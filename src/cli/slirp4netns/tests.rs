use super::*;

fn read(words: &[&str]) -> Result<Draft, Answer> {
    parse(OsStr::new("slirp4netns"), words.iter().map(OsString::from).collect())
}

fn ok(words: &[&str]) -> Draft {
    read(words).unwrap()
}

fn attach(draft: &Draft) -> &AttachOptions {
    match &draft.target {
        DraftTarget::Attach(options) => options,
        DraftTarget::Run { .. } => unreachable!("slirp4netns runs nothing"),
    }
}

fn text<T: fmt::Display>(values: impl IntoIterator<Item = Switch<T>>) -> Vec<String> {
    let on = |value: Switch<T>| match value {
        Switch::On(value) => Some(value.to_string()),
        Switch::Off => None,
    };
    values.into_iter().filter_map(on).collect()
}

#[test]
fn podmans_command_line_is_understood() {
    let draft = ok(&[
        "--disable-host-loopback",
        "--mtu=65520",
        "--enable-sandbox",
        "--enable-seccomp",
        "--cidr=10.9.8.0/24",
        "--enable-ipv6",
        "--outbound-addr=eth0",
        "--outbound-addr6=2001:db8::7",
        "-c",
        "-r",
        "3",
        "-e",
        "4",
        "--api-socket",
        "/run/x.net",
        "--netns-type=path",
        "/proc/self/ns/net",
        "tap0",
    ]);
    assert_eq!(attach(&draft).target, Target::Path("/proc/self/ns/net".into()));
    assert!(!attach(&draft).watched);
    assert_eq!(draft.ifname.unwrap().as_str(), "tap0");
    assert_eq!((draft.mtu, draft.link_setup), (Some(65_520), LinkSetup::WithoutV6));
    assert!(draft.host_loopback.is_empty());
    assert_eq!(draft.outbound_addr, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
    assert_eq!(draft.outbound_from[0].as_ref().unwrap().as_str(), "eth0");
    assert_eq!(
        draft.habits,
        Habits {
            closed_is_unreachable: true,
            dns_is_silent: false,
            lease: Some([10, 9, 8, 15].into())
        }
    );
    let conduct = draft.conduct;
    assert_eq!((conduct.ready_fd, conduct.lives_for), (Some(3), LivesFor::Starter(Some(4))));
    assert_eq!(conduct.api_socket.as_deref(), Some("/run/x.net".as_ref()));
    assert_eq!(conduct.listed, Listed::As("slirp4netns"));
    assert_eq!((conduct.sees, conduct.keeps), (Sees::EtcAndRun, Keeps::LowPorts));
    assert!(conduct.refuses_calls);
    assert!(conduct.greeting.contains("Recommended IP:  10.9.8.100\n"), "{}", conduct.greeting);
}

#[test]
fn without_options_it_is_the_network_of_slirp_left_alone() {
    let draft = ok(&["1", "tap7"]);
    assert_eq!(attach(&draft).target, Target::Process(1));
    assert_eq!(draft.ipv4, Some(Switch::On("10.0.2.0/24".parse().unwrap())));
    assert_eq!((draft.ipv6, draft.mtu), (Some(Switch::Off), Some(1500)));
    assert_eq!(text(draft.host_loopback), ["10.0.2.2"]);
    assert_eq!(draft.link_setup, LinkSetup::Nothing);
    assert_eq!(draft.conduct.lives_for, LivesFor::Starter(None));
    assert_eq!(draft.conduct.api_socket, None);
    assert_eq!((draft.conduct.sees, draft.conduct.ready_fd), (Sees::Everything, None));
}

#[test]
fn options_follow_the_target_and_the_last_one_counts() {
    let draft = ok(&["-m", "1400", "1", "--conf", "tap0", "--mt=1300", "-6c", "--disable-dns"]);
    assert_eq!((draft.mtu, draft.link_setup), (Some(1300), LinkSetup::WithoutV6));
    assert_eq!(text(draft.host_loopback), ["10.0.2.2", "fd00::2"]);
    assert_eq!(draft.dns, [DnsChoice::Off]);
    assert!(draft.habits.dns_is_silent);
    assert_eq!(ok(&["-6", "-m1279", "1", "t"]).ipv6, Some(Switch::Off));
    assert_eq!(ok(&["-m65521", "1", "t"]).mtu, Some(65_520));
}

#[test]
fn targets_without_a_namespace_need_no_interface_name() {
    assert_eq!(attach(&ok(&["--netns-type=tapfd", "7"])).target, Target::Tap(7));
    let bess = ok(&["--target-type=bess", "/run/bess"]);
    assert_eq!(attach(&bess).target, Target::Socket("/run/bess".into()));
    assert!(bess.conduct.greeting.starts_with("WARNING: BESS mode is experimental\n"));
}

#[test]
fn help_and_version_name_what_engines_search_for() {
    let help = read(&["--help", "--bogus"]).unwrap_err();
    assert_eq!((help.status, help.stderr.as_str()), (0, ""));
    for flag in OPTIONS {
        let name = flag.long.unwrap();
        let deprecated = ["no-host-loopback", "create-sandbox"].contains(&name);
        assert_eq!(help.stdout.contains(&format!("--{name}")), !deprecated, "{name}");
    }
    let version = read(&["-v"]).unwrap_err().stdout;
    assert!(version.starts_with("slirp4netns version 1.3.3\ncommit: "), "{version}");
    let lines: Vec<&str> = version.lines().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(lines[2..], ["libslirp", "SLIRP_CONFIG_VERSION_MAX", "libseccomp"]);
}
