//! The end of a guest's command: what it has sent is passed on before its network is taken down.

use std::time::Duration;

use crate::base::Instant;

use super::ports::{FramePort, SocketPort};
use super::worker::Worker;

/// While draining, how often to look whether it is over.
pub(super) const DRAIN_STEP: Duration = Duration::from_millis(5);
/// A guest that is silent for so long has sent what it had; somebody else's connection is idle.
const GUEST_QUIET: Duration = Duration::from_millis(50);
/// A host socket that takes nothing for so long will not.
const HOST_STUCK: Duration = Duration::from_secs(10);

/// What a host's kernel does for the sockets of a process that has ended: what was written is still
/// sent. So a command such as `producer | socat -u - TCP:…` may end while bytes are on their way.
pub(super) struct Drain {
    progress: Instant,
    frames: u64,
    backlog: usize,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Drain {
        Drain { progress: now, frames: 0, backlog: 0 }
    }

    pub(super) fn is_over<F: FramePort, S: SocketPort>(
        &mut self,
        now: Instant,
        worker: &Worker<F, S>,
    ) -> bool {
        if !worker.guest_unfinished() {
            return true;
        }
        let (frames, backlog) = (worker.counters().frames_from_guest, worker.backlog());
        if (frames, backlog) != (self.frames, self.backlog) {
            (self.frames, self.backlog, self.progress) = (frames, backlog, now);
        }
        now.since(self.progress) > if backlog == 0 { GUEST_QUIET } else { HOST_STUCK }
    }
}
