//! ICMP on the walk out: echo through ping sockets, path-MTU news from the guest, and the errors
//! that tapway itself tells the guest.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use crate::base::{DropReason, Instant, Mac};
use crate::gate::Destination;
use crate::observe::{Direction, FlowTransport};
use crate::stack::icmp::error::{
    Problem, Report, TcpUnreachable, error_packet, path_mtu, tcp_unreachable,
};
use crate::stack::icmp::{echo, error};
use crate::stack::ip::Packet;
use crate::stack::ip::fragment::fragment;
use crate::stack::udp::{Mapping, Timeouts};
use crate::stack::wire::formats::{EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr};
use crate::stack::wire::{ETHERNET_HEADER_LEN, protocol};
use crate::sys::datagram::{Marks, Origin, Outgoing, SocketError};

use super::datagram_flow::{DatagramFlow, MappingKey, Route};
use super::ports::{FramePort, SocketPort};
use super::tcp_flow::TcpKey;
use super::token::{Kind, Token};
use super::worker::Worker;

/// Errors taken from one socket's queue in a turn.
pub(super) const ERROR_BATCH: usize = 16;

impl<F: FramePort, S: SocketPort> Worker<F, S> {
    /// An ICMP or ICMPv6 packet that is not neighbour discovery.
    pub(super) fn on_icmp(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
        destination: Destination,
    ) -> Result<(), DropReason> {
        let ipv6 = packet.source.is_ipv6();
        if let Some(news) = path_mtu(packet.payload, ipv6) {
            return self.on_path_mtu(now, source_mac, packet, &news);
        }
        if let Some(TcpUnreachable { peer, guest, seq }) = tcp_unreachable(packet.payload, ipv6) {
            let key = TcpKey::new(guest, peer);
            let Some(token) = self.tcp.find(&key) else {
                return self.on_icmp_of_no_flow(source_mac, packet, &key);
            };
            self.with_tcp(token, |flow, io, actions| flow.on_unreachable(seq, io, actions));
            return Ok(());
        }
        let ident = echo::request_ident(packet.payload, ipv6)?;
        let address = match destination {
            Destination::Host(address) if !self.plan.answers_echo(packet.target) => address,
            _ => {
                let reply = self.services.on_echo(packet.bytes)?;
                self.send_packet(source_mac, &reply, usize::from(self.plan.mtu));
                return Ok(());
            }
        };
        let key = MappingKey {
            guest: SocketAddr::new(packet.source, ident),
            route: if address.is_loopback() { Route::Loopback } else { Route::Outside },
        };
        let token = match self.echo.find(&key) {
            Some(token) => token,
            None => match self.open_echo(now, source_mac, key) {
                Ok(token) => token,
                Err(reason) => {
                    if reason == DropReason::PingForbidden {
                        self.answer_problem(source_mac, Problem::Prohibited, packet.bytes);
                    }
                    return Err(reason);
                }
            },
        };
        let Some(flow) = self.echo.get_mut(token) else { return Err(DropReason::NoFlow) };
        flow.mapping.on_outgoing(now, SocketAddr::new(address, 0));
        flow.last_peer = Some(SocketAddr::new(packet.target, ident));
        flow.account.last_use = now;
        flow.account.traffic.count_to_host(packet.payload.len());
        if flow.dont_fragment != packet.dont_fragment {
            flow.dont_fragment = packet.dont_fragment;
            self.io.host.set_dont_fragment(&flow.socket, ipv6, packet.dont_fragment);
        }
        let outgoing = Outgoing {
            target: SocketAddr::new(address, 0),
            source: None,
            payload: packet.payload,
            marks: Marks { tos: packet.tos, hop_limit: packet.hop_limit },
            segment_size: None,
        };
        let sent = self.io.host.send_datagram(&flow.socket, &outgoing);
        self.echo.touch(token);
        self.settle_mapping(token);
        match sent {
            Ok(()) => Ok(()),
            Err(error) => self.on_send_failure(token, source_mac, packet.bytes, &error),
        }
    }

