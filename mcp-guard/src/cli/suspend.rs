//! `suspend` and `resume`: freezes single servers that wait for their client and for nothing else, until it asks them.
//! Only a running agent knows them, and wakes them.

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_core::{
    server_order::{ListedServer, MOST},
    status::ServerStatus,
};

use super::{
    Exit, Failure, HostOptions,
    hands::cgroup_of,
    listed::{listed, tell},
    out,
};
use crate::control::{
    client, lock,
    wire::{Resume, Suspend},
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Target, named as for freeze. A rule of the agent's policy must name it.
    target: String,
    /// Suspend only servers of this identity, as status shows it.
    #[arg(long, value_name = "IDENTITY")]
    server: Option<String>,
    /// For how long a server must have done nothing.
    #[arg(
        long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration
    )]
    idle: Duration,
    /// How many of the newest servers of each identity are left alone.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    keep: usize,
    /// Run every check, but suspend nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct ResumeArguments {
    /// Target, named as for freeze.
    target: String,
    /// Resume only servers of this identity, as status shows it.
    #[arg(long, value_name = "IDENTITY")]
    server: Option<String>,
}

pub fn suspend(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    let Arguments { target, server, idle, keep, dry_run } = arguments;
    let (held, listed) = listed(host, target, server.as_deref())?;
    let name = held.subject.name.as_str();
    let (servers, more) = bounded(chosen(&listed, *idle, *keep));
    if servers.is_empty() {
        out::answer(&format!(
            "{name}: no server to suspend: none but the newest ones is known to be quiescent and to have done \
             nothing for {}; `mcp-guard status {name} --servers` lists them",
            humantime::format_duration(*idle)
        ));
        return Ok(Exit::Done);
    }
    let call = Suspend { target: cgroup_of(&held), servers, dry_run: *dry_run };
    let answer = client::call(&lock::socket(&host.run_dir), &call).map_err(Failure::could_not)?;
    Ok(tell((name, "suspend"), &answer, more))
}

pub fn resume(host: &HostOptions, arguments: &ResumeArguments) -> Result<Exit, Failure> {
    let ResumeArguments { target, server } = arguments;
    let (held, listed) = listed(host, target, server.as_deref())?;
    let name = held.subject.name.as_str();
    let is_suspended = |server: &&ServerStatus| server.suspended_seconds.is_some();
    let (servers, more) = bounded(listed.iter().filter(is_suspended).map(as_listed).collect());
    if servers.is_empty() {
        out::answer(&format!("{name}: no server is suspended"));
        return Ok(Exit::Done);
    }
    let call = Resume { target: cgroup_of(&held), servers };
    let answer = client::call(&lock::socket(&host.run_dir), &call).map_err(Failure::could_not)?;
    Ok(tell((name, "resume"), &answer, more))
}

/// Chooses the servers to suspend, the oldest first.
fn chosen(listed: &[ServerStatus], idle: Duration, keep: usize) -> Vec<ListedServer> {
    let mut awake: BTreeMap<&str, usize> = BTreeMap::new();
    for server in listed.iter().filter(|one| one.suspended_seconds.is_none()) {
        *awake.entry(&server.identity).or_default() += 1;
    }
    let mut all = Vec::new();
    for server in listed.iter().filter(|one| one.suspended_seconds.is_none()) {
        // The oldest come first.
        let left = awake.entry(&server.identity).or_default();
        let is_surplus = *left > keep;
        *left = left.saturating_sub(1);
        let is_idle = server.idle_seconds >= Some(idle.as_secs());
        if is_surplus && is_idle && server.quiescent == Some(true) {
            all.push(as_listed(server));
        }
    }
    all
}

fn as_listed(server: &ServerStatus) -> ListedServer {
    ListedServer { pid: server.pid, started_boot_ns: server.started_boot_ns }
}

/// Returns as many as one order may have, and how many more there are.
fn bounded(mut servers: Vec<ListedServer>) -> (Vec<ListedServer>, usize) {
    let more = servers.len().saturating_sub(MOST);
    servers.truncate(MOST);
    (servers, more)
}
