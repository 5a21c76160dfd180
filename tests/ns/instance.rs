//! A tapway that runs in the lab's `host`, and its clients.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tapway::sys::clock;

use crate::lab::Lab;
use crate::support::{Background, Ran, binary, user};

/// How long anything may take that takes milliseconds on a quiet machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server for the guest: says at each of its ports which one it is and who asks, as in
/// `80 192.0.2.2 45678`. Arguments are `tcp:PORT`, `udp:PORT`, or with an address of the guest
/// `tcp:PORT:ADDRESS`; prints "up" when all are open.
pub(crate) const TELLER: &str = "import selectors, socket, sys
ready = selectors.DefaultSelector()
for word in sys.argv[1:]:
    kind, port, *address = word.split(':', 2)
    v4 = address and '.' in address[0]
    s = socket.socket(socket.AF_INET if v4 else socket.AF_INET6,
                      socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if not v4: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind((address[0] if address else '::', int(port)))
    if kind == 'tcp': s.listen(100)
    ready.register(s, selectors.EVENT_READ, int(port))
print('up', flush=True)
def told(port, peer): return f\"{port} {peer[0].removeprefix('::ffff:')} {peer[1]}\\n\".encode()
while True:
    for key, _ in ready.select():
        s = key.fileobj
        if s.type == socket.SOCK_STREAM:
            client, peer = s.accept(); client.sendall(told(key.data, peer)); client.close()
        else:
            _, peer = s.recvfrom(65536); s.sendto(told(key.data, peer), peer)
";

/// A server for the guest that sends back at port 7 what it gets, on any number of connections.
const ECHO: &str = "import asyncio
async def echo(reader, writer):
    while data := await reader.read(1 << 20): writer.write(data); await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(echo, None, 7)
    print('up', flush=True); await server.serve_forever()
asyncio.run(main())
";

/// Starts tapway with a guest that echoes at port 7.
pub(crate) fn echo(lab: &Lab, name: &str, options: &[&str]) -> Instance {
    let path = lab.write("echo.py", ECHO);
    let mut instance = lab.start(name, options, &format!("exec python3 {}", path.display()));
    assert_eq!(instance.line(), "up");
    instance
}

/// Sends pieces of 64 KiB through an [`echo`] and back until `over`, counting them in `rounds`; no
/// byte may be lost, changed or out of place. The time that the slowest took.
pub(crate) fn rally(mut stream: TcpStream, over: &AtomicBool, rounds: &AtomicU64) -> Duration {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut slowest = Duration::ZERO;
    let mut buffer = vec![0; 65_536];
    while !over.load(Ordering::Relaxed) {
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        let sent: Vec<u8> = (0..65_536).map(|at: u64| (at * 31 + round) as u8).collect();
        let began = clock::now();
        stream.write_all(&sent).unwrap();
        stream.read_exact(&mut buffer).unwrap();
        slowest = slowest.max(clock::now() - began);
        assert!(buffer == sent, "round {round} returns changed");
    }
    slowest
}

/// Raises a flag when it is dropped, so that a thread that waits for it ends when a test fails.
pub(crate) struct EndWith<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One tapway.
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) tapway: Background,
    /// The guest's first process.
    pub(crate) guest: Pid,
}

impl Lab {
    /// Starts tapway with a bash script as the guest's command.
    pub(crate) fn start(&self, name: &str, options: &[&str], script: &str) -> Instance {
        self.start_by(&[], name, options, script)
    }

    /// [`Lab::start`] by way of a program that becomes tapway.
    pub(crate) fn start_by(
        &self,
        starter: &[&str],
        name: &str,
        options: &[&str],
        script: &str,
    ) -> Instance {
        let script = format!("echo $$; {script}");
        let mut command = self.as_user(&[starter, &["setpriv", "--pdeathsig", "KILL"]].concat());
        command.arg(binary()).args(["run", "--name", name]).args(options);
        command.args(["--", "bash", "-c", &script]);
        let errors = self.directory.path().join(format!("{name}.err"));
        let mut tapway = Background::start_logged(&mut command, &errors);
        let guest = Pid::from_raw(tapway.line().parse().unwrap());
        Instance { name: name.to_owned(), tapway, guest }
    }

    /// Starts tapway with a guest that tells its clients who they are: see [`TELLER`].
    pub(crate) fn start_teller(&self, name: &str, options: &[&str], ports: &str) -> Instance {
        let path = self.write("teller.py", TELLER);
        let script = format!("exec python3 {} {ports}", path.display());
        let mut instance = self.start(name, options, &script);
        assert_eq!(instance.line(), "up");
        instance
    }

