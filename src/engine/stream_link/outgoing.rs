//! Frames on their way into the stream: what the socket does not take at once is kept.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

use super::LENGTH_LEN;

/// Bytes that are kept at most, beside the rest of a frame that was begun. More than answers and
/// timers bring while nothing new is begun ([`FramePort::is_congested`]).
///
/// [`FramePort::is_congested`]: crate::engine::ports::FramePort::is_congested
const LIMIT: usize = 4 << 20;

/// What the other end has not taken yet: the rest of the frame that was begun, then whole ones.
#[derive(Default)]
pub(super) struct Outgoing(VecDeque<u8>);

impl Outgoing {
    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends the frame that stands in `parts` to `stream`, or keeps what of it is not taken.
    ///
    /// # Errors
    /// `WouldBlock` when too much is kept already: nothing of the frame is sent then. Others are
    /// those of the stream, which is broken then.
    pub(super) fn send(
        &mut self,
        parts: &[IoSlice<'_>],
        stream: &mut impl Write,
    ) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        // Frames are below 128 KiB.
        let length = (len as u32).to_be_bytes();
        let mut taken = 0;
        if self.0.is_empty() {
            taken = match parts {
                [whole] => write(stream, &[IoSlice::new(&length), IoSlice::new(whole)])?,
                _ => {
                    let mut all = vec![IoSlice::new(&length)];
                    all.extend_from_slice(parts);
                    write(stream, &all)?
                }
            };
        } else if self.0.len() + LENGTH_LEN + len > LIMIT {
            return Err(ErrorKind::WouldBlock.into());
        }
        for part in std::iter::once(&length[..]).chain(parts.iter().map(|part| &part[..])) {
            let skipped = taken.min(part.len());
            taken -= skipped;
            self.0.extend(&part[skipped..]);
        }
        Ok(())
    }

    /// Sends what is kept, as far as `stream` takes it.
    ///
    /// # Errors
    /// Those of the stream, which is broken then.
    pub(super) fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.0.is_empty() {
            let (first, second) = self.0.as_slices();
            match write(stream, &[IoSlice::new(first), IoSlice::new(second)])? {
                0 => return Ok(()),
                taken => drop(self.0.drain(..taken)),
            }
        }
        self.0 = VecDeque::new();
        Ok(())
    }
}

/// Writes once; bytes taken, 0 if the stream takes none now.
fn write(stream: &mut impl Write, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match stream.write_vectored(parts) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that takes so many bytes in all, at most `step` at a time.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
        step: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room).min(self.step);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.taken.extend(&bytes[..count]);
            Ok(count)
        }

        fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let whole: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            self.write(&whole)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const WHOLE: &[u8] = b"\0\0\0\x05first\0\0\0\x06second\0\0\0\x05third";

    fn send_three(outgoing: &mut Outgoing, stream: &mut Narrow) {
        outgoing.send(&[IoSlice::new(b"first")], stream).unwrap();
        outgoing.send(&[IoSlice::new(b"sec"), IoSlice::new(b"ond")], stream).unwrap();
        outgoing.send(&[IoSlice::new(b"third")], stream).unwrap();
    }

    #[test]
    fn frames_stay_whole_and_in_order_wherever_the_socket_is_full() {
        for room in 0..=WHOLE.len() {
            let mut stream = Narrow { taken: vec![], room, step: usize::MAX };
            let mut outgoing = Outgoing::default();
            send_three(&mut outgoing, &mut stream);
            assert_eq!(stream.taken, WHOLE[..room]);
            assert_eq!(outgoing.is_empty(), room == WHOLE.len());
            stream.room = usize::MAX;
            outgoing.flush(&mut stream).unwrap();
            assert!(outgoing.is_empty());
            assert_eq!(stream.taken, WHOLE, "full at {room}");
        }
    }

    #[test]
    fn short_writes_are_finished_before_anything_else_is_sent() {
        let mut stream = Narrow { taken: vec![], room: usize::MAX, step: 2 };
        let mut outgoing = Outgoing::default();
        send_three(&mut outgoing, &mut stream);
        assert_eq!(stream.taken, WHOLE[..2]);
        outgoing.flush(&mut stream).unwrap();
        assert_eq!(stream.taken, WHOLE);
    }

    #[test]
    fn what_is_kept_has_a_limit_and_a_frame_beyond_it_is_refused_whole() {
        let mut stream = Narrow { taken: vec![], room: 1, step: usize::MAX };
        let mut outgoing = Outgoing::default();
        let frame = vec![1; 60_000];
        let mut sent = 0;
        while outgoing.send(&[IoSlice::new(&frame)], &mut stream).is_ok() {
            sent += 1;
            assert!(outgoing.0.len() <= LIMIT);
        }
        stream.room = usize::MAX;
        outgoing.flush(&mut stream).unwrap();
        assert_eq!(stream.taken.len(), sent * (LENGTH_LEN + frame.len()));
        assert!(outgoing.0.capacity() == 0, "memory is given back");
    }
}
