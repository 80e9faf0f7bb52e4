//! `repair`: a limit, written where it is kept, and proved.

mod tell;

use std::time::{Duration, Instant};

use clap::Args;
use mcp_guard_core::{
    diagnose::{facts::Facts, judge},
    effect::Outcome,
    limit::Limit,
    policy::Mode,
    repair::{self, Next, Plan, STEP, Write},
    status::GuardState,
};

use super::{
    Exit, Failure, Host,
    diagnose::{one, snapshot},
    hands::{Ends, need_root, open_audit, read_layout},
    out,
    resolve::resolve,
    runtime,
};
use crate::{
    control::{client, lock, wire::WatchedStatus},
    engine::Engines,
    executor::{Executor, Held},
    host::{layout::Kind, observer::Observer},
    owner, render,
    wanted::Limits,
};

/// The only guard of an executor without an agent.
const TARGET: u32 = 0;
/// Between two looks at what an agent has reached, and at a proof that is not there yet.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which the agent is asked again whether it goes on.
const ASK: u32 = 5;
/// An agent that is restarted goes on within this time.
const GRACE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path, pid:N.
    target: String,
    /// Tasks; without it, what the compose file or the engine declares.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// All checks, and what would be written; nothing is.
    #[arg(long)]
    dry_run: bool,
    /// At once, also below what runs there now: every new process and thread in it will fail.
    #[arg(long)]
    force: bool,
}

pub fn repair(host: &Host, arguments: &Arguments) -> Result<Exit, Failure> {
    need_root()?;
    runtime()?.block_on(async {
        // One for all looks: each process that hangs takes a thread of it.
        let observer = Observer::start();
        let facts = one(&snapshot(host, observer.clone()).await?, &arguments.target).await?;
        let plan = match repair::plan(&facts, arguments.limit, arguments.force) {
            Ok(plan) => plan,
            Err(refused) => {
                out::answer(&format!("{}: not repaired: {}", facts.target.name, refused.0));
                return Ok(Exit::Wrong);
            }
        };
        out::answer(&render::repair::plan(&judge(&facts), &plan));
        let mut repair = Repair::begin(host, observer, arguments, facts, plan).await?;
        if arguments.dry_run {
            return repair.all_but_the_last_step();
        }
        let reached = repair.run().await?;
        repair.tell(reached).await
    })
}

/// How a repair ended.
enum Reached {
    /// The last write is done.
    End,
    /// A signal came first.
    Stopped(&'static str),
    /// Somebody forbade or refused a write.
    Failed(String),
}

struct Repair<'a> {
    host: &'a Host,
    observer: Observer,
    target: &'a str,
    force: bool,
    plan: Plan,
    /// Of a container: by it the wanted limit is kept.
    id: Option<String>,
    /// The path of its cgroup.
    cgroup: String,
    limits: Limits,
    /// What was wanted of it before.
    former: Option<u64>,
    /// The last step down.
    step: Option<u64>,
    engines: Engines,
    executor: Executor,
    ends: Ends,
}

impl<'a> Repair<'a> {
    async fn begin(
        host: &'a Host,
        observer: Observer,
        arguments: &'a Arguments,
        facts: Facts,
        plan: Plan,
    ) -> Result<Self, Failure> {
        let target = arguments.target.as_str();
        let held = resolve(host, target).await?;
        let layout = read_layout()?;
        let (id, cgroup) = (facts.container.map(|container| container.id), facts.target.cgroup);
        // On a hybrid host the two may be named differently.
        let is_there = layout.kind != Kind::Unified || cgroup == held.subject.cgroup;
        if (id.is_some() && id != held.container) || !is_there {
            return Err(Failure::could_not(format!(
                "{target}: it was replaced meanwhile; try again"
            )));
        }
        let (mut executor, _confirmed) = Executor::new(open_audit(host)?, layout);
        executor.hold(TARGET, held);
        let limits = Limits::new(&host.state_dir);
        Ok(Self {
            host,
            observer,
            target,
            force: arguments.force,
            plan,
            former: id.as_deref().and_then(|id| limits.get(id)),
            id,
            cgroup,
            limits,
            step: None,
            engines: host.engines(),
            executor,
            ends: Ends::listen()?,
        })
    }

    fn held(&self) -> Option<&Held> {
        self.executor.held().get(&TARGET)
    }

    /// The same checks and records as without `--dry-run`.
    fn all_but_the_last_step(&mut self) -> Result<Exit, Failure> {
        let (tasks, in_force) = self.look()?;
        let next = self.plan.next(tasks, in_force, None);
        for write in next.writes() {
            let left = self.executor.leave_limit(
                TARGET,
                write.clone(),
                "operator",
                Outcome::WouldDo,
                "dry run",
            );
            if let Err(refused) = left {
                out::answer(&format!("  would be refused: {refused}"));
                return Ok(Exit::Wrong);
            }
        }
        out::answer(&render::repair::dry_run(&next));
        Ok(Exit::Done)
    }

    /// Down to the limit, however long that takes.
    async fn run(&mut self) -> Result<Reached, Failure> {
        self.keep_wanted()?;
        loop {
            let (tasks, in_force) = self.look()?;
            if let Some(other) = self.other_wanted(in_force) {
                return Ok(Reached::Failed(other));
            }
            match self.plan.next(tasks, in_force, self.step) {
                Next::Last(writes) => {
                    return Ok(self
                        .write(&writes)
                        .await
                        .map_or_else(Reached::Failed, |()| Reached::End));
                }
                Next::Lower(..) | Next::Wait if self.agent_goes_on() => {
                    match self.follow_agent().await? {
                        Some(reached) => return Ok(reached),
                        None => continue,
                    }
                }
                Next::Lower(writes, limit) => {
                    if let Err(why) = self.write(&writes).await {
                        return Ok(Reached::Failed(why));
                    }
                    self.step = Some(limit);
                    out::answer(&format!("  {tasks} tasks: lowered to {limit}"));
                }
                Next::Wait => {}
            }
            if let Some(signal) = self.ends.within(STEP).await {
                return Ok(Reached::Stopped(signal));
            }
            self.plan_anew().await?;
        }
    }

