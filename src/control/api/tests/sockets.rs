//! The server with clients of every kind, over real sockets.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use super::instance::{FLOWS, Instance, context, places};
use crate::control::BindError;
use crate::control::api::*;
use crate::gate::forward::ForwardId;
use crate::observe::{FlowQuery, Info, PortKind};

const LIST: &[u8] = br#"{"execute":"list_hostfwd"}"#;
const EMPTY: &str = r#"{"return":{"entries":[]},"entries":[]}"#;

fn connect(instance: &Instance) -> UnixStream {
    let stream = UnixStream::connect(&instance.path).unwrap();
    // A bound on the test, far above what any answer takes.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn rest(mut stream: UnixStream) -> io::Result<String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn clients_that_half_close_and_those_that_do_not_are_answered() {
    let instance = Instance::start();
    let mut open = connect(&instance);
    open.write_all(LIST).unwrap();
    assert_eq!(rest(open).unwrap(), EMPTY);
    let mut half_closed = connect(&instance);
    half_closed.write_all(LIST).unwrap();
    half_closed.write_all(b"\n").unwrap_or_default();
    half_closed.shutdown(Shutdown::Write).unwrap_or_default();
    assert_eq!(rest(half_closed).unwrap(), EMPTY);
    let mute = connect(&instance);
    mute.shutdown(Shutdown::Write).unwrap();
    let refused = r#"{"error":{"desc":"bad request: cannot parse JSON"}}"#;
    assert_eq!(rest(mute).unwrap(), refused);
}

#[test]
fn a_request_may_come_byte_by_byte_and_is_answered_in_one_read() {
    let instance = Instance::start();
    let mut stream = connect(&instance);
    for byte in LIST {
        stream.write_all(&[*byte]).unwrap();
        thread::yield_now();
    }
    // podman reads once, into 2 KiB.
    let mut buffer = [0; 2048];
    let length = stream.read(&mut buffer).unwrap();
    assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), EMPTY);
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
}

#[test]
fn an_oversized_request_is_refused_and_its_answer_arrives() {
    let instance = Instance::start();
    let mut stream = connect(&instance);
    // More than the server reads; what it does not read must not cost the client the answer.
    let _ = stream.write_all(&vec![b' '; 32 << 10]);
    let refused = r#"{"error":{"desc":"bad request: too large message"}}"#;
    assert_eq!(rest(stream).unwrap(), refused);
}

#[test]
fn stalled_clients_make_room_for_others() {
    let instance = Instance::start();
    let stalled: Vec<UnixStream> = (0..MAX_CLIENTS * 2)
        .map(|_| {
            let mut stream = connect(&instance);
            stream.write_all(b"{").unwrap();
            stream
        })
        .collect();
    let mut client = connect(&instance);
    client.write_all(LIST).unwrap();
    client.set_read_timeout(Some(PATIENCE / 2)).unwrap();
    assert_eq!(rest(client).unwrap(), EMPTY);
    // The first to come were the first to go, without an answer.
    let mut oldest = &stalled[0];
    assert!(matches!(oldest.read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[test]
fn a_client_that_does_not_take_its_answer_is_given_up() {
    let instance = Instance::start();
    let ask = br#"{"execute":"list_flows","arguments":{"limit":4096}}"#;
    let mut stalled = connect(&instance);
    stalled.write_all(ask).unwrap();
    let mut other = connect(&instance);
    other.write_all(LIST).unwrap();
    assert_eq!(rest(other).unwrap(), EMPTY);
    // Wait for the server to hang up, which needs nothing of the answer to be read.
    let fd =
        nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&stalled), nix::poll::PollFlags::empty());
    let bound = u16::try_from((PATIENCE * 3).as_millis()).unwrap();
    assert_eq!(nix::poll::poll(&mut [fd], bound), Ok(1));
    // Given up: only a part of the answer, which does not end as JSON does.
    let mut answer = Vec::new();
    let _ = stalled.read_to_end(&mut answer);
    assert!(!answer.ends_with(b"}}") && answer.len() > 1000, "{}", answer.len());
}

#[test]
fn a_silent_client_is_given_up() {
    let instance = Instance::start();
    let mut stream = connect(&instance);
    stream.write_all(b"{\"execute\"").unwrap();
    assert_eq!(rest(stream).unwrap(), "");
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let instance = Instance::start();
    let path = instance.path.clone();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::bind(places(&scratch).create().unwrap(), "a", context()).unwrap();
    let own = server.path().to_owned();
    fs::remove_file(&own).unwrap();
    let successor = UnixListener::bind(&own).unwrap();
    drop(server);
    assert!(own.exists(), "the socket of another was removed");
    // It is stale as soon as nobody listens, and in nobody's way.
    drop(successor);
    let server = Server::bind(places(&scratch).create().unwrap(), "a", context()).unwrap();
    drop(server);
    assert!(!own.exists());
    fs::write(&own, "precious").unwrap();
    let error = Server::bind(places(&scratch).create().unwrap(), "a", context()).unwrap_err();
    assert!(matches!(error, BindError::InTheWay(_)), "{error}");
    assert_eq!(fs::read(&own).unwrap(), b"precious");
}

#[test]
fn other_users_are_turned_away() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not shown: only root can be another user");
        return;
    }
    let instance = Instance::start();
    let ask = |user: u32| {
        let mut socat = socat(&instance);
        socat.uid(user);
        socat.stderr(Stdio::piped());
        converse(socat, "{\"execute\":\"list_hostfwd\"}")
    };
    assert_eq!(ask(0).0, EMPTY);
    assert!(ask(65_534).1.contains("Permission denied"), "the modes let others in");
    // The peer's user decides even where the modes would let it in.
    fs::set_permissions(&instance.path, fs::Permissions::from_mode(0o666)).unwrap();
    for directory in instance.path.ancestors().skip(1).take(2) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
    }
    let (answer, complaint) = ask(65_534);
    assert_eq!(answer, "");
    assert!(!complaint.contains("Permission denied"), "it could not even connect: {complaint}");
}

