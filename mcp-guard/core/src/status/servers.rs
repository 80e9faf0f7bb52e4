//! The status of single servers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::look_age;
use crate::{
    Time,
    evidence::{Contact, Quiescence},
    guard::{FRESH, Guard},
    id::{Pid, Started},
    registry::LiveServer,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    pub identity: String,
    /// The process that began it, or the oldest one that is left.
    pub pid: Pid,
    pub processes: u32,
    /// When it started, in nanoseconds since boot (`CLOCK_BOOTTIME`). With its process, this identifies it.
    #[serde(default)]
    pub started_boot_ns: u64,
    pub age_seconds: u64,
    /// For how long it had done nothing when it was last looked at, although it could run; `None` if that is not
    /// known.
    pub idle_seconds: Option<u64>,
    /// Whether its client can reach it.
    pub contact: Contact,
    /// For how long that was known when it was last looked at; `None` if the look is old.
    #[serde(default)]
    pub contact_seconds: Option<u64>,
    /// Whether it waits for its client and for nothing else; `None` if that is not known.
    #[serde(default)]
    pub quiescent: Option<bool>,
    /// Why it is not quiescent.
    #[serde(default)]
    pub at_work: Option<String>,
    /// Whether a disconnected server has hardly done anything since then. `None` for all others.
    #[serde(default)]
    pub abandoned: Option<bool>,
    /// It cannot run: it was stopped by a signal or a debugger, or its cgroup is frozen.
    #[serde(default)]
    pub stopped: bool,
    /// For how long it has been suspended.
    #[serde(default)]
    pub suspended_seconds: Option<u64>,
    /// Whether the process that started it is gone; `None` if that is not known.
    pub orphaned: Option<bool>,
    /// Memory that no file backs; `None` if it was not read yet.
    pub memory_bytes: Option<u64>,
    /// The age of the last look at it, if it is older than two intervals between looks.
    #[serde(default)]
    pub look_age_seconds: Option<u64>,
    /// Its client: the process at the other end of its stdin, or else of its stdout. If none was found, the program
    /// that started it, see `starter`.
    pub client: Option<ClientStatus>,
    /// The program that started it, if that is in the same guard and lives.
    #[serde(default)]
    pub starter: Option<StarterStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    pub pid: Pid,
    /// The identity that it has or would have as a server, or else the name of its program.
    pub name: Option<String>,
    /// The login session that it belongs to.
    #[serde(default)]
    pub session: Option<String>,
    /// It is at the other end of the server's stdin or stdout.
    #[serde(default)]
    pub holds_stdio: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StarterStatus {
    pub pid: Pid,
    /// As for a client.
    pub name: Option<String>,
    /// As for a client.
    pub session: Option<String>,
}

impl From<StarterStatus> for ClientStatus {
    /// Takes the starter for the client, as long as no other is known.
    fn from(StarterStatus { pid, name, session }: StarterStatus) -> Self {
        Self { pid, name, session, holds_stdio: false }
    }
}

impl ServerStatus {
    /// Returns the servers of a guard, the oldest first; those of one identity if it is given. At most `most`, and
    /// how many more there are.
    #[must_use]
    pub fn all(
        (now, every): (Time, Duration),
        guard: &Guard,
        identity: Option<&str>,
        most: usize,
    ) -> (Vec<Self>, usize) {
        let (registry, fresh) = (&guard.registry, FRESH * every);
        let servers: Vec<_> = registry.servers_of(identity).take(most).collect();
        let left_out = registry.count_of(identity).saturating_sub(servers.len());
        let eldest = registry.eldest(&servers);
        let starter = |(pid, _): Started| StarterStatus {
            pid,
            name: registry.identity_of(pid).map(str::to_owned),
            session: None,
        };
        let status = |server: LiveServer<'_>| Self {
            identity: server.identity.to_owned(),
            pid: eldest.get(&server.id).copied().unwrap_or(server.root),
            processes: server.processes,
            started_boot_ns: server.started.0,
            age_seconds: now.since(server.started).as_secs(),
            idle_seconds: server.idle(now).map(|idle| idle.as_secs()),
            contact: server.known.contact,
            contact_seconds: server.known.contact_for(now, fresh).map(|time| time.as_secs()),
            abandoned: (server.known.contact == Contact::Disconnected)
                .then(|| server.known.is_abandoned()),
            stopped: server.known.is_stopped(),
            quiescent: match server.known.quiescence {
                Quiescence::Unknown => None,
                Quiescence::Quiescent => Some(true),
                Quiescence::AtWork(_) => Some(false),
            },
            at_work: match server.known.quiescence {
                Quiescence::AtWork(why) => Some(why.to_string()),
                Quiescence::Unknown | Quiescence::Quiescent => None,
            },
            suspended_seconds: server.asleep.map(|since| now.since(since).as_secs()),
            orphaned: server.is_orphaned,
            memory_bytes: server.known.memory,
            look_age_seconds: look_age(now, every, server.known)
                .filter(|_| server.asleep.is_none()),
            client: server.starter.map(|one| starter(one).into()),
            starter: server.starter.map(starter),
        };
        (servers.into_iter().map(status).collect(), left_out)
    }
}
