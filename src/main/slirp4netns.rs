//! tapway as slirp4netns: its words and its exit status, the same for every failure.

use std::io::{self, Write};
use std::process::ExitCode;

use tapway::cli::native::exit;
use tapway::cli::personality::{Called, Personality};
use tapway::cli::slirp4netns;
use tapway::setup::listen::Handed;

use super::{report, start};

/// `slirp4netns …`.
pub(super) fn main(called: Called) -> ExitCode {
    let status = match slirp4netns::parse(&called.program, called.arguments) {
        // Its callers hand over descriptors by number, and no sockets to publish.
        Ok(draft) => start(draft, Handed::default()).unwrap_or_else(|failure| {
            report(Personality::Slirp4netns, &failure);
            exit::FAILED
        }),
        Err(answer) => {
            // Whoever has closed a standard stream does not want to know.
            let _ = io::stdout().write_all(answer.stdout.as_bytes());
            let _ = io::stderr().write_all(answer.stderr.as_bytes());
            answer.status
        }
    };
    ExitCode::from(status)
}
