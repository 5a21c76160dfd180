use std::net::IpAddr;
use std::path::Path;

use super::*;
use crate::base::Mac;
use crate::cli::Action;
use crate::gate::Destination;
use crate::gate::forward::{Forward, PortRange, Transport};
use crate::setup::attach::Target;
use crate::setup::{CopiedAddress, CopiedRoute, HostFacts, LinkSetup, Template, Templates};

fn route(destination: &str, prefix: u8, gateway: Option<&str>) -> CopiedRoute {
    CopiedRoute {
        destination: destination.parse().unwrap(),
        prefix,
        gateway: gateway.map(|text| text.parse().unwrap()),
        metric: None,
        onlink: false,
    }
}

fn facts() -> PastaFacts {
    let address = |text: &str, prefix| CopiedAddress::new(text.parse().unwrap(), prefix);
    PastaFacts {
        host: HostFacts {
            random_mac: Some(Mac([2, 0, 0, 0, 0, 7])),
            pid: 4711,
            ..HostFacts::default()
        },
        person: None,
        hostname: "host7".into(),
        templates: Templates {
            v4: Some(Template {
                interface: "eth7".to_owned(),
                addresses: vec![address("203.0.113.7", 24), address("203.0.113.8", 25)],
                gateway: Some("203.0.113.2".parse().unwrap()),
                routes: vec![
                    route("0.0.0.0", 0, Some("203.0.113.2")),
                    route("203.0.113.0", 24, None),
                ],
            }),
            v6: Some(Template {
                interface: "eth7".to_owned(),
                addresses: vec![address("2001:db8:77::7", 64)],
                gateway: Some("fe80::2".parse().unwrap()),
                routes: vec![route("::", 0, Some("fe80::2"))],
            }),
        },
        ephemeral: PortRange::new(32_768, 60_999).unwrap(),
        resolvers: vec!["127.0.0.53".parse().unwrap(), "203.0.113.10".parse().unwrap()],
    }
}

fn asked(line: &str) -> Result<Asked, PastaError> {
    let words = line.split_whitespace().map(OsString::from).collect();
    match parse(Mode::Pasta, "pasta", words)? {
        Invocation::Serve(asked) => Ok(asked),
        Invocation::Print(text) => panic!("{text}"),
    }
}

fn on(facts: &PastaFacts, line: &str) -> Config {
    asked(line).unwrap().resolve(facts).unwrap()
}

fn refused(line: &str) -> String {
    asked(line).and_then(|asked| asked.resolve(&facts())).unwrap_err().to_string()
}

fn copied(config: &Config) -> (Vec<String>, Vec<String>) {
    let LinkSetup::Copied(copied) = &config.link_setup else { panic!("{:?}", config.link_setup) };
    let addresses =
        copied.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
    let routes = copied.routes.iter().map(|route| {
        let by = route.gateway.map(|by| format!(" via {by}")).unwrap_or_default();
        format!("{}/{}{by}", route.destination, route.prefix)
    });
    (addresses, routes.collect())
}

/// What podman 5.3 and later say.
const PODMAN: &str = "--config-net -t 127.0.0.1/18080-18080:80-80 -u 18090-18090:7001-7001 \
    --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet --netns /run/user/1/netns/n \
    --map-guest-addr 169.254.1.2";

#[test]
fn podmans_guest_is_like_its_host() {
    let config = on(&facts(), PODMAN);
    let (v4, v6) = (config.plan.v4.unwrap(), config.plan.v6.unwrap());
    // The longest prefix is the main address; all are copied, in their order.
    assert_eq!(
        (v4.guest.to_string(), v4.gateway.to_string()),
        ("203.0.113.8".into(), "203.0.113.2".into())
    );
    assert_eq!(
        (v6.guest.to_string(), v6.gateway.to_string()),
        ("2001:db8:77::7".into(), "fe80::2".into())
    );
    let (addresses, routes) = copied(&config);
    assert_eq!(addresses, ["203.0.113.7/24", "203.0.113.8/25", "2001:db8:77::7/64"]);
    assert_eq!(routes, ["0.0.0.0/0 via 203.0.113.2", "203.0.113.0/24", "::/0 via fe80::2"]);
    assert_eq!((config.ifname.as_str(), config.plan.mtu), ("eth7", 65_520));
    let meaning = |text: &str| config.plan.destination(text.parse().unwrap());
    let host = |text: &str| Destination::Host(text.parse().unwrap());
    assert_eq!(meaning("169.254.1.1"), Destination::Dns);
    assert_eq!(meaning("169.254.1.2"), host("203.0.113.8"));
    assert_eq!(meaning("203.0.113.2"), host("203.0.113.2"));
    let publish: Vec<_> = config.forwards.publish.iter().map(ToString::to_string).collect();
    assert_eq!(publish, ["127.0.0.1:18080:80/tcp", "18090:7001/udp"]);
    assert!(config.forwards.auto_publish.is_empty() && !config.forwards.leads_outside());
    assert!(config.dns.enabled && config.dns.upstreams.is_none());
    assert!(!config.plan.services().routers);
    let Action::Attach(options) = config.action else { panic!("a path is attached to") };
    assert_eq!(options.target, Target::Path("/run/user/1/netns/n".into()));
}