    /// An error about a TCP connection that is another worker's, or nobody's.
    fn on_icmp_of_no_flow(
        &mut self,
        source_mac: Mac,
        packet: &Packet<'_>,
        key: &TcpKey,
    ) -> Result<(), DropReason> {
        match self.elsewhere(key) {
            Some(owner) => self.hand_over(owner, source_mac, packet),
            None => Err(DropReason::UnhandledIcmp),
        }
    }

    fn open_echo(
        &mut self,
        now: Instant,
        guest_mac: Mac,
        key: MappingKey,
    ) -> Result<Token, DropReason> {
        if self.echo.is_full()
            && let Some(oldest) = self.echo.oldest()
        {
            self.end_mapping(oldest);
        }
        let token = self.echo.next_token();
        let socket = self.io.host.open_ping(token, key).map_err(|error| match error.kind() {
            // ping(7): the caller's groups are not in net.ipv4.ping_group_range.
            ErrorKind::PermissionDenied => DropReason::PingForbidden,
            _ => DropReason::HostResources,
        })?;
        let account = self.ledger.open(now, FlowTransport::Icmp, Direction::Outbound, None);
        let mapping = Mapping::new(now, Timeouts::ECHO);
        let flow = DatagramFlow::new(guest_mac, socket, mapping, account);
        self.echo.insert(key, flow).ok_or(DropReason::FlowLimit)
    }

