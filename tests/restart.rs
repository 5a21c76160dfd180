//! What engines do when they start a container again: the old network namespace goes, and a helper
//! for the new one comes at once and wants the same host ports.

mod support;

use std::net::TcpListener;
use std::os::unix::fs::symlink;

use support::{Ran, binary, free_port, scratch, user};

/// Starts a helper for a namespace of a name, as engines do; then, some times over, lets the name
/// go and starts the next one's helper in the same moment. Says how each of them ended its start.
const RESTARTS: &str = r#"
make() {
    : >"$1"
    unshare --net sh -c 'mount --bind /proc/self/ns/net "$0"' "$1"
}
start() {
    "$pasta" --quiet --config-net -t "127.0.0.1/$port:80" -u "$port:80" -T none -U none \
        --netns "$1" 2>&1 && echo started
}
let_go() { umount --lazy "$1"; rm "$1"; }
pasta=$1 port=$2
cd "$3"
make old
start "$PWD/old"
for i in 1 2 3 4 5; do
    make new
    let_go old
    start "$PWD/new"
    # The watched name is that of the namespace; the next one has another.
    make old
    let_go new
    start "$PWD/old"
done
let_go old
"#;

#[test]
fn a_helper_takes_over_its_predecessors_ports() {
    let directory = scratch();
    let pasta = directory.path().join("pasta");
    symlink(binary(), &pasta).unwrap();
    let port = free_port();
    let mut engine = user("unshare");
    engine.args(["--user", "--map-root-user", "--mount", "--propagation", "private"]);
    engine.args(["sh", "-c", RESTARTS, "engine"]).arg(&pasta).arg(port.to_string());
    let ran: Ran = engine.arg(directory.path()).output().unwrap().into();
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(ran.stdout, "started\n".repeat(11));
}

/// Somebody else's port is refused as ever.
#[test]
fn a_port_that_is_in_use_is_refused() {
    let directory = scratch();
    let pasta = directory.path().join("pasta");
    symlink(binary(), &pasta).unwrap();
    let kept = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("127.0.0.1/{}", kept.local_addr().unwrap().port());
    let mut command = user(pasta);
    command.args(["-t", &at, "-u", "none", "-T", "none", "-U", "none", "--", "true"]);
    let ran: Ran = command.output().unwrap().into();
    let text = format!(
        "Listen failed for HOST TCP port {at}: Address already in use\n\
         Couldn't listen on requested ports\n"
    );
    assert_eq!((ran.status, ran.stderr), (Some(1), text));
}
