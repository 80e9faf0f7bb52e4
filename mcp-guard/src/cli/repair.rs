//! `repair`: writes a limit where its owner stores it, and proves that it is in force.
//!
//! The state machine that the agent uses too (`mcp_guard_core::limits`) decides what to write, when, and in
//! which steps. This module reads, asks and waits for it, and carries out its orders.

mod tell;
mod watch;

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use clap::Args;
use mcp_guard_core::{
    diagnose::{facts::Facts, judge},
    effect::{Action, Effect, LimitRequest, Outbox, PolicyThen, SeenLimit, Settled},
    id::{GuardId, Ticket, Tickets},
    incident::Outcome,
    limit::{HEADROOM, MOST},
    limits::{Ended, Limits, Rules},
    policy::Mode,
    repair::{self, Plan, Wanted},
};

use self::watch::AgentWatch;
use super::{
    Exit, Failure, HostOptions,
    diagnose::{DEFAULT_POLICY, facts_of, headroom, snapshot},
    hands::{Ends, need_root, open_audit, read_layout},
    out::Terminal,
    resolve::resolve,
    runtime,
};
use crate::{
    executor::{Executor, forbids, is_clamped},
    guards::{Guards, Role},
    host::{clock, layout::LayoutKind, observer::Observer},
    render,
    requests::Requests,
};

/// The only guard of an executor without an agent.
const TARGET: GuardId = GuardId(0);
/// Interval between two reads of the limit in force, and between two attempts at the proof.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
    target: String,
    /// Limit in tasks; without it, the one that the compose file or the engine declares.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST))]
    limit: Option<u64>,
    /// Run every check and print what would be written, but write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write the limit at once, even if more tasks run: new processes and threads then fail.
    #[arg(long)]
    force: bool,
    /// Policy file from which clamp_headroom is read: if the limit is lowered in steps, each step
    /// leaves this number of tasks free.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
}

pub fn repair(
    host: &HostOptions,
    arguments: &Arguments,
    terminal: &Terminal,
) -> Result<Exit, Failure> {
    need_root()?;
    let headroom = headroom(&arguments.policy)?;
    runtime()?.block_on(async {
        // One observer for all reads: each process that hangs occupies one of its threads.
        let observer = Observer::start();
        let facts = facts_of(host, observer.clone(), &arguments.target, headroom).await?;
        let headroom = headroom.unwrap_or(HEADROOM);
        let wanted = Wanted { limit: arguments.limit, force: arguments.force, headroom };
        let plan = match repair::plan(&facts, wanted) {
            Ok(plan) => plan,
            Err(refused) => {
                // A missing target is a failure, not a refusal.
                resolve(host, &arguments.target).await?;
                terminal.answer(&format!("{}: not repaired: {}", facts.target.name, refused.0));
                return Ok(Exit::Wrong);
            }
        };
        terminal.answer(&render::repair::plan(&judge(&facts), &plan));
        let mut repair =
            Repair::begin(host, terminal, observer, arguments, facts, plan, headroom).await?;
        if arguments.dry_run {
            return repair.all_but_the_last_step().await;
        }
        let reached = repair.run().await?;
        repair.tell(reached).await
    })
}

/// How a repair ended.
enum RepairEnd {
    /// The last write is done.
    End,
    /// A signal arrived first.
    Stopped(&'static str),
    /// A write was forbidden or refused.
    Failed(String),
}

struct Repair<'a> {
    host: &'a HostOptions,
    terminal: &'a Terminal,
    observer: Observer,
    target: &'a str,
    /// Decides what to write.
    limits: Limits,
    rules: Rules,
    tickets: Tickets,
    /// The plan that was printed before the first read.
    announced: Plan,
    /// Container id, under which its request is stored.
    id: Option<String>,
    /// Path of the target's cgroup.
    cgroup: String,
    /// Facts for the first plan, read before the repair began.
    first_facts: Option<Facts>,
    requests: Requests,
    /// The request stored before this one.
    former: Option<LimitRequest>,
    agent: AgentWatch,
    executor: Executor,
    guards: Guards,
    ends: Ends,
    /// The signal that arrived during a write.
    stopped: Option<&'static str>,
}

