//! Limits that operators request: which request applies, and when a request ends.

use std::{mem, time::Duration};

use super::{Aim, Ended, Limits, Rules};
use crate::{
    effect::{Effect, LimitRequest, Outbox, PolicyThen, SeenLimit},
    limit::Limit,
    policy::Mode,
    repair::Plan,
};

/// A stored request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRequest {
    /// Container id.
    pub id: String,
    /// Socket of the engine that has the container; empty in a file from an older version.
    pub engine: String,
    /// When the request was made, since the Unix epoch; `None` if that cannot be read.
    pub at: Option<Duration>,
}

/// Returns the ids of requests whose container `engine` no longer has. `listed`: all its
/// containers, running or not, listed after `since`. An empty list proves nothing, because an
/// engine that is just starting may return one.
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

/// The request that a finished `repair` leaves stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftRequest {
    /// Its own request, for an agent and for a later `repair`.
    Ours,
    /// The request stored now, if any: it is not this `repair`'s.
    Other,
    /// No request: it has ended.
    Nothing,
    /// The request that was stored before.
    Former(LimitRequest),
}

impl Limits {
    /// Takes the stored request. A new request resets the pacing. A request ends when the policy's
    /// limit changes after it was made. It also ends when the engine stores the limit and the limit
    /// is in force, because it would undo the engine's next change. A request that overrides a
    /// different limit in the policy stays.
    pub(super) fn note_request(&mut self, rules: &Rules, seen: &SeenLimit, out: &mut Outbox<'_>) {
        self.request = seen.request;
        let at = seen.request.map(|request| request.at);
        if at != mem::replace(&mut self.noted_request, at)
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
            && seen.in_force == Limit::Tasks(limit);
        let is_outdated = self.policy_then != rules.policy;
        if is_outdated && mem::replace(&mut self.outdated, at) != at {
            let why = "the policy's pids_limit has changed since it was made";
            self.log(format!("the request for a limit of {limit} has ended: {why}"), out);
        }
        if is_kept || is_outdated {
            self.request = None;
            // An agent in observe mode keeps an outdated request, because another process may
            // enforce it.
            if is_kept || rules.mode == Mode::Enforce {
                out.push(Effect::ForgetRequest { guard: self.guard, at: asked });
            }
        }
    }

    /// Returns whether this request was replaced, and fails the repair if it was. Two requests for
    /// different limits would undo each other, so the later one wins. If the stored request is gone
    /// and its limit is in force, the limit was reached; otherwise the request was ended or
    /// removed.
    pub(super) fn is_replaced(
        &mut self,
        limit: u64,
        stored: Option<Duration>,
        seen: &SeenLimit,
    ) -> bool {
        let Some(stored) = stored else { return false };
        let is_ours = seen.request.is_some_and(|request| request.at == stored);
        let in_force = seen.in_force == Limit::Tasks(limit);
        let is_replaced = !is_ours && !in_force;
        if is_replaced {
            let why = match seen.request {
                Some(_) => "another repair was requested in the meantime",
                None => {
                    "its stored request is gone: an agent ended it because the policy changed, or \
                     an operator removed it"
                }
            };
            self.fail(why.to_owned());
        }
        is_replaced
    }

    /// Returns the request that a `repair` leaves stored when it ends or is stopped. `proved`:
    /// every place was read again and shows the limit. `policy`: `pids_limit` of an agent that
    /// guards the container. `former` and `now`: the request stored before, and the one stored now.
    /// `kept`: the limit that the engine stores now.
    #[must_use]
    pub fn left_request(
        &self,
        proved: bool,
        policy: Option<u64>,
        (former, now): (Option<LimitRequest>, Option<LimitRequest>),
        kept: Option<u64>,
    ) -> LeftRequest {
        match self.aim {
            Aim::Once { stored: Some(at), .. } if now.is_some_and(|request| request.at == at) => {}
            Aim::Once { .. } | Aim::Hold => return LeftRequest::Other,
        }
        let is_kept = self.plan().is_some_and(Plan::is_kept_by_its_owner);
        let agrees = policy.is_none_or(|policy| self.wanted(None) == Some(policy));
        match &self.ended {
            // A limit that its owner stores needs no request, unless a policy wants another limit.
            Some(_) if proved && is_kept && agrees => LeftRequest::Nothing,
            // A request whose repair never began is dropped. The former one may have been carried out
            // in the meantime: then it would undo the engine's next change.
            Some(Ended::Failed(_)) if !self.begun && !proved => former
                .filter(|former| Some(former.limit) != kept)
                .map_or(LeftRequest::Nothing, LeftRequest::Former),
            Some(Ended::Reached | Ended::Failed(_)) | None => LeftRequest::Ours,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_gone_only_if_its_own_engine_no_longer_lists_the_container() {
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
