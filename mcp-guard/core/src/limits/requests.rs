//! Limits that operators ask for: which request counts, and when one is over.

use std::{mem, time::Duration};

use super::{Aim, Ended, Limits, Rules};
use crate::{
    effect::{Effect, LimitRequest, Outbox, PolicyThen, SeenLimit},
    limit::Limit,
    policy::Mode,
    repair::Plan,
};

/// A request as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRequest {
    /// Id of the container.
    pub id: String,
    /// Where the engine listens that has the container; empty in a file of an older version.
    pub engine: String,
    /// When it was made, since 1970; None where that cannot be read.
    pub at: Option<Duration>,
}

/// The ids of those whose container `engine` no longer has. `listed`: all containers that it has, running
/// or not, as it said after `since`. An empty list is no proof: it may be all that an engine says which
/// is just starting.
#[must_use]
pub fn gone(
    stored: Vec<StoredRequest>,
    listed: &[String],
    engine: &str,
    since: Duration,
) -> Vec<String> {
    let is_gone = |one: &StoredRequest| {
        let is_older = one.at.is_some_and(|at| at < since);
        !listed.is_empty() && one.engine == engine && is_older && !listed.contains(&one.id)
    };
    stored.into_iter().filter(is_gone).map(|one| one.id).collect()
}

/// What a `repair` that ends leaves in place of the request that it stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftRequest {
    /// It, for an agent and for a later `repair`.
    Ours,
    /// What is stored by now, if anything: it is not this one's.
    Other,
    /// None: it is over.
    Nothing,
    /// The one that was there before.
    Former(LimitRequest),
}

impl Limits {
    /// A new request clears what was before. One is over when the policy says another number than it did
    /// then; or when the engine keeps the number and it is in force, because it would undo the engine's
    /// next word. Where the policy has another number, a request stands against that and stays.
    pub(super) fn hear(&mut self, rules: &Rules, seen: &SeenLimit, out: &mut Outbox<'_>) {
        self.request = seen.request;
        let at = seen.request.map(|request| request.at);
        if at != mem::replace(&mut self.heard, at)
            && let Some(request) = seen.request
        {
            self.pacing.asked_again();
            self.policy_then = match request.policy {
                PolicyThen::Said(policy) => policy,
                PolicyThen::Unknown => rules.policy,
            };
        }
        let Some(LimitRequest { limit, at: asked, .. }) = self.request else { return };
        let is_kept = self.declared == Some(limit)
            && rules.policy.is_none_or(|policy| policy == limit)
            && seen.in_force <= Limit::Tasks(limit);
        let is_outdated = self.policy_then != rules.policy;
        if is_outdated && mem::replace(&mut self.outdated, at) != at {
            let why = "the policy's pids_limit is another than when it was made";
            self.log(format!("the request for a limit of {limit} is over: {why}"), out);
        }
        if is_kept || is_outdated {
            self.request = None;
            // An agent that only observes does not end what another holds.
            if is_kept || rules.mode == Mode::Enforce {
                out.push(Effect::ForgetRequest { guard: self.guard, at: asked });
            }
        }
    }

    /// The later of two requests counts: two that want different limits would undo each other. One that
    /// is gone was reached where its limit is in force; else somebody ended it.
    pub(super) fn is_replaced(&mut self, limit: u64, stored: bool, seen: &SeenLimit) -> bool {
        let is_ours = seen.request.is_some_and(|request| request.limit == limit);
        let in_force = seen.in_force == Limit::Tasks(limit);
        let is_replaced = stored && !is_ours && !in_force;
        if is_replaced {
            let why = match seen.request {
                Some(_) => "another repair was asked for meanwhile",
                None => {
                    "its request is gone: an agent ended it because the policy changed, or somebody \
                     removed it"
                }
            };
            self.fail(why.to_owned());
        }
        is_replaced
    }

    /// What a `repair` leaves that has ended, or was stopped. `proved`: every place was read again and says
    /// the limit. `policy`: `pids_limit` of an agent that guards the container. `former` and `now`: what
    /// was stored before, and is now.
    #[must_use]
    pub fn left_request(
        &self,
        proved: bool,
        policy: Option<u64>,
        former: Option<LimitRequest>,
        now: Option<LimitRequest>,
    ) -> LeftRequest {
        match self.aim {
            Aim::Once { limit, .. } if now.is_some_and(|request| request.limit == limit) => {}
            Aim::Once { .. } | Aim::Hold => return LeftRequest::Other,
        }
        let is_kept = self.plan().is_some_and(Plan::is_kept_by_its_owner);
        let agrees = policy.is_none_or(|policy| self.wanted(None) == Some(policy));
        match &self.ended {
            // What its owner keeps needs no request, unless a policy wants another number.
            Some(Ended::Reached) if proved && is_kept && agrees => LeftRequest::Nothing,
            // What could not even be begun is not wanted any more.
            Some(Ended::Failed(_)) if self.step().is_none() => {
                former.map_or(LeftRequest::Nothing, LeftRequest::Former)
            }
            Some(Ended::Reached | Ended::Failed(_)) | None => LeftRequest::Ours,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_that_the_same_engine_surely_no_longer_has_is_gone() {
        const ENGINE: &str = "/var/run/docker.sock";
        let at = |seconds| Some(Duration::from_secs(seconds));
        for (id, engine, made, listed, expected) in [
            ("a", ENGINE, at(1), &["b"][..], true),
            ("a", ENGINE, at(1), &["b", "a"], false),
            ("a", "/run/podman.sock", at(1), &["b"], false),
            ("a", "", at(1), &["b"], false),
            ("a", ENGINE, at(2), &["b"], false),
            ("a", ENGINE, None, &["b"], false),
            ("a", ENGINE, at(1), &[], false),
        ] {
            let stored = StoredRequest { id: id.into(), engine: engine.into(), at: made };
            let listed: Vec<String> = listed.iter().map(|id| (*id).to_owned()).collect();
            let found = gone(vec![stored], &listed, ENGINE, Duration::from_secs(2));
            assert_eq!(!found.is_empty(), expected, "{engine} {made:?} {listed:?}");
        }
    }
}