impl<'a> Repair<'a> {
    async fn begin(
        host: &'a HostOptions,
        terminal: &'a Terminal,
        observer: Observer,
        arguments: &'a Arguments,
        facts: Facts,
        plan: Plan,
        headroom: u64,
    ) -> Result<Self, Failure> {
        let target = arguments.target.as_str();
        let held = resolve(host, target).await?;
        let layout = read_layout()?;
        let id = facts.container.as_ref().map(|container| container.id.clone());
        let cgroup = facts.target.cgroup.clone();
        // On a hybrid host, the two trees may use different paths.
        let is_there = layout.kind != LayoutKind::Unified || cgroup == held.subject.cgroup;
        if (id.is_some() && id != held.container) || !is_there {
            return Err(Failure::could_not(format!(
                "{target}: it was replaced in the meantime; try again"
            )));
        }
        let executor = Executor::new(open_audit(host)?, layout, host.engines());
        let is_stored = id.is_some() && !arguments.dry_run;
        // An agent cannot take over a target without a container id, and a dry run stores no request.
        let agent = AgentWatch::new(host, is_stored.then(|| held.cgroup.id()));
        let mut guards = Guards::new();
        guards.insert(TARGET, held, Role::ByHand { seen: None });
        let requests = Requests::new(&host.state_dir);
        let (limit, force) = (plan.limit, arguments.force);
        let mode = if arguments.dry_run { Mode::Observe } else { Mode::Enforce };
        Ok(Self {
            host,
            terminal,
            observer,
            target,
            limits: Limits::once(TARGET, limit, force),
            rules: Rules { mode, policy: None, headroom },
            tickets: Tickets::default(),
            announced: plan,
            former: id.as_deref().and_then(|id| requests.get(id)),
            id,
            cgroup,
            first_facts: Some(facts),
            requests,
            agent,
            executor,
            guards,
            ends: Ends::listen(terminal)?,
            stopped: None,
        })
    }

    /// Runs the same checks as a repair, and reports what it would write.
    async fn all_but_the_last_step(&mut self) -> Result<Exit, Failure> {
        let seen = self.look()?;
        if let Some(forbidden) = self.guards.get(TARGET).and_then(forbids) {
            self.terminal.answer(&format!("  would be refused: {forbidden}"));
            return Ok(Exit::Wrong);
        }
        let mut writes = Vec::new();
        for (action, settled) in self.step(seen).await? {
            if settled.outcome == Outcome::Refused {
                self.terminal.answer(&format!("  would be refused: {}", settled.detail));
                return Ok(Exit::Wrong);
            }
            if let Action::LeaveLimit { write, .. } = action {
                writes.push(write);
            }
        }
        if let Some(Ended::Failed(why)) = self.limits.ended() {
            self.terminal.answer(&format!("  would fail: {why}"));
            return Ok(Exit::Wrong);
        }
        self.terminal.answer(&render::repair::dry_run(&writes, self.plan().limit));
        Ok(Exit::Done)
    }

    /// Lowers the limit in steps until the requested one is in force, however long that takes.
    async fn run(&mut self) -> Result<RepairEnd, Failure> {
        self.store_request()?;
        let (mut step, mut follows, mut waits) = (None, false, false);
        loop {
            let tasks = match self.turn().await {
                Ok(tasks) => tasks,
                Err(failure) => {
                    self.limits.abandon(failure.message);
                    0
                }
            };
            if let Some(signal) = self.stopped {
                return Ok(RepairEnd::Stopped(signal));
            }
            match self.limits.ended() {
                Some(Ended::Reached) => return Ok(RepairEnd::End),
                Some(Ended::Failed(why)) => return Ok(RepairEnd::Failed(why.clone())),
                None => {}
            }
            if follows != self.limits.follows() {
                follows = !follows;
                self.terminal.answer(match follows {
                    true => "  the agent now lowers the limit, even after this command ends",
                    false => "  the agent no longer lowers the limit; this command does",
                });
            }
            if !follows && step != self.limits.step() {
                step = self.limits.step();
                let lowered = step.map(|step| format!("  {tasks} tasks: limit lowered to {step}"));
                lowered.iter().for_each(|line| self.terminal.answer(line));
            }
            if waits != self.limits.waits() {
                waits = !waits;
                if waits {
                    let limit = self.plan().limit;
                    self.terminal.answer(&format!(
                        "  {tasks} tasks: waiting until enough of them end for a limit of {limit}"
                    ));
                }
            }
            if let Some(signal) = self.ends.within(LOOK).await {
                return Ok(RepairEnd::Stopped(signal));
            }
        }
    }

    /// One look at the target, and what follows from it. Returns the number of tasks.
    async fn turn(&mut self) -> Result<u64, Failure> {
        let seen = self.look()?;
        match self.guards.get(TARGET).and_then(forbids) {
            Some(forbidden) => self.limits.abandon(forbidden),
            None => drop(self.step(seen).await?),
        }
        Ok(seen.tasks.unwrap_or_default())
    }

