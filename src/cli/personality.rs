//! Under which name the program was called, and so whose command line it reads.
//!
//! Engines know tapway's kind by two names and start a helper by its path. A link of that name is
//! all it takes; where a path has to be named `tapway` (a wrapper, a setting that takes one binary
//! for all), `tapway --as NAME …` and `TAPWAY_PERSONALITY=NAME` say the same. What is said most
//! directly counts: `--as` before the name of the file, that before the environment, which a
//! command started by a helper may have inherited.
//!
//! The file's name need only contain the other's, so that `pasta.avx2` and `slirp4netns-1.2` work.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The variable that names a personality.
pub const VARIABLE: &str = "TAPWAY_PERSONALITY";

/// The option that names one, as the first argument of `tapway`.
const OPTION: &str = "--as";

/// A command line that the program understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// Its own.
    Native,
    /// slirp4netns's.
    Slirp4netns,
    /// pasta's: passt for a network namespace.
    Pasta,
    /// passt's: the network of a virtual machine.
    Passt,
    /// That of pesto, the client of pasta's control socket.
    Pesto,
}

impl Personality {
    /// In the order in which names are searched for.
    const ALL: [Personality; 5] = [
        Personality::Pesto,
        Personality::Pasta,
        Personality::Passt,
        Personality::Slirp4netns,
        Personality::Native,
    ];

    /// The name of the program whose command line it is.
    pub fn name(self) -> &'static str {
        match self {
            Personality::Native => "tapway",
            Personality::Slirp4netns => "slirp4netns",
            Personality::Pasta => "pasta",
            Personality::Passt => "passt",
            Personality::Pesto => "pesto",
        }
    }

    /// The one that `name` is exactly.
    fn named(name: &OsStr) -> Option<Personality> {
        Personality::ALL.into_iter().find(|personality| name == personality.name())
    }

    /// The one whose name occurs in that of the file `program`, unless it is our own.
    fn of_program(program: &OsStr) -> Option<Personality> {
        let bytes = program.as_bytes();
        let file = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or(bytes);
        let occurs = |name: &str| file.windows(name.len()).any(|part| part == name.as_bytes());
        let others = Personality::ALL.into_iter().filter(|&p| p != Personality::Native);
        others.into_iter().find(|personality| occurs(personality.name()))
    }
}

impl fmt::Display for Personality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no personality's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{place} {}: there is no such personality; {}",
    .name.display(),
    "it is one of tapway, slirp4netns, pasta, passt, pesto"
)]
pub struct UnknownPersonality {
    place: &'static str,
    name: OsString,
}

/// How the program was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Whose command line follows.
    pub personality: Personality,
    /// The name by which the program speaks of itself: `argv[0]`, or what `--as` says.
    pub program: OsString,
    /// What follows.
    pub arguments: Vec<OsString>,
}

impl Called {
    /// How the program was called by `argv`, where [`VARIABLE`] has the value `variable`.
    ///
    /// # Errors
    /// `--as` or the variable names nobody. An empty variable counts as none.
    pub fn by(
        argv: impl IntoIterator<Item = OsString>,
        variable: Option<OsString>,
    ) -> Result<Called, UnknownPersonality> {
        let mut argv = argv.into_iter();
        // execve(2) allows an empty argv.
        let program = argv.next().unwrap_or_else(|| Personality::Native.name().into());
        let mut arguments: Vec<OsString> = argv.collect();
        if let Some(personality) = Personality::of_program(&program) {
            return Ok(Called { personality, program, arguments });
        }
        let find = |place, name: OsString| {
            Personality::named(&name).ok_or(UnknownPersonality { place, name })
        };
        if let Some((name, words)) = chosen(&arguments) {
            let personality = find(OPTION, name.clone())?;
            arguments.drain(..words);
            return Ok(Called { personality, program: name, arguments });
        }
        let personality = match variable.filter(|name| !name.is_empty()) {
            Some(name) => find(VARIABLE, name)?,
            None => Personality::Native,
        };
        Ok(Called { personality, program, arguments })
    }
}

