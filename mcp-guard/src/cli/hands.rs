//! `freeze`, `thaw` and `kill`: through the agent if one runs, otherwise with the same executor.

use std::{io, path::Path, sync::mpsc, thread, time::Duration};

use mcp_guard_core::{
    effect::{Action, Containment, Order},
    id::{GuardId, Pid, Tickets},
    incident::{Cause, End, Hold, Outcome},
    limit::HEADROOM,
    policy::{Mode, Response},
    refusal::Despite,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Exit, Failure, HostOptions,
    out::{Complaints, Terminal},
    resolve::resolve,
    runtime,
};
use crate::{
    audit::Audit,
    control::{
        client, lock,
        wire::{Answer, Freeze, Kill, Method, TargetCgroup, Thaw},
    },
    executor::{
        Executor, marks,
        reconcile::{self, Unsigned},
        together,
    },
    guards::{Guards, Held, Role},
    host::{clock, layout::Layout, poll::Alarm, process::OpenProcess},
};

/// The only guard of an executor without an agent.
const TARGET: GuardId = GuardId(0);

/// How an operator wants a response carried out.
#[derive(Clone, Copy)]
pub struct How {
    pub dry_run: bool,
    /// The pid of the process that runs containers and that the operator gives up.
    pub despite: Option<u32>,
}

impl How {
    /// Adds the start time to the pid, which another process may have later.
    fn despite(self) -> Result<Option<Despite>, Failure> {
        let Some(pid) = self.despite.map(Pid) else { return Ok(None) };
        let start_ticks = OpenProcess::open(pid).and_then(|process| process.start_ticks());
        let start_ticks =
            start_ticks.map_err(|error| Failure::could_not(format!("process {pid}: {error}")))?;
        Ok(Some(Despite { pid, start_ticks }))
    }
}

pub fn freeze(
    host: &HostOptions,
    terminal: &Terminal,
    target: &str,
    lease: Duration,
    how: How,
) -> Result<Exit, Failure> {
    if lease < Duration::from_secs(1) || lease > Duration::from_secs(86_400) {
        return Err(Failure::usage("--for must be between 1s and 1day"));
    }
    need_root()?;
    let (dry_run, despite) = (how.dry_run, how.despite()?);
    let runtime = runtime()?;
    runtime.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            let target = cgroup_of(&held);
            return ask(host, terminal, &held, &Freeze { target, lease_ms, dry_run, despite });
        }
        let mut hands = Hands::new(host, held)?;
        // Before the freeze: a signal that arrives in between must still lead to a thaw.
        let mut ends = Ends::listen(terminal)?;
        // A lease goes on while the host sleeps, as the deadline in the mark does.
        let (end, mut alarm) =
            (clock::now().after(lease), Alarm::new().map_err(Failure::could_not)?);
        let (outcome, detail) = hands.contain(Response::Freeze, lease, (dry_run, despite)).await;
        let state = match outcome {
            Outcome::Done => "frozen",
            Outcome::Requested => "freeze requested",
            Outcome::NotNeeded
            | Outcome::WouldDo
            | Outcome::Refused
            | Outcome::NotOurs
            | Outcome::Failed => return Ok(tell(terminal, &hands.name, "freeze", outcome, &detail)),
        };
        let shown = humantime::format_duration(lease);
        terminal.answer(&format!(
            "{}: {state} ({detail}); it is thawed after {shown} or when this command ends",
            hands.name
        ));
        let why = tokio::select! {
            signal = ends.signal() => signal,
            over = async { while clock::now() < end { alarm.at(end).await?; } io::Result::Ok(()) } => {
                // The freeze must end even if the timer fails.
                over.map_or("the timer has failed", |()| "the lease has ended")
            }
            // Records the kernel's confirmation when it comes; no other order follows.
            () = hands.record_answers() => "",
        };
        hands.refresh_pause(host).await;
        let (outcome, detail) = hands.thaw(End::LeaseOver).await;
        Ok(tell(terminal, &hands.name, &format!("thaw ({why})"), outcome, &detail))
    })
}

pub fn kill(
    host: &HostOptions,
    terminal: &Terminal,
    target: &str,
    how: How,
) -> Result<Exit, Failure> {
    need_root()?;
    let (dry_run, despite) = (how.dry_run, how.despite()?);
    runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            return ask(
                host,
                terminal,
                &held,
                &Kill { target: cgroup_of(&held), dry_run, despite },
            );
        }
        let mut hands = Hands::new(host, held)?;
        let (outcome, detail) =
            hands.contain(Response::Kill, Duration::ZERO, (dry_run, despite)).await;
        Ok(tell(terminal, &hands.name, "kill", outcome, &detail))
    })
}

