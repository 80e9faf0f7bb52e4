//! Servers that are to be ended, and what came of it.

use serde::{Deserialize, Serialize};

use crate::{
    evidence::{Activity, Contact, StdioAtExec},
    id::{Pid, Ticks},
    incident::{Cause, Outcome},
    policy::Mode,
    registry::{Member, TreeId},
};

/// Most servers that one order ends.
pub const MOST: usize = 64;

/// An order to end servers. Nothing of what the looks have shown may have changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReapOrder {
    pub servers: Vec<ToReap>,
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

/// Which servers an operator wants ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReapRequest {
    pub servers: Vec<ListedServer>,
    pub dry_run: bool,
}

/// A server that is to be ended, as the last look has shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToReap {
    pub server: TreeId,
    pub identity: String,
    /// The process that began it, or the oldest one that is left of it.
    pub root: Pid,
    pub stdio: StdioAtExec,
    pub contact: Contact,
    pub activity: Activity,
    pub members: Vec<Member>,
}

/// A server of an order, as the audit log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapedServer {
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
    pub end: Option<ReapResult>,
    /// Why it was spared, or what is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How the end of a server went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReapResult {
    /// It ended after SIGTERM.
    Ended,
    /// It did not, and was killed.
    Killed,
    /// Observe mode or a dry run: it would have been ended.
    WouldEnd,
    /// It was not touched.
    Spared,
    /// Signals were sent to it, and some of its processes have not ended.
    Stays,
}

/// Sums an order up: how it ended, and in words.
#[must_use]
pub fn summary(servers: &[ReapedServer]) -> (Outcome, String) {
    let count = |ends| ended_as(servers, ends).count();
    let gone = [ReapResult::Ended, ReapResult::Killed];
    let (ended, would) = (count(&gone), count(&[ReapResult::WouldEnd]));
    let (spared, stays) = (count(&[ReapResult::Spared]), count(&[ReapResult::Stays]));
    let outcome = match (stays, ended, would) {
        (1.., _, _) => Outcome::Requested,
        (0, 1.., _) => Outcome::Done,
        (0, 0, 1..) => Outcome::WouldDo,
        (0, 0, 0) => Outcome::NotNeeded,
    };
    let mut parts = Vec::new();
    if ended > 0 {
        let processes: u64 = ended_as(servers, &gone).map(|one| one.processes).sum();
        let memory: u64 = ended_as(servers, &gone).filter_map(|one| one.memory).sum();
        let killed = count(&[ReapResult::Killed]);
        let how = if killed > 0 { format!(", {killed} of them by SIGKILL") } else { String::new() };
        parts.push(format!(
            "{} ended{how}: {}, {} MiB given back",
            plural(ended, "server"),
            plural(usize::try_from(processes).unwrap_or(usize::MAX), "process"),
            memory >> 20
        ));
    }
    if would > 0 {
        parts.push(format!("{} would be ended", plural(would, "server")));
    }
    if stays > 0 {
        parts.push(format!("{} not ended yet", plural(stays, "server")));
    }
    if spared > 0 {
        parts.push(format!("{} spared", plural(spared, "server")));
    }
    if parts.is_empty() {
        parts.push("no server to end".to_owned());
    }
    (outcome, parts.join("; "))
}

fn ended_as<'a>(
    servers: &'a [ReapedServer],
    ends: &'a [ReapResult],
) -> impl Iterator<Item = &'a ReapedServer> {
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
        use ReapResult::{Ended, Killed, Spared, Stays, WouldEnd};
        let server = |end| ReapedServer {
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
            (&[][..], Outcome::NotNeeded, "no server to end"),
            (&[Ended], Outcome::Done, "1 server ended: 2 processes, 3 MiB given back"),
            (
                &[Ended, Killed, Spared],
                Outcome::Done,
                "2 servers ended, 1 of them by SIGKILL: 4 processes, 6 MiB given back; 1 server spared",
            ),
            (&[Spared, Spared], Outcome::NotNeeded, "2 servers spared"),
            (&[WouldEnd, Spared], Outcome::WouldDo, "1 server would be ended; 1 server spared"),
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
