use std::path::{Path, PathBuf};

use clap::Args;
use mcp_guard_core::policy::Policy;

use super::{Exit, Failure, HostOptions, runtime};
use crate::{
    agent,
    host::{bpf, kernel, layout::Layout, storage},
    policy_files::{self, BadPolicy},
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Policy file; without it, every container is observed.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Size of the event ring in bytes, a power of two.
    #[arg(long, value_name = "BYTES", hide = true, default_value_t = mcp_guard_common::RING_BYTES)]
    ring_bytes: u32,
}

pub fn run(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    let policy = arguments.policy.as_deref().map(policy_files::read).transpose().map_err(bad)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::could_not(
            "the agent needs root to load BPF programs and to write to cgroups; run it with sudo or \
             as the systemd unit",
        ));
    }
    if !arguments.ring_bytes.is_power_of_two() || arguments.ring_bytes < 4096 {
        return Err(Failure::usage("--ring-bytes must be a power of two of at least 4096"));
    }
    // Checked before the lock, the log and the BPF programs are touched: an unsupported host is left
    // unchanged.
    let layout = Layout::read()
        .map_err(|error| Failure::could_not(format!("cannot read the cgroup layout: {error}")))?;
    kernel::check(&layout).map_err(|error| {
        Failure::could_not(format!("kernel {error}; `mcp-guard doctor` shows details"))
    })?;
    if let Some(warning) = storage::warning(&host.storage()) {
        tracing::warn!("{warning}");
    }
    let options = agent::AgentOptions {
        policy: policy.unwrap_or_default(),
        policy_file: arguments.policy.clone(),
        run_dir: host.run_dir.clone(),
        audit: host.audit.clone(),
        engines: host.engines(),
        state_dir: host.state_dir.clone(),
        bpf: bpf::KernelOptions {
            ring_bytes: arguments.ring_bytes,
            ..bpf::KernelOptions::default()
        },
    };
    runtime()?
        .block_on(agent::run(options))
        .map_err(|error| Failure::could_not(format!("{error:#}")))?;
    Ok(Exit::Done)
}

/// Reads the policy, with the files in the folder beside it.
pub fn read_policy(path: &Path) -> Result<Policy, Failure> {
    policy_files::read(path).map(|read| read.policy).map_err(bad)
}

/// The unit tries again after an error that may be temporary.
pub fn bad(error: BadPolicy) -> Failure {
    if error.is_temporary { Failure::could_not(error) } else { Failure::data(error) }
}
