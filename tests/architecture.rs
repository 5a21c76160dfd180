//! Who may use whom: the dependency rows and doors that the crate's first page draws, checked
//! against every path in `src/`.
//!
//! Reads source text, not types: comments and strings are blanked out, `crate::` paths are taken
//! apart, groups in braces included. Modules of tests obey the same rules.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by row. A room uses rooms of rows above its own; `stack::…` names one room of the stack.
const ROWS: &[&[&str]] = &[
    &["base"],
    &["sys", "stack::wire"],
    &["gate"],
    &["stack::link", "stack::ip", "stack::tcp", "stack::udp", "stack::icmp", "stack::services"],
    &["observe"],
    &["setup", "control"],
    &["engine"],
    &["cli", "launch"],
    &["main"],
];

/// Paths within a row that are allowed: from, to, and how the path has to begin.
const WITHIN_ROW: &[(&str, &str)] =
    &[("stack::icmp", "crate::stack::ip"), ("setup", "crate::control::lifecycle")];

/// Rooms that touch no system: they get time, frames and events as arguments (D7).
const PURE: &[&str] = &[
    "base",
    "gate",
    "stack::wire",
    "stack::link",
    "stack::ip",
    "stack::tcp",
    "stack::udp",
    "stack::icmp",
    "stack::services",
];

/// Rooms that pure rooms may not use although they stand above them.
const IMPURE: &[&str] = &["sys"];

/// A crate, the places whose text may name it, and what it is for.
struct Door {
    crate_name: &'static str,
    places: &'static [&'static str],
    because: &'static str,
}

const DOORS: &[Door] = &[
    Door {
        crate_name: "smoltcp",
        places: &["src/stack/wire/"],
        because: "wire formats come through stack::wire (D2)",
    },
    Door {
        crate_name: "tokio",
        places: &["src/control/", "src/sys/readiness.rs", "src/launch/", "src/main/instance.rs"],
        because: "only the control thread is asynchronous (D5)",
    },
    Door { crate_name: "clap", places: &["src/cli/", "src/main.rs"], because: "argv ends in cli" },
    Door {
        crate_name: "clap_complete",
        places: &["src/cli/", "src/main.rs"],
        because: "argv ends in cli",
    },
];

/// One file of `src/`, with comments and strings blanked out.
struct Source {
    /// Relative to the crate, with `/`.
    path: String,
    room: String,
    code: String,
}

