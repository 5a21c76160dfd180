//! UDP on the walk out: to the DNS service, or through a mapping to a host socket.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::base::{DropReason, Instant, Mac};
use crate::gate::Destination;
use crate::gate::forward::{ForwardId, Transport};
use crate::observe::{Direction, FlowTransport};
use crate::stack::icmp::error::Problem;
use crate::stack::ip::Packet;
use crate::stack::udp::{Mapping, Timeouts, offload};
use crate::stack::wire::{Addresses, Datagram, Gso, HEADROOM, UdpHeader, VnetHeader};
use crate::sys::datagram::{Marks, Outgoing};

use super::datagram_flow::{DatagramFlow, MappingKey, Route};
use super::exposures::Service;
use super::outbox::SMALL;
use super::ports::{FramePort, SocketPort};
use super::token::{Kind, Token};
use super::worker::Worker;

const DNS_PORT: u16 = 53;

/// Where a datagram goes.
pub(super) struct Way {
    pub(super) route: Route,
    pub(super) target: SocketAddr,
    /// The exposed port that leads there.
    forward: Option<ForwardId>,
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// A UDP packet with a good checksum from an address that the guest may use.
    pub(super) fn on_udp(
        &mut self,
        now: Instant,
        vnet: &VnetHeader,
        source_mac: Mac,
        packet: &Packet<'_>,
        destination: Destination,
    ) -> Result<(), DropReason> {
        let datagram = Datagram::parse(packet.payload)?;
        let guest = SocketAddr::new(packet.source, datagram.source_port);
        let peer = SocketAddr::new(packet.target, datagram.target_port);
        let claimed = match vnet.gso {
            Some(Gso::Udp(size)) => Some(size),
            _ => None,
        };
        let segment_size = offload::segment(claimed, datagram.payload.len())?;
        if let Some(session) = self.find_session(guest, peer) {
            let payload = datagram.payload;
            return self.on_answer(now, session, source_mac, packet, payload, segment_size);
        }
        if destination == Destination::Dns && peer.port() == DNS_PORT {
            let size = segment_size.map_or(datagram.payload.len().max(1), usize::from);
            let queries = datagram.payload.chunks(size);
            return queries
                .map(|query| self.on_dns_query(guest, source_mac, peer, query))
                .fold(Ok(()), Result::and);
        }
        let Some(Way { route, target, forward }) = self.udp_way(guest, peer, destination) else {
            let at_gateway = destination == Destination::Gateway;
            let problem = match self.plan.habits.closed_is_unreachable && at_gateway {
                true => Problem::NetUnreachable,
                false => Problem::PortUnreachable,
            };
            self.answer_problem(source_mac, problem, packet.bytes);
            return Ok(());
        };
        let key = MappingKey { guest, route };
        let token = match self.udp.find(&key) {
            Some(token) => token,
            None => self.open_udp(now, source_mac, key, forward)?,
        };
        let outgoing = Outgoing {
            target,
            source: None,
            payload: datagram.payload,
            marks: Marks { tos: packet.tos, hop_limit: packet.hop_limit },
            segment_size,
        };
        let Some(flow) = self.udp.get_mut(token) else { return Err(DropReason::NoFlow) };
        flow.mapping.on_outgoing(now, outgoing.target);
        flow.last_peer = Some(peer);
        flow.account.last_use = now;
        let datagrams = offload::count(datagram.payload.len(), segment_size);
        flow.account.traffic.count_several_to_host(datagrams, datagram.payload.len());
        self.udp.touch(token);
        self.settle_mapping(token);
        self.send_out(token, source_mac, packet, &outgoing)
    }

