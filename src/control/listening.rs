//! Follows what listens in a network namespace, for as long as somebody wants to know.
//!
//! The kernel tells nobody that a socket has begun to listen, so [`Watch::run`] asks ten times a
//! second: a server is seen 50 ms after its start on average, 100 ms at most. A round takes some
//! 130 µs ([`crate::sys::sock_diag`]), a thousandth of the time. Two things keep it from growing:
//!
//! - After each part of an answer the control thread does its other work, so that a guest with a
//!   hundred thousand sockets delays nobody.
//! - Between two rounds it sleeps ten times as long as the first one took, if that is longer: such
//!   a guest costs a tenth of a processor at most, and is seen later.
//!
//! While nobody has subscribed, nothing is asked and nothing wakes up.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::gate::forward::Transport;
use crate::gate::ports::{PortTable, Reach};
use crate::sys::clock;
use crate::sys::sock_diag::{Diag, Listening, Table};

/// The pause between two rounds. A host listener is to follow its server within 200 ms.
const PERIOD: Duration = Duration::from_millis(100);

/// The pause after a failed round.
const RETRY: Duration = Duration::from_secs(1);

/// The pause is at least so many times as long as the round before it took. Whoever acts on what
/// is found keeps to the same measure.
pub const RESTRAINT: u32 = 10;

/// What listens in one namespace, for many to look at.
#[derive(Debug)]
pub struct Watch {
    reach: Reach,
    /// `None` until the first round of those for which somebody waits.
    table: watch::Sender<Option<PortTable>>,
    wanted: Notify,
}

impl Watch {
    /// A watch that sees the sockets which hear clients at `reach`. Nothing happens before
    /// [`Watch::run`].
    pub fn new(reach: Reach) -> Watch {
        Watch { reach, table: watch::Sender::default(), wanted: Notify::new() }
    }

    /// The addresses at which clients arrive.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What listens, at most one period old, until the receiver is dropped; marked as changed when
    /// it is another than before. `None` until it is known: `wait_for(Option::is_some)`.
    pub fn subscribe(&self) -> watch::Receiver<Option<PortTable>> {
        let receiver = self.table.subscribe();
        self.wanted.notify_one();
        receiver
    }

    /// Asks by the socket `diag` of [`crate::sys::sock_diag::open`] while there are subscribers.
    /// Returns only when the kernel cannot tell at all.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no `CONFIG_INET_DIAG` or `CONFIG_INET_UDP_DIAG`.
    pub async fn run(&self, diag: OwnedFd) -> io::Error {
        let mut diag = Diag::new(diag);
        loop {
            while self.table.receiver_count() > 0 {
                let began = clock::now();
                let table = match look(&mut diag, &self.reach).await {
                    Ok(table) => table,
                    // The kernel was short of memory, or the answer did not fit: later, then.
                    Err(error) if is_passing(&error) => {
                        tracing::debug!(%error, "it is not known what listens");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                    Err(error) => return error,
                };
                self.table.send_if_modified(|known| {
                    let news = known.as_ref() != Some(&table);
                    *known = Some(table);
                    news
                });
                tokio::time::sleep(PERIOD.max((clock::now() - began) * RESTRAINT)).await;
            }
            // Whoever comes next does not get what is out of date by then.
            self.table.send_replace(None);
            self.wanted.notified().await;
        }
    }
}

/// Whether another round may fare better.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::ENOBUFS, libc::ENOMEM, libc::EINTR, libc::EAGAIN, libc::EBUSY];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

/// What listens at this moment where clients at `reach` are heard, in all four tables.
///
/// # Errors
/// As [`Watch::run`].
pub async fn look(diag: &mut Diag, reach: &Reach) -> io::Result<PortTable> {
    let mut ports = PortTable::default();
    for table in Table::ALL {
        let transport = if table.is_tcp() { Transport::Tcp } else { Transport::Udp };
        let mut enter = |found: Listening| {
            let Listening { address, port, v6only, .. } = found;
            reach.enter(&mut ports, transport, (address, port), v6only);
        };
        let mut answer = async || {
            diag.ask(table)?;
            while diag.read(&mut enter)? {
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        match answer().await {
            // A kernel without IPv6 has no sockets of it.
            Err(e) if table.is_ipv6() && is_unknown(&e) => {}
            result => result?,
        }
    }
    Ok(ports)
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener, UdpSocket};

    use super::*;
    use crate::gate::ports::Family;
    use crate::sys::sock_diag;

    /// Loopback addresses of this test's own, so that other programs do not matter.
    fn reach() -> (IpAddr, Reach) {
        let address = IpAddr::from([127, 77, 1, 9]);
        (address, Reach(vec![address]))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    async fn until(
        subscriber: &mut watch::Receiver<Option<PortTable>>,
        mut condition: impl FnMut(&PortTable) -> bool,
    ) {
        let seen = subscriber.wait_for(|known| known.as_ref().is_some_and(&mut condition));
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
        drop(seen.expect("the change is seen").expect("the watch goes on"));
    }

    #[test]
    fn listeners_come_and_go() {
        let (address, reach) = reach();
        let watch = Watch::new(reach);
        let look_on = async {
            let mut subscriber = watch.subscribe();
            let server = TcpListener::bind((address, 0)).unwrap();
            let udp = UdpSocket::bind((address, 0)).unwrap();
            let ports = (server.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
            let has = |table: &PortTable| {
                (
                    table.of(Transport::Tcp, Family::V4).contains(ports.0),
                    table.of(Transport::Udp, Family::V4).contains(ports.1),
                )
            };
            until(&mut subscriber, |table| has(table) == (true, true)).await;
            drop(server);
            until(&mut subscriber, |table| has(table) == (false, true)).await;
            drop(udp);
            until(&mut subscriber, |table| has(table) == (false, false)).await;
        };
        runtime().block_on(async {
            tokio::select! {
                () = look_on => {}
                error = watch.run(sock_diag::open().unwrap()) => panic!("{error}"),
            }
        });
    }

    #[test]
    fn a_new_subscriber_gets_what_is_true_now() {
        let (address, reach) = reach();
        let watch = Watch::new(reach);
        let look_on = async {
            let server = TcpListener::bind((address, 0)).unwrap();
            let port = server.local_addr().unwrap().port();
            let has = |table: &PortTable| table.of(Transport::Tcp, Family::V4).contains(port);
            until(&mut watch.subscribe(), has).await;
            drop(server);
            // Long enough for the watch to notice that nobody is left.
            tokio::time::sleep(PERIOD * 3).await;
            let mut subscriber = watch.subscribe();
            assert!(subscriber.borrow().is_none());
            let mut first = None;
            until(&mut subscriber, |table| *first.get_or_insert(!has(table))).await;
        };
        runtime().block_on(async {
            tokio::select! {
                () = look_on => {}
                error = watch.run(sock_diag::open().unwrap()) => panic!("{error}"),
            }
        });
    }

    #[test]
    fn nobody_is_asked_while_nobody_wants_to_know() {
        let watch = Watch::new(reach().1);
        // A descriptor that cannot be asked: the first question would end the watch.
        let deaf = || std::fs::File::open("/dev/null").unwrap().into();
        runtime().block_on(async {
            let idle = tokio::time::timeout(PERIOD * 3, watch.run(deaf())).await;
            assert!(idle.is_err(), "{idle:?}");
            let _subscriber = watch.subscribe();
            let asked = tokio::time::timeout(Duration::from_secs(20), watch.run(deaf())).await;
            assert_eq!(asked.unwrap().raw_os_error(), Some(libc::ENOTSOCK));
        });
    }
}
