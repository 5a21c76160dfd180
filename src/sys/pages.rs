//! Memory straight from the kernel: it costs nothing until touched and is given back when dropped.
//!
//! A general allocator may keep what is freed, and then clears it on the next zeroed allocation.
//! For large buffers that are needed now and then, both would count against an idle process. So
//! does what a long life no longer needs of its beginning: [`forget_start`].

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

/// Lets go of the pages of the program and its libraries, most of which are code that only the
/// start needed. A debugger's breakpoints are lost with them.
///
/// The kernel maps code in pieces of 64 KiB around each place that is used, so in the end nearly
/// all of it. What is needed again comes back from the page cache, by a fault of a microsecond a
/// piece.
pub fn forget_start() {
    // SAFETY: the callback is as the function wants it, and uses no data.
    unsafe { libc::dl_iterate_phdr(Some(forget_code), std::ptr::null_mut()) };
}

/// Lets go of the pages of one loaded object that are as they are in its file.
unsafe extern "C" fn forget_code(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `dl_iterate_phdr` gives a valid object for the time of the call.
    let object = unsafe { &*object };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: it says how many headers there are; they lie in the object, which stays loaded.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Addresses and lengths of this process.
        let start = object.dlpi_addr as usize + header.p_vaddr as usize;
        // Mappings begin at a page, and no page is of two segments.
        let aligned = start & !(PAGE - 1);
        let len = start + header.p_memsz as usize - aligned;
        // SAFETY: a segment that is not writable is mapped from its file and never written to
        // (position-independent code has no relocations in its text), so that what is dropped here
        // comes back as it was. Nothing depends on its success.
        unsafe { libc::madvise(aligned as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
    0
}

/// Bytes of the smallest page: segments are aligned to larger ones where there are.
const PAGE: usize = 4096;

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

    /// Kilobytes of files that are mapped into this process.
    fn mapped() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_is_forgotten_and_comes_back() {
        let text = || "read-only data".to_owned();
        let before = (mapped(), text());
        forget_start();
        // Other tests may run meanwhile; without them nearly nothing is left.
        let after = (mapped(), text());
        assert!(after.0 < before.0, "{} kB before, {} kB after", before.0, after.0);
        assert_eq!(after.1, before.1);
    }
}
