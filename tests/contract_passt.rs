//! passt's contract at the level of its command line: what comes of an argv, with our binary under
//! that name and, where it is installed, with the original, so that the table itself is proved.
//!
//! As in `contract_pasta.rs`, rows that a version after Debian 12's introduced are ours alone.
//! What passt does once it serves is in `tests/passt`.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::contract::{For, Row, check, ours, run};

/// The original.
const ORIGINAL: &str = "/usr/bin/passt";

#[test]
fn argv_has_the_exit_status_and_the_words_of_the_contract() {
    use For::{Both, Ours};
    let table: &[Row] = &[
        (Ours, &["--version"], 0, "passt ", ""),
        (Both, &["--version", "--bogus"], 0, "passt ", ""),
        (Ours, &["--help"], 0, "Usage: ", ""),
        (Both, &["--bogus"], 1, "", "unrecognized option '--bogus'"),
        (Both, &["-Z"], 1, "", "invalid option -- 'Z'"),
        (Both, &["-fqZ"], 1, "", "invalid option -- 'Z'"),
        (Both, &["--socket"], 1, "", "option '--socket' requires an argument"),
        (Both, &["--fd"], 1, "", "option '--fd' requires an argument"),
        (Both, &["-s"], 1, "", "option requires an argument -- 's'"),
        (Both, &["-f", "-F", "-1"], 1, "", "Invalid --fd: -1"),
        (Ours, &["-f", "-F", "x"], 1, "", "Invalid --fd: x"),
        (Ours, &["-f", "-F", "2"], 1, "", "Invalid --fd: 2"),
        (
            Ours,
            &["-f", "-F", "99"],
            1,
            "",
            "use descriptor 99 as a connection to a virtual machine",
        ),
        (Both, &["-s", "/tmp/x", "-F", "9"], 1, "", "--socket and --fd are mutually exclusive"),
        (Both, &["word"], 1, "", "Extra non-option argument: word"),
        (Both, &["--one-off", "1234"], 1, "", "Extra non-option argument: 1234"),
        (Both, &["-t", "auto"], 1, "", "'auto' port forwarding is only allowed for pasta"),
        (Both, &["-u", "auto"], 1, "", "'auto' port forwarding is only allowed for pasta"),
        // Versions differ in quotes around the rest.
        (Both, &["-t", "80/tcp"], 1, "", "Invalid port specifier"),
        (Both, &["-a", "127.0.0.1"], 1, "", "Invalid address: 127.0.0.1"),
        (Both, &["-n", "33"], 1, "", "Invalid netmask: 33"),
        (Both, &["-g", "bogus"], 1, "", "Invalid gateway address: bogus"),
        (Both, &["-m", "65536"], 1, "", "Invalid MTU: 65536"),
        // What is pasta's has no short name, and is refused by its long one.
        (Both, &["-T", "80"], 1, "", "invalid option -- 'T'"),
        (Both, &["-U", "80"], 1, "", "invalid option -- 'U'"),
        (Both, &["-I", "eth0"], 1, "", "invalid option -- 'I'"),
        (Both, &["--netns", "x"], 1, "", "--netns is for pasta mode only"),
        (Both, &["--userns", "x"], 1, "", "--userns is for pasta mode only"),
        (Both, &["--no-netns-quit"], 1, "", "--no-netns-quit is for pasta mode only"),
        (
            Both,
            &["--ns-mac-addr", "02:00:00:00:00:01"],
            1,
            "",
            "--ns-mac-addr is for pasta mode only",
        ),
        (Both, &["--dhcp-dns"], 1, "", "--dhcp-dns is for pasta mode only"),
        (Both, &["--dhcp-search"], 1, "", "--dhcp-search is for pasta mode only"),
        (Ours, &["--netns-only"], 1, "", "--netns-only is for pasta mode only"),
        (Ours, &["--config-net"], 1, "", "--config-net is for pasta mode only"),
        (Ours, &["--no-copy-routes"], 1, "", "--no-copy-routes is for pasta mode only"),
        (Ours, &["--no-copy-addrs"], 1, "", "--no-copy-addrs is for pasta mode only"),
        (Ours, &["--ns-ifname", "x"], 1, "", "--ns-ifname is for pasta mode only"),
        (Ours, &["--tcp-ns", "80"], 1, "", "--tcp-ns is for pasta mode only"),
        (Ours, &["--udp-ns", "80"], 1, "", "--udp-ns is for pasta mode only"),
        (Ours, &["--host-lo-to-ns-lo"], 1, "", "--host-lo-to-ns-lo is for pasta mode only"),
        (Ours, &["--no-splice"], 1, "", "--no-splice is for pasta mode only"),
        (Ours, &["--splice-only"], 1, "", "--splice-only is for pasta mode only"),
        (Ours, &["--no-pidns"], 1, "", "--no-pidns is for pasta mode only"),
        // The migration of machines, and memory that is shared with them.
        (Ours, &["--vhost-user"], 1, "", "--vhost-user is not supported"),
        (Ours, &["--print-capabilities"], 1, "", "--print-capabilities is not supported"),
        (Ours, &["--repair-path", "x"], 1, "", "--repair-path is not supported"),
        (Ours, &["--migrate-exit"], 1, "", "--migrate-exit is not supported"),
        (Ours, &["--migrate-no-linger"], 1, "", "--migrate-no-linger is not supported"),
        (Ours, &["-s", "/nonexistent/socket"], 1, "", "/nonexistent/socket: No such file"),
    ];
    check(ORIGINAL, table);
}

#[test]
fn a_socket_that_is_in_use_is_told_in_the_same_words() {
    let (directory, ours) = ours("passt");
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // The original takes a socket that it may not use for one that nobody uses.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = socket.to_str().unwrap();
    let words = format!("Socket path {path} already in use");
    for program in [ours.as_path(), Path::new(ORIGINAL)] {
        if !program.exists() {
            continue;
        }
        let ran = run(program, &["-f", "-s", path]);
        assert_eq!(ran.status, Some(1), "{program:?}: {ran:?}");
        assert!(ran.stderr.contains(&words), "{program:?}: {ran:?}");
    }
    // What is not a socket is nobody's to remove.
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let ran = run(&ours, &["-f", "-s", file.to_str().unwrap()]);
    assert_eq!((ran.status, std::fs::read(&file).unwrap()), (Some(1), b"precious".to_vec()));
}
