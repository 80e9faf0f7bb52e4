//! The agent: one loop on one thread. Its sources only feed it; it alone has state, and the core
//! alone decides.

mod askers;
mod calls;
mod counting;
mod guarding;
mod known;
mod limits;
mod notify;
mod reader;
mod start;
mod turn;

use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::Duration,
};

use futures_util::FutureExt as _;
use mcp_guard_core::{
    Core, Time,
    audit::Record,
    effect::{Effect, Input, Settled},
    id::CgroupId,
    incident::End,
    policy::Policy,
};
use tokio::{io::unix::AsyncFd, signal::unix::Signal, sync::mpsc};

use self::{
    askers::Askers, counting::Counting, guarding::Unguardable, known::KnownEngines, limits::Upkeep,
    notify::Notify, reader::News,
};
use crate::{
    control::{lock::Lock, server},
    engine::{EngineEvent, EngineId, Engines, LAST_WORD},
    executor::{Executor, reconcile},
    guards::Guards,
    host::{bpf::KernelOptions, clock, layout::Layout, observer::Observer, poll::Alarm},
};

/// How often totals are read and silent records are fetched at the least.
const TICK: Duration = Duration::from_millis(250);
/// How often every running container is asked about, whatever the engine's events tell.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// What could not be guarded is not tried again before this time, which is shorter than the one above.
const TRY_AGAIN: Duration = Duration::from_secs(20);
/// Calls and events of engines that wait for the loop.
const QUEUE: usize = 256;

pub struct AgentOptions {
    pub policy: Policy,
    pub run_dir: PathBuf,
    pub audit: PathBuf,
    /// There may be none.
    pub engines: Engines,
    /// What must outlive a reboot.
    pub state_dir: PathBuf,
    pub bpf: KernelOptions,
}

/// Why the loop woke.
enum Wake {
    Ring,
    Settled(Settled),
    Call(server::Waiting),
    Engine(EngineId, EngineEvent),
    News(News),
    Time,
    Stop(&'static str),
}

pub struct Agent {
    /// What is decided.
    core: Core,
    /// What is guarded, and held open.
    guards: Guards,
    /// What is done.
    executor: Executor,
    /// What the kernel counts.
    counting: Counting,
    engines: KnownEngines,
    /// What the limits of guards are read from.
    upkeep: Upkeep,
    askers: Askers,
    /// Cgroups that could not be guarded, by id.
    unguardable: BTreeMap<CgroupId, Unguardable>,
    layout: Layout,
    observer: Observer,
    notify: Notify,
    started: Time,
    next_tick: Time,
    next_look: Time,
}

struct Sources {
    ring: AsyncFd<std::os::fd::OwnedFd>,
    calls: mpsc::Receiver<server::Waiting>,
    engine_events: mpsc::Receiver<(EngineId, EngineEvent)>,
    news: mpsc::UnboundedReceiver<News>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    alarm: Alarm,
}

/// Runs until a signal. Every end that is not a kill gives back what is held.
///
/// # Errors
/// It cannot start: another agent, no BPF, no rights.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    let _lock = Lock::take(&options.run_dir)?;
    raise_priority();
    let (mut agent, mut sources) = Agent::start(options).await?;
    let ended = AssertUnwindSafe(agent.serve(&mut sources)).catch_unwind().await;
    let reason = match &ended {
        Ok(Ok(reason)) => (*reason).to_owned(),
        Ok(Err(error)) => format!("error: {error:#}"),
        Err(_) => "panic".to_owned(),
    };
    agent.last_answers().await;
    agent.stop(reason).await;
    match ended {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Under a fork storm every CPU has a queue; the agent must not stand at its end.
fn raise_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        tracing::warn!(%error, "running at the usual priority");
    }
}

