//! Hosts that lack something: it is named, with its remedy, or done without.

use std::process::Command;

use crate::support::{Ran, as_root, binary, loudly, uid, user};

/// Runs `script` as root of a user and mount namespace made by the unprivileged user, with tapway
/// as `$TAPWAY`.
fn on_a_lesser_host(script: &str) -> Ran {
    user("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c", script])
        .env("TAPWAY", binary())
        .output()
        .unwrap()
        .into()
}

#[test]
fn a_missing_device_is_named_with_its_remedy() {
    let ran = on_a_lesser_host("mount -t tmpfs none /dev/net && $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: open /dev/net/tun: No such file"), "{ran:?}");
    assert!(ran.stderr.contains("modprobe tun"), "{ran:?}");
    // What is there instead may be no TUN driver at all.
    let ran = on_a_lesser_host(
        "mount -t tmpfs none /dev/net && echo > /dev/net/tun && $TAPWAY run -- true",
    );
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make the TAP tap0: Inappropriate"), "{ran:?}");
}

#[test]
fn a_closed_device_is_named_with_its_remedy() {
    if !as_root() {
        loudly("SKIPPED: only root can close a device to its user");
        return;
    }
    let script = format!(
        "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 600 /dev/net/tun c 10 200 &&
         exec setpriv --reuid {0} --regid {0} --clear-groups {1} run -- true",
        uid(),
        binary().display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.starts_with("tapway: open /dev/net/tun: Permission denied"), "{text}");
    assert!(text.contains("chmod 0666 /dev/net/tun"), "{text}");
}

#[test]
fn forbidden_namespaces_are_named_with_their_remedy() {
    let ran =
        on_a_lesser_host("echo 0 > /proc/sys/user/max_user_namespaces && exec $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make a user namespace: No space left"), "{ran:?}");
    assert!(ran.stderr.contains("user.max_user_namespaces"), "{ran:?}");
    let ran =
        on_a_lesser_host("echo 0 > /proc/sys/user/max_net_namespaces && exec $TAPWAY run -- true");
    assert_eq!(ran.status, Some(125), "{ran:?}");
    assert!(ran.stderr.starts_with("tapway: make network and mount namespaces: "), "{ran:?}");
}

#[test]
fn a_host_without_resolv_conf_or_hosts_still_has_guests() {
    for make in ["ln -s /nosuch/file /etc/resolv.conf", "true"] {
        let script =
            format!("mount -t tmpfs none /etc && {make} && exec $TAPWAY run -- sh -c 'exit 5'");
        let ran = on_a_lesser_host(&script);
        assert_eq!(ran.status, Some(5), "{ran:?}");
        assert!(ran.stderr.contains("/etc/resolv.conf"), "{ran:?}");
    }
}

#[test]
fn a_symlinked_resolv_conf_is_followed() {
    let ran = on_a_lesser_host(
        "mount -t tmpfs none /etc && mkdir /etc/real && echo '# host' > /etc/real/resolv.conf &&
         echo '127.0.0.1 localhost' > /etc/hosts && ln -s real/resolv.conf /etc/resolv.conf &&
         $TAPWAY run -- cat /etc/resolv.conf && cat /etc/resolv.conf",
    );
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("nameserver 10.0.2.3\n"), "{ran:?}");
    assert!(ran.stdout.ends_with("# host\n"), "{ran:?}");
}

#[test]
fn a_host_without_network_still_has_guests() {
    let ran = on_a_lesser_host("$TAPWAY run -- ip -o link show tap0");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("mtu 1500"), "{ran:?}");
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    let script = format!("exec {} run -- sh -c 'exit 4' <&- >&- 2>&-", binary().display());
    assert_eq!(user("sh").args(["-c", &script]).status().unwrap().code(), Some(4));
}
