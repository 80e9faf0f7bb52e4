//! `doctor`: checks what this host supports and what it lacks.

use std::{fs, path::Path};

use mcp_guard_core::{
    diagnose::{facts, is_nearly_full},
    escape::visible,
    incident::Hold,
};
use serde::Serialize;

use super::{Exit, Failure, HostOptions, out, runtime};
use crate::{
    control::lock,
    engine::Engine,
    executor::raise_command,
    host::{
        bpf::{Kernel, KernelOptions, VMLINUX},
        cgroup::Cgroup,
        kernel::{self, Files, SUPPORTED},
        layout::{Layout, LayoutKind, PidsTree},
        mark, storage,
        systemd::Systemd,
    },
    snapshot,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// The agent works without it, with fewer features.
    Degraded,
    /// The agent cannot work without it.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
}

/// Where the kernel lists its active security modules.
const LSM_LIST: &str = "/sys/kernel/security/lsm";

pub fn doctor(host: &HostOptions, json: bool) -> Result<Exit, Failure> {
    let mut checks = vec![rights()];
    match Layout::read() {
        Ok(layout) => {
            // The facts that a diagnosis judges too.
            let facts = snapshot::host(&layout);
            checks.extend([kernel(&layout), files(Files::of(&layout))]);
            checks.extend([cgroups(&layout), pids(&layout, &facts), numbers(&facts)]);
        }
        Err(error) => checks.push(check("cgroups", State::Missing, error.to_string())),
    }
    checks.extend([btf(), bpf(), lsm()]);
    runtime()?.block_on(async {
        checks.push(systemd().await);
        for (_, one) in host.engines().iter() {
            checks.push(engine(one).await);
        }
    });
    checks.extend([storage(host), agent(host)]);
    checks.extend(Layout::read().ok().and_then(|layout| kept_limits(&layout)));
    let missing = checks.iter().any(|check| check.state == State::Missing);
    let text = if json {
        serde_json::to_string(&checks).map_err(Failure::could_not)?
    } else {
        checks.iter().map(render).collect()
    };
    out::answer(&text);
    Ok(if missing { Exit::Wrong } else { Exit::Done })
}

fn render(check: &Check) -> String {
    let state = match check.state {
        State::Ok => "ok      ",
        State::Degraded => "degraded",
        State::Missing => "MISSING ",
    };
    format!("{state}  {:<16} {}\n", check.name, visible(&check.detail))
}

fn check(name: &'static str, state: State, detail: impl Into<String>) -> Check {
    Check { name, state, detail: detail.into() }
}

fn rights() -> Check {
    if rustix::process::geteuid().is_root() {
        return check("rights", State::Ok, "root");
    }
    check(
        "rights",
        State::Missing,
        "not root: cannot load BPF programs or change cgroups; use sudo",
    )
}

fn kernel(layout: &Layout) -> Check {
    let release = kernel::release();
    match kernel::check(layout) {
        Ok(()) => check("kernel", State::Ok, format!("{release}; supported: {SUPPORTED}")),
        Err(error) => check("kernel", State::Missing, error.to_string()),
    }
}

/// Checks the cgroup files that some kernels lack.
fn files(files: Files) -> Check {
    let Files { kill, own_refusals, peak } = files;
    let kill = if kill {
        "cgroup.kill present"
    } else {
        "cgroup.kill missing (needs Linux 5.14): a cgroup cannot be killed at once"
    };
    let own = match own_refusals {
        Some(true) => "pids.events.local present",
        Some(false) => {
            "pids.events.local missing (needs Linux 6.11, and the pids controller in version 2): \
             a clamp may be loosened because a parent's limit refused a fork"
        }
        None => "pids.events.local unknown: no cgroup to check",
    };
    let peak = match peak {
        Some(true) => "pids.peak present",
        Some(false) => "pids.peak missing (needs Linux 6.1): nothing depends on it",
        None => "pids.peak unknown",
    };
    let state = match (files.kill, own_refusals) {
        (false, _) => State::Missing,
        (true, Some(true) | None) => State::Ok,
        (true, Some(false)) => State::Degraded,
    };
    check("cgroup files", state, format!("{kill}; {own}; {peak}"))
}

fn btf() -> Check {
    if Path::new(VMLINUX).exists() {
        return check("BTF", State::Ok, VMLINUX);
    }
    check(
        "BTF",
        State::Missing,
        format!("no {VMLINUX}: a kernel with CONFIG_DEBUG_INFO_BTF is needed"),
    )
}

/// Loads and attaches our own programs for a moment, which proves more than the kernel's feature flags.
fn bpf() -> Check {
    match Kernel::start(KernelOptions::default()) {
        Ok(_) => {
            let preempts =
                if kernel::may_preempt_programs() { "may preempt" } else { "does not preempt" };
            let detail = format!(
                "all six programs load and attach; records are built outside the ring; this kernel {preempts} \
                 a program"
            );
            check("BPF", State::Ok, detail)
        }
        Err(error) => check("BPF", State::Missing, error.to_string()),
    }
}

fn cgroups(layout: &Layout) -> Check {
    let unified = layout.unified.as_deref().map(|path| path.display().to_string());
    let unified = unified.unwrap_or_default();
    match layout.kind {
        LayoutKind::Unified => check("cgroups", State::Ok, format!("version 2 at {unified}")),
        LayoutKind::Hybrid => check(
            "cgroups",
            State::Degraded,
            format!(
                "hybrid: freeze and kill through version 2 at {unified}, limits through version 1"
            ),
        ),
        LayoutKind::Legacy => {
            check("cgroups", State::Missing, "version 1 only: nothing can be counted or frozen")
        }
        LayoutKind::None => check("cgroups", State::Missing, "no cgroup tree is mounted"),
    }
}

