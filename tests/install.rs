//! `contrib/install.sh` and the files for engines beside it: what is installed works under its
//! names, what is removed is gone, what is somebody else's stays.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::{Ran, binary, scratch};

const NAMES: [&str; 4] = ["slirp4netns", "pasta", "pesto", "passt"];

fn contrib(name: &str) -> String {
    format!("{}/contrib/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn install(options: &[&str]) -> Ran {
    let output = Command::new(contrib("install.sh"))
        .args(options)
        .args(["--binary", binary().to_str().unwrap()])
        .env_remove("DESTDIR")
        .output();
    output.unwrap().into()
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries.map(|entry| name(entry).into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn links_lead_to_the_binary_and_are_known_by_their_names() {
    let scratch = scratch();
    let prefix = scratch.path().join("usr");
    let ran = install(&["--prefix", prefix.to_str().unwrap()]);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let links = prefix.join("libexec/tapway");
    for name in NAMES {
        let link = links.join(name);
        assert_eq!(fs::canonicalize(&link).unwrap(), prefix.join("bin/tapway"));
        // As itself tapway does not know this option: it is somebody else who answers.
        let as_native = Command::new(prefix.join("bin/tapway")).arg("--bogus").output().unwrap();
        let by_name = Command::new(&link).arg("--bogus").output().unwrap();
        assert_ne!(as_native.stderr, by_name.stderr, "{name}");
    }
    // Once more over what is there.
    assert_eq!(install(&["--prefix", prefix.to_str().unwrap()]).status, Some(0));

    let ran = install(&["--prefix", prefix.to_str().unwrap(), "--uninstall"]);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert_eq!(entries(&prefix.join("bin")), [""; 0]);
    assert_eq!(entries(&prefix.join("libexec")), [""; 0]);
}

#[test]
fn what_belongs_to_others_is_neither_replaced_nor_removed() {
    let scratch = scratch();
    let prefix = scratch.path().to_str().unwrap();
    let links = scratch.path().join("links");
    fs::create_dir(&links).unwrap();
    fs::write(links.join("pasta"), "the original").unwrap();
    symlink("/bin/true", links.join("passt")).unwrap();
    let options = ["--prefix", prefix, "--links", links.to_str().unwrap()];
    let ran = install(&options);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("links/pasta is not tapway's"), "{ran:?}");
    assert!(!scratch.path().join("bin").exists(), "half an installation");

    let ran = install(&[&options[..], &["--uninstall"]].concat());
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert_eq!(entries(&links), ["passt", "pasta"]);
    assert_eq!(fs::read(links.join("pasta")).unwrap(), b"the original");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_sentence() {
    for (options, sentence) in [
        (&["--prefix", "relative"][..], "install.sh: relative is no absolute path\n"),
        (&["--bogus"], "install.sh: --bogus is no option: see install.sh --help\n"),
    ] {
        let ran = install(options);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), sentence));
    }
    let ran: Ran = Command::new(contrib("install.sh")).arg("--binary").output().unwrap().into();
    assert_eq!(
        (ran.status, ran.stderr.as_str()),
        (Some(1), "install.sh: --binary needs a value\n")
    );
    let nowhere = ["--prefix", "/nonexistent", "--binary", "/nonexistent/tapway"];
    let ran: Ran = Command::new(contrib("install.sh")).args(nowhere).output().unwrap().into();
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("cargo build --release"), "{ran:?}");
}

/// A package is made in a root directory of its own; its links lead to where the package will be.
#[test]
fn a_package_is_installed_below_its_root() {
    let scratch = scratch();
    let output = Command::new(contrib("install.sh"))
        .args(["--prefix", "/usr", "--binary", binary().to_str().unwrap()])
        .env("DESTDIR", scratch.path())
        .output();
    let ran: Ran = output.unwrap().into();
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert!(scratch.path().join("usr/bin/tapway").exists());
    let link = fs::read_link(scratch.path().join("usr/libexec/tapway/pasta")).unwrap();
    assert_eq!(link, Path::new("/usr/bin/tapway"));
}