pub fn thaw(host: &HostOptions, terminal: &Terminal, target: &str) -> Result<Exit, Failure> {
    need_root()?;
    runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            return ask(host, terminal, &held, &Thaw { target: cgroup_of(&held) });
        }
        let mut hands = Hands::new(host, held)?;
        let (outcome, detail) = hands.thaw(End::Operator).await;
        Ok(tell(terminal, &hands.name, "thaw", outcome, &detail))
    })
}

/// Releases what a previous agent left held. The unit runs this as `ExecStopPost=`.
pub fn thaw_owned(host: &HostOptions, terminal: &Terminal) -> Result<Exit, Failure> {
    // Success, because the unit that runs this is restarted until it succeeds.
    if lock::is_held(&host.run_dir) {
        terminal.answer(
            "nothing to do: an agent runs and manages its own leases; to end one, name its target",
        );
        return Ok(Exit::Done);
    }
    // Other users cannot see the marks, and would find nothing to release.
    need_root()?;
    runtime()?.block_on(async {
        let (layout, engines) = (read_layout()?, host.engines());
        let mut executor = Executor::new(audit_or_none(host)?, layout.clone(), engines.clone());
        let mut exit = Exit::Done;
        let unsigned = Unsigned::decide().unwrap_or_else(|error| {
            tracing::error!(%error, "no key for marks: clamps are not undone");
            Unsigned::AreForged
        });
        let (orphans, read) = reconcile::find(&layout, unsigned);
        // One question for all of them: an engine that hangs must not hold up each release.
        let paused = match orphans.is_empty() {
            true => None,
            false => Some(engines.paused().await),
        };
        for mut orphan in orphans {
            if let Some(paused) = &paused {
                orphan.held.note_pause(paused);
            }
            let Some(outcome) = executor.release_orphan(&orphan, End::Reconcile) else { continue };
            if tell(terminal, &orphan.held.subject.cgroup, "thaw", outcome, orphan.reason())
                != Exit::Done
            {
                exit = Exit::Wrong;
            }
        }
        read.map_err(|error| Failure::could_not(format!("some cgroups cannot be read: {error}")))?;
        Ok(exit)
    })
}

/// An executor with one target and no agent.
struct Hands {
    executor: Executor,
    guards: Guards,
    tickets: Tickets,
    name: String,
}

impl Hands {
    fn new(host: &HostOptions, held: Held) -> Result<Self, Failure> {
        let executor = Executor::new(open_audit(host)?, read_layout()?, host.engines());
        let name = held.subject.name.clone();
        let mut guards = Guards::new();
        guards.insert(TARGET, held, Role::ByHand { seen: None });
        Ok(Self { executor, guards, tickets: Tickets::default(), name })
    }

    async fn order(&mut self, action: Action) -> (Outcome, String) {
        let order = Order { ticket: self.tickets.draw(), guard: TARGET, asked_by: None, action };
        self.executor.apply(&mut self.guards, order);
        let settled = self.executor.next_settled(&mut self.guards).await;
        (settled.outcome, settled.detail)
    }

    async fn contain(
        &mut self,
        response: Response,
        lease: Duration,
        (dry_run, despite): (bool, Option<Despite>),
    ) -> (Outcome, String) {
        self.order(Action::Contain(Containment {
            response,
            mode: if dry_run { Mode::Observe } else { Mode::Enforce },
            lease,
            // For a clamp, which no operator orders.
            headroom: HEADROOM,
            cause: Cause::operator(),
            despite,
            // The answer names it, and the operator decides.
            spares_fuse: false,
            decided: clock::now(),
        }))
        .await
    }

    /// Records the answers to earlier orders for as long as it is polled.
    async fn record_answers(&mut self) {
        loop {
            self.executor.next_settled(&mut self.guards).await;
        }
    }

    /// Asks the engine whether it has paused the target since the freeze.
    async fn refresh_pause(&mut self, host: &HostOptions) {
        let paused = host.engines().paused().await;
        for held in self.guards.all_mut() {
            held.note_pause(&paused);
        }
    }

