//! The guest's side of the short way: how what a server of the guest answers comes back to a
//! socket that has its client's address.
//!
//! ```text
//!   our socket, bound to the client's address, marked ── SYN, marked ─▶ lo ─▶ server's socket
//!        ▲                                                    tcp_fwmark_accept: marked too
//!        └── lo ◀── table TABLE: local default ◀── rule: fwmark MARK ◀── its answers
//! ```
//! Four things of the guest's network namespace make that work, of which its user sees the rule in
//! `ip rule` and nothing in the main table:
//!
//! - `net.ipv4.tcp_fwmark_accept`, for both families: the server's socket gets the mark of the SYN.
//! - `net.ipv4.fwmark_reflect` and its sibling of IPv6: so does the reset of a port where nobody
//!   listens.
//! - A rule and a table with one route, by which packets with the mark stay in the namespace.
//!
//! The first of these matters to connections that begin, and to marks of the guest's own as well: it
//! is set back when nobody has come for a while ([`ShortWay::rest`]).
//!
//! Packets on this way meet neither the TAP nor the hooks that packets from outside meet. A guest
//! with a firewall, or one that passes published ports on by DNAT, would notice: for a guest that
//! has any netfilter table there is no short way ([`ShortWay::is_clear`]), and the switches are set
//! back for as long. nf_tables are asked for over netlink; the tables of the older iptables are
//! listed in `/proc` only, for the root of the namespace. If it had none when it was made
//! (`unshare --map-root-user --net`), nobody can read that list, and where the kernel has those
//! tables at all there is no short way.
//!
//! All of it takes the rights of the namespace's root (CAP_NET_ADMIN), which [`super::inside`]
//! has. Trusts the kernel; the guest may delete or change everything here at any time, which costs
//! it the short way and nobody else anything.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket as NetlinkSocket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::inside::PATIENCE;
use super::link::LOOPBACK_INDEX;
use super::netlink::{Netlink, Outcome};

/// The mark, all 32 bits of it. None of those are set that others are known to look at: Kubernetes
/// (0x4000, 0x8000), Tailscale (0x80000 of 0xff0000), Cilium (0x200 of 0xf00).
const MARK: u32 = 0x7477_0001;

/// The routing table. Container engines use none; VPNs and network plugins number theirs from 51820
/// (wg-quick), 52 (Tailscale), 2004 (Cilium) and 220 (strongSwan) on.
const TABLE: u32 = 29_815;

/// The place of the rule: in front of those of VPNs (Tailscale's begin at 5210), which send what
/// has no mark of theirs away, and behind `local`.
const PRIORITY: u32 = 2_981;

/// Switches of the namespace that have to be on.
const SWITCHES: [&str; 3] =
    [ACCEPT, "/proc/sys/net/ipv4/fwmark_reflect", "/proc/sys/net/ipv6/fwmark_reflect"];

/// The switch that new connections alone need.
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// Where the tables of the older iptables are listed, as far as its modules are loaded.
const LEGACY_TABLES: [&str; 2] =
    ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"];