    /// Sends what the guest's `packet` carries through the socket of a mapping or of a published
    /// port: with others of this turn if it is small, else at once.
    pub(super) fn send_out(
        &mut self,
        token: Token,
        source_mac: Mac,
        packet: &Packet<'_>,
        outgoing: &Outgoing<'_>,
    ) -> Result<(), DropReason> {
        if outgoing.segment_size.is_none() && packet.bytes.len() <= SMALL {
            if self.outbox.is_full() {
                self.flush_datagrams();
            }
            self.outbox.push(token, source_mac, packet, outgoing);
            return Ok(());
        }
        self.flush_datagrams();
        self.allow_fragments(token, !packet.dont_fragment);
        let sent =
            match token.kind {
                Kind::DatagramPort => self.datagram_ports.get_mut(token).map(|port| {
                    send(&mut self.io.host, &port.socket, outgoing, &mut port.joins_below)
                }),
                _ => self.udp.get_mut(token).map(|flow| {
                    send(&mut self.io.host, &flow.socket, outgoing, &mut flow.joins_below)
                }),
            };
        match sent {
            None => Err(DropReason::NoFlow),
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => self.on_send_failure(token, source_mac, packet.bytes, &error),
        }
    }

    /// Which way a datagram from `guest` to `peer` goes; `None` if there is none.
    pub(super) fn udp_way(
        &self,
        guest: SocketAddr,
        peer: SocketAddr,
        destination: Destination,
    ) -> Option<Way> {
        match destination {
            Destination::Host(address) => {
                let route = if address.is_loopback() { Route::Loopback } else { Route::Outside };
                let target = SocketAddr::new(address, peer.port());
                Some(Way { route, target, forward: None })
            }
            Destination::Dns => {
                let target = self.secure_resolver(peer)?;
                Some(Way { route: Route::Resolver, target, forward: None })
            }
            Destination::Gateway if self.plan.gateway(guest.is_ipv6()) == Some(peer.ip()) => {
                match self.exposures.find(Transport::Udp, peer.ip(), peer.port())? {
                    (id, Service::Address(target)) if target.is_ipv4() == guest.is_ipv4() => {
                        let route = Route::Exposed(peer.port());
                        Some(Way { route, target, forward: Some(id) })
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn open_udp(
        &mut self,
        now: Instant,
        guest_mac: Mac,
        key: MappingKey,
        forward: Option<ForwardId>,
    ) -> Result<Token, DropReason> {
        // D10: the least recently used mapping makes room.
        if self.udp.is_full()
            && let Some(oldest) = self.udp.oldest()
        {
            // It may still have something to send.
            self.flush_datagrams();
            self.end_mapping(oldest);
        }
        let token = self.udp.next_token();
        let mut socket = self.io.host.open_udp(token, key);
        if let Err(error) = &socket
            && lacks_descriptors(error)
            && let Some(oldest) = self.udp.oldest()
        {
            self.flush_datagrams();
            self.end_mapping(oldest);
            let token = self.udp.next_token();
            socket = self.io.host.open_udp(token, key);
        }
        let Ok(socket) = socket else {
            self.ledger.refuse(FlowTransport::Udp);
            return Err(DropReason::HostResources);
        };
        let account = self.ledger.open(now, FlowTransport::Udp, Direction::Outbound, forward);
        let mapping = Mapping::new(now, Timeouts::UDP);
        let flow = DatagramFlow::new(guest_mac, socket, mapping, account);
        self.udp.insert(key, flow).ok_or(DropReason::FlowLimit)
    }

    /// A datagram could not be sent: what the kernel says goes to the guest as a router would.
    /// `original` is the guest's IP packet.
    pub(super) fn on_send_failure(
        &mut self,
        token: Token,
        guest_mac: Mac,
        original: &[u8],
        error: &io::Error,
    ) -> Result<(), DropReason> {
        if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) {
            // The error queue knows the MTU.
            match token.kind {
                Kind::DatagramPort => self.drain_port_errors(token, Some(original)),
                _ => self.drain_errors(token, Some(original)),
            }
            return Ok(());
        }
        self.answer_send_failure(guest_mac, original, error)
    }

    /// As [`Worker::on_send_failure`], where the error queue has nothing to add.
    pub(super) fn answer_send_failure(
        &mut self,
        guest_mac: Mac,
        original: &[u8],
        error: &io::Error,
    ) -> Result<(), DropReason> {
        match error.raw_os_error().and_then(Problem::from_errno) {
            Some(problem) => {
                self.answer_problem(guest_mac, problem, original);
                Ok(())
            }
            None => Err(DropReason::HostRefused),
        }
    }

    /// Sends the `len` payload bytes at [`HEADROOM`] of `buffer` as one datagram to the guest, in
    /// fragments if it exceeds `mtu`.
    pub(super) fn send_datagram(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        addresses: &Addresses,
        header: &UdpHeader,
        mtu: usize,
    ) {
        let ip_header_len = if addresses.guest.is_ipv4() { 20 } else { 40 };
        if ip_header_len + 8 + len <= mtu {
            let start =
                header.emit(&mut buffer[..HEADROOM + len], len, addresses, self.io.checksum);
            return self.io.write(&[IoSlice::new(&buffer[start..HEADROOM + len])]);
        }
        let header = UdpHeader { dont_fragment: false, ..*header };
        let full = crate::stack::wire::Checksum::Full;
        header.emit(&mut buffer[..HEADROOM + len], len, addresses, full);
        let ip_at = HEADROOM - 8 - ip_header_len;
        self.send_packet(addresses.guest_mac, &buffer[ip_at..HEADROOM + len], mtu);
    }
}

/// Sends one datagram, or the several that segmentation offload left in one. A kernel, device or
/// path that cannot have them joined gets them one by one, from then on at once.
pub(super) fn send<S: SocketPort>(
    host: &mut S,
    socket: &S::Datagram,
    outgoing: &Outgoing<'_>,
    joins_below: &mut usize,
) -> io::Result<()> {
    let Some(size) = outgoing.segment_size.map(usize::from) else {
        return host.send_datagram(socket, outgoing);
    };
    if size < *joins_below {
        match host.send_datagram(socket, outgoing) {
            Err(error) if is_about_joining(&error) => *joins_below = size,
            result => return result,
        }
    }
    let single = |payload| Outgoing { payload, segment_size: None, ..*outgoing };
    let datagrams: Vec<Outgoing<'_>> = outgoing.payload.chunks(size).map(single).collect();
    let mut rest = &datagrams[..];
    while !rest.is_empty() {
        // At least one was taken.
        rest = &rest[host.send_datagrams(socket, rest)?.clamp(1, rest.len())..];
    }
    Ok(())
}

/// Whether the same datagrams may leave one by one: the device cannot sum them up (`EIO`), one of
/// them exceeds the path's MTU (`EMSGSIZE`, `EINVAL` before Linux 6.9), or they are more than the
/// kernel cuts (`EINVAL`).
pub(super) fn is_about_joining(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// Sees to it that the mapping's end is in the timer wheel.
    pub(super) fn settle_mapping(&mut self, token: Token) {
        let flow = match token.kind {
            Kind::Udp => self.udp.get_mut(token),
            _ => self.echo.get_mut(token),
        };
        let Some(flow) = flow else { return };
        let deadline = flow.mapping.deadline();
        if flow.wheel_entry.is_none_or(|entry| deadline < entry) {
            flow.wheel_entry = Some(deadline);
            self.wheel.insert(deadline, token);
        }
    }

    /// Closes a mapping.
    pub(super) fn end_mapping(&mut self, token: Token) {
        let (table, transport) = match token.kind {
            Kind::Udp => (&mut self.udp, FlowTransport::Udp),
            _ => (&mut self.echo, FlowTransport::Icmp),
        };
        if let Some((_, flow)) = table.remove(token) {
            self.ledger.close(transport, &flow.account, flow.mapping.is_replied());
        }
    }

    /// A wheel entry of a mapping has fired: the mapping ends, or is looked at again later.
    pub(super) fn on_mapping_deadline(&mut self, now: Instant, token: Token) {
        let table = match token.kind {
            Kind::Udp => &mut self.udp,
            _ => &mut self.echo,
        };
        let Some(flow) = table.get_mut(token) else { return };
        flow.wheel_entry = flow.wheel_entry.filter(|entry| *entry > now);
        if flow.mapping.deadline() <= now {
            self.end_mapping(token);
        } else {
            self.settle_mapping(token);
        }
    }
}
