//! A container with a limit, an engine that stores one, and everything that writes it.

use std::{collections::BTreeMap, mem, time::Duration};

use mcp_guard_common::Totals;
use mcp_guard_core::{
    Core, Time,
    diagnose::facts::{self, Facts},
    effect::{
        Action, Effect, Input, LimitRequest, OperatorRequest, Order, PolicyThen, Remark, SeenLimit,
        Settled,
    },
    id::{GuardId, Pid, RequestId, Ticket},
    incident::{End, Hold, Outcome},
    limit::Limit,
    limits::overtaken,
    policy::{Mode, Policy, Response, Workload},
    repair::Write,
};

pub const GUARD: GuardId = GuardId(3);
/// The limit that our clamp writes here, unless a test sets [`World::clamps_to`].
pub const CLAMP: Limit = Limit::Tasks(30);
/// The limit of another program that is a brake: it is below every limit that is wanted here.
pub const BRAKE: Limit = Limit::Tasks(40);
/// The limit that a slow freeze leaves.
const BESIDE_FREEZE: Limit = Limit::Tasks(10);
const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Three servers of one package are duplicates after two seconds, and a clamp lasts a minute.
const RULES: &str = "[detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\nact = 3\nact_age = \"2s\"\n\
                     [respond]\nclamp_lease = \"1m\"\n";

/// Returns a policy in enforce mode with this `pids_limit`.
pub fn policy(pids_limit: Option<u64>) -> Box<Policy> {
    policy_of("enforce", pids_limit)
}

pub fn observing_policy(pids_limit: Option<u64>) -> Box<Policy> {
    policy_of("observe", pids_limit)
}

fn policy_of(mode: &str, pids_limit: Option<u64>) -> Box<Policy> {
    policy_from(mode, pids_limit, "")
}

/// Returns a policy with more keys.
pub fn policy_with(pids_limit: Option<u64>, more: &str) -> Box<Policy> {
    policy_from("enforce", pids_limit, more)
}

fn policy_from(mode: &str, pids_limit: Option<u64>, more: &str) -> Box<Policy> {
    let limit = pids_limit.map_or_else(String::new, |limit| format!("pids_limit = {limit}\n"));
    let text = format!("mode = \"{mode}\"\n{RULES}{more}[[guard]]\nname = \"*\"\n{limit}");
    Box::new(Policy::parse(&text).expect("valid"))
}

/// Returns the facts of a Docker container as a diagnosis reads them.
pub fn facts(stored: Option<u64>, in_force: Limit) -> Facts {
    let cgroup = format!("/docker/{ID}");
    let own = facts::Level { path: cgroup.clone(), max: Some(in_force), ..Default::default() };
    let engine = facts::EngineFacts { api_version: "1.41".into(), ..docker() };
    let container = facts::ContainerFacts {
        id: ID.into(),
        init: Pid(7),
        pids_limit: stored.map(|limit| i64::try_from(limit).expect("small")),
        ..Default::default()
    };
    Facts {
        target: facts::TargetFacts { cgroup, ..Default::default() },
        host: facts::HostFacts { pids_enabled: Some(true), ..Default::default() },
        engine: Some(engine),
        container: Some(container),
        chain: vec![own, facts::Level { path: "/".into(), ..Default::default() }],
        members: vec![facts::Process {
            pid: Pid(7),
            parent: Pid(1),
            threads: 1,
            ..Default::default()
        }],
        ..Facts::default()
    }
}

fn docker() -> facts::EngineFacts {
    facts::EngineFacts {
        kind: facts::EngineKind::Docker,
        version: "20.10.24".into(),
        ..Default::default()
    }
}

/// Changes the facts to those of an old Podman, which stores no update. The limit belongs to a unit, and the
/// processes are in a cgroup of their own below that unit.
pub fn of_old_podman(mut facts: Facts) -> Facts {
    let name = format!("libpod-{ID}.scope");
    facts.target.cgroup = format!("/machine.slice/{name}/container");
    facts.chain[0].path.clone_from(&facts.target.cgroup);
    let version = "4.3.1".to_owned();
    let kind = facts::EngineKind::Podman;
    facts.engine = Some(facts::EngineFacts { kind, version, ..Default::default() });
    facts.unit = Some(facts::Unit { name, transient: true, ..Default::default() });
    facts
}

/// The two writes that such a limit needs.
pub fn writes_of_old_podman(limit: u64) -> [Write; 2] {
    let unit = format!("libpod-{ID}.scope");
    [Write::PidsMax { limit }, Write::TasksMax { unit, limit, runtime: true }]
}

