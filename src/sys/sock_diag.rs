//! Which sockets listen in a network namespace (sock_diag(7), `inet_diag_req_v2`).
//!
//! The kernel keeps four tables: TCP and UDP, IPv4 and IPv6. A [`Diag`] asks one of them at a time
//! and reads the answer in parts, each of which costs a bounded time and no memory: a guest may
//! have a hundred thousand sockets, and the caller does other things between two parts.
//!
//! A netlink socket belongs for good to the namespace in which it was opened and needs no privilege
//! afterwards. So the child that sets up a guest opens it there, and the process that has given
//! up every privilege asks. Like a queue of the TAP, it keeps the namespace alive while it is open.
//!
//! Cost, on Linux 6.18 and a 4-core virtual machine whose kernel has tables for much memory: all
//! four tables of a guest with ten listening sockets 130 µs, of one with 5,000 more 7 ms in some
//! twenty parts (`tests/listening.rs` prints it).
//!
//! Trusts the kernel; what the guest chooses is only how many sockets there are, and where.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// The longest part of an answer: the kernel's limit for one message of a dump
/// (`netlink_recvmsg`, 32 KiB with its own overhead).
const PART: usize = 32 * 1024;

/// One of the kernel's tables of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6; IPv4 too where a socket is not IPv6-only.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6; IPv4 too where a socket is not IPv6-only.
    Udp6,
}

impl Table {
    /// Every table.
    pub const ALL: [Table; 4] = [Table::Tcp4, Table::Tcp6, Table::Udp4, Table::Udp6];

    /// Whether it is one of TCP.
    pub fn is_tcp(self) -> bool {
        matches!(self, Table::Tcp4 | Table::Tcp6)
    }

    /// Whether it is one of IPv6.
    pub fn is_ipv6(self) -> bool {
        matches!(self, Table::Tcp6 | Table::Udp6)
    }

    fn request(self) -> InetRequest {
        // A bound UDP socket without a peer is "closed", one with a peer "established".
        let (protocol, states) = match self.is_tcp() {
            true => (IPPROTO_TCP, StateFlags::LISTEN),
            false => (IPPROTO_UDP, StateFlags::CLOSE),
        };
        let (family, socket_id) = match self.is_ipv6() {
            true => (AF_INET6, SocketId::new_v6()),
            false => (AF_INET, SocketId::new_v4()),
        };
        InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
    }
}

/// A TCP socket that listens, or a UDP socket that is bound and takes datagrams from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where it is bound; unspecified for every address.
    pub address: IpAddr,
    /// The port, not 0.
    pub port: u16,
    /// An IPv6 socket that does not take IPv4 as well. False for IPv4 sockets.
    pub v6only: bool,
    /// The owner, as numbered in the user namespace of the process that opened the netlink socket.
    pub uid: u32,
    /// The socket's inode, as in the links under `/proc/PID/fd`.
    pub inode: u32,
}

/// Opens a netlink socket for [`Diag`] in the caller's network namespace.
///
/// # Errors
/// `EPROTONOSUPPORT` from a kernel without `CONFIG_INET_DIAG`'s base, `EPERM` from a filter.
pub fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkSockDiag;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?)
}

/// Questions to the network namespace in which a netlink socket was opened.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
    part: Vec<u8>,
    /// The kernel has not said yet that the answer to the last question is complete.
    unfinished: bool,
}

impl Diag {
    /// Asks by a socket of [`open`].
    pub fn new(socket: OwnedFd) -> Diag {
        Diag { socket, sequence: 0, part: vec![0; PART], unfinished: false }
    }

