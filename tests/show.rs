//! `tapway ps`, `port`, `flows` and `stats` from outside: the real binary, asking an instance that
//! the test serves by the library's own server.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tapway::control::api::{
    Call, Context, Failure, Places, Reply, Request, Rule, Selector, Server,
};
use tapway::control::api::{ErrorCode, VERSION};
use tapway::gate::forward::{Forward, ForwardId, Listen, PortRange, Transport};
use tapway::observe::{
    Direction, FlowPage, FlowPath, FlowRecord, FlowState, FlowTransport, Info, PortKind,
    PortRecord, Stats, Traffic,
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// `HOST:GUEST` and nothing else.
fn parse(_: PortKind, spec: &str) -> Result<Vec<Rule>, String> {
    let ports = spec
        .split_once(':')
        .and_then(|(host, guest)| Some((host.parse::<u16>().ok()?, guest.parse::<u16>().ok()?)));
    let (host, guest) = ports.ok_or_else(|| format!("{spec}: not HOST:GUEST"))?;
    let ports = PortRange::single(host);
    Ok(vec![Rule::Publish(Forward {
        transport: Transport::Tcp,
        listen: Listen::Ports { address: None, interface: None, ports },
        guest_address: None,
        guest_ports: PortRange::single(guest),
        when_listening: false,
    })])
}

fn flow(id: u64) -> FlowRecord {
    FlowRecord {
        id,
        transport: if id.is_multiple_of(2) { FlowTransport::Udp } else { FlowTransport::Tcp },
        direction: Direction::Outbound,
        path: FlowPath::Tap,
        state: FlowState::Established,
        guest: "10.0.2.100:40000".parse().unwrap(),
        peer: "198.51.100.9:443".parse().unwrap(),
        host_local: None,
        host_peer: None,
        traffic: Traffic::default(),
        age: Duration::from_secs(id),
        idle: Duration::ZERO,
        rtt_us: Some(85),
        retransmits: None,
        retransmits_to_guest: None,
        forward: None,
        rule: None,
    }
}

struct State {
    info: Info,
    next: u64,
    ports: Vec<PortRecord>,
}

impl State {
    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Info => Reply::Info(Box::new(self.info.clone())),
            Request::Stats => Reply::Stats(Box::default()),
            Request::ListFlows(query) => {
                let wanted =
                    |flow: &FlowRecord| query.wants(flow.id, flow.transport, flow.guest, flow.peer);
                let flows = (1..=4).map(flow).filter(wanted).collect();
                Reply::Flows(FlowPage { flows, next: None })
            }
            Request::ListForwards => Reply::Forwards(self.ports.clone()),
            Request::AddForward(rules) => {
                let mut added = Vec::new();
                for rule in rules {
                    let Rule::Publish(forward) = rule else { panic!("{rule:?}") };
                    self.next += 1;
                    added.push(PortRecord::published(ForwardId(self.next), &forward));
                }
                self.ports.extend(added.clone());
                Reply::Forwards(added)
            }
            Request::RemoveForward(Selector::Id(id)) => {
                let position = self.ports.iter().position(|port| port.id == id);
                let position = position.ok_or_else(|| Failure {
                    code: ErrorCode::NotFound,
                    desc: format!("there is no port {}", id.0),
                    hint: Some("look".to_owned()),
                })?;
                Reply::Forwards(vec![self.ports.remove(position)])
            }
            Request::RemoveForward(Selector::Rules(_)) => Reply::Forwards(vec![]),
        })
    }
}

