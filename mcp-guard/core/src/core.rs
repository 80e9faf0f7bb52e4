use crate::{
    Time,
    detect::sooner,
    effect::{Effect, End, GuardId, Input},
    guard::Guard,
    launcher::Launchers,
    policy::Policy,
    registry::Observed,
    status::GuardStatus,
};
use std::collections::BTreeMap;

/// All guards. The only way in is [`Core::step`]; it cannot fail, and an input for a guard that is
/// gone does nothing.
#[derive(Clone, Debug)]
pub struct Core {
    policy: Policy,
    launchers: Launchers,
    guards: BTreeMap<GuardId, Guard>,
}

impl Core {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let launchers = Launchers::extended_by(&policy.launcher);
        Self { policy, launchers, guards: BTreeMap::new() }
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    #[must_use]
    pub fn guard(&self, id: GuardId) -> Option<&Guard> {
        self.guards.get(&id)
    }

    /// When [`Input::Tick`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.guards.values().fold(None, |next, guard| sooner(next, guard.next_deadline()))
    }

    #[must_use]
    pub fn status(&self, now: Time) -> Vec<GuardStatus> {
        self.guards.values().map(|guard| GuardStatus::of(now, guard)).collect()
    }

    /// Everything we hold, to be given back in an orderly end.
    pub fn release_all(&mut self, end: End, out: &mut Vec<Effect>) {
        for guard in self.guards.values_mut() {
            guard.release_all(end, out);
        }
    }

    pub fn step(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Tick => {
                for guard in self.guards.values_mut() {
                    guard.evaluate(now, &self.policy, out);
                }
            }
            Input::Guarded { guard, name, terms, refusal } => {
                self.guards.insert(guard, Guard::new(guard, name, terms, refusal));
            }
            Input::Released { guard } => {
                self.guards.remove(&guard);
            }
            Input::Attach { guard, born, pid, seen } => {
                self.attach(now, guard, (born, pid, seen), out);
            }
            Input::Fork { guard, .. }
            | Input::Exec { guard, .. }
            | Input::Exit { guard, .. }
            | Input::Baseline { guard, .. }
            | Input::Totals { guard, .. }
            | Input::Denials { guard, .. }
            | Input::Standing { guard, .. }
            | Input::Settled { guard, .. }
            | Input::ThawedByOther { guard }
            | Input::UnclampedByOther { guard }
            | Input::Operator { guard, .. } => {
                if let Some(guard) = self.guards.get_mut(&guard) {
                    feed(guard, now, input, &self.policy, &self.launchers, out);
                    guard.evaluate(now, &self.policy, out);
                }
            }
        }
    }

    /// The kernel says where a process went, the registries know where it was.
    fn attach(
        &mut self,
        now: Time,
        to: Option<GuardId>,
        (born, pid, seen): (Time, u32, Option<Observed>),
        out: &mut Vec<Effect>,
    ) {
        for guard in self.guards.values_mut().filter(|guard| Some(guard.id) != to) {
            if guard.registry.exit(pid) {
                guard.departures += 1;
                guard.evaluate(now, &self.policy, out);
            }
        }
        let Some(guard) = to.and_then(|to| self.guards.get_mut(&to)) else { return };
        if !guard.registry.holds(pid) {
            guard.arrivals += 1;
            guard.registry.arrive(born, pid, seen.as_ref(), &self.launchers);
            guard.evaluate(now, &self.policy, out);
        }
    }
}

/// Hands one input to the guard it is for.
fn feed(
    guard: &mut Guard,
    now: Time,
    input: Input,
    policy: &Policy,
    launchers: &Launchers,
    out: &mut Vec<Effect>,
) {
    match input {
        Input::Fork { born, child, parent, .. } => guard.registry.fork(born, child, parent),
        Input::Exec { born, pid, argv, .. } => {
            guard.registry.exec(now, born, pid, &argv, launchers);
        }
        Input::Exit { pid, code, .. } => guard.exited(pid, code),
        Input::Baseline { processes, .. } => guard.registry.reconcile(processes, launchers),
        Input::Totals { totals, .. } => guard.totals(now, totals, policy, out),
        Input::Denials { count, .. } => guard.denials(count),
        Input::Standing { refusal, .. } => guard.standing(refusal),
        Input::Settled { response, outcome, lease, .. } => {
            guard.settled(now, response, outcome, lease, &policy.respond);
        }
        Input::ThawedByOther { .. } => guard.thawed_by_other(now, &policy.respond, out),
        Input::UnclampedByOther { .. } => guard.unclamped_by_other(now, &policy.respond, out),
        Input::Operator { request, .. } => guard.operator(now, request, &policy.respond, out),
        Input::Guarded { .. } | Input::Released { .. } | Input::Attach { .. } | Input::Tick => {}
    }
}
