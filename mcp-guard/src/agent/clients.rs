//! Adds the clients to a list of servers: the processes at the other ends of their stdio.
//!
//! They are looked for only if somebody asks for the list, and on a thread of its own, because all processes of the
//! host may have to be searched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::mpsc,
    thread,
};

use mcp_guard_core::{
    escape,
    id::Pid,
    redact,
    registry::{Observed, SoughtClient},
    server::{Grammar, Naming, Start},
    status::{ClientStatus, ServerStatus},
};

use super::askers::{ReplyTo, send};
use crate::{
    control::wire::Servers,
    host::{evidence::holders, observer::Observer, process::OpenProcess},
};

/// Most lists that wait. Others are answered without the clients that only a search finds.
const WAITING: usize = 4;
/// Longest name of a client, in bytes.
const LONGEST_NAME: usize = 214;

/// A list of servers whose clients are looked for.
pub(super) struct ClientList {
    pub reply: ReplyTo,
    pub servers: Servers,
    /// For each server of each guard, in the same order. `None` if its stdio says nothing about a client.
    pub sought: Vec<Option<SoughtClient>>,
    pub grammar: Grammar,
}

pub(super) struct Clients(mpsc::SyncSender<ClientList>);

impl Clients {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(observer: Observer) -> io::Result<Self> {
        let (lists, wanted) = mpsc::sync_channel::<ClientList>(WAITING);
        let work = move || {
            for list in wanted {
                let ClientList { reply, mut servers, sought, grammar } = list;
                fill(&mut servers, sought, &grammar, &observer);
                send(reply, servers);
            }
        };
        thread::Builder::new().name("clients".to_owned()).spawn(work)?;
        Ok(Self(lists))
    }

    /// Answers with the list, once the clients are found.
    pub fn answer(&self, list: ClientList) {
        if let Err(mpsc::TrySendError::Full(list) | mpsc::TrySendError::Disconnected(list)) =
            self.0.try_send(list)
        {
            send(list.reply, list.servers);
        }
    }
}

fn fill(
    servers: &mut Servers,
    sought: Vec<Option<SoughtClient>>,
    grammar: &Grammar,
    seen: &Observer,
) {
    let all = servers.guards.iter_mut().flat_map(|guard| &mut guard.servers);
    let (mut asked, mut wanted): (Vec<&mut ServerStatus>, Vec<SoughtClient>) =
        (Vec::new(), Vec::new());
    let mut others: Vec<&mut ServerStatus> = Vec::new();
    for (server, sought) in all.zip(sought) {
        match sought {
            Some(sought) => {
                asked.push(server);
                wanted.push(sought);
            }
            None => others.push(server),
        }
    }
    let found = holders(&wanted);
    let starters = asked.iter().chain(&others).filter_map(|one| Some(one.client.as_ref()?.pid));
    let pids: BTreeSet<Pid> = found.iter().flatten().copied().chain(starters).collect();
    let named = named(pids, grammar, seen);
    for (server, holder) in asked.iter_mut().zip(found) {
        let Some(holder) = holder else { continue };
        // A holder that has ended meanwhile is none.
        let Some((name, _)) = named.get(&holder) else { continue };
        match &mut server.client {
            Some(client) if client.pid == holder => {
                client.holds_stdio = true;
                // A starter that is no server has no name of its own.
                client.name.get_or_insert_with(|| name.clone());
            }
            client => {
                let name = Some(name.clone());
                *client =
                    Some(ClientStatus { pid: holder, name, session: None, holds_stdio: true });
            }
        }
    }
    for client in asked.into_iter().chain(others).filter_map(|server| server.client.as_mut()) {
        client.session = named.get(&client.pid).and_then(|(_, session)| session.clone());
    }
}

/// Returns the name and the login session of each process.
fn named(
    pids: BTreeSet<Pid>,
    grammar: &Grammar,
    observer: &Observer,
) -> BTreeMap<Pid, (String, Option<String>)> {
    let observed = observer.observe(pids.into_iter().collect());
    let one = |seen: Observed| {
        let process = OpenProcess::open(seen.pid).ok()?;
        let name = match grammar.identify(&seen.command) {
            Start::Server(named) if named.naming != Naming::Unclear => named.identity,
            // A shell, or a program whose command line does not say what it runs.
            Start::Server(_) | Start::Shell | Start::Wrapper => comm(&process).ok()?,
        };
        Some((seen.pid, (name, process.session().ok().flatten())))
    };
    observed.into_iter().filter_map(one).collect()
}

fn comm(process: &OpenProcess) -> io::Result<String> {
    Ok(redact::text(&escape::escape(&process.comm()?, LONGEST_NAME)))
}
