//! Unix sockets at which others may speak to an instance: for their owner alone from the first
//! moment on, and never in place of what is not ours to remove.
//!
//! Hostile input: the directory of a path that a caller names may belong to somebody else, who can
//! do with the file what they like. Nothing is read from there and nothing but sockets is removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Longest path that fits an address, its final zero not included (unix(7)).
pub(super) const MAX_PATH: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else has the file's name.
    #[error("{} is in the way of the control socket and is no socket: remove it", .0.display())]
    InTheWay(PathBuf),
    /// Somebody answers there.
    #[error("{} is already in use by another instance", .0.display())]
    InUse(PathBuf),
    /// Longer than an address.
    #[error("{} is too long a path for the control socket: {MAX_PATH} bytes is the longest", .0.display())]
    TooLong(PathBuf),
    /// A system call.
    #[error("make the control socket {}", .path.display())]
    Io {
        /// Where it should be.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// From what the kernel said of the socket at `path`.
    pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> BindError {
        move |source| BindError::Io { path: path.to_owned(), source }
    }
}

/// Removes a socket at which nobody listens from `path`, which is reached by `address`.
///
/// # Errors
/// Somebody listens, or it is no socket.
pub(super) fn clear(path: &Path, address: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(BindError::InTheWay(path.to_owned())),
        Ok(_) if UnixStream::connect(address).is_ok() => Err(BindError::InUse(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(BindError::at(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BindError::at(path)(error)),
    }
}

/// A socket that is bound and does not listen yet: until it does, clients are refused.
#[derive(Debug)]
pub(super) struct Bound(OwnedFd);

impl Bound {
    /// Binds at `address` with mode 0600 from the first moment on: the kernel gives the file the
    /// mode of the socket, less the umask.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub(super) fn at(address: &Path) -> io::Result<Bound> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        fchmod(made.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(made.as_raw_fd(), &UnixAddr::new(address)?)?;
        Ok(Bound(made))
    }

    /// Listens, and gives the owner what a umask may have taken away. `path` is the socket's.
    ///
    /// # Errors
    /// Those of chmod(2) and listen(2).
    pub(super) fn listen(self, path: &Path) -> io::Result<UnixListener> {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen(&self.0, Backlog::new(BACKLOG)?)?;
        Ok(self.0.into())
    }
}
