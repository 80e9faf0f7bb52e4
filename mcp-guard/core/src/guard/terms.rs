//! The terms of one guard, and how other ones are taken.

use super::{Guard, episodes::Count};
use crate::{
    effect::{Effect, Outbox},
    incident::{End, Hold},
    policy::{Policy, Response, Terms, Workload},
};

impl Guard {
    /// Applies a new policy. Existing holds keep the terms that they began with. A guard that the
    /// policy does not name is unguarded once it has no holds and no orders in progress. `before`: the
    /// policy until now.
    pub fn apply_policy(&mut self, before: &Policy, policy: &Policy) {
        self.registry.expect_looks(policy.evidence.every);
        self.variants.clear();
        let Some(workload) = &self.workload else { return };
        let terms = policy.terms(workload);
        self.take_terms(terms, before, policy);
    }

    /// Takes the words in which its engine describes it. Another rule may match them.
    pub fn described(&mut self, name: String, workload: Box<Workload>, policy: &Policy) {
        let terms = policy.terms(&workload);
        self.name = name;
        self.workload = Some(workload);
        self.variants.clear();
        self.take_terms(terms, policy, policy);
    }

    /// Returns how it was last described, if the policy names it.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        self.workload.as_deref()
    }

    /// Takes terms. `before` and `policy`: the policies of the terms until now, and of the new ones.
    pub(super) fn take_terms(&mut self, terms: Option<Terms>, before: &Policy, policy: &Policy) {
        self.leaves = terms.is_none();
        let terms = terms.unwrap_or(Terms::nothing());
        let of_no_rule = |terms: Terms| Terms { rule: None, ..terms };
        let has_other_terms = of_no_rule(self.terms) != of_no_rule(terms);
        let has_other_keys = before.scope(self.terms.rule) != policy.scope(terms.rule);
        let is_other_mode = self.terms.mode != terms.mode;
        self.terms = terms;
        if !has_other_terms && !has_other_keys {
            // A response is not repeated because the policy was read again.
            return;
        }
        self.limits.policy_changed(is_other_mode);
        self.reaps.begin_again();
        self.suspends.begin_again();
        let is_held = Hold::ALL.map(|hold| (Response::from(hold), self.lease(hold).is_some()));
        // The keys may have changed for another identity only. They do not let a detector act more often.
        let count = if has_other_terms { Count::BeginsAgain } else { Count::GoesOn };
        self.episodes.act_again(count, |acted| !is_held.contains(&(acted, true)));
        self.look_at_all_again();
    }

    /// Releases all holds, including one that the kernel has only just confirmed, and finally
    /// unguards the cgroup.
    pub(super) fn leave(&mut self, out: &mut Outbox<'_>) {
        for hold in Hold::ALL {
            // This is asked with each input, and the order that it waits for may take long.
            if !self.is_being_released(hold) {
                self.give_back(hold, End::Unguarded, None, out);
            }
        }
        self.resume_all(out);
        let is_busy = self.limits.is_writing()
            || !self.under_way.is_empty()
            || self.reaps.is_under_way()
            || self.suspends.is_busy();
        if !is_busy && self.release_again.is_empty() {
            self.leaves = false;
            out.push(Effect::Unguard { guard: self.id });
        }
    }
}
