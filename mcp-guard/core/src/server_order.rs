//! Orders about single servers: to suspend them, or to end them, and what came of it.

use serde::{Deserialize, Serialize};

use crate::{
    evidence::Contact,
    id::{Pid, Ticks},
    incident::{Cause, Outcome},
    policy::Mode,
    registry::{LiveServer, TargetServer},
};

/// Most servers of one order.
pub const MOST: usize = 64;

/// The kind of an order about servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerAct {
    Suspend,
    Reap,
}

/// An order about servers. Nothing of what the looks have shown may have changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServersOrder {
    pub servers: Vec<TargetServer>,
    pub mode: Mode,
    pub cause: Cause,
}

/// A server that an operator has seen in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedServer {
    /// The process that began it, or the oldest one that is left.
    pub pid: Pid,
    pub started_boot_ns: u64,
}

/// The servers that an operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServersRequest {
    pub servers: Vec<ListedServer>,
    pub dry_run: bool,
}

impl ServersRequest {
    /// Whether a server is among those that are named. `eldest`: the process that began it, or the oldest one that is
    /// left.
    #[must_use]
    pub fn names(&self, server: &LiveServer<'_>, eldest: Option<&Pid>) -> bool {
        let is_it = |named: &ListedServer| {
            named.started_boot_ns == server.started.0 && eldest == Some(&named.pid)
        };
        self.servers.iter().any(is_it)
    }
}

/// The reason for which a suspended server runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResumedBy {
    /// Its client has written to its stdin.
    Request,
    /// Its client has closed its end.
    HungUp,
    /// One of its processes has ended.
    Ended,
    /// It has a signal.
    Signal,
    /// The agent did not react for a second, or the process that watches suspended servers did not.
    Silence,
    Operator,
    /// The policy does not suspend it any more, or its guard ends.
    Policy,
    /// The agent ends.
    Shutdown,
}

/// A server of an order, as the audit log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedServer {
    pub identity: String,
    pub pid: Pid,
    pub start_ticks: Ticks,
    pub processes: u64,
    /// Whether its client could reach it.
    #[serde(default)]
    pub contact: Contact,
    /// Bytes of memory that no file backs, read right before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Only after the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ServerResult>,
    /// Why it was spared, or what is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The result of an order for one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerResult {
    /// It ended after SIGTERM.
    Ended,
    /// It did not, and was killed.
    Killed,
    /// Observe mode or a dry run: it would have been ended.
    WouldEnd,
    /// It is frozen, and wakes when its client asks it.
    Suspended,
    /// Observe mode or a dry run: it would have been suspended.
    WouldSuspend,
    /// It was not touched.
    Spared,
    /// Signals were sent to it, and some of its processes have not ended.
    Stays,
}

/// Sums an order up: how it ended, and in words.
#[must_use]
pub fn summary(servers: &[OrderedServer]) -> (Outcome, String) {
    let count = |ends| ended_as(servers, ends).count();
    let gone = [ServerResult::Ended, ServerResult::Killed];
    let (ended, would) = (count(&gone), count(&[ServerResult::WouldEnd]));
    let (spared, stays) = (count(&[ServerResult::Spared]), count(&[ServerResult::Stays]));
    let (suspended, would_suspend) =
        (count(&[ServerResult::Suspended]), count(&[ServerResult::WouldSuspend]));
    let outcome = match (stays, ended + suspended, would + would_suspend) {
        (1.., _, _) => Outcome::Requested,
        (0, 1.., _) => Outcome::Done,
        (0, 0, 1..) => Outcome::WouldDo,
        (0, 0, 0) => Outcome::NotNeeded,
    };
    let mut parts = Vec::new();
    if ended > 0 {
        let processes: u64 = ended_as(servers, &gone).map(|one| one.processes).sum();
        let memory: u64 = ended_as(servers, &gone).filter_map(|one| one.memory).sum();
        let killed = count(&[ServerResult::Killed]);
        let how = if killed > 0 { format!(", {killed} of them by SIGKILL") } else { String::new() };
        parts.push(format!(
            "{} ended{how}: {}, {} MiB given back",
            plural(ended, "server"),
            plural(usize::try_from(processes).unwrap_or(usize::MAX), "process"),
            memory >> 20
        ));
    }
    for (number, what) in [
        (suspended, "suspended"),
        (would, "would be ended"),
        (would_suspend, "would be suspended"),
        (stays, "not ended yet"),
        (spared, "spared"),
    ] {
        if number > 0 {
            parts.push(format!("{} {what}", plural(number, "server")));
        }
    }
    if parts.is_empty() {
        parts.push("no server".to_owned());
    }
    (outcome, parts.join("; "))
}

fn ended_as<'a>(
    servers: &'a [OrderedServer],
    ends: &'a [ServerResult],
) -> impl Iterator<Item = &'a OrderedServer> {
    servers.iter().filter(|one| one.end.is_some_and(|end| ends.contains(&end)))
}

fn plural(count: usize, what: &str) -> String {
    let ending = match (count, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {what}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_summed_up_by_its_worst_server() {
        use ServerResult::{Ended, Killed, Spared, Stays, Suspended, WouldEnd, WouldSuspend};
        let server = |end| OrderedServer {
            identity: "a-mcp".to_owned(),
            pid: Pid(7),
            start_ticks: Ticks(1),
            processes: 2,
            contact: Contact::Disconnected,
            memory: Some(3 << 20),
            end: Some(end),
            detail: None,
        };
        for (ends, outcome, said) in [
            (&[][..], Outcome::NotNeeded, "no server"),
            (&[Ended], Outcome::Done, "1 server ended: 2 processes, 3 MiB given back"),
            (
                &[Ended, Killed, Spared],
                Outcome::Done,
                "2 servers ended, 1 of them by SIGKILL: 4 processes, 6 MiB given back; 1 server spared",
            ),
            (&[Spared, Spared], Outcome::NotNeeded, "2 servers spared"),
            (&[WouldEnd, Spared], Outcome::WouldDo, "1 server would be ended; 1 server spared"),
            (&[Suspended, Spared], Outcome::Done, "1 server suspended; 1 server spared"),
            (&[WouldSuspend], Outcome::WouldDo, "1 server would be suspended"),
            (
                &[Ended, Stays],
                Outcome::Requested,
                "1 server ended: 2 processes, 3 MiB given back; 1 server not ended yet",
            ),
        ] {
            let servers: Vec<_> = ends.iter().map(|end| server(*end)).collect();
            assert_eq!(summary(&servers), (outcome, said.to_owned()));
        }
    }
}
