//! The client's side: one request, one answer, no runtime.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::directory::Directory;
use super::native::{AddArguments, Answer, Forwards, RemoveArguments};
use super::request::Failure;
use super::socket;
use super::wire::MAX_ANSWER;
use crate::gate::forward::ForwardId;
use crate::observe::{FlowPage, FlowQuery, FlowRecord, Info, PortKind, PortRecord, Stats};

/// How long the instance may be silent. It gives itself less.
const PATIENCE: Duration = Duration::from_secs(40);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the file is stale, there is none, or the instance ended before it answered.
    #[error("no instance listens at {}", .0.display())]
    Absent(PathBuf),
    /// The connection failed.
    #[error("{what} {}", .path.display())]
    Io {
        /// "connect to", "ask".
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The answer is not of this protocol.
    #[error("{} does not answer as tapway does", .path.display())]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The instance refused.
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl ClientError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Refused(failure) => failure.hint.clone(),
            _ => None,
        }
    }
}

/// A way to ask one instance.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    directory: &'a Directory,
    name: &'a str,
}

#[derive(Serialize)]
struct Question<'a, A> {
    execute: &'a str,
    arguments: A,
}

#[derive(Serialize)]
struct Nothing {}

impl<'a> Client<'a> {
    /// A client of the instance `name` whose socket is in `directory`.
    pub fn new(directory: &'a Directory, name: &'a str) -> Client<'a> {
        Client { directory, name }
    }

    /// Whether anybody listens.
    pub fn is_up(&self) -> bool {
        UnixStream::connect(socket::address(self.directory, self.name)).is_ok()
    }

    /// Whether it is certain that nobody listens. One whose queue is full, say, may be up.
    pub fn is_absent(&self) -> bool {
        let connected = UnixStream::connect(socket::address(self.directory, self.name));
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Who it is.
    ///
    /// # Errors
    /// [`ClientError`], as of every method here.
    pub fn info(&self) -> Result<Info, ClientError> {
        self.ask("info", Nothing {})
    }

    /// Its counters.
    pub fn stats(&self) -> Result<Stats, ClientError> {
        self.ask("stats", Nothing {})
    }

    /// One page of its flows.
    pub fn page(&self, query: &FlowQuery) -> Result<FlowPage, ClientError> {
        self.ask("list_flows", query)
    }

    /// All its flows that `query` wants, page by page.
    pub fn flows(&self, mut query: FlowQuery) -> Result<Vec<FlowRecord>, ClientError> {
        let mut flows = Vec::new();
        loop {
            let page = self.page(&query)?;
            flows.extend(page.flows);
            match page.next {
                // A cursor that does not rise would never end.
                Some(next) if query.after.is_none_or(|after| next > after) => {
                    query.after = Some(next);
                }
                _ => return Ok(flows),
            }
        }
    }

    /// Its ports.
    pub fn forwards(&self) -> Result<Vec<PortRecord>, ClientError> {
        self.ports("list_forwards", Nothing {})
    }

    /// Adds the ports of `spec`; gives what was added, picked ports filled in.
    pub fn add(
        &self,
        kind: PortKind,
        spec: &str,
        when_listening: bool,
    ) -> Result<Vec<PortRecord>, ClientError> {
        let spec = Some(spec.to_owned());
        let kind = Some(kind);
        self.ports("add_forward", AddArguments { spec, kind, when_listening, ..Default::default() })
    }

    /// Removes one port; gives what was removed.
    pub fn remove(&self, id: ForwardId) -> Result<Vec<PortRecord>, ClientError> {
        self.ports("remove_forward", RemoveArguments { id: Some(id), ..Default::default() })
    }

    /// Removes the ports that `spec` has added; gives what was removed.
    pub fn remove_spec(&self, kind: PortKind, spec: &str) -> Result<Vec<PortRecord>, ClientError> {
        let (spec, kind) = (Some(spec.to_owned()), Some(kind));
        self.ports("remove_forward", RemoveArguments { spec, kind, ..Default::default() })
    }

    fn ports(&self, verb: &str, arguments: impl Serialize) -> Result<Vec<PortRecord>, ClientError> {
        let answer: Forwards<'static> = self.ask(verb, arguments)?;
        Ok(Cow::into_owned(answer.forwards))
    }

    fn ask<T: DeserializeOwned>(
        &self,
        execute: &str,
        arguments: impl Serialize,
    ) -> Result<T, ClientError> {
        let path = || self.directory.socket(self.name);
        let strange = |source| ClientError::Strange { path: path(), source };
        let question = serde_json::to_vec(&Question { execute, arguments }).map_err(strange)?;
        let answer = self.exchange(&question);
        let hung_up = match &answer {
            Ok(answer) => answer.is_empty(),
            Err(ClientError::Io { source, .. }) => source.kind() == io::ErrorKind::ConnectionReset,
            Err(_) => false,
        };
        // One that has ended since it was found is no longer there; others have their reasons.
        if hung_up && !self.is_up() {
            return Err(ClientError::Absent(path()));
        }
        let answer = answer?;
        match serde_json::from_slice(&answer).map_err(strange)? {
            Answer::Return(value) => Ok(value),
            Answer::Error(description) => Err(Failure::from(description).into()),
        }
    }

    fn exchange(&self, question: &[u8]) -> Result<Vec<u8>, ClientError> {
        let path = || self.directory.socket(self.name);
        let mut stream =
            UnixStream::connect(socket::address(self.directory, self.name)).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::Absent(path())
                    }
                    _ => ClientError::Io { what: "connect to", path: path(), source },
                }
            })?;
        let mut converse = || {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            // A server that hangs up early may have said why.
            match stream.write_all(question).and_then(|()| stream.shutdown(Shutdown::Write)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
            let mut answer = Vec::new();
            Read::by_ref(&mut stream).take(MAX_ANSWER as u64 + 1).read_to_end(&mut answer)?;
            Ok(answer)
        };
        converse().map_err(|source| ClientError::Io { what: "ask", path: path(), source })
    }
}
