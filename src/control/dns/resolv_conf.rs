//! `resolv.conf` as glibc reads it (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

const DNS_PORT: u16 = 53;

/// Name servers that are used, as glibc and musl do (MAXNS).
const MAX_SERVERS: usize = 3;

/// The most dots that `ndots` may ask for (resolv.conf(5)).
const MAX_NDOTS: u32 = 15;

/// Whom to ask, and what the guest's resolver should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverView {
    /// Resolvers in order; never empty.
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// How many dots make a name be tried as it is first (`options ndots:`); glibc's default is 1.
    pub ndots: Option<u32>,
    /// How long to wait for one resolver at first (`options timeout:`).
    pub timeout: Duration,
    /// How often to go through the list (`options attempts:`).
    pub attempts: u32,
    /// Whether to begin with another resolver each time (`options rotate`).
    pub rotate: bool,
}

impl Default for ResolverView {
    /// What glibc does without a file: the resolver on this machine.
    fn default() -> Self {
        ResolverView {
            servers: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT)],
            search: Vec::new(),
            ndots: None,
            // glibc waits 5 s; a second resolver that works should not be that far away.
            timeout: Duration::from_secs(2),
            attempts: 2,
            rotate: false,
        }
    }
}

impl ResolverView {
    /// Reads the text of a `resolv.conf`. Lines that make no sense are ignored. Unlike glibc it
    /// takes lines that end in CR LF, and no addresses in `inet_aton`'s short forms.
    pub fn parse(text: &str) -> ResolverView {
        let mut view = ResolverView::default();
        let mut servers = Vec::new();
        for line in text.lines() {
            // glibc wants keywords at the start of the line; comments begin with ; or #.
            let mut words = line.split_ascii_whitespace();
            if line.starts_with(char::is_whitespace) {
                continue;
            }
            match words.next() {
                Some("nameserver") => {
                    let Some(word) = words.next() else { continue };
                    match parse_server(word) {
                        Some(server) if servers.len() < MAX_SERVERS => servers.push(server),
                        Some(server) => tracing::debug!(%server, "one name server too many"),
                        None => tracing::debug!(nameserver = word, "not an address"),
                    }
                }
                // The last line counts; one without a domain does not.
                Some("domain") => {
                    if let Some(word) = words.next() {
                        view.search = vec![domain(word)];
                    }
                }
                Some("search") => {
                    let domains: Vec<_> = words.map(domain).collect();
                    if !domains.is_empty() {
                        view.search = domains;
                    }
                }
                Some("options") => words.for_each(|option| view.set_option(option)),
                _ => {}
            }
        }
        view.search.retain(|domain| !domain.is_empty());
        if !servers.is_empty() {
            view.servers = servers;
        }
        view
    }

    fn set_option(&mut self, option: &str) {
        match option.split_once(':') {
            Some(("timeout", value)) => {
                if let Ok(seconds) = value.parse::<u64>() {
                    self.timeout = Duration::from_secs(seconds.clamp(1, 5));
                }
            }
            Some(("attempts", value)) => {
                if let Ok(attempts) = value.parse::<u32>() {
                    self.attempts = attempts.clamp(1, 5);
                }
            }
            Some(("ndots", value)) => {
                if let Ok(dots) = value.parse::<u32>() {
                    self.ndots = Some(dots.min(MAX_NDOTS));
                }
            }
            None if option == "rotate" => self.rotate = true,
            _ => {}
        }
    }
}

fn domain(word: &str) -> String {
    word.trim_end_matches('.').to_owned()
}

/// An address, for IPv6 link-local ones with `%interface`.
fn parse_server(word: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = word.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let index = match scope.parse::<u32>() {
            Ok(index) => index,
            Err(_) => nix::net::if_::if_nametoindex(scope).ok()?,
        };
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into());
    }
    let address: IpAddr = word.parse().ok()?;
    // 0.0.0.0 and :: mean this machine, as they do for connect(2).
    Some(SocketAddr::new(address, DNS_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolverView::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_usual_file() {
        let view = ResolverView::parse(
            "# made by hand\nnameserver 127.0.0.53\nnameserver 2001:db8::53\n\
             options edns0 trust-ad timeout:1 attempts:3 rotate\nsearch example.org. corp.example\n",
        );
        assert_eq!(
            view.servers,
            ["127.0.0.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]
        );
        assert_eq!(view.search, ["example.org", "corp.example"]);
        assert_eq!((view.timeout, view.attempts, view.rotate), (Duration::from_secs(1), 3, true));
    }

    #[test]
    fn the_last_of_domain_and_search_wins() {
        assert_eq!(ResolverView::parse("search a b\ndomain c\n").search, ["c"]);
        assert_eq!(ResolverView::parse("domain c\nsearch a b\n").search, ["a", "b"]);
        assert!(ResolverView::parse("search .\n").search.is_empty());
        assert_eq!(ResolverView::parse("search a\nsearch\ndomain \n").search, ["a"]);
    }

    #[test]
    fn nonsense_is_ignored_and_nothing_means_localhost() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(
            servers("nameserver\nnameserver x\n nameserver 192.0.2.1\n;nameserver 9.9.9.9\n"),
            ["127.0.0.1:53"]
        );
        assert_eq!(
            servers("nameserver\t192.0.2.1 # first\nnameserver 192.0.2.2"),
            ["192.0.2.1:53", "192.0.2.2:53"]
        );
        let view = ResolverView::parse("options timeout:99 attempts:0 timeout:x\n");
        assert_eq!((view.timeout, view.attempts), (Duration::from_secs(5), 1));
    }

    #[test]
    fn three_servers_count_and_short_forms_do_not() {
        let text = "nameserver 127.1\nnameserver 192.0.2.1\r\nnameserver 192.0.2.2 \t\n\
                    nameserver 192.0.2.3\nnameserver 192.0.2.4\nsearch a b \t\r\n";
        assert_eq!(servers(text), ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"]);
        assert_eq!(ResolverView::parse(text).search, ["a", "b"]);
    }

    #[test]
    fn ndots_is_kept_within_its_range() {
        let ndots = |text| ResolverView::parse(text).ndots;
        assert_eq!(ndots("options edns0 ndots:5\n"), Some(5));
        assert_eq!(ndots("options ndots:0 ndots:99\n"), Some(15));
        assert_eq!(ndots("options ndots:x ndots\n"), None);
    }

    #[test]
    fn link_local_servers_keep_their_scope() {
        assert_eq!(servers("nameserver fe80::1%lo\n"), ["[fe80::1%1]:53"]);
        assert_eq!(servers("nameserver fe80::1%7\n"), ["[fe80::1%7]:53"]);
        assert_eq!(servers("nameserver fe80::1%no-such-interface\n"), ["127.0.0.1:53"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_server(text in "\\PC*") {
            proptest::prop_assert!(!ResolverView::parse(&text).servers.is_empty());
        }
    }
}
