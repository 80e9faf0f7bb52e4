//! Waiting for file descriptors inside the runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor that we own with the runtime.
///
/// # Errors
/// The descriptor cannot be polled.
#[expect(unsafe_code, reason = "tokio wants the promise that the descriptor stays open")]
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and refers to the same file as long as the AsyncFd that owns
    // it lives; nothing here takes it apart.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
