//! Single servers: who started them, which are worth a look, and what the looks have shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use super::{Identity, Registry, Tree, TreeId, ticks};
use crate::{
    Time,
    evidence::{Activity, Channel, Channels, Contact, Known, ServerSeen, StdioAtExec, Use},
    id::{Pid, Started, Ticks},
    server::Naming,
};

/// How many shells and wrappers may stand between a server and its client.
const MAX_WRAPPERS: usize = 4;
/// Most processes of a server that are looked at. A larger one is not known.
pub(super) const MAX_MEMBERS: usize = 256;

/// A look is expected after this many times the usual interval, at the latest.
const LATEST: u32 = 4;

/// How long after its start a server still has its stdio where it was: the Python SDK of MCP needs longer to load.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// The processes from which a server came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Origin {
    root: Pid,
    /// Known by the time of its birth, because its pid may be given to another one.
    parent: Option<(Pid, Time)>,
    /// The nearest ancestor that is neither a shell nor a wrapper.
    client: Option<(Pid, Time)>,
    /// It was found in `/proc`, so its parent may be the one that adopted it.
    is_found: bool,
}

/// A process of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub pid: Pid,
    pub start_ticks: Ticks,
    /// It has started the rest of the server, and waits for the end of that.
    pub is_launcher: bool,
}

/// A server that is worth a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToLookAt {
    pub server: TreeId,
    pub stdio: StdioAtExec,
    /// Its activity in the last look.
    pub activity: Option<Activity>,
    /// Empty if there are too many.
    pub members: Vec<Member>,
}

/// A server that an order is about, as the last look has shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetServer {
    pub server: TreeId,
    pub identity: String,
    /// The process that began it, or the oldest one that is left of it.
    pub root: Pid,
    pub stdio: StdioAtExec,
    pub contact: Contact,
    pub activity: Activity,
    pub members: Vec<Member>,
}

/// A server whose client is looked for. Processes are known by their start times, because their pids may be given
/// to others meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoughtClient {
    /// `None` if its stdio says nothing about a client.
    pub holds: Option<FarEnd>,
    /// The server's own processes.
    pub members: Vec<Started>,
    /// The process that started it, if it lives.
    pub starter: Option<Started>,
}

/// The other end of a server's stdin or stdout, which its client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    WritesTo(Channel),
    ReadsFrom(Channel),
}

/// A live server, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct LiveServer<'a> {
    pub id: TreeId,
    pub identity: &'a str,
    pub naming: Naming,
    /// The process that began it. It may be gone.
    pub root: Pid,
    pub started: Time,
    pub processes: u32,
    /// The process that started it, if it is known and lives.
    pub starter: Option<Started>,
    /// Whether the process that started it is gone. `None` if that is not known.
    pub is_orphaned: Option<bool>,
    /// Since when it is suspended.
    pub asleep: Option<Time>,
    pub known: &'a Known,
}

impl LiveServer<'_> {
    /// Returns for how long it has done nothing: until the last look, or until now if it is suspended.
    #[must_use]
    pub fn idle(&self, now: Time) -> Option<Duration> {
        let slept = self.asleep.map_or(Duration::ZERO, |since| now.since(since));
        Some(self.known.idle()?.saturating_add(slept))
    }
}

#[cfg(test)]
impl<'a> LiveServer<'a> {
    /// For tests of what is said about a single server.
    pub fn example(identity: &'a str, naming: Naming, known: &'a Known) -> Self {
        Self {
            id: TreeId(1),
            identity,
            naming,
            root: Pid(7),
            started: Time(0),
            processes: 1,
            starter: None,
            is_orphaned: None,
            asleep: None,
            known,
        }
    }
}

impl Registry {
    /// Returns the processes of these servers. One with too many is left out.
    #[must_use]
    pub fn members_of(&self, servers: &BTreeSet<TreeId>) -> BTreeMap<TreeId, Vec<Member>> {
        let mut all: BTreeMap<TreeId, Vec<Member>> = BTreeMap::new();
        for (pid, process) in &self.processes {
            if let Some(tree) = process.tree.filter(|tree| servers.contains(tree)) {
                let (start_ticks, is_launcher) = (ticks(process.born), process.is_launcher());
                all.entry(tree).or_default().push(Member { pid: *pid, start_ticks, is_launcher });
            }
        }
        all.retain(|_, members| members.len() <= MAX_MEMBERS);
        all
    }