/// What is set up in the caller's network namespace. Dropping it takes everything back.
pub(super) struct ShortWay {
    netlink: Netlink,
    /// By family, IPv4 first: whether rule and route are there, and whether they are ours.
    families: [Option<Ours>; 2],
    /// The switches that we have set, with what they were set to before.
    switched: Vec<(&'static str, String)>,
}

/// Whether we have made a rule, or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ours(bool);

impl ShortWay {
    /// Sets it up in the caller's network namespace, in the families in which that works.
    ///
    /// # Errors
    /// A switch is missing or cannot be set, which without rights over the namespace none can; or
    /// no family is left.
    pub(super) fn open() -> io::Result<ShortWay> {
        let mut way =
            ShortWay { netlink: Netlink::open()?, families: [None, None], switched: Vec::new() };
        way.switch_on()?;
        for (family, there) in [AddressFamily::Inet, AddressFamily::Inet6].into_iter().zip(0..) {
            let requests = vec![
                RouteNetlinkMessage::NewRoute(route(family)),
                RouteNetlinkMessage::NewRule(rule(family)),
            ];
            let outcomes = way.netlink.perform(requests)?;
            // Those of an instance before us serve as well.
            let found = |outcome: &Outcome| {
                outcome.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EEXIST))
            };
            if outcomes.iter().all(|outcome| outcome.is_ok() || found(outcome)) {
                way.families[there] = Some(Ours(!outcomes.iter().any(found)));
            }
        }
        match way.families {
            [None, None] => Err(ErrorKind::Unsupported.into()),
            _ => Ok(way),
        }
    }

    /// Makes sure that all switches are on.
    fn switch_on(&mut self) -> io::Result<()> {
        for path in SWITCHES {
            let before = match fs::read_to_string(path) {
                Ok(before) => before,
                // A kernel without IPv6.
                Err(e) if e.kind() == ErrorKind::NotFound && path.contains("ipv6") => continue,
                Err(e) => return Err(e),
            };
            if before.trim() == "0" {
                fs::write(path, "1")?;
                self.switched.push((path, before));
            }
        }
        Ok(())
    }

    /// Sets the switches back that we have set.
    fn switch_off(&mut self) {
        self.set_back(|_| true);
    }

    /// Leaves on only what connections need that are there. The next who asks for
    /// [`ShortWay::sockets`] ends that.
    pub(super) fn rest(&mut self) {
        self.set_back(|path| path == ACCEPT);
    }

    fn set_back(&mut self, which: impl Fn(&str) -> bool) {
        for (path, before) in self.switched.extract_if(.., |(path, _)| which(path)) {
            // It could be written before; the namespace may be going.
            let _ = fs::write(path, before);
        }
    }

    /// Whether nothing in the namespace could tell a packet on the short way from one by the link.
    /// The switches follow.
    fn is_clear(&mut self) -> bool {
        let clear = !legacy_tables() && !nf_tables();
        if !clear {
            self.switch_off();
        }
        clear && self.switch_on().is_ok()
    }

    /// Whether marked packets to elsewhere still stay in the namespace.
    fn leads_home(&mut self, ipv6: bool) -> bool {
        // Addresses for documentation (RFC 5737, RFC 3849), for which nothing else is likely to do
        // the same.
        let (family, elsewhere) = match ipv6 {
            false => (AddressFamily::Inet, IpAddr::from([192, 0, 2, 1])),
            true => (AddressFamily::Inet6, IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
        };
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.destination_prefix_length = if ipv6 { 128 } else { 32 };
        request.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(elsewhere)),
            RouteAttribute::Mark(MARK),
        ];
        match self.netlink.ask(RouteNetlinkMessage::GetRoute(request)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(found))) => found.header.kind == RouteType::Local,
            _ => false,
        }
    }

    /// Up to `count` sockets, one at least, that are marked and may be bound to any address:
    /// non-blocking, close-on-exec.
    ///
    /// # Errors
    /// `Unsupported` where there is no short way in the family; `PermissionDenied` while the guest
    /// has netfilter tables, or has done away with rule or route; those of socket(2).
    pub(super) fn sockets(&mut self, ipv6: bool, count: usize) -> io::Result<Vec<OwnedFd>> {
        if self.families[usize::from(ipv6)].is_none() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if !self.leads_home(ipv6) || !self.is_clear() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let mut sockets = Vec::new();
        for _ in 0..count.max(1) {
            match socket(ipv6) {
                Ok(socket) => sockets.push(socket),
                Err(e) if sockets.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        Ok(sockets)
    }
}

impl Drop for ShortWay {
    fn drop(&mut self) {
        self.switch_off();
        for (family, there) in [AddressFamily::Inet, AddressFamily::Inet6].into_iter().zip(0..) {
            if self.families[there] == Some(Ours(true)) {
                let requests = vec![
                    RouteNetlinkMessage::DelRule(rule(family)),
                    RouteNetlinkMessage::DelRoute(route(family)),
                ];
                // The guest may have been faster.
                let _ = self.netlink.perform(requests);
            }
        }
    }
}

/// Whether there is any table of nf_tables. What cannot be asked is taken for there.
fn nf_tables() -> bool {
    // A socket for each question, so that no rest of an answer is taken for the next.
    let socket = match NetlinkSocket::new(NETLINK_NETFILTER) {
        Ok(socket) => socket,
        Err(e) => return e.raw_os_error() != Some(libc::EPROTONOSUPPORT),
    };
    let answer = setsockopt(&socket, ReceiveTimeout, &PATIENCE)
        .map_err(io::Error::from)
        .and_then(|()| socket.send(&list_tables(), 0))
        .and_then(|_| socket.recv_from_full());
    answer.map_or(true, |(answer, _)| names_a_table(&answer))
}

/// The subsystem of nf_tables and its message (linux/netfilter/nfnetlink.h, nf_tables.h).
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NFT_MSG_GETTABLE: u16 = 1;

/// Asks for the tables of all families: `nlmsghdr`, `nfgenmsg`.
fn list_tables() -> [u8; 20] {
    const LEN: u32 = 20;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut message = [0; LEN as usize];
    message[0..4].copy_from_slice(&LEN.to_ne_bytes());
    message[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES | NFT_MSG_GETTABLE).to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

/// Whether an answer to [`list_tables`] has a table in it, or is one that we do not understand. A
/// kernel without nf_tables gives an error, which is that there are none.
fn names_a_table(answer: &[u8]) -> bool {
    match answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]])) {
        Some(kind) if i32::from(kind) == libc::NLMSG_DONE => false,
        Some(kind) if i32::from(kind) == libc::NLMSG_ERROR => {
            let errno = answer.get(16..20).map(|e| i32::from_ne_bytes([e[0], e[1], e[2], e[3]]));
            !matches!(errno.map(i32::wrapping_neg), Some(libc::EOPNOTSUPP | libc::EINVAL))
        }
        _ => true,
    }
}

