//! Joins a guest's link to a worker and to the services of the control thread, and serves it.
//!
//! ```text
//!   control thread (tokio)                         worker thread
//!     supervise: signals, the guest's life          frames, flows, sockets
//!     DNS service  ◀── queries, streams ──────────  walk_dns, host
//!                  ─── answers, search domains ──▶  commands
//!     resolv.conf watch ─▶ DNS service, guest's resolv.conf
//!     control socket, who listens ─▶ ports ───────▶ host sockets to serve
//! ```

mod inner;
mod instance;
mod ports;
mod refusals;
mod statistics;
mod tables;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::control::dns::{self, DnsOptions, DnsRequest, ResolverView};
use crate::control::lifecycle::{Guest, Outcome, Signals, supervise};
use crate::engine::host::{DnsLink, InsideKind, Links, OpenInside, Outbound};
use crate::engine::no_link::NoLink;
use crate::engine::stream_link::{Ends, StreamLink};
use crate::engine::tap::TapQueue;
use crate::engine::thread::{self, CommandSender, End, Seat};
use crate::engine::{Command, Limits, Options, Reply};
use crate::gate::{AddressPlan, PublishPath};
use crate::observe::Capture;
use crate::setup::inside::Inside;
use crate::setup::{Tap, TapFeatures, resolv_conf};

pub use instance::InstanceOptions;
pub use ports::PortOptions;

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Requests that may wait for the control thread; a full queue refuses, the guest asks again.
const DNS_QUEUE: usize = 256;

/// How long the worker may take to close the published ports. It takes microseconds.
const RETIREMENT: Duration = Duration::from_millis(500);

/// Descriptors that are not for flows: logs, epoll, the TAP, resolver sockets, the guest's files.
const RESERVED_DESCRIPTORS: u64 = 256;

/// The guest's end of the data path.
pub enum Link<'a> {
    /// A TAP, of which one queue is taken.
    Tap(&'a mut Tap),
    /// A stream, as a virtual machine speaks.
    Stream(Ends),
}

/// What the data path is made from.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Who is who on the guest link.
    pub plan: AddressPlan,
    /// How host sockets are bound.
    pub outbound: Outbound,
    /// Which way clients of published TCP ports take.
    pub publish_path: PublishPath,
    /// Resolvers to ask; `None` follows the host's `/etc/resolv.conf`.
    pub upstreams: Option<Vec<std::net::SocketAddr>>,
    /// Whether there is a DNS service.
    pub dns: bool,
    /// Search domains; `None` follows the host's.
    pub search: Option<Vec<String>>,
    /// Names that the DNS service answers by itself.
    pub local_names: Vec<(String, Vec<IpAddr>)>,
    /// How many workers there are at least; the queues of the TAP say how many at most.
    pub workers: usize,
    /// Host sockets that are open for published ports: descriptors that flows cannot have.
    pub published_sockets: usize,
}

/// A data path that runs, and the ends of it that the control thread holds.
pub struct DataPath {
    options: LaunchOptions,
    /// Known at the start.
    resolvers: ResolverView,
    requests: mpsc::Receiver<DnsRequest>,
    worker: CommandSender,
    ended: oneshot::Receiver<End>,
}

