//! What the tests need from the distribution, and how it comes: only when somebody said yes.

use std::io::IsTerminal;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program;
use crate::say::say;

/// Whether this run may install packages and start an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// `--setup` was given, or a person said yes.
    Given,
    /// Nobody was asked yet.
    NotGiven,
}

impl Permission {
    /// What the flag `--setup` says.
    pub fn from_flag(setup: bool) -> Self {
        if setup { Self::Given } else { Self::NotGiven }
    }
}

/// A program that is needed, and the package that brings it.
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

/// What the host tier runs: real node processes under a clamp.
pub const HOST: [Need; 1] = [Need { program: "node", package: "nodejs" }];

const NEEDS: [Need; 6] = [
    Need { program: "busybox", package: "busybox-static" },
    Need { program: "node", package: "nodejs" },
    Need { program: "npm", package: "npm" },
    Need { program: "iptables", package: "iptables" },
    // `docker top` runs it on the host.
    Need { program: "ps", package: "procps" },
    // The independent kernel count that ours is compared with.
    Need { program: "bpftrace", package: "bpftrace" },
];

/// Makes sure that everything the Docker tier needs is installed.
///
/// `engine_answers`: an engine that is already there is used as it is, so no engine package is
/// asked for.
pub fn provide(permission: Permission, engine_answers: bool) -> Result<Permission> {
    let missing = missing(engine_answers);
    if missing.is_empty() {
        return Ok(permission);
    }
    let permission = install(permission, &missing)?;
    // From Debian 13 on the client is a package of its own, which docker.io only recommends.
    if program::find("docker").is_none() {
        apt(&["install", "--yes", "--no-install-recommends", "docker-cli"])?;
    }
    Ok(permission)
}

/// Makes sure that each of these programs is installed.
pub fn provide_all(permission: Permission, needs: &[Need]) -> Result<()> {
    let missing = needs.iter().filter(|need| program::find(need.program).is_none());
    let missing: Vec<&str> = missing.map(|need| need.package).collect();
    if missing.is_empty() { Ok(()) } else { install(permission, &missing).map(drop) }
}

fn install(permission: Permission, missing: &[&str]) -> Result<Permission> {
    let line = install_line(missing);
    let permission = ask(permission, &format!("missing: {}", missing.join(", ")), &line)?;
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], missing].concat())?;
    Ok(permission)
}

/// Asks once when a person can answer; without a yes it is an error that names the command.
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
    format!("{what}; `{command}` or the flag --setup brings it")
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
        // An image holds only this one file: a busybox that needs libraries would not run there.
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
        bail!("there is no apt-get here; install the same with this system's package tool");
    }
    program::quietly(&mut command).context("run as root, with a package mirror in reach")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_the_command() {
        let hint = hint("missing: npm", "apt-get install npm");
        assert_eq!(hint, "missing: npm; `apt-get install npm` or the flag --setup brings it");
    }

    #[test]
    fn a_given_permission_asks_nothing() {
        assert_eq!(ask(Permission::Given, "", "").unwrap(), Permission::Given);
    }
}
