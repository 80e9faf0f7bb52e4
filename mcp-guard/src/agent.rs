//! The agent: one loop on one thread. Its sources only feed it; it alone has state, and the core
//! alone decides.

mod calls;
mod guards;
mod limits;
mod notify;
mod reader;
mod restore;
mod start;
mod turn;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::Duration,
};

use futures_util::FutureExt as _;
use mcp_guard_core::{
    Core, Time,
    audit::Record,
    diagnose::facts,
    effect::{Effect, End, GuardId, Input, Outcome},
    policy::{Policy, Response},
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::Signal,
    sync::{mpsc, oneshot},
};

use self::{
    guards::Unguardable,
    limits::{Kept, News},
    notify::Notify,
    reader::Reader,
};
use crate::{
    control::{
        lock::Lock,
        server,
        wire::{EngineState, Reply},
    },
    engine::{Change, Container, EngineId, Engines, LAST_WORD},
    executor::{Confirmed, Executor, reconcile},
    host::{
        bpf::{Kernel, Options as BpfOptions},
        clock,
        layout::Layout,
        observer::Observer,
        poll::Alarm,
    },
    wanted::Limits,
};

/// How often totals are read and silent records are fetched at the least.
const TICK: Duration = Duration::from_millis(250);
/// How often every running container is asked about, whatever the engine's events tell.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// What could not be guarded is not tried again before this time, which is shorter than the one above.
const TRY_AGAIN: Duration = Duration::from_secs(20);
/// Calls and engine changes that wait for the loop.
const QUEUE: usize = 256;

pub struct Options {
    pub policy: Policy,
    pub run_dir: PathBuf,
    pub audit: PathBuf,
    /// There may be none.
    pub engines: Engines,
    /// What must outlive a reboot.
    pub state_dir: PathBuf,
    pub bpf: BpfOptions,
}

/// Why the loop woke.
enum Wake {
    Ring,
    Confirmed(Confirmed),
    Call(server::Waiting),
    Change(EngineId, Change),
    Limit(News),
    Time,
    Stop(&'static str),
}

struct Asker {
    guard: GuardId,
    reply: oneshot::Sender<Reply>,
}

pub struct Agent {
    core: Core,
    executor: Executor,
    kernel: Kernel,
    layout: Layout,
    engines: Engines,
    engine_state: EngineState,
    /// What each engine said of itself when it was last reached.
    described: BTreeMap<EngineId, facts::Engine>,
    /// Slots that are free, longest first: a late record of an old guard must not hit a new one.
    free: VecDeque<GuardId>,
    /// Guards that only hold something for an operator, and the container that came up meanwhile, which the
    /// policy names.
    by_hand: BTreeMap<GuardId, Option<Container>>,
    /// Cgroups that could not be guarded, by id.
    unguardable: BTreeMap<u64, Unguardable>,
    /// Containers whose cgroup could not be found, which was said.
    unfound: BTreeSet<String>,
    /// How the limit of each guard is held.
    keeps: BTreeMap<GuardId, Kept>,
    limits: Limits,
    /// Facts asked for so far, and who reads them.
    questions: u64,
    reader: Reader,
    observer: Observer,
    /// Where what was asked for a limit is answered.
    news: mpsc::UnboundedSender<News>,
    /// Who waits for the end of an incident.
    askers: BTreeMap<String, Asker>,
    losses: BTreeMap<String, u64>,
    notify: Notify,
    /// Records lost to a full ring, as of the last tick.
    dropped: u64,
    /// Records were lost, and the ring was not empty since.
    behind_a_loss: bool,
    started: Time,
    next_tick: Time,
    next_look: Time,
    next_untold: Time,
}

struct Sources {
    ring: AsyncFd<std::os::fd::OwnedFd>,
    confirmed: mpsc::UnboundedReceiver<Confirmed>,
    calls: mpsc::Receiver<server::Waiting>,
    changes: mpsc::Receiver<(EngineId, Change)>,
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
pub async fn run(options: Options) -> anyhow::Result<()> {
    let _lock = Lock::take(&options.run_dir)?;
    raise_priority();
    let (mut agent, mut sources) = Agent::start(options).await?;
    let ended = AssertUnwindSafe(agent.serve(&mut sources)).catch_unwind().await;
    let reason = match &ended {
        Ok(Ok(reason)) => (*reason).to_owned(),
        Ok(Err(error)) => format!("error: {error:#}"),
        Err(_) => "panic".to_owned(),
    };
    // An owner that hangs must not keep what is frozen.
    let _ = tokio::time::timeout(LAST_WORD, agent.last_limits(&mut sources.news)).await;
    agent.executor.abandon_limits();
    // The kernel answers within a bound of its own.
    let _ = tokio::time::timeout(2 * LAST_WORD, agent.last_answers(&mut sources.confirmed)).await;
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
    /// Gives back what no holder will.
    async fn release_orphans(&mut self, end: End) {
        let (orphans, read) = reconcile::find(&self.layout);
        if let Err(error) = read {
            tracing::error!(%error, "not all cgroups could be looked at for what is still held");
        }
        for mut orphan in orphans {
            let container = orphan.held.container.as_deref();
            orphan.held.paused = self.engines.is_paused(container).await;
            self.executor.release_orphan(&orphan, end);
        }
    }

    async fn serve(&mut self, sources: &mut Sources) -> anyhow::Result<&'static str> {
        loop {
            match self.wait(sources).await? {
                Wake::Ring | Wake::Time => {}
                Wake::Confirmed(confirmed) => {
                    if let Some(settled) = self.executor.confirm(confirmed) {
                        self.step(settled);
                    }
                }
                Wake::Call(waiting) => self.answer(waiting),
                Wake::Change(engine, change) => self.change(engine, change),
                Wake::Limit(news) => self.limit_news(news),
                Wake::Stop(reason) => return Ok(reason),
            }
            // Whatever woke it: records first, then what is due.
            self.drain();
            self.tick();
        }
    }

