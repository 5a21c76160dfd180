//! The log: to standard error as a program speaks to people, to a file with times.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::journal::Journal;
use super::{SetupError, open_output};

/// What a log looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogForm {
    /// A file gets lines with times, without end; without a file, standard error gets all.
    #[default]
    Plain,
    /// That of a [`Journal`] of this program, whose file holds at most so many bytes.
    Journal {
        /// The program.
        name: String,
        /// Bytes.
        limit: u64,
    },
}

/// Begins to log what is at least as severe as `level`, to `file` or to standard error; gives the
/// journal, if it is one.
///
/// # Errors
/// The file cannot be opened.
pub fn start_log(
    level: LevelFilter,
    file: Option<&Path>,
    form: &LogForm,
) -> Result<Option<Journal>, SetupError> {
    if let LogForm::Journal { name, limit } = form {
        let journal = Journal::open(name, file, *limit)?;
        tracing_subscriber::registry().with(journal.clone().with_filter(level)).init();
        return Ok(Some(journal));
    }
    let log = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    match file {
        Some(path) => log.with_writer(Mutex::new(open_output(path, "log file", true)?)).init(),
        None => log.event_format(Plain).with_writer(io::stderr).init(),
    }
    Ok(None)
}

/// `tapway: warning: what happened: why (field value)`, as the program's own errors look.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        writeln!(writer, "tapway: {}{line}", severity(*event.metadata().level()))
    }
}

pub(super) fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error: ",
        Level::WARN => "warning: ",
        Level::INFO => "",
        Level::DEBUG => "debug: ",
        Level::TRACE => "trace: ",
    }
}

/// The parts of an event.
#[derive(Default)]
pub(super) struct Line {
    message: String,
    error: String,
    fields: Vec<String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "error" => self.error = format!("{value:?}"),
            name => self.fields.push(format!("{name} {value:?}")),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.error.is_empty() {
            write!(f, ": {}", self.error)?;
        }
        if !self.fields.is_empty() {
            write!(f, " ({})", self.fields.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_look_like_the_programs_own_messages() {
        let sink = Sink::default();
        let target = sink.clone();
        let log = tracing_subscriber::fmt()
            .event_format(Plain)
            .with_max_level(LevelFilter::INFO)
            .with_writer(move || target.clone());
        tracing::subscriber::with_default(log.finish(), || {
            let error = io::Error::other("no such thing");
            tracing::warn!(%error, port = 80, "it is not there");
            tracing::info!("ready");
            tracing::debug!("not shown");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let expected = "tapway: warning: it is not there: no such thing (port 80)\ntapway: ready\n";
        assert_eq!(text, expected);
    }
}
