use super::*;
use crate::setup::Outward;
use crate::setup::attach::AttachOptions;

fn facts() -> HostFacts {
    HostFacts {
        v4: Some(Outward { interface: "eth7".into(), mtu: 1432, source: [192, 0, 2, 77].into() }),
        v6: Some(Outward {
            interface: "eth8".into(),
            mtu: 9000,
            source: "2001:db8::77".parse().unwrap(),
        }),
        hostname: "box".into(),
        hosts: "127.0.0.1 localhost\n".into(),
        search: vec!["host.example".into()],
        pid: 4711,
        random_mac: Some(Mac([0x02, 1, 2, 3, 4, 5])),
        ..HostFacts::default()
    }
}

fn draft() -> Draft {
    Draft::new(DraftTarget::Run { command: vec!["true".into()], map_user: false })
}

fn ok(draft: Draft) -> Config {
    resolve(draft, &facts()).unwrap()
}

fn refused(draft: Draft) -> String {
    resolve(draft, &facts()).unwrap_err().to_string()
}

fn v4(text: &str) -> Draft {
    Draft { ipv4: Some(text.parse().unwrap()), ..draft() }
}

fn v6(text: &str) -> Draft {
    Draft { ipv6: Some(text.parse().unwrap()), ..draft() }
}

#[test]
fn without_options_everything_has_its_documented_default() {
    let config = ok(draft());
    let v4 = config.plan.v4.unwrap();
    assert_eq!(
        (v4.guest, v4.prefix, v4.gateway, v4.dns.unwrap()),
        ([10, 0, 2, 100].into(), 24, [10, 0, 2, 2].into(), [10, 0, 2, 3].into())
    );
    let v6 = config.plan.v6.unwrap();
    let text = |a: Ipv6Addr| a.to_string();
    assert_eq!(text(v6.guest), "fd74:6170:7761:79::100");
    assert_eq!(text(v6.gateway), "fd74:6170:7761:79::2");
    assert_eq!(text(v6.dns.unwrap()), "fd74:6170:7761:79::3");
    assert_eq!((text(v6.gateway_link_local), v6.prefix), ("fe80::2".into(), 64));
    assert_eq!(config.plan.gateway_mac, Mac([0x52, 0x55, 10, 0, 2, 2]));
    assert_eq!(config.plan.guest_mac, Mac([0x02, 1, 2, 3, 4, 5]));
    assert_eq!(config.plan.mtu, 1432);
    assert_eq!(config.plan.search, ["host.example"]);
    assert!(config.plan.host_loopback.is_empty());
    assert_eq!(config.ifname.as_str(), "tap0");
    assert_eq!(config.name.to_string(), "run-4711");
    assert_eq!(config.threads.least, 1);
    assert_eq!(config.log.level, LevelFilter::WARN);
    assert_eq!(config.dns, DnsOptions { enabled: true, ..config.dns.clone() });
    assert_eq!(config.outbound, Outbound::default());
}

#[test]
fn the_guests_ipv4_address_follows_from_the_network() {
    for (cidr, guest, gateway, dns) in [
        ("10.9.8.0/24", "10.9.8.100", "10.9.8.2", "10.9.8.3"),
        ("10.9.8.7/24", "10.9.8.7", "10.9.8.2", "10.9.8.3"),
        ("10.9.8.1/24", "10.9.8.1", "10.9.8.2", "10.9.8.3"),
        ("10.9.8.0/25", "10.9.8.100", "10.9.8.2", "10.9.8.3"),
        ("10.9.8.128/26", "10.9.8.190", "10.9.8.130", "10.9.8.131"),
        ("10.9.8.8/29", "10.9.8.14", "10.9.8.10", "10.9.8.11"),
        ("10.9.0.0/16", "10.9.0.100", "10.9.0.2", "10.9.0.3"),
        ("128.0.0.0/1", "128.0.0.100", "128.0.0.2", "128.0.0.3"),
    ] {
        let plan = ok(v4(cidr)).plan.v4.unwrap();
        let text = |a: Ipv4Addr| a.to_string();
        assert_eq!(
            (text(plan.guest), text(plan.gateway), text(plan.dns.unwrap())),
            (guest.into(), gateway.into(), dns.into()),
            "{cidr}"
        );
    }
}

