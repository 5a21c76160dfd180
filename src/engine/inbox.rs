//! Datagrams on the walk back: what host sockets gave becomes frames, as few as the guest's kernel
//! can take apart again.
//!
//! ```text
//!   slot 0 ──▶ │ headers │ payload 0 │                          one frame
//!   slot 1 ──▶ │ headers │ payload 1 │ payload 2 │ payload 3 │  one frame with segmentation owed
//!   slot 2 ────────────────────────────┘           │
//!   slot 3 ────────────────────────────────────────┘
//! ```
//! Datagrams that follow each other in one batch and are alike in everything but their contents
//! make a [`Train`]: one `writev(2)` to the TAP, straight from the slots. Those that the kernel has
//! joined (`UDP_GRO`) lie in one slot and go on as they are. Nothing waits for others to come: a
//! train ends with its batch.
//!
//! A guest whose TAP does not cut UDP ([`Options::uso`](super::Options::uso)), or whose MTU a
//! single one of them exceeds, gets each in a frame, or in fragments, of its own.

use std::io::IoSlice;

use crate::base::DropReason;
use crate::stack::udp::offload::{MAX_TRAIN, Train};
use crate::stack::wire::{Addresses, Checksum, HEADROOM, UdpHeader};
use crate::sys::datagram::{Batch, Marks, Received};

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

/// How a datagram goes on to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Onward {
    pub(super) addresses: Addresses,
    pub(super) marks: Marks,
    /// MTU of the way, in bytes of IP packet.
    pub(super) mtu: usize,
}

impl Onward {
    fn header(&self, segment_size: Option<u16>) -> UdpHeader {
        UdpHeader {
            tos: self.marks.tos,
            hop_limit: self.marks.hop_limit,
            ident: 0,
            dont_fragment: true,
            segment_size,
        }
    }

    /// Whether a datagram of `len` bytes is one packet.
    fn fits(&self, len: usize) -> bool {
        let ip_header_len = if self.addresses.guest.is_ipv4() { 20 } else { 40 };
        ip_header_len + 8 + len <= self.mtu
    }
}

/// Datagrams in adjacent slots that go on together.
struct Row {
    onward: Onward,
    train: Train,
    first: usize,
    may_grow: bool,
}

impl Row {
    /// Whether the datagram in slot `index` belongs to it, and is part of it now.
    fn takes(&mut self, index: usize, onward: &Onward, len: usize) -> bool {
        self.may_grow
            && self.first + self.train.count() == index
            && self.onward == *onward
            && self.train.add(len)
    }
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Sends the datagrams of `batch` to the guest, each as `judge` says. `judge` sees the payload
    /// too; `None` means that it has gone another way.
    pub(super) fn deliver(
        &mut self,
        batch: &mut Batch,
        mut judge: impl FnMut(&mut Self, &Received, &[u8]) -> Result<Option<Onward>, DropReason>,
    ) {
        let mut row: Option<Row> = None;
        for index in 0..batch.received().len() {
            let received = batch.received()[index];
            let judged = match received.truncated {
                true => Err(DropReason::TooBig),
                false => judge(self, &received, batch.payload(index)),
            };
            let onward = match judged {
                Ok(Some(onward)) => onward,
                Ok(None) => continue,
                Err(reason) => {
                    self.io.drop_frame(reason);
                    continue;
                }
            };
            let joined = received.segment_size.filter(|&size| usize::from(size) < received.len);
            if joined.is_none()
                && row.as_mut().is_some_and(|row| row.takes(index, &onward, received.len))
            {
                continue;
            }
            if let Some(row) = row.take() {
                self.write_row(batch, &row);
            }
            if let Some(size) = joined {
                if let Some((_, slot)) = batch.datagram(index) {
                    self.write_joined(slot, received.len, &onward, size);
                }
                continue;
            }
            let may_grow = self.uso && onward.fits(received.len);
            row = Some(Row { onward, train: Train::of(received.len), first: index, may_grow });
        }
        if let Some(row) = row {
            self.write_row(batch, &row);
        }
    }

    fn write_row(&mut self, batch: &mut Batch, row: &Row) {
        let Row { onward, train, first, .. } = row;
        let Some(size) = train.segment_size() else {
            if let Some((_, slot)) = batch.datagram(*first) {
                let header = onward.header(None);
                self.send_datagram(slot, train.len(), &onward.addresses, &header, onward.mtu);
            }
            return;
        };
        let mut headers = [0; HEADROOM];
        let header = onward.header(Some(size));
        let start = header.emit(&mut headers, train.len(), &onward.addresses, Checksum::Partial);
        let mut parts = [IoSlice::new(&[]); MAX_TRAIN + 1];
        parts[0] = IoSlice::new(&headers[start..]);
        for (part, index) in parts[1..].iter_mut().zip(*first..*first + train.count()) {
            *part = IoSlice::new(batch.payload(index));
        }
        self.io.write(&parts[..=train.count()]);
    }

    /// Sends the `len` payload bytes at [`HEADROOM`] of `slot`: datagrams of `size` bytes, the last
    /// one perhaps shorter.
    fn write_joined(&mut self, slot: &mut [u8], len: usize, onward: &Onward, size: u16) {
        let step = usize::from(size);
        if self.uso && onward.fits(step) {
            let header = onward.header(Some(size));
            let start = header.emit(slot, len, &onward.addresses, Checksum::Partial);
            return self.io.write(&[IoSlice::new(&slot[start..HEADROOM + len])]);
        }
        // The headers of one are written over the end of the one before it, which is gone by then.
        let header = onward.header(None);
        for at in (0..len).step_by(step.max(1)) {
            let piece = step.min(len - at);
            self.send_datagram(&mut slot[at..], piece, &onward.addresses, &header, onward.mtu);
        }
    }
}
