//! Receiving datagrams, many with one system call, each behind room for the headers it will get.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use crate::sys::pages::Pages;

use super::Marks;
use super::message::{Control, Messages, Name, decode_packet_info, space};

/// The most datagrams of one [`Batch`].
pub const MAX_SLOTS: usize = 64;

/// Slots that are offered to the kernel until all of them were needed: to lay out what few
/// datagrams need costs less than a system call, and few large ones stay in the processor's cache.
const FEW: usize = 4;

/// Payload bytes from which a datagram is large.
const LARGE: usize = 8192;

/// Room for a payload: more than UDP's largest (65,507 and 65,527 bytes) and than what `UDP_GRO`
/// joins (65,535).
const PAYLOAD_LEN: usize = 65_536;

/// TOS, TTL and segment size, then the longer of the two messages that name an address.
const CONTROL_LEN: usize = 3 * space(size_of::<c_int>()) + space(size_of::<libc::in6_pktinfo>());

/// What is known about a datagram beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The peer; port 0 on a ping socket.
    pub source: SocketAddr,
    /// The address of this host that the peer sent it to, which an answer has to come from
    /// ([`Outgoing::source`](super::Outgoing::source)); for a broadcast an address of the
    /// interface. Only with [`DatagramOptions::tell_local`](super::DatagramOptions::tell_local).
    pub local: Option<IpAddr>,
    /// Payload length in bytes; may be 0.
    pub len: usize,
    /// The payload was longer than a slot, which no IP packet's can be.
    pub truncated: bool,
    /// Header fields as they arrived; [`Marks::DEFAULT`] where the kernel does not say.
    pub marks: Marks,
    /// Payload bytes of one datagram if the payload is several of them (`UDP_GRO`).
    pub segment_size: Option<u16>,
}

/// Memory for the datagrams of one receive call, shared by all sockets of a worker.
///
/// ```text
///   slot 0: | headroom | payload, up to 64 KiB … |  slot 1: | headroom | …
/// ```
/// Pages are used only where a payload has been, and given back by [`release`](Batch::release).
#[derive(Debug)]
pub struct Batch {
    slots: usize,
    headroom: usize,
    memory: Option<Pages>,
    received: Vec<Received>,
    /// Slots that the next call offers, and that the last one offered.
    next: usize,
    offered: usize,
}

impl Batch {
    /// A batch of up to `slots` datagrams (1 to [`MAX_SLOTS`], else the nearer of the two), each
    /// with `headroom` bytes in front of its payload. Holds no memory yet.
    pub fn new(slots: usize, headroom: usize) -> Batch {
        let slots = slots.clamp(1, MAX_SLOTS);
        let (next, offered) = (FEW.min(slots), slots);
        Batch { slots, headroom, memory: None, received: Vec::new(), next, offered }
    }

    /// The most datagrams that one call receives.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Whether the last [`recv_batch`] filled all the slots that it had offered: more may wait.
    pub fn is_full(&self) -> bool {
        self.received.len() >= self.offered
    }

    /// What is known about the datagrams of the last [`recv_batch`], in order of arrival.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// The payload of the datagram at `index`; empty if there is none.
    pub fn payload(&self, index: usize) -> &[u8] {
        let (Some(received), Some(memory)) = (self.received.get(index), &self.memory) else {
            return &[];
        };
        let start = index * self.stride() + self.headroom;
        &memory[start..start + received.len]
    }

    /// The datagrams of the last [`recv_batch`] in order of arrival, each with its bytes: the
    /// headroom (with arbitrary content), then the payload.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (&Received, &mut [u8])> {
        let (headroom, stride) = (self.headroom, self.stride());
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        self.received.iter().zip(memory.chunks_exact_mut(stride)).map(move |(received, slot)| {
            // The kernel wrote at most PAYLOAD_LEN bytes behind the headroom.
            (received, &mut slot[..headroom + received.len])
        })
    }

    /// The datagram at `index`, as in [`datagrams`](Batch::datagrams).
    pub fn datagram(&mut self, index: usize) -> Option<(&Received, &mut [u8])> {
        let (start, headroom) = (index * self.stride(), self.headroom);
        let received = self.received.get(index)?;
        let memory = self.memory.as_deref_mut()?;
        Some((received, &mut memory[start..start + headroom + received.len]))
    }

    /// Forgets the datagrams; the memory stays.
    pub fn clear(&mut self) {
        self.received.clear();
    }

    /// Adds a datagram from elsewhere than a socket, for an edge that has none; whether there was
    /// a slot left. What a slot cannot hold is cut off, as the kernel does.
    ///
    /// # Errors
    /// `ENOMEM` if there is no memory for the slots.
    pub fn push(&mut self, source: SocketAddr, marks: Marks, payload: &[u8]) -> io::Result<bool> {
        self.push_joined(source, marks, payload, None)
    }

    /// As [`push`](Batch::push), for several datagrams of `segment_size` bytes as `UDP_GRO` joins
    /// them.
    ///
    /// # Errors
    /// As [`push`](Batch::push).
    pub fn push_joined(
        &mut self,
        source: SocketAddr,
        marks: Marks,
        payload: &[u8],
        segment_size: Option<u16>,
    ) -> io::Result<bool> {
        let (index, headroom, stride) = (self.received.len(), self.headroom, self.stride());
        if index >= self.slots {
            return Ok(false);
        }
        let memory = match &mut self.memory {
            Some(memory) => memory,
            none => none.insert(Pages::new(self.slots * stride)?),
        };
        let len = payload.len().min(PAYLOAD_LEN);
        let start = index * stride + headroom;
        memory[start..start + len].copy_from_slice(&payload[..len]);
        let truncated = len < payload.len();
        self.offered = self.slots;
        let local = None;
        self.received.push(Received { source, local, len, truncated, marks, segment_size });
        Ok(true)
    }

    /// Forgets the datagrams and gives their memory back to the kernel; for when traffic stops.
    pub fn release(&mut self) {
        self.memory = None;
        self.received = Vec::new();
    }

    /// Bytes from one slot to the next; a multiple of a cache line.
    fn stride(&self) -> usize {
        (self.headroom + PAYLOAD_LEN).next_multiple_of(64)
    }
}

