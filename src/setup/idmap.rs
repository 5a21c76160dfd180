//! Which users and groups exist inside the guest's user namespace (user_namespaces(7), subuid(5)).
//!
//! | caller | inside |
//! |---|---|
//! | has subordinate ranges and `newuidmap` | root (or the caller's own ids) is the caller, the other ids come from the ranges |
//! | has neither | one id: root (or the caller's own ids); `setgroups` is off |
//! | is root | every id that root's own namespace has, as itself |
//!
//! [`IdMaps::plan`] is pure; [`IdMaps::write`] is the parent's part after the child has made its
//! namespace.

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// A run of consecutive ids that belong to the caller (one line of subuid(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// The id behind the last one, if there is one.
    pub(crate) fn end(self) -> Option<u32> {
        self.first.checked_add(self.count)
    }
}

/// Who calls, and which ids are theirs to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Subordinate user ids; empty without `newuidmap`.
    pub subuids: Vec<IdRange>,
    /// Subordinate group ids; empty without `newgidmap`.
    pub subgids: Vec<IdRange>,
    /// The ids that the caller's own namespace has: for root, what it can pass on.
    pub own_uids: Vec<IdRange>,
    /// The same for groups.
    pub own_gids: Vec<IdRange>,
}

/// The lines of subuid(5) and subgid(5), `owner:first:count`: whose, and which ids. Lines that make
/// no sense are passed over, as `newuidmap` does.
pub(crate) fn subordinates(text: &str) -> impl Iterator<Item = (&str, IdRange)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range =
            IdRange { first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        let good = range.count > 0 && range.end().is_some() && fields.next().is_none();
        good.then_some((owner, range))
    })
}

/// Those of the user who is called `name` and has the number `uid`; the files know both.
pub(crate) fn subordinates_of(text: &str, name: Option<&str>, uid: u32) -> Vec<IdRange> {
    let number = uid.to_string();
    let lines = subordinates(text);
    let own = lines.filter(|(owner, _)| Some(*owner) == name || *owner == number);
    own.map(|(_, range)| range).collect()
}

/// One line of `uid_map`: `count` ids from `inside` are those from `outside`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    inside: u32,
    outside: u32,
    count: u32,
}

/// The maps to be written for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMaps {
    uids: Vec<Line>,
    gids: Vec<Line>,
    writer: Writer,
    own_ids: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// We write ourselves, having the privilege.
    Privileged,
    /// We write ourselves the single id that needs none.
    Single,
    /// `newuidmap` and `newgidmap`.
    Helpers,
}

