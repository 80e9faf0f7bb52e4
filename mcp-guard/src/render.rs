//! All output for people. JSON comes from each type's own serde implementation.

mod policy;
pub mod repair;
mod report;
mod servers;

use std::{collections::BTreeMap, time::Duration};

use mcp_guard_core::{
    escape::visible,
    rates::PerSecond,
    status::{HerdStatus, IdentityStatus, UnseenClients},
};

pub use self::{
    policy::{Decision, ExplainedTarget, PolicyFrom, ShownPolicy, explained, shown},
    report::{report, table},
    servers::servers,
};
use crate::control::wire::{Status, WatchedStatus};

#[must_use]
pub fn status(status: &Status) -> String {
    let Status { version, pid, uptime_ms, mode, guards, losses, engine, .. } = status;
    let uptime = humantime::format_duration(Duration::from_secs(uptime_ms / 1000));
    let engine = visible(&engine.to_string());
    let mut text =
        format!("mcp-guard {version}, process {pid}, up {uptime}, mode {mode}, Docker {engine}\n");
    text += &lost(losses, status.audit_lost);
    if status.unguarded > 0 {
        text += &format!(
            "NOT GUARDED: {} cgroups that the policy names; the audit log shows why\n",
            status.unguarded
        );
    }
    if let Some(error) = &status.policy.error {
        let error = error.lines().map(visible).collect::<Vec<_>>().join("\n  ");
        text += &format!("POLICY NOT APPLIED: the old one stays in force\n  {error}\n");
    }
    for herd in &status.herds {
        text += &lost_clients(herd);
    }
    for unseen in &status.clients_unseen {
        text += &unseen_clients(unseen);
    }
    if guards.is_empty() {
        text += "nothing is guarded\n";
    }
    for guard in guards {
        text += &watched(guard);
    }
    text
}

fn lost_clients(herd: &HerdStatus) -> String {
    let names: Vec<_> = herd.containers.iter().map(|name| visible(name)).collect();
    let more = herd.ended - names.len().min(herd.ended);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (number, which) = if herd.abandoned < herd.ended {
        let number = format!("at least {} of {}", herd.abandoned, herd.ended);
        (number, " (the engine does not tell which)")
    } else {
        (herd.abandoned.to_string(), "")
    };
    format!(
        "HERD: {number} containers of {} have no client{which}; their input ended up to {} ago: {}{more}\n",
        visible(&herd.identity),
        humantime::format_duration(Duration::from_secs(herd.longest_seconds)),
        names.join(", ")
    )
}

fn unseen_clients(unseen: &UnseenClients) -> String {
    format!(
        "HERD: unknown for {}: the clients of its containers have not been seen for {}; the agent's log shows why\n",
        visible(&unseen.engine),
        humantime::format_duration(Duration::from_secs(unseen.seconds)),
    )
}

fn lost(losses: &BTreeMap<String, u64>, audit_lost: u64) -> String {
    let audit = ("audit-lines".to_owned(), audit_lost);
    let lost: Vec<String> = losses
        .iter()
        .map(|(cause, count)| (cause.clone(), *count))
        .chain([audit])
        .filter(|(_, count)| *count > 0)
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    if lost.is_empty() {
        "nothing lost\n".to_owned()
    } else {
        format!("LOST: {}\n", lost.join(", "))
    }
}

