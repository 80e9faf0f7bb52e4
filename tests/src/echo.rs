//! A real stdio server that waits for its client and for nothing else, and its client.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mcp_guard_core::id::Pid;

use crate::{cgroup::FixtureCgroup, wait};

/// Long enough for a slow guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends back what it gets. It ends at the end of its input, and by SIGTERM with 7.
const SCRIPT: &str = "$SIG{TERM} = sub { exit 7 }; syswrite STDOUT, 'x'; \
                      while (sysread STDIN, $b, 4096) { syswrite STDOUT, $b }";

pub struct Echo {
    child: Child,
    output: mpsc::Receiver<u8>,
}

impl Echo {
    /// Starts one in a cgroup, and waits until it is ready. Its script is put into this folder.
    pub fn start(cgroup: &FixtureCgroup, folder: &Path) -> Result<Self> {
        let script = folder.join("echo.pl");
        fs::write(&script, SCRIPT)?;
        let mut command = Command::new("perl");
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(command)?;
        let output = bytes_of(child.stdout.take().context("it has no stdout")?);
        let server = Self { child, output };
        server.await_byte(b'x')?;
        Ok(server)
    }

    fn await_byte(&self, expected: u8) -> Result<()> {
        let byte = self.output.recv_timeout(PATIENCE).context("no answer")?;
        ensure!(byte == expected, "an answer to nothing");
        Ok(())
    }

    /// Sends a byte, and returns how long the answer took.
    pub fn ask(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.child.stdin.as_mut().context("its stdin is closed")?.write_all(b"q")?;
        self.await_byte(b'q')?;
        Ok(began.elapsed())
    }

    /// Closes its stdin.
    pub fn hang_up(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill()?)
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    pub fn is_in(&self, cgroup: &FixtureCgroup) -> Result<bool> {
        Ok(cgroup.procs()?.contains(&i32::try_from(self.child.id())?))
    }

    /// Waits for its end.
    pub fn exit(&mut self) -> Result<ExitStatus> {
        let mut ended = None;
        wait::until(PATIENCE, || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        ended.context("it did not end")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads on a thread, so that a wait for an answer has an end.
fn bytes_of(mut output: ChildStdout) -> mpsc::Receiver<u8> {
    let (bytes, read) = mpsc::channel();
    thread::spawn(move || {
        let mut byte = [0];
        while output.read(&mut byte).is_ok_and(|count| count > 0) && bytes.send(byte[0]).is_ok() {}
    });
    read
}
