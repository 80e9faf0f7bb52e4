use std::{fs, path::Path};

use serde::Serialize;

use super::{Exit, Failure, Host, out, runtime};
use crate::{
    agent::lock,
    engine::Engine,
    host::{
        bpf::{Kernel, Options, VMLINUX},
        layout::{Kind, Layout},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Works without it, with less.
    Degraded,
    /// The agent cannot do its work.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
}

/// The oldest kernel that has all that is used: cgroup.kill is 5.14, and 5.15 is the long-term line
/// that followed.
const OLDEST: (u32, u32) = (5, 15);

pub fn doctor(host: &Host, json: bool) -> Result<Exit, Failure> {
    let mut checks = vec![rights(), kernel(), btf()];
    checks.push(bpf());
    checks.extend(cgroups());
    checks.extend([lsm(), systemd(), docker(host)?, agent(host)]);
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
    format!("{state}  {:<16} {}\n", check.name, check.detail)
}

fn check(name: &'static str, state: State, detail: impl Into<String>) -> Check {
    Check { name, state, detail: detail.into() }
}

fn rights() -> Check {
    if rustix::process::geteuid().is_root() {
        return check("rights", State::Ok, "root");
    }
    check("rights", State::Missing, "not root: no BPF, no cgroup can be changed; use sudo")
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return check("kernel", State::Degraded, format!("{release}: of unknown version")),
    };
    if version < OLDEST {
        let why = format!("{release} is too old: cgroup.kill and BPF atomics need 5.15");
        return check("kernel", State::Missing, why);
    }
    check("kernel", State::Ok, release)
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

/// Not asked of the kernel's feature flags: our own programs are loaded and attached for a moment.
fn bpf() -> Check {
    match Kernel::start(Options::default()) {
        Ok(_) => check("BPF", State::Ok, "all six programs load and attach"),
        Err(error) => check("BPF", State::Missing, error.to_string()),
    }
}

fn cgroups() -> Vec<Check> {
    let layout = match Layout::read() {
        Ok(layout) => layout,
        Err(error) => return vec![check("cgroups", State::Missing, error.to_string())],
    };
    let shown = |path: &Path| path.display().to_string();
    let unified = layout.unified.as_deref().map(shown).unwrap_or_default();
    let tree = match layout.kind {
        Kind::Unified => check("cgroups", State::Ok, format!("version 2 at {unified}")),
        Kind::Hybrid => check(
            "cgroups",
            State::Degraded,
            format!(
                "hybrid: freeze and kill through version 2 at {unified}, limits through version 1"
            ),
        ),
        Kind::Legacy => {
            check("cgroups", State::Missing, "version 1 alone: nothing can be counted or frozen")
        }
        Kind::None => check("cgroups", State::Missing, "no cgroup tree is mounted"),
    };
    let pids = match &layout.pids {
        Some(pids) => {
            let version = if pids.v1 { "version 1" } else { "version 2" };
            check("pids controller", State::Ok, format!("{version} at {}", pids.mount.display()))
        }
        None => check("pids controller", State::Degraded, "none: nothing can be clamped"),
    };
    vec![tree, pids]
}

fn lsm() -> Check {
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if list.split(',').any(|name| name.trim() == "bpf") {
        return check("BPF LSM", State::Ok, "in the list of active security modules");
    }
    check(
        "BPF LSM",
        State::Degraded,
        "not active: forks cannot be braked in the kernel, only frozen",
    )
}

fn systemd() -> Check {
    if Path::new("/run/systemd/system").exists() {
        return check("systemd", State::Ok, "runs this host");
    }
    check("systemd", State::Degraded, "does not run this host: start the agent by other means")
}

fn docker(host: &Host) -> Result<Check, Failure> {
    let version = runtime()?.block_on(Engine::new(&host.docker).version());
    Ok(match version {
        Ok(version) => check("Docker", State::Ok, format!("{version} at {}", host.docker)),
        Err(error) => check("Docker", State::Degraded, error.to_string()),
    })
}

fn agent(host: &Host) -> Check {
    if lock::is_held(&host.run_dir) {
        return check("agent", State::Ok, "runs; `mcp-guard status` asks it");
    }
    check("agent", State::Degraded, "does not run: nothing is watched")
}
