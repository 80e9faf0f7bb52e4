//! Runs QEMU, with the guest's console in a file and the guest's lines as a stream.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result};

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    /// In software, about ten times slower.
    Tcg,
}

impl Accel {
    fn words(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // An old CPU: wide registers, and the protection of user memory from the kernel, are costly
            // to emulate. An AMD CPU, so that the kernel uses a single page table: each switch of it
            // makes the emulator discard its cached translations.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "phenom,-fxsr-opt"],
        }
    }

    /// Returns words for the kernel's command line. Mitigations for flaws of real CPUs slow down an
    /// emulated CPU, which does not have these flaws, by a tenth.
    fn append(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &[],
            Self::Tcg => &["mitigations=off"],
        }
    }
}

/// The configuration of a guest.
pub struct Machine {
    pub accel: Accel,
    pub cpus: u8,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The first is the root disk. Writes to the disks are discarded, except with `keep`.
    pub disks: Vec<PathBuf>,
    /// Whether writes to the first disk are kept.
    pub keep: bool,
    /// Words for the kernel's command line.
    pub append: Vec<String>,
}

const PROGRAM: &str = "qemu-system-x86_64";
const MEMORY: &str = "3G";

impl Machine {
    fn command(&self) -> Command {
        // A guest must not outlive xtask, even if xtask is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", PROGRAM]).args(self.accel.words());
        qemu.args(["-m", MEMORY, "-smp", &self.cpus.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        // A panic or a power-off ends QEMU. There is no network card.
        qemu.args(["-no-reboot", "-nic", "none"]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        for (number, disk) in self.disks.iter().enumerate() {
            let snapshot = if self.keep && number == 0 { "off" } else { "on" };
            let file = disk.display();
            qemu.arg("-drive")
                .arg(format!("file={file},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}"));
        }
        let fixed = ["console=ttyS0", "quiet", "panic=-1", "oops=panic"];
        let append = fixed.iter().chain(self.accel.append()).copied();
        let append: Vec<&str> = append.chain(self.append.iter().map(String::as_str)).collect();
        qemu.arg("-append").arg(append.join(" "));
        qemu
    }

    /// Starts the guest with its console in a file.
    pub fn start(&self, console: &Path) -> Result<Guest> {
        let mut qemu = self.command();
        // The first serial port is the console; the second carries the guest's lines.
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        let mut child = qemu
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        let stdout = child.stdout.take().context("QEMU has no stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Guest { child, lines, console: console.to_path_buf() })
    }

    /// Starts the guest with its console on our terminal, and waits until QEMU ends.
    pub fn attend(&self) -> Result<()> {
        let mut qemu = self.command();
        qemu.args(["-serial", "mon:stdio", "-serial", "null"]);
        let status = qemu.status().with_context(|| format!("cannot start {PROGRAM}"))?;
        anyhow::ensure!(status.success(), "{PROGRAM} ended with {status}");
        Ok(())
    }
}

/// A running guest. Killed on drop.
pub struct Guest {
    child: Child,
    lines: Receiver<String>,
    console: PathBuf,
}

/// The result of waiting for a line.
pub enum Heard {
    Line(String),
    Nothing,
    /// QEMU has ended.
    End,
}

impl Guest {
    pub fn hear(&self, longest: Duration) -> Heard {
        match self.lines.recv_timeout(longest) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// Returns the console's output so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns QEMU's own error messages. Kills QEMU first, if it has not ended.
    pub fn complaint(mut self) -> String {
        let mut text = String::new();
        let _ = self.child.kill();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
        }
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