    /// What a client in `namespace` hears at `address` until the other side closes.
    pub(crate) fn hear(&self, namespace: &str, address: &str) -> io::Result<String> {
        let address: SocketAddr = address.parse().unwrap();
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let mut stream = self.within(namespace, connect)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Runs a shell script in `namespace`, as root; it must succeed. What it printed.
    pub(crate) fn sh_in(&self, namespace: &str, script: &str) -> String {
        let ran: Ran = self.enter(namespace, "bash").args(["-c", script]).output().unwrap().into();
        assert_eq!(ran.status, Some(0), "{script}: {ran:?}");
        ran.stdout
    }
}

impl Instance {
    /// The next line that the guest prints.
    pub(crate) fn line(&mut self) -> String {
        self.tapway.line()
    }

    /// Runs a bash script in the guest.
    pub(crate) fn inside(&self, script: &str) -> Ran {
        let mut command = self.inside_command("bash");
        command.args(["-c", script]).output().unwrap().into()
    }

    /// What a program in the guest hears from a [`TELLER`] at `host` and `port`.
    pub(crate) fn hear(&self, kind: &str, host: &str, port: u16) -> String {
        const CLIENT: &str = "import socket, sys
kind, host, port = sys.argv[1:]
style = socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM
family, style, proto, _, address = socket.getaddrinfo(host, port, type=style)[0]
s = socket.socket(family, style, proto); s.settimeout(60); s.connect(address)
if kind == 'udp': s.send(b'?')
print(s.recv(100).decode(), end='')";
        let mut command = self.inside_command("python3");
        command.args(["-c", CLIENT, kind, host, &port.to_string()]);
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.status, Some(0), "{kind} {host} {port}: {ran:?}");
        ran.stdout
    }

    /// `program` in the guest.
    pub(crate) fn inside_command(&self, program: &str) -> Command {
        let mut command = user("nsenter");
        command.args(["--preserve-credentials", "--user", "--net", "--mount", "--target"]);
        command.args([&self.guest.to_string(), program]);
        command
    }

    /// `tapway VERB… NAME REST…`, which must succeed; what it printed.
    pub(crate) fn ask(&self, lab: &Lab, verb: &[&str], rest: &[&str]) -> String {
        let ran = self.try_ask(lab, verb, rest);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{verb:?} {rest:?}");
        ran.stdout
    }

    /// `tapway VERB… NAME REST…`.
    pub(crate) fn try_ask(&self, lab: &Lab, verb: &[&str], rest: &[&str]) -> Ran {
        lab.tapway(&[verb, &[&*self.name], rest].concat()).output().unwrap().into()
    }

    /// What a command prints with `--json`: a value in each line.
    pub(crate) fn ask_json(&self, lab: &Lab, verb: &[&str], rest: &[&str]) -> Vec<Value> {
        let text = self.ask(lab, verb, &[rest, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The path of the control socket.
    pub(crate) fn socket(&self, lab: &Lab) -> PathBuf {
        lab.runtime().join("tapway").join(format!("{}.sock", self.name))
    }

    /// Waits until a client of the outside is not refused at `address`.
    pub(crate) fn wait_until_open(&mut self, lab: &Lab, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let connects = || lab.within(&lab.outside, || TcpStream::connect(address)).is_ok();
        self.tapway.until(&format!("{address} is open"), connects);
    }

    /// Waits until it has no flow.
    pub(crate) fn wait_until_idle(&mut self, lab: &Lab) {
        let name = self.name.clone();
        let idle = || {
            let ran: Ran = lab.tapway(&["flows", &name, "--json"]).output().unwrap().into();
            ran.stdout.is_empty()
        };
        self.tapway.until("there is no flow", idle);
    }

    /// Waits until something in the guest listens behind the published port number `id`.
    pub(crate) fn wait_until_heard(&mut self, lab: &Lab, id: u64) {
        let name = self.name.clone();
        let heard = || {
            let ran: Ran = lab.tapway(&["port", "list", &name, "--json"]).output().unwrap().into();
            let records = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
            records.into_iter().any(|port: Value| port["id"] == id && port["listening"] == true)
        };
        self.tapway.until(&format!("port {id} is heard"), heard);
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(self) -> Ran {
        self.tapway.signal(Signal::SIGTERM);
        self.tapway.end()
    }
}