#[test]
fn networks_in_which_no_guest_can_live_are_refused_by_name() {
    for (draft, named) in [
        (v4("10.9.8.0/30"), "--ipv4 10.9.8.0/30"),
        (v4("10.9.8.0/0"), "--ipv4 10.9.8.0/0"),
        (v4("10.9.8.2/24"), "gateway"),
        (v4("10.9.8.3/24"), "DNS"),
        (v4("10.9.8.255/24"), "broadcast"),
        (v4("127.0.0.0/8"), "loopback"),
        (v4("224.0.0.0/24"), "multicast"),
        (v4("0.0.0.0/8"), "reserved"),
        (v6("fd00::/48"), "must be 64"),
        (v6("fd00::2/64"), "gateway"),
        (v6("fd00::3/64"), "DNS"),
        (v6("fe80::/64"), "link-local"),
        (v6("ff02::/64"), "multicast"),
        (Draft { ipv4: Some(Switch::Off), ..v6("off") }, "--ipv4 off and --ipv6 off"),
    ] {
        let message = refused(draft);
        assert!(message.contains(named), "{message:?} does not name {named:?}");
    }
    assert_eq!(ok(v6("fd00::77/64")).plan.v6.unwrap().guest.to_string(), "fd00::77");
}

#[test]
fn the_mtu_is_the_outbound_interfaces_unless_it_is_given() {
    let with = |mtu| Draft { mtu: Some(mtu), ..draft() };
    let without_v6 = |mtu| Draft { mtu: Some(mtu), ipv6: Some(Switch::Off), ..draft() };
    assert_eq!(ok(with(1280)).plan.mtu, 1280);
    assert_eq!(ok(with(65_520)).plan.mtu, 65_520);
    assert_eq!(ok(without_v6(68)).plan.mtu, 68);
    assert!(refused(with(1279)).contains("--ipv6 off"));
    assert!(refused(without_v6(67)).contains("68"));
    assert!(refused(with(65_521)).contains("65520"));

    let mtu_on = |facts: HostFacts| resolve(draft(), &facts).unwrap().plan.mtu;
    assert_eq!(mtu_on(HostFacts { v4: None, ..facts() }), 9000);
    assert_eq!(mtu_on(HostFacts { v4: None, v6: None, ..facts() }), 1500);
    let loopback = Outward { mtu: 65_536, ..facts().v4.unwrap() };
    assert_eq!(mtu_on(HostFacts { v4: Some(loopback), ..facts() }), 65_520);
    let modem = Outward { mtu: 576, ..facts().v4.unwrap() };
    assert_eq!(mtu_on(HostFacts { v4: Some(modem), ..facts() }), 1280);
}

#[test]
fn addresses_for_the_hosts_loopback_must_be_reachable_by_the_guest() {
    let with = |list: &[&str]| Draft {
        host_loopback: list.iter().map(|a| a.parse().unwrap()).collect(),
        ..draft()
    };
    let config = ok(with(&["10.0.2.2", "fd00::9"]));
    let expected: [IpAddr; 2] = ["10.0.2.2", "fd00::9"].map(|a| a.parse().unwrap());
    assert_eq!(config.plan.host_loopback, expected);
    assert!(ok(with(&["off"])).plan.host_loopback.is_empty());
    for (list, named) in [
        (&["10.0.2.3"][..], "DNS"),
        (&["10.0.2.100"], "own address"),
        (&["10.0.2.255"], "gateway"),
        (&["127.0.0.1"], "--host-loopback 127.0.0.1"),
        (&["224.0.0.1"], "--host-loopback 224.0.0.1"),
        (&["fe80::9"], "--host-loopback fe80::9"),
        (&["10.0.2.8", "10.0.2.9"], "already one for IPv4"),
        (&["off", "10.0.2.9"], "contradicts"),
    ] {
        let message = refused(with(list));
        assert!(message.contains(named), "{message:?} does not name {named:?}");
    }
    let one_family = Draft { ipv6: Some(Switch::Off), ..with(&["fd00::9"]) };
    assert!(refused(one_family).contains("address family"));
}

