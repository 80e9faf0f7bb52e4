//! `dead-mapping FILE`: maps FILE, whose server does not answer, and holds the memory lock of its
//! process meanwhile. The server is in `dead_mount`.

#![allow(clippy::unwrap_used, reason = "the test that started it notices if it panics")]

use std::{fs::File, io::Read, os::fd::AsRawFd, ptr, thread};

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let mut first = File::open(&path).unwrap();
    // The page stays locked until the server answers.
    thread::spawn(move || first.read(&mut [0]));
    // The second file bypasses the page cache: mapping it makes the kernel wait for the locked page.
    let second = File::open(&path).unwrap();
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
    // SAFETY: the kernel places the mapping at a free address, and the mapping is never read.
    #[allow(unsafe_code, reason = "no safe wrapper maps a file")]
    let mapped =
        unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, second.as_raw_fd(), 0) };
    drop((second, mapped));
}
