//! The only code that changes the host. Each change writes one audit record before it and one after
//! it.
//!
//! [`Executor::apply`] takes an order. [`Executor::settled`] returns how an order ended, under the
//! order's ticket, and [`Executor::next_settled`] waits for that. Some orders are settled at once,
//! others when the kernel or the owner of a limit has answered.

mod check;
mod confirm;
mod contain;
mod hold;
mod limit;
pub mod reconcile;
mod servers;
mod steps;

use std::collections::{BTreeMap, VecDeque};

use mcp_guard_core::{
    Time,
    audit::{Record, Subject},
    effect::{Action, Order, Remark, Settled},
    id::{GuardId, Incident, Ticket},
    incident::Outcome,
    server_order::{OrderedServer, ResumedBy, ServerAct},
};
use tokio::sync::mpsc;

pub use self::hold::{is_marked, marks, together, unclamped};
pub use self::limit::forbids;
pub use self::steps::{is_clamped, raise_command};
use self::{
    check::{AfterCheck, FactsFound, UnderCheck},
    confirm::{Awaited, KernelAnswer},
    limit::LimitWrite,
    servers::{Asleep, Back, ServerThreads, ServersUnderWay, Sleeping},
    steps::Holder,
};
use crate::{
    audit::Audit,
    engine::Engines,
    guards::{Guards, Held},
    host::{
        facts::LookThread,
        layout::{self, Layout},
    },
    owner,
    warden::client::WardenEvent,
};

/// An order that waits for an answer.
enum UnderWay {
    /// The cgroup is being looked at.
    Check(UnderCheck),
    /// The kernel confirms a freeze or a kill.
    Kernel(Awaited),
    /// Servers are being suspended or ended.
    Servers(ServersUnderWay),
    /// The owner of a limit writes it.
    Owner(LimitWrite),
    /// The owner may still write it, but the order is settled: nobody waits any more.
    GivenUp(LimitWrite),
}

impl UnderWay {
    fn subject(&self) -> &Subject {
        match self {
            Self::Check(checked) => checked.subject(),
            Self::Kernel(awaited) => awaited.subject(),
            Self::Servers(under_way) => under_way.subject(),
            Self::Owner(announced) | Self::GivenUp(announced) => announced.subject(),
        }
    }
}

/// The answer to an order that was under way.
enum LateAnswer {
    Look(FactsFound),
    Kernel {
        answer: KernelAnswer,
        at: Time,
    },
    Owner(owner::OwnerAnswer),
    Servers(Vec<OrderedServer>),
    ServersHang,
    /// A server is suspended.
    Asleep(Sleeping),
    /// A server runs, but its own cgroup is still there.
    Left(Sleeping),
    /// Suspended servers run again.
    Back(Back),
    Warden(WardenEvent),
}

pub struct Executor {
    pub audit: Audit,
    layout: Layout,
    engines: Engines,
    holder: Holder,
    looks: Option<LookThread>,
    server_threads: Option<ServerThreads>,
    asleep: Asleep,
    under_way: BTreeMap<Ticket, UnderWay>,
    settled: VecDeque<Settled>,
    /// At most one answer per order under way and two reports per suspended server, so the channel needs no other
    /// bound. Reports have no ticket.
    answers: mpsc::UnboundedReceiver<(Option<Ticket>, LateAnswer)>,
    to_answers: mpsc::UnboundedSender<(Option<Ticket>, LateAnswer)>,
}

impl Executor {
    #[must_use]
    pub fn new(audit: Audit, layout: Layout, engines: Engines) -> Self {
        let (to_answers, answers) = mpsc::unbounded_channel();
        Self {
            audit,
            layout,
            engines,
            holder: Holder::this_process(),
            looks: None,
            server_threads: None,
            asleep: Asleep::new(),
            under_way: BTreeMap::new(),
            settled: VecDeque::new(),
            answers,
            to_answers,
        }
    }

