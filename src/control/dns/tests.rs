//! The service against real sockets on loopback, the view against real files.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::message::tests::query;
use super::message::{error, id, response_code};
use super::*;

const TYPE_A: u16 = 1;
/// Longer than anything here takes, shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE, test).await.expect("in time") });
}

/// A resolver that treats each datagram as `answer` says, until the test's process ends.
fn udp_resolver(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, client)) = socket.recv_from(&mut buffer) {
            for message in answer(&buffer[..len]) {
                socket.send_to(&message, client).unwrap();
            }
        }
    });
    address
}

/// A resolver over TCP that answers the first query of each connection.
fn tcp_resolver(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut len = [0; 2];
            if stream.read_exact(&mut len).is_err() {
                continue;
            }
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let _ = stream.write_all(&upstream::framed(&answer(&query)));
        }
    });
    address
}

fn closed_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An answer with `marker` behind the question, so that tests can tell resolvers apart.
fn good(query: &[u8], marker: u8) -> Vec<u8> {
    let mut answer = error(query, 0);
    answer.push(marker);
    answer
}

fn view(servers: &[SocketAddr]) -> watch::Receiver<ResolverView> {
    let view = ResolverView {
        servers: servers.to_vec(),
        timeout: Duration::from_millis(300),
        ..ResolverView::default()
    };
    // The last value stays readable when the sender is gone.
    watch::channel(view).1
}

/// Asks the service one question in a datagram.
async fn ask(servers: &[SocketAddr], message: Vec<u8>) -> Vec<u8> {
    ask_with(DnsOptions::default(), view(servers), message).await
}

async fn ask_with(
    options: DnsOptions,
    view: watch::Receiver<ResolverView>,
    query: Vec<u8>,
) -> Vec<u8> {
    let (requests, receiver) = mpsc::channel(8);
    requests.send(DnsRequest::Datagram { token: 7, query }).await.unwrap();
    let (answered, mut answers) = mpsc::unbounded_channel();
    let service = serve(options, view, receiver, move |answer| answered.send(answer).unwrap());
    let answer = tokio::select! {
        () = service => panic!("the service ended"),
        answer = answers.recv() => answer.unwrap(),
    };
    assert_eq!(answer.token, 7);
    answer.message
}

#[test]
fn an_answer_comes_back_under_the_askers_id() {
    block_on(async {
        let server = udp_resolver(|query| vec![good(query, 1)]);
        let answer = ask(&[server], query("example.org", TYPE_A)).await;
        assert_eq!((id(&answer), answer.last()), (0x1234, Some(&1)));
    });
}

#[test]
fn forged_answers_are_passed_over() {
    block_on(async {
        let server = udp_resolver(|message| {
            let mut wrong_id = good(message, 66);
            wrong_id[0] ^= 0xff;
            let mut wrong_name = good(&query("example.com", TYPE_A), 66);
            wrong_name[..2].copy_from_slice(&message[..2]);
            vec![wrong_id, wrong_name, b"x".to_vec(), message.to_vec(), good(message, 2)]
        });
        let answer = ask(&[server], query("example.org", TYPE_A)).await;
        assert_eq!(answer.last(), Some(&2));
    });
}

#[test]
fn a_dead_a_silent_and_a_refusing_resolver_are_passed_over() {
    block_on(async {
        let silent = udp_resolver(|_| vec![]);
        let refusing = udp_resolver(|query| vec![error(query, message::rcode::REFUSED)]);
        let working = udp_resolver(|query| vec![good(query, 3)]);
        let servers = [closed_port(), silent, refusing, working];
        let answer = ask(&servers, query("example.org", TYPE_A)).await;
        assert_eq!(answer.last(), Some(&3));
    });
}

#[test]
fn a_resolver_that_only_talks_nonsense_is_passed_over() {
    block_on(async {
        let mad = udp_resolver(|_| vec![b"nonsense".to_vec(); 100]);
        let working = udp_resolver(|query| vec![good(query, 6)]);
        let answer = ask(&[mad, working], query("example.org", TYPE_A)).await;
        assert_eq!(answer.last(), Some(&6));
    });
}

#[test]
fn a_resolver_that_cannot_be_reached_costs_no_time() {
    block_on(async {
        let working = udp_resolver(|query| vec![good(query, 5)]);
        let patient = ResolverView {
            servers: vec![closed_port(), closed_port(), working],
            timeout: Duration::from_secs(5),
            ..ResolverView::default()
        };
        let view = watch::channel(patient).1;
        let question = query("example.org", TYPE_A);
        let asked = ask_with(DnsOptions::default(), view, question);
        let answer = timeout(Duration::from_secs(4), asked).await.expect("before the time-out");
        assert_eq!(answer.last(), Some(&5));
    });
}