/// Returns the facts with five servers, each of which may still start a pool of four threads.
pub fn with_five_servers(mut facts: Facts) -> Facts {
    facts.members = (10..15)
        .map(|pid| facts::Process {
            pid: Pid(pid),
            parent: Pid(7),
            threads: 1,
            argv: ["npx", "-y", "figma-mcp"].map(str::to_owned).into(),
            ..Default::default()
        })
        .collect();
    facts
}

/// Changes the facts to those of an old Docker, which ignores updates, so that no plan can be made.
pub fn of_old_docker(mut facts: Facts) -> Facts {
    facts.engine = Some(facts::EngineFacts { api_version: "1.39".into(), ..docker() });
    facts
}

/// A request of the core that waits for an answer.
#[derive(Clone)]
pub enum Asked {
    Facts(Ticket),
    Write(Ticket, Write),
}

#[derive(Clone)]
pub struct World {
    pub core: Core,
    pub now: Time,
    /// `pids.max`.
    pub in_force: Limit,
    /// The limit that the engine stores.
    pub stored: Option<u64>,
    /// None if they cannot be counted.
    pub tasks: Option<u64>,
    /// Changes Docker's facts to those of another engine.
    pub engine: fn(Facts) -> Facts,
    pub request: Option<LimitRequest>,
    /// Why facts cannot be read now, if they cannot.
    pub unread: Option<String>,
    /// The owner refuses every write.
    pub refuses: bool,
    /// The next read of facts fails.
    pub next_unread: bool,
    /// The next write is refused.
    pub next_refused: bool,
    /// The owner does not answer, until [`World::recovers`].
    pub hangs: bool,
    /// The writes that it was asked for meanwhile, and since when. A write is given up after half a minute
    /// at the latest.
    hung: Vec<(Ticket, Write, Time)>,
    /// A late write of ours put it in force.
    pub late: Option<Limit>,
    /// It ended a clamp, which is to be repeated at once.
    owes_clamp: bool,
    /// It was not, because a rule or the mode forbids it.
    pub lost_clamp: bool,
    /// Requests of the core without an answer yet, oldest first.
    pub waiting: Vec<Asked>,
    /// The limit in force when each write was decided on.
    over: BTreeMap<Ticket, Limit>,
    pub written: Vec<Write>,
    pub left: Vec<(Outcome, String)>,
    pub logged: Vec<String>,
    pub disowned: usize,
    /// Writes for a container that is gone.
    stale: Vec<Ticket>,
    pub clamps_to: Limit,
    /// The limit that our clamp replaced, while the cgroup's mark says that the clamp is in force.
    found: Option<Limit>,
    /// The limit before a slow freeze, until another program writes one or the freeze ends.
    unfrozen: Option<Limit>,
    /// The last limit of another program.
    pub others: Limit,
    /// It is in force, and is a brake.
    pub braked: bool,
    /// A clamp that is ordered and has no outcome yet.
    pub clamp: Option<Ticket>,
    /// It was ordered in observe mode.
    observes: bool,
}

impl World {
    /// A guard without servers, so that no detector clamps.
    pub fn new(pids_limit: Option<u64>, stored: Option<u64>) -> Self {
        Self::with(policy(pids_limit), stored)
    }

    pub fn observing(pids_limit: Option<u64>, stored: Option<u64>) -> Self {
        Self::with(observing_policy(pids_limit), stored)
    }

    fn with(policy: Box<Policy>, stored: Option<u64>) -> Self {
        let workload = Workload { name: "gateway".into(), ..Workload::default() };
        let terms = policy.terms(&workload).expect("every name is guarded");
        let mut world = Self {
            core: Core::new(*policy),
            now: Time(60_000_000_000),
            in_force: stored.map_or(Limit::Max, Limit::Tasks),
            stored,
            tasks: Some(10),
            engine: |facts| facts,
            request: None,
            unread: None,
            refuses: false,
            next_unread: false,
            next_refused: false,
            hangs: false,
            hung: Vec::new(),
            late: None,
            owes_clamp: false,
            lost_clamp: false,
            waiting: Vec::new(),
            over: BTreeMap::new(),
            written: Vec::new(),
            left: Vec::new(),
            logged: Vec::new(),
            disowned: 0,
            stale: Vec::new(),
            clamps_to: CLAMP,
            found: None,
            unfrozen: None,
            others: Limit::Max,
            braked: false,
            clamp: None,
            observes: false,
        };
        let (name, workload, refusal) = ("gateway".to_owned(), Some(Box::new(workload)), None);
        world.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
        world.step(Input::Declared { guard: GUARD, limit: stored });
        world
    }

