//! What became of datagrams that could not be delivered: the error queue of a datagram socket.
//!
//! With `IP_RECVERR` or `IPV6_RECVERR` the kernel keeps, for each ICMP error that it matched to
//! the socket and for each local failure that has more to say than an errno, one message:
//!
//! ```text
//!   name     where the datagram that failed was sent to
//!   control  struct sock_extended_err, then the address of who reported it (SO_EE_OFFENDER)
//!   data     the datagram's own payload, as far as the ICMP message quoted it
//! ```
//! For a ping socket the quoted payload starts with the ICMP header of the request.
//!
//! An ICMP error also becomes the socket's pending error, which the next send or receive returns
//! once; taking the last message off the queue clears it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{Control, Message, Name, chunk, decode_ip, space};

/// Who found that the datagram cannot be delivered (`ee_origin`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host's kernel, on sending.
    Local,
    /// Somebody, by ICMP.
    Icmp,
    /// Somebody, by ICMPv6.
    Icmp6,
    /// Not an error but a notification of another kind (`SO_EE_ORIGIN_*`); none is asked for here.
    Other(u8),
}

/// One entry of an error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketError<'a> {
    /// What the failure means to a socket (`ECONNREFUSED`, `EHOSTUNREACH`, `EMSGSIZE` …).
    pub errno: i32,
    /// Who found it.
    pub origin: Origin,
    /// ICMP type, or 0.
    pub kind: u8,
    /// ICMP code, or 0.
    pub code: u8,
    /// For `EMSGSIZE` the path MTU in bytes, headers included; otherwise 0 or what the ICMP
    /// message says.
    pub info: u32,
    /// Who sent the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram was sent to; port 0 on a ping socket.
    pub target: SocketAddr,
    /// The start of the datagram's payload as the ICMP message quoted it; empty for local errors.
    pub quoted: &'a [u8],
}

/// `struct sock_extended_err` and the longer of the two socket addresses.
const REPORT_LEN: usize = size_of::<libc::sock_extended_err>() + Name::LEN as usize;

/// The report, then TTL and TOS of the ICMP message, which the socket's receive options add.
const CONTROL_LEN: usize = space(REPORT_LEN) + 2 * space(size_of::<libc::c_int>());

/// Takes the oldest entry off the error queue of `fd`; `None` if it is empty. A TCP socket whose
/// `connect` an ICMP error has ended has one, too, which quotes the SYN.
///
/// `buffer` receives the quoted payload; what does not fit is lost. ICMP messages need not quote
/// more than 8 bytes behind the headers (RFC 792), and Linux quotes up to 548 (IPv4, RFC 1812
/// §4.3.2.3) or 1,232 bytes (RFC 4443 §2.4).
///
/// # Errors
/// Those of `recvmsg(2)`; `InvalidData` if the kernel's message cannot be read.
pub fn next_error<'a>(
    fd: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> io::Result<Option<SocketError<'a>>> {
    let mut name = Name::EMPTY;
    let mut control = Control::<CONTROL_LEN>::EMPTY;
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`: integers and null pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = Name::LEN;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_LEN as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let len = loop {
        // SAFETY: `header` points to name, control block and one iovec over `buffer`, each with its
        // true length, and all of them outlive the call.
        let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
        if let Ok(len) = usize::try_from(result) {
            break len;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    };
    let target = name.decode(header.msg_namelen).ok_or(io::ErrorKind::InvalidData)?;
    let mut messages = control.messages(header.msg_controllen as usize);
    let report = messages.find(is_report).ok_or(io::ErrorKind::InvalidData)?;
    let quoted = &buffer[..len.min(buffer.len())];
    let error = read_report(report.data, target, quoted).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(error))
}

fn is_report(message: &Message<'_>) -> bool {
    matches!(
        (message.level, message.kind),
        (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
    )
}

/// Reads `struct sock_extended_err` (linux/errqueue.h) and the offender's address behind it.
fn read_report<'a>(data: &[u8], target: SocketAddr, quoted: &'a [u8]) -> Option<SocketError<'a>> {
    let errno = i32::from_ne_bytes(chunk(data, 0)?);
    let [origin, kind, code, _] = chunk(data, 4)?;
    let info = u32::from_ne_bytes(chunk(data, 8)?);
    let origin = match origin {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
        libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
        other => Origin::Other(other),
    };
    // AF_UNSPEC if nobody but this host is to blame.
    let offender = data.get(size_of::<libc::sock_extended_err>()..).and_then(decode_ip);
    Some(SocketError { errno, origin, kind, code, info, offender, target, quoted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> SocketAddr {
        "192.0.2.7:4711".parse().unwrap()
    }

    #[test]
    fn a_report_names_errno_message_and_offender() {
        let mut data = vec![];
        data.extend(libc::EMSGSIZE.to_ne_bytes());
        data.extend([libc::SO_EE_ORIGIN_ICMP, 3, 4, 0]);
        data.extend(1280u32.to_ne_bytes());
        data.extend([0; 4]);
        data.extend((libc::AF_INET as u16).to_ne_bytes());
        data.extend([0, 0, 198, 51, 100, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        let error = read_report(&data, target(), b"quoted").unwrap();
        let expected = SocketError {
            errno: libc::EMSGSIZE,
            origin: Origin::Icmp,
            kind: 3,
            code: 4,
            info: 1280,
            offender: Some("198.51.100.9".parse().unwrap()),
            target: target(),
            quoted: b"quoted",
        };
        assert_eq!(error, expected);
        // Without the offender the rest still counts; without the rest nothing does.
        assert_eq!(read_report(&data[..16], target(), b"").unwrap().offender, None);
        assert_eq!(read_report(&data[..11], target(), b""), None);
    }
}