/// Why the maps could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdMapError {
    #[error("write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("run {helper}")]
    Start {
        helper: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{helper} refused: {said}")]
    Refused { helper: &'static str, said: String },
}

impl IdMaps {
    /// Chooses the maps: root inside, or the caller's own ids with `own_ids`.
    pub(crate) fn plan(identity: &Identity, own_ids: bool) -> IdMaps {
        if identity.uid == 0 {
            let itself = |ranges: &[IdRange]| {
                ranges
                    .iter()
                    .map(|r| Line { inside: r.first, outside: r.first, count: r.count })
                    .collect()
            };
            return IdMaps {
                uids: itself(&identity.own_uids),
                gids: itself(&identity.own_gids),
                writer: Writer::Privileged,
                own_ids,
            };
        }
        let (uid, gid) = if own_ids { (identity.uid, identity.gid) } else { (0, 0) };
        if identity.subuids.is_empty() || identity.subgids.is_empty() {
            return IdMaps::single(identity, own_ids);
        }
        IdMaps {
            uids: around(uid, identity.uid, &identity.subuids),
            gids: around(gid, identity.gid, &identity.subgids),
            writer: Writer::Helpers,
            own_ids,
        }
    }

    /// The map that needs no help and no privilege: one user, one group.
    fn single(identity: &Identity, own_ids: bool) -> IdMaps {
        let line = |outside| Line { inside: if own_ids { outside } else { 0 }, outside, count: 1 };
        IdMaps {
            uids: vec![line(identity.uid)],
            gids: vec![line(identity.gid)],
            writer: Writer::Single,
            own_ids,
        }
    }

    /// Writes the maps of the user namespace of `pid`, a child that has just made it, and returns
    /// the lowest and highest group id that then exist inside. Where the privilege or the helpers
    /// turn out not to work, the guest has the single id that needs neither, and the log says so.
    pub(crate) fn write(&self, pid: Pid, identity: &Identity) -> Result<(u32, u32), IdMapError> {
        let own_ids = self.own_ids;
        let (users, groups) = match self.writer {
            Writer::Single => (Ok(false), Ok(false)),
            Writer::Privileged => (
                put(pid, "uid_map", &text(&self.uids)).map(|()| true),
                put(pid, "gid_map", &text(&self.gids)).map(|()| true),
            ),
            Writer::Helpers => self.run_helpers(pid),
        };
        let single = IdMaps::single(identity, own_ids);
        if !matches!(users, Ok(true)) {
            put(pid, "uid_map", &text(&single.uids))?;
        }
        let lines = if matches!(groups, Ok(true)) {
            &self.gids
        } else {
            // An unprivileged writer of gid_map must give up setgroups first.
            put(pid, "setgroups", "deny")?;
            put(pid, "gid_map", &text(&single.gids))?;
            &single.gids
        };
        // Only now, because a child that has died makes all of this fail.
        for e in [users, groups].into_iter().filter_map(Result::err) {
            let e = crate::setup::chain(&e);
            tracing::warn!("the guest has one user or one group only: {e}");
        }
        Ok(bounds(lines))
    }

    /// Runs `newuidmap` and `newgidmap` at the same time: each costs a millisecond of `execve`.
    fn run_helpers(&self, pid: Pid) -> (Result<bool, IdMapError>, Result<bool, IdMapError>) {
        let users = start("newuidmap", pid, &self.uids);
        let groups = start("newgidmap", pid, &self.gids);
        // Both are waited for whatever the first one says: no zombie stays.
        let users = users.and_then(|child| finish("newuidmap", child));
        let groups = groups.and_then(|child| finish("newgidmap", child));
        (users, groups)
    }
}

fn put(pid: Pid, file: &str, text: &str) -> Result<(), IdMapError> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, text).map_err(|source| IdMapError::Write { path, source })
}

fn start(helper: &'static str, pid: Pid, lines: &[Line]) -> Result<Child, IdMapError> {
    Command::new(helper)
        .arg(pid.to_string())
        .args(lines.iter().flat_map(Line::numbers).map(|n| n.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| IdMapError::Start { helper, source })
}

fn finish(helper: &'static str, child: Child) -> Result<bool, IdMapError> {
    let output = child.wait_with_output().map_err(|source| IdMapError::Start { helper, source })?;
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(IdMapError::Refused { helper, said })
}

/// The lowest and highest id inside.
fn bounds(lines: &[Line]) -> (u32, u32) {
    let low = lines.iter().map(|l| l.inside).min().unwrap_or(0);
    let high = lines.iter().map(|l| l.inside.saturating_add(l.count - 1)).max();
    // The highest of all numbers means "no id" (`(gid_t) -1`).
    (low, high.unwrap_or(0).min(u32::MAX - 1))
}

impl Line {
    fn numbers(&self) -> [u32; 3] {
        [self.inside, self.outside, self.count]
    }
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|l| format!("{} {} {}\n", l.inside, l.outside, l.count)).collect()
}

