//! The agent: one loop on one thread. Its sources only feed it; only the loop has state, and only the
//! core decides.

mod answers;
mod askers;
mod calls;
mod clients;
mod counting;
mod evidence;
mod guarding;
mod herd;
mod known;
mod lanes;
mod limits;
mod notify;
mod reader;
mod recordings;
mod reload;
mod rescan;
mod standing;
mod start;
mod turn;
mod turns;
mod unguarded;

use std::{collections::VecDeque, panic::AssertUnwindSafe, path::PathBuf, time::Duration};

use futures_util::FutureExt as _;
use mcp_guard_core::{
    Core, Time,
    audit::Record,
    detect::herd::HerdFound,
    effect::{Effect, Input, Settled},
    incident::End,
};
use rustix::mm::{MlockAllFlags, mlockall};
use tokio::{io::unix::AsyncFd, signal::unix::Signal, sync::mpsc};

use self::{
    answers::Answers,
    askers::Askers,
    clients::Clients,
    counting::Counting,
    evidence::Lookers,
    herd::HerdLooker,
    known::KnownEngines,
    lanes::Sighted,
    limits::Upkeep,
    notify::Notify,
    reader::News,
    recordings::Recordings,
    reload::{PolicyRead, Reloads},
    rescan::{Reading, Rescans},
    standing::{Looked, Standings},
    turn::Turns,
    unguarded::Unguarded,
};
use crate::{
    control::{lock::Lock, server},
    engine::{EngineEvent, EngineId, Engines, LAST_WORD, Paused},
    executor::{
        Executor, is_marked,
        reconcile::{self, Unsigned},
    },
    guards::{Guards, Held},
    host::{bpf::KernelOptions, clock, layout::Layout, observer::Observer, poll::Alarm},
    policy_files::ReadPolicy,
};

/// Longest interval between two reads of the totals, and between two fetches of records that did not wake
/// the loop.
const TICK: Duration = Duration::from_millis(250);
/// Interval between two inspections of all running containers, in case the engine's events missed one.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Most calls, and most engine events, that wait for the loop.
const QUEUE: usize = 256;

pub struct AgentOptions {
    pub policy: ReadPolicy,
    /// Where the policy was read. Without one, it cannot be read again.
    pub policy_file: Option<PathBuf>,
    pub run_dir: PathBuf,
    pub audit: PathBuf,
    /// May be empty.
    pub engines: Engines,
    /// Directory of the state that survives a reboot.
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
    Read(Reading),
    Looked(Looked),
    Sighted(Sighted),
    Reload,
    PolicyRead(Box<PolicyRead>),
    Time,
    Stop(&'static str),
}

pub struct Agent {
    /// Makes all decisions.
    core: Core,
    /// The guarded cgroups, held open.
    guards: Guards,
    /// Carries out orders.
    executor: Executor,
    /// The kernel's counts.
    counting: Counting,
    /// Readings of `/proc` after lost records.
    rescans: Rescans,
    /// Looks at servers.
    lookers: Lookers,
    /// Looks at the clients of containers.
    herd_looker: HerdLooker,
    engines: KnownEngines,
    /// Inputs for decisions about limits.
    upkeep: Upkeep,
    askers: Askers,
    answers: Answers,
    /// Looks for the clients of servers.
    clients: Clients,
    reloads: Reloads,
    recordings: Recordings,
    standings: Standings,
    unguarded: Unguarded,
    layout: Layout,
    observer: Observer,
    notify: Notify,
    turns: Turns,
}

struct Sources {
    ring: AsyncFd<std::os::fd::OwnedFd>,
    calls: mpsc::Receiver<server::Waiting>,
    engine_events: mpsc::Receiver<(EngineId, EngineEvent)>,
    news: mpsc::UnboundedReceiver<News>,
    readings: mpsc::UnboundedReceiver<Reading>,
    looked: mpsc::UnboundedReceiver<Looked>,
    evidence: mpsc::UnboundedReceiver<Sighted>,
    policies: mpsc::UnboundedReceiver<PolicyRead>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    alarm: Alarm,
}

/// Runs until a signal arrives. Releases every hold at the end, unless the process is killed.
///
/// # Errors
/// The agent cannot start: another one runs, BPF does not work, or permissions are missing.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    let _lock = Lock::take(&options.run_dir)?;
    raise_priority();
    let (mut agent, mut sources) = Agent::start(options).await?;
    lock_memory();
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

/// Raises our priority. In a fork storm every CPU has a queue, and the agent must not wait at its end.
fn raise_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        tracing::warn!(%error, "cannot raise the priority; running at the usual one");
    }
}

