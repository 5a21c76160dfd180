//! The DNS service behind the guest's `nameserver`: a forwarder to the host's resolvers.
//!
//! ```text
//!   worker ── query, number ──▶ Service ── UDP, own port and id ──▶ resolver 1, 2, …
//!   worker ── Unix stream ────▶ Service ── TCP, one a query ──────▶ resolver 1, 2, …
//!                                  ▲
//!   /etc/resolv.conf ── inotify ── View
//! ```
//! Messages pass unchanged but for the id: DNSSEC, EDNS, TC and unknown types are the business of
//! the two ends. Zone transfers are refused: a forwarder cannot tell where they end. Runs on the
//! control thread's runtime (D6), owns its sockets, sees no frame.
//!
//! Follows RFC 1035, RFC 5452 (random port and id, question compared), RFC 7766 (TCP). The host's
//! `/etc/hosts` is not consulted; the names that stand for the host are answered here, because
//! resolvers such as musl's, Go's or `dig` do not read the guest's `/etc/hosts` for every type.
//!
//! Hostile input: queries and streams from the guest, answers from the network. Bounds: queries
//! under way and streams, where the oldest gives way to a new one; queries under way of one stream
//! and of all, where more wait in the streams, in turn; time for each query.
#![forbid(unsafe_code)]

mod forward;
mod message;
mod resolv_conf;
mod stream;
mod upstream;
mod view;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::Instant;

pub use resolv_conf::ResolverView;
pub use upstream::Source;
pub use view::{follow, read};

/// UDP queries under way.
const MAX_QUERIES: usize = 1024;
/// Streams from the guest.
const MAX_STREAMS: usize = 128;
/// Queries of all streams under way, and so connections to resolvers. With each as large as can be
/// they and their answers take 32 MiB.
const MAX_STREAM_QUERIES: usize = 256;

/// What a worker hands over.
#[derive(Debug)]
pub enum DnsRequest {
    /// A message that came in a datagram.
    Datagram {
        /// The worker's number for it.
        token: u64,
        /// The message.
        query: Vec<u8>,
    },
    /// A stream of length-prefixed messages (RFC 1035 §4.2.2); non-blocking.
    Stream(UnixStream),
}

/// The answer to a [`DnsRequest::Datagram`].
#[derive(Debug, PartialEq, Eq)]
pub struct DnsAnswer {
    /// The worker's number.
    pub token: u64,
    /// The message.
    pub message: Vec<u8>,
}

/// What the service answers by itself, and how it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsOptions {
    /// Names with their addresses, without a trailing dot.
    pub local_names: Vec<(String, Vec<IpAddr>)>,
    /// How its sockets are bound.
    pub source: Source,
}

/// What all queries share.
struct Service {
    options: DnsOptions,
    view: watch::Receiver<ResolverView>,
    /// The resolver that answered last in place of an earlier one, and when that was found out.
    stand_in: Cell<Option<(SocketAddr, Instant)>>,
    /// Room for a datagram from a resolver; never borrowed across a wait.
    room: Box<RefCell<[u8; upstream::MAX_DATAGRAM]>>,
    /// Slots for queries that came over any stream.
    stream_queries: Arc<Semaphore>,
}

/// Tasks of one kind, bounded: at the bound the oldest gives way. It has had the longest time to
/// succeed, and clients ask anew; refusing the newest would let a few that hang shut out all
/// others.
struct Bounded {
    limit: usize,
    what: &'static str,
    /// By age. Finished ones are taken out when room is needed.
    tasks: VecDeque<AbortHandle>,
}

impl Bounded {
    fn new(limit: usize, what: &'static str) -> Bounded {
        Bounded { limit, what, tasks: VecDeque::new() }
    }

    fn add(&mut self, task: AbortHandle) {
        if self.tasks.len() >= self.limit {
            self.tasks.retain(|task| !task.is_finished());
        }
        if self.tasks.len() >= self.limit
            && let Some(oldest) = self.tasks.pop_front()
        {
            tracing::debug!("more than {} DNS {}: the oldest gives way", self.limit, self.what);
            oldest.abort();
        }
        self.tasks.push_back(task);
    }
}

/// Serves until `requests` is closed. `view` says whom to ask.
pub async fn serve(
    options: DnsOptions,
    view: watch::Receiver<ResolverView>,
    mut requests: mpsc::Receiver<DnsRequest>,
    answers: impl Fn(DnsAnswer) + 'static,
) {
    let service = Rc::new(Service {
        options,
        view,
        stand_in: Cell::new(None),
        room: Box::new(RefCell::new([0; upstream::MAX_DATAGRAM])),
        stream_queries: Arc::new(Semaphore::new(MAX_STREAM_QUERIES)),
    });
    let answers = Rc::new(answers);
    let mut queries = Bounded::new(MAX_QUERIES, "queries");
    let mut streams = Bounded::new(MAX_STREAMS, "streams");
    let tasks = LocalSet::new();
    tasks
        .run_until(async move {
            let mut running = JoinSet::new();
            loop {
                let request = tokio::select! {
                    request = requests.recv() => request,
                    // Finished tasks are taken out at once: the set must not grow.
                    Some(_) = running.join_next() => continue,
                };
                let Some(request) = request else { return };
                let service = Rc::clone(&service);
                match request {
                    DnsRequest::Datagram { token, query } => {
                        let answers = Rc::clone(&answers);
                        queries.add(running.spawn_local(async move {
                            if let Some(message) = forward::over_udp(&service, query).await {
                                answers(DnsAnswer { token, message });
                            }
                        }));
                    }
                    DnsRequest::Stream(stream) => {
                        streams.add(
                            running
                                .spawn_local(async move { stream::serve(&service, stream).await }),
                        );
                    }
                }
            }
        })
        .await;
}
