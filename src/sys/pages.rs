//! Memory straight from the kernel: it costs nothing until touched and is given back when dropped.
//!
//! A general allocator may keep what is freed, and then clears it on the next zeroed allocation.
//! For large buffers that are needed now and then, both would count against an idle process.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A private anonymous mapping; zero where it has not been written.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is private to this value, as a `Box<[u8]>` would be.
unsafe impl Send for Pages {}

impl Pages {
    /// Maps `len` bytes, which must not be 0. Errors are those of `mmap(2)`.
    pub fn new(len: usize) -> io::Result<Pages> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: without MAP_FIXED the kernel picks an unused range; no file is involved.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pages { start, len })
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialized (zeroed) bytes until `drop`, and the
        // borrow of `self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, and no borrow of it outlives `self`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of a mapping of our own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_writable_to_the_last_byte() {
        let mut pages = Pages::new(100_000).unwrap();
        assert_eq!(pages.len(), 100_000);
        assert!(pages.iter().all(|&byte| byte == 0));
        pages[99_999] = 7;
        assert_eq!(pages.last(), Some(&7));
        assert!(Pages::new(0).is_err());
    }
}
