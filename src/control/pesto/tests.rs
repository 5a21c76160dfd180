//! Bytes that the originals (passt and pesto 2026-10) sent, and conversations over real sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::wire::{self, WireError};
use super::*;
use crate::control::BindError;
use crate::gate::forward::{PortRange, Transport};
use crate::gate::table::{Caps, Table, TableRule};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn rule(transport: Transport, listen: Option<&str>, from: (u16, u16), to: u16) -> TableRule {
    TableRule {
        transport,
        listen: listen.map(|address| address.parse().unwrap()),
        interface: None,
        ports: PortRange::new(from.0, from.1).unwrap(),
        target: None,
        target_ports: PortRange::new(to, to + (from.1 - from.0)).unwrap(),
        weak: false,
        scan: false,
    }
}

fn host(rules: Vec<TableRule>) -> PifTable {
    PifTable { pif: HOST, name: "HOST".into(), table: Table::received(Caps::ALL, rules) }
}

const ZEROS: &str = "00000000000000000000000000000000";
const V4: &str = "00000000000000000000ffff";

/// What `pesto -t 5000 -u 127.0.0.1/53:5353` and
/// `pesto -t %lo/80-81:90-91 -t ::/1:fd00::5/2` sent.
#[test]
fn updates_are_those_of_the_original() {
    let first = vec![
        rule(Transport::Tcp, None, (5000, 5000), 5000),
        rule(Transport::Udp, Some("127.0.0.1"), (53, 53), 5353),
    ];
    let first_bytes = bytes(&format!(
        "01 00000002 {ZEROS}{ZEROS}{ZEROS} 1388 1388 1388 06 01
         {V4}7f000001 {ZEROS}{ZEROS} 0035 0035 14e9 11 00 00"
    ));
    let second = vec![
        TableRule { interface: Some("lo".into()), ..rule(Transport::Tcp, None, (80, 81), 90) },
        TableRule {
            target: Some("fd00::5".parse().unwrap()),
            ..rule(Transport::Tcp, Some("::"), (1, 1), 2)
        },
    ];
    let second_bytes = bytes(&format!(
        "01 00000002 {ZEROS}{ZEROS} 6c6f0000000000000000000000000000 0050 0051 005a 06 01
         {ZEROS} fd000000000000000000000000000005 {ZEROS} 0001 0001 0002 06 00 00"
    ));
    for (rules, expected) in [(first, first_bytes), (second, second_bytes)] {
        assert_eq!(wire::write_update(&[host(rules.clone())], 2), expected);
        assert_eq!(wire::read_update(&expected), Ok(Some(vec![(HOST, rules)])));
    }
}

/// What pasta sent with `-t 22-24,auto -t 4444 -T none` and the rest `none`.
fn greeting_of_pasta() -> Vec<u8> {
    let name = |name: &str| format!("{name}{}", "00".repeat(128 - name.len() / 2));
    bytes(&format!(
        "626173696c3a7300 00000002 00000080 00000010
         01 {} 0000003f 00000002
         {ZEROS}{ZEROS}{ZEROS} 0016 0018 0016 06 05
         {ZEROS}{ZEROS}{ZEROS} 115c 115c 115c 06 01
         03 {} 0000003f 00000000 00",
        name("484f5354"),
        name("53504c494345"),
    ))
}

fn tables_of_pasta() -> Vec<PifTable> {
    let followed = TableRule { scan: true, ..rule(Transport::Tcp, None, (22, 24), 22) };
    let splice = Table::new(Caps::ALL);
    vec![
        host(vec![followed, rule(Transport::Tcp, None, (4444, 4444), 4444)]),
        PifTable { pif: SPLICE, name: "SPLICE".into(), table: splice },
    ]
}

#[test]
fn greetings_are_those_of_the_original() {
    let said = greeting_of_pasta();
    let read = wire::read_greeting(&said).unwrap().unwrap();
    assert_eq!((read.version, &read.tables), (2, &tables_of_pasta()));
    assert_eq!(wire::write_greeting(&tables_of_pasta()), said);
    for length in 0..said.len() {
        assert_eq!(wire::read_greeting(&said[..length]), Ok(None), "{length} bytes");
    }
}

