//! Our side of a simulated conversation.
//!
//! The [`Edge`] does what the engine does with a real socket: it reads only when the machine has
//! capacity and the socket is readable, reports a closed window only when it meets one, and keeps
//! what the socket does not take.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use super::super::*;
use super::{ADDRESSES, FROM_GUEST, FROM_HOST, PEER, Plan, byte};
use crate::stack::ip::{Parsed, parse_v4};
use crate::stack::wire::formats::{EthernetFrame, EthernetProtocol};
use crate::stack::wire::{Checksum, HEADROOM, TcpHeader};

/// The machine, and what is around it.
pub(super) struct Edge {
    pub(super) connection: Option<Connection>,
    pub(super) options: Options,
    pub(super) iss: Seq,
    /// The retransmission queue.
    pub(super) queue: VecDeque<u8>,
    pub(super) backlog: VecDeque<u8>,
    /// What lies beyond a gap, by its place behind the next byte.
    pub(super) held: BTreeMap<u32, u8>,
    pub(super) actions: Vec<Action>,
    pub(super) frames: Vec<Vec<u8>>,
    /// What the peer has sent so far, what of it was read, how it ends.
    pub(super) arrived: u64,
    pub(super) read: u64,
    pub(super) total: u64,
    pub(super) readable: bool,
    pub(super) eof_behind: bool,
    /// What the host socket took, and may take before it blocks.
    pub(super) taken: u64,
    pub(super) room: u64,
    pub(super) shut: bool,
    pub(super) closed: bool,
    pub(super) edge: Option<Seq>,
}

impl Edge {
    pub(super) fn new(plan: &Plan, iss: Seq) -> Edge {
        Edge {
            connection: None,
            options: plan.options,
            iss,
            queue: VecDeque::new(),
            backlog: VecDeque::new(),
            held: BTreeMap::new(),
            actions: vec![],
            frames: vec![],
            arrived: 0,
            read: 0,
            total: plan.host_sends,
            readable: false,
            eof_behind: false,
            taken: 0,
            room: 0,
            shut: false,
            closed: false,
            edge: None,
        }
    }