/// Keeps our memory from being paged out. On a host that swaps, each turn would wait for the disk. A page
/// is locked when it is first used.
fn lock_memory() {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(all) {
        tracing::warn!(%error, "cannot lock the memory; a host that swaps may slow the agent down");
    }
}

impl Agent {
    async fn serve(&mut self, sources: &mut Sources) -> anyhow::Result<&'static str> {
        loop {
            let wake = self.wait(sources).await?;
            self.turns.begin();
            if self.turns.sleep.is_over() {
                self.step(Input::Woke);
            }
            // Records come first for every wake, so that an answer is up to date.
            self.drain();
            match wake {
                Wake::Ring | Wake::Time => {}
                Wake::Settled(settled) => self.settled(settled),
                Wake::Call(waiting) => self.answer(waiting),
                Wake::Engine(engine, event) => self.engine_event(engine, event),
                Wake::News(news) => self.news(news),
                Wake::Read(reading) => self.take_reading(reading),
                Wake::Looked(looked) => self.looked(looked),
                Wake::Sighted(found) => self.take_evidence(found),
                Wake::Reload => self.reload(None),
                Wake::PolicyRead(read) => self.policy_read(*read),
                Wake::Stop(reason) => return Ok(reason),
            }
            self.go_on_answering();
            self.read_stdio();
            self.tick();
            self.turns.end();
        }
    }

    /// Waits for the next source. The ring has priority but cannot starve the others: a turn drains a
    /// bounded part of it and then checks the others.
    async fn wait(&mut self, sources: &mut Sources) -> anyhow::Result<Wake> {
        let tick = self.turns.next_tick;
        let due = self.core.next_deadline().map_or(tick, |at| at.min(tick));
        let goes_on = self.counting.has_unread || self.answers.are_waited_for();
        let deadline = if goes_on { clock::now() } else { due };
        if let Some(wake) = self.waiting(sources) {
            return Ok(wake);
        }
        let Sources {
            ring,
            calls,
            engine_events,
            news,
            readings,
            looked,
            evidence,
            policies,
            terminate,
            interrupt,
            hangup,
            alarm,
        } = sources;
        tokio::select! {
            biased;
            _ = terminate.recv() => Ok(Wake::Stop("SIGTERM")),
            _ = interrupt.recv() => Ok(Wake::Stop("SIGINT")),
            // Without a file, there is nothing to read again.
            _ = hangup.recv() => {
                Ok(if self.reloads.has_file() { Wake::Reload } else { Wake::Stop("SIGHUP") })
            }
            ready = ring.readable() => {
                // Cleared before the drain, so that records that arrive during it wake the loop again.
                ready?.clear_ready();
                Ok(Wake::Ring)
            }
            settled = self.executor.next_settled(&mut self.guards) => Ok(Wake::Settled(settled)),
            Some(call) = calls.recv() => Ok(Wake::Call(call)),
            Some((engine, event)) = engine_events.recv() => Ok(Wake::Engine(engine, event)),
            Some(news) = news.recv() => Ok(Wake::News(news)),
            Some(reading) = readings.recv() => Ok(Wake::Read(reading)),
            Some(looked) = looked.recv() => Ok(Wake::Looked(looked)),
            Some(found) = evidence.recv() => Ok(Wake::Sighted(found)),
            Some(read) = policies.recv() => Ok(Wake::PolicyRead(Box::new(read))),
            passed = alarm.at(deadline) => passed.map(|()| Wake::Time).map_err(Into::into),
        }
    }

    /// Returns what waits already, in the same order as [`Self::wait`].
    fn waiting(&mut self, sources: &mut Sources) -> Option<Wake> {
        if let Some(settled) = self.executor.answered(&mut self.guards) {
            return Some(Wake::Settled(settled));
        }
        if let Ok(call) = sources.calls.try_recv() {
            return Some(Wake::Call(call));
        }
        if let Ok((engine, event)) = sources.engine_events.try_recv() {
            return Some(Wake::Engine(engine, event));
        }
        if let Ok(news) = sources.news.try_recv() {
            return Some(Wake::News(news));
        }
        if let Ok(reading) = sources.readings.try_recv() {
            return Some(Wake::Read(reading));
        }
        if let Ok(looked) = sources.looked.try_recv() {
            return Some(Wake::Looked(looked));
        }
        if let Ok(found) = sources.evidence.try_recv() {
            return Some(Wake::Sighted(found));
        }
        if let Ok(read) = sources.policies.try_recv() {
            return Some(Wake::PolicyRead(Box::new(read)));
        }
        None
    }

    /// Feeds one input to the core and carries out the effects.
    fn step(&mut self, input: Input) {
        self.step_at(clock::now(), input);
    }

    fn step_at(&mut self, now: Time, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.recordings.note(now, &input, &self.core);
            self.core.step(now, input, &mut effects);
            for effect in effects.drain(..) {
                inputs.extend(self.carry_out(effect));
            }
            // Only orders that ended at once: `now` may be the time of an old record.
            while let Some(settled) = self.executor.settled() {
                self.askers.settled(&settled);
                self.standings.settled(&settled);
                inputs.push_back(Input::Settled(settled));
            }
        }
    }

    /// Carries out one effect. Returns the input that was read for it.
    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Act(order) => {
                self.askers.ordered(&order);
                self.executor.apply(&mut self.guards, order);
            }
            Effect::Rescan { guard } => self.rescans.lost(clock::now(), guard),
            Effect::ReadStdio { guard, pid } => self.lookers.want_stdio(guard, pid),
            Effect::ReadDenials { guard } => return self.denials(guard),
            Effect::ReadFacts { guard, ticket } => return self.ask_for_facts(guard, ticket),
            Effect::ForgetRequest { guard, at } => self.forget_request(guard, at),
            Effect::Unguard { guard } => self.unguard(guard),
            Effect::WarnOfHerd(herd) => {
                let cause = herd.detection().cause;
                let HerdFound { engine, containers, .. } = herd;
                self.executor.audit.write(Record::Herd { engine, cause, containers });
            }
            Effect::Log { guard, message } => {
                let name = self.guards.get(guard).map_or("", |held| held.subject.name.as_str());
                tracing::warn!(name, "{message}");
            }
        }
        None
    }

    fn settled(&mut self, settled: Settled) {
        self.askers.settled(&settled);
        self.standings.settled(&settled);
        self.step(Input::Settled(settled));
    }

    /// Releases holds that have no living holder. `paused`: what the engines said a moment ago.
    async fn release_orphans(&mut self, end: End, unsigned: Unsigned, paused: Option<Paused>) {
        let (orphans, read) = reconcile::find(&self.layout, unsigned);
        if let Err(error) = read {
            tracing::error!(%error, "some cgroups cannot be read; they may still be held");
        }
        if orphans.is_empty() {
            return;
        }
        let paused = match paused {
            Some(paused) => paused,
            None => self.engines.all.paused().await,
        };
        for mut orphan in orphans {
            orphan.held.note_pause(&paused);
            let _ = self.executor.release_orphan(&orphan, end);
        }
    }

    /// Waits for the outcomes of orders under way, so that the log has them. No client gets an answer: all
    /// holds are released in a moment.
    async fn last_answers(&mut self) {
        self.executor.abandon_all_checks();
        self.executor.give_up_servers();
        // An owner that hangs must not keep a cgroup frozen. The kernel's answers have their own time limit.
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
        self.executor.lose_servers();
    }

    /// Asks the engines which containers are paused, if we hold one. Their events may still be on the
    /// way, and a paused container must not be thawed.
    async fn refresh_pauses(&mut self) -> Option<Paused> {
        let is_held = |held: &Held| held.container.is_some() && is_marked(held);
        if !self.guards.all_mut().any(|held| is_held(held)) {
            return None;
        }
        let paused = self.engines.all.paused().await;
        for held in self.guards.all_mut() {
            held.note_pause(&paused);
        }
        Some(paused)
    }

    async fn stop(&mut self, reason: String) {
        tracing::info!(reason, "stopping");
        self.notify.stopping(&reason);
        self.executor.resume_all();
        let paused = self.refresh_pauses().await;
        let mut effects = Vec::new();
        self.core.release_all(End::Shutdown, &mut effects);
        for effect in effects {
            if let Effect::Act(order) = effect {
                self.executor.apply(&mut self.guards, order);
            }
        }
        // Holds that the core does not know of, after a panic or a missing answer.
        self.release_orphans(End::Shutdown, Unsigned::AreForged, paused).await;
        self.executor.abandon_kills();
        self.executor.audit.write(Record::AgentStop { reason });
    }
}
