//! Suspends or ends single servers. Threads of their own look at them once more, act and wait, because some of the files
//! that they read wait for the process that they are about.

mod asleep;
mod judge;
mod suspender;
mod threads;
mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use mcp_guard_core::{
    audit::{Record, Subject},
    effect::Remark,
    id::Ticket,
    incident::{Cause, Outcome},
    policy::Mode,
    registry::{TargetServer, TreeId},
    server_order::{OrderedServer, ServerAct, ServerResult, ServersOrder, summary},
};

pub use self::{
    asleep::{Asleep, Back, Sleeping},
    threads::ServerThreads,
};
use self::{
    suspender::{Suspended, Suspender},
    work::{Act, Work},
};
use super::{Executor, FactsFound, LateAnswer, OrderId, UnderWay, contain::allowed};
use crate::{
    guards::Held,
    host::{clock, evidence::Freezers},
};

/// The time in a mark of a suspended server. After it, another process may end the sleep, even if the agent lives.
const LEASE: Duration = Duration::from_secs(30 * 86_400);
/// An order that takes longer hangs: a process of a server holds its thread up.
const LONGEST: Duration = Duration::from_secs(90);

/// Servers of an order that is under way.
pub struct ServersUnderWay {
    act: ServerAct,
    order: OrderId,
    subject: Subject,
    mode: Mode,
    cause: Cause,
    servers: Vec<OrderedServer>,
    /// It is to go on with no more servers.
    is_given_up: Arc<AtomicBool>,
}

impl ServersUnderWay {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Has it go on with no more servers. One that has got SIGTERM is not killed.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    fn record(
        &self,
        servers: Vec<OrderedServer>,
        outcome: Option<Outcome>,
        detail: &str,
    ) -> Record {
        let (incident, guard) = (self.order.incident.clone(), self.subject.clone());
        let (mode, cause, detail) = (self.mode, self.cause.clone(), detail.to_owned());
        match self.act {
            ServerAct::Suspend => {
                Record::Suspend { incident, guard, mode, cause, servers, outcome, detail }
            }
            ServerAct::Reap => {
                Record::Reap { incident, guard, mode, cause, servers, outcome, detail }
            }
        }
    }
}