#[test]
fn the_host_is_known_by_its_own_addresses_or_by_the_loopback_stand_in() {
    let hosts = |draft| match ok(draft).action {
        Action::Run { files, .. } => files.unwrap().hosts,
        _ => unreachable!("a draft of run"),
    };
    let names = "host.tapway.internal host.docker.internal host.containers.internal";
    let text = hosts(draft());
    assert!(text.contains(&format!("192.0.2.77\t{names}\n")), "{text}");
    assert!(text.contains(&format!("2001:db8::77\t{names}\n")), "{text}");
    assert!(text.contains("10.0.2.100\tbox\n"), "{text}");
    let text = hosts(Draft { host_loopback: vec!["10.0.2.9".parse().unwrap()], ..draft() });
    assert!(text.contains(&format!("10.0.2.9\t{names}\n")), "{text}");
    assert!(!text.contains("192.0.2.77"), "{text}");

    let added = |text: &str| Draft { add_host: vec![text.parse().unwrap()], ..v6("off") };
    assert!(hosts(added("db:198.51.100.4")).contains("198.51.100.4\tdb\n"));
    let text = hosts(added("up:host-gateway"));
    assert!(text.contains("192.0.2.77\tup\n") && !text.contains("2001:db8::77"), "{text}");
    let nowhere = HostFacts { v4: None, v6: None, ..facts() };
    let error = resolve(added("up:host-gateway"), &nowhere).unwrap_err();
    assert_eq!(error, ConfigError::NoHostAddress("up".into()));
}

#[test]
fn names_are_resolved_by_the_forwarder_unless_it_is_off() {
    let resolv_conf = |draft| match ok(draft).action {
        Action::Run { files, .. } => files.unwrap().resolv_conf,
        _ => unreachable!("a draft of run"),
    };
    let dns =
        |list: &[&str]| Draft { dns: list.iter().map(|a| a.parse().unwrap()).collect(), ..draft() };
    assert!(resolv_conf(draft()).unwrap().contains("search host.example\n"));
    assert_eq!(resolv_conf(dns(&["off"])), None);
    assert!(!ok(dns(&["off"])).dns.enabled);
    let config = ok(dns(&["192.0.2.1", "[2001:db8::1]:5353"]));
    assert_eq!(
        config.dns.upstreams.unwrap(),
        ["192.0.2.1:53", "[2001:db8::1]:5353"].map(|a| a.parse().unwrap())
    );
    assert!(refused(dns(&["off", "192.0.2.1"])).contains("--dns off"));
    let config = ok(Draft { dns_search: vec!["a.example".into()], ..draft() });
    assert_eq!(config.plan.search, ["a.example"]);
    assert_eq!(config.dns.search, Some(vec!["a.example".into()]));
}

#[test]
fn outbound_choices_are_checked_against_the_host() {
    let from = |list: &[&str]| Draft {
        outbound_addr: list.iter().map(|a| a.parse().unwrap()).collect(),
        ..draft()
    };
    let outbound = ok(from(&["192.0.2.9", "2001:db8::9"])).outbound;
    assert_eq!(outbound.v4, Some([192, 0, 2, 9].into()));
    assert_eq!(outbound.v6, Some("2001:db8::9".parse().unwrap()));
    assert!(refused(from(&["192.0.2.9", "192.0.2.8"])).contains("already one for IPv4"));
    assert!(refused(from(&["0.0.0.0"])).contains("--outbound-addr 0.0.0.0"));

    let of = |v4: &str, v6: &str| {
        let names = [v4, v6].map(|name| name.parse().ok());
        let addresses = [("a", "192.0.2.5"), ("a", "2001:db8::5"), ("b", "192.0.2.6")];
        let addresses = addresses.map(|(name, address)| (name.into(), address.parse().unwrap()));
        let facts = HostFacts { addresses: addresses.to_vec(), ..facts() };
        resolve(Draft { outbound_from: names, ..draft() }, &facts)
    };
    let outbound = of("b", "a").unwrap().outbound;
    assert_eq!(outbound.v4, Some([192, 0, 2, 6].into()));
    assert_eq!(outbound.v6, Some("2001:db8::5".parse().unwrap()));
    assert_eq!(
        of("", "b").unwrap_err().to_string(),
        "the host has no interface b with an address to send from"
    );

    let through = Draft { outbound_interface: Some("wg0".parse().unwrap()), ..draft() };
    assert!(refused(through.clone()).contains("--outbound-interface wg0"));
    let with_it = HostFacts { named_interface: Some(("wg0".into(), 1420)), ..facts() };
    let config = resolve(through, &with_it).unwrap();
    assert_eq!((config.outbound.interface6.as_deref(), config.plan.mtu), (Some("wg0"), 1420));
}

