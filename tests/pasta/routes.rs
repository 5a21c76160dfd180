//! What a guest copies of its host's interface. Expected values are those of the original of
//! 2026-10 on the same host, where no comment says otherwise.

use crate::lab::{HOST4, HOST6, Lab, user_in};
use crate::support::Ran;

/// Global addresses and routes that a guest gets on a host that `commands` of ip(8) make, each
/// route up to its last word of interest.
fn copied(commands: &str, options: &[&str]) -> (Vec<String>, Vec<String>) {
    let lab = Lab::on(commands);
    let script = "ip -o address show scope global; echo; ip route; ip -6 route";
    let mut command = user_in(lab.namespace(), &lab.pasta());
    command.args(["-q", "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    command.args(options).args(["--", "sh", "-c", script]);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{commands}: {ran:?}");
    let (addresses, routes) = ran.stdout.split_once("\n\n").unwrap();
    let addresses = addresses.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flags = words.iter().filter(|word| ["noprefixroute"].contains(word));
        let interface = words[1];
        std::iter::once(words[3])
            .chain(flags.copied())
            .chain([interface])
            .collect::<Vec<_>>()
            .join(" ")
    });
    let routes = routes.lines().filter(|line| !line.starts_with("fe80::"));
    let routes = routes.map(|line| {
        let interesting = ["default", "via", "dev", "metric", "onlink", "scope", "link"];
        let mut words = line.split_whitespace().peekable();
        let mut kept = vec![words.next().unwrap()];
        while let Some(word) = words.next() {
            match word {
                "via" | "dev" | "metric" | "scope" => kept.extend([word, words.next().unwrap()]),
                word if interesting.contains(&word) => kept.push(word),
                _ => {}
            }
        }
        kept.join(" ")
    });
    (addresses.collect(), routes.collect())
}

const V4: &str = "192.0.2.0/24 dev eth0 scope link";
const V6: &str = "2001:db8::/64 dev eth0 metric 256";

#[test]
fn addresses_and_routes_are_the_hosts() {
    let own = |more: &[&str]| -> Vec<String> {
        let (v4, v6) = (format!("{HOST4}/24 eth0"), format!("{HOST6}/64 eth0"));
        let mut all = vec![v4];
        all.extend(more.iter().map(|text| format!("{text} eth0")));
        all.push(v6);
        all
    };
    let table: [(&str, Vec<String>, &[&str]); 9] = [
        (
            "route add default via 192.0.2.2 src 192.0.2.1 metric 50",
            own(&[]),
            &["default via 192.0.2.2 dev eth0 metric 50", V4, V6],
        ),
        // By next-hop objects, whose numbers mean nothing to the guest.
        (
            "nexthop add id 7 via 192.0.2.2 dev eth0\nroute add default nhid 7
            route add 198.51.100.0/24 nhid 7",
            own(&[]),
            &["default via 192.0.2.2 dev eth0", V4, "198.51.100.0/24 via 192.0.2.2 dev eth0", V6],
        ),
        // Everything goes by way of us: the first of several ways is as good as all.
        (
            "route add default nexthop via 192.0.2.2 dev eth0 nexthop via 192.0.2.3 dev eth0",
            own(&[]),
            &["default via 192.0.2.2 dev eth0", V4, V6],
        ),
        // Deprecated addresses stay behind.
        (
            "route add default via 192.0.2.2
            address add 192.0.2.9/24 dev eth0
            address change 192.0.2.9/24 dev eth0 preferred_lft 0 valid_lft 500
            address add 192.0.2.77/32 dev eth0",
            own(&["192.0.2.77/32"]),
            &["default via 192.0.2.2 dev eth0", V4, V6],
        ),
        // A prefix without a route has none here either.
        (
            "route add default via 192.0.2.2
            address add 10.9.0.1/24 dev eth0 noprefixroute",
            own(&["10.9.0.1/24 noprefixroute"]),
            &["default via 192.0.2.2 dev eth0", V4, V6],
        ),
        (
            "route add default via 192.0.2.2
            route add 10.1.0.0/16 via 192.0.2.7
            route add unreachable 10.5.0.0/16
            route add 10.6.0.0/16 dev eth0",
            own(&[]),
            &[
                "default via 192.0.2.2 dev eth0",
                "10.1.0.0/16 via 192.0.2.7 dev eth0",
                "10.6.0.0/16 dev eth0 scope link",
                V4,
                V6,
            ],
        ),
        (
            "route add default via 192.0.2.2 dev eth0 onlink
            route add default via 2001:db8::2
            route add default via fe80::9 dev eth0 metric 2048
            route add 2001:db8:9::/48 via 2001:db8::5",
            own(&[]),
            &[
                "default via 192.0.2.2 dev eth0 onlink",
                V4,
                V6,
                "2001:db8:9::/48 via 2001:db8::5 dev eth0 metric 1024",
                "default via 2001:db8::2 dev eth0 metric 1024",
                "default via fe80::9 dev eth0 metric 2048",
            ],
        ),
        // Any way out will do, also one whose cable is out.
        (
            "route add 10.0.0.0/8 via 192.0.2.7\nlink set eth1 down",
            own(&[]),
            &["10.0.0.0/8 via 192.0.2.7 dev eth0", V4, V6],
        ),
        // By a router of the other family: nothing that a copy could use.
        ("-4 route add default via inet6 fe80::9 dev eth0", own(&[]), &[V4, V6]),
    ];
    for (commands, addresses, routes) in table {
        let (have, ways) = copied(commands, &[]);
        assert_eq!(have, addresses, "{commands}");
        assert_eq!(ways, routes, "{commands}");
    }
}

#[test]
fn a_host_without_a_way_out_gives_a_link_of_its_own() {
    let (addresses, routes) = copied("address flush dev eth0", &[]);
    assert_eq!(addresses, ["169.254.2.1/16 tap0"]);
    let own = ["default via 169.254.2.2 dev tap0 onlink", "169.254.0.0/16 dev tap0 scope link"];
    assert_eq!(routes, own);
}

/// The router that stands for the host is the heaviest of several; the main address is the one with
/// the longest prefix. DHCP tells both, here to a guest that sets up nothing by itself.
#[test]
fn the_router_is_the_heaviest_and_the_main_address_has_the_longest_prefix() {
    let mut lab = Lab::on(
        "address add 192.0.2.77/32 dev eth0
        address add 192.0.2.78/32 dev eth0
        route add default nexthop via 192.0.2.2 dev eth0 weight 1 \
        nexthop via 192.0.2.3 dev eth0 weight 5",
    );
    lab.start(&["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    lab.on_host(|| crate::lab::serve_tcp(std::net::TcpListener::bind("127.0.0.1:7000").unwrap()));
    let ip = format!("nsenter --net=/proc/{}/ns/net ip", lab.target.pid());
    crate::lab::sh(&format!("{ip} address add 192.0.2.77/24 dev eth0; {ip} link set eth0 up"));
    let ask = |router: &str| {
        let target = std::net::SocketAddr::new(router.parse().unwrap(), 7000);
        lab.in_guest(|| crate::lab::tcp(target, b"x")).ok()
    };
    // The router's address leads to the host's loopback.
    assert!(ask("192.0.2.3").is_some_and(|answer| answer.starts_with("7000 127.0.0.1 ")));
}
