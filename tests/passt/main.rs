//! tapway as passt: the network of a virtual machine, at the socket that its monitor comes to.
//!
//! `machine` is a machine made of a TCP/IP stack in this process, which speaks the protocol of the
//! stream itself; `qemu` boots a real one. No namespace and no privilege is needed: passt runs as
//! an ordinary user, beside the servers and clients of the tests.

#[path = "../support/mod.rs"]
mod support;

mod machine;
mod qemu;
mod stream;

use std::path::{Path, PathBuf};

use support::{Background, PATIENCE, binary, scratch, user};

/// The guest's address, its gateway, and what both have in common, on no machine's real network.
const ADDRESSES: [&str; 4] = ["--address", "192.0.2.77/24", "--gateway", "192.0.2.1"];

/// passt in the foreground, and where it listens.
struct Passt {
    process: Background,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

/// Starts passt with the addresses of these tests and `options`.
fn passt(options: &[&str]) -> Passt {
    let directory = scratch();
    let socket = directory.path().join("socket");
    let mut command = user(binary());
    command.args(["--as", "passt", "--foreground", "--socket"]).arg(&socket);
    command.args(ADDRESSES).args(options);
    let log = directory.path().join("log");
    let mut process = Background::start_logged(&mut command, &log);
    process.until("the instructions are printed", || {
        std::fs::read_to_string(&log).unwrap().contains("./qrap 5 kvm")
    });
    Passt { process, socket, _directory: directory }
}

impl Passt {
    fn socket(&self) -> &Path {
        &self.socket
    }
}

/// [`PATIENCE`] as a time.
fn patience() -> std::time::Duration {
    std::time::Duration::from_millis(PATIENCE.into())
}
