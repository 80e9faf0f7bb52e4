//! The servers of one guard that are ended alone: those that nobody can reach, and those that an operator names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Guard, findings::FRESH};
use crate::{
    Time,
    detect::disconnected,
    effect::{Action, Outbox, Settled},
    evidence::{Contact, Quiescence, StdioAtExec},
    id::{RequestId, Ticket},
    incident::{Cause, Detector, Outcome},
    policy::{Applied, Mode, Policy, ServerResponse},
    reap::{self, ListedServer, ReapOrder, ReapRequest, ToReap},
    registry::{LiveServer, Registry, TreeId},
    server::Naming,
};

/// How long a server that could not be ended is left alone the first time. It doubles each time.
const AGAIN: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// A dry run says the same of a server once a day.
const WOULD_AGAIN: Duration = Duration::from_secs(86_400);
/// Interval between two orders of a guard, so that a container cannot fill the audit log.
const APART: Duration = Duration::from_secs(30);

/// A server that an order has not ended.
#[derive(Clone, Copy, Debug)]
struct Tried {
    times: u32,
    not_before: Time,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Reaps {
    /// The order of the detector that is under way, and its servers.
    under_way: Option<(Ticket, Vec<TreeId>)>,
    /// It is not to end any more servers.
    is_given_up: bool,
    tried: BTreeMap<TreeId, Tried>,
    not_before: Time,
    /// There were new looks since the last search.
    pub is_due: bool,
    /// The order under way follows from terms that do not apply any more.
    is_outdated: bool,
}

impl Reaps {
    fn may(&self, now: Time, server: TreeId) -> bool {
        self.tried.get(&server).is_none_or(|tried| tried.not_before <= now)
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Forgets what was tried, because other terms apply from now on.
    pub fn begin_again(&mut self) {
        self.tried.clear();
        self.is_outdated = self.is_under_way();
        self.is_due = true;
    }

    fn settled(&mut self, now: Time, settled: &Settled) {
        let Some((_, servers)) = self.under_way.take_if(|(ticket, _)| *ticket == settled.ticket)
        else {
            return;
        };
        // A container may have servers without end that are spared.
        let has_ended = matches!(settled.outcome, Outcome::Done | Outcome::Requested);
        self.not_before = now.after(if has_ended { APART } else { AGAIN });
        if std::mem::take(&mut self.is_outdated) {
            return;
        }
        for server in servers {
            let tried = self.tried.entry(server).or_insert(Tried { times: 0, not_before: now });
            let wait = match settled.outcome {
                Outcome::WouldDo => WOULD_AGAIN,
                Outcome::Done
                | Outcome::Requested
                | Outcome::NotNeeded
                | Outcome::Refused
                | Outcome::NotOurs
                | Outcome::Failed => (AGAIN * (1 << tried.times.min(6))).min(LONGEST),
            };
            tried.times = tried.times.saturating_add(1);
            tried.not_before = now.after(wait);
        }
    }
}

impl Guard {
    /// Has those servers ended that nobody can reach.
    pub(super) fn reap(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let is_forbidden = self.leaves || self.refusal.is_some();
        if is_forbidden || self.reaps.is_outdated {
            self.give_up_reap(out);
        }
        let is_free = self.reaps.under_way.is_none() && self.reaps.not_before <= now;
        if !self.reaps.is_due || !is_free || is_forbidden {
            return;
        }
        self.reaps.is_due = false;
        let registry = &self.registry;
        self.reaps.tried.retain(|server, _| registry.has(*server));
        let (woke, scope) = (self.woke.unwrap_or_default(), policy.scope(self.terms.rule));
        let fresh = FRESH * policy.evidence.every;
        let mut due = Vec::new();
        for (applied, servers) in self.variants.groups(scope, registry.unreachable()) {
            let Applied { detect, respond, .. } = applied;
            if respond.servers == ServerResponse::Record {
                continue;
            }
            let may = |server: &LiveServer<'_>| self.reaps.may(now, server.id);
            let servers = servers.into_iter().filter(may);
            due.extend(disconnected::to_reap((now, woke), fresh, servers, &detect.disconnected));
        }
        let longest = due.iter().filter_map(|one| one.known.contact_for(now, fresh)).max();
        let all = u64::try_from(due.len()).unwrap_or(u64::MAX);
        due.truncate(reap::MOST);
        let servers = to_reap(registry, &due);
        if servers.is_empty() {
            return;
        }
        let numbers = [("due", all), ("longest_s", longest.unwrap_or_default().as_secs())];
        let cause = Cause {
            detector: Some(Detector::Disconnected),
            numbers: numbers.map(|(name, number)| (name.to_owned(), number)).into(),
            ..Cause::default()
        };
        let ids = servers.iter().map(|one| one.server).collect();
        let ticket =
            out.act(self.id, Action::Reap(ReapOrder { servers, mode: self.terms.mode, cause }));
        (self.reaps.under_way, self.reaps.is_given_up) = (Some((ticket, ids)), false);
    }

