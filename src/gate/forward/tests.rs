use super::*;

#[test]
fn ranges_are_ascending_and_do_not_hold_port_0() {
    assert_eq!(PortRange::new(0, 5), None);
    assert_eq!(PortRange::new(6, 5), None);
    let range = PortRange::new(1, u16::MAX).unwrap();
    assert_eq!((range.count(), range.to_string()), (65_535, "1-65535".to_owned()));
    assert_eq!(PortRange::single(80).to_string(), "80");
}

#[test]
fn ranges_overlap_where_they_share_a_port() {
    let range = |first, last| PortRange::new(first, last).unwrap();
    assert!(range(10, 20).overlaps(range(20, 30)));
    assert!(range(10, 30).overlaps(range(15, 16)));
    assert!(!range(10, 20).overlaps(range(21, 30)));
    assert!(!PortRange::ANY.overlaps(PortRange::ANY));
}

fn forward(
    address: Option<&str>,
    interface: Option<&str>,
    ports: PortRange,
    transport: Transport,
) -> Forward {
    Forward {
        transport,
        listen: Listen::Ports {
            address: address.map(|text| text.parse().unwrap()),
            interface: interface.map(str::to_owned),
            ports,
        },
        guest_address: None,
        guest_ports: PortRange::single(80),
        when_listening: false,
    }
}

#[test]
fn wildcards_overlap_every_address_that_they_include() {
    let tcp = |address| forward(address, None, PortRange::single(8080), Transport::Tcp);
    let addresses =
        [None, Some("0.0.0.0"), Some("::"), Some("127.0.0.1"), Some("192.0.2.1"), Some("::1")];
    // Row and column as above.
    let meant = [
        [true, true, true, true, true, true],
        [true, true, false, true, true, false],
        [true, false, true, false, false, true],
        [true, true, false, true, false, false],
        [true, true, false, false, true, false],
        [true, false, true, false, false, true],
    ];
    for (a, row) in addresses.iter().zip(meant) {
        for (b, overlap) in addresses.iter().zip(row) {
            assert_eq!(tcp(*a).overlaps(&tcp(*b)), overlap, "{a:?} {b:?}");
        }
    }
}

#[test]
fn transports_interfaces_and_ports_keep_rules_apart() {
    let range = |first, last| PortRange::new(first, last).unwrap();
    let plain = forward(None, None, range(80, 90), Transport::Tcp);
    assert!(!plain.overlaps(&forward(None, None, range(80, 90), Transport::Udp)));
    assert!(!plain.overlaps(&forward(None, None, range(91, 99), Transport::Tcp)));
    assert!(plain.overlaps(&forward(None, None, range(90, 99), Transport::Tcp)));
    let on = |interface| forward(None, Some(interface), range(80, 80), Transport::Tcp);
    assert!(plain.overlaps(&on("eth0")));
    assert!(on("eth0").overlaps(&on("eth0")));
    assert!(!on("eth0").overlaps(&on("eth1")));
    let unix = |path: &str| Forward { listen: Listen::Unix(path.into()), ..plain.clone() };
    assert!(unix("/a").overlaps(&unix("/a")));
    assert!(!unix("/a").overlaps(&unix("/b")) && !unix("/a").overlaps(&plain));
}

#[test]
fn both_rules_of_an_overlap_are_named() {
    let at = |address, port| forward(address, None, PortRange::single(port), Transport::Tcp);
    let picked = at(None, 0);
    let rules = [picked.clone(), picked, at(None, 81), at(None, 82), at(Some("::1"), 81)];
    let error = check_forwards(&rules).unwrap_err();
    assert_eq!(error.to_string(), "[::1]:81:80/tcp overlaps 81:80/tcp");
    assert_eq!(check_forwards(&rules[..4]), Ok(()));
}

#[test]
fn exposures_overlap_by_transport_and_port() {
    let exposure =
        |transport, ports| Exposure { transport, ports, service: HostService::Unix("/a".into()) };
    let range = |first, last| PortRange::new(first, last).unwrap();
    let tcp = exposure(Transport::Tcp, range(80, 90));
    let udp = exposure(Transport::Udp, range(80, 90));
    assert_eq!(check_exposures(&[tcp.clone(), udp]), Ok(()));
    let error = check_exposures(&[tcp, exposure(Transport::Tcp, range(90, 90))]).unwrap_err();
    assert_eq!(error.to_string(), "90:unix:/a overlaps 80-90:unix:/a");
}

#[test]
fn auto_leaves_alone_what_is_excluded() {
    let auto = AutoForward {
        transports: vec![Transport::Udp],
        exclude: vec![PortRange::single(22), PortRange::new(5000, 5010).unwrap()],
        ..AutoForward::default()
    };
    assert!(auto.covers(Transport::Udp, 5011) && !auto.covers(Transport::Udp, 5010));
    assert!(!auto.covers(Transport::Udp, 22) && !auto.covers(Transport::Tcp, 5011));
}

proptest::proptest! {
    /// The sweep over sorted rules finds an overlap exactly where comparing all pairs does.
    #[test]
    fn no_overlap_escapes_the_sweep(
        rules in proptest::collection::vec((1..60_u16, 0..12_u16, 0..3_usize), 0..8)
    ) {
        let address = [None, Some("127.0.0.1"), Some("::1")];
        let rule = |&(first, more, at): &(u16, u16, usize)| {
            let ports = PortRange::new(first, first + more).unwrap();
            forward(address[at], None, ports, Transport::Tcp)
        };
        let rules: Vec<_> = rules.iter().map(rule).collect();
        let pairs = |(at, rule): (usize, &Forward)| rules[..at].iter().any(|o| o.overlaps(rule));
        let any = rules.iter().enumerate().any(pairs);
        proptest::prop_assert_eq!(check_forwards(&rules).is_err(), any);
    }
}

#[test]
fn what_is_excluded_leaves_the_rest_of_a_range() {
    let range = |first, last| PortRange::new(first, last).unwrap();
    let ports = range(20, 30);
    for (excluded, kept) in [
        (vec![], vec![ports]),
        (vec![range(25, 26)], vec![range(20, 24), range(27, 30)]),
        (vec![range(28, 40), range(1, 21)], vec![range(22, 27)]),
        (vec![range(22, 25), range(24, 27)], vec![range(20, 21), range(28, 30)]),
        (vec![range(1, 65_535)], vec![]),
        (vec![range(20, 29)], vec![range(30, 30)]),
        (vec![range(31, 40)], vec![ports]),
    ] {
        assert_eq!(ports.without(&excluded), kept, "{excluded:?}");
    }
    assert_eq!(PortRange::ALL.without(&[PortRange::single(65_535)]), [range(1, 65_534)]);
}
