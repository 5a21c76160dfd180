use super::*;

fn published(text: &str) -> Vec<Forward> {
    match text.parse() {
        Ok(PublishSpec::Forwards(forwards)) => forwards,
        other => panic!("{text}: {other:?}"),
    }
}

fn one(text: &str) -> Forward {
    let forwards = published(text);
    assert_eq!(forwards.len(), 1, "{text}");
    forwards.into_iter().next().unwrap()
}

fn exposed(text: &str) -> Exposure {
    match text.parse() {
        Ok(ExposeSpec::Exposure(exposure)) => exposure,
        other => panic!("{text}: {other:?}"),
    }
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What most rules have in common.
fn forward(ports: PortRange, guest_ports: PortRange) -> Forward {
    Forward {
        transport: Transport::Tcp,
        listen: Listen::Ports { address: None, interface: None, ports },
        guest_address: None,
        guest_ports,
        when_listening: false,
    }
}

fn at(address: Option<&str>, interface: Option<&str>, ports: PortRange) -> Listen {
    Listen::Ports { address: address.map(ip), interface: interface.map(str::to_owned), ports }
}

#[test]
fn host_and_guest_ports_are_as_docker_writes_them() {
    let port = range(8080, 8080);
    let plain = forward(port, range(80, 80));
    assert_eq!(one("8080:80"), plain);
    assert_eq!(one("8080:80/tcp"), plain);
    assert_eq!(one(":8080:80"), plain);
    let with = |listen| Forward { listen, ..plain.clone() };
    assert_eq!(one("127.0.0.1:8080:80"), with(at(Some("127.0.0.1"), None, port)));
    assert_eq!(one("[::1]:8080:80/tcp"), with(at(Some("::1"), None, port)));
    assert_eq!(one("[::]:8080:80"), with(at(Some("::"), None, port)));
    assert_eq!(one("[::ffff:192.0.2.1]:8080:80"), with(at(Some("192.0.2.1"), None, port)));
    let ranges = Forward {
        transport: Transport::Udp,
        listen: at(Some("0.0.0.0"), None, range(5000, 5010)),
        guest_ports: range(6000, 6010),
        ..plain.clone()
    };
    assert_eq!(one("0.0.0.0:5000-5010:6000-6010/udp"), ranges);
    assert_eq!(one("1-65535:1-65535"), forward(range(1, 65_535), range(1, 65_535)));
}

#[test]
fn a_host_port_that_is_left_out_is_picked() {
    let picked = forward(PortRange::ANY, range(80, 80));
    for text in ["80", ":80", "::80"] {
        assert_eq!(published(text), std::slice::from_ref(&picked), "{text}");
    }
    let listen = at(Some("127.0.0.1"), None, PortRange::ANY);
    assert_eq!(one("127.0.0.1::80"), Forward { listen, ..picked.clone() });
    let listen = at(Some("::1"), None, PortRange::ANY);
    assert_eq!(one("[::1]::80"), Forward { listen, ..picked });
    let three = [80, 81, 82].map(|port| forward(PortRange::ANY, range(port, port)));
    assert_eq!(published("80-82"), three);
    assert_eq!(published(":80-82/tcp"), three);
}

#[test]
fn an_interface_stands_with_the_address_or_alone() {
    let plain = forward(range(8080, 8080), range(80, 80));
    let with = |address, interface| {
        let listen = at(address, Some(interface), range(8080, 8080));
        Forward { listen, ..plain.clone() }
    };
    assert_eq!(one("%eth0:8080:80"), with(None, "eth0"));
    assert_eq!(one("0.0.0.0%eth0.7:8080:80"), with(Some("0.0.0.0"), "eth0.7"));
    assert_eq!(one("[fe80::1]%eth0:8080:80"), with(Some("fe80::1"), "eth0"));
    assert_eq!(one("[fe80::1%eth0]:8080:80"), with(Some("fe80::1"), "eth0"));
}

#[test]
fn the_guests_address_stands_before_its_port() {
    let plain = forward(range(8080, 8080), range(80, 80));
    let to = |address| Forward { guest_address: Some(ip(address)), ..plain.clone() };
    assert_eq!(one("8080:10.0.2.15:80"), to("10.0.2.15"));
    assert_eq!(one("8080:[fd00::5]:80"), to("fd00::5"));
    assert_eq!(one(":8080:10.0.2.15:80"), to("10.0.2.15"));
    let listen = at(Some("::"), None, range(8080, 8080));
    assert_eq!(one("[::]:8080:[fd00::5]:80"), Forward { listen, ..to("fd00::5") });
    let listen = at(None, None, PortRange::ANY);
    assert_eq!(one(":10.0.2.15:80"), Forward { listen, ..to("10.0.2.15") });
}

#[test]
fn unix_sockets_stand_on_either_side() {
    let unix = |path: &str| Forward {
        listen: Listen::Unix(path.into()),
        ..forward(PortRange::ANY, range(80, 80))
    };
    assert_eq!(one("unix:/run/a.sock:80"), unix("/run/a.sock"));
    assert_eq!(one("unix:/run/a.sock:80/tcp"), unix("/run/a.sock"));
    assert_eq!(one("unix:/a:b/c:80"), unix("/a:b/c"));
    let to = |address| Forward { guest_address: Some(ip(address)), ..unix("/a") };
    assert_eq!(one("unix:/a:10.0.2.15:80"), to("10.0.2.15"));
    assert_eq!(one("unix:/a:[fd00::5]:80"), to("fd00::5"));
    let exposure = Exposure {
        transport: Transport::Tcp,
        ports: range(80, 80),
        service: HostService::Unix("/run/a:b.sock".into()),
    };
    assert_eq!(exposed("80:unix:/run/a:b.sock"), exposure);
    assert_eq!("80:unix:/run/a:b.sock".parse(), Ok(PublishSpec::Exposure(exposure)));
}

#[test]
fn protocols_are_read_in_any_case() {
    assert_eq!(one("8080:80/UDP"), one("8080:80/udp"));
    assert_eq!(one("8080:80/Tcp"), one("8080:80"));
    assert_eq!(one("unix:/a:80/TCP"), one("unix:/a:80"));
    assert_eq!("auto/TCP".parse::<PublishSpec>(), "auto/tcp".parse());
}

#[test]
fn exposed_ports_lead_to_the_hosts_loopback_unless_said() {
    let leads = |transport, ports, address: Option<&str>, inner| Exposure {
        transport,
        ports,
        service: HostService::Ports { address: address.map(ip), ports: inner },
    };
    let (tcp, udp) = (Transport::Tcp, Transport::Udp);
    let db = range(5432, 5432);
    assert_eq!(exposed("5432"), leads(tcp, db, None, db));
    assert_eq!(exposed("15432:5432"), leads(tcp, range(15_432, 15_432), None, db));
    let other = leads(tcp, range(15_432, 15_432), Some("192.0.2.7"), db);
    assert_eq!(exposed("15432:192.0.2.7:5432"), other);
    let other = leads(udp, range(53, 53), Some("2001:db8::7"), range(5353, 5353));
    assert_eq!(exposed("53:[2001:db8::7]:5353/udp"), other);
    assert_eq!(exposed("10-20:30-40/udp"), leads(udp, range(10, 20), None, range(30, 40)));
}

#[test]
fn auto_has_protocols_and_exclusions() {
    let auto = |transports: &[Transport], exclude: &[PortRange]| AutoForward {
        transports: transports.to_vec(),
        exclude: exclude.to_vec(),
        ..AutoForward::default()
    };
    let (tcp, udp) = (Transport::Tcp, Transport::Udp);
    for (text, meant) in [
        ("auto", auto(&[tcp, udp], &[])),
        ("auto/udp", auto(&[udp], &[])),
        ("auto,~22,~5000-5010", auto(&[tcp, udp], &[range(22, 22), range(5000, 5010)])),
        ("auto/tcp,~22", auto(&[tcp], &[range(22, 22)])),
    ] {
        assert_eq!(text.parse(), Ok(PublishSpec::Auto(meant.clone())), "{text}");
        assert_eq!(text.parse(), Ok(ExposeSpec::Auto(meant)), "{text}");
    }
}

#[test]
fn what_is_refused_is_told_in_a_sentence_that_names_it() {
    let long = format!("unix:/{}:80", "x".repeat(107));
    for (text, named) in [
        ("", "a port is missing"),
        ("8080:", "a port is missing"),
        (":unix:/a.sock", "a port is missing"),
        ("http", "\"http\" is not a port"),
        ("8080:http", "\"http\" is not a port"),
        ("8080:80/sctp", "\"sctp\" is not a protocol"),
        ("8080:80/tcp+udp", "one option for each"),
        ("8080:80/", "\"\" is not a protocol"),
        ("0:80", "no port 0"),
        ("8080:0", "no port 0"),
        ("65536:80", "\"65536\" is not a port"),
        ("8080:99999999999", "\"99999999999\" is not a port"),
        ("+8080:80", "\"+8080\" is not a port"),
        ("90-80:90-80", "write 80-90"),
        ("80-:80", "\"\" is not a port"),
        ("8080-8090:80", "8080-8090 and 80 must have the same length, and are 11 and 1"),
        ("5000-5010:6000-6009", "same length"),
        ("127.0.0.1:80", "127.0.0.1:8080:80, or 127.0.0.1::80"),
        ("[::1]:80", "[::1]:8080:80, or [::1]::80"),
        ("%eth0:80", "%eth0:8080:80, or %eth0::80"),
        ("localhost:8080:80", "\"localhost\" is not an address"),
        ("127.0.0.256:8080:80", "\"127.0.0.256\" is not an address"),
        ("::1:8080:80", "brackets"),
        ("fd00::1", "brackets"),
        ("fd00::1:80", "brackets"),
        ("8080:fd00::5:80", "brackets"),
        ("[::1:8080:80", "brackets"),
        ("::1]:8080:80", "brackets"),
        ("[[::1]]:8080:80", "brackets"),
        ("[::1]x:8080:80", "\"[::1]x\" is not an address"),
        ("[127.0.0.1]:8080:80", "\"[127.0.0.1]\" is not an address"),
        ("1.2.3.4:1:1.2.3.4:1:1", "too many colons"),
        ("%:8080:80", "\"\" is not an interface"),
        ("%abcdefghijklmnop:8080:80", "\"abcdefghijklmnop\" is not an interface"),
        ("[fe80::1]:8080:80", "fe80::1 needs its interface"),
        ("224.0.0.1:8080:80", "224.0.0.1 is not one host's address"),
        ("8080:127.0.0.1:80", "127.0.0.1 is reached from inside"),
        ("8080:0.0.0.0:80", "0.0.0.0 is no address of a guest"),
        ("8080:10.0.2.15%eth0:80", "\"10.0.2.15%eth0\" is not an address"),
        ("unix:a.sock:80", "\"a.sock\" is not"),
        ("unix:/a.sock", "unix:PATH:PORT"),
        ("unix:/a:b/c", "unix:PATH:PORT"),
        ("unix:/a/:80", "names a directory"),
        ("unix:/a.sock:80/udp", "tcp only"),
        ("unix:/a.sock:80-81", "80-81 are 2 ports"),
        ("unix::80", "must be absolute"),
        (&long, "at most 107 bytes, and this one has 108"),
        ("80:unix:a.sock", "\"a.sock\" is not"),
        ("80-81:unix:/a.sock", "80-81 are 2 ports"),
        ("80/udp:unix:/a.sock", "tcp only"),
        ("automatic", "\"matic\" does not belong after auto"),
        ("auto,22", "\"22\" does not belong after auto"),
        ("auto,~x", "\"x\" is not a port"),
        ("auto/sctp", "\"sctp\" is not a protocol"),
    ] {
        let error = text.parse::<PublishSpec>().expect_err(text).to_string();
        assert!(error.contains(named), "{text}: {error:?} does not name {named:?}");
        assert!(!error.contains('\n') && !error.ends_with('.'), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_exposed_is_told_likewise() {
    for (text, named) in [
        ("", "a port is missing"),
        ("5432:", "a port is missing"),
        (":5432", "a port is missing"),
        ("5432:0", "no port 0"),
        ("10-20:30", "10-20 and 30 must have the same length"),
        ("127.0.0.1:5432", "\"127.0.0.1\" is not a port"),
        ("5432:db:5432", "\"db\" is not an address"),
        ("5432:0.0.0.0:5432", "0.0.0.0 is no address of a service"),
        ("5432:[fe80::1]:5432", "fe80::1 means nothing without its interface"),
        ("5432:192.0.2.7%eth0:5432", "is not an address"),
        ("5432:2001:db8::7:5432", "brackets"),
        ("1:2:192.0.2.7:4", "at most PORT:HOST-ADDRESS:PORT"),
        ("unix:/a.sock:80", "write PORT:unix:PATH"),
        ("80:unix:a.sock", "must be absolute"),
    ] {
        let error = text.parse::<ExposeSpec>().expect_err(text).to_string();
        assert!(error.contains(named), "{text}: {error:?} does not name {named:?}");
    }
}

#[test]
fn rules_are_written_as_they_are_typed() {
    for text in [
        "8080:80/tcp",
        ":80/udp",
        "127.0.0.1::80/tcp",
        "[::1]:8080:80/tcp",
        "%eth0:8080:80/tcp",
        "[fe80::1]%eth0:5000-5010:6000-6010/udp",
        "[::]:8080:[fd00::5]:80/tcp",
        "unix:/run/a.sock:10.0.2.15:80",
    ] {
        assert_eq!(one(text).to_string(), text);
    }
    for text in ["80:unix:/a", "10-20:30-40/udp", "53:[2001:db8::7]:5353/udp"] {
        assert_eq!(exposed(text).to_string(), text);
    }
}

proptest::proptest! {
    /// Whatever is taken means the same when it is written out and read again.
    #[test]
    fn no_text_is_taken_for_something_else(text in "[0-9a-f:.%/\\[\\]~,-]{0,24}") {
        if let Ok(PublishSpec::Forwards(forwards)) = text.parse() {
            for forward in forwards {
                proptest::prop_assert_eq!(published(&forward.to_string()), vec![forward]);
            }
        }
    }
}