    /// The ring comes first, and cannot starve the others: a turn drains a bounded part of it and
    /// then looks whether anything else waits.
    async fn wait(&self, sources: &mut Sources) -> anyhow::Result<Wake> {
        let deadline =
            self.core.next_deadline().map_or(self.next_tick, |at| at.min(self.next_tick));
        let Sources { ring, confirmed, calls, changes, news, terminate, interrupt, hangup, alarm } =
            sources;
        if let Ok(confirmed) = confirmed.try_recv() {
            return Ok(Wake::Confirmed(confirmed));
        }
        if let Ok(call) = calls.try_recv() {
            return Ok(Wake::Call(call));
        }
        if let Ok((engine, change)) = changes.try_recv() {
            return Ok(Wake::Change(engine, change));
        }
        if let Ok(news) = news.try_recv() {
            return Ok(Wake::Limit(news));
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
            Some(confirmed) = confirmed.recv() => Ok(Wake::Confirmed(confirmed)),
            Some(call) = calls.recv() => Ok(Wake::Call(call)),
            Some((engine, change)) = changes.recv() => Ok(Wake::Change(engine, change)),
            Some(news) = news.recv() => Ok(Wake::Limit(news)),
            passed = alarm.at(deadline) => passed.map(|()| Wake::Time).map_err(Into::into),
        }
    }

    /// What was written and is not confirmed yet gets its outcome in the log. Nobody is told of it: what is
    /// held now is given back in a moment.
    async fn last_answers(&mut self, confirmed: &mut mpsc::UnboundedReceiver<Confirmed>) {
        while self.executor.awaits_confirmation()
            && let Some(answer) = confirmed.recv().await
        {
            self.executor.confirm(answer);
        }
    }

    /// One input through the core, and what follows from it.
    fn step(&mut self, input: Input) {
        self.step_at(clock::now(), input);
    }

    fn step_at(&mut self, now: Time, input: Input) {
        // Those of an earlier step interest nobody.
        self.executor.take_released();
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            let clamped = clamped(&input);
            self.core.step(now, input, &mut effects);
            // What is refused from here on is the clamp's doing.
            inputs.extend(clamped.and_then(|guard| self.denials(guard)));
            for effect in effects.drain(..) {
                if let Effect::Rescan { guard } = effect {
                    inputs.extend(self.baseline(guard));
                }
                inputs.extend(self.executor.apply(effect));
            }
        }
        self.tell_askers();
    }

    /// An event may still be on its way; whoever is paused now must not be thawed.
    async fn hear_of_pauses(&mut self) {
        for held in self.executor.held_mut().values_mut() {
            if let Some(id) = &held.container
                && let Ok(Some(container)) = self.engines.inspect(id).await
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
            self.executor.apply(effect);
        }
        // What a panic, or an answer that never came, kept from the core's books.
        self.release_orphans(End::Shutdown).await;
        self.executor.audit.write(Record::AgentStop { reason });
    }
}

/// The guard of a clamp that has just been done.
fn clamped(input: &Input) -> Option<GuardId> {
    let Input::Settled { guard, response: Response::Clamp, outcome: Outcome::Done, .. } = input
    else {
        return None;
    };
    Some(*guard)
}
