//! Which instances run, and which of them a command line means.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::control::api::{Client, ClientError, Directory, Places};
use crate::observe::Info;
use crate::setup::{InstanceName, NameLock};

/// The socket files of a user's instances.
#[derive(Debug)]
pub struct Instances {
    directories: Vec<Directory>,
    /// Whose they are: the id to which their names belong.
    owner: u32,
}

/// One instance that may be running: a socket file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    directory: &'a Directory,
    name: &'a str,
}

/// Why no instance is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nothing runs by this name.
    #[error("no instance named {name} is running; {}", describe(running))]
    Unknown {
        /// As typed.
        name: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// None is named, and none runs.
    #[error("no instance is running")]
    None,
    /// None is named, and several run.
    #[error("which instance? {}", describe(.0))]
    Several(Vec<String>),
}

fn describe(running: &[String]) -> String {
    match running {
        [] => "none is".to_owned(),
        [one] => format!("{one} is"),
        several => format!("running are {}", several.join(", ")),
    }
}

impl SelectError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            SelectError::Unknown { .. } => "`tapway ps` lists your instances",
            SelectError::None => "`tapway run` and `tapway attach` start one",
            SelectError::Several(_) => "name it after the command, as in `tapway flows NAME`",
        }
    }
}

impl<'a> Candidate<'a> {
    pub(super) fn client(self) -> Client<'a> {
        Client::new(self.directory, self.name)
    }

    pub(super) fn name(self) -> &'a str {
        self.name
    }
}

impl Instances {
    /// Those of this user, wherever their sockets are.
    pub fn of_this_user() -> Instances {
        Instances::at(&Places::of_this_user())
    }

    /// Those whose sockets are in `places`.
    pub fn at(places: &Places) -> Instances {
        Instances { directories: places.existing(), owner: places.owner() }
    }

    /// The names of all socket files, sorted; some may be stale.
    pub fn names(&self) -> Vec<(usize, String)> {
        let of = |(place, directory): (usize, &Directory)| {
            directory.names().into_iter().map(move |name| (place, name)).collect::<Vec<_>>()
        };
        let mut names: Vec<_> = self.directories.iter().enumerate().flat_map(of).collect();
        names.sort_by(|one, other| one.1.cmp(&other.1));
        names
    }

    /// Asks every instance who it is, in the order of names. Stale socket files are removed.
    pub fn running(&self) -> Vec<(String, Result<Info, ClientError>)> {
        let ask = |(place, name): (usize, String)| {
            let directory = self.directories.get(place)?;
            match Client::new(directory, &name).info() {
                Err(ClientError::Absent(_)) => {
                    self.forget(directory, &name);
                    None
                }
                answer => Some((name, answer)),
            }
        };
        self.names().into_iter().filter_map(ask).collect()
    }

    /// The names of those that listen. Stale socket files are removed.
    pub fn up_and_tidied(&self) -> Vec<String> {
        self.tidy(|_| true);
        self.up()
    }

    /// Removes the stale socket files of instances that were named by their process and killed, of
    /// which helpers of engines may leave one each.
    pub fn tidy_helpers(&self) {
        let is_gone = |name: &str| {
            let (_, pid) = name.rsplit_once('-')?;
            Some(kill(Pid::from_raw(pid.parse().ok()?), None) == Err(Errno::ESRCH))
        };
        self.tidy(|name| is_gone(name).unwrap_or(false));
    }

    /// Removes those socket files that `may_be` stale and are.
    fn tidy(&self, may_be: impl Fn(&str) -> bool) {
        for (place, name) in self.names() {
            if let Some(directory) = self.directories.get(place)
                && may_be(&name)
                && Client::new(directory, &name).is_absent()
            {
                self.forget(directory, &name);
            }
        }
    }

    /// Removes a socket file at which nobody listens, unless an instance is just starting: it
    /// then holds the name.
    fn forget(&self, directory: &Directory, name: &str) {
        let Ok(name) = name.parse::<InstanceName>() else { return };
        if let Ok(_lock) = NameLock::take(&name, self.owner) {
            // Another `tapway ps` may have been faster.
            let _ = directory.remove(&name.to_string());
        }
    }

    /// The directory of the instance `name`, whether it runs or not.
    fn directory(&self, name: &str) -> Option<&Directory> {
        let listens = |directory: &&Directory| Client::new(directory, name).is_up();
        self.directories.iter().find(listens)
    }

    /// Calls `with` for the instance that is meant: the one named, or the only one that runs.
    pub(super) fn with<T>(
        &self,
        name: Option<&str>,
        with: impl FnOnce(Candidate<'_>) -> T,
    ) -> Result<T, SelectError> {
        if let Some(name) = name {
            return match self.directory(name) {
                Some(directory) => Ok(with(Candidate { directory, name })),
                None => Err(SelectError::Unknown { name: name.to_owned(), running: self.up() }),
            };
        }
        let mut running = self.up();
        match (running.pop(), running.is_empty()) {
            (None, _) => Err(SelectError::None),
            (Some(only), true) => self.with(Some(&only), with),
            (Some(last), false) => {
                running.push(last);
                Err(SelectError::Several(running))
            }
        }
    }

    /// Whether an instance of this name runs.
    pub(super) fn is_up(&self, name: &str) -> bool {
        self.directory(name).is_some()
    }

    /// The names of those that listen.
    pub fn up(&self) -> Vec<String> {
        let listens = |(place, name): (usize, String)| {
            let directory = self.directories.get(place)?;
            Client::new(directory, &name).is_up().then_some(name)
        };
        self.names().into_iter().filter_map(listens).collect()
    }
}
