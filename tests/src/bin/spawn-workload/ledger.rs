//! The ledger: counters in memory that every process of the workload shares.

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde::Serialize;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Memory filled with zeros is a valid, empty ledger.
#[repr(C)]
pub struct Ledger {
    processes: AtomicU64,
    threads: AtomicU64,
    execs: AtomicU64,
    refused: AtomicU64,
    claimed: AtomicU64,
    max: AtomicU64,
}

#[derive(Serialize)]
pub struct Report {
    case: &'static str,
    processes: u64,
    threads: u64,
    execs: u64,
    refused: u64,
}

impl Ledger {
    /// Creates a ledger in a memfd. Exec'd programs inherit it and count themselves.
    pub fn create(max: u64) -> Result<(OwnedFd, &'static Self)> {
        let memory = memfd_create("ledger", MemfdFlags::empty()).context("memfd_create")?;
        ftruncate(&memory, size_of::<Self>() as u64).context("ftruncate")?;
        let ledger = Self::attach(memory.as_raw_fd())?;
        ledger.max.store(max, SeqCst);
        Ok((memory, ledger))
    }

    pub fn attach(fd: i32) -> Result<&'static Self> {
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no existing
        // memory.
        #[allow(unsafe_code, reason = "std cannot map shared memory")]
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        ensure!(address != libc::MAP_FAILED, "mmap of {fd}: {}", io::Error::last_os_error());
        // SAFETY: the mapping is page-aligned, at least as long as the struct, never unmapped, and
        // any bytes are valid atomics.
        #[allow(unsafe_code, reason = "shared memory becomes a reference only here")]
        Ok(unsafe { &*address.cast::<Self>() })
    }

    /// Takes one new process or thread from the budget before it is created. Returns false if the
    /// budget is used up.
    pub fn claim(&self) -> bool {
        self.claimed.fetch_add(1, SeqCst) < self.max.load(SeqCst)
    }

    pub fn spent(&self) -> bool {
        self.claimed.load(SeqCst) >= self.max.load(SeqCst)
    }

    /// Records the result of a claimed clone. Success counts as a new process, EAGAIN as a refusal,
    /// and any other error is returned.
    pub fn born(&self, result: io::Result<i32>) -> Result<Option<i32>> {
        match result {
            Ok(pid) => {
                self.processes.fetch_add(1, SeqCst);
                Ok(Some(pid))
            }
            Err(error) => self.refuse(error, "clone").map(|()| None),
        }
    }

    /// Records the result of a claimed thread, in the same way.
    pub fn threaded<T>(&self, result: io::Result<T>) -> Result<Option<T>> {
        match result {
            Ok(handle) => {
                self.threads.fetch_add(1, SeqCst);
                Ok(Some(handle))
            }
            Err(error) => self.refuse(error, "thread").map(|()| None),
        }
    }

    fn refuse(&self, error: io::Error, what: &'static str) -> Result<()> {
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error).context(what);
        }
        self.refused.fetch_add(1, SeqCst);
        self.claimed.fetch_sub(1, SeqCst);
        Ok(())
    }

    pub fn executed(&self) {
        self.execs.fetch_add(1, SeqCst);
    }

    pub fn report(&self, case: &'static str) -> Report {
        Report {
            case,
            processes: self.processes.load(SeqCst),
            threads: self.threads.load(SeqCst),
            execs: self.execs.load(SeqCst),
            refused: self.refused.load(SeqCst),
        }
    }
}
