use std::{collections::BTreeMap, sync::Arc};

use mcp_guard_common::Totals;

use crate::{
    Time,
    detect::{
        herd::{HerdFound, Herds},
        sooner,
    },
    effect::{Effect, Input, Outbox, Settled},
    evidence::ClientsLook,
    guard::Guard,
    id::{GuardId, Pid, Tickets},
    incident::End,
    policy::Policy,
    registry::Observed,
    server::Grammar,
    status::GuardStatus,
};

/// The state of all guards. Inputs enter through [`Core::step`], which cannot fail. An input for a
/// guard that is gone does nothing.
#[derive(Clone, Debug)]
pub struct Core {
    policy: Policy,
    grammar: Arc<Grammar>,
    guards: BTreeMap<GuardId, Guard>,
    /// The guard in which a process was last seen. It may have left since.
    last_seen_in: BTreeMap<Pid, GuardId>,
    /// The maximum number of tasks on the host.
    host_tasks: Option<u64>,
    tickets: Tickets,
    /// Containers that have lost their clients.
    herds: Herds,
}

impl Core {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let grammar = Arc::new(Grammar::extended_by(&policy.launcher));
        Self {
            policy,
            grammar,
            guards: BTreeMap::new(),
            last_seen_in: BTreeMap::new(),
            host_tasks: None,
            tickets: Tickets::default(),
            herds: Herds::default(),
        }
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    #[must_use]
    pub fn grammar(&self) -> &Arc<Grammar> {
        &self.grammar
    }

    /// Returns the maximum number of tasks on the host, if it is known.
    #[must_use]
    pub fn host_tasks(&self) -> Option<u64> {
        self.host_tasks
    }

    #[must_use]
    pub fn guard(&self, id: GuardId) -> Option<&Guard> {
        self.guards.get(&id)
    }

    /// Returns when the next [`Input::Tick`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.guards.values().fold(None, |next, guard| sooner(next, guard.next_deadline()))
    }

    #[must_use]
    pub fn status(&self, now: Time) -> Vec<GuardStatus> {
        self.guards.keys().filter_map(|guard| self.status_of(now, *guard, None)).collect()
    }

    /// Returns the status of one guard, with the kernel's current totals if they are given. They affect no decision.
    #[must_use]
    pub fn status_of(
        &self,
        now: Time,
        guard: GuardId,
        totals: Option<Totals>,
    ) -> Option<GuardStatus> {
        let guard = self.guards.get(&guard)?;
        let totals = totals.unwrap_or_else(|| guard.rates.totals());
        Some(GuardStatus::of((now, self.policy.evidence.every), guard, totals))
    }

    /// Returns the herds of containers without clients that the last looks have found.
    pub fn herds(&self, now: Time) -> impl Iterator<Item = &HerdFound> {
        self.herds.all(now, self.policy.evidence.every)
    }

    /// Releases all our holds, for a clean end of the agent.
    pub fn release_all(&mut self, end: End, effects: &mut Vec<Effect>) {
        let mut out = Outbox { tickets: &mut self.tickets, effects };
        for guard in self.guards.values_mut() {
            guard.release_all(end, None, &mut out);
        }
    }

    pub fn step(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        let mut out = Outbox { tickets: &mut self.tickets, effects };
        match input {
            Input::Tick => {
                for guard in self.guards.values_mut() {
                    guard.evaluate(now, &self.policy, &mut out);
                }
            }
            Input::Policy(policy) => self.apply(now, *policy, effects),
            Input::Guarded { guard, name, terms, workload, refusal } => {
                let mut new = Guard::new(now, guard, name, terms, workload, refusal);
                new.registry.expect_looks(self.policy.evidence.every);
                self.guards.insert(guard, new);
            }
            Input::Released { guard } => {
                self.guards.remove(&guard);
                self.last_seen_in.retain(|_, seen_in| *seen_in != guard);
            }
            Input::Woke => {
                self.herds.woke(now);
                for guard in self.guards.values_mut() {
                    guard.woke(now);
                    guard.evaluate(now, &self.policy, &mut out);
                }
            }
            Input::HostTasks { most } => self.host_tasks = Some(most),
            Input::Clients(look) => self.take_clients(now, look, effects),
            Input::Attach { guard, born, pid, seen } => {
                self.attach(now, guard, (born, pid, seen), effects);
            }
            Input::Described { guard, .. }
            | Input::Fork { guard, .. }
            | Input::Exec { guard, .. }
            | Input::Exit { guard, .. }
            | Input::Used { guard, .. }
            | Input::StdioRead { guard, .. }
            | Input::Looked { guard, .. }
            | Input::Unreaped { guard, .. }
            | Input::Baseline { guard, .. }
            | Input::Totals { guard, .. }
            | Input::Denials { guard, .. }
            | Input::Standing { guard, .. }
            | Input::Settled(Settled { guard, .. })
            | Input::ThawedByOther { guard }
            | Input::Unclamped { guard, .. }
            | Input::Overdue { guard, .. }
            | Input::Declared { guard, .. }
            | Input::LimitSeen { guard, .. }
            | Input::LimitFacts { guard, .. }
            | Input::Operator { guard, .. } => {
                let Some(guard) = self.guards.get_mut(&guard) else { return };
                place(&mut self.last_seen_in, &input);
                let world = World {
                    policy: &self.policy,
                    grammar: &self.grammar,
                    host_tasks: self.host_tasks,
                };
                feed(guard, now, input, world, &mut out);
                guard.evaluate(now, &self.policy, &mut out);
            }
        }
    }

    fn take_clients(&mut self, now: Time, look: ClientsLook, effects: &mut Vec<Effect>) {
        let new = self.herds.take(now, look, &self.policy.detect().herd);
        effects.extend(new.into_iter().map(Effect::WarnOfHerd));
    }

    fn apply(&mut self, now: Time, policy: Policy, effects: &mut Vec<Effect>) {
        let mut out = Outbox { tickets: &mut self.tickets, effects };
        self.grammar = Arc::new(Grammar::extended_by(&policy.launcher));
        let before = std::mem::replace(&mut self.policy, policy);
        for guard in self.guards.values_mut() {
            guard.apply_policy(&before, &self.policy);
            guard.evaluate(now, &self.policy, &mut out);
        }
    }

    /// Moves a process between guards. The kernel reports only where it went; the registries know
    /// where it was.
    fn attach(
        &mut self,
        now: Time,
        to: Option<GuardId>,
        (born, pid, seen): (Time, Pid, Option<Observed>),
        effects: &mut Vec<Effect>,
    ) {
        let mut out = Outbox { tickets: &mut self.tickets, effects };
        let from = match to {
            Some(to) => self.last_seen_in.insert(pid, to),
            None => self.last_seen_in.remove(&pid),
        };
        let from = from.filter(|from| Some(*from) != to);
        if let Some(guard) = from.and_then(|from| self.guards.get_mut(&from))
            && guard.registry.exit(pid).is_some()
        {
            guard.departed(now, pid, to.is_none(), &mut out);
            guard.evaluate(now, &self.policy, &mut out);
        }
        let Some(guard) = to.and_then(|to| self.guards.get_mut(&to)) else { return };
        if !guard.registry.holds(pid) {
            guard.arrivals += 1;
            guard.registry.arrive(now, born, pid, seen.as_ref(), &self.grammar);
            guard.evaluate(now, &self.policy, &mut out);
        }
    }
}