    pub(super) fn frame(&mut self, now: Instant, frame: &[u8]) {
        let ethernet = EthernetFrame::new_checked(frame).expect("smoltcp's frames are whole");
        match ethernet.ethertype() {
            EthernetProtocol::Arp => return,
            EthernetProtocol::Ipv4 => {}
            other => panic!("{other}"),
        }
        let Ok(Parsed::Whole(packet)) = parse_v4(ethernet.payload()) else {
            panic!("smoltcp's packets are whole")
        };
        if packet.target != IpAddr::V4(PEER) {
            return;
        }
        let (segment, at) = Segment::parse(packet.payload).expect("smoltcp's segments are whole");
        let payload = &packet.payload[at..];
        if self.connection.is_none() && segment.flags.syn && !self.closed {
            self.connection = Some(Connection::from_syn(now, &segment, self.iss, self.options));
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        if connection.is_closed() {
            if let (Some(seq), false) = (segment.ack, segment.flags.rst) {
                self.refuse(seq);
            }
            return;
        }
        // The verdict is a counter's business.
        let _ = connection.on_segment(now, &segment, &mut self.actions);
        self.perform(payload);
        self.read_if_wanted(now);
    }

    /// RFC 9293 §3.10.7.1: a segment without a connection is answered by a reset.
    fn refuse(&mut self, seq: Seq) {
        let header = TcpHeader {
            seq,
            ack: None,
            flags: WITH_RST,
            window: 0,
            mss: None,
            window_scale: None,
            sack_permitted: false,
            segment_size: u16::MAX,
            sack: [None; 3],
        };
        let mut buffer = vec![0; HEADROOM];
        let at = header.emit(&mut buffer, 0, &ADDRESSES, Checksum::Full);
        self.frames.push(buffer.split_off(at));
    }

    /// The host has accepted a client.
    pub(super) fn open(&mut self, now: Instant) {
        let connection = Connection::to_guest(now, self.iss, self.options, &mut self.actions);
        self.connection = Some(connection);
        self.perform(&[]);
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a connection")
    }

    pub(super) fn perform(&mut self, payload: &[u8]) {
        let mut next = 0;
        while let Some(&action) = self.actions.get(next) {
            next += 1;
            match action {
                Action::Emit(emit) => self.emit(&emit),
                Action::Deliver { skip, len } => {
                    self.backlog.extend(&payload[skip as usize..(skip + len) as usize]);
                    self.shift_held(len);
                    self.drain();
                }
                Action::Hold { skip, len, offset } => {
                    for at in 0..len {
                        let again = self.held.insert(offset + at, payload[(skip + at) as usize]);
                        assert_eq!(again, None, "held twice");
                    }
                }
                Action::DeliverHeld { len } => {
                    let bytes = (0..len).map(|at| self.held[&at]);
                    self.backlog.extend(bytes.collect::<Vec<u8>>());
                    self.shift_held(len);
                    self.drain();
                }
                Action::Release { len } => drop(self.queue.drain(..len as usize)),
                Action::ShutdownWrite => {
                    assert!(self.backlog.is_empty() && !self.shut);
                    self.shut = true;
                }
                Action::CloseHost => {
                    assert!(self.shut && !self.closed);
                    self.closed = true;
                }
                Action::ResetHost => panic!("the connection was reset or given up"),
                Action::KeepAlive => {}
            }
        }
        self.actions.clear();
    }

    fn shift_held(&mut self, len: u32) {
        let later = self.held.split_off(&len);
        self.held = later.into_iter().map(|(at, byte)| (at - len, byte)).collect();
    }

    /// The host socket takes what it has room for.
    pub(super) fn drain(&mut self) {
        let len = self.room.min(self.backlog.len() as u64);
        for got in self.backlog.drain(..len as usize) {
            assert_eq!(got, byte(FROM_GUEST, self.taken), "byte {} for the host", self.taken);
            self.taken += 1;
        }
        self.room -= len;
        if let Some(connection) = &mut self.connection {
            connection.on_host_took(len as u32, &mut self.actions);
        }
    }

    pub(super) fn read_if_wanted(&mut self, now: Instant) {
        while self.readable && self.connection().send_capacity() > 0 {
            self.read(now);
        }
    }

    pub(super) fn read(&mut self, now: Instant) {
        for _ in 0..8 {
            let capacity = u64::from(self.connection().send_capacity());
            if capacity == 0 {
                if self.eof_behind && self.read == self.total && self.readable {
                    self.readable = false;
                    let Edge { connection, actions, .. } = self;
                    connection.as_mut().expect("a connection").on_host_eof(now, actions);
                    return self.perform(&[]);
                }
                let readable = self.readable;
                return self.connection().on_host_waiting(now, readable);
            }
            let len = capacity.min(self.arrived - self.read);
            let mut actions = std::mem::take(&mut self.actions);
            if len == 0 {
                self.readable = false;
                if self.read == self.total {
                    self.connection().on_host_eof(now, &mut actions);
                } else {
                    self.connection().on_host_waiting(now, false);
                }
                self.actions = actions;
                return self.perform(&[]);
            }
            self.queue.extend((0..len).map(|i| byte(FROM_HOST, self.read + i)));
            self.read += len;
            self.readable = len == capacity || self.eof_behind;
            if len < capacity && self.eof_behind {
                self.readable = false;
                self.connection().on_host_data_and_eof(now, len as u32, &mut actions);
                self.actions = actions;
                return self.perform(&[]);
            }
            self.connection().on_host_data(now, len as u32, len < capacity, &mut actions);
            self.actions = actions;
            self.perform(&[]);
            if !self.readable {
                return;
            }
        }
    }

    /// One frame, cut into segments as the guest's kernel would.
    fn emit(&mut self, emit: &Emit) {
        let connection = self.connection();
        assert!(connection.state() != State::Closed, "{emit:?} after the end");
        let offset = connection.queue_start().distance(emit.seq);
        if let (Some(ack), false) = (emit.ack, emit.flags.rst) {
            let shift = if emit.syn.is_some() { 0 } else { self.shift() };
            let edge = ack + (u32::from(emit.window) << shift);
            // RFC 7323 §2.4: what the field cannot say may be missing.
            let before = self.edge.unwrap_or(edge);
            assert!(before.distance(edge) > -(1 << shift), "the edge moves left");
            self.edge = Some(edge.later(before));
        }

        let mut cut = 0;
        loop {
            let len = (emit.len - cut).min(emit.segment_size.into());
            let last = cut + len == emit.len;
            let header = TcpHeader {
                seq: emit.seq + cut,
                ack: emit.ack,
                flags: Flags {
                    fin: emit.flags.fin && last,
                    psh: emit.flags.psh && last,
                    ..emit.flags
                },
                window: emit.window,
                mss: emit.syn.map(|syn| syn.mss),
                window_scale: emit.syn.and_then(|syn| syn.window_scale),
                sack_permitted: emit.syn.is_some_and(|syn| syn.sack_permitted),
                segment_size: emit.segment_size,
                sack: emit.sack,
            };
            let mut buffer = vec![0; HEADROOM];
            if len > 0 {
                let from = usize::try_from(offset).expect("in the queue") + cut as usize;
                buffer.extend(self.queue.range(from..from + len as usize));
            }
            let at = header.emit(&mut buffer, len as usize, &ADDRESSES, Checksum::Full);
            self.frames.push(buffer.split_off(at));
            cut += len;
            if last {
                return;
            }
        }
    }

    fn shift(&self) -> u8 {
        (0..14).find(|shift| self.options.receive_limit >> shift <= 65_535).unwrap_or(14)
    }
}
