//! A machine that QEMU runs: Debian's kernel and busybox, without acceleration, so that it runs
//! wherever these tests do.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::spawn;

use tapway::sys::clock;

use crate::support::{Background, free_port, loudly, scratch, user};
use crate::{passt, patience};

/// How long the machine may take from its start to its end: four to eight seconds where nothing
/// else runs.
const LIFE: std::time::Duration = std::time::Duration::from_secs(120);

/// Where the kernel stays between runs.
const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/passt-kernel");

/// Whether the programs are there; if not, whoever runs the tests is told.
fn has_programs() -> bool {
    let missing = |program: &&str| Command::new(program).arg("--help").output().is_err();
    let programs = ["qemu-system-x86_64", "busybox", "dpkg-deb", "apt-get"];
    let missing: Vec<_> = programs.into_iter().filter(missing).collect();
    if missing.is_empty() {
        return true;
    }
    loudly(&format!("NOT RUN: a machine of QEMU: there is no {missing:?} here"));
    let optional = std::env::var_os("TAPWAY_ENGINES_OPTIONAL").is_some();
    assert!(optional, "a machine needs {missing:?}: see contrib/check.sh");
    false
}

/// Runs a tool of the preparations.
fn prepare(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// Kernel and first root directory of the machine, in `directory`.
fn boot_files(directory: &Path) -> (PathBuf, PathBuf) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passt");
    prepare(Command::new("sh").arg(source.join("kernel.sh")).arg(CACHE));
    let (kernel, root) = (directory.join("vmlinuz"), directory.join("root"));
    fs::copy(Path::new(CACHE).join("vmlinuz"), &kernel).unwrap();
    for place in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    let which = prepare(Command::new("sh").args(["-c", "command -v busybox"]));
    fs::copy(String::from_utf8(which).unwrap().trim(), root.join("bin/busybox")).unwrap();
    prepare(Command::new("cp").arg("-r").arg(Path::new(CACHE).join("modules")).arg(&root));
    fs::copy(source.join("init.sh"), root.join("init")).unwrap();
    fs::set_permissions(root.join("init"), Permissions::from_mode(0o755)).unwrap();
    let archive = "find . | busybox cpio -o -H newc";
    let archive = prepare(Command::new("sh").args(["-c", archive]).current_dir(&root));
    let root = directory.join("initrd");
    fs::write(&root, archive).unwrap();
    for file in [&kernel, &root] {
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    (kernel, root)
}

/// What is behind the HTTP header of an answer.
fn body(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("an HTTP header");
    &answer[end + 4..]
}

/// The next line of the machine's console that begins with `word`.
fn console(machine: &mut Background, word: &str) -> String {
    loop {
        let line = machine.line();
        if let Some(at) = line.find(word) {
            return line[at..].to_owned();
        }
        assert!(!line.contains("Kernel panic") && !line.contains("NO LEASE"), "{line}");
    }
}

#[test]
fn a_real_machine_boots_with_a_network() {
    if !has_programs() {
        return;
    }
    let directory = scratch();
    let (kernel, root) = boot_files(directory.path());
    let content: Vec<u8> = (0..8_000_000_u32).map(|at| (at ^ at >> 7) as u8).collect();
    let file = directory.path().join("file");
    fs::write(&file, &content).unwrap();
    let sum = prepare(Command::new("sh").args(["-c", "md5sum <$0"]).arg(&file));
    let sum = String::from_utf8(sum).unwrap();

    let server = TcpListener::bind("[::]:0").unwrap();
    let server_port = server.local_addr().unwrap().port();
    let served = content.clone();
    let serving = spawn(move || {
        for _ in 0..2 {
            let (mut client, _) = server.accept().unwrap();
            // The whole request comes in one segment.
            assert!(client.read(&mut [0; 4096]).unwrap() > 0);
            write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", served.len()).unwrap();
            client.write_all(&served).unwrap();
        }
    });

    let began = clock::now();
    let (web, end) = (free_port(), free_port());
    let ports = format!("{web}:8080,{end}:8081");
    let passt = passt(&[
        "--one-off",
        "--address",
        "2001:db8:77::7",
        "--gateway",
        "2001:db8:77::1",
        "--dns",
        "192.0.2.53",
        "--search",
        "machines.example",
        "--tcp-ports",
        &ports,
    ]);
    let netdev = "stream,id=net,server=off,addr.type=unix,addr.path=";
    let netdev = format!("{netdev}{}", passt.socket().display());
    let words = format!("console=ttyS0 panic=-1 server={server_port}");
    let mut qemu = user("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-display", "none", "-serial", "stdio", "-append", &words, "-kernel"]);
    qemu.arg(&kernel).arg("-initrd").arg(&root).args(["-netdev", &netdev]);
    qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    let mut machine = Background::start(&mut qemu);

    let lease = "LEASE 192.0.2.77/24 router 192.0.2.1 mtu 65520 dns 192.0.2.53 \
                 search machines.example";
    assert_eq!(console(&mut machine, "LEASE"), lease);
    assert_eq!(console(&mut machine, "FETCHED "), format!("FETCHED {}", sum.trim_end()));
    assert_eq!(console(&mut machine, "FETCHED6 "), format!("FETCHED6 {}", sum.trim_end()));
    serving.join().unwrap();

    console(&mut machine, "SERVING");
    let mut client = TcpStream::connect(("127.0.0.1", web)).unwrap();
    client.set_read_timeout(Some(patience())).unwrap();
    client.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = vec![];
    client.read_to_end(&mut answer).unwrap();
    assert!(body(&answer) == content, "{} bytes came back", answer.len());

    drop(TcpStream::connect(("127.0.0.1", end)).unwrap());
    let ran = machine.end();
    assert_eq!(ran.status, Some(0), "{ran:?}");
    // With the machine, its network ends.
    let ran = passt.process.end();
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let life = clock::now() - began;
    assert!(life < LIFE, "it took {life:?}");
}
