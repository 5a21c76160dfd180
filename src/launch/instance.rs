//! What an instance does for those who ask: ports that come and go, and answers about itself.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::control::api::{Call, ErrorCode, Failure, Reply as Answer, Request, Rule, Server};
use crate::control::listening::{RESTRAINT, Watch};
use crate::control::pesto;
use crate::engine::thread::CommandSender;
use crate::engine::{Command, Reply};
use crate::gate::AddressPlan;
use crate::gate::forward::Forward;
use crate::gate::ports::{PortTable, Reach};
use crate::observe::{FlowPage, FlowQuery, Info};
use crate::setup::tap_drops;
use crate::sys::{clock, sock_diag};

use super::ports::{PortOptions, Ports, reach};
use super::tables::{Follows, RETRY, Tables};

/// Calls that may wait for the control thread.
const CALLS: usize = 64;

/// Flows that the worker lists at a time, between which it does its other work.
const SLICE: usize = 256;

/// How long a listing of ports waits to learn what listens.
const LOOK: Duration = Duration::from_millis(500);

/// What an instance is beside its data path.
pub struct InstanceOptions {
    /// What it tells of itself; `uptime` and `ports` are filled in when asked for.
    pub info: Info,
    /// The ports of the start.
    pub ports: PortOptions,
    /// The control socket of its name, if there is one.
    pub server: Option<Server>,
    /// The control socket that its caller has named, if there is one.
    pub api: Option<Server>,
    /// The socket that pesto speaks to, if there is one.
    pub pesto: Option<pesto::Server>,
    /// Asks what listens in the guest; `None` where the kernel cannot tell.
    pub diag: Option<OwnedFd>,
    /// A process in the guest's network namespace.
    pub guest: Option<Pid>,
    /// How often counters are written to standard error; `None` for never.
    pub statistics: Option<Duration>,
}

/// An instance that answers.
struct Instance {
    info: Info,
    started: crate::base::Instant,
    ports: Ports,
    /// The ports as pesto sees them.
    tables: Tables,
    worker: CommandSender,
    guest: Option<Pid>,
}