/// A directory for sockets, and instances that run in it.
struct Lab {
    scratch: TempDir,
    instances: Vec<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Lab {
    fn new(names: &[&str]) -> Lab {
        let mut lab = Lab { scratch: tempfile::tempdir().unwrap(), instances: vec![] };
        names.iter().for_each(|name| lab.start(name));
        lab
    }

    fn places(&self) -> Places {
        let base = self.scratch.path();
        let uid = nix::unistd::geteuid().as_raw();
        Places::new(uid, uid, Some(base.to_owned()), &base.join("none"), &base.join("none"))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.scratch.path().join("tapway").join(format!("{name}.sock"))
    }

    fn start(&mut self, name: &str) {
        let context = Context { parse_spec: parse, guest: None };
        let server = Server::bind(self.places().create().unwrap(), name, context).unwrap();
        let info = Info {
            name: name.to_owned(),
            pid: 4711,
            version: "0".to_owned(),
            protocol: VERSION,
            guest: vec!["10.0.2.100".parse().unwrap()],
            gateway: vec![],
            dns: vec![],
            mtu: 1500,
            ifname: "tap0".to_owned(),
            namespace: String::new(),
            command: vec!["sleep".to_owned(), "9".to_owned()],
            started: 0,
            uptime: Duration::from_secs(75),
            ports: 0,
        };
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (calls, mut requests) = mpsc::channel::<Call>(4);
                let mut state = State { info, next: 0, ports: vec![] };
                let answer = async {
                    while let Some(call) = requests.recv().await {
                        let _ = call.reply.send(state.answer(call.request));
                    }
                };
                tokio::select! {
                    result = server.run(calls) => result.unwrap(),
                    () = answer => {}
                    _ = ended => {}
                }
            });
        });
        self.instances.push((end, thread));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapway"));
        command.args(arguments).env("XDG_RUNTIME_DIR", self.scratch.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that succeeds prints.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that fails complains.
    fn complains(&self, arguments: &[&str], status: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn stop(&mut self) {
        for (end, thread) in self.instances.drain(..) {
            drop(end);
            thread.join().unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (end, _thread) in self.instances.drain(..) {
            drop(end);
        }
    }
}

/// Only the instances of the test's own directory; others of this user may run meanwhile.
fn own_lines(text: &str, names: &[&str]) -> Vec<String> {
    let own = |line: &&str| names.iter().any(|name| line.split(' ').next() == Some(name));
    text.lines().filter(own).map(str::to_owned).collect()
}

fn unique(stem: &str) -> String {
    format!("{stem}-{}", std::process::id())
}

#[test]
fn ps_lists_what_runs_and_forgets_what_does_not() {
    let (web, db, dead) = (unique("ps-web"), unique("ps-db"), unique("ps-dead"));
    let mut lab = Lab::new(&[&web, &db]);
    drop(UnixListener::bind(lab.socket(&dead)).unwrap());
    let names = [web.as_str(), db.as_str(), dead.as_str()];
    let listed = own_lines(&lab.prints(&["ps"]), &names);
    let words: Vec<&str> = listed[0].split_whitespace().collect();
    assert_eq!(words, [&db, "4711", "10.0.2.100", "0", "1m15s", "sleep", "9"]);
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(!lab.socket(&dead).exists(), "the stale file is still there");
    drop(UnixListener::bind(lab.socket(&dead)).unwrap());
    assert_eq!(own_lines(&lab.prints(&["ps", "-q"]), &names), [db.as_str(), web.as_str()]);
    assert!(!lab.socket(&dead).exists(), "ps -q leaves the stale file");
    let json: Value = serde_json::from_str(&lab.prints(&["ps", "--json"])).unwrap();
    let found = json.as_array().unwrap().iter().find(|info| info["name"] == web.as_str()).unwrap();
    assert_eq!(found["uptime_ms"], 75_000);
    lab.stop();
    assert!(own_lines(&lab.prints(&["ps"]), &names).is_empty());
    assert!(!lab.socket(&web).exists());
}

#[test]
fn a_file_whose_name_is_locked_stays() {
    let name = unique("locked");
    let lab = Lab::new(&[&unique("locked-other")]);
    drop(UnixListener::bind(lab.socket(&name)).unwrap());
    let parsed = name.parse().unwrap();
    let _starting = tapway::setup::NameLock::take(&parsed, nix::unistd::geteuid().as_raw());
    lab.prints(&["ps"]);
    assert!(lab.socket(&name).exists());
}

#[test]
fn ports_are_added_listed_and_removed() {
    let web = unique("port-web");
    let lab = Lab::new(&[&web]);
    let added = lab.prints(&["port", "add", &web, "8080:80", "9090:90"]);
    assert_eq!(added, "1: publish *:8080/tcp -> *:80\n2: publish *:9090/tcp -> *:90\n");
    let listed = lab.prints(&["port", "list", &web, "--json"]);
    let ids: Vec<u64> = listed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!(lab.prints(&["port", "rm", &web, "1"]), "1: publish *:8080/tcp -> *:80\n");
    assert_eq!(lab.prints(&["port", "list", &web]).lines().count(), 2);
    let complaint = lab.complains(&["port", "rm", &web, "1"], 1);
    assert_eq!(complaint, "tapway: there is no port 1\ntapway: hint: look\n");
    // None of several if one is mistaken.
    let complaint = lab.complains(&["port", "add", &web, "8090:80", "80:x"], 2);
    assert!(complaint.starts_with("tapway: 80:x: "), "{complaint}");
    assert!(complaint.ends_with("tapway: hint: `tapway port add --help` has examples\n"));
    assert_eq!(lab.prints(&["port", "list", &web]).lines().count(), 2);
    lab.complains(&["port", "add"], 2);
}

#[test]
fn an_instance_that_does_not_run_is_named_with_those_that_do() {
    let (one, two) = (unique("some-one"), unique("some-two"));
    let lab = Lab::new(&[&one, &two]);
    for arguments in [
        &["flows", "nosuch"][..],
        &["stats", "nosuch"],
        &["port", "list", "nosuch"],
        &["port", "add", "nosuch", "1:2"],
    ] {
        let complaint = lab.complains(arguments, 1);
        for word in ["nosuch", &one, &two, "tapway ps"] {
            assert!(complaint.contains(word), "{arguments:?}: {complaint}");
        }
    }
    let complaint = lab.complains(&["flows"], 1);
    assert!(complaint.contains("which instance?") && complaint.contains(&two), "{complaint}");
}

#[test]
fn flows_can_be_filtered_and_read_by_programs() {
    let web = unique("flows-web");
    let lab = Lab::new(&[&web]);
    assert_eq!(lab.prints(&["flows", &web]).lines().count(), 5);
    let udp = lab.prints(&["flows", &web, "--proto", "udp", "--json"]);
    let ids: Vec<Value> =
        udp.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].take()).collect();
    assert_eq!(ids, [2, 4]);
    assert_eq!(lab.prints(&["flows", &web, "--port", "1"]).lines().count(), 1);
    assert!(lab.complains(&["flows", &web, "--proto", "sctp"], 2).contains("--proto"));
    assert!(lab.complains(&["flows", &web, "--watch=0"], 2).contains("--watch"));
}

