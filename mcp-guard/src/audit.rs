//! The audit log: JSON lines, numbered and queued here, and written by a separate thread.
//!
//! The loop never waits for the disk. A file system that is frozen, full or dead delays the lines and
//! nothing else. Lines keep their order. If too many wait, the oldest is dropped and counted, and the log
//! itself reports the number.

mod queue;
mod writer;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use mcp_guard_core::audit::{Line, Record};

use self::{
    queue::{Finished, Queue},
    writer::Writer,
};
use crate::host::clock;

/// How long the end of the program waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);
/// The cause that the log gives for lost lines.
const LINES_LOST: &str = "audit-lines";

pub struct Audit {
    run: String,
    seq: u64,
    queue: Arc<Queue>,
    /// Writes the lines itself, and waits for the disk: the host had no room for another thread.
    alone: Option<Writer>,
    /// Lost lines that are already reported in the log.
    reported: u64,
}

impl Audit {
    /// Opens the log, and starts the thread that writes it.
    ///
    /// # Errors
    /// The file or its directory cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        let writer = Writer::open(path)?;
        let boot = clock::boot_id();
        let boot = boot.get(..8).unwrap_or(&boot);
        let run = format!("{boot}-{}-{}", std::process::id(), clock::now().0 / 1_000_000);
        let queue = Arc::new(Queue::default());
        // The thread takes the writer from here, so that it is still there if none can be started.
        let shared = Arc::new(Mutex::new(Some(writer)));
        let (lines, handed) = (queue.clone(), shared.clone());
        let run_writer = move || {
            let writer = handed.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(writer) = writer {
                writer.run(&lines);
            }
        };
        let alone = match thread::Builder::new().name("audit".to_owned()).spawn(run_writer) {
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "no thread for the audit log; each line waits for the disk");
                shared.lock().unwrap_or_else(PoisonError::into_inner).take()
            }
        };
        Ok(Self { run, seq: 0, queue, alone, reported: 0 })
    }

    /// Returns the name of this run. Incident names begin with it.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Lines dropped because the log could not be written for too long.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Queues a line, without waiting if there is a thread to write it.
    pub fn write(&mut self, record: Record) {
        self.seq += 1;
        let line = Line {
            seq: self.seq,
            at: clock::wall(),
            boot_ns: clock::now().0,
            run: self.run.clone(),
            late_ms: None,
            record,
        };
        match &mut self.alone {
            None => self.queue.push(line),
            Some(writer) => {
                if !writer.append_at_once(line) {
                    self.queue.lose();
                }
            }
        }
    }

    /// Reports lost lines in the log, once it accepts lines again.
    pub fn report_losses(&mut self) {
        let lost = self.lost();
        if lost > self.reported && self.queue.has_room() {
            let count = lost - self.reported;
            self.reported = lost;
            self.write(Record::Loss { cause: LINES_LOST.to_owned(), count });
        }
    }
}

impl Drop for Audit {
    /// Waits for the last lines, but not for a disk that hangs.
    fn drop(&mut self) {
        self.report_losses();
        match self.queue.finish(LAST_LINES) {
            Finished::All => {}
            Finished::Without(lines) => {
                tracing::error!(lines, "cannot write the audit log; its last lines are lost");
            }
        }
    }
}

#[cfg(test)]
mod tests;
