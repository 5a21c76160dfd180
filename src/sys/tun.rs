//! The ioctls of a TUN/TAP queue (`linux/if_tun.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Binds an open `/dev/net/tun` to the interface `name` in the namespace where it was opened,
/// creating the interface if it does not exist (`TUNSETIFF`). The kernel picks the name of a new
/// one if `name` is empty. Allocates nothing.
///
/// # Errors
/// `EBUSY` when another process holds the interface, `EINVAL` when `flags` do not fit an existing
/// one, `EPERM` without `CAP_NET_ADMIN` over the namespace.
pub fn set_interface(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed() as libc::c_char;
    }
    // The kernel reads sixteen bits; the topmost flag is the sign of the C type.
    request.ifr_ifru.ifru_flags =
        u16::try_from(flags).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?.cast_signed();
    // SAFETY: the kernel reads and writes one ifreq, which `request` is; `tun` is open for the
    // call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// The flags of the interface that the queue belongs to, `IFF_*` (`TUNGETIFF`).
///
/// # Errors
/// `EBADFD` when it belongs to none, `ENOTTY` and others when it is not of the TUN device.
pub fn interface_flags(tun: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: ifreq is plain data for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one ifreq, which `request` is; `tun` is open for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: this ioctl answers with flags, and all bytes of the union are initialized.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags.cast_unsigned()))
}

/// The MAC address of the interface that the queue belongs to (`SIOCGIFHWADDR`, which the TUN
/// device answers as sockets do).
///
/// # Errors
/// `EINVAL` when it has none, `ENOTTY` and others when the descriptor is not of the TUN device.
pub fn hardware_address(tun: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    interface_flags(tun)?;
    // SAFETY: ifreq is plain data for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one ifreq, which `request` is; `tun` is open for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: this ioctl answers with an address, and all bytes of the union are initialized.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut octets = [0; 6];
    for (octet, byte) in octets.iter_mut().zip(address.sa_data) {
        *octet = byte.to_ne_bytes()[0];
    }
    Ok(octets)
}

/// Sets the length in bytes of the virtio-net header before each frame (`TUNSETVNETHDRSZ`).
pub fn set_vnet_header_len(tun: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which `len` is; `tun` is open for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Says which offloads the reader of the queue understands, `TUN_F_*` (`TUNSETOFFLOAD`).
///
/// # Errors
/// `EINVAL` when the kernel does not know one of them.
pub fn set_offload(tun: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: this ioctl takes its argument by value; `tun` is open for the call.
    check(unsafe {
        libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    })
}

/// Attaches or detaches a queue of an interface with several (`TUNSETQUEUE`). A detached queue
/// stays the interface's, loses what waits in it, and takes no part in carrying frames.
///
/// # Errors
/// `EINVAL` when it is so already, or the interface has one queue only.
pub fn set_queue(tun: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    // Both are below 0x800.
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which `request` is; `tun` is open for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// What the device can do at all, `IFF_*` (`TUNGETFEATURES`).
///
/// # Errors
/// `ENOTTY` and others when the descriptor is not of the TUN device.
pub fn features(tun: BorrowedFd<'_>) -> io::Result<libc::c_uint> {
    let mut features: libc::c_uint = 0;
    // SAFETY: the kernel writes one unsigned int, which `features` is; `tun` is open for the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    Ok(features)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
