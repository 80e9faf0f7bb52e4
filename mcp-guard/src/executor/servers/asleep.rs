//! The suspended servers, and how they run again.
//!
//! The warden thaws a server within a millisecond and reports it. Then its processes go back to where they were, on a
//! thread, because the kernel may take long to move them.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use mcp_guard_core::{
    Time,
    audit::{Record, Subject},
    effect::Remark,
    id::Ticket,
    incident::Outcome,
    registry::TreeId,
    server_order::ResumedBy,
};

use super::{
    super::{Executor, LateAnswer, OrderId},
    suspender::SuspendedServer,
};
use crate::{
    host::clock,
    warden::{
        client::{Warden, WardenEvent},
        process::MOST,
        protocol::WokenBy,
    },
};

/// After the end of a warden, another one is not started for this long.
const NO_WARDEN: Duration = Duration::from_secs(60);
/// How often suspended servers are asked whether they have a signal, or run.
const EVERY: Duration = Duration::from_millis(500);
/// How long a server that could not go back is left alone the first time. It doubles each time.
const AGAIN: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// How long the end of the agent may take for the servers that are suspended. All run from the beginning on.
const AT_THE_END: Duration = Duration::from_secs(5);
/// Most reports that are kept about servers that are not known yet.
const MOST_EARLY: usize = 1024;
/// Most suspended servers of one container. The warden has room for several such containers.
const MOST_OF_ONE: usize = 128;
/// This program, also if its file was replaced.
const OURSELVES: &str = "/proc/self/exe";

/// A suspended server, and the order that suspended it.
pub struct Sleeping {
    pub order: OrderId,
    pub subject: Subject,
    pub sleeper: SuspendedServer,
}

/// Servers that have gone back to where they were, or could not.
pub struct Back {
    servers: Vec<(Sleeping, ResumedBy, io::Result<()>)>,
    /// They could not go back before.
    is_again: bool,
    /// The order that wanted it, and its servers.
    order: Option<(OrderId, Vec<TreeId>)>,
}

pub struct Asleep {
    warden: Option<Arc<Warden>>,
    /// No other warden is started before.
    no_warden_until: Time,
    next: Arc<AtomicU64>,
    sleepers: BTreeMap<u64, Sleeping>,
    /// Servers that woke before their order had ended.
    early: BTreeMap<u64, ResumedBy>,
    /// Servers that run again, and whose own cgroup is still there.
    left: Vec<(Sleeping, ResumedBy)>,
    /// When they are tried again, and how long the wait is then.
    left_again: (Time, Duration),
    looked: Time,
}

impl Asleep {
    pub fn new() -> Self {
        let now = clock::now();
        Self {
            warden: None,
            no_warden_until: Time(0),
            // Their cgroups have names of their own in this boot.
            next: Arc::new(AtomicU64::new(now.0)),
            sleepers: BTreeMap::new(),
            early: BTreeMap::new(),
            left: Vec::new(),
            left_again: (now, AGAIN),
            looked: now,
        }
    }

    pub fn next(&self) -> Arc<AtomicU64> {
        self.next.clone()
    }

    /// Whether a server of this cgroup is suspended.
    pub fn has(&self, subject: &Subject) -> bool {
        let all = self.sleepers.values().chain(self.left.iter().map(|(one, _)| one));
        all.into_iter().any(|one| one.subject.is_same_cgroup(subject))
    }

    fn take(&mut self, is_it: impl Fn(&Sleeping) -> bool) -> Vec<Sleeping> {
        let taken = self.sleepers.extract_if(.., |_, one| is_it(one));
        taken.map(|(_, one)| one).collect()
    }

    /// Returns the servers that an order has suspended and that have not woken.
    pub fn of(&self, order: Ticket) -> Vec<TreeId> {
        let its = self.sleepers.values().filter(|one| one.order.ticket == order);
        its.map(|one| one.sleeper.server).collect()
    }
}

impl Executor {
    /// Returns the warden. It is started with the first order.
    pub(super) fn warden(&mut self) -> Result<Arc<Warden>, String> {
        if let Some(warden) = &self.asleep.warden {
            return Ok(warden.clone());
        }
        if clock::now() < self.asleep.no_warden_until {
            return Err("the process that wakes servers has just ended".to_owned());
        }
        let answers = self.to_answers.clone();
        let tell = move |event| {
            // The receiver is gone only when the program ends.
            let _ = answers.send((None, LateAnswer::Warden(event)));
        };
        let warden = Warden::start(Path::new(OURSELVES), tell).map_err(|error| {
            format!("the process that wakes servers cannot be started: {error}")
        })?;
        self.asleep.warden = Some(warden.clone());
        Ok(warden)
    }

