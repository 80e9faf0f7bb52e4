//! Records what the core is told about one guard, so that a replay can tell it again.

use mcp_guard_common::Totals;

use super::{
    EndOfTrace, FORMAT, SeenProcess, SeenReaper, SeenServer, TraceEvent, TraceHeader, TracedGuard,
};
use crate::{
    Core, Time,
    effect::{Input, SeenLimit},
    evidence::{Activity, Reaper, ServerSeen, Unreaped},
    guard::Guard,
    id::{GuardId, Pid},
    limit::Limit,
    policy::Policy,
    redact,
    registry::{Observed, Registry, TreeId},
    server::{CommandLine, Grammar},
};

/// Most processes of a baseline that are recorded. Reducing a command line takes longer than reading it, and the
/// loop waits for it.
const MOST_SEEN: usize = 4096;
/// The labels that rules match by keys of their own.
const COMPOSE: [&str; 2] = ["com.docker.compose.project", "com.docker.compose.service"];

/// Makes the events of one guard's trace. It sees each input before the core does.
#[derive(Clone, Debug)]
pub struct Recorder {
    guard: GuardId,
    start: Time,
    /// The last that was recorded. It comes each second, and is recorded if it changes.
    limit: Option<(Limit, Option<u64>)>,
}

impl Recorder {
    #[must_use]
    pub fn new(guard: GuardId, start: Time) -> Self {
        Self { guard, start, limit: None }
    }

    #[must_use]
    pub fn guard(&self) -> GuardId {
        self.guard
    }

    /// Returns the header. `None` if the core has no such guard.
    #[must_use]
    pub fn header(&self, core: &Core) -> Option<TraceHeader> {
        let guard = core.guard(self.guard)?;
        Some(TraceHeader {
            format: FORMAT.to_owned(),
            evidence: true,
            totals: true,
            boot_ns: self.start.0,
            mode: Some(guard.terms.mode),
            host_tasks: core.host_tasks(),
            guard: Some(traced(guard, core.policy())),
        })
    }

    #[must_use]
    pub fn end(&self, now: Time, why: EndOfTrace) -> TraceEvent {
        TraceEvent::End { t: self.since(now), why }
    }

    #[must_use]
    pub fn lost(&self, now: Time, lines: u64) -> TraceEvent {
        TraceEvent::Lost { t: self.since(now), lines }
    }

    /// Returns the events of an input. There are none of what only concerns the agent's own actions.
    pub fn events(&mut self, now: Time, input: &Input, core: &Core) -> Vec<TraceEvent> {
        let t = self.since(now);
        let (Some(state), true) = (core.guard(self.guard), self.concerns(input)) else {
            return Vec::new();
        };
        let event = match input {
            Input::Fork { child, parent, .. } => {
                Some(TraceEvent::Fork { t, p: *parent, c: *child, thread: false })
            }
            Input::Exec { born, pid, command, .. } => {
                let born = (!state.registry.holds(*pid)).then(|| self.offset(*born));
                let command = (&core.grammar().reduced(command)).into();
                Some(TraceEvent::Exec { t, p: *pid, command, born })
            }
            Input::Exit { pid, code, .. } => {
                Some(TraceEvent::Exit { t, p: *pid, thread: false, code: *code })
            }
            Input::Used { pid, .. } => Some(TraceEvent::Use { t, p: *pid }),
            Input::Attach { guard, born, pid, seen } => {
                let born = (*born, seen.as_ref());
                self.moved(t, (*guard, *pid), born, &state.registry, core.grammar())
            }
            Input::Looked { servers, .. } => {
                Some(TraceEvent::Look { t, servers: seen_servers(now, &state.registry, servers) })
            }
            Input::Unreaped { found, .. } => Some(zombies(t, found)),
            Input::Baseline { processes, .. } => return baseline(t, processes, core.grammar()),
            Input::Totals { totals, .. } => Some(counted(t, *totals)),
            Input::LimitSeen { seen, .. } => self.limit(t, seen),
            Input::Woke => Some(TraceEvent::Woke { t }),
            Input::Guarded { .. }
            | Input::Released { .. }
            | Input::Described { .. }
            | Input::Policy(_)
            | Input::HostTasks { .. }
            | Input::StdioRead { .. }
            | Input::Denials { .. }
            | Input::Standing { .. }
            | Input::Settled(_)
            | Input::ThawedByOther { .. }
            | Input::Unclamped { .. }
            | Input::Overdue { .. }
            | Input::Operator { .. }
            | Input::Declared { .. }
            | Input::LimitFacts { .. }
            | Input::Clients(_)
            | Input::Tick => None,
        };
        event.into_iter().collect()
    }

