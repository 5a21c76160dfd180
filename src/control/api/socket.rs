//! The socket file of the API: there while its server is, and gone with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::Directory;
use crate::control::socket::{self, BindError, Bound, MAX_PATH};

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
    let (path, address) = (directory.socket(name), address(&directory, name));
    socket::clear(&path, &address)?;
    listen(&path, &address, |_| Ok(directory.into_file()))
}

/// Binds and listens at `path`, in place of whatever is there, for a caller who has named it.
pub(super) fn open_at(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(BindError::TooLong(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(BindError::at(path)(error));
        }
        _ => {}
    }
    listen(path, path, |path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::options()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
            .open(parent.unwrap_or(Path::new(".")))
    })
}

/// Binds at `path`, which is reached by `address` and in `directory`, and listens.
fn listen(
    path: &Path,
    address: &Path,
    directory: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = BindError::at(path);
    let directory = directory(path).map_err(&fail)?;
    let bound = Bound::at(address).map_err(&fail)?;
    let file = SocketFile::new(path, directory).map_err(&fail)?;
    // From here on a failure removes the file.
    Ok((bound.listen(path).map_err(&fail)?, file))
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
