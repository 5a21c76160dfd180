//! The guest: smoltcp's stack on the link, with applications that send and read.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use crate::peer::{FROM_GUEST, TO_GUEST};
use crate::rng::pattern;

/// Frames between the interface and the link.
#[derive(Default)]
struct Port {
    inbound: VecDeque<Vec<u8>>,
    outbound: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sender<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.inbound.pop_front()?;
        Some((Received(frame), Sender(&mut self.outbound)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// What the guest's application does with one connection.
#[derive(Clone, Debug)]
pub struct Application {
    pub target: SocketAddr,
    /// Bytes that it sends before it closes its direction.
    pub sends: u64,
    /// It closes its direction only when it has seen the end of the other.
    pub waits_for_end: bool,
    /// It reads at most this much at a time, in bytes.
    pub chunk: usize,
    /// It reads nothing before this time, in nanoseconds: a closed window.
    pub reads_from: u64,
    /// Socket buffers in bytes: receive, send.
    pub buffers: (usize, usize),
    /// Milliseconds for which acknowledgments are delayed.
    pub ack_delay: Option<u64>,
    pub nagle: bool,
    /// It resets the connection after this many bytes received.
    pub aborts_after: Option<u64>,
    /// It runs in a namespace behind the guest, which forwards.
    pub behind: bool,
}

impl Application {
    pub fn to(target: SocketAddr) -> Application {
        Application {
            target,
            sends: 0,
            waits_for_end: false,
            chunk: usize::MAX,
            behind: false,
            reads_from: 0,
            buffers: (65_535, 65_535),
            ack_delay: Some(10),
            nagle: true,
            aborts_after: None,
        }
    }
}

/// A connection and how far it has come.
#[derive(Debug)]
pub struct Running {
    pub application: Application,
    handle: SocketHandle,
    pub sent: u64,
    pub received: u64,
    closed: bool,
    /// The end of the peer's direction came behind its bytes.
    pub saw_eof: bool,
    pub wrong_at: Option<u64>,
    pub aborted: bool,
    established: bool,
    pub state: tcp::State,
}

impl Running {
    /// Whether the socket is over: in the ordinary way, by reset, or refused.
    pub fn is_over(&self) -> bool {
        matches!(self.state, tcp::State::Closed | tcp::State::TimeWait)
    }

    /// Whether it ended without ever being established.
    pub fn was_refused(&self) -> bool {
        self.state == tcp::State::Closed && !self.established
    }
}

fn new_socket(application: &Application) -> tcp::Socket<'static> {
    let (receive, send) = application.buffers;
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; receive]),
        tcp::SocketBuffer::new(vec![0; send]),
    );
    socket.set_ack_delay(application.ack_delay.map(smoltcp::time::Duration::from_millis));
    socket.set_nagle_enabled(application.nagle);
    socket.set_hop_limit(Some(64 - u8::from(application.behind)));
    socket
}

/// The guest's stack.
pub struct Guest {
    interface: Interface,
    port: Port,
    sockets: SocketSet<'static>,
    pub running: Vec<Running>,
    /// ICMP and ICMPv6 "destination unreachable" messages received.
    pub unreachables: u64,
    next_port: u16,
}

