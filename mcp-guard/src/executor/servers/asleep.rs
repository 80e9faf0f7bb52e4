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
        protocol::WokenBy,
    },
};

/// After the end of a warden, another one is not started for this long.
const NO_WARDEN: Duration = Duration::from_secs(60);
/// How often suspended processes are asked whether they have a signal, and how often a server that could not go back
/// is tried again.
const EVERY: Duration = Duration::from_millis(500);
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
    servers: Vec<(Sleeping, io::Result<()>)>,
    by: ResumedBy,
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
    /// Servers that run again, and whose cgroup is still there.
    left: Vec<(Sleeping, ResumedBy)>,
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

    /// Takes servers that an order has suspended.
    pub(super) fn fell_asleep(&mut self, sleepers: Vec<Sleeping>) {
        for one in sleepers {
            let number = one.sleeper.number;
            self.asleep.sleepers.insert(number, one);
            if let Some(by) = self.asleep.early.remove(&number) {
                self.wake(|one| one.sleeper.number == number, by, None);
            }
        }
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
            self.wake(|one| one.sleeper.number == number, by, None);
        } else if self.has_servers_under_way() {
            self.asleep.early.insert(number, by);
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
        let warden = self.asleep.warden.clone();
        let work = move || {
            let back = |one: Sleeping| {
                let ended = one.sleeper.child.give_back();
                if let Some(warden) = &warden {
                    // If it cannot be told, it is gone.
                    let _ = warden.release(one.sleeper.number);
                }
                (one, ended)
            };
            Back { servers: sleepers.into_iter().map(back).collect(), by, order }
        };
        let answers = self.to_answers.clone();
        let answer = move |back| {
            let _ = answers.send((None, LateAnswer::Back(back)));
        };
        match &mut self.server_threads {
            Some(threads) => threads.begin_or_do(move || answer(work())),
            None => answer(work()),
        }
    }

    /// Records servers that have gone back to where they were.
    pub(in super::super) fn went_back(&mut self, Back { servers, by, order }: Back) {
        let count = servers.len();
        for (one, ended) in servers {
            let detail = match &ended {
                Ok(()) => "its processes are back in their cgroup".to_owned(),
                Err(error) => format!("it may run, but its own cgroup stays for now: {error}"),
            };
            let outcome = if ended.is_ok() { Outcome::Done } else { Outcome::Failed };
            self.record_resume(&one, by, outcome, &detail);
            let remark = Remark::Resumed(vec![one.sleeper.server]);
            self.settle_with(one.order.clone(), (outcome, detail), Some(remark));
            if ended.is_err() {
                self.asleep.left.push((one, by));
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
        if !self.has_servers_under_way() {
            self.asleep.early.clear();
        }
        if now.since(self.asleep.looked) < EVERY {
            return;
        }
        self.asleep.looked = now;
        self.wake(|one| one.sleeper.has_a_signal(), ResumedBy::Signal, None);
        for (one, by) in std::mem::take(&mut self.asleep.left) {
            match one.sleeper.child.give_back() {
                Ok(()) => {
                    let detail = "its processes are back in their cgroup";
                    self.record_resume(&one, by, Outcome::Done, detail);
                }
                Err(_) => self.asleep.left.push((one, by)),
            }
        }
    }

    /// Resumes all servers, because the agent ends.
    pub fn resume_all(&mut self) {
        for one in self.asleep.take(|_| true) {
            let ended = one.sleeper.child.give_back();
            let (outcome, detail) = match ended {
                Ok(()) => (Outcome::Done, "its processes are back in their cgroup".to_owned()),
                Err(error) => (Outcome::Failed, error.to_string()),
            };
            self.record_resume(&one, ResumedBy::Shutdown, outcome, &detail);
        }
        self.asleep.warden = None;
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