fn pids(layout: &Layout, facts: &facts::HostFacts) -> Check {
    const NAME: &str = "pids controller";
    if facts.pids_enabled == Some(false) {
        let detail = "disabled at boot: no limit is enforced, see `mcp-guard explain P020`";
        return check(NAME, State::Degraded, detail);
    }
    let Some(tree) = &layout.pids else {
        return check(NAME, State::Degraded, "not found: nothing can be clamped");
    };
    let PidsTree { mount, v1 } = tree;
    let mount = mount.display();
    if *v1 {
        return check(NAME, State::Ok, format!("version 1 at {mount}"));
    }
    if tree.is_handed_down() {
        return check(NAME, State::Ok, format!("version 2 at {mount}"));
    }
    let detail = format!(
        "version 2 at {mount}, but not enabled for the root's children, so nothing can be clamped: \
         write +pids to {mount}/cgroup.subtree_control"
    );
    check(NAME, State::Degraded, detail)
}

fn lsm() -> Check {
    const NAME: &str = "BPF LSM";
    let without = "this version does not use it";
    match fs::read_to_string(LSM_LIST) {
        Ok(list) if list.split(',').any(|name| name.trim() == "bpf") => {
            check(NAME, State::Ok, "listed as an active security module")
        }
        Ok(list) => check(
            NAME,
            State::Degraded,
            format!("not active (active are {}): {without}", list.trim()),
        ),
        Err(error) => {
            let why =
                format!("unknown, {LSM_LIST}: {error} (securityfs must be mounted); {without}");
            check(NAME, State::Degraded, why)
        }
    }
}

/// Checks the kernel-wide limits of tasks, which apply to every fork regardless of pids.max.
fn numbers(facts: &facts::HostFacts) -> Check {
    const NAME: &str = "room for tasks";
    let limits = [("threads-max", facts.threads_max), ("pid_max", facts.pid_max)];
    let limits = limits.into_iter().filter_map(|(name, limit)| Some((limit?, name)));
    let (Some(tasks), Some((limit, name))) = (facts.tasks, limits.min()) else {
        return check(NAME, State::Degraded, "unknown: cannot read it from /proc");
    };
    let detail = format!("{tasks} tasks of {limit} (kernel.{name})");
    if is_nearly_full(tasks, limit) {
        let raise = format!("{detail}: forks may fail, see `mcp-guard explain P072`");
        return check(NAME, State::Degraded, raise);
    }
    check(NAME, State::Ok, detail)
}

async fn systemd() -> Check {
    const NAME: &str = "systemd";
    match Systemd::connect().await {
        Some(Ok(systemd)) => {
            let default = systemd.default_tasks_max();
            let default = default.map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
            let version = systemd.version();
            check(NAME, State::Ok, format!("{version}, DefaultTasksMax {default}"))
        }
        Some(Err(error)) => {
            let detail = format!("runs this host, but cannot be asked for its limits: {error}");
            check(NAME, State::Degraded, detail)
        }
        None => {
            let detail = "not the init system here: start the agent by other means";
            check(NAME, State::Degraded, detail)
        }
    }
}

async fn engine(engine: &dyn Engine) -> Check {
    const NAME: &str = "Docker";
    match engine.describe().await {
        Ok(facts::EngineFacts { version, socket, .. }) if version.is_empty() => {
            check(NAME, State::Degraded, format!("{socket} answers, but not like an engine"))
        }
        Ok(facts::EngineFacts { pids_limit: Some(false), socket, .. }) => {
            let detail = format!("the engine at {socket} reports that it cannot limit pids");
            check(NAME, State::Degraded, detail)
        }
        Ok(facts::EngineFacts { kind, version, api_version, cgroup_driver, socket, .. }) => {
            let detail =
                format!("{kind} {version}, API {api_version}, {cgroup_driver} driver, at {socket}");
            check(NAME, State::Ok, detail)
        }
        Err(error) => check(NAME, State::Degraded, error.to_string()),
    }
}

fn storage(host: &HostOptions) -> Check {
    const NAME: &str = "storage";
    match storage::warning(&host.storage()) {
        Some(warning) => check(NAME, State::Degraded, warning),
        None => check(NAME, State::Ok, "the audit log and the run directory are local"),
    }
}

fn agent(host: &HostOptions) -> Check {
    if lock::is_held(&host.run_dir) {
        return check("agent", State::Ok, "running; `mcp-guard status` shows its state");
    }
    check("agent", State::Degraded, "not running: nothing is watched")
}

/// Finds limits that mcp-guard may have lowered, and that it does not raise any more.
fn kept_limits(layout: &Layout) -> Option<Check> {
    let mut kept = Vec::new();
    for (hold, root) in Cgroup::roots(layout).ok()? {
        if hold != Hold::Clamp {
            continue;
        }
        let _ = root.walk_all(&mut |dir, path| {
            if let Some(limit) = mark::kept(dir)
                && Cgroup::at(dir, path, hold, layout)?.pids_max()? == limit
            {
                kept.push((path.to_owned(), limit));
            }
            Ok(())
        });
    }
    let (path, limit) = kept.first()?;
    let others = match kept.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let detail = format!(
        "pids.max of {path} is {limit}{others}: mcp-guard may have lowered it, but the mark cannot be \
         proved; raise it with: {}",
        raise_command(path)
    );
    Some(check("lowered limits", State::Degraded, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_an_engines_answer_are_escaped() {
        let text = render(&check("Docker", State::Degraded, "no\x1b[2J\nok  rights"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with("no\\u{1b}[2J\\nok  rights\n"), "{text}");
    }
}
