//! Ports that another instance of us has and is about to give back.
//!
//! An engine that starts a container again removes the old one's network namespace and starts the
//! new one's helper at once, which wants the same ports. The old helper hears of its end by a watch
//! and gives its ports back before anything else, within a millisecond or so, more where processors
//! are scarce. So whoever finds a port in the hands of a process of their own name waits a moment;
//! whoever finds it in other hands fails as ever.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{Holder, ListenError, Opened, Opener};
use crate::gate::forward::Forward;
use crate::sys::{clock, process};

/// How long a predecessor may take, on a machine that gives it no processor for a while. One that
/// keeps its ports delays the refusal by so much.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same for a process that cannot be seen: another user's most likely, or one that is ending
/// and has no descriptors any more, although its sockets are still to be closed.
const PATIENCE_UNSEEN: Duration = Duration::from_millis(300);

/// Milliseconds between two attempts.
const STEP: u16 = 5;

/// As [`Opener::open`], but waits for a predecessor that is ending.
///
/// # Errors
/// As there; of a predecessor that keeps the port, what was said at first.
pub fn open_after_predecessor(opener: Opener, forward: &Forward) -> Result<Opened, ListenError> {
    let refusal = match opener.open(forward) {
        Err(refusal) => refusal,
        Ok(opened) => return Ok(opened),
    };
    let opened = match &refusal {
        ListenError::InUse { holder: None, .. } => wait(opener, None, PATIENCE_UNSEEN, forward),
        ListenError::InUse { holder: Some(holder), .. } if is_one_of_us(holder) => {
            wait(opener, Some(holder), PATIENCE, forward)
        }
        _ => None,
    };
    opened.ok_or(refusal)
}

fn is_one_of_us(holder: &Holder) -> bool {
    let own_name = fs::read_to_string("/proc/self/comm");
    holder.pid != std::process::id() && own_name.is_ok_and(|own| own.trim_end() == holder.program)
}

/// Tries until `holder` has given back the port, has ended, or has had long enough.
fn wait(
    opener: Opener,
    holder: Option<&Holder>,
    patience: Duration,
    forward: &Forward,
) -> Option<Opened> {
    let start = clock::now();
    let holder = match holder {
        None => None,
        // One that has ended meanwhile has given back everything.
        Some(holder) => match process::pidfd_open(Pid::from_raw(i32::try_from(holder.pid).ok()?)) {
            Ok(holder) => Some(holder),
            Err(_) => return opener.try_open(forward),
        },
    };
    loop {
        let end = holder.iter().map(|holder| PollFd::new(holder.as_fd(), PollFlags::POLLIN));
        let mut end: Vec<PollFd<'_>> = end.collect();
        let ended = poll(&mut end, PollTimeout::from(STEP)).is_ok_and(|ready| ready > 0);
        let opened = opener.try_open(forward);
        if opened.is_some() || ended || clock::now().since(start) >= patience {
            return opened;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::gate::forward::{Listen, PortRange, Transport};

    fn forward(port: u16) -> Forward {
        let ports = PortRange::single(port);
        Forward {
            transport: Transport::Tcp,
            listen: Listen::Ports { address: Some([127, 0, 0, 1].into()), interface: None, ports },
            guest_address: None,
            guest_ports: PortRange::single(80),
            when_listening: false,
        }
    }

    #[test]
    fn a_port_that_comes_back_is_had() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = forward(first.local_addr().unwrap().port());
        // A process that lives on, as one that ends slowly does.
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let holder = Holder { pid: other.id(), program: "sleep".to_owned() };
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| wait(Opener::default(), Some(&holder), PATIENCE, &forward));
            drop(first);
            assert!(waiting.join().unwrap().is_some());
        });
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_port_that_is_kept_is_refused_and_others_have_no_delay() {
        let kept = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = forward(kept.local_addr().unwrap().port());
        let start = clock::now();
        // Our own process is no predecessor.
        let refusal = open_after_predecessor(Opener::default(), &forward).unwrap_err();
        assert!(clock::now().since(start) < PATIENCE, "{refusal}");
        assert!(matches!(refusal, ListenError::InUse { .. }), "{refusal}");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let holder = Holder { pid: ended.id(), program: "true".to_owned() };
        // Its end is the end of the wait.
        assert!(wait(Opener::default(), Some(&holder), PATIENCE, &forward).is_none());
        ended.wait().unwrap();
    }
}
