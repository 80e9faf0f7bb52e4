//! Orders about single servers of one guard, one at a time, and when a server is tried again.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Time,
    effect::{Action, Outbox, Settled},
    id::{GuardId, Ticket},
    incident::Outcome,
    registry::{Registry, TreeId},
};

/// How long a server is left alone the first time that an order did nothing to it. It doubles each time.
const AGAIN: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// A dry run says the same of a server once a day.
const WOULD_AGAIN: Duration = Duration::from_secs(86_400);
/// Interval between two orders of a guard, so that a container cannot fill the audit log.
const APART: Duration = Duration::from_secs(30);

/// A server that an order has done nothing to.
#[derive(Clone, Copy, Debug)]
struct Tried {
    times: u32,
    not_before: Time,
    /// It is only too early: a dry run would have acted on it, or it was acted on and has a rest.
    is_early: bool,
}

/// The orders of one detector.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    /// The order that is under way, and its servers.
    under_way: Option<(Ticket, Vec<TreeId>)>,
    /// It is not to go on with any more servers.
    is_given_up: bool,
    tried: BTreeMap<TreeId, Tried>,
    not_before: Time,
    /// There were new looks since the last search.
    pub is_due: bool,
    /// The order under way follows from terms that do not apply any more.
    is_outdated: bool,
}

impl Attempts {
    pub fn may(&self, now: Time, server: TreeId) -> bool {
        self.tried.get(&server).is_none_or(|tried| tried.not_before <= now)
    }

    /// Whether it may be acted on, now or later.
    pub fn may_later(&self, now: Time, server: TreeId) -> bool {
        self.tried.get(&server).is_none_or(|tried| tried.not_before <= now || tried.is_early)
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether the order under way follows from terms that do not apply any more.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// Whether a search may begin. It counts as begun then.
    pub fn begins(&mut self, now: Time, registry: &Registry) -> bool {
        let begins = self.is_due && self.under_way.is_none() && self.not_before <= now;
        if begins {
            self.is_due = false;
            self.tried.retain(|server, _| registry.has(*server));
        }
        begins
    }

    pub fn ordered(&mut self, ticket: Ticket, servers: Vec<TreeId>) {
        (self.under_way, self.is_given_up) = (Some((ticket, servers)), false);
    }

    /// Has the order under way go on with no more servers.
    pub fn give_up(&mut self, guard: GuardId, out: &mut Outbox<'_>) {
        if let Some((order, _)) = self.under_way
            && !std::mem::replace(&mut self.is_given_up, true)
        {
            out.act(guard, Action::GiveUpServers { order });
        }
    }

    /// Forgets what was tried, because other terms apply from now on.
    pub fn begin_again(&mut self) {
        self.tried.clear();
        self.is_outdated = self.is_under_way();
        self.is_due = true;
    }

    /// Forgets what was tried with a server, because an order has acted on it.
    pub fn forget(&mut self, server: TreeId) {
        self.tried.remove(&server);
    }

    /// Leaves a server alone until then.
    pub fn leave_alone(&mut self, server: TreeId, until: Time) {
        let new = Tried { times: 0, not_before: until, is_early: true };
        let tried = self.tried.entry(server).or_insert(new);
        tried.not_before = tried.not_before.max(until);
    }

    /// Takes the end of an order. Returns whether it was this one.
    pub fn settled(&mut self, now: Time, settled: &Settled) -> bool {
        let Some((_, servers)) = self.under_way.take_if(|(ticket, _)| *ticket == settled.ticket)
        else {
            return false;
        };
        // A container may have servers without end that are spared.
        let has_acted = matches!(settled.outcome, Outcome::Done | Outcome::Requested);
        self.not_before = now.after(if has_acted { APART } else { AGAIN });
        if std::mem::take(&mut self.is_outdated) {
            return true;
        }
        for server in servers {
            let new = Tried { times: 0, not_before: now, is_early: false };
            let tried = self.tried.entry(server).or_insert(new);
            tried.is_early = settled.outcome == Outcome::WouldDo;
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
        true
    }
}