fn watching(lab: &Lab, name: &str) -> Child {
    let mut command = lab.command(&["flows", name, "--watch=0.1"]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_watch_ends_with_its_instance() {
    let web = unique("watch-web");
    let mut lab = Lab::new(&[&web]);
    let mut watch = watching(&lab, &web);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // A heading and four flows, an empty line, and the next block.
    let blocks: Vec<String> = lines.by_ref().take(7).map(Result::unwrap).collect();
    assert!(blocks[0].starts_with("PROTO") && blocks[6].starts_with("PROTO"), "{blocks:?}");
    assert_eq!(blocks[5], "");
    lab.stop();
    assert!(lines.all(|line| line.is_ok()));
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn a_watch_ends_with_its_reader() {
    let web = unique("reader-web");
    let lab = Lab::new(&[&web]);
    let mut watch = watching(&lab, &web);
    drop(watch.stdout.take());
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn stats_have_three_forms() {
    let web = unique("stats-web");
    let lab = Lab::new(&[&web]);
    assert!(lab.prints(&["stats", &web]).starts_with("up 0.0s\n"));
    let json = lab.prints(&["stats", &web, "--json"]);
    assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), Stats::default());
    let metrics = lab.prints(&["stats", &web, "--prometheus"]);
    assert!(metrics.contains(&format!("tapway_flows{{instance=\"{web}\",transport=\"tcp\"}} 0\n")));
    lab.complains(&["stats", &web, "--json", "--prometheus"], 2);
}

#[test]
fn a_server_of_another_kind_is_recognised() {
    let odd = unique("odd");
    let lab = Lab::new(&[&unique("odd-other")]);
    let listener = UnixListener::bind(lab.socket(&odd)).unwrap();
    let server = std::thread::spawn(move || {
        // One connection asks whether anybody is there, the next one asks the question.
        for mut stream in listener.incoming().take(2).flatten() {
            let _ = stream.read_to_end(&mut Vec::new());
            let _ = stream.write_all(b"hello");
        }
    });
    let complaint = lab.complains(&["stats", &odd], 1);
    assert!(complaint.contains("does not answer as tapway does"), "{complaint}");
    server.join().unwrap();
    assert!(fs::metadata(Path::new(&lab.socket(&odd))).is_ok());
}

/// What bash offers after `words`, the last of which is being typed.
fn completed(lab: &Lab, words: &str) -> Vec<String> {
    let script = r#"
        source <(tapway completions bash)
        COMP_WORDS=($1)
        [[ $1 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        $(complete -p tapway | sed 's/.*-F \([^ ]*\) .*/\1/') tapway "${COMP_WORDS[-1]}" ""
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let program = Path::new(env!("CARGO_BIN_EXE_tapway")).parent().unwrap().to_owned();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash", words]).env("PATH", path);
    let output = bash.env("XDG_RUNTIME_DIR", lab.scratch.path()).output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|word| word.trim().to_owned()).collect()
}

#[test]
fn bash_completes_what_runs() {
    let (web, db) = (unique("tab-web"), unique("tab-db"));
    let lab = Lab::new(&[&web, &db]);
    for words in ["tapway flows tab-w", "tapway stats tab-w", "tapway port add tab-w"] {
        assert_eq!(completed(&lab, words), [web.as_str()], "{words}");
    }
    let both = completed(&lab, "tapway port list tab-");
    assert_eq!(both, [db.as_str(), web.as_str()]);
    assert_eq!(completed(&lab, "tapway fl"), ["flows"]);
    assert_eq!(completed(&lab, "tapway run --host-l"), ["--host-loopback"]);
    assert!(completed(&lab, "tapway flows ").contains(&web));
}