#[test]
fn rootlesskits_guest_has_addresses_of_its_own_and_sets_them_up_itself() {
    let config = on(
        &facts(),
        "--stderr --ns-ifname=tap0 --mtu=65520 --no-dhcp --no-ra --address=10.0.2.100 \
         --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --ipv4-only --tcp-ports=auto \
         --udp-ports=auto 42",
    );
    let v4 = config.plan.v4.unwrap();
    assert_eq!((v4.guest.octets(), v4.prefix), ([10, 0, 2, 100], 24));
    assert_eq!(v4.dns.map(|a| a.octets()), Some([10, 0, 2, 3]));
    assert_eq!((config.link_setup, config.plan.v6), (LinkSetup::Bare, None));
    // The gateway stands for the host's loopback unless told otherwise.
    assert_eq!(config.plan.host_loopback, [IpAddr::from([10, 0, 2, 2])]);
    // Of both transports, the ports below and above those for clients.
    assert_eq!((config.forwards.auto_publish.len(), config.forwards.inner.len()), (4, 4));
    assert!(config.forwards.inner.iter().all(|inner| inner.scan && inner.weak));
    let Action::Attach(options) = config.action else { panic!("a process is attached to") };
    assert_eq!(options.target, Target::Process(42));
}

#[test]
fn addresses_and_routers_that_are_asked_for_replace_the_hosts() {
    let config = on(&facts(), "--config-net -a 172.16.5.6 -g 172.16.0.1 -- true");
    let (addresses, routes) = copied(&config);
    assert_eq!(addresses, ["172.16.5.6/16", "2001:db8:77::7/64"]);
    assert_eq!(routes, ["0.0.0.0/0 via 172.16.0.1", "::/0 via fe80::2"]);
    let config = on(&facts(), "--config-net -4 -a 10.1.2.3/30 --no-copy-routes true");
    assert_eq!(copied(&config).0, ["10.1.2.3/30"]);
    assert_eq!(copied(&config).1, ["0.0.0.0/0 via 203.0.113.2"]);
}

#[test]
fn a_host_without_a_network_has_a_guest_with_a_link_of_its_own() {
    let facts = PastaFacts { templates: Templates::default(), ..facts() };
    let config = on(&facts, "--config-net true");
    assert_eq!(copied(&config).0, ["169.254.2.1/16"]);
    assert_eq!(copied(&config).1, ["0.0.0.0/0 via 169.254.2.2"]);
    assert_eq!((config.ifname.as_str(), config.plan.v6), ("tap0", None));
    assert_eq!(config.plan.host_loopback, [IpAddr::from([169, 254, 2, 2])]);
}

