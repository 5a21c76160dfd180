//! Socket addresses and control messages as the kernel lays them out, read and written as bytes.
//!
//! `recvmsg(2)` and `sendmsg(2)` exchange two blocks of memory: a socket address (ip(7), ipv6(7))
//! and a row of control messages (cmsg(3)):
//!
//! ```text
//!   | len: usize | level: i32 | type: i32 | data … | padding to a usize | next message …
//!   `------ 16 bytes on a 64-bit machine ------'
//! ```
//! Both layouts are kernel ABI. Going through bytes costs nothing here and keeps every access
//! checked: a block that is not what it should be yields `None` or no message, never a stray read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{c_int, cmsghdr};

/// Length of `struct sockaddr_in6`, the larger of the two.
const NAME_LEN: usize = size_of::<libc::sockaddr_in6>();

/// A `struct sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Name([u8; NAME_LEN]);

impl Name {
    /// Room for the kernel to write an address into.
    pub(super) const EMPTY: Name = Name([0; NAME_LEN]);

    /// The address and how many bytes of it count.
    pub(super) fn encode(address: SocketAddr) -> (Name, u32) {
        let mut name = Name::EMPTY;
        let bytes = &mut name.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        // Both families are small constants, both structures are shorter than 29 bytes.
        let (family, len) = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (libc::AF_INET as u16, size_of::<libc::sockaddr_in>() as u32)
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (libc::AF_INET6 as u16, NAME_LEN as u32)
            }
        };
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        (name, len)
    }

    /// The address in the first `len` bytes.
    pub(super) fn decode(&self, len: u32) -> Option<SocketAddr> {
        decode_address(self.0.get(..len as usize)?)
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    pub(super) const LEN: u32 = NAME_LEN as u32;
}

/// Reads a `struct sockaddr` of either family; `None` for other families and short blocks.
pub(super) fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = c_int::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(chunk(bytes, 2)?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(chunk::<4>(bytes, 4)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(chunk(bytes, 4)?);
            let ip = Ipv6Addr::from(chunk::<16>(bytes, 8)?);
            let scope = u32::from_ne_bytes(chunk(bytes, 24)?);
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        }
        _ => None,
    }
}

/// As [`decode_address`], where only the host part counts.
pub(super) fn decode_ip(bytes: &[u8]) -> Option<IpAddr> {
    decode_address(bytes).map(|address| address.ip())
}

/// The address of this host in a packet-info message (`struct in_pktinfo`, `in6_pktinfo`); `None`
/// for other messages. For IPv4 it is the one to answer from (`ipi_spec_dst`, ip(7)), which
/// differs from the packet's destination if that was a broadcast address.
pub(super) fn decode_packet_info(message: &Message<'_>) -> Option<IpAddr> {
    match (message.level, message.kind) {
        (libc::SOL_IP, libc::IP_PKTINFO) => chunk::<4>(message.data, 4).map(IpAddr::from),
        (libc::SOL_IPV6, libc::IPV6_PKTINFO) => chunk::<16>(message.data, 0).map(IpAddr::from),
        _ => None,
    }
}

/// The `N` bytes at `at`.
pub(super) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

const HEADER_LEN: usize = align(size_of::<cmsghdr>());

const fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// Bytes that one control message with `data_len` bytes of data takes (`CMSG_SPACE`).
pub(super) const fn space(data_len: usize) -> usize {
    HEADER_LEN + align(data_len)
}

/// `N` bytes for control messages, aligned as the kernel wants them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control<const N: usize> {
    bytes: [u8; N],
    /// Bytes in use.
    len: usize,
}

impl<const N: usize> Control<N> {
    pub(super) const EMPTY: Self = Control { bytes: [0; N], len: 0 };

    /// Appends one message.
    ///
    /// # Panics
    /// If it does not fit: the callers' sizes are constants made with [`space`].
    pub(super) fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let message = &mut self.bytes[self.len..self.len + space(data.len())];
        message[..8].copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        message[8..12].copy_from_slice(&level.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER_LEN..HEADER_LEN + data.len()].copy_from_slice(data);
        self.len += space(data.len());
    }

    /// Appends the message that has a datagram leave from `source` (ip(7), ipv6(7)); which
    /// interface it leaves by (index 0) stays with routing.
    ///
    /// # Panics
    /// As [`push`](Control::push).
    pub(super) fn push_packet_info(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(source) => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&source.octets());
                self.push(libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(source) => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&source.octets());
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// The messages in the first `len` bytes, as the kernel has just written them.
    pub(super) fn messages(&self, len: usize) -> Messages<'_> {
        Messages(&self.bytes[..len.min(N)])
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }
}

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) level: c_int,
    pub(super) kind: c_int,
    pub(super) data: &'a [u8],
}

impl Message<'_> {
    /// The data as an `int`; some of the kernel's messages hold only its first byte (`IP_TOS`).
    pub(super) fn int(&self) -> Option<c_int> {
        match self.data {
            [byte] => Some(c_int::from(*byte)),
            _ => chunk(self.data, 0).map(c_int::from_ne_bytes),
        }
    }
}

/// The control messages of one block; ends at the first that is malformed.
#[derive(Clone, Debug)]
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        let len = usize::from_ne_bytes(chunk(bytes, 0)?);
        let level = c_int::from_ne_bytes(chunk(bytes, 8)?);
        let kind = c_int::from_ne_bytes(chunk(bytes, 12)?);
        let data = bytes.get(HEADER_LEN..len)?;
        // The last message may lack its padding.
        self.0 = bytes.get(align(len)..).unwrap_or_default();
        Some(Message { level, kind, data })
    }
}

// The offsets above are those of a 64-bit machine, the only kind that tapway is built for.
const _: () = assert!(size_of::<usize>() == 8 && HEADER_LEN == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_kernel_layout() {
        for text in ["192.0.2.7:4711", "[2001:db8::7:1]:53", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            let (name, len) = Name::encode(address);
            assert_eq!(name.decode(len), Some(address));
        }
    }

    #[test]
    fn layout_of_an_ipv4_address() {
        let (name, len) = Name::encode("192.0.2.7:4711".parse().unwrap());
        assert_eq!(len, 16);
        // ip(7): sin_family in host order, sin_port and sin_addr in network order.
        assert_eq!(name.0[2..8], [0x12, 0x67, 192, 0, 2, 7]);
        assert_eq!(name.decode(7), None);
        assert_eq!(name.decode(u32::MAX), None);
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let mut control = Control::<{ space(4) + space(1) }>::EMPTY;
        control.push(1, 2, &7i32.to_ne_bytes());
        control.push(3, 4, &[9]);
        assert_eq!(control.len(), 48);
        let read: Vec<_> =
            control.messages(control.len()).map(|m| (m.level, m.kind, m.int())).collect();
        assert_eq!(read, [(1, 2, Some(7)), (3, 4, Some(9))]);
        // Cut inside the second message: only the first is whole.
        assert_eq!(control.messages(40).count(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_block_ends(bytes in proptest::array::uniform32(0u8..), len in 0usize..100) {
            let control = Control::<32> { bytes, len: 0 };
            proptest::prop_assert!(control.messages(len).count() <= 2);
            let _ = decode_address(&bytes);
        }
    }
}
