//! What an instance takes on the host before anything is made: its name, its output files, and the
//! certainty that it can send from where it was told to.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::Path;
use std::str::FromStr;

use super::SetupError;

/// The name of a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceName(String);

/// Text that cannot name an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 63 letters, digits, '.', '_' or '-', and starts with a letter or digit")]
pub struct ParseInstanceNameError;

impl FromStr for InstanceName {
    type Err = ParseInstanceNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= 63 && text.chars().all(good) {
            Ok(InstanceName(text.to_owned()))
        } else {
            Err(ParseInstanceNameError)
        }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Holds a name for as long as it lives.
///
/// The lock is an abstract Unix socket (unix(7)), which the kernel takes away however the process
/// ends: no stale file can keep a name.
#[derive(Debug)]
pub struct NameLock(#[expect(dead_code, reason = "held, not used")] UnixDatagram);

impl NameLock {
    /// Takes `name` among the instances of the user `uid` in this network namespace.
    pub fn take(name: &InstanceName, uid: u32) -> Result<NameLock, SetupError> {
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SetupError::NameInUse(name.clone()),
            _ => SetupError::Host { what: format!("take the name {name}"), source },
        };
        let address = UnixAddr::from_abstract_name(format!("tapway/{uid}/{name}")).map_err(fail)?;
        UnixDatagram::bind_addr(&address).map(NameLock).map_err(fail)
    }
}

/// Opens an output file: readable by its owner only, since it tells what the guest does.
pub fn open_output(path: &Path, kind: &'static str, append: bool) -> Result<File, SetupError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .append(append)
        .truncate(!append)
        .mode(0o600)
        .open(path)
        .map_err(|source| SetupError::Output { kind, path: path.to_owned(), source })
}

/// Makes sure that the host can send from `address`.
pub fn probe_outbound(address: IpAddr) -> Result<(), SetupError> {
    UdpSocket::bind(SocketAddr::new(address, 0))
        .map(drop)
        .map_err(|source| SetupError::OutboundAddress { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_instance_at_a_time() {
        let name: InstanceName = format!("unit-test-{}", std::process::id()).parse().unwrap();
        let lock = NameLock::take(&name, 4711).unwrap();
        assert!(matches!(NameLock::take(&name, 4711), Err(SetupError::NameInUse(n)) if n == name));
        let of_another_user = NameLock::take(&name, 4712).unwrap();
        drop((lock, of_another_user));
        NameLock::take(&name, 4711).unwrap();
    }

    #[test]
    fn names_cannot_be_paths_or_options() {
        for bad in ["", "-x", ".x", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(bad.parse::<InstanceName>(), Err(ParseInstanceNameError), "{bad}");
        }
        assert!("Web-1.test_x".parse::<InstanceName>().is_ok());
    }
}
