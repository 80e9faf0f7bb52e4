//! The distribution's packages that the tests need. They are installed only with permission.

use std::io::IsTerminal;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program;
use crate::say::say;

/// Whether this run may install packages and start an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// `--setup` was given, or the user said yes.
    Given,
    /// The user was not asked yet.
    NotGiven,
}

impl Permission {
    /// Returns the permission that the flag `--setup` gives.
    pub fn from_flag(setup: bool) -> Self {
        if setup { Self::Given } else { Self::NotGiven }
    }
}

/// A program that is needed, and its package.
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

/// Programs of the host tier: real node processes under a clamp, a file system that hangs, and the
/// queries of docs/audit-log.md.
pub const HOST: [Need; 3] = [
    Need { program: "node", package: "nodejs" },
    // Makes the separate file system for the audit log.
    Need { program: "mkfs.ext4", package: "e2fsprogs" },
    Need { program: "jq", package: "jq" },
];

const NEEDS: [Need; 6] = [
    Need { program: "busybox", package: "busybox-static" },
    Need { program: "node", package: "nodejs" },
    Need { program: "npm", package: "npm" },
    Need { program: "iptables", package: "iptables" },
    // `docker top` runs it on the host.
    Need { program: "ps", package: "procps" },
    // An independent kernel count, which is compared with that of mcp-guard.
    Need { program: "bpftrace", package: "bpftrace" },
];

/// Makes sure that everything that the Docker tier needs is installed.
///
/// With `engine_answers`, the engine that is already there is used, so no engine package is needed.
pub fn provide(permission: Permission, engine_answers: bool) -> Result<Permission> {
    let missing = missing(engine_answers);
    if missing.is_empty() {
        return Ok(permission);
    }
    let permission = install(permission, &missing)?;
    // Since Debian 13 the client is a separate package, which docker.io only recommends.
    if program::find("docker").is_none() {
        apt(&["install", "--yes", "--no-install-recommends", "docker-cli"])?;
    }
    Ok(permission)
}

/// Makes sure that each of these programs is installed.
pub fn provide_all(permission: Permission, needs: &[Need]) -> Result<()> {
    let missing = needs.iter().filter(|need| !installed(need.program));
    let missing: Vec<&str> = missing.map(|need| need.package).collect();
    if missing.is_empty() { Ok(()) } else { install(permission, &missing).map(drop) }
}

/// Installs a program, from this release's backports if the version in the release is too old.
///
/// The system's own list of sources does not change: apt gets a longer list for this call only.
pub fn provide_newer(permission: Permission, need: &Need, oldest: u32) -> Result<()> {
    apt_update(permission, need.package)?;
    if candidate(need.package)?.is_some_and(|version| version >= oldest) {
        return install(permission, &[need.package]).map(drop);
    }
    let (mirror, release) = mirror()?;
    let backports = format!("{release}-backports");
    let own = std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let list = tempfile::Builder::new().suffix(".list").tempfile();
    let list = list.context("cannot create a list of sources for apt")?;
    std::fs::write(list.path(), format!("{own}\ndeb {mirror} {backports} main\n"))
        .context("cannot write a list of sources for apt")?;
    let sources = format!("Dir::Etc::SourceList={}", list.path().display());
    apt(&["-o", &sources, "update"])?;
    let install = ["-o", &sources, "install", "--yes", "--no-install-recommends"];
    apt(&[&install[..], &["--target-release", &backports, need.package]].concat())
}

fn apt_update(permission: Permission, package: &str) -> Result<()> {
    ask(permission, &format!("missing: {package}"), &install_line(&[package]))?;
    apt(&["update"])
}

/// Returns the major version that this release offers.
fn candidate(package: &str) -> Result<Option<u32>> {
    let text = program::output(Command::new("apt-cache").args(["policy", package]))?;
    Ok(major(&text))
}

/// Returns the number between the epoch and the first dot of a line like `  Candidate: 1:7.2+dfsg-7`.
fn major(policy: &str) -> Option<u32> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    version.split('.').next()?.parse().ok()
}

/// Returns the mirror from which apt gets this release, and the release's name.
fn mirror() -> Result<(String, String)> {
    let os = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = name.context("/etc/os-release has no VERSION_CODENAME")?.to_owned();
    let format = "$(RELEASE) $(REPO_URI)";
    let targets = program::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let uri = targets.lines().find_map(|line| line.strip_prefix(&format!("{release} ")));
    Ok((uri.with_context(|| format!("apt has no mirror for {release}"))?.to_owned(), release))
}

fn install(permission: Permission, missing: &[&str]) -> Result<Permission> {
    let line = install_line(missing);
    let permission = ask(permission, &format!("missing: {}", missing.join(", ")), &line)?;
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], missing].concat())?;
    Ok(permission)
}

/// Asks the user once, if stdin is a terminal. Without a yes, returns an error that names the command.
pub fn ask(permission: Permission, what: &str, command: &str) -> Result<Permission> {
    if permission == Permission::Given {
        return Ok(permission);
    }
    if !std::io::stdin().is_terminal() {
        bail!(hint(what, command));
    }
    say(&format!("{what}. Run `{command}` now? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(Permission::Given),
        _ => bail!(hint(what, command)),
    }
}

fn hint(what: &str, command: &str) -> String {
    format!("{what}; run `{command}`, or use --setup")
}

fn missing(engine_answers: bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if program::find("docker").is_none() || (!engine_answers && !installed("dockerd")) {
        missing.push("docker.io");
    }
    for need in NEEDS {
        let needed = need.program != "iptables" || !engine_answers;
        if needed && !installed(need.program) {
            missing.push(need.package);
        }
    }
    missing
}

fn installed(name: &str) -> bool {
    match program::find(name) {
        None => false,
        // The busybox image has no libraries, so busybox must be linked statically: then ldd fails.
        Some(file) if name == "busybox" => program::output(Command::new("ldd").arg(file)).is_err(),
        Some(_) => true,
    }
}

fn install_line(missing: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", missing.join(" "))
}

fn apt(words: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
    say(&program::line(&command));
    if program::find("apt-get").is_none() {
        bail!(
            "apt-get is not installed; install the same packages with this system's package tool"
        );
    }
    program::quietly(&mut command).context("run as root, with a reachable package mirror")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_the_command() {
        let hint = hint("missing: npm", "apt-get install npm");
        assert_eq!(hint, "missing: npm; run `apt-get install npm`, or use --setup");
    }

    #[test]
    fn the_version_that_apt_would_install_is_read() {
        assert_eq!(major("x:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n"), Some(7));
        assert_eq!(major("x:\n  Candidate: (none)\n"), None);
    }

    #[test]
    fn with_permission_nothing_is_asked() {
        assert_eq!(ask(Permission::Given, "", "").unwrap(), Permission::Given);
    }
}
