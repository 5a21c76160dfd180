//! What a terminal is like.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Rows and columns of the terminal `fd` (`TIOCGWINSZ`, ioctl_tty(2)); zeros where it does not
/// know.
///
/// # Errors
/// `ENOTTY` if it is no terminal.
pub fn size(fd: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open while borrowed, and the kernel writes one `winsize`, which
    // `size` is, for the length of the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    match result {
        0 => Ok((size.ws_row, size.ws_col)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::pty::{Winsize, openpty};

    use super::*;

    #[test]
    fn a_terminal_tells_its_size_and_a_file_has_none() {
        let given = Winsize { ws_row: 24, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&given), None).unwrap();
        assert_eq!(size(pty.slave.as_fd()).unwrap(), (24, 132));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