impl DataPath {
    /// Starts the worker on `link`; `capture` becomes a capture file of it, `inside` opens sockets
    /// of the guest's namespace where they are needed. To be called after the last fork and when
    /// privileges are gone, so that the worker never has any.
    ///
    /// # Errors
    /// Those of epoll, eventfd, randomness and of starting a thread.
    pub fn start(
        link: Link<'_>,
        options: LaunchOptions,
        capture: Option<File>,
        inside: Option<&Inside>,
    ) -> io::Result<DataPath> {
        let (requests_in, requests) = mpsc::channel(DNS_QUEUE);
        let (worker, commands) = thread::commands()?;
        let (ended_in, ended_out) = oneshot::channel();
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        let features = match &link {
            Link::Tap(tap) => tap.features,
            Link::Stream(_) => TapFeatures::default(),
        };
        let worker_options = Options {
            plan: options.plan.clone(),
            vnet_header: features.vnet_hdr,
            uso: features.uso,
            big_packets: features.big_packets,
            publish_path: options.publish_path,
            limits: limits(options.published_sockets),
            seed: u64::from_ne_bytes(seed),
        };
        let unwritable =
            |e: io::Error| io::Error::new(e.kind(), format!("write the capture file: {e}"));
        let capture = capture.map(Capture::new).transpose().map_err(unwritable)?;
        // Whoever asks waits for the answer, so each worker asks for itself.
        let links = || -> io::Result<Links> {
            let dns = dns_link(options.dns, requests_in.clone());
            let inside = inside.map(Inside::another).transpose()?;
            Ok(Links { dns, inside: inside.map(open_inside) })
        };
        let ended = move |error| {
            // Nobody listens when the program is ending anyway.
            let _ = ended_in.send(error);
        };
        let outbound = options.outbound.clone();
        match link {
            Link::Tap(_) if !options.plan.has_link() => {
                let seat = Seat { frames: NoLink::new()?, links: links()? };
                thread::start(vec![seat], 1, worker_options, outbound, commands, ended)?;
            }
            Link::Tap(tap) => {
                let mut queues = std::mem::take(&mut tap.queues);
                if capture.is_some() {
                    // One file, in the order of the frames.
                    queues.truncate(1);
                }
                let mut capture = capture;
                let seat = |queue| {
                    let frames = TapQueue::new(queue, features.vnet_hdr, capture.take());
                    Ok(Seat { frames, links: links()? })
                };
                let seats = queues.into_iter().map(seat).collect::<io::Result<_>>()?;
                let workers = options.workers;
                thread::start(seats, workers, worker_options, outbound, commands, ended)?;
            }
            Link::Stream(ends) => {
                let seat = Seat { frames: StreamLink::new(ends, capture)?, links: links()? };
                thread::start(vec![seat], 1, worker_options, outbound, commands, ended)?;
            }
        }
        let knows = knows_resolvers(&options);
        let servers = match &options.upstreams {
            Some(servers) => servers.clone(),
            None if knows => dns::read(Path::new(RESOLV_CONF)).servers,
            None => Vec::new(),
        };
        if knows {
            // Before anybody is told that the network is ready.
            worker.send(Command::SetResolvers(servers.iter().map(SocketAddr::ip).collect()));
        }
        // The rest of the file is told when it is followed.
        let resolvers = ResolverView { servers, ..ResolverView::default() };
        Ok(DataPath { options, resolvers, requests, worker, ended: ended_out })
    }

    /// Serves until the guest's life ends; gives how. `guest_file` is the guest's `resolv.conf`,
    /// `instance` what others may ask for.
    ///
    /// # Errors
    /// The guest cannot be watched, or the worker cannot go on.
    pub async fn serve(
        self,
        guest: &Guest,
        signals: &Signals,
        guest_file: Option<File>,
        instance: InstanceOptions,
    ) -> io::Result<Outcome> {
        let DataPath { options, resolvers, requests, worker, mut ended } = self;
        let (view_in, view) = watch::channel(resolvers);
        let answers = {
            let worker = worker.clone();
            move |answer: dns::DnsAnswer| {
                let dns::DnsAnswer { token, message } = answer;
                worker.send(Command::DnsAnswer { token, message });
            }
        };
        let Outbound { v4, v6, interface4, interface6, .. } = options.outbound.clone();
        let source = dns::Source { v4, v6, interface4, interface6 };
        let dns_options = DnsOptions { local_names: options.local_names.clone(), source };
        let service = dns::serve(dns_options, view.clone(), requests, answers);
        let follow = async {
            let followed = options.upstreams.is_none() || options.search.is_none();
            if followed {
                let fixed = options.upstreams.clone();
                if let Err(error) = dns::follow(Path::new(RESOLV_CONF), fixed, view_in).await {
                    tracing::warn!(%error, "{RESOLV_CONF} is not followed any more");
                }
            }
            std::future::pending::<()>().await;
        };
        let resolvers = pass_on_resolvers(&options, view.clone(), &worker);
        let search = pass_on_search(&options, view, &worker, guest_file);
        let instance = instance::serve(instance, options.plan.clone(), worker.clone());
        tokio::select! {
            outcome = supervise(guest, signals) => {
                // A guest that has ended may have said something last. One that is let go of while
                // it lives has no end that could be waited for.
                let ended_by_itself = !matches!(guest, Guest::Held(_));
                let asked = matches!(outcome, Ok(Outcome::Asked(_)));
                if asked || !ended_by_itself {
                    retire(&worker).await;
                } else {
                    // From here on a signal ends us at once, as it would any program.
                    signals.restore()?;
                    worker.send(Command::Drain);
                    let _ = ended.await;
                }
                outcome
            }
            end = &mut ended => link_ended(end),
            // Its requests come from nobody but the worker, which is ending: that says why.
            () = service => link_ended(ended.await),
            () = follow => Err(io::Error::other("the resolver watch ended")),
            end = instance => {
                Err(end.err().unwrap_or_else(|| io::Error::other("the control socket ended")))
            }
            () = resolvers => Err(io::Error::other("the resolvers' watch ended")),
            () = search => Err(io::Error::other("the search domains' watch ended")),
        }
    }
}

