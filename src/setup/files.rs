//! The guest's `resolv.conf` and `hosts`: their texts, and how they come to lie over the host's.
//!
//! The files live on a tmpfs of the guest's own mount namespace and are bind-mounted over the
//! host's, symbolic links followed. The tmpfs has no name once that is done. The host sees none of
//! it: mount events travel from the host into the guest, not back (`MS_SLAVE`).
//!
//! ```text
//!   tmpfs on /tmp (for a moment)      /etc/resolv.conf -> /run/systemd/resolve/stub-resolv.conf
//!     resolv.conf  --bind-->                               ^ this file
//!     hosts        --bind-->          /etc/hosts
//! ```

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::gate::AddressPlan;

/// Names under which a guest finds its host: ours, and those that users of docker and podman
/// expect.
pub const HOST_NAMES: [&str; 3] =
    ["host.tapway.internal", "host.docker.internal", "host.containers.internal"];

/// A name that the guest's `hosts` file resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// The address.
    pub address: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// The files that the guest sees instead of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivateFiles {
    /// `/etc/resolv.conf`; `None` leaves the host's in place.
    pub resolv_conf: Option<String>,
    /// `/etc/hosts`.
    pub hosts: String,
}

/// The text of a `resolv.conf` that sends every question to the plan's DNS addresses.
pub fn resolv_conf(plan: &AddressPlan, search: &[String]) -> String {
    let mut text = String::from("# Written by tapway: the gateway asks the host's resolvers.\n");
    for server in [plan.resolvers(false), plan.resolvers(true)].concat() {
        let _ = writeln!(text, "nameserver {server}"); // a String takes everything
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text.push_str("options edns0\n");
    text
}

/// The text of a `hosts` file: `entries`, then the host's own file, then the guest's name if
/// nothing before knows it. The first line that has a name wins, so `entries` overrule the host's
/// file.
pub fn hosts(entries: &[HostEntry], host_file: &str, guest: &[IpAddr], hostname: &str) -> String {
    let mut text = String::from("# Written by tapway.\n");
    for HostEntry { address, names } in entries {
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text.push_str(host_file);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let known = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .any(|line| line.split_whitespace().skip(1).any(|name| name == hostname));
    if !known && !hostname.is_empty() {
        for address in guest {
            let _ = writeln!(text, "{address}\t{hostname}");
        }
    }
    text
}

/// What failed while the files were put in place.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct MountError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Puts `files` in place in the current mount namespace, which must be the caller's own, and
/// returns a descriptor through which the guest's `resolv.conf` can be rewritten later. A file that
/// the host does not have cannot be covered: that is logged, and the guest goes without.
pub(crate) fn mount_private(files: &PrivateFiles) -> Result<Option<OwnedFd>, MountError> {
    let fail = |what| move |e: nix::Error| MountError { what, source: e.into() };
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(fail("detach the guest's mounts from the host's"))?;

    // Opened before the tmpfs covers anything.
    let resolv_target = files.resolv_conf.as_ref().and_then(|_| target("/etc/resolv.conf"));
    let hosts_target = target("/etc/hosts");
    let Some(scratch) =
        ["/tmp", "/run", "/var", "/etc"].into_iter().find(|dir| Path::new(dir).is_dir())
    else {
        return Ok(None);
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tapway"), scratch, Some("tmpfs"), flags, Some("mode=0755,size=1m"))
        .map_err(fail("mount a tmpfs for the guest's resolv.conf and hosts"))?;
    let result = place(files, scratch, resolv_target, hosts_target);
    let unmounted = umount2(scratch, MntFlags::MNT_DETACH)
        .map_err(fail("take away the name of the tmpfs for the guest's files"));
    let resolv_conf = result?;
    unmounted?;
    Ok(resolv_conf)
}

fn place(
    files: &PrivateFiles,
    scratch: &str,
    resolv_target: Option<File>,
    hosts_target: Option<File>,
) -> Result<Option<OwnedFd>, MountError> {
    if let Some(target) = hosts_target {
        cover(&target, &format!("{scratch}/hosts"), &files.hosts)
            .map_err(|source| MountError { what: "give the guest its own /etc/hosts", source })?;
    }
    let Some((target, text)) = resolv_target.zip(files.resolv_conf.as_deref()) else {
        return Ok(None);
    };
    let file = cover(&target, &format!("{scratch}/resolv.conf"), text)
        .map_err(|source| MountError { what: "give the guest its own /etc/resolv.conf", source })?;
    Ok(Some(file.into()))
}

/// The file behind `path`, symbolic links followed, as a place to mount on.
fn target(path: &str) -> Option<File> {
    match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
        Ok(file) => Some(file),
        Err(e) => {
            tracing::warn!("the guest gets no {path} of its own, because the host has none: {e}");
            None
        }
    }
}

/// Writes `text` to the new file `source` and mounts it over `target`.
fn cover(target: &File, source: &str, text: &str) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(source)?;
    // Whatever the caller's umask: other users of the guest read these files too.
    file.set_permissions(Permissions::from_mode(0o644))?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    let none: Option<&str> = None;
    mount(Some(source), target.as_str(), none, MsFlags::MS_BIND, none)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Mac;
    use crate::gate::{Habits, Plan4, Plan6};

    fn plan() -> AddressPlan {
        AddressPlan {
            v4: Some(Plan4 {
                guest: [10, 7, 0, 100].into(),
                prefix: 24,
                gateway: [10, 7, 0, 2].into(),
                dns: Some([10, 7, 0, 3].into()),
            }),
            v6: Some(Plan6 {
                guest: "fd00:7::100".parse().unwrap(),
                prefix: 64,
                gateway: "fd00:7::2".parse().unwrap(),
                gateway_link_local: "fe80::2".parse().unwrap(),
                dns: "fd00:7::3".parse().ok(),
            }),
            gateway_mac: Mac([0x52, 0x55, 10, 7, 0, 2]),
            guest_mac: Mac([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            host_loopback: vec![],
            search: vec![],
            sharing: None,
            habits: Habits::default(),
        }
    }

    #[test]
    fn resolv_conf_names_the_forwarder_of_each_family() {
        let text = resolv_conf(&plan(), &["a.example".into(), "b.example".into()]);
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "nameserver 10.7.0.3",
                "nameserver fd00:7::3",
                "search a.example b.example",
                "options edns0"
            ]
        );
        let text = resolv_conf(&AddressPlan { v6: None, ..plan() }, &[]);
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            ["nameserver 10.7.0.3", "options edns0"]
        );
    }

    #[test]
    fn entries_stand_before_the_hosts_own_lines() {
        let entry = HostEntry {
            address: "192.0.2.9".parse().unwrap(),
            names: vec!["db".into(), "db.example".into()],
        };
        let guest = ["10.7.0.100".parse().unwrap(), "fd00:7::100".parse().unwrap()];
        let text = hosts(&[entry], "127.0.0.1 localhost", &guest, "box");
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            [
                "192.0.2.9\tdb db.example",
                "127.0.0.1 localhost",
                "10.7.0.100\tbox",
                "fd00:7::100\tbox"
            ]
        );
    }

    #[test]
    fn a_hostname_that_the_host_resolves_is_left_to_it() {
        let guest = ["10.7.0.100".parse().unwrap()];
        let text = hosts(&[], "127.0.1.1 box.example box\n", &guest, "box");
        assert!(!text.contains("10.7.0.100"));
        let text = hosts(&[], "127.0.1.1 boxes # box\n", &guest, "box");
        assert!(text.ends_with("10.7.0.100\tbox\n"));
    }
}
