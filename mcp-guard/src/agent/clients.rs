//! Adds the clients to a list of servers: the processes at the other ends of their stdio.
//!
//! They are looked for only if somebody asks for the list, and on a thread of its own, because all processes of the
//! host may have to be searched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use mcp_guard_core::{
    Time, escape,
    id::Started,
    redact,
    registry::Observed,
    server::{Grammar, Naming, Start},
    status::{ClientStatus, ServerStatus, StarterStatus},
};

use super::askers::{ReplyTo, send, send_reply};
use crate::{
    control::{
        server::MAX_CONNECTIONS,
        wire::{Servers, failed},
    },
    host::{
        clock,
        evidence::{GuardSearch, SEARCH, holders},
        observer::Observer,
        process::OpenProcess,
    },
};

/// Most lists that wait: each is for a connection of its own.
const WAITING: usize = MAX_CONNECTIONS;
/// A list that has waited longer is sent without the clients that only a search finds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest name of a client, in bytes.
const LONGEST_NAME: usize = 214;

/// A list of servers whose clients are looked for.
pub(super) struct ClientList {
    pub reply: ReplyTo,
    pub servers: Servers,
    /// For each guard in the same order, and then for those that are not listed.
    pub searches: Vec<GuardSearch>,
    pub grammar: Arc<Grammar>,
    /// When the list was begun.
    pub listed: Time,
}

pub(super) struct Clients(mpsc::SyncSender<ClientList>);

impl Clients {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(observer: Observer) -> io::Result<Self> {
        let (lists, wanted) = mpsc::sync_channel::<ClientList>(WAITING);
        let work = move || {
            for list in wanted {
                let ClientList { reply, mut servers, searches, grammar, listed } = list;
                if clock::now().since(listed) < PATIENCE {
                    fill(&mut servers, &searches, &grammar, &observer);
                }
                servers.age_seconds = clock::now().since(listed).as_secs();
                send(reply, servers);
            }
        };
        thread::Builder::new().name("clients".to_owned()).spawn(work)?;
        Ok(Self(lists))
    }

    /// Answers with the list, once the clients are found. It is long, so the loop does not serialise it even if it
    /// cannot be passed on.
    pub fn answer(&self, list: ClientList) {
        let (list, why) = match self.0.try_send(list) {
            Ok(()) => return,
            Err(mpsc::TrySendError::Full(list)) => {
                (list, "too many lists of servers are asked for at a time; ask again")
            }
            Err(mpsc::TrySendError::Disconnected(list)) => {
                (list, "the thread that looks for clients has ended; restart the agent")
            }
        };
        send_reply(list.reply, failed(why));
    }
}

fn fill(servers: &mut Servers, searches: &[GuardSearch], grammar: &Grammar, observer: &Observer) {
    let found = holders(searches, SEARCH);
    let guards = servers.guards.iter_mut().zip(searches.iter().zip(found));
    let all: Vec<_> = guards
        .flat_map(|(guard, (search, found))| {
            guard.servers.iter_mut().zip(&search.servers).zip(found)
        })
        .map(|((server, sought), holder)| (server, sought.starter, holder))
        .collect();
    let processes = all.iter().flat_map(|(_, starter, holder)| [*starter, *holder]).flatten();
    let read = read(processes.collect(), grammar, observer);
    for (server, starter, holder) in all {
        describe(server, starter, holder, &read);
    }
}

/// Adds what was read of a server's starter, and of the process at the other end of its stdio. A process that has ended
/// meanwhile is none, also if another one has its pid.
fn describe(
    server: &mut ServerStatus,
    starter: Option<Started>,
    holder: Option<Started>,
    read: &BTreeMap<Started, Program>,
) {
    let of = |process: Option<Started>| Some((process?.0, read.get(&process?)?.clone()));
    // A starter that is no server has no name of its own.
    let identity = server.starter.take().and_then(|starter| starter.name);
    server.starter = of(starter).map(|(pid, Program { name, session })| StarterStatus {
        pid,
        name: Some(identity.unwrap_or(name)),
        session,
    });
    server.client = match (of(holder), server.starter.clone().map(ClientStatus::from)) {
        (Some(_), Some(starter)) if holder.map(|one| one.0) == Some(starter.pid) => {
            Some(ClientStatus { holds_stdio: true, ..starter })
        }
        (Some((pid, Program { name, session })), _) => {
            Some(ClientStatus { pid, name: Some(name), session, holds_stdio: true })
        }
        (None, starter) => starter,
    };
}

