//! Reads the facts about the host itself.

use std::fs;

use mcp_guard_core::diagnose::facts::{Cgroups, HostFacts, Source, Unreadable};

use crate::host::{
    census::{self, Census},
    kernel,
    layout::{Layout, LayoutKind},
};

/// Returns what the kernel hides from this user about processes.
pub fn hidden(census: &Census) -> Vec<Unreadable> {
    let namespaces = (census.hidden > 0).then_some(Source::PidNamespaces(census.hidden));
    let others = census.is_partial().then_some(Source::ProcessesOfOthers);
    let why = "not readable by this user";
    namespaces.into_iter().chain(others).map(|what| Unreadable::new(what, why)).collect()
}

/// Reads the facts about the host itself.
#[must_use]
pub fn host(layout: &Layout) -> HostFacts {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let about_cgroups = |word: &&str| word.contains("cgroup");
    let cgroups = match layout.kind {
        LayoutKind::Unified => Cgroups::Unified,
        LayoutKind::Hybrid => Cgroups::Hybrid,
        LayoutKind::Legacy => Cgroups::Legacy,
        LayoutKind::None => Cgroups::None,
    };
    HostFacts {
        kernel: kernel::release(),
        cgroups,
        pids_enabled: pids_enabled(&fs::read_to_string("/proc/cgroups").unwrap_or_default()),
        boot_words: words.split_whitespace().filter(about_cgroups).map(str::to_owned).collect(),
        nsdelegate: layout.nsdelegate,
        threads_max: kernel::threads_max(),
        pid_max: kernel::pid_max(),
        tasks: census::host_tasks(),
        pid_namespace: None,
        docker_api_version: std::env::var("DOCKER_API_VERSION").ok(),
    }
}

/// Parses the controller's row of `/proc/cgroups`: name, hierarchy, cgroups, enabled.
fn pids_enabled(text: &str) -> Option<bool> {
    let row = text.lines().find(|line| line.split_whitespace().next() == Some("pids"))?;
    row.split_whitespace().nth(3).map(|enabled| enabled == "1")
}
