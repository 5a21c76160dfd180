//! Bytes from the stream, until they are frames.

use super::{LENGTH_LEN, MAX_FRAME, MIN_FRAME};

/// Bytes read ahead: as much as a Unix socket holds by default (`net.core.wmem_default`), so that
/// one system call brings many small frames.
const CAPACITY: usize = 256 << 10;

/// What was read and is not a frame yet, or is one and was not taken yet.
pub(super) struct Incoming {
    bytes: Box<[u8]>,
    /// What is unread lies at `start..end`.
    start: usize,
    end: usize,
}

/// A length that no frame has: the stream cannot be understood any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, where {MIN_FRAME} to {MAX_FRAME} are possible")]
pub(super) struct BadLength(pub(super) u32);

impl Incoming {
    pub(super) fn new() -> Incoming {
        Incoming { bytes: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next bytes of the stream go; never empty once [`Incoming::next`] had no frame.
    pub(super) fn room(&mut self) -> &mut [u8] {
        // What is left of an unfinished frame is below a third of the whole.
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were put into the room.
    pub(super) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Whether [`Incoming::next`] would give something other than "not yet".
    pub(super) fn has_frame(&self) -> bool {
        !matches!(self.peek(), Ok(None))
    }

    /// Takes the next frame; `None` if it is not complete.
    ///
    /// # Errors
    /// A length that is none. It stays in front, so every later call says the same.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let Some(len) = self.peek()? else { return Ok(None) };
        let at = self.start + LENGTH_LEN;
        self.start = at + len;
        Ok(Some(&self.bytes[at..at + len]))
    }

    /// The length of the frame in front, if all of it is there.
    fn peek(&self) -> Result<Option<usize>, BadLength> {
        let unread = &self.bytes[self.start..self.end];
        let Some((length, rest)) = unread.split_first_chunk::<LENGTH_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(len) if (MIN_FRAME..=MAX_FRAME).contains(&len) => {
                Ok((len <= rest.len()).then_some(len))
            }
            _ => Err(BadLength(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames as they stand in the stream.
    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        let prefixed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes(), &frame[..]].concat();
        frames.iter().flat_map(prefixed).collect()
    }

    /// Feeds `bytes` in pieces of `step` and takes every frame as soon as it is there.
    fn reassemble(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let (mut incoming, mut frames) = (Incoming::new(), vec![]);
        let mut left = bytes;
        while !left.is_empty() {
            let room = incoming.room();
            let count = step.min(left.len()).min(room.len());
            assert!(count > 0, "there is always room for more of an unfinished frame");
            room[..count].copy_from_slice(&left[..count]);
            incoming.filled(count);
            left = &left[count..];
            while let Some(frame) = incoming.next().unwrap() {
                frames.push(frame.to_vec());
            }
        }
        assert!(!incoming.has_frame());
        frames
    }

    #[test]
    fn frames_come_out_whole_wherever_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> =
            [MIN_FRAME, 60, 1514, 15].iter().map(|&len| vec![len as u8; len]).collect();
        let bytes = stream(&frames);
        for at in 0..=bytes.len() {
            let mut incoming = Incoming::new();
            let mut seen = vec![];
            for piece in [&bytes[..at], &bytes[at..]] {
                incoming.room()[..piece.len()].copy_from_slice(piece);
                incoming.filled(piece.len());
                while let Some(frame) = incoming.next().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            assert_eq!(seen, frames, "cut at {at}");
        }
        assert_eq!(reassemble(&bytes, 1), frames);
    }

    #[test]
    fn a_long_stream_of_the_largest_frames_goes_through_in_pieces_of_any_size() {
        let frames: Vec<Vec<u8>> = (0..12).map(|n| vec![n; MAX_FRAME - usize::from(n)]).collect();
        let bytes = stream(&frames);
        for step in [4093, 65_536, CAPACITY] {
            assert!(reassemble(&bytes, step) == frames, "in pieces of {step}");
        }
    }

    #[test]
    fn a_frame_that_is_not_complete_waits() {
        let mut incoming = Incoming::new();
        let bytes = stream(&[vec![7; 100]]);
        incoming.room()[..103].copy_from_slice(&bytes[..103]);
        incoming.filled(103);
        assert_eq!(incoming.next(), Ok(None));
        incoming.room()[0] = 7;
        incoming.filled(1);
        assert!(incoming.has_frame());
        assert_eq!(incoming.next(), Ok(Some(&[7; 100][..])));
    }

    #[test]
    fn lengths_that_no_frame_has_are_refused_before_anything_is_awaited() {
        for bad in [0, 1, MIN_FRAME as u32 - 1, MAX_FRAME as u32 + 1, 0x4745_5420, u32::MAX] {
            let mut incoming = Incoming::new();
            incoming.room()[..4].copy_from_slice(&bad.to_be_bytes());
            incoming.filled(4);
            assert!(incoming.has_frame());
            for _ in 0..2 {
                assert_eq!(incoming.next(), Err(BadLength(bad)));
            }
        }
    }
}
