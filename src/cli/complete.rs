//! Completion in the user's shell: `tapway completions SHELL` prints a small script that asks
//! tapway itself at every Tab, so that instance names are those that run now and options never lag
//! behind the program.
//!
//! The script sets [`VARIABLE`] to the shell's name and passes `--` and the words of the command
//! line. The library's way to do this is marked unstable: `tests/show.rs` drives bash with it, so
//! that an update cannot break it unseen.

use std::ffi::{OsStr, OsString};
use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;

use super::show::Instances;

/// The variable that marks a question of a completion script.
pub const VARIABLE: &str = "_TAPWAY_COMPLETE";

/// The script for `shell`.
pub(super) fn script(shell: Shell) -> io::Result<Vec<u8>> {
    let mut script = Vec::new();
    if let Some(completer) = Shells::builtins().completer(&shell.to_string()) {
        completer.write_registration(VARIABLE, "tapway", "tapway", "tapway", &mut script)?;
    }
    Ok(script)
}

/// What completes `arguments`, the program's arguments without its name, in the form that the
/// script of `shell` reads; nothing for a shell or question that is none.
pub(super) fn answer(mut command: Command, shell: &OsStr, arguments: &[OsString]) -> Vec<u8> {
    let mut text = Vec::new();
    let shells = Shells::builtins();
    let shell = shell.to_str().and_then(|name| shells.completer(name));
    let words = arguments.iter().position(|word| word == "--").map(|at| &arguments[at + 1..]);
    let (Some(shell), Some(words)) = (shell, words) else { return text };
    command.build();
    let here = std::env::current_dir().ok();
    // A question that cannot be answered is one without completions.
    match shell.write_complete(&mut command, words.to_vec(), here.as_deref(), &mut text) {
        Ok(()) => text,
        Err(_) => Vec::new(),
    }
}

/// Completes the names of instances that run.
pub(super) fn instances() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        Instances::of_this_user().up().into_iter().map(CompletionCandidate::new).collect()
    })
}
