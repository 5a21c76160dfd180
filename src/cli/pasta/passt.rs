//! passt's own mode: the network of a virtual machine, with pasta's options where they make sense.
//!
//! ```text
//!   passt [OPTIONS]      a socket for QEMU's `-netdev stream`
//! ```
//! What is different from pasta: there is no namespace, so nothing in it is configured and ports do
//! not follow who listens there; the guest learns everything by DHCP, DHCPv6 and router
//! advertisements, resolvers and search domains included; its MAC is not known beforehand. No port
//! is open unless asked for.
//!
//! Departs: a host whose resolvers are all on its own loopback is asked by way of
//! [`RESOLVER`], where passt names the gateway. `--vhost-user`, and what serves the migration of
//! machines, is not there.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::PastaError;
use super::command::Command;
use super::options::{Key, TABLE};
use crate::cli::getopt::Flag;
use crate::setup::machine::{Door, MachineOptions};

/// Whose command line is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// pasta's: a network namespace.
    Pasta,
    /// passt's: a virtual machine.
    Passt,
}

impl Mode {
    /// The name of the program.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Pasta => "pasta",
            Mode::Passt => "passt",
        }
    }
}

/// Under which address the guest asks resolvers that it could not reach by their own: the one that
/// podman gives to pasta for the same purpose. It needs no neighbour, since every address is
/// answered for on the guest's link.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The table of options: in passt's, those of pasta alone have no short names.
pub(super) fn table(mode: Mode) -> Vec<Flag<Key>> {
    let pastas = |flag: &Flag<Key>| matches!(flag.key, Key::IfName | Key::TcpNs | Key::UdpNs);
    let mut table = TABLE.to_vec();
    for flag in table.iter_mut().filter(|flag| mode == Mode::Passt && pastas(flag)) {
        flag.short = None;
    }
    table
}

/// Refuses what makes no sense for a virtual machine, and what is not there.
pub(super) fn refuse(key: Key) -> Result<(), PastaError> {
    use PastaError::{PastaOnly, Unsupported};
    Err(match key {
        Key::IfName => PastaOnly("--ns-ifname"),
        Key::NsMac => PastaOnly("--ns-mac-addr"),
        Key::ConfigNet => PastaOnly("--config-net"),
        Key::NoCopyRoutes => PastaOnly("--no-copy-routes"),
        Key::NoCopyAddrs => PastaOnly("--no-copy-addrs"),
        Key::DhcpDns => PastaOnly("--dhcp-dns"),
        Key::DhcpSearch => PastaOnly("--dhcp-search"),
        Key::TcpNs => PastaOnly("--tcp-ns"),
        Key::UdpNs => PastaOnly("--udp-ns"),
        Key::HostLoToNsLo => PastaOnly("--host-lo-to-ns-lo"),
        Key::NoSplice => PastaOnly("--no-splice"),
        Key::SpliceOnly => PastaOnly("--splice-only"),
        Key::NoNetnsQuit => PastaOnly("--no-netns-quit"),
        Key::Userns => PastaOnly("--userns"),
        Key::Netns => PastaOnly("--netns"),
        Key::NetnsOnly => PastaOnly("--netns-only"),
        Key::NoPidNs => PastaOnly("--no-pidns"),
        Key::Absent(option) => Unsupported(option),
        _ => return Ok(()),
    })
}

/// What was said of the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Socket {
    path: Option<PathBuf>,
    descriptor: Option<RawFd>,
    once: bool,
}