#[test]
fn without_a_command_there_is_a_shell() {
    let command = |shell: Option<&str>| {
        let draft = Draft::new(DraftTarget::Run { command: vec![], map_user: false });
        let facts = HostFacts { shell: shell.map(Into::into), ..facts() };
        match resolve(draft, &facts).unwrap().action {
            Action::Run { command, .. } => command,
            _ => unreachable!("a draft of run"),
        }
    };
    assert_eq!(command(Some("/bin/zsh")), ["/bin/zsh"]);
    assert_eq!(command(None), ["/bin/sh"]);
}

#[test]
fn process_ids_and_threads_have_bounds() {
    let attach = |pid| {
        Draft::new(DraftTarget::Attach(AttachOptions {
            target: Target::Process(pid),
            userns: None,
            watched: true,
        }))
    };
    assert_eq!(ok(attach(1)).name.to_string(), "attach-4711");
    assert!(refused(attach(0)).contains("not a process id"));
    assert!(refused(attach(-5)).contains("-5"));
    let threads =
        |n: usize| Draft { threads: Some(DraftThreads::Count(n.try_into().unwrap())), ..draft() };
    for count in [1, 4, 64] {
        assert_eq!(ok(threads(count)).threads, Threads { least: count, most: count });
    }
    assert!(refused(threads(65)).contains("64"));
}

#[test]
fn ports_go_to_their_lists_in_the_order_given() {
    let publish = ["8080:80", "80:unix:/a", "auto/udp", "81-82"].map(|t| t.parse().unwrap());
    let expose_host = ["5432", "auto,~22"].map(|t| t.parse().unwrap());
    let draft = Draft {
        publish: publish.to_vec(),
        publish_when_listening: true,
        expose_host: expose_host.to_vec(),
        ..draft()
    };
    let forwards = ok(draft).forwards;
    let text = |rule: &Forward| rule.to_string();
    let published: Vec<_> = forwards.publish.iter().map(text).collect();
    assert_eq!(published, ["8080:80/tcp", ":81/tcp", ":82/tcp"]);
    assert!(forwards.publish.iter().all(|rule| rule.when_listening));
    let exposed: Vec<_> = forwards.expose.iter().map(ToString::to_string).collect();
    assert_eq!(exposed, ["80:unix:/a", "5432:5432/tcp"]);
    assert_eq!((forwards.auto_publish.len(), forwards.auto_expose.len()), (1, 1));
}

#[test]
fn ports_that_cannot_be_together_are_refused_by_name() {
    let publish = |specs: &[&str]| Draft {
        publish: specs.iter().map(|text| text.parse().unwrap()).collect(),
        ..draft()
    };
    let without_v6 = |specs| Draft { ipv6: Some(Switch::Off), ..publish(specs) };
    let expose = ["80", "80:unix:/a"].map(|text| text.parse().unwrap());
    for (draft, named) in [
        (
            publish(&["8080-8090:80-90", "127.0.0.1:8085:80"]),
            "--publish 127.0.0.1:8085:80/tcp overlaps 8080-8090:80-90/tcp",
        ),
        (publish(&["auto", "auto/udp,~53"]), "--publish auto follows udp twice"),
        (
            without_v6(&["8080:[fd00::5]:80"]),
            "--publish 8080:[fd00::5]:80/tcp: the guest has no IPv6",
        ),
        (publish(&["8080:10.0.2.2:80"]), "--publish 8080:10.0.2.2:80/tcp: the guest's address"),
        (
            Draft { expose_host: expose.to_vec(), ..draft() },
            "--expose-host 80:unix:/a overlaps 80:80/tcp",
        ),
    ] {
        let message = refused(draft);
        assert!(message.starts_with(named), "{message:?} does not begin with {named:?}");
    }
}
