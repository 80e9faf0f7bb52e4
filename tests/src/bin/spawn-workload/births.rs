//! The ways to create and to reap processes, each through a single system call.
#![allow(unsafe_code, reason = "clone, exec and wait must be called without a library in between")]

use anyhow::{Context, Result};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::ptr::null;

/// libc's constant is truncated to its type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// The exit code of a process whose exec failed.
const NO_EXEC: i32 = 111;

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process; no destructor has to run.
    unsafe { libc::_exit(code) }
}

/// Forks. `child` runs in the child and returns its exit code.
///
/// `child` must only do what is safe after a fork. All callers have one thread when they fork, so a
/// child that starts a thread is safe too.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the child inherits no lock that another thread holds.
    match unsafe { libc::fork() } {
        0 => exit(child()),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Creates a child that shares the caller's memory and stops the caller until it exits, as vfork
/// does.
///
/// Uses clone with a separate stack: vfork itself returns twice into one Rust frame, which is
/// undefined behaviour.
pub fn vfork(stack: &mut [u128]) -> io::Result<i32> {
    extern "C" fn leave(_: *mut libc::c_void) -> i32 {
        exit(0)
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is ours alone while the caller is stopped, its end is 16-byte aligned, and
    // the child only calls _exit.
    match unsafe {
        libc::clone(leave, stack.as_mut_ptr_range().end.cast(), flags, null::<u8>() as _)
    } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Calls clone3 with these flags; the child only exits. `cgroup`, if given, is the directory of the
/// cgroup in which the child is created (CLONE_INTO_CGROUP).
pub fn clone3(flags: i32, cgroup: Option<i32>) -> io::Result<i32> {
    // With CLONE_PARENT the kernel uses the caller's own exit signal and rejects any other.
    let signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 };
    let into = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    // SAFETY: all zero is a valid clone_args: no stack, no pidfd, no tls.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | into;
    args.exit_signal = signal;
    args.cgroup = cgroup.map_or(0, |fd| fd as u64);
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of the memory and only
    // calls _exit.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size) } {
        0 => exit(0),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

/// A program with its arguments, prepared before the fork so that the child need not allocate.
pub struct Program {
    path: CString,
    words: [CString; 2],
}

impl Program {
    pub fn this_one(words: [&str; 2]) -> Result<Self> {
        let own = std::env::current_exe().context("cannot find this program's path")?;
        let path = own.into_os_string().into_vec();
        let [first, second] = words;
        Ok(Self { path: CString::new(path)?, words: [CString::new(first)?, CString::new(second)?] })
    }

    pub fn exec(&self) -> i32 {
        let [first, second] = &self.words;
        let argv = [self.path.as_ptr(), first.as_ptr(), second.as_ptr(), null()];
        // SAFETY: the strings and the null-ended array outlive the call, which returns only when it
        // fails.
        unsafe { libc::execv(self.path.as_ptr(), argv.as_ptr()) };
        NO_EXEC
    }
}

/// Waits until all other holders of the pipe's write end have closed it.
///
/// For a forked child: closes its own copy first, and never allocates.
pub fn wait_for_hangup(reader: i32, writer: i32) -> i32 {
    let mut byte = 0_u8;
    // SAFETY: both descriptors belong to this process, which exits here without closing them again;
    // the buffer is one byte and lives on this stack.
    unsafe {
        libc::close(writer);
        while libc::read(reader, (&raw mut byte).cast(), 1) == -1 {}
    }
    0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Fine,
    Failed,
}

pub fn reap(pid: i32) -> Result<Status> {
    let found = wait(pid).context("waitpid")?;
    Ok(found.1)
}

/// Reaps the next child that ends. Returns None if no child is left.
pub fn reap_any() -> Result<Option<(i32, Status)>> {
    match wait(-1) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        other => other.map(Some).context("waitpid"),
    }
}

fn wait(pid: i32) -> io::Result<(i32, Status)> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a valid place to write to.
        let found = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if found > 0 {
            return Ok((found, if status == 0 { Status::Fine } else { Status::Failed }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