fn watched(watched: &WatchedStatus) -> String {
    let guard = &watched.guard;
    let paused = if watched.paused { ", paused by its engine" } else { "" };
    let mut text = format!(
        "\n{} ({}{paused}, {}, at most {})\n",
        guard.name, guard.state, guard.mode, guard.highest
    );
    text += &format!("  cgroup {} id {}\n", watched.cgroup, watched.cgroup_id);
    if let Some(tasks) = watched.stopping {
        let tasks = match tasks {
            // A count that was cut short may have come to none.
            0 => "an unknown number of tasks run or wait".to_owned(),
            1 => "1 task runs or waits".to_owned(),
            tasks => format!("{tasks} tasks run or wait"),
        };
        text += &format!("  STILL STOPPING: {tasks} in the kernel\n");
    }
    if guard.not_kept > 0 {
        text += &format!("  REGISTRY FULL: {} processes were not tracked\n", guard.not_kept);
    }
    if let Some(refused) = &guard.refused {
        text += &format!("  never acted on: {refused}\n");
    }
    let limit = watched.pids_max.as_deref().unwrap_or("unknown");
    let tasks =
        watched.pids_current.map_or_else(|| "unknown".to_owned(), |tasks| tasks.to_string());
    text += &format!("  {} processes, {tasks} tasks, pids.max {limit}\n", guard.processes);
    match watched.pids_wanted {
        Some(wanted) if watched.pids_left => {
            text += &format!(
                "  LIMIT NOT IN FORCE: {wanted} is wanted; the audit log shows why it is not restored\n"
            );
        }
        Some(wanted) if limit != wanted.to_string() => {
            text += &format!("  a limit of {wanted} is wanted\n");
        }
        Some(_) | None => {}
    }
    let totals = &guard.totals;
    text += &format!(
        "  since guarded: {} forks, {} threads, {} execs, {} exits, {} arrivals, {} departures\n",
        totals.process_forks,
        totals.thread_forks,
        totals.execs,
        totals.process_exits,
        totals.arrivals,
        totals.departures
    );
    text += "  per second            1 s      10 s      60 s\n";
    text += &rates("launcher starts", &guard.starts_per_second);
    text += &rates("forks", &guard.forks_per_second);
    text += &rates("execs", &guard.execs_per_second);
    text + &counts(&guard.identities)
}

fn rates(what: &str, rates: &PerSecond) -> String {
    format!("    {what:<16}{:>7.2}   {:>7.2}   {:>7.2}\n", rates.one, rates.ten, rates.sixty)
}

const UNKNOWN: &str = "unknown";

fn known(count: Option<usize>) -> String {
    count.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string())
}

/// Lists the servers, the most numerous first.
fn counts(identities: &BTreeMap<String, IdentityStatus>) -> String {
    let mut all: Vec<_> = identities.iter().collect();
    all.sort_by(|a, b| b.1.live.cmp(&a.1.live).then(a.0.cmp(b.0)));
    if all.is_empty() {
        return "  no servers started by npm exec, npx, uvx or similar launchers\n".to_owned();
    }
    let mut text =
        "  live    used    idle  disconnected  orphaned   oldest   memory  starts   peak  server\n"
            .to_owned();
    for (name, one) in all {
        let suspended = match one.suspended {
            0 => String::new(),
            count => format!("  ({count} suspended)"),
        };
        let oldest = one.oldest_seconds.map_or_else(|| "-".to_owned(), servers::short);
        text += &format!(
            "{:>6} {:>7} {:>7}  {:>12}  {:>8}  {oldest:>7} {:>8} {:>7} {:>6}  {name}{suspended}{}\n",
            one.live,
            known(one.used),
            known(one.idle),
            known(one.disconnected),
            known(one.orphaned),
            one.memory_bytes.map_or_else(|| UNKNOWN.to_owned(), servers::mebibytes),
            one.starts,
            one.live_peak,
            servers::old_look(one.look_age_seconds),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_herd_says_how_many_have_no_client_and_whether_it_is_known_which() {
        let herd = |abandoned| HerdStatus {
            engine: "/run/docker.sock".to_owned(),
            identity: "mcp/time".to_owned(),
            abandoned,
            ended: 4,
            containers: ["a", "b", "c"].map(str::to_owned).to_vec(),
            dead_connections: 0,
            living_connections: 0,
            longest_seconds: 720,
        };
        for (abandoned, expected) in [
            (
                3,
                "HERD: at least 3 of 4 containers of mcp/time have no client (the engine does not tell which); \
                 their input ended up to 12m ago: a, b, c and 1 more\n",
            ),
            (
                4,
                "HERD: 4 containers of mcp/time have no client; their input ended up to 12m ago: a, b, c and 1 more\n",
            ),
        ] {
            assert_eq!(lost_clients(&herd(abandoned)), expected);
        }
    }

    #[test]
    fn an_engine_that_cannot_be_looked_at_is_unknown() {
        let unseen = UnseenClients { engine: "/run/docker.sock".to_owned(), seconds: 90 };
        assert_eq!(
            unseen_clients(&unseen),
            "HERD: unknown for /run/docker.sock: the clients of its containers have not been seen for 1m 30s; \
             the agent's log shows why\n"
        );
    }
}
