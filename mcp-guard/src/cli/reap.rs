//! `reap`: ends single servers. Only a running agent knows them. What is ended is what was shown: the agent is told
//! each server, and leaves those alone that have changed since.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use mcp_guard_core::{
    evidence::Contact,
    incident::Outcome,
    server_order::{ListedServer, MOST},
    status::ServerStatus,
};

use super::{
    Exit, Failure, HostOptions,
    hands::cgroup_of,
    listed::{listed, tell},
    out,
};
use crate::{
    control::{
        client, lock,
        wire::{Answer, Reap},
    },
    guards::Held,
};

/// For how long a server must have been disconnected.
const LEAST: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Target, named as for freeze. A rule of the agent's policy must name it.
    target: String,
    /// End only servers of this identity, as status shows it.
    #[arg(long, value_name = "IDENTITY")]
    server: Option<String>,
    /// Also end servers whose client can reach them, if they have done nothing for this long and are quiescent. Their
    /// client loses them.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "server")]
    idle: Option<Duration>,
    /// With --idle, leave so many of the servers whose client can reach them: the newest ones.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "idle")]
    keep: usize,
    /// Run every check, but end nothing.
    #[arg(long)]
    dry_run: bool,
    /// End them without a question.
    #[arg(long, short)]
    yes: bool,
}

pub fn reap(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    let (held, listed) = listed(host, &arguments.target, arguments.server.as_deref())?;
    let name = held.subject.name.clone();
    let mut servers = chosen(listed, arguments.idle, arguments.keep);
    if servers.is_empty() {
        out::answer(&format!(
            "{name}: no server to end: none is known to have been disconnected for a minute and to do nothing{}; \
             `mcp-guard status {name} --servers` lists them",
            if arguments.idle.is_some() {
                ", or to be quiescent for as long as was asked"
            } else {
                ""
            }
        ));
        return Ok(Exit::Done);
    }
    let more = servers.len().saturating_sub(MOST);
    servers.truncate(MOST);
    let would = ask(host, &held, &servers, true)?;
    if arguments.dry_run || would.outcome != Outcome::WouldDo {
        return Ok(tell((&name, "reap"), &would, more));
    }
    if !arguments.yes && !is_agreed(&name, &would)? {
        out::answer(&format!("{name}: nothing was done"));
        return Ok(Exit::Wrong);
    }
    Ok(tell((&name, "reap"), &ask(host, &held, &servers, false)?, more))
}

/// Chooses the servers to end, the oldest first.
fn chosen(listed: Vec<ServerStatus>, idle: Option<Duration>, keep: usize) -> Vec<ListedServer> {
    let mut connected: BTreeMap<String, usize> = BTreeMap::new();
    for server in listed.iter().filter(|one| one.contact == Contact::Connected) {
        *connected.entry(server.identity.clone()).or_default() += 1;
    }
    let mut is_chosen = |server: &ServerStatus| match server.contact {
        Contact::Disconnected => {
            server.abandoned == Some(true) && server.contact_seconds >= Some(LEAST.as_secs())
        }
        Contact::Connected => {
            // The oldest come first.
            let left = connected.entry(server.identity.clone()).or_default();
            let is_surplus = *left > keep;
            *left = left.saturating_sub(1);
            let is_idle = |least: Duration| server.idle_seconds >= Some(least.as_secs());
            is_surplus && server.quiescent == Some(true) && idle.is_some_and(is_idle)
        }
        Contact::Unknown | Contact::NoStdio | Contact::Closing => false,
    };
    let listed = listed.into_iter().filter(|server| is_chosen(server));
    listed
        .map(|ServerStatus { pid, started_boot_ns, .. }| ListedServer { pid, started_boot_ns })
        .collect()
}

fn ask(
    host: &HostOptions,
    held: &Held,
    servers: &[ListedServer],
    dry_run: bool,
) -> Result<Answer, Failure> {
    let call = Reap { target: cgroup_of(held), servers: servers.to_vec(), dry_run };
    client::call(&lock::socket(&host.run_dir), &call).map_err(Failure::could_not)
}

/// Asks on the terminal.
fn is_agreed(name: &str, would: &Answer) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "{}\n{name}: nothing was done: stdin is no terminal to ask on; repeat it with --yes",
            would.detail
        )));
    }
    out::answer(&format!("{name}: {}", would.detail));
    let read = || {
        let mut answer = String::new();
        write!(io::stderr(), "End these servers? [y/N] ")?;
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    };
    read().map_err(|error: io::Error| Failure::could_not(error))
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::id::Pid;
    use serde_json::json;

    use super::*;

    fn server(pid: u32, identity: &str, more: &serde_json::Value) -> ServerStatus {
        let mut all = json!({
            "identity": identity, "pid": pid, "processes": 1, "started_boot_ns": pid, "age_seconds": 900,
            "idle_seconds": 600, "contact": "connected", "orphaned": null, "memory_bytes": null,
            "client": null,
        });
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn only_what_nobody_can_reach_is_chosen_and_what_is_idle_if_that_is_asked() {
        let gone = json!({"contact": "disconnected", "abandoned": true, "contact_seconds": 60});
        let listed = || {
            vec![
                server(1, "a", &json!({"quiescent": true})),
                server(2, "a", &json!({"quiescent": false})),
                server(3, "a", &json!({"quiescent": true, "idle_seconds": 299})),
                server(4, "a", &json!({"quiescent": true})),
                server(5, "a", &json!({"quiescent": true})),
                server(6, "b", &json!({"quiescent": true})),
                server(7, "a", &gone),
                server(8, "a", &json!({"contact": "closing", "contact_seconds": 900})),
                server(
                    9,
                    "a",
                    &json!({"contact": "disconnected", "abandoned": false, "contact_seconds": 900}),
                ),
                server(
                    10,
                    "a",
                    &json!({"contact": "disconnected", "abandoned": true, "contact_seconds": 59}),
                ),
                server(11, "a", &json!({"contact": "disconnected", "abandoned": true})),
            ]
        };
        let five = Some(Duration::from_secs(300));
        for (idle, keep, expected) in [
            (None, 1, &[7][..]),
            (five, 1, &[1, 4, 7]),
            (five, 0, &[1, 4, 5, 6, 7]),
            (five, 9, &[7]),
        ] {
            let pids: Vec<Pid> =
                chosen(listed(), idle, keep).into_iter().map(|one| one.pid).collect();
            assert_eq!(
                pids,
                expected.iter().map(|pid| Pid(*pid)).collect::<Vec<_>>(),
                "{idle:?} {keep}"
            );
        }
    }
}