#[test]
fn when_nobody_answers_it_is_a_server_failure() {
    block_on(async {
        let answer = ask(&[closed_port()], query("example.org", TYPE_A)).await;
        assert_eq!(response_code(&answer), message::rcode::SERVER_FAILURE);
        assert_eq!(id(&answer), 0x1234);
    });
}

#[test]
fn a_name_error_is_an_answer() {
    block_on(async {
        let first = udp_resolver(|query| vec![error(query, 3)]);
        let second = udp_resolver(|query| vec![good(query, 9)]);
        let answer = ask(&[first, second], query("nope.example", TYPE_A)).await;
        assert_eq!(response_code(&answer), 3);
    });
}

/// Runs `client` against the service with a way to open streams.
fn with_streams<C: Future<Output = ()>>(
    servers: Vec<SocketAddr>,
    client: impl FnOnce(mpsc::Sender<DnsRequest>) -> C,
) {
    block_on(async move {
        let (requests, receiver) = mpsc::channel(8);
        let service = serve(DnsOptions::default(), view(&servers), receiver, |_| {});
        tokio::select! {
            () = service => panic!("the service ended"),
            () = client(requests) => {}
        }
    });
}

async fn open(requests: &mpsc::Sender<DnsRequest>) -> tokio::net::UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    requests.send(DnsRequest::Stream(theirs)).await.unwrap();
    tokio::net::UnixStream::from_std(ours).unwrap()
}

async fn read_message(stream: &mut tokio::net::UnixStream) -> Vec<u8> {
    let len = stream.read_u16().await.unwrap();
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await.unwrap();
    message
}

