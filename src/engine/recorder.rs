//! The capture of a guest link, as both kinds of link keep it.

use std::fs::File;
use std::io::IoSlice;

use crate::observe::Capture;
use crate::sys::clock;

/// Adds frames to a capture file, if there is one. A capture that cannot be written ends; the
/// traffic goes on.
pub(super) struct Recorder(Option<Capture<File>>);

impl Recorder {
    pub(super) fn new(capture: Option<Capture<File>>) -> Recorder {
        Recorder(capture)
    }

    /// Adds `frame`, which begins with its Ethernet header.
    pub(super) fn frame(&mut self, frame: &[u8]) {
        if let Some(capture) = &mut self.0
            && let Err(error) = capture.frame(clock::wall(), frame)
        {
            tracing::error!(%error, "the capture ends here");
            self.0 = None;
        }
    }

    /// Adds the frame that stands in `parts`, behind `skip` bytes of another header.
    pub(super) fn parts(&mut self, parts: &[IoSlice<'_>], skip: usize) {
        if self.0.is_some() {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.frame(bytes.get(skip..).unwrap_or_default());
        }
    }
}
