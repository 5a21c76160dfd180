//! The kernel's pipe, through which splice(2) moves bytes from socket to socket without a copy.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use socket2::Socket;

/// What is read from one end was written to the other. Neither blocks.
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// How much a pipe is to hold, as far as the user's pipes may (`pipe-user-pages-soft`, pipe(7)):
/// places for 64 pieces of up to 32 KiB, as sockets give them.
const PIPE_LEN: i32 = 256 << 10;

/// Neither end of a move waits.
const MOVING: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// Bytes that are copied where they cannot be moved: less than what any pipe takes (`PIPE_BUF`).
const PIECE: usize = 512;

impl Pipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub(super) fn open() -> io::Result<Pipe> {
        let (out, into) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // A smaller one only takes more moves.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_LEN));
        Ok(Pipe { out, into })
    }

    /// Moves at most `most` bytes from `stream` into the pipe, which is empty; 0 at EOF.
    ///
    /// # Errors
    /// Those of splice(2) and recv(2).
    pub(super) fn fill(&self, mut stream: &Socket, most: usize) -> io::Result<usize> {
        let moved = splice(stream, None, &self.into, None, most, MOVING)?;
        if moved > 0 || stream.peek(&mut [MaybeUninit::uninit()])? == 0 {
            return Ok(moved);
        }
        // splice(2) stops in front of urgent data, and says no more than that nothing was moved.
        let mut piece = [0; PIECE];
        let read = stream.read(&mut piece)?;
        Ok(nix::unistd::write(&self.into, &piece[..read])?)
    }

    /// Moves at most `most` bytes, which the pipe has, to `stream`.
    ///
    /// # Errors
    /// Those of splice(2).
    pub(super) fn drain(&self, stream: &Socket, most: usize) -> io::Result<usize> {
        Ok(splice(&self.out, None, stream, None, most, MOVING)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;

    /// Our end of a connection, and the peer's.
    fn connection() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = Socket::from(listener.accept().unwrap().0);
        ours.set_nonblocking(true).unwrap();
        ours.set_out_of_band_inline(true).unwrap();
        (ours, peer)
    }

    /// Moves everything from `from` to `to` until its end.
    fn carry(from: &Socket, pipe: &Pipe, to: &Socket) {
        loop {
            match pipe.fill(from, 1 << 20) {
                Ok(0) => return to.shutdown(std::net::Shutdown::Write).unwrap(),
                Ok(bytes) => assert_eq!(pipe.drain(to, bytes).unwrap(), bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn urgent_data_does_not_look_like_the_end() {
        let ((from, mut writer), (to, mut reader)) = (connection(), connection());
        writer.write_all(b"abc").unwrap();
        SockRef::from(&writer).send_out_of_band(b"!").unwrap();
        writer.write_all(b"def").unwrap();
        drop(writer);
        carry(&from, &Pipe::open().unwrap(), &to);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc!def");
    }

    #[test]
    fn a_reset_is_an_error_and_no_end() {
        let (from, writer) = connection();
        SockRef::from(&writer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(writer);
        let error = Pipe::open().unwrap().fill(&from, 1 << 20).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    }
}