impl Socket {
    /// Takes an option, if it is about the socket; whether it is.
    pub(super) fn take(&mut self, key: Key, value: &OsStr) -> Result<bool, PastaError> {
        match key {
            Key::Socket => self.path = Some(PathBuf::from(value)),
            Key::OneOff => self.once = true,
            Key::Fd => {
                let text = value.to_string_lossy();
                let number: Option<RawFd> = text.parse().ok();
                // Standard output and standard error have their uses.
                let number = number.filter(|&fd| fd == 0 || fd > 2);
                self.descriptor = Some(number.ok_or_else(|| PastaError::value("--fd", &text))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What it means. There are no other `words` on passt's command line.
    pub(super) fn options(self, words: Vec<OsString>) -> Result<MachineOptions, PastaError> {
        if let Some(word) = words.first() {
            return Err(PastaError::Extra(word.to_string_lossy().into_owned()));
        }
        let Socket { path, descriptor, once } = self;
        Ok(match (path, descriptor) {
            (Some(_), Some(_)) => return Err(PastaError::Exclusive("--socket", "--fd")),
            (_, Some(number)) => MachineOptions { door: Door::Descriptor(number), once: true },
            (Some(path), None) => MachineOptions { door: Door::At(path), once },
            (None, None) => MachineOptions { door: Door::Anywhere, once },
        })
    }
}

/// `command`, with [`RESOLVER`] in the place of the host's resolvers if nothing else is named and
/// the guest could reach none of them.
pub(super) fn with_resolver<'a>(command: &'a Command, resolvers: &[IpAddr]) -> Cow<'a, Command> {
    let named = !command.dns.is_empty() || command.dns_forward.iter().next().is_some();
    let reached = resolvers.is_empty() || resolvers.iter().any(|address| !address.is_loopback());
    if command.mode == Mode::Pasta || !command.dhcp_dns || !command.v4 || named || reached {
        return Cow::Borrowed(command);
    }
    let mut command = command.clone();
    command.dns_forward.v4 = Some(RESOLVER);
    Cow::Owned(command)
}

#[cfg(test)]
mod tests {
    use super::super::{Invocation, PastaFacts, parse};
    use super::*;
    use crate::base::Mac;
    use crate::cli::{Action, Config};
    use crate::gate::Destination;
    use crate::gate::forward::PortRange;
    use crate::setup::{HostFacts, LinkSetup, Templates};

    /// passt on a host without a way out, which asks `resolvers`.
    fn on(resolvers: &[&str], line: &str) -> Config {
        let words = line.split_whitespace().map(OsString::from).collect();
        let Invocation::Serve(asked) = parse(Mode::Passt, "passt", words).unwrap() else {
            panic!("{line} prints something");
        };
        let facts = PastaFacts {
            hostname: "host7".into(),
            host: HostFacts { search: vec!["example.org".to_owned()], ..HostFacts::default() },
            person: None,
            templates: Templates { v4: None, v6: None },
            ephemeral: PortRange::new(32_768, 60_999).unwrap(),
            resolvers: resolvers.iter().map(|text| text.parse().unwrap()).collect(),
        };
        asked.resolve(&facts).unwrap()
    }

    #[test]
    fn a_machine_learns_everything_on_its_link_and_no_port_is_open() {
        let config = on(&["127.0.0.53", "203.0.113.10"], "");
        let sharing = config.plan.sharing.as_ref().unwrap();
        assert_eq!(sharing.resolvers, ["203.0.113.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.plan.search, ["example.org"]);
        let services = config.plan.services();
        assert!(services.dhcp4 && services.dhcp6 && services.routers && services.mtu);
        assert_eq!((config.plan.guest_mac, config.plan.mtu), (Mac::BROADCAST, 65_520));
        assert_eq!(config.link_setup, LinkSetup::Bare);
        assert_eq!(config.forwards, crate::cli::ForwardOptions::default());
        assert!(config.conduct.refuses_calls && !config.dns.enabled);
        let Action::Serve(options) = config.action else { panic!("a machine is served") };
        assert_eq!(options, MachineOptions { door: Door::Anywhere, once: false });
        // The host's loopback is the gateway's address, unless told otherwise.
        let gateway = config.plan.v4.unwrap().gateway.into();
        assert_eq!(config.plan.destination(gateway), Destination::Host([127, 0, 0, 1].into()));
        let config = on(&[], "--no-dhcp-search --no-dhcp-dns --no-map-gw -t 80,90-91 -u 53:54");
        assert!(config.plan.search.is_empty() && config.plan.host_loopback.is_empty());
        let publish: Vec<_> = config.forwards.publish.iter().map(ToString::to_string).collect();
        assert_eq!(publish, ["0.0.0.0:80:80/tcp", "0.0.0.0:90-91:90-91/tcp", "0.0.0.0:53:54/udp"]);
    }

    #[test]
    fn resolvers_on_the_hosts_loopback_are_asked_at_an_address_of_their_own() {
        let handed = |config: &Config| config.plan.sharing.as_ref().unwrap().resolvers.clone();
        let config = on(&["127.0.0.53", "::1"], "");
        assert_eq!((handed(&config), config.dns.enabled), (vec![RESOLVER.into()], true));
        assert_eq!(config.plan.destination(RESOLVER.into()), Destination::Dns);
        for (line, expected) in [
            ("--dns 203.0.113.10", &["203.0.113.10"][..]),
            ("--dns-forward 203.0.113.11", &["203.0.113.11"]),
            ("--no-dhcp-dns", &[]),
            ("--ipv6-only", &[]),
        ] {
            let config = on(&["127.0.0.53"], line);
            let expected = expected.iter().map(|text| text.parse().unwrap());
            assert_eq!(handed(&config), expected.collect::<Vec<IpAddr>>(), "{line}");
            let dns = config.plan.v4.is_some_and(|v4| v4.dns == Some(RESOLVER));
            assert!(!dns, "{line}");
        }
    }

    #[test]
    fn the_socket_is_where_it_was_said() {
        let door = |line: &str| match on(&[], line).action {
            Action::Serve(options) => (options.door, options.once),
            other => panic!("{other:?}"),
        };
        let at = |path: &str| Door::At(path.into());
        assert_eq!(door("-s /run/a --socket-path=/run/b"), (at("/run/b"), false));
        assert_eq!(door("--socket /run/a -1"), (at("/run/a"), true));
        assert_eq!(door("--fd 7"), (Door::Descriptor(7), true));
        assert_eq!(door("-F0"), (Door::Descriptor(0), true));
    }
}
