//! A small instance: a list of ports, a few flows, and a grammar that knows `HOST:GUEST`.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::unistd::geteuid;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::control::api::*;
use crate::gate::forward::{Forward, ForwardId, Listen, PortRange, Transport};
use crate::observe::*;

pub(super) fn forward(host: u16, guest: u16) -> Forward {
    let ports = PortRange::single(host);
    Forward {
        transport: Transport::Tcp,
        listen: Listen::Ports { address: None, interface: None, ports },
        guest_address: None,
        guest_ports: PortRange::single(guest),
        when_listening: false,
    }
}

fn parse(kind: PortKind, spec: &str) -> Result<Vec<Rule>, String> {
    let wrong = || format!("{kind} {spec}: not HOST:GUEST");
    let (host, guest) = spec.split_once(':').ok_or_else(wrong)?;
    let port = |text: &str| text.parse().map_err(|_| wrong());
    Ok(vec![Rule::Publish(forward(port(host)?, port(guest)?))])
}

pub(super) fn context() -> Context {
    Context { parse_spec: parse, guest: Some("10.0.2.100".parse().unwrap()) }
}

/// Its state, and the answers that a real one would give.
#[derive(Default)]
struct Registry {
    next: u64,
    records: Vec<(Rule, PortRecord)>,
}

impl Registry {
    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Info => Ok(Reply::Info(Box::new(info()))),
            Request::Stats => Ok(Reply::Stats(Box::default())),
            Request::ListFlows(query) => Ok(Reply::Flows(flows(&query))),
            Request::ListForwards => {
                Ok(Reply::Forwards(self.records.iter().map(|(_, record)| record.clone()).collect()))
            }
            Request::AddForward(rules) => rules
                .into_iter()
                .map(|rule| self.add(rule))
                .collect::<Result<_, _>>()
                .map(Reply::Forwards),
            Request::RemoveForward(selector) => {
                let (gone, kept) =
                    std::mem::take(&mut self.records).into_iter().partition(|(rule, record)| {
                        match &selector {
                            Selector::Id(id) => record.id == *id,
                            Selector::Rules(rules) => rules.contains(rule),
                        }
                    });
                let gone: Vec<(Rule, PortRecord)> = gone;
                self.records = kept;
                if gone.is_empty() {
                    return Err(Failure::new(ErrorCode::NotFound, "there is no such port"));
                }
                Ok(Reply::Forwards(gone.into_iter().map(|(_, record)| record).collect()))
            }
        }
    }

    /// Port 666 is always taken.
    fn add(&mut self, rule: Rule) -> Result<PortRecord, Failure> {
        if let Rule::Publish(Forward { listen: Listen::Ports { ports, .. }, .. }) = &rule
            && ports.first() == 666
        {
            let hint = Some("take another".to_owned());
            let desc = "port 666 is taken".to_owned();
            return Err(Failure { code: ErrorCode::InUse, desc, hint });
        }
        self.next += 1;
        let id = ForwardId(self.next);
        let record = match &rule {
            Rule::Publish(forward) => PortRecord::published(id, forward),
            Rule::Expose(exposure) => PortRecord::exposed(id, exposure),
        };
        self.records.push((rule, record.clone()));
        Ok(record)
    }
}

pub(super) fn info() -> Info {
    Info {
        name: "web".to_owned(),
        pid: 4711,
        version: "0.1.0".to_owned(),
        protocol: VERSION,
        guest: vec!["10.0.2.100".parse().unwrap()],
        gateway: vec!["10.0.2.2".parse().unwrap()],
        dns: vec!["10.0.2.3".parse().unwrap()],
        mtu: 1500,
        ifname: "tap0".to_owned(),
        namespace: "/proc/4712/ns/net".to_owned(),
        command: vec!["nginx".to_owned(), "-g".to_owned()],
        started: 1_700_000_000,
        uptime: Duration::from_millis(5),
        ports: 0,
    }
}

/// How many flows the instance has: more than a page.
pub(super) const FLOWS: u64 = 3000;

fn flows(query: &FlowQuery) -> FlowPage {
    let guest = "10.0.2.100:40000".parse().unwrap();
    let peer = "198.51.100.9:443".parse().unwrap();
    let mut selection = Selection::new(query);
    for id in 1..=FLOWS {
        if query.wants(id, FlowTransport::Tcp, guest, peer) {
            selection.offer(id, ());
        }
    }
    selection.page(|id, ()| {
        Some(FlowRecord {
            id,
            transport: FlowTransport::Tcp,
            direction: Direction::Outbound,
            path: FlowPath::Tap,
            state: FlowState::Established,
            guest,
            peer,
            host_local: None,
            host_peer: Some(peer),
            traffic: Traffic::default(),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            rtt_us: None,
            retransmits: None,
            retransmits_to_guest: None,
            forward: None,
            rule: None,
        })
    })
}

/// An instance that runs, in a directory of its own, until it is dropped.
pub(super) struct Instance {
    pub(super) scratch: TempDir,
    pub(super) path: PathBuf,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

pub(super) fn places(scratch: &TempDir) -> Places {
    let base = scratch.path();
    Places::new(
        geteuid().as_raw(),
        geteuid().as_raw(),
        Some(base.to_owned()),
        &base.join("run"),
        &base.join("tmp"),
    )
}

impl Instance {
    pub(super) fn start() -> Instance {
        let scratch = tempfile::tempdir().unwrap();
        let directory = places(&scratch).create().unwrap();
        let server = Server::bind(directory, "web", context()).unwrap();
        let path = server.path().to_owned();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (calls, mut requests) = mpsc::channel::<Call>(4);
                let answer = async {
                    let mut registry = Registry::default();
                    while let Some(Call { request, reply }) = requests.recv().await {
                        let _ = reply.send(registry.answer(request));
                    }
                };
                tokio::select! {
                    result = server.run(calls) => result.unwrap(),
                    () = answer => {}
                    _ = ended => {}
                }
            });
        });
        Instance { scratch, path, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || !matches!(ended, Some(Err(_))), "the instance panicked");
    }
}
