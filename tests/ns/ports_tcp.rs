//! Connections through published and exposed ports: every byte, every end, and crowds.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::instance::{PATIENCE, TELLER, echo};
use crate::lab::Lab;
use crate::support::Background;

/// Sends or receives 32 MiB, many times what any buffer on the way holds, and prints a digest of
/// them. `serve` does so for each client: port 9000 sends, port 9001 receives.
const TRANSFER: &str = "import hashlib, socket, sys, threading
def send(s):
    digest = hashlib.sha256()
    for number in range(32):
        piece = hashlib.shake_128(b'%d' % number).digest(1 << 20)
        digest.update(piece); s.sendall(piece)
    s.close(); return digest.hexdigest()
def receive(s):
    digest = hashlib.sha256()
    while piece := s.recv(1 << 18): digest.update(piece)
    s.close(); return digest.hexdigest()
def serve(port, transfer):
    server = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
    opened.release()
    while True: print(transfer(server.accept()[0]), flush=True)
opened = threading.Semaphore(0)
if sys.argv[1] == 'serve':
    for port, transfer in (9000, send), (9001, receive):
        threading.Thread(target=serve, args=(port, transfer)).start(); opened.acquire()
    print('up', flush=True)
else:
    way, host, *port = sys.argv[1:]
    if port: s = socket.create_connection((host, int(port[0])), 60)
    else: s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(host)
    print({'send': send, 'receive': receive}[way](s))
";

#[test]
fn transfers_arrive_whole_by_every_way_in_either_direction() {
    let lab = Lab::new();
    let path = lab.write("transfer.py", TRANSFER);
    let program = format!("python3 {}", path.display());
    let [up, down] = ["up.sock", "down.sock"].map(|name| lab.runtime().join(name));
    let options = [format!("unix:{}:9000", down.display()), format!("unix:{}:9001", up.display())];
    let options = ["-p", "9000-9001:9000-9001", "-p", &options[0], "-p", &options[1]];
    let mut guest = lab.start("web", &options, &format!("exec {program} serve"));
    assert_eq!(guest.line(), "up");
    let [up, down] = [up, down].map(|path| path.display().to_string());
    for (way, target) in [
        ("receive", "192.0.2.1 9000"),
        ("receive", "2001:db8::1 9000"),
        ("receive", &down),
        ("send", "192.0.2.1 9001"),
        ("send", "2001:db8::1 9001"),
        ("send", &up),
    ] {
        let outside = lab.sh_in(&lab.outside, &format!("{program} {way} {target}"));
        assert_eq!(guest.line(), outside.trim_end(), "{way} {target}");
    }
}