fn time(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

impl Guest {
    /// A guest with `addresses` (and the link's prefixes), routing through `gateways`.
    pub fn new(
        seed: u64,
        mac: [u8; 6],
        addresses: &[IpCidr],
        gateways: &[IpAddr],
        mtu: usize,
    ) -> Guest {
        let mut port = Port { mtu, ..Port::default() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, time(0));
        interface.update_ip_addrs(|own| {
            for address in addresses {
                // A test names fewer addresses than smoltcp has room for.
                own.push(*address).unwrap();
            }
        });
        for gateway in gateways {
            let routes = interface.routes_mut();
            match gateway {
                IpAddr::V4(gateway) => routes.add_default_ipv4_route(*gateway).unwrap(),
                IpAddr::V6(gateway) => routes.add_default_ipv6_route(*gateway).unwrap(),
            };
        }
        let sockets = SocketSet::new(vec![]);
        let next_port = 40_000 + (seed % 20_000) as u16;
        Guest { interface, port, sockets, running: vec![], unreachables: 0, next_port }
    }

    /// Starts a connection.
    pub fn connect(&mut self, application: Application) {
        let mut socket = new_socket(&application);
        self.next_port += 1;
        let target = (application.target.ip(), application.target.port());
        socket.connect(self.interface.context(), target, self.next_port).unwrap();
        self.run_application(application, socket);
    }

    /// Waits for a connection to the port of `application.target`.
    pub fn listen(&mut self, application: Application) {
        let mut socket = new_socket(&application);
        socket.listen(application.target.port()).unwrap();
        self.run_application(application, socket);
    }

    /// The far end of the connection `index`, as the guest sees it.
    pub fn remote(&self, index: usize) -> Option<SocketAddr> {
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.running[index].handle);
        let end = socket.remote_endpoint()?;
        Some(SocketAddr::new(end.addr.into(), end.port))
    }

    fn run_application(&mut self, application: Application, socket: tcp::Socket<'static>) {
        let state = socket.state();
        let handle = self.sockets.add(socket);
        self.running.push(Running {
            application,
            handle,
            sent: 0,
            received: 0,
            closed: false,
            saw_eof: false,
            wrong_at: None,
            aborted: false,
            established: false,
            state,
        });
    }

    /// A frame arrives.
    pub fn receive(&mut self, frame: Vec<u8>) {
        // Ethernet, then an IP header without options: protocol and ICMP type (RFC 792, RFC 4443).
        let unreachable = match (frame.get(12..14), frame.get(20), frame.get(23)) {
            (Some([0x08, 0x00]), _, Some(1)) => frame.get(34) == Some(&3),
            (Some([0x86, 0xdd]), Some(58), _) => frame.get(54) == Some(&1),
            _ => false,
        };
        self.unreachables += u64::from(unreachable);
        self.port.inbound.push_back(frame);
    }

    /// Resets every connection.
    pub fn abort_all(&mut self) {
        for running in &mut self.running {
            self.sockets.get_mut::<tcp::Socket<'_>>(running.handle).abort();
        }
    }

    /// Runs the stack and the applications at `now`; the frames that the guest sends.
    pub fn run(&mut self, now: u64) -> Vec<Vec<u8>> {
        self.interface.poll(time(now), &mut self.port, &mut self.sockets);
        for running in &mut self.running {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(running.handle);
            running.act(socket, now);
        }
        self.interface.poll(time(now), &mut self.port, &mut self.sockets);
        for running in &mut self.running {
            running.state = self.sockets.get::<tcp::Socket<'_>>(running.handle).state();
        }
        std::mem::take(&mut self.port.outbound)
    }

    /// When the stack or an application has something to do.
    pub fn next(&mut self, now: u64) -> Option<u64> {
        let poll = self.interface.poll_at(time(now), &self.sockets);
        let poll = poll.map(|at| (at.total_micros().max(0) as u64 * 1000).max(now + 1000));
        let wakes = self.running.iter().map(|running| running.application.reads_from);
        let sockets = &self.sockets;
        let reading = self.running.iter().any(|running| {
            let socket = sockets.get::<tcp::Socket<'_>>(running.handle);
            socket.can_recv() && now >= running.application.reads_from
        });
        let reading = reading.then_some(now + 100_000);
        wakes.filter(|at| *at > now).chain(poll).chain(reading).min()
    }
}

impl Running {
    fn act(&mut self, socket: &mut tcp::Socket<'_>, now: u64) {
        self.established |= socket.may_send();
        while self.sent < self.application.sends && socket.can_send() {
            let left = self.application.sends - self.sent;
            let bytes: Vec<u8> =
                (0..left.min(4096)).map(|i| pattern(FROM_GUEST, self.sent + i)).collect();
            self.sent += socket.send_slice(&bytes).unwrap() as u64;
        }
        if now >= self.application.reads_from {
            self.read(socket);
        }
        let done_sending = self.sent == self.application.sends && self.established;
        if done_sending && !self.closed && (self.saw_eof || !self.application.waits_for_end) {
            self.closed = true;
            socket.close();
        }
        if !self.aborted
            && self.application.aborts_after.is_some_and(|limit| self.received >= limit)
            && self.established
        {
            self.aborted = true;
            socket.abort();
        }
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>) {
        let mut buffer = vec![0; self.application.chunk.min(65_536)];
        match socket.recv_slice(&mut buffer) {
            Ok(count) => {
                for &byte in &buffer[..count] {
                    // An echo server returns the guest's own bytes.
                    let salt =
                        if self.application.target.port() == 7 { FROM_GUEST } else { TO_GUEST };
                    if byte != pattern(salt, self.received) && self.wrong_at.is_none() {
                        self.wrong_at = Some(self.received);
                    }
                    self.received += 1;
                }
            }
            Err(tcp::RecvError::Finished) => self.saw_eof = true,
            Err(tcp::RecvError::InvalidState) => {}
        }
        // The end can be seen at once behind the last byte: nothing else tells the application.
        if socket.recv_queue() == 0 && socket.recv(|_| (0, ())) == Err(tcp::RecvError::Finished) {
            self.saw_eof = true;
        }
    }
}
