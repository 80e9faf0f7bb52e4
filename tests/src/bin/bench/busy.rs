//! A busy machine: one process on each CPU that does nothing but run.

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::process::{Child, Command, Stdio};
use std::thread;

/// The hidden first word of such a process.
pub const WORD: &str = "--spin";

pub fn spin() -> ! {
    // Ends with the bench, however that ends.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    loop {
        std::hint::spin_loop();
    }
}

/// Ended by their handles when dropped.
pub struct Busy(Vec<Child>);

impl Busy {
    pub fn start() -> Result<Self> {
        let own = std::env::current_exe().context("own path")?;
        let mut busy = Self(Vec::new());
        for _ in 0..thread::available_parallelism().context("number of CPUs")?.get() {
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