    /// Releases every hold that carries a mark.
    async fn thaw(&mut self, end: End) -> (Outcome, String) {
        let marks = self.guards.get(TARGET).map(marks).unwrap_or_default();
        let mut holds: Vec<Hold> = marks.into_iter().map(|(hold, _)| hold).collect();
        if holds.is_empty() {
            // The release of an unmarked freeze reports who made it.
            holds.push(Hold::Freeze);
        }
        let mut released = Vec::new();
        for hold in holds {
            released.push(self.order(Action::Release { hold, end }).await);
        }
        let gone = || (Outcome::NotOurs, "the target is gone".to_owned());
        together(released).unwrap_or_else(gone)
    }
}

/// Signals that end a freeze or repair in the foreground.
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    stop: Signal,
    complaints: Complaints,
}

impl Ends {
    /// Catches these signals. From now on they no longer end the program.
    pub fn listen(terminal: &Terminal) -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::could_not);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            // Ctrl-Z: a stopped process cannot meet a deadline.
            stop: listen(SignalKind::from_raw(libc::SIGTSTP))?,
            complaints: terminal.complaints(),
        })
    }

    /// Waits for this time. Returns the name of the signal if one ends the wait first.
    pub async fn within(&mut self, time: Duration) -> Option<&'static str> {
        tokio::time::timeout(time, self.signal()).await.ok()
    }

    /// Waits for a signal that ends the program, and returns its name.
    pub async fn signal(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => return "SIGHUP",
                _ = self.quit.recv() => return "SIGQUIT",
                _ = self.stop.recv() => self.complaints.error(
                    "not suspended: it must act in time; press Ctrl-C to end it now",
                ),
            }
        }
    }
}

pub fn need_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::could_not("changing a cgroup needs root; run it with sudo"))
}

pub fn read_layout() -> Result<Layout, Failure> {
    Layout::read()
        .map_err(|error| Failure::could_not(format!("cannot read the cgroup layout: {error}")))
}

/// How long a release waits for the audit log to be opened.
const OPENS: Duration = Duration::from_secs(2);

/// Opens the audit log. The server of its file system may stand still, and then no call returns.
fn open_in_time(path: &Path) -> io::Result<Audit> {
    let (opened, answer) = mpsc::channel();
    let log = path.to_owned();
    let thread = thread::Builder::new().spawn(move || opened.send(Audit::open(&log)));
    match thread {
        Ok(_) => answer.recv_timeout(OPENS).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        // A host without room for a thread.
        Err(_) => Audit::open(path),
    }
}

/// Opens the audit log, or none: a log that cannot be opened must not prevent a release. Stderr then has
/// the record.
fn audit_or_none(host: &HostOptions) -> Result<Audit, Failure> {
    open_in_time(&host.audit).or_else(|error| {
        let path = host.audit.display();
        tracing::error!(%error, "cannot open audit log {path}; releasing without a record in it");
        Audit::open(Path::new("/dev/null")).map_err(Failure::could_not)
    })
}

pub fn open_audit(host: &HostOptions) -> Result<Audit, Failure> {
    Audit::open(&host.audit).map_err(|error| {
        let path = host.audit.display();
        Failure::could_not(format!(
            "cannot open audit log {path}: {error}; nothing is done without a record"
        ))
    })
}

/// Asks the agent to do it.
fn ask<M: Method<Reply = Answer>>(
    host: &HostOptions,
    terminal: &Terminal,
    held: &Held,
    call: &M,
) -> Result<Exit, Failure> {
    let answer = client::call(&lock::socket(&host.run_dir), call).map_err(Failure::could_not)?;
    Ok(tell(terminal, &held.subject.name, &M::NAME.to_lowercase(), answer.outcome, &answer.detail))
}

pub fn cgroup_of(held: &Held) -> TargetCgroup {
    TargetCgroup {
        cgroup: held.cgroup.path().to_owned(),
        cgroup_id: held.cgroup.id(),
        name: held.subject.name.clone(),
        paused: held.paused,
    }
}

fn tell(terminal: &Terminal, name: &str, verb: &str, outcome: Outcome, detail: &str) -> Exit {
    let (exit, word) = match outcome {
        Outcome::Done => (Exit::Done, "done"),
        Outcome::Requested => (Exit::Wrong, "requested"),
        Outcome::NotNeeded => (Exit::Wrong, "ended early"),
        Outcome::WouldDo => (Exit::Done, "dry run"),
        Outcome::Refused => (Exit::Wrong, "refused"),
        Outcome::NotOurs => (Exit::Wrong, "left alone"),
        Outcome::Failed => (Exit::Wrong, "FAILED"),
    };
    terminal.answer(&format!("{name}: {verb} {word}: {detail}"));
    exit
}