/// Records which guard the processes of an input are in.
fn place(last_seen_in: &mut BTreeMap<Pid, GuardId>, input: &Input) {
    match input {
        Input::Fork { guard, child: pid, .. } | Input::Exec { guard, pid, .. } => {
            last_seen_in.insert(*pid, *guard);
        }
        Input::Exit { guard, pid, .. } => {
            if last_seen_in.get(pid) == Some(guard) {
                last_seen_in.remove(pid);
            }
        }
        Input::Baseline { guard, processes } => {
            last_seen_in.retain(|_, seen_in| seen_in != guard);
            last_seen_in.extend(processes.iter().map(|process| (process.pid, *guard)));
        }
        Input::Guarded { .. }
        | Input::Released { .. }
        | Input::Policy(_)
        | Input::Described { .. }
        | Input::HostTasks { .. }
        | Input::Clients(_)
        | Input::Woke
        | Input::Attach { .. }
        | Input::Used { .. }
        | Input::StdioRead { .. }
        | Input::Looked { .. }
        | Input::Unreaped { .. }
        | Input::Totals { .. }
        | Input::Denials { .. }
        | Input::Standing { .. }
        | Input::Settled(_)
        | Input::ThawedByOther { .. }
        | Input::Unclamped { .. }
        | Input::Overdue { .. }
        | Input::Operator { .. }
        | Input::Declared { .. }
        | Input::LimitSeen { .. }
        | Input::LimitFacts { .. }
        | Input::Tick => {}
    }
}

/// The context that all guards share.
#[derive(Clone, Copy)]
struct World<'a> {
    policy: &'a Policy,
    grammar: &'a Grammar,
    host_tasks: Option<u64>,
}

/// Passes one input to its guard.
fn feed(guard: &mut Guard, now: Time, input: Input, world: World<'_>, out: &mut Outbox<'_>) {
    let World { policy, grammar, host_tasks } = world;
    match input {
        Input::Fork { born, child, parent, .. } => guard.registry.fork(born, child, parent),
        Input::Exec { born, pid, command, .. } => {
            guard.registry.exec(now, born, pid, &command, grammar);
        }
        Input::Exit { pid, code, .. } => guard.exited(now, (pid, code), policy, out),
        Input::Used { pid, .. } => guard.registry.used(now, pid),
        Input::StdioRead { pid, start_ticks, stdio, .. } => {
            guard.registry.stdio_read(now, pid, start_ticks, stdio);
        }
        Input::Looked { servers, .. } => guard.looked(now, &servers, policy),
        Input::Unreaped { found, .. } => guard.unreaped(now, found, policy),
        Input::Baseline { processes, .. } => guard.registry.reconcile(now, processes, grammar),
        Input::Totals { totals, .. } => guard.totals(now, totals, policy, out),
        Input::Denials { count, .. } => guard.denials(count),
        Input::Standing { refusal, asked, .. } => guard.standing(now, refusal, asked, out),
        Input::Settled(settled) => guard.settled(now, &settled, policy, out),
        Input::ThawedByOther { .. } => guard.thawed_by_other(now, policy, out),
        Input::Unclamped { found, .. } => guard.unclamped(now, found, policy, out),
        Input::Overdue { hold, .. } => guard.overdue(now, hold, out),
        Input::Operator { id, request, .. } => guard.operator(now, (id, request), policy, out),
        Input::Described { name, workload, .. } => guard.described(name, workload, policy),
        Input::Declared { limit, .. } => guard.limits.declare(limit),
        Input::LimitSeen { seen, .. } => guard.limit_seen(now, &seen, host_tasks, policy, out),
        Input::LimitFacts { ticket, facts, seen, .. } => {
            guard.limit_facts(now, (ticket, facts), seen, policy, out);
        }
        Input::Guarded { .. }
        | Input::Released { .. }
        | Input::Policy(_)
        | Input::HostTasks { .. }
        | Input::Clients(_)
        | Input::Woke
        | Input::Attach { .. }
        | Input::Tick => {}
    }
}
