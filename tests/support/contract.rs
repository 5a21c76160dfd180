//! A program's contract at the level of its command line, as a table whose rows run with our binary
//! under that name and, where it is installed, with the original.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{PATIENCE, Ran, binary, loudly, scratch, user};

/// Which programs a row holds for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum For {
    /// The original and ours.
    Both,
    /// Ours: the original that is installed may be older.
    Ours,
}

/// Arguments, exit status, and what has to be in the output and in the messages.
pub(crate) type Row = (For, &'static [&'static str], i32, &'static str, &'static str);

/// Our binary under a name, in a directory that goes away.
pub(crate) fn ours(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = scratch();
    let link = directory.path().join(name);
    symlink(binary(), &link).unwrap();
    (directory, link)
}

/// What comes of a command line of `program`.
pub(crate) fn run(program: &Path, arguments: &[&str]) -> Ran {
    // An original may wait for ever, as where it cannot write its pid file: nothing here may.
    let seconds = (PATIENCE / 1000).to_string();
    let mut command = user("timeout");
    command.args(["-k", "1", &seconds]).arg(program).args(arguments);
    command.output().unwrap().into()
}

/// Runs every row of `table`, with ours under the name of the `original` and with that.
pub(crate) fn check(original: &str, table: &[Row]) {
    let original = Path::new(original);
    let name = original.file_name().and_then(|name| name.to_str()).unwrap();
    let (_directory, ours) = ours(name);
    if !original.exists() {
        loudly(&format!(
            "{} is not installed: the table is not proved against the original",
            original.display()
        ));
    }
    for &(programs, arguments, status, stdout, stderr) in table {
        let mut tried = vec![ours.as_path()];
        tried.extend((programs == For::Both && original.exists()).then_some(original));
        for program in tried {
            let ran = run(program, arguments);
            let context = format!("{} {arguments:?}: {ran:?}", program.display());
            assert_eq!(ran.status, Some(status), "{context}");
            assert!(ran.stdout.contains(stdout) && ran.stderr.contains(stderr), "{context}");
        }
    }
}
