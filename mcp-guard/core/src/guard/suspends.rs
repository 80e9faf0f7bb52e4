//! The servers of one guard that are suspended: frozen alone until their client asks them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Guard, attempts::Attempts, findings::FRESH};
use crate::{
    Time,
    effect::{Action, Outbox, Remark, Settled},
    evidence::Quiescence,
    id::RequestId,
    incident::{Cause, Detector, Outcome},
    policy::{Applied, Policy, Respond, ServerResponse},
    registry::{LiveServer, TreeId},
    server::Naming,
    server_order::{self, ResumedBy, ServersOrder, ServersRequest},
};

/// A server that was woken is not suspended again for this long.
const REST: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub(super) struct Suspends {
    attempts: Attempts,
    asleep: BTreeSet<TreeId>,
    /// Identities whose surplus is suspended, for the most part: no clamp is needed.
    relieved: BTreeSet<Arc<str>>,
    /// All of them are being resumed, because the guard ends.
    is_given_back: bool,
}

impl Suspends {
    pub fn looked(&mut self) {
        self.attempts.is_due = true;
    }

    pub fn begin_again(&mut self) {
        self.attempts.begin_again();
        self.relieved.clear();
    }

    /// Whether an order is under way, or a server is suspended.
    pub fn is_busy(&self) -> bool {
        self.attempts.is_under_way() || !self.asleep.is_empty()
    }

    /// Whether suspending servers of this identity does what a clamp is for.
    pub fn relieve(&self, identity: &str) -> bool {
        self.relieved.contains(identity)
    }
}

impl Guard {
    /// Suspends the surplus of identities that detector D finds, as far as it is quiescent.
    pub(super) fn suspend(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let is_forbidden = self.leaves || self.refusal.is_some() || self.freeze.is_some();
        if is_forbidden || self.suspends.attempts.is_outdated() {
            self.suspends.attempts.give_up(self.id, out);
        }
        if is_forbidden || !self.suspends.attempts.begins(now, &self.registry) {
            return;
        }
        let (mut due, mut relieved) = (Vec::new(), BTreeSet::new());
        let scope = policy.scope(self.terms.rule);
        for (applied, servers) in self.variants.groups(scope, self.registry.servers()) {
            if applied.respond.servers < ServerResponse::Suspend {
                continue;
            }
            let mut of_each: BTreeMap<&str, Vec<LiveServer<'_>>> = BTreeMap::new();
            for server in servers.into_iter().filter(|server| server.naming.is_firm()) {
                of_each.entry(server.identity).or_default().push(server);
            }
            for (identity, servers) in of_each {
                let fresh = FRESH * policy.evidence.every;
                let attempts = &self.suspends.attempts;
                let surplus = Surplus::of(servers, &applied.respond);
                let fits = |server: &&LiveServer<'_>| {
                    may_sleep(now, fresh, server) && attempts.may_later(now, server.id)
                };
                let fit = surplus.idle.iter().filter(fits).count().min(surplus.room);
                if fit > 0 && fit * 2 >= surplus.idle.len() {
                    relieved.insert(identity.into());
                }
                let of_age = surplus.of_age((now, self.woke.unwrap_or_default()), applied);
                let chosen = of_age
                    .into_iter()
                    .filter(|server| may_sleep(now, fresh, server) && attempts.may(now, server.id));
                due.extend(chosen);
            }
        }
        self.suspends.relieved = relieved;
        let all = u64::try_from(due.len()).unwrap_or(u64::MAX);
        // The one that has been idle for longest first.
        due.sort_by_key(|server| std::cmp::Reverse(server.known.idle()));
        due.truncate(server_order::MOST);
        let identity = due.first().map(|server| server.identity.to_owned());
        let servers = self.registry.targets(&due);
        if servers.is_empty() {
            return;
        }
        let cause = Cause {
            detector: Some(Detector::Duplicates),
            identity: identity.filter(|name| servers.iter().all(|one| one.identity == *name)),
            numbers: [("due".to_owned(), all)].into(),
            ..Cause::default()
        };
        let ids = servers.iter().map(|one| one.server).collect();
        let order = ServersOrder { servers, mode: self.terms.mode, cause };
        let ticket = out.act(self.id, Action::Suspend(order));
        self.suspends.attempts.ordered(ticket, ids);
    }

    /// Suspends the servers that an operator names. Nothing is ordered if none of them is as it was listed.
    pub(super) fn suspend_for(
        &mut self,
        now: Time,
        (id, request): (RequestId, &ServersRequest),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let fresh = FRESH * policy.evidence.every;
        if let Some(order) = self.order_for(request, |server| may_sleep(now, fresh, server)) {
            out.act_for(self.id, Some(id), Action::Suspend(order));
        }
    }

    /// Resumes the servers that an operator names.
    pub(super) fn resume_for(
        &mut self,
        (id, request): (RequestId, &ServersRequest),
        out: &mut Outbox<'_>,
    ) {
        let live: Vec<_> = self.registry.servers().filter(|one| one.asleep.is_some()).collect();
        let eldest = self.registry.eldest(&live);
        let is_named = |server: &&LiveServer<'_>| request.names(server, eldest.get(&server.id));
        let servers: Vec<TreeId> = live.iter().filter(is_named).map(|one| one.id).collect();
        if !servers.is_empty() {
            out.act_for(self.id, Some(id), Action::Resume { servers, by: ResumedBy::Operator });
        }
    }

    /// Resumes all servers, because the guard ends.
    pub(super) fn resume_all(&mut self, out: &mut Outbox<'_>) {
        self.suspends.attempts.give_up(self.id, out);
        let servers: Vec<TreeId> = self.suspends.asleep.iter().copied().collect();
        if !servers.is_empty() && !std::mem::replace(&mut self.suspends.is_given_back, true) {
            out.act(self.id, Action::Resume { servers, by: ResumedBy::Policy });
        }
    }

    /// Takes the end of an order, or of the sleep of a server.
    pub(super) fn suspend_settled(&mut self, now: Time, settled: &Settled) {
        let is_its = self.suspends.attempts.settled(now, settled);
        if is_its && !matches!(settled.outcome, Outcome::Done | Outcome::WouldDo) {
            self.suspends.relieved.clear();
            self.look_at_all_again();
        }
        match &settled.remark {
            Some(Remark::Suspended(servers)) => {
                for server in servers {
                    self.suspends.attempts.forget(*server);
                    self.suspends.asleep.insert(*server);
                    self.registry.set_asleep(*server, now);
                }
                self.suspends.is_given_back = false;
            }
            Some(Remark::Resumed(servers)) => {
                for server in servers {
                    self.suspends.asleep.remove(server);
                    self.registry.woke(now, *server);
                    self.suspends.attempts.leave_alone(*server, now.after(REST));
                }
            }
            Some(Remark::MayArrive | Remark::ServesFuse) | None => {}
        }
    }
}

