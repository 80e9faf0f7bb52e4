//! A busy machine: one spinning process per CPU.

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::process::{Child, Command, Stdio};
use std::thread;

/// The hidden first argument that makes this program such a process.
pub const WORD: &str = "--spin";

pub fn spin() -> ! {
    // The kernel kills it when the bench ends for any reason.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    loop {
        std::hint::spin_loop();
    }
}

/// The spinning processes. Killed and reaped on drop.
pub struct Busy(Vec<Child>);

impl Busy {
    pub fn start() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find this program's path")?;
        let mut busy = Self(Vec::new());
        let cpus = thread::available_parallelism().context("cannot find the number of CPUs")?;
        for _ in 0..cpus.get() {
            busy.0.push(Command::new(&own).arg(WORD).stdin(Stdio::null()).spawn()?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