    /// Has the servers ended that an operator names. Nothing is ordered if none of them is as it was listed.
    pub(super) fn reap_for(
        &mut self,
        now: Time,
        (id, request): (RequestId, &ReapRequest),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let fresh = FRESH * policy.evidence.every;
        let live: Vec<_> = self.registry.servers().collect();
        let eldest = self.registry.eldest(&live);
        let is_named = |server: &LiveServer<'_>| {
            let is_it = |named: &ListedServer| {
                named.started_boot_ns == server.started.0
                    && eldest.get(&server.id) == Some(&named.pid)
            };
            request.servers.iter().any(is_it)
        };
        let may_end = |server: &LiveServer<'_>| {
            let known = server.known;
            let is_at_rest = match known.contact {
                Contact::Disconnected => known.is_abandoned(),
                Contact::Connected => known.quiescence == Quiescence::Quiescent,
                Contact::Unknown | Contact::NoStdio | Contact::Closing => false,
            };
            // A client of containers passes SIGTERM on.
            is_at_rest && server.naming != Naming::Image && known.contact_for(now, fresh).is_some()
        };
        let chosen = live.into_iter().filter(|one| is_named(one) && may_end(one));
        let chosen: Vec<_> = chosen.take(reap::MOST).collect();
        let servers = to_reap(&self.registry, &chosen);
        if servers.is_empty() {
            return;
        }
        let mode = if request.dry_run { Mode::Observe } else { Mode::Enforce };
        let cause = Cause::operator();
        out.act_for(self.id, Some(id), Action::Reap(ReapOrder { servers, mode, cause }));
    }

    /// Takes the end of an order.
    pub(super) fn reap_settled(&mut self, now: Time, settled: &Settled) {
        self.reaps.settled(now, settled);
    }

    /// Has the order of the detector end no more servers.
    fn give_up_reap(&mut self, out: &mut Outbox<'_>) {
        if let Some((reap, _)) = self.reaps.under_way
            && !std::mem::replace(&mut self.reaps.is_given_up, true)
        {
            out.act(self.id, Action::GiveUpReap { reap });
        }
    }
}

/// Adds what the executor must find unchanged. A server of which that is not known is left out.
fn to_reap(registry: &Registry, servers: &[LiveServer<'_>]) -> Vec<ToReap> {
    let ids: BTreeSet<TreeId> = servers.iter().map(|server| server.id).collect();
    let (mut members, eldest) = (registry.members_of(&ids), registry.eldest(servers));
    let one = |server: &LiveServer<'_>| {
        let StdioAtExec::Are(_) = server.known.stdio else { return None };
        Some(ToReap {
            server: server.id,
            identity: server.identity.to_owned(),
            root: *eldest.get(&server.id)?,
            stdio: server.known.stdio,
            contact: server.known.contact,
            activity: server.known.activity()?,
            members: members.remove(&server.id).filter(|members| !members.is_empty())?,
        })
    };
    servers.iter().filter_map(one).collect()
}
