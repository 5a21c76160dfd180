//! Command lines as `getopt_long(3)` of the GNU C library reads them: what the programs do whose
//! names tapway answers to, and what their callers count on.
//!
//! Long options may be shortened as long as they stay unambiguous, take their value after `=` or
//! as the next word, and may be repeated; short ones may be bundled with their value attached;
//! `--` ends the options. Options may follow other words ([`Order::Permute`]) or end at the first
//! of them ([`Order::Posix`]). What is wrong is said in the library's words, which engines search
//! for.
//!
//! Items come in the order of the command line, so that whoever acts on them one by one acts as a
//! loop around `getopt_long` does: the first mistake counts, `--help` hides what follows it. A
//! caller stops at the first error.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// An option of a table.
#[derive(Clone, Copy, Debug)]
pub struct Flag<K> {
    /// Its long name, without dashes.
    pub long: Option<&'static str>,
    /// Its short name, a printable ASCII character other than `-` and `:`.
    pub short: Option<u8>,
    /// Whether it takes a value.
    pub takes_value: bool,
    /// What it means. Two options that mean the same may share a beginning: no ambiguity then.
    pub key: K,
}

impl<K> Flag<K> {
    /// A long option.
    pub const fn long(name: &'static str, takes_value: bool, key: K) -> Flag<K> {
        Flag { long: Some(name), short: None, takes_value, key }
    }

    /// An option with both names.
    pub const fn both(short: u8, name: &'static str, takes_value: bool, key: K) -> Flag<K> {
        Flag { long: Some(name), short: Some(short), takes_value, key }
    }
}

/// Whether options may follow other words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// They may.
    Permute,
    /// The first other word ends them.
    Posix,
}

/// A part of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<K> {
    /// An option and its value, which is there if and only if the option takes one.
    Option(K, Option<OsString>),
    /// Another word.
    Word(OsString),
}

/// A command line that the table does not allow, in the words of the GNU C library, without the
/// name of the program, which goes before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GetoptError {
    /// A long option that is none.
    #[error("unrecognized option '--{0}'")]
    Unrecognized(String),
    /// A beginning of several.
    #[error("option '--{typed}' is ambiguous; possibilities:{}", quoted(.possible))]
    Ambiguous {
        /// As typed.
        typed: String,
        /// Those that it may be.
        possible: Vec<&'static str>,
    },
    /// A value for a long option that takes none.
    #[error("option '--{0}' doesn't allow an argument")]
    Unwanted(&'static str),
    /// A long option without its value.
    #[error("option '--{0}' requires an argument")]
    Missing(&'static str),
    /// A short option that is none.
    #[error("invalid option -- '{}'", .0.escape_ascii())]
    Invalid(u8),
    /// A short option without its value.
    #[error("option requires an argument -- '{}'", .0.escape_ascii())]
    MissingShort(u8),
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!(" '--{name}'")).collect()
}

/// A command line on its way through a table.
#[derive(Debug)]
pub struct Getopt<'a, K> {
    table: &'a [Flag<K>],
    order: Order,
    words: std::vec::IntoIter<OsString>,
    /// What is left of a bundle of short options.
    bundle: Vec<u8>,
    options_ended: bool,
}

