//! The values of a BPF array, mapped into our memory: reading them takes no system call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

/// All values of an array with `BPF_F_MMAPABLE`, as 64-bit words. They are never unmapped: the programs
/// write to them for as long as this process lives.
#[derive(Clone, Copy)]
pub(super) struct MappedArray(&'static [AtomicU64]);

impl MappedArray {
    /// # Errors
    /// If the kernel cannot map so many words of this map.
    #[expect(unsafe_code, reason = "shared memory with the kernel has no safe interface")]
    pub fn of(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let (access, length) = (libc::PROT_READ | libc::PROT_WRITE, words * size_of::<u64>());
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `length` bytes are mapped there, page-aligned, and stay so. The kernel may write to them at
        // any time, which atomics allow.
        Ok(Self(unsafe { std::slice::from_raw_parts(start.cast(), words) }))
    }

    /// Returns a word, or 0 beyond the end.
    pub fn get(self, at: usize) -> u64 {
        self.0.get(at).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Sets a word. Does nothing beyond the end.
    pub fn set(self, at: usize, value: u64) {
        if let Some(word) = self.0.get(at) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Adds one to a word. Does nothing beyond the end.
    pub fn add_one(self, at: usize) {
        if let Some(word) = self.0.get(at) {
            word.fetch_add(1, Ordering::SeqCst);
        }
    }
}