    fn concerns(&self, input: &Input) -> bool {
        // A move names the guard into which it leads, and may lead out of this one.
        matches!(input, Input::Attach { .. } | Input::Woke) || input.guard() == Some(self.guard)
    }

    fn since(&self, now: Time) -> u64 {
        now.0.saturating_sub(self.start.0)
    }

    /// A process may have been born before the recording began.
    fn offset(&self, born: Time) -> i64 {
        let [born, start] = [born.0, self.start.0].map(u64::cast_signed);
        born.saturating_sub(start)
    }

    fn moved(
        &self,
        t: u64,
        (to, p): (Option<GuardId>, Pid),
        (born, seen): (Time, Option<&Observed>),
        registry: &Registry,
        grammar: &Grammar,
    ) -> Option<TraceEvent> {
        if to == Some(self.guard) {
            let seen = seen.map(|seen| seen_process(seen, grammar));
            return Some(TraceEvent::Join { t, p, born: self.offset(born), seen });
        }
        registry.holds(p).then_some(TraceEvent::Leave { t, p })
    }

    fn limit(&mut self, t: u64, seen: &SeenLimit) -> Option<TraceEvent> {
        let limit = (seen.in_force, seen.tasks);
        let is_new = self.limit.replace(limit) != Some(limit);
        let (max, tasks) = (seen.in_force.tasks(), seen.tasks);
        is_new.then_some(TraceEvent::Limit { t, max, tasks })
    }
}

/// Lost records are not noted: a baseline follows them.
fn counted(t: u64, totals: Totals) -> TraceEvent {
    let Totals { process_forks, thread_forks, execs, process_exits, thread_exits, .. } = totals;
    TraceEvent::Totals {
        t,
        forks: process_forks,
        threads: thread_forks,
        execs,
        exits: process_exits,
        thread_exits,
    }
}

fn traced(guard: &Guard, policy: &Policy) -> TracedGuard {
    let Some(workload) = guard.workload() else { return TracedGuard::default() };
    let named = policy.guard.iter().filter_map(|rule| rule.label.as_deref());
    let named = named.map(|label| label.split('=').next().unwrap_or(label));
    let label = |key: &str| Some((key.to_owned(), redact::text(workload.labels.get(key)?)));
    TracedGuard {
        name: redact::text(&workload.name),
        image: redact::text(&workload.image),
        cgroup: workload.cgroup.clone(),
        labels: COMPOSE.into_iter().chain(named).filter_map(label).collect(),
    }
}

fn seen_servers(
    now: Time,
    registry: &Registry,
    looked: &[(TreeId, Time, ServerSeen)],
) -> Vec<SeenServer> {
    let live: Vec<_> = registry.servers().collect();
    let eldest = registry.eldest(&live);
    let one = |(id, began, seen): &(TreeId, Time, ServerSeen)| {
        let did = |activity: Activity| {
            let Activity { processes, io, context_switches, cpu, written, runtime: _ } = activity;
            [processes, io, context_switches, cpu, written]
        };
        Some(SeenServer {
            p: *eldest.get(id)?,
            contact: seen.contact,
            stopped: seen.is_stopped,
            did: seen.activity.map(did),
            ran: seen.activity.map_or(0, |activity| activity.runtime),
            busy: seen.is_busy,
            alone: seen.is_stdio_alone,
            took: now.0.saturating_sub(began.0),
        })
    };
    looked.iter().filter_map(one).collect()
}

fn zombies(t: u64, found: &Unreaped) -> TraceEvent {
    let reaper = |Reaper { pid, name, is_init }: &Reaper| SeenReaper {
        p: *pid,
        name: redact::text(name),
        init: *is_init,
    };
    TraceEvent::Zombies { t, count: found.zombies, reaper: found.reaper.as_ref().map(reaper) }
}

fn seen_process(seen: &Observed, grammar: &Grammar) -> SeenProcess {
    let Observed { pid, start_ticks, parent, command } = seen;
    let command: &CommandLine = &grammar.reduced(command);
    SeenProcess { p: *pid, parent: *parent, start: *start_ticks, command: command.into() }
}

fn baseline(t: u64, processes: &[Observed], grammar: &Grammar) -> Vec<TraceEvent> {
    let some = processes.iter().take(MOST_SEEN);
    let mut events: Vec<_> =
        some.map(|seen| TraceEvent::Seen { t, process: seen_process(seen, grammar) }).collect();
    let left_out = processes.len().saturating_sub(MOST_SEEN);
    if left_out > 0 {
        events.push(TraceEvent::Lost { t, lines: left_out.try_into().unwrap_or(u64::MAX) });
    }
    events.push(TraceEvent::Baseline { t });
    events
}

#[cfg(test)]
mod tests;