/// Serves the control socket and follows who listens, until the future is dropped.
///
/// # Errors
/// Something was to be followed, and the kernel does not tell what listens.
pub(super) async fn serve(
    options: InstanceOptions,
    plan: AddressPlan,
    worker: CommandSender,
) -> io::Result<()> {
    let InstanceOptions { info, ports, server, api, pesto, diag, guest, statistics } = options;
    let guest_reach = reach(&plan);
    let loopback = [std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
    let ports = Ports::new(worker.clone(), plan.clone(), ports);
    if ports.follows_guest() && diag.is_none() {
        return Err(cannot_tell());
    }
    let host_watch = Watch::new(Reach(loopback.to_vec()));
    let host_diag = match ports.follows_host() {
        true => Some(sock_diag::open()?),
        // pesto may ask for it later.
        false => ports.has_inner().then(sock_diag::open).and_then(Result::ok),
    };
    let follows = Follows { guest: diag.is_some(), host: host_diag.is_some() };
    let tables = Tables::new(&plan, &ports, follows);
    let mut instance = Instance { info, started: clock::now(), ports, tables, worker, guest };
    let guest_watch = diag.is_some().then(|| Watch::new(guest_reach));
    let (calls_in, mut calls) = mpsc::channel(CALLS);
    let api = run_server(api, calls_in.clone());
    let control = run_server(server, calls_in);
    let count = {
        let worker = instance.worker.clone();
        async move {
            match statistics {
                Some(interval) => super::statistics::print(interval, worker).await,
                None => std::future::pending().await,
            }
        }
    };
    let (pesto_calls_in, mut pesto_calls) = mpsc::channel(CALLS);
    let pesto = async {
        match pesto {
            Some(server) => server.run(pesto_calls_in).await,
            None => std::future::pending().await,
        }
    };
    let watch_guest = async {
        match (&guest_watch, diag) {
            (Some(watch), Some(diag)) => watch.run(diag).await,
            _ => std::future::pending().await,
        }
    };
    let watch_host = async {
        match host_diag {
            Some(diag) => host_watch.run(diag).await,
            None => std::future::pending().await,
        }
    };
    let act = async {
        let mut guest_table = None;
        let mut host_table = None;
        // Servers that come and go by thousands take a tenth of this thread's time.
        let mut due = Instant::now();
        // When ports that were refused are tried again; `None` while there are none.
        let mut retry_at = None;
        loop {
            match (&guest_watch, instance.ports.follows_guest()) {
                (Some(watch), true) => {
                    guest_table.get_or_insert_with(|| watch.subscribe());
                }
                _ => guest_table = None,
            }
            match instance.ports.follows_host() {
                true => {
                    host_table.get_or_insert_with(|| host_watch.subscribe());
                }
                false => host_table = None,
            }
            retry_at = match instance.waits() {
                true => retry_at.or_else(|| Some(Instant::now() + RETRY)),
                false => None,
            };
            tokio::select! {
                Some(call) = calls.recv() => {
                    instance.answer(call, guest_watch.as_ref()).await;
                    instance.ports.follow_known(guest_table.as_ref()).await;
                }
                Some(call) = pesto_calls.recv() => {
                    instance.answer_pesto(call).await;
                    instance.ports.follow_known(guest_table.as_ref()).await;
                    let host = host_table.as_ref().and_then(|known| known.borrow().clone());
                    if let Some(host) = host {
                        instance.ports.follow_host(&host).await;
                    }
                }
                () = sleep_until(retry_at.unwrap_or(due)), if retry_at.is_some() => {
                    let began = Instant::now();
                    instance.retry();
                    retry_at = Some(Instant::now() + RETRY.max(began.elapsed() * RESTRAINT));
                }
                table = next_table(&mut guest_table, due) => {
                    let began = Instant::now();
                    instance.ports.follow_guest(&table).await;
                    due = Instant::now() + began.elapsed() * RESTRAINT;
                }
                table = next_table(&mut host_table, due) => {
                    let began = Instant::now();
                    instance.ports.follow_host(&table).await;
                    due = Instant::now() + began.elapsed() * RESTRAINT;
                }
            }
        }
    };
    tokio::select! {
        end = control => end,
        end = api => end,
        end = pesto => end,
        error = watch_guest => Err(error),
        error = watch_host => Err(error),
        () = act => Ok(()),
        () = count => Ok(()),
    }
}

/// Serves a control socket, if there is one.
async fn run_server(server: Option<Server>, calls: mpsc::Sender<Call>) -> io::Result<()> {
    match server {
        Some(server) => server.run(calls).await,
        None => std::future::pending().await,
    }
}

/// What listens, when it has changed, but not before `due`; never without a subscription.
async fn next_table(
    receiver: &mut Option<watch::Receiver<Option<PortTable>>>,
    due: Instant,
) -> PortTable {
    sleep_until(due).await;
    loop {
        let Some(receiver) = receiver else { return std::future::pending().await };
        if receiver.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(table) = receiver.borrow_and_update().clone() {
            return table;
        }
    }
}

fn cannot_tell() -> io::Error {
    io::Error::other(
        "this kernel does not tell what listens (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG), which \
         `auto` and --publish-when-listening need",
    )
}

impl Instance {
    async fn answer(&mut self, call: Call, guest: Option<&Watch>) {
        let Call { request, reply } = call;
        let answer = self.perform(request, guest).await;
        // A client that has gone away does not want to know.
        let _ = reply.send(answer);
    }

    /// Whether a port that is wanted was refused.
    fn waits(&self) -> bool {
        self.tables.waits() || self.ports.waits()
    }

    /// Opens such ports as far as they are free now.
    fn retry(&mut self) {
        self.tables.retry(&mut self.ports);
        self.ports.retry();
    }

    async fn answer_pesto(&mut self, call: pesto::Call) {
        match call {
            pesto::Call::Tables(reply) => {
                // A client that has gone away does not want to know.
                let _ = reply.send(self.tables.told(&self.ports));
            }
            pesto::Call::Replace(tables) => {
                self.tables.replace(&mut self.ports, &tables).await;
            }
        }
    }

    async fn perform(
        &mut self,
        request: Request,
        guest: Option<&Watch>,
    ) -> Result<Answer, Failure> {
        match request {
            Request::Info => {
                let info = Info {
                    uptime: clock::now() - self.started,
                    ports: self.ports.len(),
                    ..self.info.clone()
                };
                Ok(Answer::Info(Box::new(info)))
            }
            Request::Stats => {
                let mut stats = self.ask(Command::Stats).await?;
                let drops = self.guest.and_then(|pid| tap_drops(pid, &self.info.ifname));
                stats.tap = drops.unwrap_or_default();
                Ok(Answer::Stats(Box::new(stats)))
            }
            Request::ListFlows(query) => Ok(Answer::Flows(self.flows(query).await?)),
            Request::ListForwards => {
                let table = listening(guest).await;
                Ok(Answer::Forwards(self.ports.records(table.as_ref())))
            }
            Request::AddForward(rules) => {
                let waits = |rule: &Rule| {
                    matches!(rule, Rule::Publish(Forward { when_listening: true, .. }))
                };
                if guest.is_none() && rules.iter().any(waits) {
                    return Err(Failure::new(ErrorCode::Unavailable, cannot_tell().to_string()));
                }
                Ok(Answer::Forwards(self.ports.add(rules)?))
            }
            Request::RemoveForward(selector) => {
                Ok(Answer::Forwards(self.ports.remove(selector).await?))
            }
        }
    }

    /// A page of flows, asked for in slices.
    async fn flows(&self, mut query: FlowQuery) -> Result<FlowPage, Failure> {
        let length = query.page_length();
        let mut page = FlowPage::default();
        loop {
            query.limit = Some(SLICE.min(length - page.flows.len()));
            let asked = query.clone();
            let slice = self.ask(|reply| Command::Flows(asked, reply)).await?;
            page.flows.extend(slice.flows);
            page.next = slice.next;
            if page.next.is_none() || page.flows.len() >= length {
                return Ok(page);
            }
            query.after = page.next;
        }
    }

    /// Puts a question to the worker.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Failure> {
        let (sender, answer) = oneshot::channel();
        let reply = Reply::new(move |answer| {
            let _ = sender.send(answer);
        });
        self.worker.send(question(reply));
        answer.await.map_err(|_| Failure::new(ErrorCode::Unavailable, "the instance is ending"))
    }
}

/// What listens in the guest now, if that can be known soon.
async fn listening(watch: Option<&Watch>) -> Option<PortTable> {
    let mut table = watch?.subscribe();
    let known = tokio::time::timeout(LOOK, table.wait_for(Option::is_some)).await;
    known.ok()?.ok()?.clone()
}