/// What `--as` says, if that is the first argument, and of how many words it consists.
fn chosen(arguments: &[OsString]) -> Option<(OsString, usize)> {
    let first = arguments.first()?.as_bytes();
    match first.strip_prefix(OPTION.as_bytes())? {
        // Without a name, the empty name is what is wrong.
        b"" => Some((arguments.get(1).cloned().unwrap_or_default(), 2.min(arguments.len()))),
        [b'=', name @ ..] => Some((OsStr::from_bytes(name).to_owned(), 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(argv: &[&str], variable: Option<&str>) -> Result<Called, UnknownPersonality> {
        Called::by(argv.iter().map(OsString::from), variable.map(OsString::from))
    }

    #[test]
    fn the_name_of_the_file_decides() {
        for (argv0, personality) in [
            ("tapway", Personality::Native),
            ("/usr/local/bin/tapway", Personality::Native),
            ("slirp4netns", Personality::Slirp4netns),
            ("/opt/slirp4netns-1.2", Personality::Slirp4netns),
            ("/usr/bin/pasta.avx2", Personality::Pasta),
            ("passt", Personality::Passt),
            ("./pesto", Personality::Pesto),
            // Only the last part of a path is a name.
            ("/home/pasta/bin/tapway", Personality::Native),
            ("/srv/slirp4netns/", Personality::Native),
        ] {
            let called = called(&[argv0, "-x"], None).unwrap();
            assert_eq!((called.personality, &*called.program), (personality, argv0.as_ref()));
            assert_eq!(called.arguments, ["-x"], "{argv0}");
        }
        assert_eq!(called(&[], None).unwrap().personality, Personality::Native);
    }

    #[test]
    fn what_is_said_most_directly_counts() {
        for (argv, variable, personality, program, arguments) in [
            (&["tapway", "--as", "pasta", "1"][..], None, Personality::Pasta, "pasta", &["1"][..]),
            (&["tapway", "--as=pasta"], Some("passt"), Personality::Pasta, "pasta", &[]),
            (&["/b/tapway", "1"], Some("pasta"), Personality::Pasta, "/b/tapway", &["1"]),
            (&["slirp4netns", "1"], Some("pasta"), Personality::Slirp4netns, "slirp4netns", &["1"]),
            // To a link `--as` is an argument like others.
            (&["pasta", "--as", "x"], None, Personality::Pasta, "pasta", &["--as", "x"]),
            (
                &["tapway", "run", "--as", "x"],
                None,
                Personality::Native,
                "tapway",
                &["run", "--as", "x"],
            ),
            (&["tapway", "run"], Some(""), Personality::Native, "tapway", &["run"]),
            (
                &["tapway", "--as", "tapway", "run"],
                Some("pasta"),
                Personality::Native,
                "tapway",
                &["run"],
            ),
        ] {
            let called = called(argv, variable).unwrap();
            assert_eq!(called.personality, personality, "{argv:?}");
            assert_eq!(called.program, program, "{argv:?}");
            assert_eq!(called.arguments, arguments, "{argv:?}");
        }
    }

    #[test]
    fn nobody_elses_name_is_understood() {
        for (argv, variable, named) in [
            (&["tapway", "--as", "vpnkit"][..], None, "--as vpnkit: "),
            (&["tapway", "--as"], None, "--as : "),
            (&["tapway", "--as="], None, "--as : "),
            (&["tapway", "--as", "pasta.avx2"], None, "--as pasta.avx2: "),
            (&["tapway", "ps"], Some("vpnkit"), "TAPWAY_PERSONALITY vpnkit: "),
        ] {
            let message = called(argv, variable).unwrap_err().to_string();
            assert!(message.starts_with(named), "{message:?} does not begin with {named:?}");
        }
    }
}
