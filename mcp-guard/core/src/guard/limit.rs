//! The limit of one guard, as far as its holds allow it to be written.

use super::Guard;
use crate::{
    Time,
    diagnose::facts::Facts,
    effect::{Outbox, SeenLimit},
    id::Ticket,
    incident::Detector,
    limits::Rules,
    policy::{Policy, Terms},
};

impl Guard {
    pub(super) fn rules(&self, policy: &Policy) -> Rules {
        let respond = &policy.scope(self.terms.rule).all().respond;
        let Terms { mode, pids_limit, .. } = self.terms;
        Rules { mode, policy: pids_limit, headroom: respond.clamp_headroom }
    }

    /// Returns false while a hold is in force or a clamp is ordered, or while a bystander rule forbids
    /// acting on this guard. A freeze lowers the limit as well.
    pub(super) fn may_write_limits(&self) -> bool {
        !self.is_held() && self.refusal.is_none()
    }

    /// `host`: the maximum number of tasks on the host.
    pub fn limit_seen(
        &mut self,
        now: Time,
        seen: &SeenLimit,
        host: Option<u64>,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let detect = &policy.scope(self.terms.rule).all().detect;
        self.filled = seen.in_force.tasks().zip(seen.tasks);
        if let Some(tasks) = seen.tasks
            && let Some(found) = self.floors.look(now, tasks, host, &detect.tasks)
        {
            self.episodes.looked(&[Detector::Tasks, Detector::Headroom], None);
            self.tasks_wait = None;
            // A limit of ours is close on purpose.
            let limit = seen.in_force.tasks().filter(|_| !self.is_held());
            let limits = &detect.headroom;
            let short =
                limit.and_then(|limit| self.shortage.look(now, &self.floors, limit, limits));
            for detection in found.into_iter().chain(short) {
                self.note_tasks(now, detection, policy, out);
            }
        }
        if self.may_write_limits() {
            let rules = self.rules(policy);
            self.limits.look(now, &rules, seen, out);
        }
    }

    pub fn limit_facts(
        &mut self,
        now: Time,
        answer: (Ticket, Result<Box<Facts>, String>),
        seen: Option<SeenLimit>,
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let seen = seen.filter(|_| self.may_write_limits());
        let rules = self.rules(policy);
        self.limits.facts(now, &rules, answer, seen.as_ref(), out);
    }
}