/// `own` inside is `outside`; the other ids, from 0 upwards, are filled from `ranges` in order.
fn around(own: u32, outside: u32, ranges: &[IdRange]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut next = 0;
    for range in ranges {
        let (mut first, mut left) = (range.first, range.count);
        while left > 0 {
            if next == own {
                lines.push(Line { inside: own, outside, count: 1 });
                next += 1;
            }
            let room = if next < own { (own - next).min(left) } else { left };
            // Numbers end below the highest, which means "no id".
            let room = room.min(u32::MAX - 1 - next);
            if room == 0 {
                break;
            }
            lines.push(Line { inside: next, outside: first, count: room });
            next += room;
            first += room;
            left -= room;
        }
    }
    if next <= own {
        lines.push(Line { inside: own, outside, count: 1 });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(subuids: &[(u32, u32)], subgids: &[(u32, u32)]) -> Identity {
        let ranges = |list: &[(u32, u32)]| {
            list.iter().map(|&(first, count)| IdRange { first, count }).collect()
        };
        Identity {
            uid: 1000,
            gid: 1001,
            subuids: ranges(subuids),
            subgids: ranges(subgids),
            own_uids: ranges(&[(0, u32::MAX)]),
            own_gids: ranges(&[(0, u32::MAX)]),
        }
    }

    #[test]
    fn subordinate_ranges_are_found_by_name_and_number_and_bad_lines_passed_over() {
        let text = "bob:100000:65536\nalice:165536:65536\n1000:400000:10\n# no\nalice:x:1\n\
                    alice:7:0\nalice:4294967295:2\nalice:1:2:3\n";
        let ranges = subordinates_of(text, Some("alice"), 1000);
        let ranges: Vec<_> = ranges.into_iter().map(|r| (r.first, r.count)).collect();
        assert_eq!(ranges, [(165_536, 65_536), (400_000, 10)]);
        assert!(subordinates_of(text, None, 1001).is_empty());
        let owners: Vec<_> = subordinates(text).map(|(owner, _)| owner).collect();
        assert_eq!(owners, ["bob", "alice", "1000"]);
    }

    #[test]
    fn root_inside_is_the_caller_and_the_rest_comes_from_the_ranges() {
        let maps = IdMaps::plan(&caller(&[(100_000, 65_536)], &[(200_000, 65_536)]), false);
        assert_eq!(text(&maps.uids), "0 1000 1\n1 100000 65536\n");
        assert_eq!(text(&maps.gids), "0 1001 1\n1 200000 65536\n");
        assert_eq!(bounds(&maps.gids), (0, 65_536));
        assert_eq!(maps.writer, Writer::Helpers);
    }

    #[test]
    fn ones_own_ids_stand_among_those_of_the_ranges() {
        let maps = IdMaps::plan(&caller(&[(100_000, 65_536)], &[(200_000, 500)]), true);
        assert_eq!(text(&maps.uids), "0 100000 1000\n1000 1000 1\n1001 101000 64536\n");
        assert_eq!(text(&maps.gids), "0 200000 500\n1001 1001 1\n");
    }

    #[test]
    fn several_ranges_follow_each_other() {
        let maps = IdMaps::plan(&caller(&[(5000, 10), (9000, 2000)], &[(7000, 1)]), true);
        assert_eq!(text(&maps.uids), "0 5000 10\n10 9000 990\n1000 1000 1\n1001 9990 1010\n");
        assert_eq!(text(&maps.gids), "0 7000 1\n1001 1001 1\n");
    }

    #[test]
    fn without_ranges_there_is_one_id() {
        let maps = IdMaps::plan(&caller(&[(100_000, 65_536)], &[]), false);
        assert_eq!(
            (text(&maps.uids), text(&maps.gids)),
            ("0 1000 1\n".into(), "0 1001 1\n".into())
        );
        assert_eq!(maps.writer, Writer::Single);
        assert_eq!(bounds(&maps.gids), (0, 0));
        let maps = IdMaps::plan(&caller(&[], &[]), true);
        assert_eq!(
            (text(&maps.uids), text(&maps.gids)),
            ("1000 1000 1\n".into(), "1001 1001 1\n".into())
        );
        assert_eq!(bounds(&maps.gids), (1001, 1001));
    }

    #[test]
    fn root_passes_on_every_id_that_it_has() {
        let root = Identity { uid: 0, gid: 0, ..caller(&[(1, 2)], &[(1, 2)]) };
        let maps = IdMaps::plan(&root, false);
        assert_eq!(text(&maps.uids), "0 0 4294967295\n");
        assert_eq!(bounds(&maps.gids), (0, u32::MAX - 1));
        assert_eq!(maps.writer, Writer::Privileged);
    }
}
