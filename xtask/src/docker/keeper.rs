//! The process that starts, keeps and stops a private Docker engine.
//!
//! It is the parent of dockerd, so it can stop it safely by its pid. It is separate from the rest of
//! xtask, so it can clean up even if xtask is killed.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::leftovers::{self, EngineCgroups};
use crate::program;
use crate::say::{complain, say};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Starts the engine, writes the path of its socket to stdout, and stops it when stdin ends.
pub fn keep_engine() -> Result<()> {
    let cgroups = EngineCgroups::now()?;
    // The path must be short: the path of a Unix socket has at most 107 bytes.
    let holder = tempfile::Builder::new()
        .prefix("mcp-guard-test-engine-")
        .tempdir_in("/var/tmp")
        .context("cannot create a folder for the engine in /var/tmp")?;
    let folder = holder.path();
    let mut dockerd = start(folder)?;
    let socket = folder.join("docker.sock");
    let ready = wait_until_ready(&mut dockerd, &socket, folder);
    if ready.is_ok() {
        say(&socket.to_string_lossy());
        // Input is ignored; only EOF matters.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    let removed = if ready.is_ok() { remove_containers(&socket) } else { Ok(()) };
    let stopped = stop(&mut dockerd);
    let cleaned = leftovers::remove(folder, &cgroups);
    ready.and(removed).and(stopped).and(cleaned)
}

fn start(folder: &Path) -> Result<Child> {
    // An empty configuration, because the host's configuration is for the host's own engine.
    let configuration = folder.join("daemon.json");
    fs::write(&configuration, "{}")
        .with_context(|| format!("cannot write {}", configuration.display()))?;
    let log = File::create(folder.join("dockerd.log")).context("cannot create the engine's log")?;
    let dockerd = program::find("dockerd").unwrap_or_else(|| PathBuf::from("dockerd"));
    let path = |name: &str| folder.join(name);
    Command::new(dockerd)
        // The containers have no network, so no bridge and no packet filter rules are needed.
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
        // The tests name cgroups by path and expect `max`, which is `infinity` with the systemd driver.
        // That driver is tested in guests.
        .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
        .arg("--host")
        .arg(format!("unix://{}", path("docker.sock").display()))
        .arg("--config-file")
        .arg(configuration)
        .arg("--data-root")
        .arg(path("data"))
        .arg("--exec-root")
        .arg(path("exec"))
        .arg("--pidfile")
        .arg(path("docker.pid"))
        // dockerd may use this host's containerd: separate namespaces keep its containers apart.
        .args(["--containerd-namespace", "mcp-guard-test"])
        .args(["--containerd-plugins-namespace", "mcp-guard-test-plugins"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the engine's log")?)
        .stderr(log)
        .spawn()
        .context("cannot start dockerd")
}

fn wait_until_ready(dockerd: &mut Child, socket: &Path, folder: &Path) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < START_DEADLINE {
        if super::answers(socket) {
            return Ok(());
        }
        if let Some(status) = dockerd.try_wait().context("cannot check dockerd")? {
            show_log(folder);
            bail!("dockerd ended with {status}; run it as root");
        }
        sleep(POLL);
    }
    show_log(folder);
    bail!("dockerd did not answer within {} s", START_DEADLINE.as_secs());
}

fn show_log(folder: &Path) {
    let log = fs::read_to_string(folder.join("dockerd.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(10)..] {
        complain(&format!("dockerd: {line}"));
    }
}

/// Removes all containers of this engine. All of them are ours, including those that a failed test
/// left behind.
fn remove_containers(socket: &Path) -> Result<()> {
    let ids = program::output(super::patient_docker(socket).args(["ps", "--all", "--quiet"]))?;
    if ids.is_empty() {
        return Ok(());
    }
    program::quietly(super::patient_docker(socket).args(["rm", "--force"]).args(ids.lines()))
        .context("cannot remove the containers of the private engine")
}

fn stop(dockerd: &mut Child) -> Result<()> {
    // The child has not been reaped, so its pid cannot have been reused.
    let asked = kill_process(Pid::from_child(dockerd), Signal::TERM);
    let start = Instant::now();
    while asked.is_ok() && start.elapsed() < STOP_DEADLINE {
        if dockerd.try_wait().context("cannot check dockerd")?.is_some() {
            return Ok(());
        }
        sleep(POLL);
    }
    dockerd.kill().context("cannot kill dockerd")?;
    dockerd.wait().context("cannot wait for dockerd")?;
    Ok(())
}
