//! Connections inside the guest's namespace in the name of a client: sockets that have the client's
//! address and port there, and connect to a server of the guest.
//!
//! ```text
//!   stock of marked sockets ─▶ is the target the guest's own, and the client's not? ─▶ bind, connect
//! ```
//! A marked packet stays in the namespace whatever its destination, so that a target behind a bridge
//! of the guest's would be taken for the guest's own by whatever listens at all addresses. Who has
//! which address is found out for every connection, since the guest may change it: a datagram
//! socket that is connected to an address of its own namespace gets that address itself.
//!
//! Whether there is a short way at all is asked whenever sockets are, and sockets are not kept for
//! longer than [`FRESH`]: a guest that begins to filter packets is served by its link from then on
//! (see `setup::short_way`).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;

use super::host::{InsideKind, OpenInside};
use super::ports::Reached;
use crate::base::Instant;
use crate::gate::forward::Transport;
use crate::gate::ports::Family;
use crate::sys::datagram::source_towards;

/// Sockets that are asked for at once, since asking takes as long as making several.
const STOCK: usize = 16;

/// How long what is known of the namespace is relied on.
const FRESH: Duration = Duration::from_secs(1);

/// What is at hand for one family.
#[derive(Default)]
pub(super) struct ShortWay {
    sockets: Vec<OwnedFd>,
    /// A datagram socket of the guest's that is bound to nothing.
    probe: Option<OwnedFd>,
    asked: Option<Instant>,
    /// Addresses that were looked up since then, and whether they are the guest's own: as many as
    /// sockets at most, twice.
    known: Vec<(IpAddr, bool)>,
}

impl ShortWay {
    /// Begins to connect to `target` as `client`; both are of one family.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the guest has a connection between the two already. Any other: there
    /// is no short way to this target, or not now; refusals are told as `ConnectionRefused`.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        open: &mut OpenInside,
        client: SocketAddr,
        target: SocketAddr,
    ) -> io::Result<Reached<Socket>> {
        let family = Family::of(target.ip());
        if self.asked.is_none_or(|asked| now.since(asked) > FRESH) {
            self.sockets.clear();
        }
        if self.sockets.is_empty() {
            self.known.clear();
            self.sockets = open(InsideKind::Marked, family, STOCK)?;
            self.asked = Some(now);
        }
        if self.probe.is_none() {
            let made = open(InsideKind::Plain(Transport::Udp), family, 1)?;
            self.probe = made.into_iter().next();
        }
        if !self.is_own(target.ip())? || self.is_own(client.ip())? {
            return Err(ErrorKind::HostUnreachable.into());
        }
        let socket = Socket::from(self.sockets.pop().ok_or(ErrorKind::Unsupported)?);
        socket.set_out_of_band_inline(true)?;
        // Something of the guest's may have the port, or only the privileged may: no reason to give
        // the client another.
        socket.bind(&client.into()).map_err(|_| ErrorKind::HostUnreachable)?;
        match socket.connect(&target.into()) {
            Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
            _ => {}
        }
        // Loopback has mostly answered by now.
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        Ok(Reached { connected: socket.peer_addr().is_ok(), stream: socket })
    }

    /// Whether an address is the guest's own.
    fn is_own(&mut self, address: IpAddr) -> io::Result<bool> {
        if let Some((_, own)) = self.known.iter().find(|(known, _)| *known == address) {
            return Ok(*own);
        }
        let probe = self.probe.as_ref().ok_or(ErrorKind::Unsupported)?;
        let own = source_towards(probe.as_fd(), address)? == Some(address);
        if self.known.len() < 2 * STOCK {
            self.known.push((address, own));
        }
        Ok(own)
    }
}