/// Whether there are tables of the older iptables.
fn legacy_tables() -> bool {
    LEGACY_TABLES.iter().any(|path| match fs::read(path) {
        Ok(names) => !names.is_empty(),
        Err(e) => e.kind() != ErrorKind::NotFound,
    })
}

fn socket(ipv6: bool) -> io::Result<OwnedFd> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    socket.set_mark(MARK)?;
    // One flag for both families (ipv6_setsockopt(), SOL_IP).
    socket.set_ip_transparent_v4(true)?;
    // A client that comes again finds its last connection in TIME-WAIT.
    socket.set_reuse_address(true)?;
    Ok(socket.into())
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(RouteProtocol::Static),
    ];
    message
}

fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LOOPBACK_INDEX)];
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, errno: i32) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16..20].copy_from_slice(&errno.to_ne_bytes());
        bytes
    }

    #[test]
    fn tables_and_answers_that_nobody_understands_close_the_short_way() {
        let done = libc::NLMSG_DONE as u16;
        let error = libc::NLMSG_ERROR as u16;
        for (kind, errno, table) in [
            (done, 0, false),
            (error, -libc::EOPNOTSUPP, false),
            (error, -libc::EINVAL, false),
            (error, -libc::EPERM, true),
            // NFT_MSG_NEWTABLE
            (NFNL_SUBSYS_NFTABLES, 0, true),
            (77, 0, true),
        ] {
            assert_eq!(names_a_table(&answer(kind, errno)), table, "{kind} {errno}");
        }
        assert!(names_a_table(&[]));
    }

    #[test]
    fn the_mark_has_no_bit_that_others_look_at() {
        assert_eq!(MARK & 0xc000, 0);
        assert_ne!(MARK & 0xff_0000, 0x8_0000);
        assert_eq!(MARK & 0xf00, 0);
    }
}
