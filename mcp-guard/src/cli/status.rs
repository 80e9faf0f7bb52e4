//! `status`: shows what the agent reports about itself, its guards and their servers.

use mcp_guard_core::id::CgroupId;
use serde::Serialize;

use super::{Exit, Failure, HostOptions, out, resolve::resolve, runtime};
use crate::{
    control::{
        client, lock,
        wire::{GetServers, WatchedStatus},
    },
    render,
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show only this guard: container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
    target: Option<String>,
    /// List single servers: their age, how long they have done nothing, their client, and whether it can still reach
    /// them.
    #[arg(long)]
    servers: bool,
    /// List only the servers of this identity.
    #[arg(long, value_name = "IDENTITY", requires = "servers")]
    server: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn status(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    let Arguments { target, servers, server, json } = arguments;
    let target = target.as_deref().map(|target| cgroup_id(host, target)).transpose()?;
    if *servers {
        let asked = GetServers { cgroup_id: target, identity: server.clone() };
        let servers = client::call(&lock::socket(&host.run_dir), &asked).map_err(unanswered)?;
        is_guarded(target.is_none() || !servers.guards.is_empty())?;
        let is_found = servers.guards.iter().any(|guard| !guard.servers.is_empty());
        let missing = server.as_ref().filter(|_| !is_found);
        if *json || missing.is_none() {
            print(&servers, *json, render::servers)?;
        }
        return match missing {
            Some(name) => Err(Failure::could_not(format!(
                "no live server is called {name:?}; `mcp-guard status` lists their names"
            ))),
            None => Ok(Exit::Done),
        };
    }
    let mut status = client::status(&lock::socket(&host.run_dir)).map_err(unanswered)?;
    if let Some(target) = target {
        status.guards.retain(|one| one.cgroup_id == target);
        is_guarded(!status.guards.is_empty())?;
        // Herds belong to no guard.
        status.herds.clear();
        status.clients_unseen.clear();
    }
    print(&status, *json, render::status)?;
    let is_wrong = |one: &WatchedStatus| one.pids_left || one.guard.refused.is_some();
    let is_lost = status.audit_lost > 0 || status.unguarded > 0 || status.policy.error.is_some();
    let is_wrong = is_lost || status.guards.iter().any(is_wrong);
    Ok(if is_wrong { Exit::Wrong } else { Exit::Done })
}

fn cgroup_id(host: &HostOptions, target: &str) -> Result<CgroupId, Failure> {
    Ok(runtime()?.block_on(resolve(host, target))?.cgroup.id())
}

fn is_guarded(is_guarded: bool) -> Result<(), Failure> {
    let why = "the target is not guarded; `mcp-guard status` lists the cgroups that are";
    if is_guarded { Ok(()) } else { Err(Failure::could_not(why)) }
}

fn print<T: Serialize>(answer: &T, json: bool, text: fn(&T) -> String) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string(answer).map_err(Failure::could_not)?
    } else {
        text(answer)
    };
    out::answer(&text);
    Ok(())
}

pub fn unanswered(error: client::Error) -> Failure {
    let no_agent = matches!(error, client::Error::NoAgent(_));
    let hint = if no_agent { "; start it with `mcp-guard run`, as root" } else { "" };
    Failure::could_not(format!("{error}{hint}"))
}
