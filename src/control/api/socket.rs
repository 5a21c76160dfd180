//! The socket file: made for its owner only, in place of a stale one, gone with the server.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::Directory;

/// Longest path that fits an address, its final zero included (unix(7)).
const MAX_PATH: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else has the file's name.
    #[error("{} is in the way of the control socket and is no socket: remove it", .0.display())]
    InTheWay(PathBuf),
    /// An instance in another network namespace has the name.
    #[error("another instance of this name serves {}", .0.display())]
    InUse(PathBuf),
    /// Longer than an address.
    #[error("{} is too long a path for the control socket: 107 bytes is the longest", .0.display())]
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

/// A socket file that is removed when this is dropped, if it is still the same.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// Keeps the path from meaning another directory, and leads there when no path does any more.
    directory: File,
}

/// Binds and listens. The caller holds the lock on `name`, so that a socket file of that name is
/// stale, unless somebody answers: the lock holds in one network namespace only (unix(7)).
pub(super) fn open(
    directory: Directory,
    name: &str,
) -> Result<(UnixListener, SocketFile), BindError> {
    let path = directory.socket(name);
    let fail = |source: io::Error| BindError::Io { path: path.clone(), source };
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::InTheWay(path.clone()));
        }
        Ok(_) if is_served(&address(&directory, name)) => {
            return Err(BindError::InUse(path.clone()));
        }
        Ok(_) => fs::remove_file(&path).map_err(fail)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let made = made.map_err(|error| fail(error.into()))?;
    let bound = bind_private(&made, &address(&directory, name));
    bound.map_err(fail)?;
    let file = SocketFile::new(&path, directory.into_file()).map_err(fail)?;
    // From here on a failure removes the file.
    listen_private(&made, &path).map_err(fail)?;
    Ok((UnixListener::from(made), file))
}

/// Whether somebody listens at the socket.
fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Binds and listens at `path`, in place of whatever is there, for a caller who has named it.
pub(super) fn open_at(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |source: io::Error| BindError::Io { path: path.to_owned(), source };
    if path.as_os_str().len() > MAX_PATH {
        return Err(BindError::TooLong(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::options()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(parent.unwrap_or(Path::new(".")))
        .map_err(fail)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let made = made.map_err(|error| fail(error.into()))?;
    bind_private(&made, path).map_err(fail)?;
    let file = SocketFile::new(path, directory).map_err(fail)?;
    // From here on a failure removes the file.
    listen_private(&made, path).map_err(fail)?;
    Ok((UnixListener::from(made), file))
}

/// Listens, and gives the owner what a umask may have taken away.
fn listen_private(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(socket, Backlog::new(BACKLOG)?)?;
    Ok(())
}

/// Binds with mode 0600 from the first moment on: the kernel gives the file the mode of the socket,
/// less the umask.
pub(in crate::control) fn bind_private(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(())
}

/// A path to the socket of `name` that fits an address, whatever the directory's length.
pub(super) fn address(directory: &Directory, name: &str) -> PathBuf {
    let path = directory.socket(name);
    if path.as_os_str().len() <= MAX_PATH {
        return path;
    }
    let by_descriptor = format!("/proc/self/fd/{}", directory.fd().as_raw_fd());
    Path::new(&by_descriptor).join(Directory::file_name(name))
}

impl SocketFile {
    /// The file at `path`, just made in the open `directory`.
    fn new(path: &Path, directory: File) -> io::Result<SocketFile> {
        let made = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), identity: (made.dev(), made.ino()), directory })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        let found = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity) {
            // What cannot be removed is stale, and the next instance of the name replaces it.
            let _ = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}