    /// Whether so many more servers of a container may be suspended.
    pub(super) fn has_room_for(&self, subject: &Subject, more: usize) -> Result<(), String> {
        let all = self.asleep.sleepers.len() + self.asleep.left.len();
        let own = self.asleep.sleepers.values().filter(|one| one.subject.is_same_cgroup(subject));
        if own.count() + more > MOST_OF_ONE {
            return Err(format!("no more than {MOST_OF_ONE} servers of a container are suspended"));
        }
        if all + more > MOST {
            return Err(format!("no more than {MOST} servers of this host are suspended"));
        }
        Ok(())
    }

    /// Takes a server that an order has suspended.
    pub(in super::super) fn fell_asleep(&mut self, one: Sleeping) {
        let number = one.sleeper.number;
        let (its, now) = (&one.sleeper.warden, &self.asleep.warden);
        // Its warden, or its order, may have ended before.
        let is_watched = now.as_ref().is_some_and(|now| Arc::ptr_eq(now, its));
        let is_wanted = self.under_way.contains_key(&one.order.ticket);
        self.asleep.sleepers.insert(number, one);
        let early = self.asleep.early.remove(&number);
        let lost = !(is_watched && is_wanted);
        if let Some(by) = early.or(lost.then_some(ResumedBy::Silence)) {
            self.wake(|one| one.sleeper.number == number, by, None);
        }
    }

    /// Takes a server that runs, and whose own cgroup is still there.
    pub(in super::super) fn is_left(&mut self, one: Sleeping, by: ResumedBy) {
        self.asleep.left.push((one, by));
    }

    /// Takes what the warden reports.
    pub(in super::super) fn warden_says(&mut self, event: WardenEvent) {
        match event {
            WardenEvent::Woke { number, by } => self.woke(number, resumed_by(by)),
            WardenEvent::Refused { number } => self.woke(number, ResumedBy::Silence),
            WardenEvent::Gone => {
                tracing::error!("the process that wakes servers is gone; all servers run again");
                self.asleep.warden = None;
                self.asleep.no_warden_until = clock::now().after(NO_WARDEN);
                self.wake(|_| true, ResumedBy::Silence, None);
            }
        }
    }

    fn woke(&mut self, number: u64, by: ResumedBy) {
        if self.asleep.sleepers.contains_key(&number) {
            return self.wake(|one| one.sleeper.number == number, by, None);
        }
        // Its thread has not reported it yet, or it is gone.
        self.asleep.early.insert(number, by);
        while self.asleep.early.len() > MOST_EARLY {
            self.asleep.early.pop_first();
        }
    }

    /// Resumes servers for an order.
    pub(in super::super) fn resume(&mut self, order: OrderId, servers: Vec<TreeId>, by: ResumedBy) {
        let guard = order.guard;
        let wanted = servers.clone();
        let is_it =
            move |one: &Sleeping| one.order.guard == guard && wanted.contains(&one.sleeper.server);
        self.wake(is_it, by, Some((order, servers)));
    }

    pub(super) fn wake(
        &mut self,
        is_it: impl Fn(&Sleeping) -> bool,
        by: ResumedBy,
        order: Option<(OrderId, Vec<TreeId>)>,
    ) {
        let sleepers = self.asleep.take(is_it);
        if sleepers.is_empty() && order.is_none() {
            return;
        }
        let servers = sleepers.into_iter().map(|one| (one, by)).collect();
        self.send_back(servers, false, order);
    }

    /// Has servers go back to where they were, on a thread.
    fn send_back(
        &mut self,
        servers: Vec<(Sleeping, ResumedBy)>,
        is_again: bool,
        order: Option<(OrderId, Vec<TreeId>)>,
    ) {
        // All run before the first one is moved.
        for (one, _) in &servers {
            let _ = one.sleeper.child.thaw();
        }
        let answers = self.to_answers.clone();
        let work = move |(servers, order): (Vec<(Sleeping, ResumedBy)>, _)| {
            let back = |(one, by): (Sleeping, ResumedBy)| {
                let ended = one.sleeper.give_back();
                (one, by, ended)
            };
            let servers = servers.into_iter().map(back).collect();
            // The receiver is gone only when the program ends.
            let _ = answers.send((None, LateAnswer::Back(Back { servers, is_again, order })));
        };
        let Some(threads) = &mut self.server_threads else { return work((servers, order)) };
        if let Err(((servers, order), why)) = threads.begin_with((servers, order), work) {
            let left = |(one, by)| (one, by, Err(io::Error::other(why.clone())));
            let servers = servers.into_iter().map(left).collect();
            self.went_back(Back { servers, is_again, order });
        }
    }

