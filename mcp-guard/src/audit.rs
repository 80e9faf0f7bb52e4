//! The audit log: JSON lines, each appended with one write.
//!
//! A line that cannot be written (disk full) is kept and written before the next one, so that the order is
//! preserved. If too many lines wait, the oldest is dropped and counted. A write never waits for the disk: a
//! killed agent loses no written line; a crashed kernel may.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use mcp_guard_core::audit::{Line, Record};

use crate::host::clock;

/// Most lines kept while the log cannot be written.
const MAX_WAITING: usize = 4096;

pub struct Audit {
    path: PathBuf,
    file: File,
    run: String,
    seq: u64,
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the first waiting line that are already written.
    written: usize,
    /// Whether it has been logged that the file at the path is another one.
    is_stray: bool,
    /// Lines dropped because the log could not be written for too long.
    pub lost: u64,
}

impl Audit {
    /// Opens the log for appending.
    ///
    /// # Errors
    /// The file or its directory cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
        }
        let file = append_to(path)?;
        let boot = clock::boot_id();
        let boot = boot.get(..8).unwrap_or(&boot);
        let run = format!("{boot}-{}-{}", std::process::id(), clock::now().0 / 1_000_000);
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            run,
            seq: 0,
            waiting: VecDeque::new(),
            written: 0,
            is_stray: false,
            lost: 0,
        })
    }

    /// Returns the name of this run. Incident names begin with it.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    pub fn write(&mut self, record: Record) {
        self.seq += 1;
        let line = Line {
            seq: self.seq,
            at: clock::wall(),
            boot_ns: clock::now().0,
            run: self.run.clone(),
            record,
        };
        match serde_json::to_vec(&line) {
            Ok(mut text) => {
                text.push(b'\n');
                self.waiting.push_back(text);
            }
            Err(error) => {
                tracing::error!(%error, "cannot encode an audit line");
                self.lost += 1;
            }
        }
        self.flush();
    }

    /// Continues in a new file if the log was renamed or removed, because log rotation sends no signal.
    /// Returns false if the log was removed and cannot be re-created.
    fn follow_rotation(&mut self) -> bool {
        let names = |file: &fs::Metadata| (file.dev(), file.ino());
        let ours = self.file.metadata().ok();
        let there = fs::metadata(&self.path).ok();
        let is_removed = ours.as_ref().is_some_and(|file| file.nlink() == 0);
        // The rest of a partly written line must follow its beginning, unless that file is removed.
        let has_begun = self.written > 0 && !is_removed;
        if has_begun || ours.as_ref().map(names) == there.as_ref().map(names) {
            return true;
        }
        match append_to(&self.path) {
            Ok(file) => {
                (self.file, self.written, self.is_stray) = (file, 0, false);
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_stray, true) {
                    let path = self.path.display();
                    tracing::error!(%path, %error, "the audit log is gone from its path and cannot be re-created");
                }
                !is_removed
            }
        }
    }

    /// Tries to write the waiting lines.
    pub fn flush(&mut self) {
        while !self.waiting.is_empty() && self.follow_rotation() {
            let Some(line) = self.waiting.front() else { break };
            match self.file.write(&line[self.written..]) {
                Ok(length) if self.written + length == line.len() => {
                    self.waiting.pop_front();
                    self.written = 0;
                }
                // A disk that fills up takes only a part; the rest must follow it.
                Ok(length) if length > 0 => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                refused => {
                    let error = refused.err().map(|error| error.to_string());
                    let waiting = self.waiting.len();
                    tracing::error!(error, waiting, "cannot write the audit log");
                    break;
                }
            }
        }
        while self.waiting.len() > MAX_WAITING {
            // A partly written line is kept: without its rest, it would spoil the next one.
            self.waiting.remove(usize::from(self.written > 0));
            self.lost += 1;
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::fd::{AsRawFd as _, OwnedFd},
    };

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn stop(reason: &str) -> Record {
        Record::AgentStop { reason: reason.to_owned() }
    }

    #[test]
    fn lines_are_numbered_and_appended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/audit.jsonl");
        for _ in 0..2 {
            let mut audit = Audit::open(&path).expect("opens");
            audit.write(stop("a\nb"));
            audit.write(stop("c"));
        }
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<Line> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 1, 2]);
    }

    #[test]
    fn a_renamed_log_continues_in_a_new_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, old) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
        let mut audit = Audit::open(&path).expect("opens");
        audit.write(stop("before"));
        fs::rename(&path, &old).expect("renamed");
        audit.write(stop("after"));
        audit.write(stop("later"));
        let lines = |path| fs::read_to_string(path).expect("readable").lines().count();
        assert_eq!((lines(&old), lines(&path)), (1, 2));
        // A log removed with a partly written line: the line is written again, whole.
        audit.waiting.push_back(b"{}\n".to_vec());
        audit.written = 1;
        fs::remove_file(&path).expect("removed");
        audit.write(stop("last"));
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.starts_with("{}\n") && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn a_partly_written_line_is_completed_by_the_next_attempt() {
        let (mut read, write) = io::pipe().expect("a pipe");
        fcntl_setfl(&write, OFlags::NONBLOCK)
            .expect("sets O_NONBLOCK, so that a full pipe refuses a write");
        let mut audit = Audit::open(Path::new("/dev/null")).expect("opens");
        audit.path = format!("/proc/self/fd/{}", write.as_raw_fd()).into();
        audit.file = File::from(OwnedFd::from(write));
        // More than a pipe takes at once.
        audit.write(stop(&"x".repeat(100_000)));
        for _ in 0..MAX_WAITING {
            audit.write(stop("after"));
        }
        assert!(audit.written > 0 && audit.lost == 1, "{} lost", audit.lost);
        let mut text = Vec::new();
        while !audit.waiting.is_empty() {
            let mut part = vec![0; 1 << 20];
            let length = read.read(&mut part).expect("readable");
            text.extend_from_slice(&part[..length]);
            audit.flush();
        }
        drop(audit);
        read.read_to_end(&mut text).expect("readable");
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<Line> =
            lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect();
        let numbers: Vec<u64> = lines.iter().map(|line| line.seq).collect();
        assert_eq!((numbers.len(), &numbers[..2]), (MAX_WAITING, &[1, 3][..]));
    }

    #[test]
    fn a_full_disk_loses_no_line_within_the_bound() {
        // Every write to /dev/full fails with ENOSPC.
        let mut audit = Audit::open(Path::new("/dev/full")).expect("opens");
        for _ in 0..MAX_WAITING + 3 {
            audit.write(stop("full"));
        }
        assert_eq!((audit.waiting.len(), audit.lost), (MAX_WAITING, 3));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        audit.path.clone_from(&path);
        audit.flush();
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(text.lines().count(), MAX_WAITING);
        assert!(text.starts_with("{\"seq\":4,"), "in order, without the oldest lines");
    }
}
