//! A capture file of the guest link: what crosses the TAP, as `tcpdump -r` and Wireshark read it.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, PcapError, TsResolution};

/// Longest frame that is kept whole: what libpcap and Wireshark take at most, which is more than
/// the largest frame towards a guest.
const SNAP_LEN: u32 = 262_144;

/// Writes frames to a capture file. Each frame is in the file when [`Capture::frame`] returns, so
/// that the capture of a process that is killed ends with the last frame.
pub struct Capture<W: Write> {
    writer: PcapWriter<W>,
}

impl<W: Write> Capture<W> {
    /// Begins a capture on `file`.
    pub fn new(file: W) -> io::Result<Capture<W>> {
        let header = PcapHeader {
            snaplen: SNAP_LEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(file, header).map_err(io_error)?;
        Ok(Capture { writer })
    }

    /// Adds a frame, which begins with its Ethernet header. `time` is since the Unix epoch.
    pub fn frame(&mut self, time: Duration, frame: &[u8]) -> io::Result<()> {
        let kept = &frame[..frame.len().min(SNAP_LEN as usize)];
        let packet = PcapPacket {
            timestamp: time,
            // A frame on a TAP is below 256 KiB.
            orig_len: frame.len() as u32,
            data: Cow::Borrowed(kept),
        };
        self.writer.write_packet(&packet).map_err(io_error)?;
        Ok(())
    }
}

/// What the file said. The writer's own words for it are of reading.
fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_form_of_libpcap() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file).unwrap();
        capture.frame(Duration::new(3, 5), &[0xaa; 20]).unwrap();
        // pcap(5): nanosecond magic, version 2.4, link type 1 (Ethernet), in one byte order.
        let big_endian = file[0] == 0xa1;
        let word = |at: usize| {
            let bytes = [file[at], file[at + 1], file[at + 2], file[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        assert_eq!(word(0), 0xa1b2_3c4d);
        assert_eq!(word(20), 1);
        assert_eq!([word(24), word(28), word(32), word(36)], [3, 5, 20, 20]);
        assert_eq!(file[40..], [0xaa; 20]);
    }

    #[test]
    fn a_full_disk_is_named_as_one() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let refused = Capture::new(Full).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }
}
