//! What all flows of a worker share: both edges, the slab pool, the limits, the counters.

use std::io::IoSlice;

use crate::base::{DropCounters, DropReason, Mac};
use crate::stack::wire::{Addresses, Checksum, Flags, HEADROOM, TcpHeader};

use super::buffers::Pool;
use super::ports::{FramePort, SocketPort};
use super::reading::FramesAtHand;
use super::splice::Pipes;
use super::tcp_flow::MIN_SEGMENT;
use super::team::porter::Errand;

/// Bytes and frames over the guest link since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Frames read from the TAP.
    pub frames_from_guest: u64,
    /// Bytes of these, headers included.
    pub bytes_from_guest: u64,
    /// Frames written to the TAP.
    pub frames_to_guest: u64,
    /// Bytes of these, headers included.
    pub bytes_to_guest: u64,
    /// Frames that went nowhere, by reason.
    pub drops: DropCounters,
}

/// How much a guest may make a worker hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections. An idle one takes less than [`FLOW_BYTES`], tables and timers included.
    pub tcp_flows: usize,
    /// UDP mappings.
    pub udp_flows: usize,
    /// ICMP echo mappings.
    pub echo_flows: usize,
    /// Clients of UDP ports whose datagrams go on by sockets of their own.
    pub relayed: usize,
    /// Bytes from one connection's guest that wait for its host socket: the largest window.
    pub receive_window: u32,
    /// Bytes towards the guest of one connection that await acknowledgment.
    pub in_flight: u32,
    /// Bytes of all backlogs and open windows together. From half of it on, connections are
    /// offered no more than [`Limits::tight_window`], and beyond it an even share of it, or a
    /// small segment. What was offered is always taken, so this and one such share for each
    /// connection bounds what is ever held; a guest that sends more has it cut off.
    pub backlog_bytes: usize,
    /// Window of a connection under memory pressure.
    pub tight_window: u32,
    /// Slabs of 64 KiB in retransmission queues, smaller copies included by their bytes.
    pub slabs: usize,
}

/// The most that an idle TCP connection makes a worker hold, in bytes; the descriptor and what the
/// kernel keeps for it come on top.
pub const FLOW_BYTES: usize = 616;

impl Limits {
    /// The limits that so many descriptors allow: a flow without one cannot be.
    ///
    /// A fifth is kept for UDP, echo and relays.
    pub fn with_descriptors(self, descriptors: usize) -> Limits {
        let tcp_flows = descriptors - descriptors / 6 - descriptors / 24;
        Limits {
            tcp_flows: self.tcp_flows.min(tcp_flows).max(64),
            relayed: self.relayed.min(descriptors / 24).max(16),
            udp_flows: self.udp_flows.min(descriptors / 8).max(16),
            echo_flows: self.echo_flows.min(descriptors / 24).max(4),
            ..self
        }
    }

    /// The part of one of `workers`: memory is divided, flows are counted together. Without a slab
    /// a worker could send nothing to its guest.
    pub fn share(&self, workers: usize) -> Limits {
        let workers = workers.max(1);
        let slabs = (self.slabs / workers).max(1);
        Limits { backlog_bytes: self.backlog_bytes / workers, slabs, ..*self }
    }

    /// TCP connections that may begin outside: a quarter of all is left for the guest's own, so
    /// that clients, who cost a flood nothing, cannot cut the guest off from the world.
    pub fn inbound_tcp_flows(&self) -> usize {
        self.tcp_flows - self.tcp_flows / 4
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // 100,000 of either side's, with the quarter that is the guest's own; 100 MB at most.
            tcp_flows: 160 << 10,
            udp_flows: 8_192,
            echo_flows: 256,
            relayed: 2_048,
            // A few times what 20 Gbit/s times the 100 µs to the guest and back come to.
            receive_window: 1 << 20,
            in_flight: 2 << 20,
            backlog_bytes: 128 << 20,
            tight_window: 16 << 10,
            slabs: 2048,
        }
    }
}

/// The shared part of a worker.
pub(super) struct Io<F, S: SocketPort> {
    pub(super) frames: F,
    pub(super) host: S,
    pub(super) pool: Pool,
    pub(super) pipes: Pipes<S::Pipe>,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    /// Bytes in all backlogs.
    pub(super) backlog_bytes: usize,
    /// These, and what the guest may add under the windows that it was offered.
    pub(super) promised: usize,
    pub(super) checksum: Checksum,
    pub(super) gateway_mac: Mac,
    /// Bytes of the guest that TCP flows have passed on, or keep, since the start.
    pub(super) passed_on: u64,
    /// What porters are to do, in order.
    pub(super) errands: Vec<Errand>,
    /// Empty buffers of the size of a frame.
    pub(super) spare_frames: Vec<Vec<u8>>,
    /// The frames at hand, while they are.
    pub(super) frames_at_hand: Option<FramesAtHand>,
}