#[test]
fn half_closes_pass_in_both_directions() {
    let lab = Lab::new();
    // At 81 the guest answers when the client has closed its direction; at 82 it closes first.
    let server = lab.write(
        "half.py",
        "import socket, threading
def serve(port, handle):
    s = socket.create_server(('', port)); opened.release()
    while True: handle(s.accept()[0])
def late(c):
    total = 0
    while piece := c.recv(65536): total += len(piece)
    c.sendall(b'got %d bytes' % total); c.close()
def early(c):
    c.sendall(b'over to you'); c.shutdown(socket.SHUT_WR); rest = b''
    while piece := c.recv(65536): rest += piece
    print(rest.decode(), flush=True); c.close()
opened = threading.Semaphore(0)
for port, handle in (81, late), (82, early):
    threading.Thread(target=serve, args=(port, handle)).start(); opened.acquire()
print('up', flush=True)",
    );
    let script = format!("exec python3 {}", server.display());
    let mut guest = lab.start("web", &["-p", "8081-8082:81-82"], &script);
    assert_eq!(guest.line(), "up");
    let connect = |port: u16| {
        let connect = || TcpStream::connect(("192.0.2.1", port)).unwrap();
        let stream = lab.within(&lab.outside, connect);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut text = String::new();
    let mut stream = connect(8081);
    stream.write_all(&[7; 300_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got 300000 bytes");
    let mut stream = connect(8082);
    text.clear();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "over to you");
    stream.write_all(b"still here").unwrap();
    drop(stream);
    assert_eq!(guest.line(), "still here");
}

#[test]
fn resets_pass_in_both_directions() {
    let lab = Lab::new();
    let server = lab.write(
        "reset.py",
        "import socket, struct
s = socket.create_server(('', 80)); print('up', flush=True)
while True:
    c, _ = s.accept(); c.sendall(b'?')
    try:
        if c.recv(1) == b'r': c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        else: c.recv(1)
    except ConnectionResetError: print('reset', flush=True)
    c.close()",
    );
    let mut guest =
        lab.start("web", &["-p", "8080:80"], &format!("exec python3 {}", server.display()));
    assert_eq!(guest.line(), "up");
    let connect = || {
        let connect = || TcpStream::connect("192.0.2.1:8080").unwrap();
        let mut stream = lab.within(&lab.outside, connect);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // What ends before the guest knows of it is nothing that the guest could tell.
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let mut stream = connect();
    stream.write_all(b"r").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut stream = connect();
    stream.write_all(b"x").unwrap();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(guest.line(), "reset");
}

#[test]
fn a_client_may_come_back_from_the_same_port_at_once() {
    let lab = Lab::new();
    let mut teller = lab.start_teller("web", &["-p", "8080:80"], "tcp:80");
    let server: SocketAddr = "192.0.2.1:8080".parse().unwrap();
    let own: SocketAddr = "192.0.2.2:45678".parse().unwrap();
    for round in 0..20 {
        // The guest closes first: the end in TIME-WAIT is its own and, outside, the host's.
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            socket.connect_timeout(&server.into(), PATIENCE)?;
            Ok(TcpStream::from(socket))
        };
        let mut connected = Err(ErrorKind::NotConnected.into());
        // The client's own end takes a moment to be over.
        teller.tapway.until("the client's port is free", || {
            connected = lab.within(&lab.outside, connect);
            let error = connected.as_ref().err().map(io::Error::kind);
            error != Some(ErrorKind::AddrNotAvailable)
        });
        let mut stream = connected.unwrap_or_else(|error| panic!("round {round}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap_or_else(|error| panic!("round {round}: {error}"));
        // Its port is another one if it comes before tapway is done with the old connection.
        assert!(text.starts_with("80 192.0.2.2 "), "round {round}: {text}");
    }
}

#[test]
fn a_thousand_clients_at_once_are_served() {
    let lab = Lab::new();
    let unix = lab.runtime().join("echo.sock");
    let publish = format!("unix:{}:7", unix.display());
    let guest = echo(&lab, "web", &["-p", "8007:7", "-p", &publish]);
    let client = lab.write(
        "clients.py",
        "import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
async def one(i, gate, opened):
    r, w = await (asyncio.open_connection('192.0.2.1', 8007) if i % 10 else
                  asyncio.open_unix_connection(sys.argv[1]))
    opened.release(); await gate.wait()
    w.write(b'%06d' % i); answer = await r.readexactly(6); w.close()
    return answer == b'%06d' % i
async def main():
    gate, opened = asyncio.Event(), asyncio.Semaphore(0)
    tasks = [asyncio.create_task(one(i, gate, opened)) for i in range(1000)]
    for _ in tasks: await opened.acquire()
    gate.set(); print(sum(await asyncio.gather(*tasks)))
asyncio.run(main())",
    );
    let mut clients = lab.enter(&lab.outside, "timeout");
    let clients = clients.args(["60", "python3"]).arg(client).arg(&unix).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&clients.stdout), "1000\n", "{clients:?}");
    let stats = &guest.ask_json(&lab, &["stats"], &[])[0];
    assert_eq!(stats["forwards"][0]["connections"], 900, "{stats}");
    assert_eq!(stats["forwards"][1]["connections"], 100, "{stats}");
}

#[test]
fn exposed_services_may_end_and_come_back() {
    let lab = Lab::new();
    let path = lab.write("teller.py", TELLER);
    let guest = lab.start("db", &["--expose-host", "5432"], "exec sleep 1000");
    for _ in 0..2 {
        let ran = guest.inside("socat -u TCP:10.0.2.2:5432 -");
        assert!(ran.stderr.contains("Connection refused"), "{ran:?}");
        let mut server = lab.enter(&lab.host, "python3");
        let mut server = Background::start(server.arg(&path).arg("tcp:5432:127.0.0.1"));
        assert_eq!(server.line(), "up");
        assert!(guest.hear("tcp", "10.0.2.2", 5432).starts_with("5432 127.0.0.1 "));
    }
}

#[test]
fn a_unix_client_sees_the_servers_end() {
    let lab = Lab::new();
    let path = lab.runtime().join("web.sock");
    let publish = format!("unix:{}:80", path.display());
    let _teller = lab.start_teller("web", &["-p", &publish], "tcp:80");
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("80 10.0.2.2 "), "{text}");
    }
}
