//! freeze, thaw, kill by hand: through the agent where one runs, else by the same executor.

use std::{path::Path, time::Duration};

use mcp_guard_core::{
    effect::{Action, Containment, Order},
    id::{GuardId, Tickets},
    incident::{Cause, End, Hold, Outcome},
    limit::HEADROOM,
    policy::{Mode, Response},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure, HostOptions, out, resolve::resolve, runtime};
use crate::{
    audit::Audit,
    control::{
        client, lock,
        wire::{Answer, Freeze, Kill, Method, TargetCgroup, Thaw},
    },
    executor::{Executor, marks, reconcile, together},
    guards::{Guards, Held, Role},
    host::{clock, layout::Layout},
};

/// The only guard of an executor without an agent.
const TARGET: GuardId = GuardId(0);

pub fn freeze(
    host: &HostOptions,
    target: &str,
    lease: Duration,
    dry_run: bool,
) -> Result<Exit, Failure> {
    if lease < Duration::from_secs(1) || lease > Duration::from_secs(86_400) {
        return Err(Failure::usage("--for must lie between 1s and 1day"));
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            return ask(host, &held, &Freeze { target: cgroup_of(&held), lease_ms, dry_run });
        }
        let mut hands = Hands::new(host, held)?;
        // Before the freeze: a signal in between must find somebody who thaws.
        let mut ends = Ends::listen()?;
        let (outcome, detail) = hands.contain(Response::Freeze, lease, dry_run).await;
        if outcome != Outcome::Done {
            return Ok(tell(&hands.name, "freeze", outcome, &detail));
        }
        let shown = humantime::format_duration(lease);
        out::answer(&format!(
            "{}: frozen ({detail}); thawed after {shown} or when this ends",
            hands.name
        ));
        let why = ends.within(lease).await.unwrap_or("the time is over");
        hands.hear_of_pause(host).await;
        let (outcome, detail) = hands.thaw(End::LeaseOver).await;
        Ok(tell(&hands.name, &format!("thaw ({why})"), outcome, &detail))
    })
}

pub fn kill(host: &HostOptions, target: &str, dry_run: bool) -> Result<Exit, Failure> {
    runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            return ask(host, &held, &Kill { target: cgroup_of(&held), dry_run });
        }
        let mut hands = Hands::new(host, held)?;
        let (outcome, detail) = hands.contain(Response::Kill, Duration::ZERO, dry_run).await;
        Ok(tell(&hands.name, "kill", outcome, &detail))
    })
}

pub fn thaw(host: &HostOptions, target: &str) -> Result<Exit, Failure> {
    runtime()?.block_on(async {
        let held = resolve(host, target).await?;
        if lock::is_held(&host.run_dir) {
            return ask(host, &held, &Thaw { target: cgroup_of(&held) });
        }
        let mut hands = Hands::new(host, held)?;
        let (outcome, detail) = hands.thaw(End::Operator).await;
        Ok(tell(&hands.name, "thaw", outcome, &detail))
    })
}