    /// Feeds one reading to the state machine and carries out its orders. Returns how each one ended.
    async fn step(&mut self, seen: SeenLimit) -> Result<Vec<(Action, Settled)>, Failure> {
        let mut effects =
            self.decide(|limits, now, rules, out| limits.look(now, rules, &seen, out));
        let mut ended = Vec::new();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::ReadFacts { ticket, .. } => effects.extend(self.answer(ticket).await?),
                Effect::Act(order) => {
                    let action = order.action.clone();
                    self.executor.apply(&mut self.guards, order);
                    let settled = self.settled_or_stopped().await;
                    effects.extend(self.decide(|limits, now, _, out| {
                        limits.settled(now, &settled, out);
                    }));
                    ended.push((action, settled));
                }
                Effect::Log { message, .. } => tracing::warn!("{message}"),
                // Only an agent carries these out.
                Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadStdio { .. }
                | Effect::ReadDenials { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. } => {}
            }
        }
        Ok(ended)
    }

    /// Waits for the end of an order. A signal ends the wait; the owner may still carry the write out.
    async fn settled_or_stopped(&mut self) -> Settled {
        let signal = tokio::select! {
            settled = self.executor.next_settled(&mut self.guards) => return settled,
            signal = self.ends.signal() => signal,
        };
        self.stopped = Some(signal);
        self.executor.abandon_limits(&mut self.guards);
        self.executor.next_settled(&mut self.guards).await
    }

    fn decide(
        &mut self,
        step: impl FnOnce(&mut Limits, mcp_guard_core::Time, &Rules, &mut Outbox<'_>),
    ) -> VecDeque<Effect> {
        let mut effects = Vec::new();
        let mut out = Outbox { tickets: &mut self.tickets, effects: &mut effects };
        step(&mut self.limits, clock::now(), &self.rules, &mut out);
        effects.into()
    }

    /// Reads the facts that the state machine asks for.
    async fn answer(&mut self, ticket: Ticket) -> Result<VecDeque<Effect>, Failure> {
        let facts = match self.first_facts.take() {
            Some(facts) => Ok(facts),
            None => self.facts().await.map_err(|failure| failure.message),
        };
        if let Ok(facts) = &facts
            && facts.target.cgroup != self.cgroup
        {
            let cgroup = &facts.target.cgroup;
            let why =
                format!("{}: it was restarted in another cgroup, {cgroup}; try again", self.target);
            return Err(Failure::could_not(why));
        }
        let answer = (ticket, facts.map(Box::new));
        let seen = self.look()?;
        Ok(self.decide(|limits, now, rules, out| {
            limits.facts(now, rules, answer, Some(&seen), out);
        }))
    }

    /// The plan whose places must show the limit in the end.
    fn plan(&self) -> &Plan {
        self.limits.plan().unwrap_or(&self.announced)
    }

    /// Reads the facts of the cgroup that is held open, even if its name or pid now refers to another.
    async fn facts(&self) -> Result<Facts, Failure> {
        let snapshot = snapshot(self.host, self.observer.clone()).await?;
        let snapshot = snapshot.with_headroom(Some(self.rules.headroom));
        let Some(id) = &self.id else { return Ok(snapshot.cgroup(&self.cgroup).await) };
        let facts = snapshot.container(id).await.filter(|facts| facts.container.is_some());
        facts.ok_or_else(|| Failure::could_not(format!("{}: no engine lists it", self.target)))
    }

    fn look(&mut self) -> Result<SeenLimit, Failure> {
        let target = self.target;
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT) => {
                Failure::could_not(format!("{target}: it ended in the meantime"))
            }
            _ => Failure::could_not(format!("{target}: its limit cannot be read: {error}")),
        };
        let gone = || Failure::could_not(format!("{target}: it ended in the meantime"));
        let cgroup = &self.guards.get(TARGET).ok_or_else(gone)?.cgroup;
        let clamped = is_clamped(cgroup);
        let tasks = cgroup.pids_current().map_err(failed)?;
        let in_force = cgroup.pids_max().map_err(failed)?;
        let request = self.id.as_deref().and_then(|id| self.requests.get(id));
        let agent_goes_on = self.agent.goes_on(self.announced.limit);
        Ok(SeenLimit { in_force, tasks: Some(tasks), request, agent_goes_on, clamped })
    }

    /// Stores the request before the first write, so that a later `repair` can continue it and an agent aims
    /// for the same limit. A target without a container id has no request.
    fn store_request(&mut self) -> Result<(), Failure> {
        let Some(id) = &self.id else { return Ok(()) };
        // A guard held by an operator has no policy, and may get one later.
        let guarded = self.agent.guarded().filter(|one| !one.by_hand);
        let policy = guarded.map_or(PolicyThen::Unknown, |one| PolicyThen::Said(one.pids_policy));
        let put = self.requests.put(id, self.announced.limit, &self.host.docker, policy);
        let stored = put.map(|_| self.requests.get(id));
        let stored = stored.map_err(|error| {
            let folder = self.host.state_dir.display();
            Failure::could_not(format!(
                "cannot store the request in {folder}: {error}; nothing was changed"
            ))
        })?;
        if let Some(request) = stored {
            self.limits.request_stored(request.at);
        }
        Ok(())
    }
}