    /// The guest forwards for others behind a smaller MTU (RFC 1191 §6, RFC 8201 §4).
    fn on_path_mtu(
        &mut self,
        now: Instant,
        source_mac: Mac,
        packet: &Packet<'_>,
        news: &error::PathMtu,
    ) -> Result<(), DropReason> {
        let headers = if news.guest.is_ipv4() { 40 } else { 60 };
        let unknown = Err(DropReason::UnhandledIcmp);
        match news.protocol {
            protocol::TCP => {
                let key = TcpKey::new(news.guest, news.peer);
                let Some(token) = self.tcp.find(&key) else {
                    return self.on_icmp_of_no_flow(source_mac, packet, &key);
                };
                let mss = u16::try_from(news.mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
                self.with_tcp(token, |flow, io, actions| flow.on_path_mtu(now, mss, io, actions));
                Ok(())
            }
            protocol::UDP => {
                // The path is the guest's own, whichever of its mappings the packet came by.
                let session = self.find_session(news.guest, news.peer);
                let session = session.and_then(|token| self.sessions.get_mut(token));
                let mut known = session.is_some();
                if let Some(session) = session {
                    session.path_mtu = Some(news.mtu as usize);
                }
                for route in [
                    Route::Outside,
                    Route::Loopback,
                    Route::Exposed(news.peer.port()),
                    Route::Resolver,
                ] {
                    let key = MappingKey { guest: news.guest, route };
                    let Some(token) = self.udp.find(&key) else { continue };
                    let Some(flow) = self.udp.get_mut(token) else { continue };
                    flow.path_mtu = Some(news.mtu as usize);
                    known = true;
                }
                if known { Ok(()) } else { unknown }
            }
            _ => unknown,
        }
    }

    /// Takes what stands in the error queue of a mapping's socket and tells the guest. `failed` is
    /// the packet that could not be sent just now: errors that this kernel has found are about it.
    pub(super) fn drain_errors(&mut self, token: Token, failed: Option<&[u8]>) {
        let mut quoted = [0u8; 1280];
        for _ in 0..ERROR_BATCH {
            let (table, is_udp) = match token.kind {
                Kind::Udp => (&mut self.udp, true),
                _ => (&mut self.echo, false),
            };
            let Some((key, flow)) = table.get_with_key(token) else { return };
            let guest_mac = flow.guest_mac;
            let Some(error) = self.io.host.next_error(&flow.socket, &mut quoted) else { return };
            if let (Origin::Local, Some(failed)) = (error.origin, failed) {
                // The entry of an IPv4 socket lacks the port (`ip_append_data`).
                self.answer_socket_error(guest_mac, &error, failed);
                continue;
            }
            let guest = key.guest;
            let peer = key.peer_seen(&self.plan, error.target);
            let original = if is_udp {
                error::original_udp(guest, peer, error.quoted)
            } else {
                let mut message = error.quoted.to_vec();
                if message.len() < 8 {
                    // The kernel's own errors quote nothing: an echo request without payload.
                    message = vec![if guest.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 0];
                }
                echo::set_ident(&mut message, guest.port());
                error::original_echo(guest.ip(), peer.ip(), &message)
            };
            let Some(original) = original else { continue };
            self.answer_socket_error(guest_mac, &error, &original);
        }
    }

    /// Tells the guest what a host socket's error queue says about its packet `original`, from
    /// whoever found it.
    pub(super) fn answer_socket_error(
        &mut self,
        guest_mac: Mac,
        error: &SocketError<'_>,
        original: &[u8],
    ) {
        let ipv6 = original.first().is_some_and(|first| first >> 4 == 6);
        let Some(report) = report_of(error, ipv6) else { return };
        let source = error.offender.map(|address| self.plan.seen_by_guest(address));
        let source = source.filter(|address| !address.is_loopback());
        self.answer_report(guest_mac, source, report, original);
    }

    /// Tells the guest by ICMP, from the gateway, what is wrong with its packet `original`.
    pub(super) fn answer_problem(&mut self, guest_mac: Mac, problem: Problem, original: &[u8]) {
        let ipv6 = original.first().is_some_and(|first| first >> 4 == 6);
        self.answer_report(guest_mac, None, problem.report(ipv6), original);
    }

    /// RFC 792 and RFC 8200 §4.5: the first fragment came, the rest did not.
    pub(super) fn answer_reassembly_timeout(&mut self, first: &[u8]) {
        let source = match first.first().map(|byte| byte >> 4) {
            Some(4) => first
                .get(12..16)
                .and_then(|octets| <[u8; 4]>::try_from(octets).ok())
                .map(IpAddr::from),
            _ => first
                .get(8..24)
                .and_then(|octets| <[u8; 16]>::try_from(octets).ok())
                .map(IpAddr::from),
        };
        if let Some(guest_mac) = source.and_then(|source| self.services.mac_of(source)) {
            self.answer_problem(guest_mac, Problem::ReassemblyTime, first);
        }
    }

    /// Tells the guest by ICMP from `source`, or from the gateway without one.
    pub(super) fn answer_report(
        &mut self,
        guest_mac: Mac,
        source: Option<IpAddr>,
        report: Report,
        original: &[u8],
    ) {
        let ipv6 = original.first().is_some_and(|first| first >> 4 == 6);
        let Some(source) = source.or(self.plan.gateway(ipv6)) else { return };
        if let Some(packet) = error_packet(source, report, original) {
            self.send_packet(guest_mac, &packet, usize::from(self.plan.mtu));
        }
    }

    /// Sends a complete IP packet to the guest, in fragments if it exceeds `mtu`.
    pub(super) fn send_packet(&mut self, guest_mac: Mac, packet: &[u8], mtu: usize) {
        self.fragment_ident = self.fragment_ident.wrapping_add(1);
        let mut pieces = Vec::new();
        if let Err(reason) = fragment(packet, mtu, self.fragment_ident, &mut pieces) {
            return self.io.drop_frame(reason);
        }
        let ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let ethertype = if ipv6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 };
        for piece in pieces {
            let mut frame = vec![0; ETHERNET_HEADER_LEN];
            EthernetRepr {
                src_addr: EthernetAddress(self.io.gateway_mac.0),
                dst_addr: EthernetAddress(guest_mac.0),
                ethertype,
            }
            .emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
            frame.extend(piece);
            self.io.write_plain(&frame);
        }
    }
}

/// What the guest is to be told of `error`: the network's own words if they came by ICMP, the
/// meaning of the errno if the host's kernel found it.
pub(super) fn report_of(error: &SocketError<'_>, ipv6: bool) -> Option<Report> {
    match error.origin {
        Origin::Icmp | Origin::Icmp6 => {
            let too_big = error.errno == libc::EMSGSIZE;
            let info = if too_big { error.info } else { 0 };
            Some(Report { kind: error.kind, code: error.code, info })
        }
        Origin::Local if error.errno == libc::EMSGSIZE => {
            Some(Problem::TooBig(error.info).report(ipv6))
        }
        Origin::Local => Problem::from_errno(error.errno).map(|problem| problem.report(ipv6)),
        Origin::Other(_) => None,
    }
}
