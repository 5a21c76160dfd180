//! The DNS service behind the guest's `nameserver`: a forwarder to the host's resolvers.
//!
//! ```text
//!   worker ── query, number ──▶ Service ── UDP, own port and id ──▶ resolver 1, 2, …
//!   worker ── Unix stream ────▶ Service ── TCP, one a query ──────▶ resolver 1, 2, …
//!                                  ▲
//!   /etc/resolv.conf ── inotify ── View
//! ```
//! Messages pass unchanged but for the id: DNSSEC, EDNS, TC and unknown types are the business of
//! the two ends. Runs on the control thread's runtime (D6), owns its sockets, sees no frame.
//!
//! Follows RFC 1035, RFC 5452 (random port and id, question compared), RFC 7766 (TCP). The host's
//! `/etc/hosts` is not consulted; the names that stand for the host are answered here, because
//! resolvers such as musl's, Go's or `dig` do not read the guest's `/etc/hosts` for every type.
//!
//! Hostile input: queries and streams from the guest, answers from the network. Bounds: queries
//! under way, streams, queries per stream, time per query; at a bound the newest is refused.
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
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

pub use resolv_conf::ResolverView;
pub use upstream::Source;
pub use view::follow;

/// UDP queries under way.
const MAX_QUERIES: usize = 1024;
/// Streams from the guest.
const MAX_STREAMS: usize = 128;

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
    /// Randomness for message ids.
    random: RefCell<ahash::RandomState>,
    asked: Cell<u64>,
}

impl Service {
    fn fresh_id(&self) -> u16 {
        self.asked.set(self.asked.get() + 1);
        // Truncation is the point: an id is 16 bits.
        self.random.borrow().hash_one(self.asked.get()) as u16
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
        random: RefCell::new(ahash::RandomState::new()),
        asked: Cell::new(0),
    });
    let answers = Rc::new(answers);
    let queries = Rc::new(Semaphore::new(MAX_QUERIES));
    let streams = Rc::new(Semaphore::new(MAX_STREAMS));
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
                        if queries.available_permits() == 0 {
                            tracing::debug!("too many DNS queries under way, one refused");
                            continue;
                        }
                        let (answers, queries) = (Rc::clone(&answers), Rc::clone(&queries));
                        running.spawn_local(async move {
                            let _permit = queries.acquire().await;
                            if let Some(message) = forward::over_udp(&service, query).await {
                                answers(DnsAnswer { token, message });
                            }
                        });
                    }
                    DnsRequest::Stream(stream) => {
                        if streams.available_permits() == 0 {
                            tracing::debug!("too many DNS streams, one refused");
                            continue;
                        }
                        let streams = Rc::clone(&streams);
                        running.spawn_local(async move {
                            let _permit = streams.acquire().await;
                            stream::serve(&service, stream).await;
                        });
                    }
                }
            }
        })
        .await;
}