    /// Returns the servers that are one of several of their identity, or are at least `age` old.
    #[must_use]
    pub fn to_look_at(&self, now: Time, age: Duration) -> Vec<ToLookAt> {
        let has_copies = |tree: &Tree| {
            self.identities.get(&tree.identity).is_some_and(|identity| identity.live() > 1)
        };
        let is_worth = |tree: &Tree| {
            tree.asleep.is_none() && (now.since(tree.started) >= age || has_copies(tree))
        };
        let one = |(id, tree): (&TreeId, &Tree)| {
            let (stdio, activity) = (tree.known.stdio, tree.known.activity());
            (*id, ToLookAt { server: *id, stdio, activity, members: Vec::new() })
        };
        let mut all: BTreeMap<TreeId, ToLookAt> =
            self.trees.iter().filter(|(_, tree)| is_worth(tree)).map(one).collect();
        for (pid, process) in &self.processes {
            let Some(ToLookAt { members, .. }) = process.tree.and_then(|tree| all.get_mut(&tree))
            else {
                continue;
            };
            // One more than allowed, so that it can be told from as many as allowed.
            if members.len() <= MAX_MEMBERS {
                let (start_ticks, is_launcher) = (ticks(process.born), process.is_launcher());
                members.push(Member { pid: *pid, start_ticks, is_launcher });
            }
        }
        let bounded = |mut one: ToLookAt| {
            if one.members.len() > MAX_MEMBERS {
                one.members.clear();
            }
            one
        };
        all.into_values().map(bounded).collect()
    }

    /// Returns the processes that have begun a server since the last call, and whose stdio can be read in time.
    pub fn take_begun(&mut self) -> Vec<Pid> {
        mem::take(&mut self.begun)
    }

    /// Notes what a process has as stdin and stdout that has just begun a server.
    pub fn stdio_read(&mut self, now: Time, pid: Pid, start: Ticks, stdio: StdioAtExec) {
        let Some(process) = self.processes.get(&pid) else { return };
        if ticks(process.born) == start
            && let Some(tree) = process.tree.and_then(|tree| self.trees.get_mut(&tree))
            && tree.origin.root == pid
            && now.since(tree.started) < PROMPT
        {
            tree.known.stdio = stdio;
        }
    }

    /// Takes the looks at some servers, with the time when each began. `every`: when the next ones come, at the
    /// earliest.
    pub fn looked(&mut self, now: Time, every: Duration, seen: &[(TreeId, Time, ServerSeen)]) {
        self.latest = self.latest.max(now);
        for (id, began, seen) in seen {
            let Some(tree) = self.trees.get_mut(id) else { continue };
            // Only a trace has looks at a suspended server, because its agent did not suspend it.
            if tree.asleep.is_some_and(|since| {
                *began <= since || seen.activity.is_none() || seen.activity == tree.known.activity()
            }) {
                continue;
            }
            tree.asleep = None;
            let fresh = began.after(every * LATEST);
            // A file that could not be read for so long has held it up.
            if now >= fresh {
                continue;
            }
            // On a host with many servers, the next look comes as late as this one did.
            let gap = tree.known.looked().map_or(every, |before| now.since(before));
            let next = now.after(gap.clamp(every, every * LATEST));
            let found = tree.known.take(*began, seen);
            // It only runs a timer: nobody can reach it any more.
            if found != Use::Stopped && tree.known.is_abandoned() {
                self.found_idle(*id, next.after(every));
                self.note_proof(now, fresh, *id);
                continue;
            }
            if found == Use::Used {
                self.note_use(now, Some(*id));
            }
            match found {
                Use::Idle => self.found_idle(*id, next.after(every)),
                // Until the next look, nothing says that its use has ended. The first look says nothing of the time
                // right before it.
                Use::Begins | Use::Used | Use::Stopped => self.found_in_use(*id, next),
                Use::Unknown => self.found_nothing(*id),
            }
            if found != Use::Stopped {
                self.note_proof(now, fresh, *id);
            }
        }
    }