    /// Records servers that have gone back to where they were.
    pub(in super::super) fn went_back(&mut self, Back { servers, is_again, order }: Back) {
        let count = servers.len();
        for (one, by, ended) in servers {
            let (outcome, detail) = said(&ended);
            if ended.is_ok() || !is_again {
                self.record_resume(&one, by, outcome, &detail);
            }
            // Until its order has ended, the core does not know that it slept.
            if !is_again && !self.under_way.contains_key(&one.order.ticket) {
                let remark = Remark::Resumed(vec![one.sleeper.server]);
                self.settle_with(one.order.clone(), (outcome, detail), Some(remark));
            }
            if ended.is_err() {
                self.is_left(one, by);
            }
        }
        if let Some((order, servers)) = order {
            let said = if count == 0 {
                (Outcome::NotNeeded, "none of these servers is suspended".to_owned())
            } else {
                (Outcome::Done, format!("servers that run again: {count}"))
            };
            self.settle_with(order, said, Some(Remark::Resumed(servers)));
        }
    }

    fn record_resume(&mut self, one: &Sleeping, by: ResumedBy, outcome: Outcome, detail: &str) {
        let Sleeping { order, subject, sleeper } = one;
        let slept = clock::now().since(sleeper.since);
        tracing::info!(name = subject.name, identity = sleeper.identity, ?by, ?slept, "resumed");
        self.audit.write(Record::Resume {
            incident: order.incident.clone(),
            guard: subject.clone(),
            identity: sleeper.identity.clone(),
            pid: sleeper.root,
            by,
            slept_ms: u64::try_from(slept.as_millis()).unwrap_or(u64::MAX),
            outcome,
            detail: detail.to_owned(),
        });
    }

    /// Shows the warden that the loop goes on, and wakes the servers that have got a signal. Called several times a
    /// second.
    pub fn watch_suspended(&mut self, now: Time) {
        let is_used = !self.asleep.sleepers.is_empty() || self.has_servers_under_way();
        if let Some(warden) = self.asleep.warden.as_ref().filter(|_| is_used) {
            // If it cannot be told, its end is reported.
            let _ = warden.beat();
        }
        if now.since(self.asleep.looked) >= EVERY {
            self.asleep.looked = now;
            self.wake(|one| one.sleeper.has_a_signal(), ResumedBy::Signal, None);
            self.wake(|one| one.sleeper.is_awake(), ResumedBy::Silence, None);
        }
        let (again, wait) = self.asleep.left_again;
        if self.asleep.left.is_empty() {
            self.asleep.left_again = (now, AGAIN);
        } else if again <= now {
            self.asleep.left_again = (now.after(wait), (2 * wait).min(LONGEST));
            let left = std::mem::take(&mut self.asleep.left);
            self.send_back(left, true, None);
        }
    }

    /// Resumes all servers, because the agent ends. A later start gives back what does not go back in time.
    pub fn resume_all(&mut self) {
        let all = self.asleep.take(|_| true);
        for one in &all {
            let _ = one.sleeper.child.thaw();
        }
        let end = clock::now().after(AT_THE_END);
        for one in all {
            let ended = if clock::now() < end {
                one.sleeper.give_back()
            } else {
                Err(io::Error::other("the end of the agent takes too long"))
            };
            let (outcome, detail) = said(&ended);
            self.record_resume(&one, ResumedBy::Shutdown, outcome, &detail);
        }
        self.asleep.warden = None;
    }
}

/// Says whether a server is back where it was.
fn said(ended: &io::Result<()>) -> (Outcome, String) {
    match ended {
        Ok(()) => (Outcome::Done, "its processes are back in their cgroup".to_owned()),
        Err(error) => {
            (Outcome::Failed, format!("it runs, but its own cgroup stays for now: {error}"))
        }
    }
}

fn resumed_by(by: WokenBy) -> ResumedBy {
    match by {
        WokenBy::Request => ResumedBy::Request,
        WokenBy::HungUp => ResumedBy::HungUp,
        WokenBy::Ended => ResumedBy::Ended,
        WokenBy::Silence => ResumedBy::Silence,
    }
}
