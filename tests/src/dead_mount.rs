//! A process that hangs while it holds a lock, because a file server does not answer.
//!
//! If it maps a file there, it holds its memory lock, and any read of its `/proc/PID/cmdline` hangs
//! too. If it closes one there because it executes a program, reads of most of its files hang.

use std::{
    fs::{self, File},
    io::{Read, Write},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{cgroup::FixtureCgroup, wait, workload};

/// The root of the mount is the file itself. The mount exists only as long as the process.
const MOUNT: &str = "mount -i -t fuse -o fd=0,rootmode=100444,user_id=0,group_id=0 dead \"$1\" \
                     && exec \"$2\" \"$1\" </dev/null";

// From include/uapi/linux/fuse.h.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
/// Valid for an hour: inode 1, a page of 4096 bytes in 8 blocks, all times 0, a readable file, one
/// link.
const ATTRIBUTES: [u32; 26] =
    [3600, 0, 0, 0, 1, 0, 4096, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o100_444, 1, 0, 0, 0, 4096, 0];
const FOPEN_DIRECT_IO: u32 = 1;
const FOPEN_KEEP_CACHE: u32 = 2;

/// Readers of all processes hang on the whole host, such as ps(1), while one hangs as it executes a program. So that
/// ends by itself.
const MOST: Duration = Duration::from_secs(10);
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The process and its file server. Both end on drop.
pub struct DeadMount {
    child: Child,
    is_over: Arc<AtomicBool>,
    server: Option<JoinHandle<Result<()>>>,
    _folder: tempfile::TempDir,
}

impl DeadMount {
    /// Starts a process in `cgroup` that maps a file, and waits until it hangs.
    pub fn mapped_in(cgroup: &FixtureCgroup) -> Result<Self> {
        let (dead, opened) = Self::start(cgroup, "dead-mapping", true)?;
        let call = format!("/proc/{}/syscall", dead.pid());
        let maps = format!("{} ", libc::SYS_mmap);
        let hangs = || {
            let is_open = opened.load(Ordering::Acquire);
            Ok(is_open && fs::read_to_string(&call)?.starts_with(&maps))
        };
        ensure!(wait::until(Duration::from_secs(20), hangs)?, "the process does not hang");
        Ok(dead)
    }

    /// Starts a process in `cgroup` that executes a program, and waits until it hangs. It goes on after a while.
    pub fn executing_in(cgroup: &FixtureCgroup) -> Result<Self> {
        let (dead, closes) = Self::start(cgroup, "dead-exec", false)?;
        let hangs = || Ok(closes.load(Ordering::Acquire));
        ensure!(wait::until(Duration::from_secs(20), hangs)?, "the process does not hang");
        Ok(dead)
    }

    /// Returns also whether it is about to hang. `flushes`: whether the server lets a file be closed.
    fn start(
        cgroup: &FixtureCgroup,
        program: &str,
        flushes: bool,
    ) -> Result<(Self, Arc<AtomicBool>)> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.context("/dev/fuse")?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        fs::write(&file, "")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
        command.args(["sh", "-c", MOUNT, "sh"]).arg(file).arg(workload(program)?);
        command.stdin(Stdio::from(device.try_clone()?));
        let child = cgroup.spawn(command)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let hangs = Arc::new(AtomicBool::new(false));
        let (over, said) = (is_over.clone(), hangs.clone());
        let server = thread::spawn(move || serve(&device, &over, &said, flushes));
        Ok((Self { child, is_over, server: Some(server), _folder: folder }, hangs))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        // The process can only die once its server is gone: then the kernel aborts the requests
        // that wait for it.
        let _ = self.child.kill();
        self.is_over.store(true, Ordering::Release);
        let server = self.server.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(server, Some(Ok(Ok(())))), "the mount's server failed: {server:?}");
        }
        let _ = self.child.wait();
    }
}

/// Answers every request except reads, and perhaps flushes, of which the first sets `hangs`.
///
/// Answers the second open only once a read is waiting, then sets `hangs`.
fn serve(mut device: &File, is_over: &AtomicBool, hangs: &AtomicBool, flushes: bool) -> Result<()> {
    let mut request = vec![0; 1 << 17];
    let (mut is_first, mut is_read, mut second) = (true, false, None);
    let mut end = None;
    while !is_over.load(Ordering::Acquire) && end.is_none_or(|end| Instant::now() < end) {
        let mut waits = [PollFd::new(device, PollFlags::IN)];
        poll(&mut waits, Some(&SOON))?;
        if !waits[0].revents().contains(PollFlags::IN) {
            // Before the mount, poll returns an error at once.
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        let length = device.read(&mut request)?;
        ensure!(length >= 40, "a request of {length} bytes");
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| request[at + byte]));
        let (code, number) = (word(4), [word(8), word(12)]);
        match code {
            OPEN if std::mem::take(&mut is_first) => {
                reply(device, number, 0, &[1, 0, FOPEN_KEEP_CACHE, 0])?;
            }
            OPEN => second = Some(number),
            READ => is_read = true,
            INTERRUPT => {}
            GETATTR => reply(device, number, 0, &ATTRIBUTES)?,
            FLUSH if !flushes => {
                end = Some(Instant::now() + MOST);
                hangs.store(true, Ordering::Release);
            }
            RELEASE | FLUSH => reply(device, number, 0, &[])?,
            // The kernel's own protocol version, and 4096 bytes per read or write.
            INIT => reply(
                device,
                number,
                0,
                &[7, word(44), 4096, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            )?,
            _ => reply(device, number, -libc::ENOSYS, &[])?,
        }
        if is_read && let Some(number) = second.take() {
            reply(device, number, 0, &[2, 0, FOPEN_KEEP_CACHE | FOPEN_DIRECT_IO, 0])?;
            hangs.store(true, Ordering::Release);
        }
    }
    Ok(())
}

/// Sends a reply made of 32-bit words. x86-64 and arm64 are little-endian: a 64-bit number is two
/// words, the low one first.
fn reply(mut device: &File, number: [u32; 2], error: i32, body: &[u32]) -> Result<()> {
    let length = u32::try_from(16 + 4 * body.len())?;
    let head = [length, error.cast_unsigned(), number[0], number[1]];
    let words = head.iter().chain(body);
    let bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    Ok(device.write_all(&bytes)?)
}
