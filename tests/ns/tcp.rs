//! TCP: transfers, half-closes, resets, errors, crowds.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use crate::lab::{Lab, sh};

/// Serves one connection after another on a thread that ends with the test's process.
fn serve(lab: &Lab, port: u16, each: impl FnMut(TcpStream) + Send + 'static) {
    let listener = lab.listener(port);
    thread::spawn(move || listener.incoming().flatten().for_each(each));
}

/// SHA-256 of what `write` writes, by sha256sum.
fn digest(write: impl FnOnce(&mut dyn Write)) -> String {
    let mut program =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    write(&mut program.stdin.take().unwrap());
    let output = program.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap().to_owned()
}

const GIBIBYTE: u64 = 1 << 30;

/// Bytes that do not repeat, in 64 KiB pieces.
fn pieces(total: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..total / 65_536).map(move |_| {
        let mut piece = Vec::with_capacity(65_536);
        while piece.len() < 65_536 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend(state.to_le_bytes());
        }
        piece
    })
}

#[test]
fn pages_arrive_over_both_families() {
    let mut lab = Lab::new();
    let root = lab.directory.path().display().to_string();
    lab.write("index.html", "hello from outside");
    let config = lab.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
            events {{}} http {{ access_log off; server {{ listen [::]:80 ipv6only=off; root {root}; }} }}"
        ),
    );
    lab.serve(&format!("nginx -c {}", config.display()), "curl -sf http://192.0.2.2/ -o /dev/null");
    let out = lab.guest("curl -sS -m 60 http://192.0.2.2/ 'http://[2001:db8::2]/'");
    assert_eq!(out, "hello from outsidehello from outside");
}

#[test]
fn a_gibibyte_arrives_whole_in_either_direction() {
    let lab = Lab::new();
    serve(&lab, 9000, |mut stream| {
        pieces(GIBIBYTE).for_each(|piece| stream.write_all(&piece).unwrap());
    });
    let (received, uploads) = std::sync::mpsc::channel();
    serve(&lab, 9001, move |mut stream| {
        let sum = digest(|sink| {
            std::io::copy(&mut stream, sink).unwrap();
        });
        received.send(sum).unwrap();
    });
    let down = lab.guest("socat -u TCP:192.0.2.2:9000 - | sha256sum");
    let sent = digest(|sink| pieces(GIBIBYTE).for_each(|piece| sink.write_all(&piece).unwrap()));
    assert_eq!(down.split_whitespace().next(), Some(sent.as_str()));
    let up = lab.guest(
        "openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 0 -in /dev/zero 2>/dev/null \
         | head -c 1073741824 | socat -u - TCP6:[2001:db8::2]:9001",
    );
    assert_eq!(up, "");
    let there = uploads.recv().unwrap();
    let expected = Command::new("bash")
        .args([
            "-c",
            "openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 0 -in /dev/zero \
             2>/dev/null | head -c 1073741824 | sha256sum",
        ])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&expected.stdout).starts_with(&there));
}

#[test]
fn half_closes_pass_in_both_directions() {
    let lab = Lab::new();
    // Answers only when the guest has closed its direction.
    serve(&lab, 9000, |mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        write!(stream, "got {} bytes", question.len()).unwrap();
    });
    // Closes its direction first, then listens.
    let (heard, words) = std::sync::mpsc::channel();
    serve(&lab, 9001, move |mut stream| {
        stream.write_all(b"over to you").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        heard.send(rest).unwrap();
    });
    let out = lab.guest("head -c 100000 /dev/zero | socat -t 60 - TCP:192.0.2.2:9000");
    assert_eq!(out, "got 100000 bytes");
    let out = lab.python(
        &[],
        "import socket
s = socket.create_connection(('192.0.2.2', 9001), 60)
said = b''
while piece := s.recv(4096): said += piece
s.sendall(b'still here'); s.close(); print(said.decode())",
    );
    assert_eq!(out, "over to you\n");
    assert_eq!(words.recv().unwrap(), "still here");
}

#[test]
fn slow_readers_and_writers_lose_nothing() {
    let lab = Lab::new();
    serve(&lab, 9000, |mut stream| {
        pieces(4 << 20).for_each(|piece| stream.write_all(&piece).unwrap());
    });
    // The outside reads in small pieces with a small buffer, so that backlog and windows work.
    let (received, counts) = std::sync::mpsc::channel();
    serve(&lab, 9001, move |mut stream| {
        let mut buffer = [0; 1500];
        let mut total = 0;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            total += count;
            thread::yield_now();
        }
        received.send(total).unwrap();
    });
    let out = lab.python(
        &[],
        "import socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
s.connect(('192.0.2.2', 9000)); total = 0
time.sleep(1.5)  # the window closes
while piece := s.recv(30000):
    total += len(piece)
    if total % 7 == 0: time.sleep(0.001)
print(total)
w = socket.create_connection(('192.0.2.2', 9001), 30)
for i in range(400): w.sendall(b'x' * 10007)
w.close()",
    );
    assert_eq!(out, "4194304\n");
    assert_eq!(counts.recv().unwrap(), 400 * 10007);
}

/// Prints the errno name of `connect` to each target.
const CONNECTS: &str = "import errno, socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit('@')
    kind = socket.AF_INET6 if ':' in host else socket.AF_INET
    s = socket.socket(kind); s.settimeout(30)
    try: s.connect((host, int(port))); print('connected')
    except OSError as e: print(errno.errorcode.get(e.errno, repr(e)))
