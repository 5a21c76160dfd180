//! The guest of a simulated conversation.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;

use super::{FROM_GUEST, FROM_HOST, GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, PEER, Plan, byte};
use crate::stack::wire::formats::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpCidr,
};

/// The guest's interface: what is on its way in, and what has left.
#[derive(Default)]
pub(super) struct Port {
    pub(super) mtu: usize,
    pub(super) received: VecDeque<Vec<u8>>,
    pub(super) sent: VecDeque<Vec<u8>>,
}

pub(super) struct Incoming(Vec<u8>);
pub(super) struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// The guest: a program that sends and reads, and smoltcp's TCP.
pub(super) struct Guest {
    pub(super) port: Port,
    pub(super) interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) handle: SocketHandle,
    pub(super) written: u64,
    pub(super) read: u64,
    pub(super) closed: bool,
}

pub(super) fn micros(now: u64) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.cast_signed())
}

impl Guest {
    pub(super) fn new(plan: &Plan, seed: u64) -> Guest {
        let mut port = Port { mtu: plan.mtu, ..Port::default() };
        let mut config = Config::new(EthernetAddress(GUEST_MAC.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).expect("room for one");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room for one");
        let buffer = || tcp::SocketBuffer::new(vec![0; plan.guest_buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        if plan.inbound {
            socket.listen(41_000).expect("a fresh socket");
        } else {
            socket.connect(interface.context(), (PEER, 443), 41_000).expect("a fresh socket");
        }
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        Guest { port, interface, sockets, handle, written: 0, read: 0, closed: false }
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn poll(&mut self, now: u64) {
        self.interface.poll(micros(now), &mut self.port, &mut self.sockets);
    }

    pub(super) fn write(&mut self, plan: &Plan) {
        let room = (self.socket().send_capacity() - self.socket().send_queue()) as u64;
        let most = plan.guest_writes.bytes.min(plan.guest_sends - self.written).min(room);
        let chunk: Vec<u8> = (0..most).map(|i| byte(FROM_GUEST, self.written + i)).collect();
        if self.socket().can_send() {
            self.written += self.socket().send_slice(&chunk).expect("can send") as u64;
        }
        let done = self.written == plan.guest_sends
            && (!plan.guest_closes_last || self.read == plan.host_sends);
        if done && !self.closed && self.socket().may_send() {
            self.closed = true;
            self.socket().close();
        }
    }

    pub(super) fn read(&mut self, plan: &Plan) {
        if !self.socket().can_recv() {
            return;
        }
        let most = (self.socket().recv_queue() as u64).min(plan.guest_reads.bytes);
        let mut chunk = vec![0; most as usize];
        let len = self.socket().recv_slice(&mut chunk).expect("can receive");
        for &got in &chunk[..len] {
            assert_eq!(got, byte(FROM_HOST, self.read), "byte {} for the guest", self.read);
            self.read += 1;
        }
    }
}

/// An ARP reply that names the gateway. It comes unasked and past the link's losses: smoltcp would
/// otherwise put a lost question in the place of a segment, and the link is bad enough.
pub(super) fn neighbour() -> Vec<u8> {
    let (source, target) = (EthernetAddress(GATEWAY_MAC.0), EthernetAddress(GUEST_MAC.0));
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: source,
        source_protocol_addr: GATEWAY,
        target_hardware_addr: target,
        target_protocol_addr: GUEST,
    };
    let header =
        EthernetRepr { src_addr: source, dst_addr: target, ethertype: EthernetProtocol::Arp };
    let mut frame = vec![0; header.buffer_len() + reply.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    header.emit(&mut ethernet);
    reply.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    frame
}