/// Closes the published ports, which a successor may want before the kernel has done away with us.
async fn retire(worker: &CommandSender) {
    let (closed, wait) = oneshot::channel();
    let reply = Reply::new(move |()| {
        // Nobody waits if a signal was faster.
        let _ = closed.send(());
    });
    worker.send(Command::Retire(reply));
    // A worker that has ended has closed everything, and the end waits for nobody.
    let _ = tokio::time::timeout(RETIREMENT, wait).await;
}

fn link_ended(end: Result<End, oneshot::error::RecvError>) -> io::Result<Outcome> {
    match end {
        Ok(End::Gone) => Ok(Outcome::Gone),
        Ok(End::Failed(error)) => Err(error),
        Ok(End::Drained) | Err(_) => Err(io::Error::other("the worker ended without a word")),
    }
}

/// The worker's way to sockets of the guest's.
fn open_inside(inside: Inside) -> OpenInside {
    Box::new(move |kind, family, count| match kind {
        InsideKind::Plain(transport) => inside.sockets(transport, family, count),
        InsideKind::Marked => inside.marked_sockets(family, count),
    })
}

/// The worker's way to the DNS service; without the service everything is refused.
fn dns_link(enabled: bool, requests: mpsc::Sender<DnsRequest>) -> DnsLink {
    let streams = requests.clone();
    DnsLink {
        connect: Box::new(move || {
            let (ours, theirs) = UnixStream::pair().ok()?;
            theirs.set_nonblocking(true).ok()?;
            (enabled && streams.try_send(DnsRequest::Stream(theirs)).is_ok()).then_some(ours)
        }),
        ask: Box::new(move |token, query| {
            let query = query.to_vec();
            enabled && requests.try_send(DnsRequest::Datagram { token, query }).is_ok()
        }),
    }
}

/// Whether the worker is to know the host's resolvers: where the guest has networks of its own, its
/// DNS address is a forwarder and nothing else.
fn knows_resolvers(options: &LaunchOptions) -> bool {
    options.plan.sharing.is_some() && options.dns
}

/// Tells the worker the host's resolvers, now and whenever they change, if it is to know them.
async fn pass_on_resolvers(
    options: &LaunchOptions,
    mut view: watch::Receiver<ResolverView>,
    worker: &CommandSender,
) {
    while knows_resolvers(options) {
        let resolvers = view.borrow_and_update().servers.iter().map(SocketAddr::ip).collect();
        worker.send(Command::SetResolvers(resolvers));
        if view.changed().await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

/// Tells the worker the host's search domains, and the guest's `resolv.conf` these and the host's
/// `ndots`, now and whenever they change.
async fn pass_on_search(
    options: &LaunchOptions,
    mut view: watch::Receiver<ResolverView>,
    worker: &CommandSender,
    mut guest_file: Option<File>,
) {
    let mut known = (options.plan.search.clone(), None);
    while view.changed().await.is_ok() {
        let now = {
            let view = view.borrow_and_update();
            (options.search.as_ref().unwrap_or(&view.search).clone(), view.ndots)
        };
        if now == known {
            continue;
        }
        let (search, ndots) = &now;
        let mut text = resolv_conf(&options.plan, search);
        if let Some(dots) = ndots {
            text.push_str(&format!("options ndots:{dots}\n"));
        }
        if let Some(file) = &mut guest_file
            && let Err(error) = rewrite(file, &text)
        {
            tracing::warn!(%error, "the guest's resolv.conf keeps its old search domains");
        }
        if known.0 != *search {
            worker.send(Command::SetSearch(search.clone()));
        }
        known = now;
    }
    std::future::pending::<()>().await;
}

fn rewrite(file: &mut File, text: &str) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// The default limits, cut to the descriptors that this process may open.
fn limits(published_sockets: usize) -> Limits {
    let descriptors = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(soft, _)| soft);
    let flows = usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(0);
    Limits::default().with_descriptors(flows.saturating_sub(published_sockets))
}