/// The program of a client, as it was read.
#[derive(Clone)]
struct Program {
    name: String,
    session: Option<String>,
}

/// Reads those of these processes that still run.
fn read(
    processes: BTreeSet<Started>,
    grammar: &Grammar,
    observer: &Observer,
) -> BTreeMap<Started, Program> {
    let observed = observer.observe(processes.iter().map(|(pid, _)| *pid).collect());
    let one = |seen: Observed| {
        let known = (seen.pid, seen.start_ticks);
        let process = OpenProcess::open(seen.pid).ok()?;
        if !processes.contains(&known) || process.start_ticks().ok()? != seen.start_ticks {
            return None;
        }
        let name = match grammar.identify(&seen.command) {
            Start::Server(named) if named.naming != Naming::Unclear => named.identity,
            // A shell, or a program whose command line does not say what it runs.
            Start::Server(_) | Start::Shell | Start::Wrapper => comm(&process).ok()?,
        };
        Some((known, Program { name, session: process.session().ok().flatten() }))
    };
    observed.into_iter().filter_map(one).collect()
}

fn comm(process: &OpenProcess) -> io::Result<String> {
    Ok(redact::text(&escape::escape(&process.comm()?, LONGEST_NAME)))
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{
        evidence::Contact,
        id::{CgroupId, Pid, Ticks},
        registry::SoughtClient,
    };

    use super::*;
    use crate::{control::wire::GuardServers, host::process};

    fn server(starter: Pid) -> ServerStatus {
        let starter = StarterStatus { pid: starter, name: None, session: None };
        ServerStatus {
            identity: "a".to_owned(),
            pid: Pid(7),
            processes: 1,
            age_seconds: 60,
            idle_seconds: None,
            contact_seconds: None,
            started_boot_ns: 0,
            contact: Contact::NoStdio,
            quiescent: None,
            at_work: None,
            abandoned: None,
            stopped: false,
            suspended_seconds: None,
            orphaned: Some(false),
            memory_bytes: None,
            look_age_seconds: None,
            client: Some(starter.clone().into()),
            starter: Some(starter),
        }
    }

    /// A list of one server that was started by this process, and the search for its client.
    fn started_by(starter: Started) -> ServerStatus {
        let guard = GuardServers {
            name: "guard".to_owned(),
            cgroup: "/guard".to_owned(),
            cgroup_id: CgroupId(1),
            servers: vec![server(starter.0)],
        };
        let mut servers = Servers { guards: vec![guard], left_out: 0, age_seconds: 0 };
        let sought = SoughtClient { holds: None, members: Vec::new(), starter: Some(starter) };
        let search = GuardSearch { servers: vec![sought], processes: Vec::new() };
        fill(&mut servers, &[search], &Grammar::default(), &Observer::start());
        servers.guards.remove(0).servers.remove(0)
    }

    #[test]
    fn a_process_that_has_the_pid_of_another_one_is_not_named_for_it() {
        let me = process::this();
        let start = OpenProcess::open(me).and_then(|process| process.start_ticks()).unwrap();
        let named = started_by((me, start));
        let starter = named.starter.unwrap();
        assert!(starter.pid == me && starter.name.is_some(), "{starter:?}");
        assert_eq!(named.client, Some(starter.into()));
        let other = started_by((me, Ticks(start.0 - 1)));
        assert_eq!((other.starter, other.client), (None, None));
    }

    #[test]
    fn a_holder_is_the_client_and_its_starter_stays() {
        let program = |name: &str| Program { name: name.to_owned(), session: None };
        let (gateway, worker) = ((Pid(5), Ticks(50)), (Pid(6), Ticks(60)));
        let read = BTreeMap::from([(gateway, program("gateway")), (worker, program("worker"))]);
        for (holder, client) in [
            (None, Some((5, "gateway", false))),
            (Some(gateway), Some((5, "gateway", true))),
            (Some(worker), Some((6, "worker", true))),
            (Some((worker.0, Ticks(61))), Some((5, "gateway", false))),
        ] {
            let mut server = server(gateway.0);
            describe(&mut server, Some(gateway), holder, &read);
            assert_eq!(server.starter.unwrap().name.as_deref(), Some("gateway"));
            let found = server.client.as_ref();
            let found = found.map(|one| (one.pid.0, one.name.as_deref().unwrap(), one.holds_stdio));
            assert_eq!(found, client, "{holder:?}");
        }
    }
}