/// The servers of one identity that are too many if they are idle: all that are awake, but the newest.
struct Surplus<'a> {
    /// Those that had done nothing between the last two looks.
    idle: Vec<LiveServer<'a>>,
    /// How many of them may be suspended. A leak that is suspended still grows, and uses memory.
    room: usize,
    keep: usize,
}

impl<'a> Surplus<'a> {
    /// `servers`: the oldest come first.
    fn of(mut servers: Vec<LiveServer<'a>>, respond: &Respond) -> Self {
        let all = servers.len();
        servers.retain(|server| server.asleep.is_none());
        let room = respond.suspended_max.saturating_sub(all - servers.len());
        servers.truncate(servers.len().saturating_sub(respond.keep));
        servers.retain(|server| server.known.idle() > Some(Duration::ZERO));
        Self { idle: servers, room, keep: respond.keep }
    }

    /// Returns those on which detector D acts.
    fn of_age(mut self, (now, woke): (Time, Time), applied: &Applied) -> Vec<LiveServer<'a>> {
        let limits = &applied.detect.duplicates;
        self.idle.retain(|server| {
            now.since(server.started.max(woke)) >= limits.act_age
                && server.known.idle() >= Some(limits.act_age)
        });
        if self.idle.len() + self.keep < limits.act {
            return Vec::new();
        }
        self.idle.truncate(self.room);
        self.idle
    }
}

/// Whether the last look has shown that a server waits for its client and for nothing else.
fn may_sleep(now: Time, fresh: Duration, server: &LiveServer<'_>) -> bool {
    server.asleep.is_none()
        && server.known.quiescence == Quiescence::Quiescent
        && server.known.contact_for(now, fresh).is_some()
        // A client of containers stays connected to its engine.
        && server.naming != Naming::Image
}
