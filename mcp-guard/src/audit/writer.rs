//! The thread that appends audit lines to the file, follows its rotation, and retries failed writes.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    mem,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use mcp_guard_core::{Time, audit::Line};
use rustix::{
    fs::{AtFlags, Mode, OFlags, open, openat, statat},
    io::Errno,
};

use super::queue::Queue;
use crate::host::clock;

/// Pause between two attempts to write a line.
const AGAIN: Duration = Duration::from_millis(500);
/// A line that waits longer than this states its delay.
const LATE: Duration = Duration::from_millis(100);

pub struct Writer {
    path: PathBuf,
    /// Held open, because another user may be allowed to rename it.
    folder: OwnedFd,
    name: OsString,
    file: File,
    /// Whether it has been logged that the file at the path is another one.
    is_stray: bool,
    /// Whether a failure has been logged and nothing written since.
    is_failing: bool,
}

impl Writer {
    pub fn open(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
        let (folder, name) = place(path)?;
        let (file, path) = (append_to(&folder, &name)?, path.to_owned());
        Ok(Self { path, folder, name, file, is_stray: false, is_failing: false })
    }

    /// Writes to a file that is open already.
    #[cfg(test)]
    pub fn on(path: PathBuf, file: impl Into<OwnedFd>) -> io::Result<Self> {
        let (folder, name) = place(&path)?;
        let file = File::from(file.into());
        Ok(Self { path, folder, name, file, is_stray: false, is_failing: false })
    }

    /// Writes lines until the queue is closed and empty.
    pub fn run(mut self, queue: &Queue) {
        while let Some(line) = queue.next() {
            if !self.append(line, queue) {
                return;
            }
            queue.written();
        }
    }

    /// Appends one whole line. Returns false if the queue was closed first.
    fn append(&mut self, mut line: Line, queue: &Queue) -> bool {
        let mut begun = Vec::new();
        loop {
            match self.attempt(&mut line, &mut begun) {
                Ok(()) => return true,
                Err(error) => {
                    self.report(&error, queue.waiting());
                    if !queue.failed(AGAIN) {
                        return false;
                    }
                }
            }
        }
    }

    /// Appends one line in a single attempt. Returns false if the log refuses it.
    pub fn append_at_once(&mut self, mut line: Line) -> bool {
        let written = self.attempt(&mut line, &mut Vec::new());
        written.inspect_err(|error| self.report(error, 1)).is_ok()
    }

    /// Writes the line. `rest` is the unwritten part of a line that is partly written, else empty.
    fn attempt(&mut self, line: &mut Line, rest: &mut Vec<u8>) -> io::Result<()> {
        let mut is_untouched = self.follow_rotation(!rest.is_empty()) || rest.is_empty();
        if is_untouched {
            *rest = encode(line);
        }
        while !rest.is_empty() {
            let error = match self.file.write(rest) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                // A disk that fills up takes only a part; the rest must follow it.
                Ok(length) => {
                    rest.drain(..length);
                    is_untouched = false;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if is_untouched {
                // The next attempt states a new delay, and may go to a new file.
                rest.clear();
            }
            return Err(error);
        }
        self.is_failing = false;
        Ok(())
    }

    fn report(&mut self, error: &io::Error, waiting: usize) {
        if !mem::replace(&mut self.is_failing, true) {
            let path = self.path.display();
            tracing::error!(%path, %error, waiting, "cannot write the audit log");
        }
    }

    /// Opens a new file if the log was renamed or removed, because log rotation sends no signal.
    /// `has_begun`: a line is partly written; its rest must follow in the same file, unless that is removed.
    /// Returns whether the file was replaced.
    fn follow_rotation(&mut self, has_begun: bool) -> bool {
        let names = |file: &fs::Metadata| (file.dev(), file.ino());
        let ours = self.file.metadata().ok();
        let there = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let there = there.map(|file| (file.st_dev, file.st_ino));
        let is_removed = ours.as_ref().is_some_and(|file| file.nlink() == 0);
        let stays = has_begun && !is_removed;
        if stays || ours.as_ref().map(names) == there {
            return false;
        }
        match append_to(&self.folder, &self.name) {
            Ok(file) => {
                (self.file, self.is_stray) = (file, false);
                true
            }
            Err(error) => {
                if !mem::replace(&mut self.is_stray, true) {
                    let path = self.path.display();
                    tracing::error!(%path, %error, "the audit log is gone from its path and cannot be re-created");
                }
                false
            }
        }
    }
}

/// Encodes a line, and states its delay if it is late.
fn encode(line: &mut Line) -> Vec<u8> {
    let waited = clock::now().since(Time(line.boot_ns));
    if waited >= LATE {
        line.late_ms = u64::try_from(waited.as_millis()).ok();
    }
    let mut text = serde_json::to_vec(line).unwrap_or_else(|error| {
        tracing::error!(%error, seq = line.seq, "cannot encode an audit line");
        Vec::new()
    });
    text.push(b'\n');
    text
}

/// Opens the folder of a path, and returns the name in it.
fn place(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    Ok((folder, name.to_owned()))
}

/// Opens the log. A symbolic link is refused: another user may have put it there.
fn append_to(folder: &OwnedFd, name: &OsString) -> io::Result<File> {
    let flags =
        OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::from_raw_mode(0o640)) {
        Ok(file) => Ok(file.into()),
        Err(Errno::LOOP) => Err(io::Error::other("it is a symbolic link")),
        Err(error) => Err(error.into()),
    }
}