fn list(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("src can be listed") {
        let path = entry.expect("an entry of src can be read").path();
        if path.is_dir() {
            // Unit tests may drive a room with whatever they like.
            if path.file_name().is_some_and(|name| name == "tests") {
                continue;
            }
            list(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![];
    list(&root.join("src"), &mut files);
    files.sort();
    let source = |file: PathBuf| {
        let path = file.strip_prefix(root).expect("files lie below the root");
        let path = path.to_str().expect("file names are ASCII").to_owned();
        let text = fs::read_to_string(&file).expect("a source file can be read");
        Source { room: room_of(&path), code: blank(&text), path }
    };
    files.into_iter().map(source).collect()
}

/// `src/stack/tcp/rtt.rs` is in `stack::tcp`, `src/engine/io.rs` in `engine`.
fn room_of(path: &str) -> String {
    let mut parts = path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
    let first = parts.next().unwrap_or_default();
    match (first, parts.next()) {
        ("stack", Some("mod")) => "lib".to_owned(),
        ("stack", Some(room)) => format!("stack::{room}"),
        _ => first.to_owned(),
    }
}

/// The text with comments, string and character literals replaced by spaces; lines stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => find(bytes, at, b"\n"),
            [b'/', b'*', ..] => find(bytes, at + 2, b"*/") + 2,
            [b'r', b'#', b'"', ..] => find(bytes, at + 3, b"\"#") + 2,
            [b'"', ..] => end_of_string(bytes, at),
            [b'\'', b'\\', ..] => find(bytes, at + 3, b"'") + 1,
            [b'\'', _, b'\'', ..] => at + 3,
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut code[at..end.min(bytes.len())] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let found = rest.windows(needle.len()).position(|window| window == needle);
    found.map_or(bytes.len(), |position| from + position)
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Every path in `code` that begins with `first`, groups taken apart, with its line number.
fn paths(code: &str, first: &str) -> Vec<(usize, String)> {
    let mut found = vec![];
    for (at, _) in code.match_indices(first) {
        let before = code[..at].chars().next_back();
        let after = &code[at + first.len()..];
        let inside_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        if inside_word || !after.trim_start().starts_with("::") {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let mut expanded = vec![];
        expand(first, after, &mut expanded);
        found.extend(expanded.into_iter().map(|path| (line, path)));
    }
    found
}

/// Continues `prefix` with what stands in `rest`; returns what is left of it.
fn expand<'a>(prefix: &str, rest: &'a str, found: &mut Vec<String>) -> &'a str {
    let rest = rest.trim_start();
    let Some(rest) = rest.strip_prefix("::") else {
        found.push(prefix.to_owned());
        return rest;
    };
    let mut rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group.trim_start();
        while !rest.is_empty() && !rest.starts_with('}') {
            let (word, after) = word(rest);
            rest = expand(&format!("{prefix}::{word}"), after, found).trim_start();
            // Aliases, commas and globs say nothing about the target.
            rest = rest.trim_start_matches(|c: char| c != '}' && c != ',').trim_start_matches(',');
            rest = rest.trim_start();
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let (word, after) = word(rest);
    expand(&format!("{prefix}::{word}"), after, found)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

/// The room that a `crate::` path leads to; `None` for what is not in a room.
fn room_of_path(path: &str) -> Option<String> {
    let mut words = path.split("::").skip(1);
    match (words.next()?, words.next()) {
        ("stack", room) => {
            room.filter(|room| !room.is_empty()).map(|room| format!("stack::{room}"))
        }
        ("" | "self", _) => None,
        (room, _) => Some(room.to_owned()),
    }
}

/// Every chain of `super::`, with its line number and length.
fn climbs(code: &str) -> Vec<(usize, usize)> {
    let mut found = vec![];
    let mut rest = 0;
    while let Some(at) = code[rest..].find("super::").map(|at| rest + at) {
        let mut end = at;
        while code[end..].starts_with("super::") {
            end += "super::".len();
        }
        found.push((code[..at].matches('\n').count() + 1, (end - at) / "super::".len()));
        rest = end;
    }
    found
}

/// How many modules deep a file's code lies in its room; a module of tests in it is one deeper.
fn depth(source: &Source) -> usize {
    let stack = usize::from(source.room.starts_with("stack::"));
    let file = source.path.trim_end_matches("/mod.rs").matches('/').count();
    file - 1 - stack + usize::from(source.code.contains("mod tests {"))
}

fn row_of(room: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&room))
}

/// Why `source` may not use `path`, if it may not.
fn objection(room: &str, path: &str) -> Option<String> {
    let target = room_of_path(path)?;
    if room == "lib" || target == room {
        return None;
    }
    let Some(from) = row_of(room) else { return Some(format!("{room} stands in no row")) };
    let Some(to) = row_of(&target) else { return Some(format!("{target} stands in no row")) };
    if PURE.contains(&room) && IMPURE.contains(&target.as_str()) {
        return Some(format!("{room} is pure and does not use {target}"));
    }
    if to < from {
        return None;
    }
    let named = |(who, what): &(&str, &str)| *who == room && path.starts_with(what);
    if to == from && WITHIN_ROW.iter().any(named) {
        return None;
    }
    Some(format!("{room} (row {}) does not use {target} (row {})", from + 1, to + 1))
}

fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn rooms_use_the_rows_above_them() {
    let mut complaints = vec![];
    for source in sources() {
        let first = if source.room == "main" { "tapway" } else { "crate" };
        for (line, path) in paths(&source.code, first) {
            if let Some(why) = objection(&source.room, &path) {
                complaints.push(format!("{}:{line}: {path}: {why}", source.path));
            }
        }
        for (line, supers) in climbs(&source.code) {
            if supers > depth(&source) {
                let rule = "super:: leaves the room; name the other room from crate::";
                complaints.push(format!("{}:{line}: {rule}", source.path));
            }
        }
    }
    report(complaints);
}

#[test]
fn foreign_crates_come_in_by_their_door() {
    let mut complaints = vec![];
    for source in sources() {
        for door in DOORS {
            if door.places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (line, path) in paths(&source.code, door.crate_name) {
                complaints.push(format!("{}:{line}: {path}: {}", source.path, door.because));
            }
        }
    }
    report(complaints);
}

#[test]
fn pure_rooms_touch_no_system() {
    let mut complaints = vec![];
    let pure = |source: &&Source| {
        PURE.contains(&source.room.as_str()) && !source.path.ends_with("/tests.rs")
    };
    for source in sources().iter().filter(pure) {
        for first in ["libc", "nix", "socket2", "tokio", "std"] {
            for (line, path) in paths(&source.code, first) {
                let allowed = match first {
                    // Constants only: what an errno means to the guest.
                    "nix" => path.starts_with("nix::errno"),
                    "std" => !["std::fs", "std::os", "std::thread", "std::process", "std::env"]
                        .iter()
                        .any(|system| path.starts_with(system)),
                    _ => false,
                };
                if !allowed {
                    let rule = format!("{} is pure: no system calls (D7)", source.room);
                    complaints.push(format!("{}:{line}: {path}: {rule}", source.path));
                }
            }
        }
    }
    report(complaints);
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let mut complaints = vec![];
    for source in sources().iter().filter(|source| source.room != "sys") {
        for (number, line) in source.code.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| word == "unsafe") {
                let rule = "unsafe code belongs below src/sys";
                complaints.push(format!("{}:{}: {rule}", source.path, number + 1));
            }
        }
    }
    report(complaints);
}

#[test]
fn every_room_of_the_source_stands_in_a_row() {
    for source in sources() {
        assert!(
            source.room == "lib" || row_of(&source.room).is_some(),
            "{}: {} stands in no row",
            source.path,
            source.room
        );
    }
}

#[test]
fn the_reader_sees_what_it_has_to() {
    let code = blank(
        "use crate::{base::{Mac, Seq}, stack::wire as w}; // crate::sys\nlet s = \"crate::cli\";",
    );
    let found: Vec<String> = paths(&code, "crate").into_iter().map(|(_, path)| path).collect();
    assert_eq!(found, ["crate::base::Mac", "crate::base::Seq", "crate::stack::wire"]);
    assert!(objection("base", "crate::gate::Plan4").is_some());
    assert!(objection("stack::tcp", "crate::stack::udp").is_some());
    assert!(objection("stack::tcp", "crate::sys::clock").is_some());
    assert!(objection("setup", "crate::control::dns").is_some());
    assert_eq!(objection("setup", "crate::control::lifecycle::Life"), None);
    assert_eq!(objection("stack::icmp", "crate::stack::ip::parse_v4"), None);
    assert_eq!(objection("engine", "crate::stack::tcp"), None);
}