impl<'a, K: Copy + PartialEq> Getopt<'a, K> {
    /// Reads `arguments`, without the program's name, by `table`.
    pub fn new(table: &'a [Flag<K>], order: Order, arguments: Vec<OsString>) -> Getopt<'a, K> {
        Getopt {
            table,
            order,
            words: arguments.into_iter(),
            bundle: Vec::new(),
            options_ended: false,
        }
    }

    fn long(&mut self, typed: &[u8]) -> Result<Item<K>, GetoptError> {
        let text = || String::from_utf8_lossy(typed).into_owned();
        let (name, value) = match typed.iter().position(|&byte| byte == b'=') {
            Some(at) => (&typed[..at], Some(&typed[at + 1..])),
            None => (typed, None),
        };
        let (flag, full) = self.named(name, text)?;
        let value = match (flag.takes_value, value) {
            (true, Some(value)) => Some(OsStr::from_bytes(value).to_owned()),
            (true, None) => Some(self.words.next().ok_or(GetoptError::Missing(full))?),
            (false, Some(_)) => return Err(GetoptError::Unwanted(full)),
            (false, None) => None,
        };
        Ok(Item::Option(flag.key, value))
    }

    /// The option that is `name` or, if there is none, the only one that begins so.
    fn named(
        &self,
        name: &[u8],
        typed: impl Fn() -> String,
    ) -> Result<(&'a Flag<K>, &'static str), GetoptError> {
        let mut candidates = Vec::new();
        for flag in self.table {
            let Some(long) = flag.long else { continue };
            if long.as_bytes() == name {
                return Ok((flag, long));
            }
            if long.as_bytes().starts_with(name) {
                candidates.push((flag, long));
            }
        }
        let Some(&(first, full)) = candidates.first() else {
            return Err(GetoptError::Unrecognized(typed()));
        };
        let same =
            |other: &Flag<K>| (other.key, other.takes_value) == (first.key, first.takes_value);
        if candidates.iter().all(|(flag, _)| same(flag)) {
            return Ok((first, full));
        }
        let possible = candidates.into_iter().map(|(_, long)| long).collect();
        Err(GetoptError::Ambiguous { typed: typed(), possible })
    }

    /// The first option of the bundle, which is not empty.
    fn short(&mut self) -> Result<Item<K>, GetoptError> {
        let letter = self.bundle.remove(0);
        let flag = self.table.iter().find(|flag| flag.short == Some(letter));
        let flag = flag.ok_or(GetoptError::Invalid(letter))?;
        let value = match (flag.takes_value, self.bundle.is_empty()) {
            (false, _) => None,
            (true, false) => Some(OsString::from_vec(std::mem::take(&mut self.bundle))),
            (true, true) => Some(self.words.next().ok_or(GetoptError::MissingShort(letter))?),
        };
        Ok(Item::Option(flag.key, value))
    }
}

impl<K: Copy + PartialEq> Iterator for Getopt<'_, K> {
    type Item = Result<Item<K>, GetoptError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.bundle.is_empty() {
            return Some(self.short());
        }
        let word = self.words.next()?;
        match word.as_bytes() {
            _ if self.options_ended => Some(Ok(Item::Word(word))),
            b"--" => {
                self.options_ended = true;
                self.next()
            }
            [b'-', b'-', long @ ..] => Some(self.long(long)),
            [b'-', short @ ..] if !short.is_empty() => {
                self.bundle = short.to_vec();
                Some(self.short())
            }
            _ => {
                self.options_ended = self.order == Order::Posix;
                Some(Ok(Item::Word(word)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Flag<char>; 7] = [
        Flag::both(b'm', "mtu", true, 'm'),
        Flag::both(b'c', "configure", false, 'c'),
        Flag::long("macaddress", true, 'a'),
        Flag::long("enable-ipv6", false, '6'),
        Flag::long("no-host", false, 'h'),
        Flag::long("no-hosts", false, 'h'),
        Flag::long("configure-all", false, 'C'),
    ];

    /// Options as `k` or `k=value`, other words as themselves, an error as its text.
    fn read(order: Order, words: &[&str]) -> Vec<String> {
        let words = words.iter().map(OsString::from).collect();
        let mut read = Vec::new();
        for item in Getopt::new(&TABLE, order, words) {
            let text = |os: OsString| os.into_string().unwrap();
            match item {
                Ok(Item::Option(key, None)) => read.push(key.to_string()),
                Ok(Item::Option(key, Some(value))) => read.push(format!("{key}={}", text(value))),
                Ok(Item::Word(word)) => read.push(text(word)),
                Err(error) => {
                    read.push(error.to_string());
                    break;
                }
            }
        }
        read
    }

    #[test]
    fn values_are_attached_or_follow() {
        let words =
            ["--mtu=1", "--mtu", "2", "-m3", "-m", "4", "-cm5", "-cm", "6", "--mtu=", "-m=7"];
        let expected = ["m=1", "m=2", "m=3", "m=4", "c", "m=5", "c", "m=6", "m=", "m==7"];
        assert_eq!(read(Order::Permute, &words), expected);
        // A value is a value, whatever it looks like.
        assert_eq!(read(Order::Posix, &["--mtu", "--", "-m", "-c"]), ["m=--", "m=-c"]);
    }

    #[test]
    fn long_names_may_be_shortened_while_they_mean_one_thing() {
        let words = ["--mt=1", "--mac", "2", "--e", "--configure", "--no", "--no-hosts"];
        assert_eq!(read(Order::Posix, &words), ["m=1", "a=2", "6", "c", "h", "h"]);
    }

    #[test]
    fn other_words_end_the_options_only_in_the_posix_order() {
        let words = ["-c", "-", "w", "-c", "--", "-c", "--"];
        assert_eq!(read(Order::Permute, &words), ["c", "-", "w", "c", "-c", "--"]);
        assert_eq!(read(Order::Posix, &words), ["c", "-", "w", "-c", "--", "-c", "--"]);
        assert_eq!(read(Order::Posix, &["-c", "--", "-c", "w"]), ["c", "-c", "w"]);
    }

    #[test]
    fn mistakes_are_told_in_the_librarys_words() {
        for (word, text) in [
            ("--bogus=1", "unrecognized option '--bogus=1'"),
            ("--m=1", "option '--m=1' is ambiguous; possibilities: '--mtu' '--macaddress'"),
            (
                "--conf",
                "option '--conf' is ambiguous; possibilities: '--configure' '--configure-all'",
            ),
            ("--enable=1", "option '--enable-ipv6' doesn't allow an argument"),
            ("--mt", "option '--mtu' requires an argument"),
            ("-cZ", "invalid option -- 'Z'"),
            ("-cm", "option requires an argument -- 'm'"),
        ] {
            let read = read(Order::Permute, &[word]);
            assert_eq!(read.last().map(String::as_str), Some(text));
        }
    }
}
