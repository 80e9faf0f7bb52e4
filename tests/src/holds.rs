//! What mcp-guard holds of a scratch cgroup, read from the cgroup itself and not from the agent.

use std::{fs, fs::File};

use anyhow::{Context as _, Result};
use mcp_guard::host::mark::{self, Mark};
use mcp_guard_core::{incident::Hold, policy::Response};

use crate::cgroup::FixtureCgroup;

/// Everything that a containment changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Holds {
    /// What was asked for, `cgroup.freeze`.
    pub freeze: bool,
    /// What the kernel confirms, `cgroup.events`.
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

    /// A cgroup that nobody holds.
    pub fn nothing(pids_max: u64) -> Self {
        let pids_max = pids_max.to_string();
        Self { freeze: false, frozen: false, freeze_mark: None, pids_max, clamp_mark: None }
    }

    /// The mark of a hold by this response.
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

/// What somebody else does by hand or by an engine.
pub fn write_freeze(cgroup: &FixtureCgroup, value: &str) -> Result<()> {
    fs::write(cgroup.unified_dir().join("cgroup.freeze"), value).context("cgroup.freeze")
}