/// Gives back what an agent that is gone left: the unit's `ExecStopPost=`.
pub fn thaw_owned(host: &HostOptions) -> Result<Exit, Failure> {
    // The unit that runs this is started again until it succeeds, and there is nothing left for it to do.
    if lock::is_held(&host.run_dir) {
        out::answer(
            "nothing to do: an agent runs and holds its own leases; to undo one, name its target",
        );
        return Ok(Exit::Done);
    }
    // Others do not see the marks, and would find nothing to give back.
    need_root()?;
    runtime()?.block_on(async {
        let (layout, engines) = (read_layout()?, host.engines());
        let mut executor = Executor::new(audit_or_none(host)?, layout.clone(), engines.clone());
        let mut exit = Exit::Done;
        let (orphans, read) = reconcile::find(&layout);
        for mut orphan in orphans {
            let container = orphan.held.container.as_deref();
            orphan.held.paused = engines.is_paused(container).await;
            let outcome = executor.release_orphan(&orphan, End::Reconcile);
            if tell(&orphan.held.subject.cgroup, "thaw", outcome, &orphan.mark.reason) != Exit::Done
            {
                exit = Exit::Wrong;
            }
        }
        read.map_err(|error| {
            Failure::could_not(format!("not all cgroups could be looked at: {error}"))
        })?;
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
        need_root()?;
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
        dry_run: bool,
    ) -> (Outcome, String) {
        self.order(Action::Contain(Containment {
            response,
            mode: if dry_run { Mode::Observe } else { Mode::Enforce },
            lease,
            // Of a clamp, which is not made by hand.
            headroom: HEADROOM,
            cause: Cause::operator(),
            decided: clock::now(),
        }))
        .await
    }

    /// The engine may have paused the target since it was frozen.
    async fn hear_of_pause(&mut self, host: &HostOptions) {
        let engines = host.engines();
        for held in self.guards.all_mut() {
            held.paused = engines.is_paused(held.container.as_deref()).await;
        }
    }

    /// All that carries a mark.
    async fn thaw(&mut self, end: End) -> (Outcome, String) {
        let marks = self.guards.get(TARGET).map(marks).unwrap_or_default();
        let mut holds: Vec<Hold> = marks.into_iter().map(|(hold, _)| hold).collect();
        if holds.is_empty() {
            // Then it is said whose the freeze is.
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

/// What ends a freeze in the foreground.
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    stop: Signal,
}

impl Ends {
    /// From now on these signals no longer end the program by themselves.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::could_not);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            // Ctrl-Z: whoever is stopped keeps no deadline.
            stop: listen(SignalKind::from_raw(libc::SIGTSTP))?,
        })
    }

    /// Until the time is over, or somebody ends this: says how.
    pub async fn within(&mut self, time: Duration) -> Option<&'static str> {
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return None,
                _ = self.terminate.recv() => return Some("SIGTERM"),
                _ = self.interrupt.recv() => return Some("SIGINT"),
                _ = self.hangup.recv() => return Some("SIGHUP"),
                _ = self.quit.recv() => return Some("SIGQUIT"),
                _ = self.stop.recv() => out::error(
                    "not stopped: it has something to end in time; Ctrl-C ends it now",
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
        .map_err(|error| Failure::could_not(format!("reading the cgroup layout: {error}")))
}

/// What somebody is waiting for is not kept from them by a log: without one, stderr has the record.
fn audit_or_none(host: &HostOptions) -> Result<Audit, Failure> {
    Audit::open(&host.audit).or_else(|error| {
        let path = host.audit.display();
        tracing::error!(%error, "audit log {path}: giving back without a record in it");
        Audit::open(Path::new("/dev/null")).map_err(Failure::could_not)
    })
}

pub fn open_audit(host: &HostOptions) -> Result<Audit, Failure> {
    Audit::open(&host.audit).map_err(|error| {
        let path = host.audit.display();
        Failure::could_not(format!("audit log {path}: {error}; nothing was done without a record"))
    })
}

/// Has the agent do it.
fn ask<M: Method<Reply = Answer>>(
    host: &HostOptions,
    held: &Held,
    call: &M,
) -> Result<Exit, Failure> {
    let answer = client::call(&lock::socket(&host.run_dir), call).map_err(Failure::could_not)?;
    Ok(tell(&held.subject.name, &M::NAME.to_lowercase(), answer.outcome, &answer.detail))
}

fn cgroup_of(held: &Held) -> TargetCgroup {
    TargetCgroup {
        cgroup: held.cgroup.path().to_owned(),
        cgroup_id: held.cgroup.id(),
        name: held.subject.name.clone(),
        paused: held.paused,
    }
}

fn tell(name: &str, verb: &str, outcome: Outcome, detail: &str) -> Exit {
    let (exit, word) = match outcome {
        Outcome::Done => (Exit::Done, "done"),
        Outcome::WouldDo => (Exit::Done, "dry run"),
        Outcome::Refused => (Exit::Wrong, "refused"),
        Outcome::NotOurs => (Exit::Wrong, "left alone"),
        Outcome::Failed => (Exit::Wrong, "FAILED"),
    };
    out::answer(&format!("{name}: {verb} {word}: {detail}"));
    exit
}