    /// Servers have ended meanwhile, and need no room any more.
    async fn plan_anew(&mut self) -> Result<(), Failure> {
        let facts = match self.facts().await {
            Ok(facts) => facts,
            Err(failure) => {
                let why = failure.message;
                tracing::warn!(why, "its facts cannot be read now; going on as planned before");
                return Ok(());
            }
        };
        if facts.target.cgroup != self.cgroup {
            let cgroup = facts.target.cgroup;
            let why = format!("{}: it was started anew, in {cgroup}", self.target);
            return Err(Failure::could_not(why));
        }
        let unread = repair::unit_unread(&facts).map(ToString::to_string);
        let plan = repair::plan(&facts, Some(self.plan.limit), self.force);
        match (plan, unread) {
            (Ok(plan), None) => self.plan = plan,
            (Err(repair::Refused(why)), _) | (Ok(_), Some(why)) => {
                tracing::warn!(why, "no new plan can be made now; going on as planned before");
            }
        }
        Ok(())
    }

    /// Of what is held, whatever its name or pid means by now.
    async fn facts(&self) -> Result<Facts, Failure> {
        let snapshot = snapshot(self.host, self.observer.clone()).await?;
        let Some(id) = &self.id else { return Ok(snapshot.cgroup(&self.cgroup).await) };
        let facts = snapshot.container(id).await.filter(|facts| facts.container.is_some());
        facts.ok_or_else(|| Failure::could_not(format!("{}: no engine tells of it", self.target)))
    }

    fn look(&self) -> Result<(u64, Limit), Failure> {
        let gone = || Failure::could_not(format!("{}: it ended meanwhile", self.target));
        let cgroup = &self.held().ok_or_else(gone)?.cgroup;
        let tasks = cgroup.pids_current().map_err(|_| gone())?;
        Ok((tasks, cgroup.pids_max().map_err(|_| gone())?))
    }

    async fn write(&mut self, writes: &[Write]) -> Result<(), String> {
        for write in writes {
            let begun = self.executor.begin_limit(TARGET, write.clone(), "operator");
            let change = begun.unwrap_or_else(|| Err("the target is gone".to_owned()))?;
            let carried = owner::ask(&change, &self.engines).await;
            match self.executor.end_limit(&change, carried) {
                (Outcome::Done, _) => {}
                (_, detail) => return Err(detail),
            }
        }
        Ok(())
    }

    /// Before the first write, so that whoever comes after us knows where it goes, and an agent has no
    /// other number in mind. Nothing where it has no id to be kept by.
    fn keep_wanted(&self) -> Result<(), Failure> {
        let Some(id) = &self.id else { return Ok(()) };
        let put = self.limits.put(id, self.plan.limit, &self.host.docker);
        put.map(drop).map_err(|error| {
            let folder = self.host.state_dir.display();
            Failure::could_not(format!("{folder}: {error}; nothing was done without it"))
        })
    }

    /// The later request counts: two that want different limits would undo each other. One that is gone
    /// was reached, ours or another.
    fn other_wanted(&self, in_force: Limit) -> Option<String> {
        let (ours, wanted) = (self.plan.limit, self.limits.get(self.id.as_deref()?));
        let is_ours = wanted == Some(ours) || in_force == Limit::Tasks(ours);
        (!is_ours).then(|| "another repair was asked for meanwhile".to_owned())
    }

    /// As an agent guards it, if one does.
    fn guarded(&self) -> Option<WatchedStatus> {
        // What has no id is not told to it.
        let is_told = self.id.is_some() && lock::is_held(&self.host.run_dir);
        let held = self.held().filter(|_| is_told)?;
        let status = client::status(&lock::socket(&self.host.run_dir)).ok()?;
        status.guards.into_iter().find(|one| one.cgroup_id == held.cgroup.id())
    }

    /// Whether an agent keeps this target by itself.
    fn agent_goes_on(&self) -> bool {
        self.guarded().is_some_and(|one| {
            one.guard.mode == Mode::Enforce
                && one.guard.refused.is_none()
                && one.guard.state == GuardState::Free
                && !one.pids_left
        })
    }

    /// None where it does not go on.
    async fn follow_agent(&mut self) -> Result<Option<Reached>, Failure> {
        out::answer("  the agent lowers it from here, also when this ends");
        let mut went_on = Instant::now();
        for look in 1_u32.. {
            let (_, in_force) = self.look()?;
            if let Some(other) = self.other_wanted(in_force) {
                return Ok(Some(Reached::Failed(other)));
            }
            // A lower one is somebody's brake, or the agent's clamp, which will be over.
            let limit = Limit::Tasks(self.plan.limit);
            if in_force == limit || (in_force < limit && self.agent_goes_on()) {
                return Ok(Some(Reached::End));
            }
            self.step = self.step.into_iter().chain(in_force.tasks()).min();
            if let Some(signal) = self.ends.within(LOOK).await {
                return Ok(Some(Reached::Stopped(signal)));
            }
            if look % ASK == 0 && self.agent_goes_on() {
                went_on = Instant::now();
            }
            if went_on.elapsed() > GRACE {
                break;
            }
        }
        out::answer("  the agent does not go on; it is lowered from here");
        Ok(None)
    }
}
