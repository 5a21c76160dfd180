//! The guest's loopback in front of the host's: ports that lead from one to the other, socket to
//! socket, without a frame on the TAP.
//!
//! ```text
//!   client at 127.0.0.1:N in the guest ─▶ listener inside ─▶ here ─▶ 127.0.0.1:M of the host
//! ```
//! And the other way round, for clients of published TCP ports on the host's loopback, where that
//! was asked for: their connections are joined to the guest's loopback.
//!
//! Runs on the control thread. Each family is joined to its own; a server of the host that only one
//! family has is reached by clients of that family. Everything is bounded: connections and sessions
//! over all ports, bytes by the buffers of each.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::engine::host::Diverted;
use crate::gate::forward::{Inner, Transport};
use crate::gate::ports::Family;
use crate::setup::inside::{InnerError, Inside, OpenInner};

/// TCP connections at a time, over all ports. Each takes two descriptors.
const CONNECTIONS: usize = 2048;

/// UDP sessions at a time, over all ports. Each takes a descriptor.
const SESSIONS: usize = 512;

/// Datagrams of a client that wait for its session.
const WAITING: usize = 64;

/// When a UDP session without traffic ends (RFC 4787 REQ-5: at least 2 minutes).
const IDLE: Duration = Duration::from_secs(180);

/// When to accept again after descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// The most bytes that a datagram carries.
const DATAGRAM: usize = 65_535;

/// A port that leads somewhere, closed when this is dropped.
pub(super) struct Leading(AbortHandle);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Joins the two loopbacks.
pub(super) struct Relay {
    inside: Inside,
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
}

impl Relay {
    pub(super) fn new(inside: Inside) -> Relay {
        Relay {
            inside,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
        }
    }

    /// Opens the sockets of `rule` in the guest.
    ///
    /// # Errors
    /// As [`Inside::open`].
    pub(super) fn open(&self, rule: &Inner) -> Result<Vec<OpenInner>, InnerError> {
        self.inside.open(rule)
    }

    /// Lets `port` of the guest's loopback lead to `host_port` of the host's, in one family.
    ///
    /// # Errors
    /// Those of bind(2) in the guest.
    pub(super) fn lead(
        &self,
        transport: Transport,
        family: Family,
        port: u16,
        host_port: u16,
    ) -> io::Result<Leading> {
        let socket = self.inside.listen(transport, family, port)?;
        self.lead_from(OpenInner { transport, family, port, host_port, socket })
    }

    /// The same with a socket that is open already.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn lead_from(&self, open: OpenInner) -> io::Result<Leading> {
        let OpenInner { transport, family, host_port, socket, .. } = open;
        let target = SocketAddr::new(loopback(family), host_port);
        let task = match transport {
            Transport::Tcp => {
                let listener = TcpListener::from_std(OwnedFd::into(socket))?;
                tokio::spawn(accept(listener, target, Arc::clone(&self.connections)))
            }
            Transport::Udp => {
                let socket = UdpSocket::from_std(OwnedFd::into(socket))?;
                tokio::spawn(datagrams(socket, target, Arc::clone(&self.sessions)))
            }
        };
        Ok(Leading(task.abort_handle()))
    }
}

impl Relay {
    /// Joins a client of a published port to the guest's loopback. Where there are too many, or the
    /// guest's server is not there, the client is reset.
    pub(super) fn join(&self, client: Diverted) {
        let Diverted { stream, ipv6, port } = client;
        let Ok(client) = TcpStream::from_std(OwnedFd::into(stream)) else { return };
        let family = if ipv6 { Family::V6 } else { Family::V4 };
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            return reset(&client);
        };
        let Ok(socket) = self.inside.socket(Transport::Tcp, family) else {
            return reset(&client);
        };
        let socket = TcpSocket::from_std_stream(OwnedFd::into(socket));
        let target = SocketAddr::new(loopback(family), port);
        tokio::spawn(async move {
            match socket.connect(target).await {
                Ok(server) => join(client, server, permit).await,
                Err(_) => reset(&client),
            }
        });
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Takes clients for ever. Those under way end with the task.
async fn accept(listener: TcpListener, target: SocketAddr, permits: Arc<Semaphore>) {
    let mut under_way = JoinSet::new();
    loop {
        // Clients wait in the kernel's queue while there are too many.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                under_way.spawn(join_streams(client, target, permit));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        while under_way.try_join_next().is_some() {}
    }
}

/// Joins a client to `target`; a client whose server is not there is reset.
async fn join_streams(client: TcpStream, target: SocketAddr, permit: OwnedSemaphorePermit) {
    match TcpStream::connect(target).await {
        Ok(server) => join(client, server, permit).await,
        Err(_) => reset(&client),
    }
}

/// Carries bytes both ways until both have ended.
async fn join(mut client: TcpStream, mut server: TcpStream, _permit: OwnedSemaphorePermit) {
    for stream in [&client, &server] {
        // It fails only for a connection that has failed.
        let _ = stream.set_nodelay(true);
    }
    let joined = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    if joined.is_err() {
        reset(&client);
        reset(&server);
    }
}

fn reset(stream: &TcpStream) {
    // It fails only for a connection that has failed.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Takes datagrams for ever, those of each client to its own session.
async fn datagrams(socket: UdpSocket, target: SocketAddr, permits: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut sessions: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error is that of an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        while under_way.try_join_next().is_some() {}
        let known = sessions.get(&client).filter(|session| !session.is_closed());
        let session = match known.cloned() {
            Some(session) => session,
            None => {
                sessions.retain(|_, session| !session.is_closed());
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                let (sender, receiver) = mpsc::channel(WAITING);
                let socket = Arc::clone(&socket);
                under_way.spawn(session_of(socket, client, target, receiver, permit));
                sessions.insert(client, sender.clone());
                sender
            }
        };
        // A full queue loses datagrams, as every queue on a datagram's way does.
        let _ = session.try_send(buffer[..length].to_vec());
    }
}

/// One client of a UDP port, until nothing has passed for a while.
async fn session_of(
    guest: Arc<UdpSocket>,
    client: SocketAddr,
    target: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
    _permit: OwnedSemaphorePermit,
) {
    let Ok(server) = UdpSocket::bind(SocketAddr::new(target.ip(), 0)).await else { return };
    if server.connect(target).await.is_err() {
        return;
    }
    let mut buffer = vec![0; DATAGRAM];
    loop {
        tokio::select! {
            datagram = queue.recv() => match datagram {
                // Whether anybody listens there is told by the next receive, or not at all.
                Some(bytes) => drop(server.send(&bytes).await),
                None => return,
            },
            answer = server.recv(&mut buffer) => match answer {
                Ok(length) => drop(guest.send_to(&buffer[..length], client).await),
                // Nobody listens: the next datagram tries again.
                Err(_) => continue,
            },
            () = tokio::time::sleep(IDLE) => return,
        }
    }
}
