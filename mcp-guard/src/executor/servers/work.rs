//! Carries out an order about servers, if each is still as the looks have shown it: looks at it twice, and then suspends
//! it; or sends it SIGTERM, waits, and kills what is left.
//!
//! Signals go through pidfds to the processes that were judged, and to no other. A process that they start meanwhile
//! is left alone: it is a server of its own, or it is found and judged with the next look.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    id::Ticks,
    policy::Mode,
    registry::{Member, TargetServer},
    server_order::{OrderedServer, ServerResult},
};
use rustix::process::Signal;

use super::{
    judge::{Judged, STEP, Spared},
    suspender::{Suspended, Suspender},
};
use crate::host::evidence::Freezers;

/// Between the two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a server has to end after SIGTERM, and how long if it goes on reading or writing meanwhile.
const GRACE: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(30);
/// How long the kernel has after SIGKILL.
const KILLED: Duration = Duration::from_secs(2);

/// The end that an order is for.
pub enum Act {
    Suspend(Box<Suspender>),
    Reap,
}

/// An order about servers, on a thread that may wait.
pub struct Work {
    pub act: Act,
    pub servers: Vec<TargetServer>,
    /// The path of the guard's cgroup.
    pub cgroup: String,
    pub mode: Mode,
    pub is_given_up: Arc<AtomicBool>,
}

/// Returns servers as they are announced.
pub fn announced(servers: &[TargetServer]) -> Vec<OrderedServer> {
    let one = |target: &TargetServer| {
        let is_root = |member: &&Member| member.pid == target.root;
        let root = target.members.iter().find(is_root);
        OrderedServer {
            identity: target.identity.clone(),
            pid: target.root,
            start_ticks: root.map_or(Ticks(0), |root| root.start_ticks),
            processes: target.members.len() as u64,
            contact: target.contact,
            memory: None,
            end: None,
            detail: None,
        }
    };
    servers.iter().map(one).collect()
}

impl Work {
    /// Carries it out. Returns what came of each server, in the same order. Each that is suspended is told at once.
    pub fn run(self, freezers: &Freezers, tell: impl Fn(Suspended)) -> Vec<OrderedServer> {
        let mut all = announced(&self.servers);
        let first: Vec<_> = self
            .servers
            .iter()
            .map(|target| Judged::look(target, &self.cgroup, freezers))
            .collect();
        self.wait(PAUSE, || false);
        let again = first.into_iter().map(|judged| {
            let judged = judged?;
            self.is_wanted()?;
            judged.is_the_same(&self.cgroup, freezers)?;
            Ok(judged)
        });
        let judged: Vec<Result<Judged, Spared>> = again.collect();
        for (one, judged) in all.iter_mut().zip(&judged) {
            match judged {
                Ok(judged) => {
                    one.processes = judged.processes.len() as u64;
                    one.memory = judged.seen.memory;
                    one.end = Some(match self.act {
                        Act::Suspend(_) => ServerResult::WouldSuspend,
                        Act::Reap => ServerResult::WouldEnd,
                    });
                }
                Err(why) => (one.end, one.detail) = (Some(ServerResult::Spared), Some(why.clone())),
            }
        }
        if self.mode == Mode::Enforce {
            let left =
                all.iter_mut().zip(judged).filter_map(|(one, judged)| Some((one, judged.ok()?)));
            match &self.act {
                Act::Suspend(suspender) => self.suspend(suspender, left.collect(), tell),
                Act::Reap => self.end(left.collect(), freezers),
            }
        }
        all
    }

    fn suspend(
        &self,
        suspender: &Suspender,
        left: Vec<(&mut OrderedServer, Judged)>,
        tell: impl Fn(Suspended),
    ) {
        for (one, judged) in left {
            match self.is_wanted().and_then(|()| suspender.suspend(judged, &self.cgroup)) {
                Ok(suspended) => {
                    one.end = Some(match &suspended {
                        Suspended::Asleep(_) => ServerResult::Suspended,
                        Suspended::Left(_, why) => {
                            one.detail = Some(why.clone());
                            ServerResult::Spared
                        }
                    });
                    tell(suspended);
                }
                Err(why) => (one.end, one.detail) = (Some(ServerResult::Spared), Some(why)),
            }
        }
    }

    fn end(&self, mut left: Vec<(&mut OrderedServer, Judged)>, freezers: &Freezers) {
        for (_, judged) in &left {
            judged.signal(Signal::TERM);
        }
        self.await_end(&left);
        for (one, judged) in &mut left {
            one.end = Some(ServerResult::Ended);
            if !judged.lives() {
                continue;
            }
            one.end = Some(ServerResult::Stays);
            match self.is_wanted().and_then(|()| judged.may_be_killed(&self.cgroup, freezers)) {
                Ok(()) => judged.signal(Signal::KILL),
                Err(why) => one.detail = Some(format!("it got SIGTERM, and was not killed: {why}")),
            }
        }
        let is_killed =
            |one: &OrderedServer| one.end == Some(ServerResult::Stays) && one.detail.is_none();
        let killed_live = || left.iter().any(|(one, judged)| is_killed(one) && judged.lives());
        self.wait(KILLED, || !killed_live());
        for (one, judged) in &mut left {
            if !is_killed(one) {
                continue;
            }
            let living = judged.processes.iter().filter(|one| one.lives()).count();
            if living == 0 {
                one.end = Some(ServerResult::Killed);
            } else {
                one.detail =
                    Some(format!("SIGKILL was sent; processes that have not ended: {living}"));
            }
        }
    }

    /// Waits until servers have ended, or do nothing to end. Some save their state first.
    fn await_end(&self, left: &[(&mut OrderedServer, Judged)]) {
        let have_ended = || !left.iter().any(|(_, one)| one.lives());
        let moved = || left.iter().map(|(_, one)| one.moved()).collect::<Vec<_>>();
        let (longest, mut before) = (Instant::now() + LONGEST, moved());
        self.wait(GRACE, have_ended);
        while !have_ended() && self.is_wanted().is_ok() && Instant::now() < longest {
            let now = moved();
            if now == before {
                return;
            }
            before = now;
            self.wait(PAUSE, have_ended);
        }
    }

    fn is_wanted(&self) -> Result<(), Spared> {
        if self.is_given_up.load(Ordering::Relaxed) {
            return Err("the order was given up".to_owned());
        }
        Ok(())
    }

    /// Waits for `is_over`, for this time at most, or until the order is given up.
    fn wait(&self, time: Duration, is_over: impl Fn() -> bool) {
        let end = Instant::now() + time;
        while Instant::now() < end && self.is_wanted().is_ok() && !is_over() {
            thread::sleep(STEP);
        }
    }
}
