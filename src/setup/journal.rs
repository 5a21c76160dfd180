//! A log as programs in the background keep it: to standard error while somebody reads there, then
//! to a file of bounded size or to the system's log.
//!
//! ```text
//!   pasta 0.1.0: /usr/bin/pasta (4711)                 the first line, for ever
//!   0.0014: WARNING: the guest has no IPv6             seconds since the start, severity, text
//! ```
//! A file that is full loses its oldest lines, and the first line tells when. The system's log is a
//! datagram socket (RFC 3164 §4.1.1 for the priority in front). What cannot be written is lost:
//! there is nobody else to tell.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::SetupError;
use super::log::{Line, severity};
use crate::base::Instant;
use crate::sys::clock;

/// The system's log (syslog(3)).
const SYSTEM_LOG: &str = "/dev/log";

/// `LOG_DAEMON`, as it stands in a priority.
const FACILITY: u8 = 3 << 3;

/// The part of a full file that goes, in percent.
const CUT: u64 = 30;

/// A log whose places change over time. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Mutex<Places>>);

/// Where lines go.
#[derive(Debug)]
struct Places {
    started: Instant,
    stderr: bool,
    file: Option<Capped>,
    system: Option<UnixDatagram>,
    name: String,
}

impl Journal {
    /// A journal of the program `name` to standard error, and to a file at `path`, made anew, that
    /// holds at most `limit` bytes.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(name: &str, path: Option<&Path>, limit: u64) -> Result<Journal, SetupError> {
        let started = clock::now();
        let file = match path {
            None => None,
            Some(path) => {
                let fail =
                    |source| SetupError::Output { kind: "log file", path: path.to_owned(), source };
                // It is read as well, when it is cut.
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true).mode(0o600);
                let file = options.open(path).map_err(fail)?;
                Some(Capped::new(file, &title(name), limit).map_err(fail)?)
            }
        };
        // Later it may be out of sight. A host without one has no use for what would be said there.
        let system = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect(SYSTEM_LOG)?;
            Ok(socket)
        });
        let system = system.ok().filter(|_| path.is_none());
        let places = Places { started, stderr: true, file, system, name: name.to_owned() };
        Ok(Journal(Arc::new(Mutex::new(places))))
    }

    /// Standard error is nobody's any more: what does not go to a file goes to the system's log.
    pub fn detach(&self) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.stderr = false;
    }

    fn write(&self, level: Level, text: &str) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let time = clock::now().since(places.started);
        if places.stderr {
            // With standard error gone there is nowhere left to say so.
            let _ = writeln!(io::stderr(), "tapway: {}{text}", severity(level));
        } else if let Some(system) = &places.system {
            let name = &places.name;
            let message = format!("<{}>{name}[{}]: {text}", priority(level), std::process::id());
            let _ = system.send(message.as_bytes());
        }
        if let Some(file) = &mut places.file {
            let stamp = stamp(time);
            let line = format!("{stamp}: {}{text}\n", mark(level));
            let _ = file.append(&line, &stamp);
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.write(*event.metadata().level(), &line.to_string());
    }
}

/// What the program is, for the first line.
fn title(name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let program = std::env::current_exe().unwrap_or_default();
    format!("{name} {version}: {} ({})", program.display(), std::process::id())
}

/// Seconds, and four digits of the rest.
fn stamp(time: std::time::Duration) -> String {
    format!("{}.{:04}", time.as_secs(), time.subsec_micros() / 100)
}

fn mark(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR:   ",
        Level::WARN => "WARNING: ",
        Level::INFO => "info:    ",
        Level::DEBUG | Level::TRACE => "         ",
    }
}

/// Facility and severity as one number (RFC 3164 §4.1.1).
fn priority(level: Level) -> u8 {
    FACILITY
        + match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        }
}

/// A file that loses its oldest lines when it is full.
#[derive(Debug)]
struct Capped {
    file: File,
    title: String,
    length: u64,
    limit: u64,
}

impl Capped {
    fn new(file: File, title: &str, limit: u64) -> io::Result<Capped> {
        let mut capped = Capped { file, title: title.to_owned(), length: 0, limit };
        capped.put(&format!("{title}\n"))?;
        Ok(capped)
    }

    /// Appends a line of the time `stamp`.
    fn append(&mut self, line: &str, stamp: &str) -> io::Result<()> {
        if self.length + line.len() as u64 > self.limit {
            self.cut(stamp)?;
        }
        self.put(line)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// Rewrites the file without its oldest part.
    fn cut(&mut self, stamp: &str) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.limit * CUT / 100))?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        // What is left of a line is dropped too.
        let from = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        let rest = String::from_utf8_lossy(&bytes[from..]);
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.length = 0;
        let title = format!("{} - log truncated at {stamp}\n", self.title);
        self.put(&title)?;
        self.put(&rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_keeps_its_title_and_the_newest_lines() {
        let mut file = Capped::new(tempfile::tempfile().unwrap(), "pasta 7: /x (1)", 1000).unwrap();
        for number in 0..500 {
            let line = format!("{number}.0000: info:    number {number} äöü\n");
            file.append(&line, &format!("{number}.0000")).unwrap();
            assert!(file.file.metadata().unwrap().len() <= 1000);
            assert_eq!(file.file.metadata().unwrap().len(), file.length);
        }
        let mut text = String::new();
        file.file.rewind().unwrap();
        file.file.read_to_string(&mut text).unwrap();
        let mut lines = text.lines();
        let title = lines.next().unwrap();
        assert!(title.starts_with("pasta 7: /x (1) - log truncated at "), "{title}");
        let numbers: Vec<u32> =
            lines.map(|line| line.split('.').next().unwrap().parse().unwrap()).collect();
        let expected: Vec<u32> = (500 - numbers.len() as u32..500).collect();
        assert_eq!(numbers, expected);
        assert!(numbers.len() > 15, "{}", numbers.len());
    }

    #[test]
    fn times_have_four_digits_and_priorities_are_those_of_a_daemon() {
        assert_eq!(stamp(std::time::Duration::from_micros(12_000_740)), "12.0007");
        assert_eq!([Level::ERROR, Level::WARN, Level::INFO].map(priority), [27, 28, 30]);
    }
}
