//! What the user can do when the kernel refuses: the reasons that an errno stands for on this host.
//!
//! `tapway doctor` checks the same things before anything fails.

use std::fs;

use super::tap::{TUN_DEVICE, TapError};

/// Why a user namespace, or the namespaces that hang on it, may not be made.
pub(crate) fn user_namespace(errno: Option<i32>) -> Option<String> {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if errno == Some(libc::ENOSPC) {
        return Some(
            "the limit of namespaces is reached: as root, raise the sysctls \
             user.max_user_namespaces and user.max_net_namespaces"
                .to_owned(),
        );
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return Some("as root: sysctl -w kernel.unprivileged_userns_clone=1".to_owned());
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Some(
            "AppArmor restricts user namespaces: install tapway's AppArmor profile or, as root, \
             sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
                .to_owned(),
        );
    }
    (errno == Some(libc::EPERM)).then(|| {
        "user namespaces are forbidden here: by a container's seccomp filter, by a security module, \
         or because the process runs in a chroot"
            .to_owned()
    })
}

/// Why there is no TAP.
pub(crate) fn tap(error: &TapError) -> Option<String> {
    match error {
        TapError::Device(e) => match e.raw_os_error() {
            Some(libc::ENOENT) => Some(format!(
                "as root: modprobe tun; in a container, pass the device in (--device {TUN_DEVICE})"
            )),
            Some(libc::ENODEV | libc::ENXIO) => Some("as root: modprobe tun".to_owned()),
            Some(libc::EACCES) => Some(format!("as root: chmod 0666 {TUN_DEVICE}")),
            Some(libc::EPERM) => {
                Some(format!("a device cgroup forbids it: pass {TUN_DEVICE} into the container"))
            }
            _ => None,
        },
        TapError::InUse(_) | TapError::NotATap(_) => {
            Some("choose another name with --ifname".to_owned())
        }
        TapError::Create { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
            user_namespace(Some(libc::EPERM))
        }
        TapError::Create { .. } => None,
    }
}
