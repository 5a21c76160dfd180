//! The client: one conversation, in which the tables are read and may be replaced.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::wire::{self, HELLO_SIZE, PifTable, WireError};
use crate::control::socket::MAX_PATH;

/// Why the tables are not known or not changed, in the original's words.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing that a socket could have as its name.
    #[error("Invalid socket path \"{}\"", .0.display())]
    Path(PathBuf),
    /// Nobody answers.
    #[error("Failed to connect to {}: {}", path.display(), errno(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The server goes away before it has said what it is.
    #[error("Couldn't read server greeting: {}", errno(.0))]
    Greeting(io::Error),
    /// The server goes away in the middle of its tables.
    #[error("Error reading from control socket")]
    Read(#[source] io::Error),
    /// The server goes away before it has all of the update.
    #[error("Error writing to control socket: {}", errno(.0))]
    Write(io::Error),
    /// The server says what we do not understand.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A server that knows no targets is asked for one.
    #[error("Server protocol version {0} has no target addresses")]
    NoTargets(u32),
}

/// strerror(3).
fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

/// A server that waits for an update, or for nothing.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    version: u32,
}

impl Client {
    /// Connects to the socket at `path` and reads the tables.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<(Client, Vec<PifTable>), ClientError> {
        let length = path.as_os_str().len();
        if length == 0 || length > MAX_PATH {
            return Err(ClientError::Path(path.to_owned()));
        }
        let connected = UnixStream::connect(path);
        let mut stream =
            connected.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        loop {
            if let Some(greeting) = wire::read_greeting(&bytes)? {
                let client = Client { stream, version: greeting.version };
                return Ok((client, greeting.tables));
            }
            if bytes.len() > wire::MAX_GREETING {
                return Err(WireError::TooManyTables.into());
            }
            let received = match stream.read(&mut part) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => Err(io::Error::from(Errno::ENODATA)),
                received => received,
            };
            let received = received.map_err(|error| match bytes.len() {
                ..HELLO_SIZE => ClientError::Greeting(error),
                _ => ClientError::Read(error),
            })?;
            bytes.extend_from_slice(&part[..received]);
        }
    }

    /// Replaces the tables of the server by `tables`, and ends the conversation. What the server
    /// makes of them is not known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn update(mut self, tables: &[PifTable]) -> Result<(), ClientError> {
        let has_target =
            |table: &PifTable| table.table.rules().iter().any(|rule| rule.target.is_some());
        if self.version < 2 && tables.iter().any(has_target) {
            return Err(ClientError::NoTargets(self.version));
        }
        let bytes = wire::write_update(tables, self.version);
        self.stream.write_all(&bytes).map_err(ClientError::Write)
    }
}