/// Receives what has arrived at `fd`, up to [`Batch::slots`] datagrams; returns how many, at least
/// one.
///
/// If [`Batch::is_full`] says no, nothing was left at some moment during the call, or an error
/// came in between. Either way epoll tells an edge-triggered caller of what arrives later; of what
/// an error hid as well, since the error is news itself. Only who was told of an error before the
/// call has to go on until `WouldBlock`.
///
/// # Errors
/// `WouldBlock` if there is nothing; `ENOMEM` if there is no memory for the slots; the errno of an
/// ICMP error for an earlier datagram (see the module): take it off the error queue and try again.
pub fn recv_batch(fd: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<usize> {
    batch.received.clear();
    batch.offered = batch.next;
    let count = match batch.next {
        ..=FEW => recv_some::<FEW>(fd, batch)?,
        _ => recv_some::<MAX_SLOTS>(fd, batch)?,
    };
    let many = batch.is_full() && batch.received.iter().all(|received| received.len < LARGE);
    batch.next = if many { batch.slots } else { FEW.min(batch.slots) };
    Ok(count)
}

/// Offers the kernel [`Batch::offered`] slots, at most `N`.
fn recv_some<const N: usize>(fd: BorrowedFd<'_>, batch: &mut Batch) -> io::Result<usize> {
    let (offered, headroom, stride) = (batch.offered.min(N), batch.headroom, batch.stride());
    let memory = match &mut batch.memory {
        Some(memory) => memory,
        none => none.insert(Pages::new(batch.slots * stride)?),
    };
    let mut names = [Name::EMPTY; N];
    let mut controls = [Control::<CONTROL_LEN>::EMPTY; N];
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
    // SAFETY: all-zero bytes are a valid `mmsghdr`: integers and null pointers.
    let mut headers: [libc::mmsghdr; N] = unsafe { std::mem::zeroed() };
    let rooms = names.iter_mut().zip(&mut controls).zip(&mut parts).zip(&mut headers);
    for ((((name, control), part), header), slot) in rooms.zip(memory.chunks_exact_mut(stride)) {
        part.iov_base = slot[headroom..].as_mut_ptr().cast();
        part.iov_len = PAYLOAD_LEN;
        let header = &mut header.msg_hdr;
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = Name::LEN;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN as _;
    }
    let count = loop {
        // SAFETY: the first `offered` headers (at most N, and `memory` has more slots) point to
        // names, control blocks and iovecs in the arrays above, and those to disjoint slots of
        // `memory`, all with their true lengths; all of it outlives the call. No timeout is given.
        let result = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                offered as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if let Ok(count) = usize::try_from(result) {
            break count;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    for ((name, control), header) in names.iter().zip(&controls).zip(&headers).take(count) {
        let len = (header.msg_len as usize).min(PAYLOAD_LEN);
        let header = &header.msg_hdr;
        // The kernel names a source of the socket's own family for every datagram.
        let source = name.decode(header.msg_namelen).ok_or(io::ErrorKind::InvalidData)?;
        let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
        let mut received = Received {
            source,
            local: None,
            len,
            truncated,
            marks: Marks::DEFAULT,
            segment_size: None,
        };
        read(control.messages(header.msg_controllen), &mut received);
        batch.received.push(received);
    }
    Ok(count)
}

/// Puts what the control messages tell into `received`.
fn read(messages: Messages<'_>, received: &mut Received) {
    for message in messages {
        if let Some(address) = decode_packet_info(&message) {
            // An answer cannot come from a group.
            received.local = Some(address).filter(|address| !address.is_multicast());
            continue;
        }
        let Some(value) = message.int() else { continue };
        match (message.level, message.kind) {
            (libc::SOL_IP, libc::IP_TOS) | (libc::SOL_IPV6, libc::IPV6_TCLASS) => {
                received.marks.tos = value as u8;
            }
            (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                received.marks.hop_limit = value as u8;
            }
            (libc::SOL_UDP, libc::UDP_GRO) => received.segment_size = u16::try_from(value).ok(),
            _ => {}
        }
    }
}
