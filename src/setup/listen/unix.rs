//! Unix sockets of the host in front of guest ports: their files are made, replaced and removed
//! here.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{BACKLOG, ListenError};

/// The file of a Unix socket; dropping it removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // By now the path may be somebody else's, who has replaced the file.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            // What cannot be removed is stale, and the next instance replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// A listening socket at `path`, for its owner only.
pub(super) fn listen(path: &Path) -> Result<(OwnedFd, SocketFile), ListenError> {
    let fail = |source| ListenError::Unix { path: path.to_owned(), source };
    let address = SockAddr::unix(path).map_err(fail)?;
    let socket = stream().map_err(fail)?;
    // The file gets the mode of the socket, less the umask: there is no moment in which others
    // could connect (unix_bind_bsd in net/unix/af_unix.c).
    fchmod(socket.as_fd(), Mode::from_bits_truncate(0o600)).map_err(|e| fail(e.into()))?;
    match socket.bind(&address) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &address)?;
            socket.bind(&address).map_err(fail)?;
        }
        result => result.map_err(fail)?,
    }
    let identity = identity(&fs::symlink_metadata(path).map_err(fail)?);
    let file = SocketFile { path: path.to_owned(), identity };
    socket.listen(BACKLOG).map_err(fail)?;
    Ok((socket.into(), file))
}

/// Removes the file at `path` if it is a socket that nobody serves.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), ListenError> {
    let fail = |source| ListenError::Unix { path: path.to_owned(), source };
    let before = fs::symlink_metadata(path).map_err(fail)?;
    if !before.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    // Whatever else a connection meets, be it a full queue or a lack of permission, is alive.
    let refused = stream().map_err(fail)?.connect(address);
    if !refused.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        return Err(ListenError::SocketInUse(path.to_owned()));
    }
    let now = fs::symlink_metadata(path).map_err(fail)?;
    if identity(&now) != identity(&before) {
        return Err(ListenError::SocketInUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(fail)
}

fn stream() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
}