    /// Asks for all that listens in `table`; the answer is for [`Diag::read`].
    ///
    /// # Errors
    /// Those of the socket.
    pub fn ask(&mut self, table: Table) -> io::Result<()> {
        // The kernel answers one question at a time (`EBUSY`) and does not take one back.
        while self.unfinished {
            self.read(&mut |_| {})?;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(table.request()));
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT)?;
        self.unfinished = true;
        Ok(())
    }

    /// Hands the next part of the answer, 260 sockets at most, to `each`; says whether
    /// there is more.
    ///
    /// # Errors
    /// `ENOENT` where the kernel does not know the table: no IPv6, or no `CONFIG_INET_DIAG`
    /// (`CONFIG_INET_UDP_DIAG`). The answer is over then.
    pub fn read(&mut self, each: &mut dyn FnMut(Listening)) -> io::Result<bool> {
        if !self.unfinished {
            return Ok(false);
        }
        let result = self.read_part(each);
        self.unfinished = matches!(result, Ok(true));
        result
    }

    /// Asks `table` and reads the whole answer.
    ///
    /// # Errors
    /// As [`Diag::ask`] and [`Diag::read`].
    pub fn all(&mut self, table: Table, each: &mut dyn FnMut(Listening)) -> io::Result<()> {
        self.ask(table)?;
        while self.read(each)? {}
        Ok(())
    }

    fn read_part(&mut self, each: &mut dyn FnMut(Listening)) -> io::Result<bool> {
        // Never waits: the kernel makes the next part as soon as the one before it is read.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.part, flags) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        let mut rest = self.part.get(..length).ok_or_else(|| invalid("a part too long"))?;
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|e| invalid(&e.to_string()))?;
            // Messages start at multiples of four (NLMSG_ALIGN); a length of zero would not end.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    each(listening(&response));
                }
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(false),
                NetlinkPayload::Done(done) => {
                    return Err(io::Error::from_raw_os_error(done.code.saturating_abs()));
                }
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => {}
            }
        }
        Ok(true)
    }
}

fn listening(response: &InetResponse) -> Listening {
    let id = &response.header.socket_id;
    Listening {
        address: id.source_address,
        port: id.source_port,
        v6only: response.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
        uid: response.header.uid,
        inode: response.header.inode,
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an answer about sockets: {what}"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn listening_in(diag: &mut Diag, table: Table) -> Vec<Listening> {
        let mut found = vec![];
        diag.all(table, &mut |socket| found.push(socket)).unwrap();
        found
    }

    fn inode(socket: &impl AsRawFd) -> u32 {
        let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
        u32::try_from(std::fs::metadata(link).unwrap().ino()).unwrap()
    }

    #[test]
    fn what_listens_is_found_with_its_owner() {
        let tcp4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::]:0").unwrap();
        let udp4 = UdpSocket::bind("0.0.0.0:0").unwrap();
        let only = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        only.set_only_v6(true).unwrap();
        only.bind(&SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0).into()).unwrap();
        let udp6 = UdpSocket::from(only);

        let mut diag = Diag::new(open().unwrap());
        let uid = nix::unistd::geteuid().as_raw();
        for (table, address, inode, v6only) in [
            (Table::Tcp4, tcp4.local_addr().unwrap(), inode(&tcp4), false),
            (Table::Tcp6, tcp6.local_addr().unwrap(), inode(&tcp6), false),
            (Table::Udp4, udp4.local_addr().unwrap(), inode(&udp4), false),
            (Table::Udp6, udp6.local_addr().unwrap(), inode(&udp6), true),
        ] {
            let expected =
                Listening { address: address.ip(), port: address.port(), v6only, uid, inode };
            let found = listening_in(&mut diag, table);
            assert!(found.contains(&expected), "{table:?}: no {expected:?} in {found:?}");
        }
    }

    #[test]
    fn sockets_with_a_peer_do_not_listen() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.connect("127.0.0.1:9").unwrap();
        let mut diag = Diag::new(open().unwrap());
        let tcp = listening_in(&mut diag, Table::Tcp4);
        assert!(tcp.iter().all(|found| found.inode != inode(&client)));
        let udp = listening_in(&mut diag, Table::Udp4);
        assert!(udp.iter().all(|found| found.inode != inode(&asker)));
    }

    #[test]
    fn an_answer_that_nobody_read_to_its_end_does_not_spoil_the_next() {
        // More than one part holds (260 sockets of 124 bytes).
        let crowd: Vec<_> = (0..700).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let lone = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut diag = Diag::new(open().unwrap());
        diag.ask(Table::Udp4).unwrap();
        let mut first = 0;
        assert!(diag.read(&mut |_| first += 1).unwrap(), "one part held all");
        assert!((1..700).contains(&first), "{first}");
        let found = listening_in(&mut diag, Table::Tcp4);
        assert!(found.iter().any(|socket| socket.inode == inode(&lone)));
        let ports: std::collections::HashSet<_> =
            listening_in(&mut diag, Table::Udp4).iter().map(|socket| socket.port).collect();
        assert!(crowd.iter().all(|socket| ports.contains(&socket.local_addr().unwrap().port())));
    }
}