impl<F: FramePort, S: SocketPort> Io<F, S> {
    /// Counts a drop.
    pub(super) fn drop_frame(&mut self, reason: DropReason) {
        self.counters.drops.count(reason);
    }

    /// Writes one frame, in parts, virtio-net header included. A TAP that is down or full takes
    /// nothing; TCP repairs that by its timers.
    pub(super) fn write(&mut self, parts: &[IoSlice<'_>]) {
        if !self.try_write(parts) {
            self.counters.drops.count(DropReason::TapWrite);
        }
    }

    /// As [`Io::write`]; whether the TAP took the frame.
    pub(super) fn try_write(&mut self, parts: &[IoSlice<'_>]) -> bool {
        let taken = self.frames.write(parts).is_ok();
        if taken {
            self.counters.frames_to_guest += 1;
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            self.counters.bytes_to_guest += bytes as u64;
        }
        taken
    }

    /// Writes a complete Ethernet frame whose checksums are filled in.
    pub(super) fn write_plain(&mut self, frame: &[u8]) {
        match self.checksum {
            Checksum::Partial => {
                let header = [0u8; crate::stack::wire::VNET_HEADER_LEN];
                self.write(&[IoSlice::new(&header), IoSlice::new(frame)]);
            }
            Checksum::Full => self.write(&[IoSlice::new(frame)]),
        }
    }

    /// Writes a TCP segment whose payload lies in `parts[1..]`; the header is made in `headers`.
    pub(super) fn write_scattered<'a>(
        &mut self,
        header: &TcpHeader,
        addresses: &Addresses,
        headers: &'a mut [u8; HEADROOM],
        mut parts: Vec<IoSlice<'a>>,
    ) {
        if self.checksum == Checksum::Full {
            return self.write_cut(header, addresses, &parts[1..]);
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let start = header.emit(headers, len, addresses, self.checksum);
        parts[0] = IoSlice::new(&headers[start..]);
        self.write(&parts);
    }

    /// Writes `payload` to a link without offloads: in frames of one segment each, with complete
    /// checksums. `header` is that of the first one.
    pub(super) fn write_cut(
        &mut self,
        header: &TcpHeader,
        addresses: &Addresses,
        payload: &[IoSlice<'_>],
    ) {
        // An MSS is at least 48, and options are 40 bytes at most (RFC 9293 §3.1).
        let most = usize::from(header.segment_size).saturating_sub(header.options_len()).max(1);
        let mut headers = [0; HEADROOM];
        let mut header = *header;
        let Flags { psh, fin, .. } = header.flags;
        let mut left: usize = payload.iter().map(|part| part.len()).sum();
        let (mut rest, mut piece) = (payload.iter().map(|part| &part[..]), Vec::new());
        let mut part: &[u8] = &[];
        while left > 0 {
            piece.clear();
            let len = most.min(left);
            let mut wanted = len;
            while wanted > 0 {
                if part.is_empty() {
                    // There are `left` bytes in what is left.
                    part = rest.next().unwrap_or_default();
                }
                let (taken, behind) = part.split_at(wanted.min(part.len()));
                piece.push(IoSlice::new(taken));
                (part, wanted) = (behind, wanted - taken.len());
            }
            left -= len;
            // These say something of the last byte.
            header.flags.psh = psh && left == 0;
            header.flags.fin = fin && left == 0;
            let start = header.emit_before(&mut headers, &piece, addresses);
            let head = IoSlice::new(&headers[start..]);
            match piece[..] {
                [whole] => self.write(&[head, whole]),
                _ => self.write(&[&[head], &piece[..]].concat()),
            }
            // A segment is below 64 KiB.
            header.seq += len as u32;
        }
    }

    /// The window that a connection may offer now. Never none: who has nothing in the backlog is
    /// not woken when memory comes free.
    pub(super) fn receive_limit(&self) -> u32 {
        let Limits { backlog_bytes, tight_window, .. } = self.limits;
        if self.promised < backlog_bytes / 2 {
            return self.limits.receive_window;
        }
        if self.promised < backlog_bytes {
            return tight_window;
        }
        let share = backlog_bytes / self.limits.tcp_flows.max(1);
        // At most `tight_window`, a u32.
        share.max(MIN_SEGMENT).min(tight_window as usize) as u32
    }
}