    /// A guard with a leak, and a clamp that is ordered and has no outcome yet.
    pub fn leaking(pids_limit: Option<u64>, stored: Option<u64>) -> Self {
        let mut world = Self::new(pids_limit, stored);
        for pid in (100..103).map(Pid) {
            let (guard, born) = (GUARD, world.now);
            world.step(Input::Fork { guard, born, child: pid, parent: Pid(1) });
            let argv = b"npx\0-y\0figma-mcp\0".to_vec();
            world.step(Input::Exec { guard, born, pid, command: argv.into() });
        }
        world.now = world.now.after(Duration::from_secs(3));
        world.step(Input::Tick);
        assert!(world.clamp.is_some(), "no clamp was ordered for the leak");
        world
    }

    /// Three servers of one package have lived for a while.
    pub fn leak(&mut self) {
        let (now, born) = (self.now, self.now.before(Duration::from_secs(3)));
        self.now = born;
        for pid in (100..103).map(Pid) {
            let command = b"npx\0-y\0figma-mcp\0".to_vec().into();
            self.step(Input::Exec { guard: GUARD, born, pid, command });
        }
        self.now = now;
        self.step(Input::Tick);
    }

    pub fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(order) => self.order(order),
                Effect::ReadFacts { ticket, .. } => self.waiting.push(Asked::Facts(ticket)),
                Effect::ForgetRequest { .. } => self.request = None,
                Effect::Log { message, .. } => self.logged.push(message),
                Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadStdio { .. }
                | Effect::ReadDenials { .. }
                | Effect::Unguard { .. } => {}
            }
        }
    }

    fn give_up(&mut self, write: Ticket) {
        // A write that was not sent to the owner yet never is.
        self.waiting.retain(|asked| !matches!(asked, Asked::Write(ticket, _) if *ticket == write));
        let is_hung = self.hung.iter().any(|(ticket, ..)| *ticket == write);
        let outcome = if is_hung { Outcome::Failed } else { Outcome::NotNeeded };
        self.end(write, outcome, is_hung);
    }

    fn order(&mut self, order: Order) {
        let Order { ticket, action, .. } = &order;
        match action {
            Action::Contain(wanted) if wanted.response == Response::Clamp => {
                let is_write = |asked: &Asked| matches!(asked, Asked::Write(write, _) if !self.stale.contains(write));
                assert!(!self.waiting.iter().any(is_write), "a clamp waits for a write");
                self.clamp = Some(*ticket);
                self.observes = wanted.mode == Mode::Observe;
            }
            Action::WriteLimit { write, over, .. } => {
                self.over.insert(*ticket, *over);
                assert!(!self.is_clamped(), "no limit is written over our clamp");
                assert_eq!(self.clamp, None, "no limit is written over a clamp that is ordered");
                assert!(!self.is_frozen(), "no limit is written during a freeze");
                let guard = self.core.guard(GUARD).expect("guarded");
                assert!(guard.refusal.is_none(), "no limit is written against a rule");
                assert_eq!(guard.terms.mode, Mode::Enforce, "observing writes nothing");
                assert!(!self.braked, "no limit is written over a brake");
                self.waiting.push(Asked::Write(*ticket, write.clone()));
            }
            Action::GiveUpLimit { write } => self.give_up(*write),
            Action::LeaveLimit { outcome, detail, .. } => {
                self.left.push((*outcome, detail.clone()))
            }
            Action::Release { hold: Hold::Clamp, .. } => {
                // A limit of another program stays.
                let is_ours = self.unfrozen() == self.clamps_to;
                if let Some(found) = self.found.take().filter(|_| is_ours) {
                    *self.unfrozen.as_mut().unwrap_or(&mut self.in_force) = found;
                }
            }
            Action::Release { hold: Hold::Freeze, .. } => self.allow_growth(),
            Action::Disown { hold, end } => {
                self.disowned += 1;
                match hold {
                    Hold::Freeze => self.allow_growth(),
                    Hold::Clamp => {
                        let is_ours = self.late == Some(self.unfrozen());
                        let expected = if is_ours { End::LateWrite } else { End::UnclampedByOther };
                        assert_eq!(*end, expected, "who overwrote the clamp");
                        self.owes_clamp = is_ours;
                        self.found = None;
                    }
                }
            }
            Action::Contain(_)
            | Action::Suspend(_)
            | Action::Resume { .. }
            | Action::Reap(_)
            | Action::GiveUpServers { .. }
            | Action::Warn { .. }
            | Action::RefusalBegins { .. }
            | Action::RefusalEnds
            | Action::Refuse { .. }
            | Action::Renew { .. }
            | Action::Loosen { .. } => {}
        }
    }

    /// Returns whether the core believes that it has clamped.
    pub fn is_clamped(&self) -> bool {
        self.core.guard(GUARD).is_some_and(|guard| guard.lease(Hold::Clamp).is_some())
    }

    fn is_frozen(&self) -> bool {
        self.core.guard(GUARD).is_some_and(|guard| guard.lease(Hold::Freeze).is_some())
    }

    pub fn settle_clamp(&mut self, outcome: Outcome) {
        let Some(ticket) = self.clamp.take() else { return };
        self.owes_clamp = false;
        let outcome = if self.observes { Outcome::WouldDo } else { outcome };
        if outcome == Outcome::Done {
            // Beneath a freeze, the clamp is in force once the freeze has ended.
            let now = self.unfrozen.as_mut().unwrap_or(&mut self.in_force);
            self.found = Some(*now);
            *now = self.clamps_to;
        }
        self.settle(ticket, outcome);
    }

    /// Settles a clamp that repeats one which a late write has ended. Any other one is left alone.
    pub fn settle_later_clamp(&mut self) {
        let is_owed = mem::take(&mut self.owes_clamp);
        self.lost_clamp |= is_owed && (self.clamp.is_none() || self.observes);
        self.settle_clamp(if is_owed { Outcome::Done } else { Outcome::NotOurs });
    }

    /// Settles such a clamp, and no other one.
    pub fn settle_owed_clamp(&mut self) {
        if self.owes_clamp {
            self.settle_later_clamp();
        }
    }

    /// Another program writes the limit.
    pub fn write(&mut self, limit: Limit) {
        self.write_ourselves(limit);
        (self.others, self.braked) = (limit, limit == BRAKE);
    }

    fn write_ourselves(&mut self, limit: Limit) {
        (self.unfrozen, self.in_force, self.braked) = (None, limit, false);
        self.late = None;
    }

    /// The owner makes all writes that it was asked for while it did not answer. The guard has not changed.
    pub fn recovers(&mut self) {
        self.hangs = false;
        for (ticket, write, _) in mem::take(&mut self.hung) {
            let limit = Limit::Tasks(write.limit());
            match write {
                Write::Docker { limit } => self.stored = Some(limit),
                Write::PidsMax { .. } | Write::TasksMax { .. } | Write::Podman { .. } => {
                    panic!("only Docker hangs here")
                }
            }
            self.write_ourselves(limit);
            self.late = Some(limit);
            self.written.push(write);
            self.settle(ticket, Outcome::Done);
        }
    }

    /// A write that the owner has not answered for half a minute has failed.
    fn end_hung(&mut self) {
        let patience = Duration::from_secs(30);
        let ended: Vec<Ticket> = (self.hung.iter())
            .filter(|(_, _, since)| self.now.since(*since) >= patience)
            .map(|(ticket, ..)| *ticket)
            .collect();
        for ticket in ended {
            self.end(ticket, Outcome::Failed, true);
        }
    }

    /// A freeze ends.
    fn allow_growth(&mut self) {
        if let Some(before) = self.unfrozen.take() {
            self.in_force = before;
        }
    }

    /// Returns the limit that is in force without our freeze.
    fn unfrozen(&self) -> Limit {
        self.unfrozen.unwrap_or(self.in_force)
    }

    fn settle(&mut self, ticket: Ticket, outcome: Outcome) {
        self.end(ticket, outcome, false);
    }

    fn end(&mut self, ticket: Ticket, outcome: Outcome, may_arrive: bool) {
        let detail = "as the owner says".to_owned();
        let remark = may_arrive.then_some(Remark::MayArrive);
        let settled = Settled { ticket, guard: GUARD, outcome, detail, remark };
        self.step(Input::Settled(settled));
    }

    pub fn seen(&self) -> SeenLimit {
        SeenLimit {
            in_force: self.in_force,
            tasks: self.tasks,
            request: self.request,
            agent_goes_on: false,
            clamped: false,
        }
    }

    /// One second passes, and the agent checks the limit. Waiting requests get no answer.
    pub fn look(&mut self) {
        self.look_after(1);
    }

    pub fn look_after(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.step(Input::Totals { guard: GUARD, totals: Totals::default() });
        if self.is_clamped() && self.unfrozen() != self.clamps_to {
            let found = self.unfrozen();
            self.step(Input::Unclamped { guard: GUARD, found });
        }
        self.end_hung();
        self.step(Input::LimitSeen { guard: GUARD, seen: self.seen() });
    }

    /// Answers the oldest waiting request.
    pub fn answer(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.waiting.remove(0) {
            Asked::Facts(ticket) => {
                let facts = match &self.unread {
                    Some(why) => Err(why.clone()),
                    None if mem::take(&mut self.next_unread) => Err("late".to_owned()),
                    None => Ok(Box::new((self.engine)(facts(self.stored, self.in_force)))),
                };
                let seen = Some(self.seen());
                self.step(Input::LimitFacts { guard: GUARD, ticket, facts, seen });
            }
            Asked::Write(ticket, write) => {
                if self.stale.contains(&ticket) {
                    // The executor no longer guards that container. A write to it has no effect here.
                    return self.settle(ticket, Outcome::Done);
                }
                // A limit without an owner is written by the executor.
                if self.hangs && matches!(write, Write::Docker { .. }) {
                    return self.hung.push((ticket, write, self.now));
                }
                if self.refuses || mem::take(&mut self.next_refused) {
                    return self.settle(ticket, Outcome::Failed);
                }
                // The executor looks at the limit again, right before it asks the owner.
                if overtaken(&write, self.over[&ticket], self.in_force).is_some() {
                    return self.settle(ticket, Outcome::Refused);
                }
                assert!(!self.braked, "no brake is overwritten");
                match write {
                    Write::Docker { limit } => {
                        self.stored = Some(limit);
                        self.write_ourselves(Limit::Tasks(limit));
                    }
                    // The executor checks again, right before it writes.
                    Write::PidsMax { .. } if self.is_clamped() => {
                        return self.settle(ticket, Outcome::NotOurs);
                    }
                    Write::PidsMax { limit } => self.write_ourselves(Limit::Tasks(limit)),
                    // The processes are in a cgroup below the unit's, which this write does not change.
                    Write::TasksMax { .. } => {}
                    Write::Podman { .. } => panic!("it is a Docker container"),
                }
                self.written.push(write);
                self.settle(ticket, Outcome::Done);
            }
        }
    }

    /// Time passes, and every request is answered.
    pub fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.look();
            while !self.waiting.is_empty() {
                self.answer();
            }
        }
    }

    /// The container is gone, and another one of the same name has its slot.
    pub fn begin_again(&mut self) {
        let guard = self.core.guard(GUARD).expect("guarded").clone();
        self.step(Input::Released { guard: GUARD });
        for asked in &self.waiting {
            if let Asked::Write(ticket, _) = asked {
                self.stale.push(*ticket);
            }
        }
        (self.stored, self.request, self.found, self.clamp) = (None, None, None, None);
        // Its engine makes no write for a container that is gone.
        self.hung.clear();
        self.write(Limit::Max);
        let workload = Workload { name: guard.name.clone(), ..Workload::default() };
        let (name, terms, refusal) = (guard.name, guard.terms, None);
        let workload = Some(Box::new(workload));
        self.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
    }

    pub fn ask(&mut self, limit: u64, policy: PolicyThen) {
        let at = Duration::from_nanos(self.now.0);
        self.request = Some(LimitRequest { limit, at, policy });
    }

    pub fn thaw(&mut self) {
        self.operator(OperatorRequest::Thaw);
    }

    /// Freezes for an hour. There is no outcome.
    pub fn freeze(&mut self) {
        let lease = Duration::from_secs(3600);
        self.operator(OperatorRequest::Freeze { lease, dry_run: false, despite: None });
    }

    /// Freezes for a minute, slowly, so that the limit is lowered beside it.
    pub fn freeze_slowly(&mut self) {
        let lease = Duration::from_secs(60);
        self.operator(OperatorRequest::Freeze { lease, dry_run: false, despite: None });
        if self.is_frozen() && self.unfrozen.is_none() && BESIDE_FREEZE < self.in_force {
            self.unfrozen = Some(self.in_force);
            self.in_force = BESIDE_FREEZE;
        }
    }

    /// The servers that leaked end.
    pub fn leak_ends(&mut self) {
        for pid in (100..103).map(Pid) {
            self.step(Input::Exit { guard: GUARD, pid, code: 0 });
        }
    }

    fn operator(&mut self, request: OperatorRequest) {
        self.step(Input::Operator { guard: GUARD, id: RequestId(1), request });
    }

    pub fn wanted(&self) -> Option<u64> {
        let guard = self.core.guard(GUARD)?;
        guard.limits.wanted(guard.terms.pids_limit)
    }
}
