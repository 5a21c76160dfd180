//! The network of a virtual machine: the socket by which its monitor (QEMU) comes to us.
//!
//! There is no namespace to set up: the monitor connects, and frames of the machine's interface
//! cross the connection ([`crate::engine::stream_link`]).
//!
//! A socket that nobody listens at any more, as every instance leaves one behind, is replaced; what
//! is no socket stays. Clients are whoever may write to the socket: its mode is the caller's umask.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockRef, Type};

use super::conduct::take;

/// Where the monitor is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineOptions {
    /// By which socket.
    pub door: Door,
    /// The first connection is the last one.
    pub once: bool,
}

/// A socket for the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// One that listens at the first free of passt's paths, `/tmp/passt_1.socket` and so on.
    Anywhere,
    /// One that listens at this path.
    At(PathBuf),
    /// The connection itself, which the program was started with.
    Descriptor(RawFd),
}

/// The socket, open and non-blocking: one of the two kinds.
#[derive(Debug)]
pub struct Machine {
    /// Where it listens, if it does.
    pub path: Option<PathBuf>,
    /// Listens.
    pub door: Option<UnixListener>,
    /// Is connected.
    pub client: Option<UnixStream>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Another process listens there.
    #[error("Socket path {} already in use", .0.display())]
    InUse(PathBuf),
    /// All of passt's paths are taken.
    #[error("All socket paths up to {} are in use", .0.display())]
    AllInUse(PathBuf),
    /// The kernel refused.
    #[error("listen at the socket {}", .path.display())]
    Listen {
        /// The path asked for.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not a connection.
    #[error("use descriptor {number} as a connection to a virtual machine")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
}

/// How many paths are tried, as passt does.
const PATHS: usize = 100;

/// Connections that may wait to be taken, or hung up on.
const BACKLOG: i32 = 16;

impl Machine {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn open(door: &Door) -> Result<Machine, MachineError> {
        let listening = |path, door| Machine { path: Some(path), door: Some(door), client: None };
        match door {
            Door::At(path) => Ok(listening(path.clone(), listen(path)?)),
            Door::Anywhere => {
                let path = |n| PathBuf::from(format!("/tmp/passt_{n}.socket"));
                // A path is somebody else's if it cannot be had, for whatever reason.
                let free = (1..=PATHS).find_map(|n| Some((path(n), listen(&path(n)).ok()?)));
                let (path, door) = free.ok_or_else(|| MachineError::AllInUse(path(PATHS)))?;
                Ok(listening(path, door))
            }
            &Door::Descriptor(number) => {
                let fail = |source| MachineError::Descriptor { number, source };
                let client = connection(take(number).map_err(fail)?).map_err(fail)?;
                Ok(Machine { path: None, door: None, client: Some(client) })
            }
        }
    }

    /// How to start QEMU so that it comes here, in passt's words; nothing where it is here already.
    pub fn instructions(&self) -> String {
        let Some(path) = &self.path else { return String::new() };
        let path = path.display();
        format!(
            "UNIX domain socket bound at {path}\n\n\
             You can now start qemu (>= 7.2, with commit 13c6be96618c):\n    \
             kvm ... -device virtio-net-pci,netdev=s \
             -netdev stream,id=s,server=off,addr.type=unix,addr.path={path}\n\
             or qrap, for earlier qemu versions:\n    \
             ./qrap 5 kvm ... -net socket,fd=5 -net nic,model=virtio\n"
        )
    }
}

fn listen(path: &Path) -> Result<UnixListener, MachineError> {
    let fail = |source| MachineError::Listen { path: path.to_owned(), source };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::UNIX, kind, None).map_err(fail)?;
    let address = socket2::SockAddr::unix(path).map_err(fail)?;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        // A socket of another type is told whether somebody is there, and is no guest to them.
        match UnixDatagram::unbound().map_err(fail)?.connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(fail)?;
            }
            // Somebody is there (EPROTOTYPE), or it cannot be known.
            _ => return Err(MachineError::InUse(path.to_owned())),
        }
    }
    socket.bind(&address).map_err(fail)?;
    socket.listen(BACKLOG).map_err(fail)?;
    Ok(OwnedFd::from(socket).into())
}

/// `descriptor` as what it has to be: a connected stream socket.
fn connection(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let socket = SockRef::from(&descriptor);
    if socket.r#type()? != Type::STREAM {
        return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
    }
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    // Reading and writing are the same for streams of every family.
    Ok(UnixStream::from(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let door = Door::At(path.clone());
        let first = Machine::open(&door).unwrap();
        assert!(matches!(Machine::open(&door), Err(MachineError::InUse(p)) if p == path));
        let nobody = first.door.as_ref().unwrap().accept().unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        drop(first);
        assert!(path.exists(), "nobody removes it");
        let second = Machine::open(&door).unwrap();
        assert!(second.instructions().contains(&format!("addr.path={}\n", path.display())));
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        let refused = Machine::open(&Door::At(path.clone())).unwrap_err();
        assert!(matches!(refused, MachineError::Listen { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_descriptor_has_to_be_a_connection() {
        let (one, _other) = UnixStream::pair().unwrap();
        connection(one.into()).unwrap();
        let errno = |descriptor: OwnedFd| connection(descriptor).unwrap_err().raw_os_error();
        let file = fs::File::open("/dev/null").unwrap();
        assert_eq!(errno(file.into()), Some(libc::ENOTSOCK));
        let (one, _other) = UnixDatagram::pair().unwrap();
        assert_eq!(errno(one.into()), Some(libc::EPROTOTYPE));
        let alone = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        assert_eq!(errno(alone.into()), Some(libc::ENOTCONN));
    }
}