    /// Notes that a server is suspended. No look is taken at it, and it counts neither as idle nor as a proved stdio
    /// server until it runs again.
    pub fn set_asleep(&mut self, id: TreeId, now: Time) {
        self.counts_as_used(id);
        let Some(tree) = self.trees.get_mut(&id) else { return };
        tree.asleep = Some(now);
        if mem::take(&mut tree.is_proven)
            && let Some(identity) = self.identities.get_mut(&tree.identity)
        {
            identity.disprove(tree.idle_since(), id);
            self.changed.insert(tree.identity.clone());
        }
    }

    /// Notes that a server was woken. That counts as a use.
    pub fn woke(&mut self, now: Time, id: TreeId) {
        if let Some(tree) = self.trees.get_mut(&id)
            && tree.asleep.take().is_some()
        {
            self.note_use(now, Some(id));
            self.found_in_use(id, now);
        }
    }

    /// Notes whether the last look has proved that a program that is no package is a stdio server without work.
    /// `fresh`: until when the looks at its identity count.
    fn note_proof(&mut self, now: Time, fresh: Time, id: TreeId) {
        let Some(tree) = self.trees.get_mut(&id) else { return };
        let is_proven = !tree.naming.is_firm() && tree.known.is_idle_stdio_server();
        let was_proven = mem::replace(&mut tree.is_proven, is_proven);
        if let Some(identity) = self.identities.get_mut(&tree.identity) {
            let count_again = identity.proofs_count_until(now, fresh);
            match (was_proven, is_proven) {
                (false, true) => identity.prove(tree.idle_since(), id),
                (true, false) => identity.disprove(tree.idle_since(), id),
                (true, true) if count_again => {}
                (true, true) | (false, false) => return,
            }
            self.changed.insert(tree.identity.clone());
        }
    }

