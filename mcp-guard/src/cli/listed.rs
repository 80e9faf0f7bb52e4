//! The servers that a running agent lists for a target, for commands about single servers.

use mcp_guard_core::{incident::Outcome, status::ServerStatus};

use super::{Exit, Failure, HostOptions, hands::need_root, out, resolve::resolve, runtime};
use crate::{
    control::{
        client, lock,
        wire::{Answer, GetServers},
    },
    guards::Held,
};

/// Returns the cgroup of a target, and its servers, the oldest first.
pub fn listed(
    host: &HostOptions,
    target: &str,
    identity: Option<&str>,
) -> Result<(Held, Vec<ServerStatus>), Failure> {
    need_root()?;
    let held = runtime()?.block_on(resolve(host, target))?;
    if !lock::is_held(&host.run_dir) {
        return Err(Failure::could_not(
            "no agent runs, and only an agent knows the servers of a container: start it with \
             `systemctl start mcp-guard`, and try again two minutes later",
        ));
    }
    let identity = identity.map(str::to_owned);
    let asked = GetServers { cgroup_id: Some(held.cgroup.id()), identity };
    let listed =
        client::call(&lock::socket(&host.run_dir), &asked).map_err(Failure::could_not)?.guards;
    if listed.is_empty() {
        return Err(Failure::could_not(format!(
            "no rule of the policy names this container, so its servers are not known; \
             `mcp-guard policy explain {}` shows why",
            held.subject.name
        )));
    }
    let servers = listed.into_iter().flat_map(|guard| guard.servers).collect();
    Ok((held, servers))
}

/// Shows the answer to an order about servers. `more`: how many were left out.
pub fn tell((name, verb): (&str, &str), answer: &Answer, more: usize) -> Exit {
    let (exit, word) = match answer.outcome {
        Outcome::Done => (Exit::Done, "done"),
        Outcome::WouldDo => (Exit::Done, "dry run"),
        Outcome::NotNeeded => (Exit::Done, "nothing done"),
        Outcome::Requested => (Exit::Wrong, "not complete"),
        Outcome::Refused => (Exit::Wrong, "refused"),
        Outcome::NotOurs => (Exit::Wrong, "left alone"),
        Outcome::Failed => (Exit::Wrong, "FAILED"),
    };
    out::answer(&format!("{name}: {verb} {word}: {}", answer.detail));
    if more > 0 {
        out::answer(&format!("{more} more servers are left; run the command again for them"));
    }
    exit
}