    /// Carries out one order.
    pub fn apply(&mut self, guards: &mut Guards, order: Order) {
        let Order { ticket, guard, action, .. } = order;
        let order = OrderId { ticket, guard, incident: Incident::new(self.audit.run(), ticket) };
        let Some(held) = guards.get_mut(guard) else {
            let detail = "the guard is gone, and nothing was done; try again".to_owned();
            return self.settle(order, Outcome::NotOurs, detail);
        };
        match action {
            Action::Warn { cause } => {
                self.audit.write(Record::Warning { guard: held.subject.clone(), cause });
            }
            Action::RefusalBegins { refusal } => {
                let (guard, refused) = (held.subject.clone(), refusal.to_string());
                tracing::warn!(name = guard.name, refused, "no response is possible");
                self.audit.write(Record::RefusalStart { guard, refused });
            }
            Action::RefusalEnds => {
                let guard = held.subject.clone();
                tracing::info!(name = guard.name, "responses are possible again");
                self.audit.write(Record::RefusalEnd { guard });
            }
            Action::Contain(wanted) => self.check(order, held, AfterCheck::Contain(wanted)),
            Action::Refuse { response, mode, cause, refusal } => {
                let detail = refusal.to_string();
                self.refuse(order, held, (response, mode, cause), detail);
            }
            Action::Renew { lease } => self.renew(order, held, lease),
            Action::Loosen { by, aborts, denials } => {
                self.loosen(order, held, by, aborts, denials);
            }
            Action::Release { hold, end } => self.release(order, held, hold, end),
            Action::Disown { hold, end } => self.disown(order, held, hold, end),
            Action::WriteLimit { write, over, reason } => {
                self.check(order, held, AfterCheck::WriteLimit(write, over, reason));
            }
            Action::GiveUpLimit { write } => self.give_up_limit(write),
            Action::Suspend(wanted) => {
                self.check(order, held, AfterCheck::Servers(ServerAct::Suspend, wanted));
            }
            Action::Reap(wanted) => {
                self.check(order, held, AfterCheck::Servers(ServerAct::Reap, wanted));
            }
            Action::Resume { servers, by } => self.resume(order, servers, by),
            Action::GiveUpServers { order } => self.give_up_servers_of(order),
            Action::LeaveLimit { write, reason, outcome, detail } => {
                let said = (outcome, detail);
                self.check(order, held, AfterCheck::LeaveLimit(write, reason, said));
            }
        }
    }

    /// Returns the next settled order, if there is one, without checking for new answers.
    pub fn settled(&mut self) -> Option<Settled> {
        self.settled.pop_front()
    }

    /// Returns the next settled order, if there is one, after checking for a new answer.
    pub fn answered(&mut self, guards: &mut Guards) -> Option<Settled> {
        if self.settled.is_empty()
            && let Ok((ticket, answer)) = self.answers.try_recv()
        {
            self.take_answer(guards, ticket, answer);
        }
        self.settled.pop_front()
    }

    /// Waits for the next settled order. Nothing is lost if the future is dropped.
    pub async fn next_settled(&mut self, guards: &mut Guards) -> Settled {
        loop {
            if let Some(settled) = self.answered(guards) {
                return settled;
            }
            // The channel stays open, because this executor has a sender itself.
            if let Some((ticket, answer)) = self.answers.recv().await {
                self.take_answer(guards, ticket, answer);
            }
        }
    }

    /// Whether an order is not settled, or is settled but not taken yet.
    #[must_use]
    pub fn has_orders_under_way(&self) -> bool {
        let is_unsettled = |one: &UnderWay| match one {
            UnderWay::Kernel(awaited) => awaited.is_unsettled(),
            UnderWay::Check(_) | UnderWay::Owner(_) | UnderWay::Servers(_) => true,
            UnderWay::GivenUp(_) => false,
        };
        self.under_way.values().any(is_unsettled) || !self.settled.is_empty()
    }

    /// Whether an order for this cgroup is under way, or it carries a mark of ours. Its guard must not end: the
    /// order would be dropped, and nobody would release the hold.
    #[must_use]
    pub fn needs(&self, held: &Held) -> bool {
        let is_its = |one: &UnderWay| {
            // An owner that hangs must not keep a guard.
            !matches!(one, UnderWay::GivenUp(_)) && one.subject().is_same_cgroup(&held.subject)
        };
        is_marked(held) || self.asleep.has(&held.subject) || self.under_way.values().any(is_its)
    }

    /// Whether the owner of a limit has yet to answer.
    #[must_use]
    pub fn awaits_owners(&self) -> bool {
        self.under_way.values().any(|one| matches!(one, UnderWay::Owner(_)))
    }

