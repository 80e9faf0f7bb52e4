//! `dead-mapping FILE`: maps FILE, whose server does not answer, and holds the memory lock of its process
//! meanwhile; `dead_mount` plays that server.

#![allow(clippy::unwrap_used, reason = "whoever started it waits for what comes of it")]

use std::{fs::File, io::Read, os::fd::AsRawFd, ptr, thread};

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let mut first = File::open(&path).unwrap();
    // The page stays locked until the server answers.
    thread::spawn(move || first.read(&mut [0]));
    // This one bypasses the page cache: to map it, the kernel waits for the page.
    let second = File::open(&path).unwrap();
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
    // SAFETY: the mapping is placed where nothing is, and is never read.
    #[allow(unsafe_code, reason = "no safe wrapper maps a file")]
    let mapped =
        unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, second.as_raw_fd(), 0) };
    drop((second, mapped));
}
