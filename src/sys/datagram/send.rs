//! Sending datagrams, many with one system call.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use super::message::{Control, Name, space};
use super::{Family, Marks};

/// A datagram to send, or several of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// The peer, of the socket's family; the port does not matter on a ping socket.
    pub target: SocketAddr,
    /// The address of this host to send from, of the socket's family; without one the address that
    /// the socket is bound to, or else the one that routing prefers. `EINVAL` or `ENETUNREACH`
    /// if this host does not have it.
    pub source: Option<IpAddr>,
    /// The payload; may be empty. On a ping socket the ICMP message.
    pub payload: &'a [u8],
    /// Header fields; the hop limit must not be 0.
    pub marks: Marks,
    /// Payload bytes of one datagram if `payload` is several of them, the last perhaps shorter
    /// (`UDP_SEGMENT`, at most 64 datagrams). `EIO` if the device cannot sum them up: send them
    /// one by one then.
    pub segment_size: Option<u16>,
}

/// Datagrams for one system call; more are sent with several. Beyond this, what a system call
/// costs is small against what a datagram costs.
const CHUNK: usize = 32;

/// TTL, TOS, segment size, and the longer of the two messages that name an address.
const CONTROL_LEN: usize =
    2 * space(size_of::<c_int>()) + space(size_of::<u16>()) + space(size_of::<libc::in6_pktinfo>());

/// Sends `datagrams` in order until one fails; returns how many the kernel took, at least one.
///
/// `defaults` are the marks that the socket was opened with: a datagram that has the same needs no
/// control message. An error that an *earlier* datagram has left on the socket is not returned
/// (its details stay in the error queue) but the send is repeated, except for `EMSGSIZE`, which
/// would then be reported twice.
///
/// # Errors
/// That of the first datagram: `WouldBlock` if the send buffer is full, `EMSGSIZE` if it is too
/// large (the error queue then has the MTU), what routing and the host's firewall say
/// (`ENETUNREACH`, `EHOSTUNREACH`, `EPERM` …). The rest may still be deliverable.
pub fn send_batch(
    fd: BorrowedFd<'_>,
    defaults: Marks,
    datagrams: &[Outgoing<'_>],
) -> io::Result<usize> {
    let mut sent = 0;
    let mut repeated = false;
    while let rest @ [_, ..] = &datagrams[sent..] {
        let result = match rest {
            [_] => send_chunk::<1>(fd, defaults, rest),
            [_, _] => send_chunk::<2>(fd, defaults, rest),
            _ => send_chunk::<CHUNK>(fd, defaults, rest),
        };
        match result {
            Ok(count) => {
                sent += count;
                repeated = false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if !repeated && may_be_of_an_earlier_one(&error) => repeated = true,
            Err(error) if sent == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(sent)
}

/// Whether the kernel makes this errno of an ICMP error (`icmp_err_convert`, `icmpv6_err_convert`).
fn may_be_of_an_earlier_one(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EPROTO
                | libc::EACCES
        )
    )
}

/// Sends up to `N` of `datagrams`, which must not be empty, with one system call.
fn send_chunk<const N: usize>(
    fd: BorrowedFd<'_>,
    defaults: Marks,
    datagrams: &[Outgoing<'_>],
) -> io::Result<usize> {
    let mut names = [(Name::EMPTY, 0); N];
    let mut controls = [Control::<CONTROL_LEN>::EMPTY; N];
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
    // SAFETY: all-zero bytes are a valid `mmsghdr`: integers and null pointers.
    let mut headers: [libc::mmsghdr; N] = unsafe { std::mem::zeroed() };
    let count = datagrams.len().min(N);
    let slots = names.iter_mut().zip(&mut controls).zip(&mut parts).zip(&mut headers);
    for ((((name, control), part), header), datagram) in slots.zip(datagrams) {
        *name = Name::encode(datagram.target);
        // The kernel only reads through this pointer.
        part.iov_base = datagram.payload.as_ptr().cast_mut().cast();
        part.iov_len = datagram.payload.len();
        push_options(control, defaults, datagram);
        let header = &mut header.msg_hdr;
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = name.1;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        if control.len() != 0 {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = control.len() as _;
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` headers (at most N, which fits) point to names, control blocks and
    // iovecs in the arrays above and to payloads borrowed for the whole call.
    let result =
        unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as _, flags as _) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn push_options(control: &mut Control<CONTROL_LEN>, defaults: Marks, datagram: &Outgoing<'_>) {
    let (level, tos, hop_limit) = match Family::from(datagram.target) {
        Family::V4 => (libc::SOL_IP, libc::IP_TOS, libc::IP_TTL),
        Family::V6 => (libc::SOL_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT),
    };
    let marks = datagram.marks;
    if marks.tos != defaults.tos {
        control.push(level, tos, &c_int::from(marks.tos).to_ne_bytes());
    }
    if marks.hop_limit != defaults.hop_limit {
        control.push(level, hop_limit, &c_int::from(marks.hop_limit).to_ne_bytes());
    }
    if let Some(source) = datagram.source {
        control.push_packet_info(source);
    }
    if let Some(size) = datagram.segment_size {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
}