#[test]
fn a_directory_may_be_deeper_than_an_address_is_long() {
    let scratch = tempfile::tempdir().unwrap();
    let deep = scratch.path().join("d".repeat(60)).join("e".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    let places = Places::new(uid, uid, Some(deep), scratch.path(), scratch.path());
    let server = Server::bind(places.create().unwrap(), "web", context()).unwrap();
    assert!(server.path().exists());
    // Connected, but nobody serves: the server has not been run.
    let directory = places.create().unwrap();
    let path = super::super::socket::address(&directory, "web");
    UnixStream::connect(path).unwrap();
    let path = server.path().to_owned();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn the_client_understands_the_server() {
    let instance = Instance::start();
    let directory = places(&instance.scratch).existing().remove(0);
    assert_eq!(directory.names(), ["web"]);
    let client = Client::new(&directory, "web");
    assert_eq!(client.info().unwrap(), super::instance::info());
    assert_eq!(client.stats().unwrap(), crate::observe::Stats::default());
    let flows = client.flows(FlowQuery::default()).unwrap();
    assert_eq!(flows.len() as u64, FLOWS);
    assert!(flows.iter().map(|flow| flow.id).eq(1..=FLOWS));
    let added = client.add(PortKind::Publish, "80:8080", true).unwrap();
    assert!(added[0].when_listening);
    assert_eq!(client.forwards().unwrap(), added);
    let ClientError::Refused(failure) = client.add(PortKind::Publish, "666:1", false).unwrap_err()
    else {
        panic!("not refused");
    };
    assert_eq!(failure.code, ErrorCode::InUse);
    assert_eq!(failure.hint.as_deref(), Some("take another"));
    assert_eq!(client.remove(added[0].id).unwrap(), added);
    client.remove(ForwardId(99)).unwrap_err();
    let again = client.add(PortKind::Publish, "80:8080", false).unwrap();
    assert_eq!(again[0].id, ForwardId(2), "numbers are not used again");
    assert_eq!(client.remove_spec(PortKind::Publish, "80:8080").unwrap(), again);
    let absent = Client::new(&directory, "none").info();
    assert!(matches!(absent, Err(ClientError::Absent(_))), "{absent:?}");
}

/// What a client is told by a server that ends with the client's question read, or `unread`.
fn ask_who_ends(directory: &Directory, unread: bool) -> Result<Info, ClientError> {
    let path = super::super::socket::address(directory, "ending");
    let listener = UnixListener::bind(&path).unwrap();
    let ending = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(listener);
        // What is left unread makes the end a reset.
        if !unread {
            stream.read_to_end(&mut vec![]).unwrap();
        }
    });
    let answer = Client::new(directory, "ending").info();
    ending.join().unwrap();
    directory.remove("ending").unwrap();
    answer
}

#[test]
fn one_that_ends_before_it_answers_is_absent() {
    let instance = Instance::start();
    let directory = places(&instance.scratch).existing().remove(0);
    for unread in [false, true] {
        // A child that another test has just forked has the listener open until its execve.
        let mut answers = (0..20).map(|_| ask_who_ends(&directory, unread));
        let absent = answers.any(|answer| matches!(answer, Err(ClientError::Absent(_))));
        assert!(absent, "{unread}: {:?}", ask_who_ends(&directory, unread));
    }
}

fn socat(instance: &Instance) -> Command {
    let mut socat = Command::new("socat");
    socat.args(["-t10", "-", &format!("UNIX-CONNECT:{}", instance.path.display())]);
    socat
}

/// What it got, and what it said on standard error if that is piped.
fn converse(mut socat: Command, request: &str) -> (String, String) {
    socat.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = socat.spawn().expect("socat is installed");
    // A server that hangs up first is not for this side to judge.
    let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn socat_speaks_the_protocol() {
    let instance = Instance::start();
    let socat = |request: &str| converse(socat(&instance), request).0;
    let add =
        r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":80,"guest_port":8080}}"#;
    assert_eq!(socat(&format!("{add}\n")), r#"{"return":{"id":1}}"#);
    let entries = concat!(
        r#"[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":80,"#,
        r#""guest_addr":"10.0.2.100","guest_port":8080}]"#,
    );
    let listing = format!(r#"{{"return":{{"entries":{entries}}},"entries":{entries}}}"#);
    assert_eq!(socat("{\"execute\":\"list_hostfwd\"}\n"), listing);
    let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
    assert_eq!(socat(remove), r#"{"return":{}}"#);
    let gone = r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#;
    assert_eq!(socat(remove), gone);
}
