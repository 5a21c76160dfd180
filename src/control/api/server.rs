//! The server: many clients, none of whom can make another wait.
//!
//! Clients pass through two stages, each a set of tasks: sending their request, and being
//! answered. Together they are at most [`MAX_CLIENTS`]. Whoever has been sending longest goes when
//! there is no room; those being answered stay, each for a bounded time, and only if they alone
//! fill the room does the next one wait in the kernel's queue.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::directory::Directory;
use super::request::{Call, ErrorCode, Failure, Reply, Request};
use super::socket::{self, SocketFile};
use super::wire::{self, Asked, Context, MAX_REQUEST, Message};
use crate::control::BindError;

/// Clients at a time.
pub const MAX_CLIENTS: usize = 32;

/// How long a client may take to send its request, and again to take its answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long the instance may take for one request; opening thousands of ports is the longest.
const INSTANCE_PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a failed `accept`: out of descriptors, most likely, which others have to free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much of what follows a request is thrown away, so that closing does not reset the
/// connection before the client has read its answer.
const MAX_LEFTOVER: usize = 64 << 10;

/// An instance's control socket, listening. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    file: SocketFile,
    context: Context,
    /// Whether only its own user and root are admitted, and not whomever the file's mode lets in.
    own_only: bool,
}

/// A client whose request has come.
struct Ready {
    stream: UnixStream,
    asked: Asked,
}

impl Server {
    /// Opens the control socket of the instance `name`, whose lock the caller holds. Needs no
    /// runtime; clients that come before [`Server::run`] wait.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left behind.
    pub fn bind(directory: Directory, name: &str, context: Context) -> Result<Server, BindError> {
        let (listener, file) = socket::open(directory, name)?;
        Ok(Server { listener, file, context, own_only: true })
    }

    /// Opens a control socket at `path`, in place of whatever is there. Its mode alone decides who
    /// may speak.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left behind.
    pub fn bind_at(path: &Path, context: Context) -> Result<Server, BindError> {
        let (listener, file) = socket::open_at(path)?;
        Ok(Server { listener, file, context, own_only: false })
    }

    /// The path of the socket file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Serves clients; puts their requests to the instance by `calls`. Does not return by itself
    /// unless nobody receives `calls` any more; dropping the future ends all connections.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime.
    pub async fn run(self, calls: mpsc::Sender<Call>) -> io::Result<()> {
        let Server { listener, file: _file, context, own_only } = self;
        let listener = UnixListener::from_std(listener)?;
        let mut sending: JoinSet<Option<Ready>> = JoinSet::new();
        let mut order: VecDeque<AbortHandle> = VecDeque::new();
        let mut answering: JoinSet<()> = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if answering.len() < MAX_CLIENTS => {
                    let stream = match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "a control client is not accepted");
                            sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    if own_only && !is_own(&stream) {
                        continue;
                    }
                    order.retain(|client| !client.is_finished());
                    if sending.len() + answering.len() >= MAX_CLIENTS
                        && let Some(longest) = order.pop_front()
                    {
                        longest.abort();
                    }
                    order.push_back(sending.spawn(receive(stream, context)));
                }
                Some(done) = sending.join_next(), if !sending.is_empty() => {
                    if let Ok(Some(ready)) = done {
                        answering.spawn(serve(ready, calls.clone(), context));
                    }
                }
                Some(_) = answering.join_next(), if !answering.is_empty() => {}
                () = calls.closed() => return Ok(()),
            }
        }
    }
}

/// Whether the client is the instance's own user, or root.
fn is_own(stream: &UnixStream) -> bool {
    // As of now: an instance that has moved to another user namespace has another id there, and
    // sees its user by that one too.
    let uid = geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user is turned away from the control socket");
            false
        }
        Err(_) => false,
    }
}

/// Waits for the request. One that cannot be put to the instance is answered here.
async fn receive(mut stream: UnixStream, context: Context) -> Option<Ready> {
    let message = timeout(PATIENCE, request(&stream, &context)).await.ok()??;
    match message {
        Message::Asked(asked) => Some(Ready { stream, asked: *asked }),
        Message::Refused(answer) => {
            finish(&mut stream, &answer).await;
            None
        }
        Message::Incomplete => None,
    }
}

/// `None` when the connection broke.
async fn request(stream: &UnixStream, context: &Context) -> Option<Message> {
    let mut bytes = Vec::new();
    loop {
        stream.readable().await.ok()?;
        let mut buffer = [0; MAX_REQUEST];
        let room = &mut buffer[..MAX_REQUEST - bytes.len()];
        let received = match stream.try_read(room) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        };
        bytes.extend_from_slice(&room[..received]);
        match wire::read(&bytes, received == 0, context) {
            Message::Incomplete => {}
            message => return Some(message),
        }
    }
}

async fn serve(ready: Ready, calls: mpsc::Sender<Call>, context: Context) {
    let Ready { mut stream, asked: Asked { request, dialect } } = ready;
    let result = match timeout(INSTANCE_PATIENCE, call(request, &calls)).await {
        Ok(result) => result,
        Err(_) => Err(unavailable("the instance is too busy to answer")),
    };
    if let Err(failure) = &result {
        tracing::debug!(%failure, "a request is refused");
    }
    let answer = wire::answer(dialect, &result, &context);
    drop(result);
    finish(&mut stream, &answer).await;
}

async fn call(request: Request, calls: &mpsc::Sender<Call>) -> Result<Reply, Failure> {
    let (reply, result) = oneshot::channel();
    let ending = || unavailable("the instance is ending");
    calls.send(Call { request, reply }).await.map_err(|_| ending())?;
    result.await.unwrap_or_else(|_| Err(ending()))
}

fn unavailable(desc: &str) -> Failure {
    Failure::new(ErrorCode::Unavailable, desc)
}

/// Sends the answer and ends the conversation. A client that does not take it gets what it took.
async fn finish(stream: &mut UnixStream, answer: &[u8]) {
    let send = async {
        stream.write_all(answer).await?;
        stream.shutdown().await
    };
    let _ = timeout(PATIENCE, send).await;
    let mut scrap = [0; 4096];
    let mut left = MAX_LEFTOVER;
    while left > 0 {
        match stream.try_read(&mut scrap) {
            Ok(1..) => left = left.saturating_sub(scrap.len()),
            Ok(0) | Err(_) => break,
        }
    }
}
