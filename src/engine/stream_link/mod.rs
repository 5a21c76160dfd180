//! The guest link of a virtual machine: a Unix stream socket, as QEMU's `-netdev stream` speaks.
//!
//! ```text
//!   stream:  length, 4 bytes big-endian │ Ethernet frame │ length │ frame …      both ways
//! ```
//! Frames have no virtio-net header: checksums are complete, segments fit the MTU.
//!
//! Who may come: one client at a time. Others who connect meanwhile are hung up on. When the client
//! goes, or sends a length that no frame has, its connection is closed and the guest is over; the
//! next one that comes is another guest, unless there is to be [only one](Ends::once).
//!
//! Back pressure: what the socket does not take is kept, and while something is, the engine begins
//! nothing new towards the guest ([`FramePort::is_congested`]), so that bytes wait in host sockets.
//! Frames are read from the guest even then, since two ends that each wait for the other to read
//! would wait for ever; what answers them is kept up to a limit and dropped beyond.
//!
//! Listening socket and connection stand in an epoll instance of their own, which is what the
//! worker watches, level-triggered.
//!
//! Hostile input: every byte of the stream; a partial frame holds one buffer of a fixed size.

mod incoming;
mod outgoing;

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::observe::Capture;

use super::ports::FramePort;
use super::recorder::Recorder;
use incoming::Incoming;
use outgoing::Outgoing;

/// Bytes of the length in front of each frame.
const LENGTH_LEN: usize = 4;

/// The shortest frame: an Ethernet header. What is short of Ethernet's 60 bytes is not padded.
const MIN_FRAME: usize = 14;

/// The longest: Ethernet header, VLAN tag, and the largest IP packet.
const MAX_FRAME: usize = 14 + 4 + 65_535;

/// Clients that are hung up on at once, before others of the worker's events get their turn.
const HANG_UPS: usize = 16;

/// The ends of a link: non-blocking, at least one of the two sockets.
#[derive(Debug)]
pub struct Ends {
    /// Where clients come.
    pub door: Option<UnixListener>,
    /// The client that is there already.
    pub client: Option<UnixStream>,
    /// The first client is the last one.
    pub once: bool,
}

/// The link; see the head of this file.
pub struct StreamLink {
    events: Epoll,
    door: Option<UnixListener>,
    once: bool,
    /// Nobody is let in any more.
    over: bool,
    client: Option<Client>,
    recorder: Recorder,
}

/// Whoever is at the other end.
struct Client {
    stream: UnixStream,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Nothing could be read when it was last tried, and no readiness was told since.
    drained: bool,
    /// Something was read since readiness was told.
    fruitful: bool,
    /// Nothing can be written any more.
    broken: bool,
    /// Readiness to take more is watched.
    watched: bool,
}

impl StreamLink {
    /// A link at `ends`. `capture` sees every frame.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn new(ends: Ends, capture: Option<Capture<File>>) -> io::Result<StreamLink> {
        let Ends { door, client, once } = ends;
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(door) = &door {
            events.add(door, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        let recorder = Recorder::new(capture);
        let mut link = StreamLink { events, door, once, over: false, client: None, recorder };
        if let Some(client) = client {
            link.welcome(client)?;
        }
        Ok(link)
    }

    fn welcome(&mut self, stream: UnixStream) -> io::Result<()> {
        self.events.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        self.client = Some(Client {
            stream,
            incoming: Incoming::new(),
            outgoing: Outgoing::default(),
            drained: false,
            fruitful: false,
            broken: false,
            watched: false,
        });
        Ok(())
    }

    /// Lets in whoever waits at the door, if nobody is here, and hangs up on the others.
    fn answer_door(&mut self) {
        let Some(door) = &self.door else { return };
        let mut comer = None;
        for _ in 0..HANG_UPS {
            match door.accept() {
                Ok((stream, _)) if self.client.is_none() && comer.is_none() && !self.over => {
                    comer = Some(stream);
                }
                Ok(_) => tracing::info!("somebody else came, and was hung up on"),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody is there, or the kernel cannot give a descriptor now and will be asked
                // again at the next readiness.
                Err(_) => break,
            }
        }
        let Some(stream) = comer else { return };
        match stream.set_nonblocking(true).and_then(|()| self.welcome(stream)) {
            Ok(()) => tracing::info!("a guest is here"),
            Err(error) => tracing::error!(%error, "a guest cannot be served"),
        }
    }

    /// The client is gone, or to go.
    fn part(&mut self) -> io::Result<usize> {
        // Closing takes it out of the epoll set.
        self.client = None;
        tracing::info!("the guest is gone");
        self.over = self.once || self.door.is_none();
        if self.over { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(0) }
    }
}

impl Client {
    /// Reads ahead. `Ok(false)` if that is the end of the stream.
    fn read_ahead(&mut self) -> io::Result<bool> {
        if self.drained {
            return Err(ErrorKind::WouldBlock.into());
        }
        let room = self.incoming.room();
        match self.stream.read(room) {
            Ok(count) => {
                // A short read has emptied the socket; what comes later is told.
                self.drained = count < room.len();
                self.fruitful = true;
                self.incoming.filled(count);
                Ok(count > 0)
            }
            Err(error) => {
                self.drained = error.kind() == ErrorKind::WouldBlock;
                Err(error)
            }
        }
    }

    /// Takes note of what came of a write, and watches for readiness while something is kept.
    fn wrote(&mut self, events: &Epoll, result: &io::Result<()>) {
        if result.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
            self.broken = true;
        }
        let keeps = !self.outgoing.is_empty() && !self.broken;
        if keeps != self.watched {
            let flags = EpollFlags::EPOLLIN
                | if keeps { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            // It fails for want of memory only, and then the link is lost.
            self.broken |= events.modify(&self.stream, &mut EpollEvent::new(flags, 0)).is_err();
            self.watched = keeps;
        }
    }
}

impl AsFd for StreamLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

impl FramePort for StreamLink {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(client) = &mut self.client else {
                return Err(ErrorKind::WouldBlock.into());
            };
            if client.broken {
                return self.part();
            }
            match client.incoming.next() {
                Ok(Some(frame)) => {
                    let buffer = buffer.get_mut(..frame.len()).ok_or(ErrorKind::InvalidInput)?;
                    buffer.copy_from_slice(frame);
                    self.recorder.frame(buffer);
                    return Ok(buffer.len());
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the stream from the guest makes no sense");
                    return self.part();
                }
            }
            match client.read_ahead() {
                Ok(true) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !client.fruitful {
                        // Then it was somebody else who made the link ready.
                        self.answer_door();
                    }
                    return Err(error);
                }
                Ok(false) | Err(_) => return self.part(),
            }
        }
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(client) = &mut self.client else { return Err(ErrorKind::NotConnected.into()) };
        if client.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let result = client.outgoing.send(parts, &mut client.stream);
        client.wrote(&self.events, &result);
        if result.is_ok() {
            self.recorder.parts(parts, 0);
        }
        result
    }

    fn on_readiness(&mut self) {
        let Some(client) = &mut self.client else { return self.answer_door() };
        (client.drained, client.fruitful) = (false, false);
        if !client.outgoing.is_empty() {
            let result = client.outgoing.flush(&mut client.stream);
            client.wrote(&self.events, &result);
        }
    }

    fn has_frame(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.broken || client.incoming.has_frame())
    }

    fn is_congested(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.outgoing.is_empty())
    }
}

#[cfg(test)]
mod tests;
