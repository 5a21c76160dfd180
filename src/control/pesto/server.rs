//! The server: one client after the other, each for a bounded time.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::wire::{self, MAX_UPDATE, PifTable, Update};
use crate::control::api::PATIENCE;
use crate::control::socket::{self, BindError, Bound, MAX_PATH};
use crate::gate::table::{Table, TableError};

/// Pause after a failed `accept`: out of descriptors, most likely, which others have to free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client's wish becomes for the instance.
#[derive(Debug)]
pub enum Call {
    /// Tell the tables as they are. A dropped sender tells the client that the instance is ending.
    Tables(oneshot::Sender<Vec<PifTable>>),
    /// Make the tables these: all tables that were told, some of them perhaps empty.
    Replace(Vec<PifTable>),
}

/// The control socket at a path of the caller's, listening. The file stays when the server goes, as
/// the original's does: it is stale then, and the next server replaces it.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
}

/// Why a client is not heard any more.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("there is no table {0}")]
    NoTable(u8),
    #[error("it sends too much")]
    TooLong,
}

impl Server {
    /// Opens the socket at `path`, for this user alone, in place of a stale one. Needs no runtime;
    /// clients that come before [`Server::run`] wait.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Server, BindError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(BindError::TooLong(path.to_owned()));
        }
        socket::clear(path, path)?;
        let bound = Bound::at(path).and_then(|bound| bound.listen(path));
        Ok(Server { listener: bound.map_err(BindError::at(path))? })
    }

    /// Serves clients; puts their wishes to the instance by `calls`. Does not return by itself
    /// unless nobody receives `calls` any more.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime.
    pub async fn run(self, calls: mpsc::Sender<Call>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener)?;
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a client of pesto's socket is not accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match timeout(PATIENCE, serve(stream, &calls)).await {
                Err(_) => tracing::warn!("a client of pesto's socket stalls and is dropped"),
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => {
                    tracing::warn!(%refusal, "an update of the forwarding tables is refused");
                }
            }
            if calls.is_closed() {
                return Ok(());
            }
        }
    }
}

/// One conversation.
async fn serve(mut stream: UnixStream, calls: &mpsc::Sender<Call>) -> Result<(), Refusal> {
    let (reply, answer) = oneshot::channel();
    // Here and below: who has gone away does not want to know.
    let Ok(()) = calls.send(Call::Tables(reply)).await else { return Ok(()) };
    let Ok(tables) = answer.await else { return Ok(()) };
    let Ok(()) = stream.write_all(&wire::write_greeting(&tables)).await else { return Ok(()) };
    let Some(update) = receive(&stream).await? else { return Ok(()) };
    let wanted = replaced(&tables, update)?;
    let _ = calls.send(Call::Replace(wanted)).await;
    Ok(())
}

/// What the client sends; `None` if it goes away before it has said all.
async fn receive(stream: &UnixStream) -> Result<Option<Update>, Refusal> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        if let Some(update) = wire::read_update(&bytes)? {
            return Ok(Some(update));
        }
        if bytes.len() > MAX_UPDATE {
            return Err(Refusal::TooLong);
        }
        let Ok(()) = stream.readable().await else { return Ok(None) };
        match stream.try_read(&mut part) {
            Ok(0) => return Ok(None),
            Ok(received) => bytes.extend_from_slice(&part[..received]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(None),
        }
    }
}

/// The tables as they are to be, held to their rules.
fn replaced(tables: &[PifTable], update: Update) -> Result<Vec<PifTable>, Refusal> {
    let mut wanted: Vec<PifTable> = tables
        .iter()
        .map(|known| PifTable { table: Table::new(known.table.caps()), ..known.clone() })
        .collect();
    for (pif, rules) in update {
        let table = wanted.iter_mut().find(|table| table.pif == pif);
        let table = &mut table.ok_or(Refusal::NoTable(pif))?.table;
        rules.into_iter().try_for_each(|rule| table.add(rule))?;
    }
    Ok(wanted)
}