#[test]
fn the_hosts_loopback_has_the_addresses_that_it_is_given() {
    let stands = |options: &str| {
        let config = on(&facts(), &format!("{options} true"));
        let names = config.plan.host_loopback.iter().map(ToString::to_string);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(stands(""), "203.0.113.2 fe80::2");
    assert_eq!(stands("--no-map-gw"), "");
    assert_eq!(stands("--map-host-loopback none"), "");
    assert_eq!(stands("--map-host-loopback 192.0.2.1"), "192.0.2.1 fe80::2");
    assert_eq!(stands("--map-host-loopback 192.0.2.1 --no-map-gw"), "192.0.2.1");
}

#[test]
fn options_are_read_as_getopt_long_reads_them() {
    // Shortened, bundled, repeated; the first other word begins the command.
    let config = on(&facts(), "--config -qI old --ns-if new0 -m1400 --mtu 1300 sh -c -q");
    assert_eq!((config.ifname.as_str(), config.plan.mtu), ("new0", 1300));
    let Action::Run { command, .. } = config.action else { panic!("a command is run") };
    assert_eq!(command, ["sh", "-c", "-q"]);
    let config = on(&facts(), "-6 -4 true");
    assert!(config.plan.v4.is_some() && config.plan.v6.is_none());
    for (line, resolvers) in [
        ("true", vec![]),
        ("--dhcp-dns true", vec!["203.0.113.10"]),
        ("--dhcp-dns -D 192.0.2.9 true", vec!["192.0.2.9"]),
        ("--dhcp-dns -D 192.0.2.9 -D none --dns-forward 10.9.9.9 true", vec!["10.9.9.9"]),
    ] {
        let plan = on(&facts(), line).plan;
        let names: Vec<_> = plan.resolvers(false).iter().map(ToString::to_string).collect();
        assert_eq!(names, resolvers, "{line}");
    }
}

#[test]
fn mistakes_are_told_in_pastas_words() {
    for (line, message) in [
        ("--bogus", "unrecognized option '--bogus'"),
        ("-a 127.0.0.1", "Invalid address: 127.0.0.1"),
        ("-a 10.0.0.1/33", "Invalid address: 10.0.0.1/33"),
        ("-n 33", "Invalid netmask: 33"),
        ("-n 255.0.255.0", "Invalid netmask: 255.0.255.0"),
        ("-a 10.0.0.1/8 -n 8", "--netmask and a prefix length in --address are mutually exclusive"),
        ("-g bogus", "Invalid gateway address: bogus"),
        ("-m 65522", "Invalid MTU: 65522"),
        ("-I toolonginterfacename0", "Invalid interface name: toolonginterfacename0"),
        ("-t x", "Invalid port specifier 'x'"),
        ("-t 22 -t none", "-t none conflicts with previous options"),
        (
            "-t 80 -t 80-81",
            "Forwarding configuration conflict: TCP [*]:80-81  =>  80-81  versus \
             TCP [*]:80  =>  80 \nUnable to add rule TCP [*]:80-81  =>  80-81 ",
        ),
        (
            "-4 -t 80:203.0.113.2",
            "Invalid rule TCP [0.0.0.0]:80  =>  203.0.113.2:80 : the guest cannot have this address",
        ),
        ("--netns n 42", "Both --netns and PID or command given"),
        ("--host-lo-to-ns-lo --no-splice", "--host-lo-to-ns-lo is incompatible with --no-splice"),
        ("--splice-only --no-splice", "--splice-only is incompatible with --no-splice"),
        ("--no-pidns 42", "--no-pidns is incompatible with PID or --netns"),
        ("--no-copy-routes", "--no-copy-routes needs --config-net"),
        ("--stats 1 -f", "--stats needs --foreground"),
        ("--dns-forward 127.0.0.1", "Invalid DNS forwarding address: 127.0.0.1"),
        ("-s /tmp/x", "--socket is for passt mode only"),
        ("0", "Invalid PID: 0"),
    ] {
        assert_eq!(refused(line), message, "{line}");
    }
}

#[test]
fn rules_of_both_tables_become_ports() {
    let forwards = |line: &str| on(&facts(), &format!("{line} true")).forwards;
    let texts = |rules: &[Forward]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    let named = forwards("-t 127.0.0.1/22,25:26 -t 2000-5000,~3000-4000 -u none -T none -U none");
    assert_eq!(
        texts(&named.publish),
        [
            "127.0.0.1:22:22/tcp",
            "127.0.0.1:25:26/tcp",
            "2000-2999:2000-2999/tcp",
            "4001-5000:4001-5000/tcp"
        ]
    );
    assert!(named.publish_if_free.is_empty() && named.auto_publish.is_empty());
    assert!(!named.leads_outside());

    let all = forwards("-t none -u ~1-32766 -T all -U 53:5353");
    assert_eq!(texts(&all.publish_if_free), ["32767:32767/udp", "61000-65535:61000-65535/udp"]);
    let inner = all.inner.iter();
    let inner = inner.map(|i| (i.transport, i.ports.first(), i.host_ports.first(), i.weak));
    assert_eq!(
        inner.collect::<Vec<_>>(),
        [
            (Transport::Tcp, 1, 1, true),
            (Transport::Tcp, 61_000, 61_000, true),
            (Transport::Udp, 53, 5353, false)
        ]
    );
}

#[test]
fn auto_follows_all_ports_or_those_that_are_named() {
    let followed = |spec: &str, port| {
        let forwards = on(&facts(), &format!("-t {spec} -u none -T none -U none true")).forwards;
        assert!(forwards.publish.is_empty() && forwards.publish_if_free.is_empty(), "{spec}");
        forwards.auto_publish.iter().any(|rule| rule.covers(Transport::Tcp, port))
    };
    assert!(followed("auto", 80) && !followed("auto", 40_000));
    assert!(followed("80-82,auto", 81) && !followed("80-82,auto", 83));
    assert!(!followed("auto,~80", 80) && followed("auto,~80", 81));
    let elsewhere = on(&facts(), "-t 127.0.0.1/80:81,auto true").forwards;
    assert!(elsewhere.publish[0].when_listening, "{:?}", elsewhere.publish);
    let led = on(&facts(), "-T 80:81,auto -T 90 -U none true").forwards.inner;
    assert_eq!(led.iter().map(|led| led.scan).collect::<Vec<_>>(), [true, false]);
    let bound = on(&facts(), "-t 127.0.0.1/auto true").forwards.auto_publish;
    assert_eq!(bound[0].bound.address, Some("127.0.0.1".parse().unwrap()));
}

#[test]
fn pesto_finds_the_instance_at_its_configuration_path() {
    let config = on(&facts(), "-c /run/user/7/pasta.sock true");
    assert_eq!(config.pesto_socket.as_deref(), Some(Path::new("/run/user/7/pasta.sock")));
    assert_eq!(on(&facts(), "true").pesto_socket, None);
}

#[test]
fn the_process_behaves_as_its_caller_asks() {
    let config = on(&facts(), "-P /run/p.pid --no-netns-quit -e 42");
    let conduct = &config.conduct;
    assert_eq!(conduct.pid_file.as_deref(), Some(Path::new("/run/p.pid")));
    assert_eq!(conduct.deprecated, ["--stderr"]);
    let Action::Attach(options) = &config.action else { panic!("a process is attached to") };
    assert!(!options.watched);
    let Action::Attach(options) = on(&facts(), "42").action else { panic!("likewise") };
    assert!(options.watched);
}
