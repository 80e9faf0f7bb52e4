//! `repair`: a limit, written where it is kept, and proved.

use std::time::Duration;

use clap::Args;
use mcp_guard_core::{
    diagnose::facts::Facts,
    effect::Outcome,
    limit::Limit,
    policy::Mode,
    repair::{self, Next, Plan, STEP, Write},
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
    agent::lock,
    control::{client, wire::Status},
    engine::Engine,
    executor::{Executor, Held},
    owner, render,
    wanted::Limits,
};

/// The only guard of an executor without an agent.
const TARGET: u32 = 0;
/// Between two looks at what an agent has reached.
const LOOK: Duration = Duration::from_secs(1);

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
        let facts = facts(host, &arguments.target).await?;
        let plan = match repair::plan(&facts, arguments.limit, arguments.force) {
            Ok(plan) => plan,
            Err(refused) => {
                out::answer(&format!("{}: not repaired: {}", facts.target.name, refused.0));
                return Ok(Exit::Wrong);
            }
        };
        out::answer(&render::repair::plan(&facts, &plan));
        let mut repair = Repair::begin(host, arguments, facts, plan).await?;
        if arguments.dry_run {
            return repair.all_but_the_last_step();
        }
        let reached = repair.run().await?;
        repair.tell(reached).await
    })
}

async fn facts(host: &Host, target: &str) -> Result<Facts, Failure> {
    one(&snapshot(host).await?, target).await
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
    target: &'a str,
    force: bool,
    plan: Plan,
    /// Of a container: by it the wanted limit is kept.
    id: Option<String>,
    limits: Limits,
    engine: Engine,
    executor: Executor,
    ends: Ends,
}

impl<'a> Repair<'a> {
    async fn begin(
        host: &'a Host,
        arguments: &'a Arguments,
        facts: Facts,
        plan: Plan,
    ) -> Result<Self, Failure> {
        let target = arguments.target.as_str();
        let held = resolve(host, target).await?;
        let id = facts.container.map(|container| container.id);
        if id.is_some() && id != held.container {
            return Err(Failure::could_not(format!(
                "{target}: it was replaced meanwhile; try again"
            )));
        }
        let (mut executor, _confirmed) = Executor::new(open_audit(host)?, read_layout()?);
        executor.hold(TARGET, held);
        Ok(Self {
            host,
            target,
            force: arguments.force,
            plan,
            id,
            limits: Limits::new(&host.state_dir),
            engine: Engine::new(&host.docker),
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
        let next = self.plan.next(tasks, in_force);
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
        loop {
            let (tasks, in_force) = self.look()?;
            let next = self.plan.next(tasks, in_force);
            match next {
                Next::Last(writes) => {
                    return Ok(self
                        .write(&writes)
                        .await
                        .map_or_else(Reached::Failed, |()| Reached::End));
                }
                Next::Lower(..) | Next::Wait if self.keep_wanted()? && self.agent_goes_on() => {
                    return self.follow_agent().await;
                }
                Next::Lower(writes, limit) => {
                    if let Err(why) = self.write(&writes).await {
                        return Ok(Reached::Failed(why));
                    }
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
        let facts = facts(self.host, self.target).await?;
        if let Ok(plan) = repair::plan(&facts, Some(self.plan.limit), self.force) {
            self.plan = plan;
        }
        Ok(())
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
            let carried = owner::ask(&change, &self.engine).await;
            match self.executor.end_limit(&change, carried) {
                (Outcome::Done, _) => {}
                (_, detail) => return Err(detail),
            }
        }
        Ok(())
    }

    /// Before the first step, so that whoever comes after us knows where it goes. False where it has no
    /// id to be kept by.
    fn keep_wanted(&self) -> Result<bool, Failure> {
        let Some(id) = &self.id else { return Ok(false) };
        self.limits.put(id, self.plan.limit).map_err(|error| {
            let folder = self.host.state_dir.display();
            Failure::could_not(format!("{folder}: {error}; nothing was done without it"))
        })?;
        Ok(true)
    }

    /// Whether an agent keeps this target by itself.
    fn agent_goes_on(&self) -> bool {
        let Some(held) = self.held().filter(|_| lock::is_held(&self.host.run_dir)) else {
            return false;
        };
        let socket = lock::socket(&self.host.run_dir);
        let status: Result<Status, _> = client::call(&socket, "Status", serde_json::json!({}));
        status.is_ok_and(|status| {
            let mut guards = status.guards.iter();
            guards.any(|one| {
                one.cgroup_id == held.cgroup.id()
                    && one.guard.mode == Mode::Enforce
                    && one.guard.refused.is_none()
            })
        })
    }

    async fn follow_agent(&mut self) -> Result<Reached, Failure> {
        out::answer("  the agent lowers it from here, also when this ends");
        loop {
            if self.look()?.1 == Limit::Tasks(self.plan.limit) {
                return Ok(Reached::End);
            }
            if let Some(signal) = self.ends.within(LOOK).await {
                return Ok(Reached::Stopped(signal));
            }
        }
    }

    /// Looks again at every place, and says what is there.
    async fn tell(&self, reached: Reached) -> Result<Exit, Failure> {
        let facts = facts(self.host, self.target).await?;
        let (holds, places) = self.plan.proof(&facts);
        match &reached {
            Reached::End if holds => {}
            Reached::End => out::answer("  NOT repaired: a place says something else"),
            Reached::Failed(why) => out::answer(&format!("  NOT repaired: {why}")),
            Reached::Stopped(signal) => {
                let goes_on = match (&self.id, self.agent_goes_on()) {
                    (_, true) => "the agent goes on",
                    (Some(_), false) => {
                        "run it again to go on; an agent that starts goes on by itself"
                    }
                    (None, false) => "run it again to go on",
                };
                out::answer(&format!("  half-way ({signal}): {goes_on}"));
            }
        }
        out::answer(&render::repair::places(&places));
        if !holds || !matches!(reached, Reached::End) {
            return Ok(Exit::Wrong);
        }
        self.settle()?;
        out::answer(&render::repair::lasts(&self.plan, &facts));
        Ok(Exit::Done)
    }

    /// Keeps what its owner will forget, and forgets what its owner keeps.
    fn settle(&self) -> Result<(), Failure> {
        let Some(id) = &self.id else { return Ok(()) };
        if self.plan.is_kept_by_its_owner() {
            return self.limits.remove(id).map_err(Failure::could_not);
        }
        self.keep_wanted().map(drop)
    }
}