    /// Ends each limit write whose owner has not answered, and writes its last record.
    pub fn abandon_limits(&mut self, guards: &mut Guards) {
        let of_limits = |one: &UnderWay| matches!(one, UnderWay::Owner(_));
        let limits = self.under_way.extract_if(.., |_, one| of_limits(one));
        for (_, announced) in limits.collect::<Vec<_>>() {
            if let UnderWay::Owner(announced) = announced {
                let detail = "the owner did not answer before the agent ended";
                self.end_limit(guards, announced, Err(owner::Unwritten::unanswered(detail)));
            }
        }
    }

    fn take_answer(&mut self, guards: &mut Guards, ticket: Option<Ticket>, answer: LateAnswer) {
        let under_way = ticket.and_then(|ticket| self.under_way.remove(&ticket));
        match (under_way, answer) {
            (Some(UnderWay::Kernel(awaited)), LateAnswer::Kernel { answer, at }) => {
                self.confirm(guards, awaited, answer, at);
            }
            (Some(UnderWay::Owner(announced)), LateAnswer::Owner(answer)) => {
                self.end_limit(guards, announced, answer);
            }
            (Some(UnderWay::GivenUp(announced)), LateAnswer::Owner(answer)) => {
                self.note_late_limit(guards, announced, answer);
            }
            (Some(UnderWay::Servers(under_way)), LateAnswer::Servers(servers)) => {
                self.end_servers(under_way, servers);
            }
            (_, LateAnswer::Asleep(one)) => self.fell_asleep(one),
            (_, LateAnswer::Left(one)) => self.is_left(one, ResumedBy::Silence),
            (_, LateAnswer::Warden(event)) => self.warden_says(event),
            (_, LateAnswer::Back(back)) => self.went_back(back),
            (Some(UnderWay::Servers(under_way)), LateAnswer::ServersHang) => {
                let why = "a process of a server hangs; what was done to them is not known";
                self.lose_servers_of(under_way, why);
            }
            (Some(UnderWay::Check(checked)), LateAnswer::Look(found)) => {
                self.end_check(guards, checked, found);
            }
            // The order was abandoned.
            (
                Some(
                    UnderWay::Check(_)
                    | UnderWay::Kernel(_)
                    | UnderWay::Servers(_)
                    | UnderWay::Owner(_)
                    | UnderWay::GivenUp(_),
                )
                | None,
                _,
            ) => {}
        }
    }

    fn settle(&mut self, order: OrderId, outcome: Outcome, detail: String) {
        self.settle_with(order, (outcome, detail), None);
    }

    fn settle_with(
        &mut self,
        order: OrderId,
        (outcome, detail): (Outcome, String),
        remark: Option<Remark>,
    ) {
        let OrderId { ticket, guard, .. } = order;
        self.settled.push_back(Settled { ticket, guard, outcome, detail, remark });
    }

    /// Whether the engine has paused this cgroup through the same `cgroup.freeze` that we write.
    /// Beside a version 1 hierarchy it has not: there an engine pauses with the version 1 freezer,
    /// its unpause would never undo our freeze, and our thaw does not touch its pause. Nor has it
    /// if this cgroup is above or below the one that the engine pauses.
    fn engine_freezes(&self, held: &Held) -> bool {
        let unified = self.layout.kind == layout::LayoutKind::Unified;
        held.paused && unified && held.cgroup.is_where_an_engine_pauses()
    }
}

/// The identity of an order, and of its incident in the audit log.
#[derive(Clone)]
struct OrderId {
    ticket: Ticket,
    guard: GuardId,
    incident: Incident,
}

/// Returns the guard if it still has the cgroup that an order was for. Another guard may have its
/// slot by now.
fn still_there<'a>(guards: &'a mut Guards, guard: GuardId, of: &Subject) -> Option<&'a mut Held> {
    guards.get_mut(guard).filter(|held| held.subject.is_same_cgroup(of))
}

/// Whether an error means that the cgroup was removed. Any other error says nothing about it.
#[must_use]
pub fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

fn micros(from: Time, to: Time) -> u64 {
    u64::try_from(to.since(from).as_micros()).unwrap_or(u64::MAX)
}