#[test]
fn what_is_not_of_the_protocol_is_refused() {
    let good = greeting_of_pasta();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        wire::read_greeting(&changed)
    };
    let splice = good.len() - 138;
    for (read, error) in [
        (with(6, b"c"), WireError::Magic),
        (with(11, &[0]), WireError::Experimental),
        (with(11, &[3]), WireError::Newer(3)),
        (with(15, &[64]), WireError::NameSize(64)),
        (with(19, &[32]), WireError::InterfaceSize(32)),
        (with(21, &[b'x'; 128]), WireError::Unterminated),
        (with(splice, &[HOST]), WireError::Duplicate),
        (with(155, &[1]), WireError::TooManyRules),
        (with(157 + 54, &[1]), WireError::Rule("its transport is neither TCP nor UDP")),
        (with(157 + 55, &[8]), WireError::Rule("its flags are unknown")),
        (with(157 + 15, &[1]), WireError::Rule("it listens at one address and at all")),
        (with(157 + 48, &[0, 0]), WireError::Rule("its ports are no range")),
        (with(157 + 50, &[0, 1]), WireError::Rule("its ports are no range")),
        (with(157 + 52, &[0, 0]), WireError::Rule("its target ports are no range")),
        (with(157 + 52, &[0xff, 0xff]), WireError::Rule("its target ports are no range")),
    ] {
        assert_eq!(read.unwrap_err(), error);
    }
}

#[test]
fn a_server_of_version_1_has_rules_without_target() {
    let mut said = wire::write_greeting(&[host(Vec::new())]);
    said[11] = 1;
    said.truncate(said.len() - 5);
    said.extend(bytes(&format!("00000001 {V4}7f000001 {ZEROS} 0035 0035 14e9 11 00 00")));
    let read = wire::read_greeting(&said).unwrap().unwrap();
    let expected = rule(Transport::Udp, Some("127.0.0.1"), (53, 53), 5353);
    assert_eq!((read.version, read.tables[0].table.rules()), (1, &[expected][..]));
    let update = wire::write_update(&read.tables, 1);
    assert_eq!(update.len(), 5 + 40 + 1);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(
        mut junk in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
        as_table in proptest::bool::ANY,
    ) {
        let _ = wire::read_update(&junk);
        if as_table {
            let mut said = wire::write_greeting(&[]);
            said.pop();
            said.append(&mut junk);
            junk = said;
        }
        let _ = wire::read_greeting(&junk);
    }
}

/// A server at a path of its own, with a table of one rule; what its instance is told.
struct Served {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    replaced: std::sync::mpsc::Receiver<Vec<PifTable>>,
    /// Ends the server's thread when dropped.
    _alive: tokio::sync::oneshot::Sender<()>,
}

fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pasta.sock");
    let server = Server::bind(&path).unwrap();
    let (told, replaced) = std::sync::mpsc::channel();
    let (alive, mut ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (calls, mut asked) = tokio::sync::mpsc::channel(1);
            let instance = async {
                while let Some(call) = asked.recv().await {
                    match call {
                        Call::Tables(reply) => {
                            let _ = reply.send(tables_of_pasta());
                        }
                        Call::Replace(tables) => told.send(tables).unwrap(),
                    }
                }
            };
            tokio::select! {
                end = server.run(calls) => end.unwrap(),
                () = instance => {}
                _ = &mut ended => {}
            }
        });
    });
    Served { _directory: directory, path, replaced, _alive: alive }
}

const LONG: std::time::Duration = std::time::Duration::from_secs(20);

#[test]
fn a_table_that_the_client_leaves_out_becomes_empty() {
    let served = served();
    let (client, tables) = Client::connect(&served.path).unwrap();
    assert_eq!(tables, tables_of_pasta());
    client.update(&tables[1..]).unwrap();
    let replaced = served.replaced.recv_timeout(LONG).unwrap();
    assert_eq!(replaced.len(), 2);
    assert!(replaced.iter().all(|table| table.table.rules().is_empty()), "{replaced:?}");

    let (client, tables) = Client::connect(&served.path).unwrap();
    client.update(&tables).unwrap();
    assert_eq!(served.replaced.recv_timeout(LONG).unwrap(), tables);
}

#[test]
fn what_breaks_off_or_makes_no_sense_changes_nothing() {
    let served = served();
    let whole = wire::write_update(&tables_of_pasta(), 2);
    let conflict = {
        let twice = rule(Transport::Tcp, None, (80, 80), 80);
        wire::write_update(&[host(vec![twice.clone(), twice])], 2)
    };
    let nobodys = [7, 0, 0, 0, 0, 0];
    for bad in [&[][..], &whole[..whole.len() - 1], &conflict, &nobodys] {
        let mut stream = UnixStream::connect(&served.path).unwrap();
        let mut greeting = vec![0; greeting_of_pasta().len()];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(bad).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The server closes when it has made up its mind.
        let _ = stream.read_to_end(&mut greeting);
    }
    assert_eq!(served.replaced.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    use std::os::unix::fs::MetadataExt;
    let served = served();
    let error = Server::bind(&served.path).unwrap_err();
    assert!(error.to_string().ends_with("is already in use by another instance"), "{error}");
    let path = served.path.with_file_name("stale");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Server::bind(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let file = served.path.with_file_name("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(Server::bind(&file), Err(BindError::InTheWay(_))));
}
