//! The holds on a scratch cgroup, read from the cgroup itself and not from the agent.

use std::{fs, fs::File};

use anyhow::{Context as _, Result};
use mcp_guard::host::mark::{self, Mark};
use mcp_guard_core::{incident::Hold, policy::Response};

use crate::cgroup::FixtureCgroup;

/// Everything that a response changes in a cgroup.
#[derive(Debug, PartialEq, Eq)]
pub struct Holds {
    /// The requested state, from `cgroup.freeze`.
    pub freeze: bool,
    /// The state that the kernel confirms, from `cgroup.events`.
    pub frozen: bool,
    pub freeze_mark: Option<Mark>,
    pub pids_max: String,
    pub clamp_mark: Option<Mark>,
}

impl Holds {
    pub fn of(cgroup: &FixtureCgroup) -> Result<Self> {
        Ok(Self {
            freeze: cgroup.read("cgroup.freeze")?.trim() == "1",
            frozen: cgroup.is_frozen()?,
            freeze_mark: mark::read(File::open(cgroup.unified_dir())?, Hold::Freeze)?,
            pids_max: pids_max(cgroup)?,
            clamp_mark: mark::read(File::open(cgroup.pids_dir())?, Hold::Clamp)?,
        })
    }

    /// Returns the state of a cgroup without any hold.
    pub fn nothing(pids_max: u64) -> Self {
        let pids_max = pids_max.to_string();
        Self { freeze: false, frozen: false, freeze_mark: None, pids_max, clamp_mark: None }
    }

    /// Returns the mark of the hold that this response sets.
    pub fn mark(&self, response: Response) -> Option<&Mark> {
        match response {
            Response::Freeze => self.freeze_mark.as_ref(),
            Response::Clamp => self.clamp_mark.as_ref(),
            Response::Record | Response::Kill => None,
        }
    }
}

fn pids_max(cgroup: &FixtureCgroup) -> Result<String> {
    let path = cgroup.pids_dir().join("pids.max");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// Writes cgroup.freeze, as an operator or an engine would.
pub fn write_freeze(cgroup: &FixtureCgroup, value: &str) -> Result<()> {
    fs::write(cgroup.unified_dir().join("cgroup.freeze"), value).context("cgroup.freeze")
}
