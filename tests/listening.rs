//! What listens in a guest is seen from outside of it, by a process that has given up every
//! privilege.
//!
//! Has no test harness: set-up forks, which takes a process of one thread, and the loss of
//! privilege is for good. The guest's command is this program again. Prints what a round of
//! questions costs.
#![allow(clippy::print_stdout, reason = "a test program without harness")]

use std::error::Error;
use std::ffi::OsString;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use tapway::cli::native::{self, Invocation};
use tapway::cli::{self, Action};
use tapway::setup::{self, HostFacts, run};
use tapway::sys::clock;
use tapway::sys::sock_diag::{Diag, Listening, Table};

/// The argument by which this program knows that it is the guest's command.
const GUEST: &str = "be-the-guest";

/// Sockets that a hostile guest binds: several parts of an answer.
const CROWD: u16 = 2000;

/// Where the crowd stands.
const CROWD_FROM: u16 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).is_some_and(|word| word == GUEST) {
        return guest();
    }
    if Uid::effective().is_root() {
        setgroups(&[])?;
        setgid(Gid::from_raw(54_321))?;
        setuid(Uid::from_raw(54_321))?;
        // As after an `execve`: our own files in /proc are ours.
        nix::sys::prctl::set_dumpable(true)?;
    }
    let argv = ["run", "--", "/proc/self/exe", GUEST].map(OsString::from);
    let Invocation::Guest(draft) = native::parse(argv.to_vec())? else { unreachable!("a run") };
    let config = cli::resolve(*draft, &HostFacts::gather(None))?;
    let Action::Run { command, own_ids, files, isolation } = &config.action else {
        unreachable!("a run")
    };
    let started = run::start(&run::RunOptions {
        command,
        isolation,
        own_ids: *own_ids,
        identity: &config.identity,
        link: &config.link(),
        files: files.as_ref(),
        restore_signals: &|| Ok(()),
    })?;
    setup::seal(setup::Keeps::Nothing)?;
    let mut released = started.release()?;
    let mut diag = Diag::new(released.diag.take().ok_or("the kernel has no sock_diag")?);

    let found = once_it_listens(&mut diag)?;
    let mut cost = Duration::MAX;
    for _ in 0..20 {
        let began = clock::now();
        for table in Table::ALL {
            diag.all(table, &mut |_| {})?;
        }
        cost = cost.min(clock::now() - began);
    }
    kill(released.pid, Signal::SIGKILL)?;

    // Root inside is who we are, and the netlink socket was opened inside.
    let expected = [
        (Table::Tcp6, "::", 8080, false),
        (Table::Tcp4, "127.0.0.1", 8081, false),
        (Table::Udp4, "10.0.2.100", 5353, false),
    ];
    for (table, address, port, v6only) in expected {
        let address: IpAddr = address.parse()?;
        let seen = found.iter().any(|&(t, s)| {
            t == table && (s.address, s.port, s.v6only, s.uid) == (address, port, v6only, 0)
        });
        assert!(seen, "{table:?} {address} {port} is not among {} sockets", found.len());
    }
    let crowd = found.iter().filter(|(table, s)| *table == Table::Udp6 && s.v6only).count();
    assert_eq!(crowd, usize::from(CROWD));
    assert_eq!(found.len(), usize::from(CROWD) + expected.len(), "the host's sockets are not seen");
    println!("four tables with {} sockets: {cost:?}", found.len());
    Ok(())
}

/// All that listens in the guest, asked for again once the last of its sockets does: the tables are
/// read one after the other, and the guest binds its sockets meanwhile.
fn once_it_listens(diag: &mut Diag) -> Result<Vec<(Table, Listening)>, Box<dyn Error>> {
    let deadline = clock::now() + Duration::from_secs(60);
    while clock::now() < deadline {
        if listening(diag)?.iter().any(|(_, socket)| socket.port == 8080) {
            return listening(diag);
        }
        nix::poll::poll(&mut [], 10u8)?;
    }
    Err("the guest does not listen".into())
}

/// What every table has at the moment it is read.
fn listening(diag: &mut Diag) -> Result<Vec<(Table, Listening)>, Box<dyn Error>> {
    let mut found = vec![];
    for table in Table::ALL {
        diag.all(table, &mut |socket| found.push((table, socket)))?;
    }
    Ok(found)
}

/// Binds its sockets, [`once_it_listens`]'s last, and stays.
fn guest() -> Result<(), Box<dyn Error>> {
    setup::raise_descriptor_limit();
    let mut crowd = vec![];
    for port in CROWD_FROM..CROWD_FROM + CROWD {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
        socket.set_only_v6(true)?;
        let address: std::net::SocketAddr = ("::1".parse::<IpAddr>()?, port).into();
        socket.bind(&address.into())?;
        crowd.push(socket);
    }
    let udp = UdpSocket::bind("10.0.2.100:5353")?;
    let hidden = TcpListener::bind("127.0.0.1:8081")?;
    let open = TcpListener::bind("[::]:8080")?;
    nix::unistd::pause();
    drop((crowd, udp, hidden, open));
    Ok(())
}