";

#[test]
fn connect_fails_inside_as_it_fails_outside() {
    let lab = Lab::new();
    let h = &lab.host;
    sh(&format!(
        "ip -n {h} route add unreachable 203.0.113.0/24
        ip -n {h} route add unreachable 2001:db8:bad::/48
        ip -n {h} route add prohibit 2001:db8:f0::/48
        ip -n {} route add blackhole 198.51.100.0/24
        ip netns exec {h} sysctl -qw net.ipv4.tcp_syn_retries=1",
        lab.outside
    ));
    let path = lab.write("connects.py", CONNECTS);
    let targets = "192.0.2.2@81 2001:db8::2@81 203.0.113.9@80 2001:db8:bad::1@80 \
                   2001:db8:f0::1@80 198.51.100.1@80";
    let script = format!("python3 {} {targets}", path.display());
    let direct = lab.enter(h, "sh").args(["-c", &script]).output().unwrap();
    let direct = String::from_utf8_lossy(&direct.stdout).into_owned();
    let inside = lab.guest(&format!("sysctl -qw net.ipv4.tcp_syn_retries=1; {script}"));
    assert_eq!(inside, direct);
    assert_eq!(
        direct.lines().collect::<Vec<_>>(),
        ["ECONNREFUSED", "ECONNREFUSED", "EHOSTUNREACH", "EHOSTUNREACH", "EACCES", "ETIMEDOUT"]
    );
}

#[test]
fn a_reset_passes_in_both_directions() {
    let lab = Lab::new();
    let (seen, errors) = std::sync::mpsc::channel();
    serve(&lab, 9000, move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"r" {
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            return;
        }
        seen.send(stream.read(&mut byte).unwrap_err().kind()).unwrap();
    });
    let out = lab.python(
        &[],
        "import socket, struct
s = socket.create_connection(('192.0.2.2', 9000), 60); s.sendall(b'r')
try: s.recv(1); print('no reset')
except ConnectionResetError: print('reset')
s = socket.create_connection(('192.0.2.2', 9000), 60)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.sendall(b'x'); s.close()",
    );
    assert_eq!(out, "reset\n");
    assert_eq!(errors.recv().unwrap(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn two_thousand_connections_at_once_all_get_their_answer() {
    let mut lab = Lab::new();
    let server = lab.write(
        "server.py",
        "import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
async def echo(r, w):
    while d := await r.read(4096): w.write(d)
    w.close()
async def main():
    s = await asyncio.start_server(echo, '0.0.0.0', 9000, backlog=4096)
    await s.serve_forever()
asyncio.run(main())",
    );
    lab.serve(
        &format!("python3 {}", server.display()),
        "python3 -c 'import socket; socket.create_connection((\"192.0.2.2\", 9000))' 2>/dev/null",
    );
    let out = lab.python(
        &[],
        "import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
async def one(i, gate):
    r, w = await asyncio.open_connection('192.0.2.2', 9000)
    await gate.wait()
    w.write(b'%06d' % i); answer = await r.readexactly(6); w.close()
    return answer == b'%06d' % i
async def main():
    gate = asyncio.Event()
    tasks = [asyncio.create_task(one(i, gate)) for i in range(2000)]
    await asyncio.sleep(2); gate.set()
    print(sum(await asyncio.gather(*tasks)))
asyncio.run(main())",
    );
    assert_eq!(out, "2000\n");
}

#[test]
fn iperf3_runs_in_both_directions_without_a_drop_on_the_tap() {
    let mut lab = Lab::new();
    lab.serve("iperf3 -s", "ss -Hltn sport = :5201 | grep -q .");
    for mtu in ["1500", "65520"] {
        let ran = lab.guest_with(
            &["--mtu", mtu],
            // The server is busy for a moment after each test.
            "measure() { for i in $(seq 20); do iperf3 -c 192.0.2.2 -t 1 $1 >/dev/null && return
             sleep 0.2; done; exit 1; }
             measure; measure -R
             cat /sys/class/net/tap0/statistics/tx_dropped 2>/dev/null || \
             ip -s -j link show tap0 | python3 -c \
             'import json,sys; print(json.load(sys.stdin)[0][\"stats64\"][\"tx\"][\"dropped\"])'",
        );
        assert_eq!((ran.status, ran.stdout.trim()), (Some(0), "0"), "{ran:?}");
    }
}

#[test]
fn the_hosts_loopback_is_reached_only_when_it_is_offered() {
    let lab = Lab::new();
    let mut server = lab.enter(&lab.host, "python3");
    server.args([
        "-c",
        "import socket
s = socket.create_server(('127.0.0.1', 9000)); print('up', flush=True)
while True: c, _ = s.accept(); c.sendall(b'loopback'); c.close()",
    ]);
    let mut server = crate::support::Background::start(&mut server);
    assert_eq!(server.line(), "up");
    let script = "socat -u -T 5 TCP:10.0.2.9:9000,connect-timeout=3 - 2>/dev/null; \
                  socat -u -T 5 TCP:10.0.2.2:9000,connect-timeout=3 - 2>/dev/null; \
                  socat -u -T 5 TCP:192.0.2.1:9000,connect-timeout=3 - 2>/dev/null; echo end";
    assert_eq!(lab.guest(script), "end\n");
    let offered = lab.guest_with(&["--host-loopback", "10.0.2.9"], script);
    assert_eq!(offered.stdout, "loopbackend\n");
}