    /// Returns all live servers, the oldest of them first.
    pub fn servers(&self) -> impl Iterator<Item = LiveServer<'_>> {
        self.trees.iter().map(|(id, tree)| self.live(*id, tree))
    }

    /// Returns the live servers of one identity, or all of them, the oldest of them first.
    pub fn servers_of(&self, identity: Option<&str>) -> impl Iterator<Item = LiveServer<'_>> {
        let is_asked = move |tree: &Tree| identity.is_none_or(|name| name == &*tree.identity);
        let trees = self.trees.iter().filter(move |(_, tree)| is_asked(tree));
        trees.map(|(id, tree)| self.live(*id, tree))
    }

    /// Returns by what the clients of the same servers are found, `most` at most.
    #[must_use]
    pub fn clients_of(&self, identity: Option<&str>, most: usize) -> Vec<SoughtClient> {
        let servers: Vec<_> = self.servers_of(identity).take(most).collect();
        let mut members: BTreeMap<TreeId, Vec<Started>> =
            servers.iter().map(|server| (server.id, Vec::new())).collect();
        for (pid, process) in &self.processes {
            if let Some(members) = process.tree.and_then(|tree| members.get_mut(&tree)) {
                members.push((*pid, ticks(process.born)));
            }
        }
        let holds = |known: &Known| {
            let StdioAtExec::Are(Channels { stdin, stdout }) = known.stdio else { return None };
            match known.contact {
                Contact::Unknown | Contact::Connected => Some(FarEnd::WritesTo(stdin)),
                Contact::Closing => Some(FarEnd::ReadsFrom(stdout)),
                Contact::NoStdio | Contact::Disconnected => None,
            }
        };
        let sought = |server: LiveServer<'_>| SoughtClient {
            holds: holds(server.known),
            members: members.remove(&server.id).unwrap_or_default(),
            starter: server.starter,
        };
        servers.into_iter().map(sought).collect()
    }

    /// Counts them.
    #[must_use]
    pub fn count_of(&self, identity: Option<&str>) -> usize {
        match identity {
            Some(name) => self.identity(name).map_or(0, Identity::live),
            None => self.trees.len(),
        }
    }

    /// Returns the live servers that were closing or disconnected at the last look.
    pub fn unreachable(&self) -> impl Iterator<Item = LiveServer<'_>> {
        let trees = self.trees.iter().filter(|(_, tree)| match tree.known.contact {
            Contact::Closing | Contact::Disconnected => true,
            Contact::Unknown | Contact::NoStdio | Contact::Connected => false,
        });
        trees.map(|(id, tree)| self.live(*id, tree))
    }

    fn live<'a>(&self, id: TreeId, tree: &'a Tree) -> LiveServer<'a> {
        let Origin { root, parent, client: starter, is_found } = tree.origin;
        let is_gone = |process: Option<(Pid, Time)>| process.map(|one| !self.lives(one));
        let is_orphaned = match (is_gone(parent), is_gone(starter)) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) if !is_found => Some(false),
            _ => None,
        };
        LiveServer {
            id,
            identity: &tree.identity,
            naming: tree.naming,
            root,
            started: tree.started,
            processes: tree.members,
            starter: starter
                .filter(|starter| self.lives(*starter))
                .map(|(pid, born)| (pid, ticks(born))),
            is_orphaned,
            asleep: tree.asleep,
            known: &tree.known,
        }
    }

    /// Returns the process that began each of these servers, or the oldest one that is left of it.
    #[must_use]
    pub fn eldest(&self, servers: &[LiveServer<'_>]) -> BTreeMap<TreeId, Pid> {
        let (mut eldest, mut missing) = (BTreeMap::new(), BTreeSet::new());
        for LiveServer { id, root, .. } in servers {
            if self.tree_of(*root) == Some(*id) {
                eldest.insert(*id, *root);
            } else {
                missing.insert(*id);
            }
        }
        for (_, pid) in &self.births {
            if missing.is_empty() {
                break;
            }
            if let Some(tree) = self.tree_of(*pid).filter(|tree| missing.remove(tree)) {
                eldest.insert(tree, *pid);
            }
        }
        eldest
    }

    /// Adds to each server what must be found unchanged right before anything is done to it. One of which that is not
    /// known is left out.
    #[must_use]
    pub fn targets(&self, servers: &[LiveServer<'_>]) -> Vec<TargetServer> {
        let ids: BTreeSet<TreeId> = servers.iter().map(|server| server.id).collect();
        let (mut members, eldest) = (self.members_of(&ids), self.eldest(servers));
        let one = |server: &LiveServer<'_>| {
            let StdioAtExec::Are(_) = server.known.stdio else { return None };
            Some(TargetServer {
                server: server.id,
                identity: server.identity.to_owned(),
                root: *eldest.get(&server.id)?,
                stdio: server.known.stdio,
                contact: server.known.contact,
                activity: server.known.activity()?,
                members: members.remove(&server.id).filter(|members| !members.is_empty())?,
            })
        };
        servers.iter().filter_map(one).collect()
    }

    /// Returns the server that a process belongs to.
    #[must_use]
    pub fn server_of(&self, pid: Pid) -> Option<TreeId> {
        self.tree_of(pid)
    }

    /// Returns whether a server lives.
    #[must_use]
    pub fn has(&self, server: TreeId) -> bool {
        self.trees.contains_key(&server)
    }

    /// Returns the identity of the server that a process belongs to.
    #[must_use]
    pub fn identity_of(&self, pid: Pid) -> Option<&str> {
        self.tree_of(pid).and_then(|tree| self.trees.get(&tree)).map(|tree| &*tree.identity)
    }

    pub(super) fn lives(&self, (pid, born): (Pid, Time)) -> bool {
        self.processes.get(&pid).is_some_and(|process| process.born == born)
    }

    /// Returns the origin of a server that this process begins.
    pub(super) fn origin_of(&self, root: Pid, is_found: bool) -> Origin {
        let parent_of = |pid: Pid| {
            let process = self.processes.get(&pid)?;
            let parent = self.processes.get(&process.parent)?;
            // A younger one has got its pid.
            (parent.born <= process.born).then_some((process.parent, parent.born))
        };
        let parent = parent_of(root);
        let mut client = parent;
        for _ in 0..MAX_WRAPPERS {
            let is_wrapper = |(pid, _): (Pid, Time)| {
                self.processes.get(&pid).is_some_and(|process| process.is_wrapper)
            };
            match client {
                Some(wrapper) if is_wrapper(wrapper) => client = parent_of(wrapper.0),
                Some(_) | None => break,
            }
        }
        Origin { root, parent, client, is_found }
    }
}