impl Executor {
    /// Has orders about servers carried out on threads of their own. Without these, none is.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn with_server_threads(self) -> anyhow::Result<Self> {
        let threads =
            ServerThreads::start().context("cannot start the threads that act on servers")?;
        Ok(Self { server_threads: Some(threads), ..self })
    }

    /// Announces an order about servers, and has it begin if no rule forbids it.
    pub(super) fn act_on_servers(
        &mut self,
        order: OrderId,
        held: &Held,
        (act, wanted): (ServerAct, ServersOrder),
        found: FactsFound,
    ) {
        let under_way = self.announce_servers(order, &held.subject, act, &wanted);
        if let Err((outcome, why)) = allowed(found, None) {
            return self.spare_all(under_way, outcome, &why);
        }
        match self.begin_servers(&under_way, held, wanted.servers) {
            Ok(()) => {
                let (ticket, answers) = (under_way.order.ticket, self.to_answers.clone());
                self.under_way.insert(ticket, UnderWay::Servers(under_way));
                tokio::spawn(async move {
                    tokio::time::sleep(LONGEST).await;
                    let _ = answers.send((Some(ticket), LateAnswer::ServersHang));
                });
            }
            Err(why) => self.spare_all(under_way, Outcome::Failed, &why),
        }
    }

    fn begin_servers(
        &mut self,
        under_way: &ServersUnderWay,
        held: &Held,
        servers: Vec<TargetServer>,
    ) -> Result<(), String> {
        let ServersUnderWay { order, subject, mode, cause, is_given_up, .. } = under_way;
        let act = match under_way.act {
            ServerAct::Suspend => {
                self.has_room_for(subject, servers.len())?;
                let mut mark = self.holder.mark(&order.incident, cause, clock::now().after(LEASE));
                mark.of_a_server = true;
                let guard = held.cgroup.try_clone_dir().map_err(|error| error.to_string())?;
                let next = self.asleep.next();
                Act::Suspend(Box::new(Suspender { warden: self.warden()?, mark, guard, next }))
            }
            ServerAct::Reap => Act::Reap,
        };
        let (cgroup, mode) = (subject.cgroup.clone(), *mode);
        let work = Work { act, servers, cgroup, mode, is_given_up: is_given_up.clone() };
        let (order, subject, answers) = (order.clone(), subject.clone(), self.to_answers.clone());
        let freezers = Freezers::of(&self.layout);
        let job = move || {
            let tell = |suspended| {
                let (order, subject) = (order.clone(), subject.clone());
                let report = match suspended {
                    Suspended::Asleep(sleeper) => {
                        LateAnswer::Asleep(Sleeping { order, subject, sleeper })
                    }
                    Suspended::Left(sleeper, _) => {
                        LateAnswer::Left(Sleeping { order, subject, sleeper })
                    }
                };
                // The receiver is gone only when the program ends.
                let _ = answers.send((None, report));
            };
            let servers = work.run(&freezers, tell);
            let _ = answers.send((Some(order.ticket), LateAnswer::Servers(servers)));
        };
        let Some(threads) = &mut self.server_threads else {
            return Err("only an agent acts on servers".to_owned());
        };
        threads.begin(job)
    }

    fn announce_servers(
        &mut self,
        order: OrderId,
        subject: &Subject,
        act: ServerAct,
        wanted: &ServersOrder,
    ) -> ServersUnderWay {
        let ServersOrder { servers, mode, cause } = wanted;
        let servers = work::announced(servers);
        let (subject, mode, cause) = (subject.clone(), *mode, cause.clone());
        let is_given_up = Arc::default();
        let under_way = ServersUnderWay { act, order, subject, mode, cause, servers, is_given_up };
        self.audit.write(under_way.record(under_way.servers.clone(), None, ""));
        under_way
    }

    /// Writes both records of an order that ends before its cgroup was checked.
    pub(super) fn drop_servers(
        &mut self,
        order: OrderId,
        subject: &Subject,
        (act, wanted): (ServerAct, ServersOrder),
        (outcome, detail): (Outcome, String),
    ) {
        let under_way = self.announce_servers(order, subject, act, &wanted);
        self.spare_all(under_way, outcome, &detail);
    }

    fn spare_all(&mut self, under_way: ServersUnderWay, outcome: Outcome, why: &str) {
        let spared = |server: &OrderedServer| OrderedServer {
            end: Some(ServerResult::Spared),
            ..server.clone()
        };
        let servers = under_way.servers.iter().map(spared).collect();
        self.finish_servers(under_way, servers, &[], (outcome, why));
    }

    /// Takes what came of an order.
    pub(super) fn end_servers(&mut self, under_way: ServersUnderWay, servers: Vec<OrderedServer>) {
        let (outcome, detail) = summary(&servers);
        // Those that have woken meanwhile are not among them.
        let asleep = self.asleep.of(under_way.order.ticket);
        self.finish_servers(under_way, servers, &asleep, (outcome, &detail));
    }

    fn finish_servers(
        &mut self,
        under_way: ServersUnderWay,
        servers: Vec<OrderedServer>,
        asleep: &[TreeId],
        (outcome, detail): (Outcome, &str),
    ) {
        let (name, act) = (&under_way.subject.name, under_way.act);
        tracing::info!(name, ?act, ?outcome, detail, "servers");
        let said = said(&servers, detail);
        self.audit.write(under_way.record(servers, Some(outcome), detail));
        let remark = (!asleep.is_empty()).then(|| Remark::Suspended(asleep.to_vec()));
        self.settle_with(under_way.order, (outcome, said), remark);
    }

    /// Ends an order whose thread hangs. Nobody knows how far it got.
    pub(super) fn lose_servers_of(&mut self, under_way: ServersUnderWay, why: &str) {
        under_way.give_up();
        let servers = under_way.servers.clone();
        self.finish_servers(under_way, servers, &[], (Outcome::Failed, why));
    }

    /// Ends all orders that are still under way, because the agent ends.
    pub fn lose_servers(&mut self) {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Servers(_));
        let all: Vec<_> = self.under_way.extract_if(.., |_, one| is_it(one)).collect();
        for (_, one) in all {
            if let UnderWay::Servers(under_way) = one {
                let why = match under_way.act {
                    ServerAct::Suspend => "the agent ended first",
                    ServerAct::Reap => "the agent ended first; servers may have got SIGTERM",
                };
                self.lose_servers_of(under_way, why);
            }
        }
    }

    /// Has an order go on with no more servers.
    pub(super) fn give_up_servers_of(&mut self, order: Ticket) {
        self.abandon_check_of(order);
        if let Some(UnderWay::Servers(under_way)) = self.under_way.get(&order) {
            under_way.give_up();
        }
    }

    /// Has all orders go on with no more servers, because the agent ends.
    pub fn give_up_servers(&mut self) {
        for one in self.under_way.values() {
            if let UnderWay::Servers(under_way) = one {
                under_way.give_up();
            }
        }
    }

    fn has_servers_under_way(&self) -> bool {
        self.under_way.values().any(|one| matches!(one, UnderWay::Servers(_)))
    }
}

/// Adds a line for each server, for the operator who waits.
fn said(servers: &[OrderedServer], summary: &str) -> String {
    let line = |server: &OrderedServer| {
        let OrderedServer { identity, pid, processes, memory, end, detail, .. } = server;
        let end = match end {
            Some(ServerResult::Ended) => "ended",
            Some(ServerResult::Killed) => "killed",
            Some(ServerResult::WouldEnd) => "would be ended",
            Some(ServerResult::Suspended) => "suspended",
            Some(ServerResult::WouldSuspend) => "would be suspended",
            Some(ServerResult::Spared) => "spared",
            Some(ServerResult::Stays) => "not ended yet",
            None => "not looked at",
        };
        let memory = memory.map(|bytes| format!(", {} MiB", bytes >> 20)).unwrap_or_default();
        let detail = detail.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("\n  {identity}, pid {pid} (processes: {processes}{memory}): {end}{detail}")
    };
    format!("{summary}{}", servers.iter().map(line).collect::<String>())
}
