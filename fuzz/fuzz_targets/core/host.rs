//! A host for the core: guards, holds, and orders that wait for their outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use mcp_guard_common::Totals;
use mcp_guard_core::{
    Core, Time,
    diagnose::facts::{
        ContainerFacts, EngineFacts, EngineKind, Facts, HostFacts, Level, TargetFacts, Unit,
    },
    effect::{
        Action, Effect, Input, LimitRequest, OperatorRequest, Order, PolicyThen, Remark, SeenLimit,
        Settled,
    },
    id::{GuardId, Pid, RequestId, Ticket, Ticks},
    incident::{Hold, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    refusal::Refusal,
    registry::Observed,
};

const GUARDS: u8 = 2;
/// The longest that one input may take, with a sanitizer on a busy machine.
const STEP: Duration = Duration::from_secs(1);
/// Longer than any lease here, with all its renewals while the detectors still remember.
const REST: Duration = Duration::from_secs(3 * 3600);
const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const POLICIES: [&str; 4] = [
    "",
    "mode = \"enforce\"\n[[guard]]\nname = \"*\"\nhighest = \"kill\"\npids_limit = 100",
    "mode = \"enforce\"\n[detect.duplicates]\nwarn = 1\nwarn_age = \"0s\"\nact = 1\nact_age = \"0s\"\n\
     response = \"freeze\"\n[respond]\nfreeze_lease = \"1s\"\nclamp_lease = \"1s\"\ncool_down = \"1s\"",
    "[[guard]]\nname = \"other\"",
];

/// One thing that happens on the host.
#[derive(Arbitrary, Debug)]
pub enum Event {
    Wait { ms: u16 },
    WaitLong { s: u16 },
    Guarded { guard: u8, enforce: bool, highest: u8, named: bool, refused: bool },
    Gone { guard: u8 },
    Policy { number: u8 },
    HostTasks { most: u32 },
    Fork { guard: u8, child: u8, parent: u8, late_ms: u8 },
    Exec { guard: u8, pid: u8, program: u8 },
    Exit { guard: u8, pid: u8, code: u8 },
    Servers { guard: u8, count: u8, package: u8 },
    Packages { guard: u8, count: u8 },
    Ended { guard: u8, keep: u8 },
    Attach { guard: Option<u8>, pid: u8, program: Option<u8> },
    Totals { guard: u8, forks: u16, dropped: bool },
    Denials { guard: u8, count: u8 },
    Standing { guard: u8, refused: bool, asked: bool },
    Settle { order: u8, outcome: u8 },
    SettleAll,
    ThawedByOther { guard: u8 },
    Unclamped { guard: u8 },
    Overdue,
    Freeze { guard: u8, lease_s: u8, dry_run: bool },
    Thaw { guard: u8 },
    Kill { guard: u8, dry_run: bool },
    Declared { guard: u8, limit: Option<u8> },
    Limit { guard: u8, in_force: Option<u8>, tasks: Option<u16>, request: Option<(u8, bool)> },
    Facts { read: u8, stored: Option<u8>, in_force: Option<u8>, how: u8 },
}

pub struct Host {
    core: Core,
    now: Time,
    /// Orders without an outcome.
    orders: Vec<Order>,
    /// Reads of facts without an answer.
    reads: Vec<(GuardId, Ticket)>,
    /// Holds that are in force, with the end of their lease.
    holds: BTreeMap<(GuardId, Hold), Time>,
    totals: BTreeMap<GuardId, Totals>,
    /// Large pids, which no single event names.
    next_pid: u32,
}

impl Host {
    pub fn new() -> Self {
        Self {
            core: Core::new(Policy::default()),
            now: Time(1_000_000_000),
            orders: Vec::new(),
            reads: Vec::new(),
            holds: BTreeMap::new(),
            totals: BTreeMap::new(),
            next_pid: 1000,
        }
    }

    pub fn started(&self) -> usize {
        self.next_pid as usize - 1000
    }

    pub fn happens(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Wait { ms } => self.wait(Duration::from_millis(ms.into())),
            Event::WaitLong { s } => self.wait(Duration::from_secs(s.into())),
            Event::Guarded { guard, enforce, highest, named, refused } => {
                let guard = id(guard);
                if self.core.guard(guard).is_some() {
                    return;
                }
                let mode = if enforce { Mode::Enforce } else { Mode::Observe };
                let highest = [Response::Record, Response::Clamp, Response::Freeze, Response::Kill]
                    [usize::from(highest) % 4];
                let terms = Terms::new(mode, highest);
                let name = "web".to_owned();
                let workload =
                    named.then(|| Workload { name: name.clone(), ..Workload::default() });
                let (workload, refusal) = (workload.map(Box::new), rule(refused));
                self.step(Input::Guarded { guard, name, terms, workload, refusal });
            }
            Event::Gone { guard } => self.gone(id(guard)),
            Event::Policy { number } => {
                let text = POLICIES[usize::from(number) % POLICIES.len()];
                let policy = Policy::parse(text).expect("valid");
                self.step(Input::Policy(Box::new(policy)));
            }
            Event::HostTasks { most } => self.step(Input::HostTasks { most: most.into() }),
            Event::Fork { guard, child, parent, late_ms } => {
                let born = now.before(Duration::from_millis(late_ms.into()));
                let (guard, child, parent) = (id(guard), pid(child), pid(parent));
                self.step(Input::Fork { guard, born, child, parent });
            }
            Event::Exec { guard, pid: number, program } => {
                let (guard, born, pid) = (id(guard), now, pid(number));
                self.step(Input::Exec { guard, born, pid, command: argv(program).into() });
            }
            Event::Exit { guard, pid: number, code } => {
                let (guard, pid, code) = (id(guard), pid(number), code.into());
                self.step(Input::Exit { guard, pid, code });
            }
            Event::Servers { guard, count, package } => {
                for _ in 0..u32::from(count % 64) {
                    self.server(id(guard), argv(package | 3));
                }
            }
            Event::Packages { guard, count } => {
                for number in 0..u32::from(count) * 8 {
                    self.server(id(guard), format!("npx\0-y\0p{number}\0").into_bytes());
                }
            }
            Event::Ended { guard, keep } => self.rescan(id(guard), keep.into()),
            Event::Attach { guard, pid: number, program } => {
                let (guard, born, pid) = (guard.map(id), now, pid(number));
                let seen = program.map(|program| Observed {
                    pid,
                    start_ticks: ticks(born),
                    parent: Pid(1),
                    command: argv(program).into(),
                });
                self.step(Input::Attach { guard, born, pid, seen });
            }
            Event::Totals { guard, forks, dropped } => {
                let guard = id(guard);
                let totals = self.totals.entry(guard).or_default();
                totals.process_forks += u64::from(forks);
                totals.dropped += u64::from(dropped);
                let totals = *totals;
                self.step(Input::Totals { guard, totals });
            }
            Event::Denials { guard, count } => {
                self.step(Input::Denials { guard: id(guard), count: count.into() });
            }
            Event::Standing { guard, refused, asked } => {
                self.step(Input::Standing { guard: id(guard), refusal: rule(refused), asked });
            }
            Event::Settle { order, outcome } => {
                if !self.orders.is_empty() {
                    let order = self.orders.remove(usize::from(order) % self.orders.len());
                    self.settle(order, outcome);
                }
            }
            Event::SettleAll => self.settle_all(),
            Event::ThawedByOther { guard } => {
                self.step(Input::ThawedByOther { guard: id(guard) });
            }
            Event::Unclamped { guard } => {
                // A limit that is wanted here, so that it may be a late write of ours.
                self.step(Input::Unclamped { guard: id(guard), found: Limit::Tasks(100) });
            }
            Event::Overdue => self.overdue(),
            Event::Freeze { guard, lease_s, dry_run } => {
                let lease = Duration::from_secs(lease_s.into());
                self.operator(guard, OperatorRequest::Freeze { lease, dry_run, despite: None });
            }
            Event::Thaw { guard } => self.operator(guard, OperatorRequest::Thaw),
            Event::Kill { guard, dry_run } => {
                self.operator(guard, OperatorRequest::Kill { dry_run, despite: None });
            }
            Event::Declared { guard, limit } => {
                self.step(Input::Declared { guard: id(guard), limit: limit.map(u64::from) });
            }
            Event::Limit { guard, in_force, tasks, request } => {
                let request = request.map(|(limit, known)| LimitRequest {
                    limit: limit.into(),
                    at: Duration::from_secs(limit.into()),
                    policy: if known { PolicyThen::Said(None) } else { PolicyThen::Unknown },
                });
                let seen = SeenLimit {
                    in_force: limit(in_force),
                    tasks: tasks.map(u64::from),
                    request,
                    agent_goes_on: false,
                    clamped: false,
                };
                self.step(Input::LimitSeen { guard: id(guard), seen });
            }
            Event::Facts { read, stored, in_force, how } => {
                if !self.reads.is_empty() {
                    let read = self.reads.remove(usize::from(read) % self.reads.len());
                    self.answer(read, stored, limit(in_force), how);
                }
            }
        }
    }

    /// Checks what is true at any time.
    pub fn check(&self) {
        for guard in (0..GUARDS).filter_map(|number| self.core.guard(id(number))) {
            let registry = &guard.registry;
            let trees = registry.trees();
            assert!(registry.live_servers() <= trees.len(), "each live server has a process");
            let mut live: BTreeMap<&str, usize> = BTreeMap::new();
            let mut members = BTreeSet::new();
            for (identity, pids) in &trees {
                *live.entry(identity).or_default() += 1;
                for pid in pids {
                    assert!(registry.holds(*pid) && members.insert(*pid), "{pid} is in one tree");
                }
            }
            assert!(members.len() <= registry.processes());
            assert!(trees.len() <= registry.processes());
            for (name, identity) in registry.identities() {
                let counted = live.get(name).copied().unwrap_or_default();
                assert_eq!(identity.live(), counted, "{name}");
                assert!(identity.live() <= identity.live_peak);
                assert!(identity.live_peak as u64 <= identity.starts);
            }
        }
    }

    /// All processes end, and all orders are carried out. No hold outlives that.
    pub fn comes_to_rest(&mut self) {
        let end = self.now.after(REST);
        for number in 0..GUARDS {
            self.rescan(id(number), 0);
        }
        while self.now < end && !(self.holds.is_empty() && self.orders.is_empty()) {
            self.wait(Duration::from_secs(60));
            for number in 0..GUARDS {
                let guard = id(number);
                let totals = self.totals.get(&guard).copied().unwrap_or_default();
                self.step(Input::Totals { guard, totals });
                let (in_force, tasks) = (Limit::Tasks(100), Some(0));
                let seen = SeenLimit {
                    in_force,
                    tasks,
                    request: None,
                    clamped: false,
                    agent_goes_on: false,
                };
                self.step(Input::LimitSeen { guard, seen });
            }
            while let Some(read) = self.reads.pop() {
                self.answer(read, Some(100), Limit::Tasks(100), 2);
            }
            self.settle_all();
            self.overdue();
            self.settle_all();
        }
        assert!(self.holds.is_empty(), "held for ever: {:?}", self.holds);
        self.check();
        let status = self.core.status(self.now);
        serde_json::to_string(&status).expect("a status is JSON");
    }

    /// Time passes. Each deadline of the core is kept.
    fn wait(&mut self, duration: Duration) {
        let until = self.now.after(duration);
        while let Some(deadline) = self.core.next_deadline().filter(|next| *next <= until) {
            self.now = self.now.max(deadline);
            self.step(Input::Tick);
            let next = self.core.next_deadline();
            assert!(next.is_none_or(|next| next > self.now), "the deadline {next:?} stays");
        }
        self.now = until;
        self.step(Input::Tick);
    }

    fn server(&mut self, guard: GuardId, argv: Vec<u8>) {
        let (born, child) = (self.now, Pid(self.next_pid));
        self.next_pid += 1;
        self.step(Input::Fork { guard, born, child, parent: Pid(1) });
        self.step(Input::Exec { guard, born, pid: child, command: argv.into() });
    }

    /// All processes but the first `keep` have ended, and no record said so.
    fn rescan(&mut self, guard: GuardId, keep: usize) {
        let Some(found) = self.core.guard(guard) else { return };
        let known = found.registry.pids().into_iter().take(keep);
        let start_ticks = ticks(self.now);
        let processes = known
            .map(|pid| {
                let command = argv(pid.0 as u8).into();
                Observed { pid, start_ticks, parent: Pid(1), command }
            })
            .collect();
        self.step(Input::Baseline { guard, processes });
    }

    fn operator(&mut self, guard: u8, request: OperatorRequest) {
        self.step(Input::Operator { guard: id(guard), id: RequestId(1), request });
    }

    /// The cgroup is gone, with what was held there.
    fn gone(&mut self, guard: GuardId) {
        self.holds.retain(|(held, _), _| *held != guard);
        self.totals.remove(&guard);
        self.step(Input::Released { guard });
    }

    fn answer(
        &mut self,
        (guard, ticket): (GuardId, Ticket),
        stored: Option<u8>,
        in_force: Limit,
        how: u8,
    ) {
        let facts = match how % 4 {
            0 => Err("unreadable".to_owned()),
            1 => Ok(Box::new(of_old_podman(facts(stored, in_force)))),
            _ => Ok(Box::new(facts(stored, in_force))),
        };
        let seen = Some(SeenLimit {
            in_force,
            tasks: Some(9),
            request: None,
            clamped: false,
            agent_goes_on: false,
        });
        self.step(Input::LimitFacts { guard, ticket, facts, seen });
    }

    fn overdue(&mut self) {
        let now = self.now;
        let over: Vec<_> =
            self.holds.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for (guard, hold) in over {
            let knows = self.core.guard(guard).is_some_and(|found| found.lease(hold).is_some());
            if !knows {
                self.step(Input::Overdue { guard, hold });
            }
        }
    }

    fn settle_all(&mut self) {
        // A release that is retried, or a further write of a limit, may follow.
        for _ in 0..1000 {
            let Some(order) = self.orders.pop() else { return };
            self.settle(order, 0);
        }
        panic!("orders without end");
    }

    /// Carries out an order as the executor does, and returns its outcome to the core.
    fn settle(&mut self, order: Order, outcome: u8) {
        let Order { ticket, guard, action, .. } = order;
        let outcome = [Outcome::Done, Outcome::Failed, Outcome::NotOurs, Outcome::Refused]
            [usize::from(outcome) % 4];
        let is_guarded = self.core.guard(guard).is_some();
        let outcome = match &action {
            _ if !is_guarded => Outcome::NotOurs,
            Action::Refuse { .. } => Outcome::Refused,
            Action::Contain(wanted) if wanted.mode == Mode::Observe => Outcome::WouldDo,
            Action::Contain(wanted) => {
                if let (Some(hold), Outcome::Done) = (Hold::of(wanted.response), outcome) {
                    self.holds.insert((guard, hold), self.now.after(wanted.lease));
                }
                outcome
            }
            Action::Release { hold, .. } | Action::Disown { hold, .. } => {
                if outcome != Outcome::Failed {
                    self.holds.remove(&(guard, *hold));
                }
                outcome
            }
            Action::Renew { lease } => {
                if let Some(until) = self.holds.get_mut(&(guard, Hold::Clamp)) {
                    *until = self.now.after(*lease);
                }
                outcome
            }
            Action::Warn { .. }
            | Action::RefusalBegins { .. }
            | Action::RefusalEnds
            | Action::Loosen { .. }
            | Action::WriteLimit { .. }
            | Action::GiveUpLimit { .. }
            | Action::LeaveLimit { .. }
            | Action::Suspend(_)
            | Action::Resume { .. }
            | Action::Reap(_)
            | Action::GiveUpServers { .. } => outcome,
        };
        let is_fuse = matches!(&action, Action::Contain(wanted) if wanted.spares_fuse);
        let is_write = matches!(action, Action::WriteLimit { .. });
        let may_arrive = (is_write && outcome == Outcome::Failed).then_some(Remark::MayArrive);
        let spared = (is_fuse && outcome == Outcome::Refused).then_some(Remark::ServesFuse);
        let remark = may_arrive.or(spared);
        let detail = String::new();
        self.step(Input::Settled(Settled { ticket, guard, outcome, detail, remark }));
    }

    fn step(&mut self, input: Input) {
        let refused: Vec<GuardId> = (0..GUARDS)
            .map(id)
            .filter(|guard| self.core.guard(*guard).is_some_and(|one| one.refusal.is_some()))
            .collect();
        let stays_refused = !matches!(input, Input::Standing { .. } | Input::Guarded { .. });
        let mut effects = Vec::new();
        let began = Instant::now();
        self.core.step(self.now, input, &mut effects);
        assert!(began.elapsed() < STEP, "one step took {:?}", began.elapsed());
        for effect in effects {
            match effect {
                Effect::Act(order) => {
                    let changes =
                        matches!(order.action, Action::Contain(_) | Action::WriteLimit { .. });
                    let is_refused = stays_refused && refused.contains(&order.guard);
                    assert!(!(changes && is_refused), "a refused guard: {order:?}");
                    let is_record = matches!(
                        order.action,
                        Action::Warn { .. }
                            | Action::RefusalBegins { .. }
                            | Action::RefusalEnds
                            // The write stays among the orders: its answer comes late.
                            | Action::GiveUpLimit { .. }
                    );
                    if !is_record {
                        self.orders.push(order);
                    }
                }
                Effect::ReadFacts { guard, ticket } => self.reads.push((guard, ticket)),
                Effect::Unguard { guard } => {
                    let held =
                        Hold::ALL.iter().any(|hold| self.holds.contains_key(&(guard, *hold)));
                    assert!(!held, "unguarded with a hold");
                    self.gone(guard);
                }
                Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadStdio { .. }
                | Effect::ReadDenials { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Log { .. } => {}
            }
        }
    }
}

fn id(guard: u8) -> GuardId {
    GuardId(u32::from(guard % GUARDS))
}

/// Few processes, so that events meet.
fn pid(number: u8) -> Pid {
    Pid(2 + u32::from(number % 32))
}

fn ticks(time: Time) -> Ticks {
    Ticks(time.0 / 10_000_000)
}

fn rule(refused: bool) -> Option<Refusal> {
    refused.then_some(Refusal::HoldsPid1)
}

fn limit(tasks: Option<u8>) -> Limit {
    tasks.map_or(Limit::Max, |tasks| Limit::Tasks(tasks.into()))
}

fn argv(program: u8) -> Vec<u8> {
    match program % 8 {
        0 => b"sh\0-c\0true\0".to_vec(),
        1 => b"node\0/root/.npm/_npx/1/node_modules/.bin/a\0".to_vec(),
        2 => Vec::new(),
        3 => b"npx\0-y\0a\0".to_vec(),
        4 => b"uvx\0b\0".to_vec(),
        number => format!("npx\0-y\0p{number}\0").into_bytes(),
    }
}

/// The facts of a container whose limit can be repaired.
fn facts(stored: Option<u8>, in_force: Limit) -> Facts {
    let cgroup = format!("/docker/{ID}");
    Facts {
        target: TargetFacts { cgroup: cgroup.clone(), ..TargetFacts::default() },
        host: HostFacts { pids_enabled: Some(true), ..HostFacts::default() },
        engine: Some(EngineFacts {
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            ..EngineFacts::default()
        }),
        container: Some(ContainerFacts {
            id: ID.into(),
            init: Pid(7),
            pids_limit: stored.map(i64::from),
            ..ContainerFacts::default()
        }),
        chain: vec![
            Level { path: cgroup, max: Some(in_force), ..Level::default() },
            Level { path: "/".into(), ..Level::default() },
        ],
        ..Facts::default()
    }
}

/// An engine that keeps no update: the limit is written to the cgroup and to its unit.
fn of_old_podman(mut facts: Facts) -> Facts {
    let name = format!("libpod-{ID}.scope");
    facts.target.cgroup = format!("/machine.slice/{name}/container");
    facts.chain[0].path.clone_from(&facts.target.cgroup);
    let (kind, version) = (EngineKind::Podman, "4.3.1".to_owned());
    facts.engine = Some(EngineFacts { kind, version, ..EngineFacts::default() });
    facts.unit = Some(Unit { name, transient: true, ..Unit::default() });
    facts
}
