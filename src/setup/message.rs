//! What the two sides of the set-up say to each other, over a `SOCK_SEQPACKET` pair.
//!
//! One message is one packet of JSON, with descriptors where noted. Both sides are ours and of the
//! same binary. The child's silence (end of file) means that it is gone, and the same for the
//! parent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::inside::Inside;
use super::tap::{Tap, TapFeatures};
use super::{SetupError, chain};
use crate::sys::{scm, sock_diag};

/// From the child to its parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The new user namespace exists and has no ids yet.
    UserNamespace,
    /// All is in place. Descriptors: the TAP's queues, then `resolv.conf` if `resolv_conf`, then
    /// the netlink socket of [`sock_diag`] if `diag`, then our end of [`Inside`] if `inside`.
    Ready { features: TapFeatures, resolv_conf: bool, diag: bool, inside: bool },
    /// The child gives up.
    Failed { message: String, hint: Option<String> },
    /// `execve` refused with this errno.
    NotExecuted(i32),
}

/// From the parent to its child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The ids are mapped; these are the lowest and highest group ids.
    Mapped { groups: (u32, u32) },
    /// Execute the command.
    Go,
}

/// One end of the conversation.
pub(crate) struct Channel(OwnedFd);

/// The longest message: an error chain with a hint, several times over.
const MAX_MESSAGE: usize = 16 * 1024;

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Channel {
        Channel(socket)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Two ends, close-on-exec.
    pub(crate) fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        scm::send(self.0.as_fd(), &serde_json::to_vec(message)?, descriptors)
    }

    /// Says nothing more: the other side reads the end of file and may still answer.
    fn finish(&self) {
        // Fails only if the other side is gone, and then it has its end of file.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }

    /// The next message; `None` when the other side is gone.
    pub(crate) fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, descriptors) = match scm::receive(self.0.as_fd(), &mut buffer) {
            // The other side died with a message of ours unread. The kernel says this once and
            // keeps what that side sent before.
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => {
                scm::receive(self.0.as_fd(), &mut buffer)?
            }
            result => result?,
        };
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..length])?;
        Ok(Some((message, descriptors)))
    }
}

/// What the child handed over.
pub(crate) struct Handover {
    pub(crate) tap: Tap,
    pub(crate) resolv_conf: Option<OwnedFd>,
    /// Asks what listens in the guest; `None` where the kernel has no `NETLINK_SOCK_DIAG`.
    pub(crate) diag: Option<OwnedFd>,
    /// Opens sockets in the guest's namespace; `None` if nobody wants any.
    pub(crate) inside: Option<OwnedFd>,
}

impl Handover {
    /// Opens what [`Handover::diag`] is, in the caller's network namespace.
    pub(crate) fn open_diag() -> Option<OwnedFd> {
        sock_diag::open()
            .inspect_err(|e| tracing::debug!("nobody sees what listens in the guest: {e}"))
            .ok()
    }

    /// The child's side: hands everything over.
    pub(crate) fn send(self, channel: &Channel) -> io::Result<()> {
        let Handover { tap, resolv_conf, diag, inside } = self;
        let mut descriptors: Vec<_> = tap.queues.iter().map(AsFd::as_fd).collect();
        descriptors.extend(resolv_conf.as_ref().map(AsFd::as_fd));
        descriptors.extend(diag.as_ref().map(AsFd::as_fd));
        descriptors.extend(inside.as_ref().map(AsFd::as_fd));
        let ready = Report::Ready {
            features: tap.features,
            resolv_conf: resolv_conf.is_some(),
            diag: diag.is_some(),
            inside: inside.is_some(),
        };
        channel.send(&ready, &descriptors)
    }
}

/// The child while it sets up: killed by silence and reaped when this is dropped.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    channel: Option<Channel>,
}

impl Child {
    pub(crate) fn new(pid: Pid, channel: Channel) -> Child {
        Child { pid, channel: Some(channel) }
    }

    pub(crate) fn order(&self, order: &Order) -> Result<(), SetupError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        match channel.send(order, &[]) {
            // It is gone; its last words are still to be read.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => Ok(()),
            result => result.map_err(|source| SetupError::Host {
                what: "talk to the process that sets up the guest".to_owned(),
                source,
            }),
        }
    }

    /// The child's next report. Its failure is ours, and so is its silence, which is `None` only
    /// where `may_close`.
    fn report(&mut self, may_close: bool) -> Result<Option<(Report, Vec<OwnedFd>)>, SetupError> {
        let next = match &self.channel {
            Some(channel) => channel.receive(),
            None => Ok(None),
        };
        match next {
            Ok(Some((Report::Failed { message, hint }, _))) => {
                Err(SetupError::Guest { message, hint })
            }
            Ok(Some(report)) => Ok(Some(report)),
            Ok(None) if may_close => Ok(None),
            Ok(None) => Err(SetupError::ChildDied(self.reap())),
            Err(source) => Err(SetupError::Host {
                what: "hear from the process that sets up the guest".to_owned(),
                source,
            }),
        }
    }

    /// Waits until the child has made its user namespace.
    pub(crate) fn user_namespace(&mut self) -> Result<(), SetupError> {
        match self.report(false)? {
            Some((Report::UserNamespace, _)) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Why the child gave up, if it did: to be asked when something done to it failed, which may be
    /// because it was no longer there. It hears the end of file and ends, if it has not before.
    pub(crate) fn last_words(mut self) -> Option<SetupError> {
        if let Some(channel) = &self.channel {
            channel.finish();
        }
        self.report(false).err().filter(|e| matches!(e, SetupError::Guest { .. }))
    }

    /// Waits until the child has set up everything.
    pub(crate) fn ready(&mut self) -> Result<Handover, SetupError> {
        match self.report(false)? {
            Some((Report::Ready { features, resolv_conf, diag, inside }, mut descriptors)) => {
                let inside = if inside { descriptors.pop() } else { None };
                let diag = if diag { descriptors.pop() } else { None };
                let resolv_conf = if resolv_conf { descriptors.pop() } else { None };
                Ok(Handover {
                    tap: Tap { queues: descriptors, features },
                    resolv_conf,
                    diag,
                    inside,
                })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Waits until the command runs, which closes our channel, or could not be executed for the
    /// errno that is returned.
    pub(crate) fn executed(mut self) -> Result<(Pid, Option<i32>), SetupError> {
        let errno = match self.report(true)? {
            None => {
                // From here on the process is the command, for others to wait for.
                self.channel = None;
                return Ok((self.pid, None));
            }
            Some((Report::NotExecuted(errno), _)) => errno,
            other => return Err(unexpected(other)),
        };
        Ok((self.pid, Some(errno)))
    }

    /// Ends the conversation, whereupon the child ends, and collects it.
    fn reap(&mut self) -> String {
        self.channel = None;
        loop {
            return match waitpid(self.pid, None) {
                Err(nix::Error::EINTR) => continue,
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
                Ok(WaitStatus::Exited(_, status)) => format!("exit status {status}"),
                Ok(status) => format!("{status:?}"),
                Err(e) => e.to_string(),
            };
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.channel.is_some() {
            self.reap();
        }
    }
}

fn unexpected(report: Option<(Report, Vec<OwnedFd>)>) -> SetupError {
    SetupError::ChildDied(format!("out of step: {:?}", report.map(|(report, _)| report)))
}

/// Tells the parent why the child gives up.
pub(crate) fn report_failure(
    channel: &Channel,
    error: &dyn std::error::Error,
    hint: Option<String>,
) {
    // If the parent is gone too, there is nobody left to tell.
    let _ = channel.send(&Report::Failed { message: chain(error), hint }, &[]);
}
