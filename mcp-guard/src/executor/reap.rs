//! Ends single servers. Threads of their own look at them once more, send the signals and wait, because some of the
//! files that they read wait for the process that they are about.

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
    id::Ticket,
    incident::{Cause, Outcome},
    policy::Mode,
    reap::{ReapOrder, ReapResult, ReapedServer, summary},
};

pub use self::threads::ReapThreads;
use self::work::Work;
use super::{Executor, FactsFound, LateAnswer, OrderId, UnderWay, contain::allowed};
use crate::{guards::Held, host::evidence::Freezers};

/// An order that takes longer hangs: a process of a server holds its thread up.
const LONGEST: Duration = Duration::from_secs(90);

/// Servers that are being ended.
pub struct ReapUnderWay {
    order: OrderId,
    subject: Subject,
    mode: Mode,
    cause: Cause,
    servers: Vec<ReapedServer>,
    /// No more servers are to be ended.
    is_given_up: Arc<AtomicBool>,
}

impl ReapUnderWay {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Has no more servers ended. One that has got SIGTERM is not killed.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    fn record(&self, servers: Vec<ReapedServer>, outcome: Option<Outcome>, detail: &str) -> Record {
        Record::Reap {
            incident: self.order.incident.clone(),
            guard: self.subject.clone(),
            mode: self.mode,
            cause: self.cause.clone(),
            servers,
            outcome,
            detail: detail.to_owned(),
        }
    }
}

impl Executor {
    /// Has servers ended on threads of their own. Without these, none is ended.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn with_reapers(self) -> anyhow::Result<Self> {
        let reapers = ReapThreads::start().context("cannot start the threads that end servers")?;
        Ok(Self { reapers: Some(reapers), ..self })
    }

    /// Announces the end of some servers, and has it begin if no rule forbids it.
    pub(super) fn reap(
        &mut self,
        order: OrderId,
        held: &Held,
        wanted: ReapOrder,
        found: FactsFound,
    ) {
        let (under_way, work) = self.announce_reap(order, &held.subject, wanted);
        if let Err((outcome, why)) = allowed(found, None) {
            return self.close_reap(under_way, outcome, &why);
        }
        let (ticket, answers) = (under_way.order.ticket, self.to_answers.clone());
        let answer = move |servers| {
            // The receiver is gone only when the program ends.
            let _ = answers.send((ticket, LateAnswer::Reap(servers)));
        };
        let freezers = Freezers::of(&self.layout);
        let Some(reapers) = &mut self.reapers else {
            return self.close_reap(under_way, Outcome::Failed, "only an agent ends servers");
        };
        match reapers.begin(move || answer(work.run(&freezers))) {
            Ok(()) => {
                self.under_way.insert(ticket, UnderWay::Reap(under_way));
                let answers = self.to_answers.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LONGEST).await;
                    let _ = answers.send((ticket, LateAnswer::ReapHangs));
                });
            }
            Err(why) => self.close_reap(under_way, Outcome::Failed, &why),
        }
    }

    fn announce_reap(
        &mut self,
        order: OrderId,
        subject: &Subject,
        wanted: ReapOrder,
    ) -> (ReapUnderWay, Work) {
        let ReapOrder { servers, mode, cause } = wanted;
        let is_given_up = Arc::<AtomicBool>::default();
        let cgroup = subject.cgroup.clone();
        let work = Work { servers, cgroup, mode, is_given_up: is_given_up.clone() };
        let servers = work.announced();
        let subject = subject.clone();
        let under_way = ReapUnderWay { order, subject, mode, cause, servers, is_given_up };
        self.audit.write(under_way.record(under_way.servers.clone(), None, ""));
        (under_way, work)
    }

    /// Writes both records of an order that ends before its cgroup was checked.
    pub(super) fn drop_reap(
        &mut self,
        order: OrderId,
        subject: &Subject,
        wanted: ReapOrder,
        (outcome, detail): (Outcome, String),
    ) {
        let (under_way, _) = self.announce_reap(order, subject, wanted);
        self.close_reap(under_way, outcome, &detail);
    }

    fn close_reap(&mut self, under_way: ReapUnderWay, outcome: Outcome, why: &str) {
        let spared = |server: &ReapedServer| ReapedServer {
            end: Some(ReapResult::Spared),
            ..server.clone()
        };
        let servers = under_way.servers.iter().map(spared).collect();
        self.finish_reap(under_way, servers, outcome, why);
    }

    /// Takes what came of an order.
    pub(super) fn end_reap(&mut self, under_way: ReapUnderWay, servers: Vec<ReapedServer>) {
        let (outcome, detail) = summary(&servers);
        self.finish_reap(under_way, servers, outcome, &detail);
    }

    fn finish_reap(
        &mut self,
        under_way: ReapUnderWay,
        servers: Vec<ReapedServer>,
        outcome: Outcome,
        detail: &str,
    ) {
        tracing::info!(name = under_way.subject.name, ?outcome, detail, "reap");
        let said = said(&servers, detail);
        self.audit.write(under_way.record(servers, Some(outcome), detail));
        self.settle(under_way.order, outcome, said);
    }

    /// Ends an order whose thread hangs. Nobody knows how far it got.
    pub(super) fn lose_reap(&mut self, under_way: ReapUnderWay, why: &str) {
        under_way.give_up();
        let servers = under_way.servers.clone();
        self.finish_reap(under_way, servers, Outcome::Failed, why);
    }

    /// Ends all orders that are still under way, because the agent ends.
    pub fn lose_reaps(&mut self) {
        let is_it = |one: &UnderWay| matches!(one, UnderWay::Reap(_));
        let all: Vec<_> = self.under_way.extract_if(.., |_, one| is_it(one)).collect();
        for (_, one) in all {
            if let UnderWay::Reap(under_way) = one {
                self.lose_reap(under_way, "the agent ended first; servers may have got SIGTERM");
            }
        }
    }

    /// Ends no more servers for this order.
    pub(super) fn give_up_reap(&mut self, reap: Ticket) {
        self.abandon_check_of(reap);
        if let Some(UnderWay::Reap(under_way)) = self.under_way.get(&reap) {
            under_way.give_up();
        }
    }

    /// Ends no more servers, because the agent ends.
    pub fn give_up_reaps(&mut self) {
        for one in self.under_way.values() {
            if let UnderWay::Reap(under_way) = one {
                under_way.give_up();
            }
        }
    }
}

/// Adds a line for each server, for the operator who waits.
fn said(servers: &[ReapedServer], summary: &str) -> String {
    let line = |server: &ReapedServer| {
        let ReapedServer { identity, pid, processes, memory, end, detail, .. } = server;
        let end = match end {
            Some(ReapResult::Ended) => "ended",
            Some(ReapResult::Killed) => "killed",
            Some(ReapResult::WouldEnd) => "would be ended",
            Some(ReapResult::Spared) => "spared",
            Some(ReapResult::Stays) => "not ended yet",
            None => "not looked at",
        };
        let memory = memory.map(|bytes| format!(", {} MiB", bytes >> 20)).unwrap_or_default();
        let detail = detail.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("\n  {identity}, pid {pid} (processes: {processes}{memory}): {end}{detail}")
    };
    format!("{summary}{}", servers.iter().map(line).collect::<String>())
}
