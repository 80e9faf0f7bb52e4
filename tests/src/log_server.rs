//! A file system for the audit log whose server may refuse writes, or stand still: FUSE, with one file.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The name of the only file.
const NAME: &[u8] = b"audit.jsonl\0";

// From include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const FOPEN_DIRECT_IO: u32 = 1;
/// The headers of a request, and of a write.
const HEADER: usize = 40;
const WRITE_HEADER: usize = 40;
const ROOT: u32 = 1;
const FILE: u32 = 2;

const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The server's treatment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogService {
    Answers,
    /// As after an error, when a file system is mounted read-only.
    RefusesWrites,
    /// It reads no requests.
    StandsStill,
}

struct Shared {
    service: LogService,
    is_over: bool,
    log: Vec<u8>,
}

/// The mount and its server. Both end on drop.
pub struct LogServer {
    folder: tempfile::TempDir,
    shared: Arc<Mutex<Shared>>,
    server: Option<JoinHandle<Result<()>>>,
}

impl LogServer {
    pub fn start() -> Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.context("/dev/fuse")?;
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir()?;
        let options = "fd=0,rootmode=40755,user_id=0,group_id=0";
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", options, "mcp-guard-test-log"]).arg(folder.path());
        mount.stdin(Stdio::from(device.try_clone()?));
        ensure!(mount.status()?.success(), "{mount:?}");
        let service = LogService::Answers;
        let shared = Arc::new(Mutex::new(Shared { service, is_over: false, log: Vec::new() }));
        let of_server = shared.clone();
        let server = thread::spawn(move || serve(&device, &of_server));
        Ok(Self { folder, shared, server: Some(server) })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    pub fn set(&self, service: LogService) {
        lock(&self.shared).service = service;
    }

    /// Returns what was written. Reading the file could hang.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared).log).into_owned()
    }
}

impl Drop for LogServer {
    fn drop(&mut self) {
        lock(&self.shared).is_over = true;
        let server = self.server.take().map(JoinHandle::join);
        let unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        if !thread::panicking() {
            assert!(matches!(server, Some(Ok(Ok(())))), "the server failed: {server:?}");
            assert!(unmounted.is_ok_and(|status| status.success()), "it is still mounted");
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut device: &File, shared: &Mutex<Shared>) -> Result<()> {
    let mut request = vec![0; 1 << 17];
    loop {
        let service = {
            let shared = lock(shared);
            if shared.is_over {
                return Ok(());
            }
            shared.service
        };
        if service == LogService::StandsStill {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let mut waits = [PollFd::new(device, PollFlags::IN)];
        poll(&mut waits, Some(&SOON))?;
        if !waits[0].revents().contains(PollFlags::IN) {
            continue;
        }
        // The test may have stopped the service while this waited.
        let mut shared = lock(shared);
        if shared.service == LogService::StandsStill {
            continue;
        }
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // The request was interrupted meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error).context(format!("fd {}", device.as_raw_fd())),
        };
        ensure!(length >= HEADER, "a request of {length} bytes");
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| request[at + byte]));
        let (code, number, node) = (word(4), [word(8), word(12)], word(16));
        let refuses = shared.service == LogService::RefusesWrites;
        match code {
            FORGET | BATCH_FORGET | INTERRUPT => {}
            INIT => {
                let body = [7, word(44), 4096, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                reply(device, number, 0, &body)?;
            }
            LOOKUP if request[HEADER..length] == *NAME => {
                let body = [&[FILE, 0, 1, 0, 3600, 0, 0, 0, 0, 0], &attributes(FILE, &shared)[..]];
                reply(device, number, 0, &body.concat())?;
            }
            LOOKUP => reply(device, number, -libc::ENOENT, &[])?,
            GETATTR => {
                let body = [&[3600, 0, 0, 0], &attributes(node, &shared)[..]];
                reply(device, number, 0, &body.concat())?;
            }
            OPEN | WRITE if refuses => reply(device, number, -libc::EROFS, &[])?,
            OPEN => reply(device, number, 0, &[1, 0, FOPEN_DIRECT_IO, 0])?,
            WRITE => {
                let data = &request[HEADER + WRITE_HEADER..length];
                shared.log.extend_from_slice(data);
                reply(device, number, 0, &[u32::try_from(data.len())?, 0])?;
            }
            RELEASE | FLUSH => reply(device, number, 0, &[])?,
            _ => reply(device, number, -libc::ENOSYS, &[])?,
        }
    }
}

/// Returns a `fuse_attr`.
fn attributes(node: u32, shared: &Shared) -> [u32; 22] {
    let (mode, size) = match node {
        ROOT => (0o40_755, 0),
        _ => (0o100_640, u32::try_from(shared.log.len()).unwrap_or(u32::MAX)),
    };
    let mut words = [0; 22];
    (words[0], words[2]) = (node, size);
    // After six numbers of 64 bits, and the nanoseconds of three times: mode, links, and owners.
    (words[15], words[16], words[20]) = (mode, 1, 4096);
    words
}

/// Sends a reply made of 32-bit words.
fn reply(mut device: &File, number: [u32; 2], error: i32, body: &[u32]) -> Result<()> {
    let length = u32::try_from(16 + 4 * body.len())?;
    let head = [length, error.cast_unsigned(), number[0], number[1]];
    let words = head.iter().chain(body);
    let bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
    match device.write_all(&bytes) {
        // Nobody waits for it any more.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        written => Ok(written?),
    }
}