impl Agent {
    async fn serve(&mut self, sources: &mut Sources) -> anyhow::Result<&'static str> {
        loop {
            let wake = self.wait(sources).await?;
            // Whatever woke it: records first, so that an answer has detail up to this moment.
            self.drain();
            match wake {
                Wake::Ring | Wake::Time => {}
                Wake::Settled(settled) => self.settled(settled),
                Wake::Call(waiting) => self.answer(waiting),
                Wake::Engine(engine, event) => self.engine_event(engine, event),
                Wake::News(news) => self.news(news),
                Wake::Stop(reason) => return Ok(reason),
            }
            self.tick();
        }
    }

    /// The ring comes first, and cannot starve the others: a turn drains a bounded part of it and
    /// then looks whether anything else waits.
    async fn wait(&mut self, sources: &mut Sources) -> anyhow::Result<Wake> {
        let deadline =
            self.core.next_deadline().map_or(self.next_tick, |at| at.min(self.next_tick));
        let Sources { ring, calls, engine_events, news, terminate, interrupt, hangup, alarm } =
            sources;
        if let Some(settled) = self.executor.answered(&mut self.guards) {
            return Ok(Wake::Settled(settled));
        }
        if let Ok(call) = calls.try_recv() {
            return Ok(Wake::Call(call));
        }
        if let Ok((engine, event)) = engine_events.try_recv() {
            return Ok(Wake::Engine(engine, event));
        }
        if let Ok(news) = news.try_recv() {
            return Ok(Wake::News(news));
        }
        tokio::select! {
            biased;
            _ = terminate.recv() => Ok(Wake::Stop("SIGTERM")),
            _ = interrupt.recv() => Ok(Wake::Stop("SIGINT")),
            _ = hangup.recv() => Ok(Wake::Stop("SIGHUP")),
            ready = ring.readable() => {
                // Cleared before the drain: what comes during it wakes again.
                ready?.clear_ready();
                Ok(Wake::Ring)
            }
            settled = self.executor.next_settled(&mut self.guards) => Ok(Wake::Settled(settled)),
            Some(call) = calls.recv() => Ok(Wake::Call(call)),
            Some((engine, event)) = engine_events.recv() => Ok(Wake::Engine(engine, event)),
            Some(news) = news.recv() => Ok(Wake::News(news)),
            passed = alarm.at(deadline) => passed.map(|()| Wake::Time).map_err(Into::into),
        }
    }

    /// One input through the core, and what follows from it.
    fn step(&mut self, input: Input) {
        self.step_at(clock::now(), input);
    }

    fn step_at(&mut self, now: Time, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.core.step(now, input, &mut effects);
            for effect in effects.drain(..) {
                inputs.extend(self.carry_out(effect));
            }
            // Not what was answered later: `now` may be the time of an old record.
            while let Some(settled) = self.executor.settled() {
                self.askers.settled(&settled);
                inputs.push_back(Input::Settled(settled));
            }
        }
    }

    /// Carries one effect out. Returns what was read for it.
    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Act(order) => {
                self.askers.ordered(&order);
                self.executor.apply(&mut self.guards, order);
            }
            Effect::Rescan { guard } => return self.baseline(guard),
            Effect::ReadDenials { guard } => return self.denials(guard),
            Effect::ReadFacts { guard, ticket } => return self.ask_for_facts(guard, ticket),
            Effect::ForgetRequest { guard, at } => self.forget_request(guard, at),
            Effect::Unguard { guard } => self.unguard(guard),
            Effect::Log { guard, message } => {
                let name = self.guards.get(guard).map_or("", |held| held.subject.name.as_str());
                tracing::warn!(name, "{message}");
            }
        }
        None
    }

    fn settled(&mut self, settled: Settled) {
        self.askers.settled(&settled);
        self.step(Input::Settled(settled));
    }

    /// Gives back what no holder will.
    async fn release_orphans(&mut self, end: End) {
        let (orphans, read) = reconcile::find(&self.layout);
        if let Err(error) = read {
            tracing::error!(%error, "not all cgroups could be looked at for what is still held");
        }
        for mut orphan in orphans {
            let container = orphan.held.container.as_deref();
            orphan.held.paused = self.engines.all.is_paused(container).await;
            self.executor.release_orphan(&orphan, end);
        }
    }

    /// What was written and is not answered yet gets its outcome in the log. Nobody gets an answer: what
    /// is held now is given back in a moment.
    async fn last_answers(&mut self) {
        // An owner that hangs must not keep what is frozen. The kernel answers within a bound of its own.
        let owners = async {
            while self.executor.awaits_owners() {
                self.executor.next_settled(&mut self.guards).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORD, owners).await;
        self.executor.abandon_limits(&mut self.guards);
        let kernel = async {
            while self.executor.has_orders_under_way() {
                self.executor.next_settled(&mut self.guards).await;
            }
        };
        let _ = tokio::time::timeout(2 * LAST_WORD, kernel).await;
    }

    /// An event may still be on its way; whoever is paused now must not be thawed.
    async fn hear_of_pauses(&mut self) {
        for held in self.guards.all_mut() {
            if let Some(id) = &held.container
                && let Ok(Some(container)) = self.engines.all.inspect(id).await
            {
                held.paused = container.paused;
            }
        }
    }

    async fn stop(&mut self, reason: String) {
        tracing::info!(reason, "stopping");
        self.notify.stopping(&reason);
        // An engine that hangs must not keep a container frozen.
        let _ = tokio::time::timeout(LAST_WORD, self.hear_of_pauses()).await;
        let mut effects = Vec::new();
        self.core.release_all(End::Shutdown, &mut effects);
        for effect in effects {
            if let Effect::Act(order) = effect {
                self.executor.apply(&mut self.guards, order);
            }
        }
        // What a panic, or an answer that never came, kept from the core's books.
        self.release_orphans(End::Shutdown).await;
        self.executor.audit.write(Record::AgentStop { reason });
    }
}