#[test]
fn large_answers_and_pipelined_queries_pass_over_a_stream() {
    let server = tcp_resolver(|query| {
        let mut answer = error(query, 0);
        answer.resize(40_000, query[13]);
        answer
    });
    with_streams(vec![closed_port(), server], |requests| async move {
        let mut stream = open(&requests).await;
        for name in ["alpha.example", "beta.example", "gamma.example"] {
            stream.write_all(&upstream::framed(&query(name, TYPE_A))).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut initials = vec![];
        for _ in 0..3 {
            let answer = read_message(&mut stream).await;
            assert_eq!((answer.len(), id(&answer)), (40_000, 0x1234));
            initials.push(*answer.last().unwrap());
        }
        initials.sort_unstable();
        assert_eq!(initials, b"abg");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn stalled_clients_do_not_hold_up_another() {
    let server = tcp_resolver(|query| good(query, 4));
    with_streams(vec![server], |requests| async move {
        let mut half_a_length = open(&requests).await;
        half_a_length.write_all(&[0]).await.unwrap();
        let mut half_a_query = open(&requests).await;
        half_a_query.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
        let mut good_one = open(&requests).await;
        good_one.write_all(&upstream::framed(&query("example.org", TYPE_A))).await.unwrap();
        assert_eq!(read_message(&mut good_one).await.last(), Some(&4));
    });
}

#[test]
fn at_a_bound_the_oldest_gives_way() {
    let hung = udp_resolver(|_| vec![]);
    with_streams(vec![hung], |requests| async move {
        let mut oldest = open(&requests).await;
        let mut second = open(&requests).await;
        let mut others = vec![];
        for _ in 2..MAX_STREAMS {
            others.push(open(&requests).await);
        }
        let not_yet = timeout(Duration::from_millis(100), oldest.read(&mut [0])).await;
        assert!(not_yet.is_err(), "as many as the bound all stay");
        others.push(open(&requests).await);
        assert_eq!(oldest.read(&mut [0]).await.unwrap(), 0);
        let closed = timeout(Duration::from_millis(100), second.read(&mut [0])).await;
        assert!(closed.is_err(), "only one gives way");
    });
}

async fn expect_server(view: &mut watch::Receiver<ResolverView>, address: &str) {
    let wanted: SocketAddr = format!("{address}:53").parse().unwrap();
    view.wait_for(|view| view.servers[0] == wanted).await.unwrap();
}

fn write(path: &Path, address: &str) {
    fs::write(path, format!("nameserver {address}\n")).unwrap();
}

#[test]
fn every_way_of_replacing_the_file_is_noticed() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let (sender, mut view) = watch::channel(ResolverView::default());
        let script = async {
            write(&path, "192.0.2.1");
            expect_server(&mut view, "192.0.2.1").await;
            // Rewritten in place.
            write(&path, "192.0.2.2");
            expect_server(&mut view, "192.0.2.2").await;
            // Replaced by rename.
            write(&directory.path().join("new"), "192.0.2.3");
            fs::rename(directory.path().join("new"), &path).unwrap();
            expect_server(&mut view, "192.0.2.3").await;
            // Removed.
            fs::remove_file(&path).unwrap();
            expect_server(&mut view, "127.0.0.1").await;
            // A link into a directory that comes later.
            let stub = directory.path().join("run/stub.conf");
            symlink("run/stub.conf", &path).unwrap();
            fs::create_dir(directory.path().join("run")).unwrap();
            write(&stub, "192.0.2.4");
            expect_server(&mut view, "192.0.2.4").await;
            // The target is rewritten, then replaced.
            write(&stub, "192.0.2.5");
            expect_server(&mut view, "192.0.2.5").await;
            write(&directory.path().join("run/new"), "192.0.2.6");
            fs::rename(directory.path().join("run/new"), &stub).unwrap();
            expect_server(&mut view, "192.0.2.6").await;
            // Its directory is replaced.
            fs::create_dir(directory.path().join("fresh")).unwrap();
            write(&directory.path().join("fresh/stub.conf"), "192.0.2.7");
            fs::rename(directory.path().join("run"), directory.path().join("old")).unwrap();
            fs::rename(directory.path().join("fresh"), directory.path().join("run")).unwrap();
            expect_server(&mut view, "192.0.2.7").await;
            // Its directory is removed and made again.
            fs::remove_dir_all(directory.path().join("run")).unwrap();
            expect_server(&mut view, "127.0.0.1").await;
            fs::create_dir(directory.path().join("run")).unwrap();
            write(&stub, "192.0.2.8");
            expect_server(&mut view, "192.0.2.8").await;
            // It is written by somebody who keeps it open.
            let mut open = fs::OpenOptions::new().write(true).truncate(true).open(&stub).unwrap();
            open.write_all(b"nameserver 192.0.2.9\n").unwrap();
            expect_server(&mut view, "192.0.2.9").await;
            drop(open);
            // The link points elsewhere, by way of a directory that is a link.
            fs::create_dir(directory.path().join("a")).unwrap();
            fs::create_dir(directory.path().join("b")).unwrap();
            write(&directory.path().join("a/conf"), "192.0.2.10");
            write(&directory.path().join("b/conf"), "192.0.2.11");
            let current = directory.path().join("current");
            symlink("a", &current).unwrap();
            symlink("run/../current/../current/conf", directory.path().join("link")).unwrap();
            fs::rename(directory.path().join("link"), &path).unwrap();
            expect_server(&mut view, "192.0.2.10").await;
            symlink(directory.path().join("b"), directory.path().join("link")).unwrap();
            fs::rename(directory.path().join("link"), &current).unwrap();
            expect_server(&mut view, "192.0.2.11").await;
        };
        tokio::select! {
            result = follow(&path, None, sender) => panic!("the watch ended: {result:?}"),
            () = script => {}
        }
    });
}

#[test]
fn only_small_regular_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    let none = view::read(&path);
    assert_eq!(none, ResolverView::default());
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(view::read(&path), none, "a pipe");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(view::read(&path), none, "a directory");
    fs::remove_dir(&path).unwrap();
    let filled = |size: usize| format!("nameserver 192.0.2.1\n{:1$}", "", size - 21);
    fs::write(&path, filled(64 * 1024 + 1)).unwrap();
    assert_eq!(view::read(&path), none, "too large");
    fs::write(&path, filled(64 * 1024)).unwrap();
    assert_ne!(view::read(&path), none);
}

#[test]
fn links_in_a_circle_end_the_way() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        symlink("resolv.conf", &path).unwrap();
        let (sender, mut view) = watch::channel(ResolverView::default());
        let script = async {
            write(&directory.path().join("new"), "192.0.2.1");
            fs::rename(directory.path().join("new"), &path).unwrap();
            expect_server(&mut view, "192.0.2.1").await;
        };
        tokio::select! {
            result = follow(&path, None, sender) => panic!("the watch ended: {result:?}"),
            () = script => {}
        }
    });
}
