//! A machine in this process: smoltcp behind the stream. It verifies every checksum that it is
//! sent, and that no frame exceeds its MTU.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use tapway::sys::clock;

use crate::patience;

/// The machine's own address on the link.
const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// Bytes of IP packet that the machine takes, whatever the other end would like to send.
const MTU: usize = 1500;

/// Its end of the stream.
pub(crate) struct Wire {
    pub(crate) stream: UnixStream,
    unread: Vec<u8>,
    /// The other end has hung up.
    pub(crate) closed: bool,
}

impl Wire {
    pub(crate) fn new(stream: UnixStream) -> Wire {
        stream.set_nonblocking(true).unwrap();
        Wire { stream, unread: vec![], closed: false }
    }

    /// The next frame, if all of it is there.
    fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.unread.split_first_chunk::<4>() {
                let len = u32::from_be_bytes(*length) as usize;
                assert!(len <= 14 + MTU, "a frame of {len} bytes");
                if rest.len() >= len {
                    let frame = rest[..len].to_vec();
                    self.unread.drain(..4 + len);
                    return Some(frame);
                }
            }
            let mut bytes = [0; 65_536];
            match self.stream.read(&mut bytes) {
                Ok(0) => self.closed = true,
                Ok(count) => {
                    self.unread.extend(&bytes[..count]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
            return None;
        }
    }

    /// Sends a frame; waits while the other end does not read.
    fn send(&mut self, frame: &[u8]) {
        let bytes = [&(frame.len() as u32).to_be_bytes(), frame].concat();
        let mut left = &bytes[..];
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT)
                }
                Err(_) => return self.closed = true,
            }
        }
    }

    fn wait(&self, what: PollFlags) {
        let mut ready = [PollFd::new(self.stream.as_fd(), what)];
        poll(&mut ready, PollTimeout::from(50_u8)).unwrap();
    }
}

pub(crate) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

pub(crate) struct Slot<'a>(&'a mut Wire);

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Slot<'_>)> {
        let frame = self.frame()?;
        Some((Frame(frame), Slot(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        (!self.closed).then_some(Slot(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 14 + MTU;
        capabilities
    }
}

/// A machine with an address.
pub(crate) struct Machine {
    pub(crate) wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

/// What DHCP told.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    pub(crate) router: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    pub(crate) resolvers: Vec<Ipv4Addr>,
}

impl Machine {
    /// Connects to `socket` and gets an address.
    pub(crate) fn at(socket: &Path) -> (Machine, Lease) {
        Machine::over(UnixStream::connect(socket).unwrap())
    }

    /// Gets an address over `stream`.
    pub(crate) fn over(stream: UnixStream) -> (Machine, Lease) {
        let mut wire = Wire::new(stream);
        let offer = dhcp(&mut wire, DhcpMessageType::Discover, None);
        assert_eq!(offer.0, DhcpMessageType::Offer);
        let (kind, lease) = dhcp(&mut wire, DhcpMessageType::Request, Some(&offer.1));
        assert_eq!(kind, DhcpMessageType::Ack);
        let mut interface = Interface::new(Config::new(MAC.into()), &mut wire, now());
        let prefix = u32::from(lease.mask).leading_ones() as u8;
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(lease.address.into(), prefix)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(lease.router).unwrap();
        (Machine { wire, interface, sockets: SocketSet::new(vec![]) }, lease)
    }

    /// Lets the machine work until `done` says so.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let began = clock::now();
        loop {
            self.interface.poll(now(), &mut self.wire, &mut self.sockets);
            if done(self) {
                return;
            }
            assert!(clock::now() - began < patience(), "never: {what}");
            if self.wire.unread.len() < 4 {
                self.wire.wait(PollFlags::POLLIN);
            }
        }
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn stream(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Begins to connect to `address`.
    pub(crate) fn connect(&mut self, address: (Ipv4Addr, u16), from: u16) -> SocketHandle {
        let handle = self.stream();
        let target = (IpAddress::from(address.0), address.1);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), target, from).unwrap();
        handle
    }

    /// Listens at `port`.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.stream();
        self.socket(handle).listen(port).unwrap();
        handle
    }

    /// Sends all of `bytes` and the end, and receives everything up to the other end's.
    pub(crate) fn converse(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut left, mut received, mut opened) = (bytes, vec![], false);
        self.until("the conversation is over", |machine| {
            let socket = machine.socket(handle);
            if socket.may_send() {
                opened = true;
                left = &left[socket.send_slice(left).unwrap()..];
                if left.is_empty() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                let take = |bytes: &mut [u8]| {
                    received.extend_from_slice(bytes);
                    (bytes.len(), ())
                };
                socket.recv(take).unwrap();
            }
            opened && left.is_empty() && !socket.may_recv()
        });
        received
    }
}

fn now() -> Instant {
    Instant::from_micros((clock::wall().as_micros() as i64).max(0))
}

/// A DHCP exchange: `kind`, for the address of `offer`; the answer's kind and what it says.
fn dhcp(wire: &mut Wire, kind: DhcpMessageType, offer: Option<&Lease>) -> (DhcpMessageType, Lease) {
    let repr = DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: MAC,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: offer.map(|offer| offer.address),
        client_identifier: Some(MAC),
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let udp = UdpRepr { src_port: 68, dst_port: 67 };
    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::UNSPECIFIED,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + repr.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: MAC,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut frame = vec![0; 14 + ip.buffer_len() + ip.payload_len];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
    let sums = smoltcp::phy::ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &sums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut frame[34..]),
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        repr.buffer_len(),
        |payload| repr.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap(),
        &sums,
    );
    wire.send(&frame);
    let began = clock::now();
    loop {
        assert!(clock::now() - began < patience() && !wire.closed, "no answer by DHCP");
        let Some(frame) = wire.frame() else {
            wire.wait(PollFlags::POLLIN);
            continue;
        };
        let ethernet = EthernetFrame::new_checked(&frame).unwrap();
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            continue;
        }
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        let ip = Ipv4Repr::parse(&packet, &sums).unwrap();
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
        UdpRepr::parse(&datagram, &from, &to, &sums).unwrap();
        assert_eq!((datagram.src_port(), datagram.dst_port()), (67, 68));
        let message = DhcpPacket::new_checked(datagram.payload()).unwrap();
        let answer = DhcpRepr::parse(&message).unwrap();
        let lease = Lease {
            address: answer.your_ip,
            router: answer.router.unwrap(),
            mask: answer.subnet_mask.unwrap(),
            resolvers: answer.dns_servers.unwrap_or_default().to_vec(),
        };
        return (answer.message_type, lease);
    }
}
