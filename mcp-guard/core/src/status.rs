//! The status of a guard, as it is shown to operators. Its JSON is that of these types.

mod herds;
mod servers;

use std::{collections::BTreeMap, fmt, time::Duration};

use mcp_guard_common::Totals;
use serde::{Deserialize, Serialize};

use crate::{
    Time,
    evidence::{Contact, Known},
    guard::Guard,
    id::{GuardId, Pid},
    incident::Hold,
    policy::{Mode, Response},
    rates::PerSecond,
};

pub use self::{
    herds::{HerdStatus, UnseenClients},
    servers::{ClientStatus, ServerStatus, StarterStatus},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    pub guard: GuardId,
    pub name: String,
    pub mode: Mode,
    pub highest: Response,
    pub state: GuardState,
    /// Why no action is taken on this guard, if a rule forbids it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Live processes in the registry.
    pub processes: usize,
    pub pids: Vec<Pid>,
    /// Processes that were not tracked because the registry was full; normally 0.
    pub not_kept: u64,
    pub identities: BTreeMap<String, IdentityStatus>,
    pub totals: TotalsStatus,
    pub forks_per_second: PerSecond,
    pub execs_per_second: PerSecond,
    /// Launcher trees started per second, for all identities together.
    pub starts_per_second: PerSecond,
}

/// The holds on a guard's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardState {
    Free,
    Clamped,
    Frozen,
    #[serde(rename = "frozen, clamped")]
    FrozenAndClamped,
}

impl GuardState {
    fn of(guard: &Guard) -> Self {
        match (guard.lease(Hold::Freeze), guard.lease(Hold::Clamp)) {
            (None, None) => Self::Free,
            (None, Some(_)) => Self::Clamped,
            (Some(_), None) => Self::Frozen,
            (Some(_), Some(_)) => Self::FrozenAndClamped,
        }
    }
}

impl fmt::Display for GuardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Clamped => "clamped",
            Self::Frozen => "frozen",
            Self::FrozenAndClamped => "frozen, clamped",
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdentityStatus {
    pub starts: u64,
    pub live: usize,
    pub live_peak: usize,
    pub oldest_seconds: Option<u64>,
    pub starts_per_second: PerSecond,
    /// Live servers that are known to have done something in the last minute. `None`, here and below, if it is not
    /// known of any of them.
    #[serde(default)]
    pub used: Option<usize>,
    /// Live servers that are known to have done nothing in the last minute.
    #[serde(default)]
    pub idle: Option<usize>,
    /// Live servers that are suspended.
    #[serde(default)]
    pub suspended: usize,
    /// Live servers that nobody can reach.
    #[serde(default)]
    pub disconnected: Option<usize>,
    /// Live servers whose parent is gone, the process that started them.
    #[serde(default)]
    pub orphaned: Option<usize>,
    /// Memory of its servers that no file backs, as far as it was read.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The age of the oldest of the last looks at its live servers, if it is older than two intervals between looks.
    #[serde(default)]
    pub look_age_seconds: Option<u64>,
}

/// A server that did nothing for this long is idle.
const IDLE: Duration = Duration::from_secs(60);
/// A look is not told apart from the present for this many times the interval between two looks.
const PRESENT: u32 = 2;

/// Returns the age of the last look at a server, if it is old.
fn look_age(now: Time, every: Duration, known: &Known) -> Option<u64> {
    let age = now.since(known.looked()?);
    (age > PRESENT * every).then_some(age.as_secs())
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TotalsStatus {
    pub process_forks: u64,
    pub thread_forks: u64,
    pub execs: u64,
    pub process_exits: u64,
    pub thread_exits: u64,
    pub arrivals: u64,
    pub departures: u64,
    pub dropped: u64,
}

impl GuardStatus {
    /// Returns whether the agent writes this guard's limit if it is not in force.
    #[must_use]
    pub fn limit_is_written(&self) -> bool {
        self.mode == Mode::Enforce && self.refused.is_none() && self.state == GuardState::Free
    }

    #[must_use]
    pub fn of((now, every): (Time, Duration), guard: &Guard, totals_now: Totals) -> Self {
        let states = states(now, every, guard);
        let identities: BTreeMap<_, _> = guard
            .registry
            .identities()
            .filter(|(_, identity)| identity.is_package() || identity.live() > 0)
            .map(|(name, identity)| {
                let starts = |window| rate(identity.starts_within(now, window), window);
                let state = states.get(name).copied().unwrap_or(States::NO_SERVERS);
                let status = IdentityStatus {
                    starts: identity.starts,
                    live: identity.live(),
                    live_peak: identity.live_peak,
                    oldest_seconds: identity.nth_oldest(1).map(|at| now.since(at).as_secs()),
                    starts_per_second: PerSecond::of(starts),
                    used: state.used,
                    idle: state.idle,
                    suspended: state.suspended,
                    disconnected: state.disconnected,
                    orphaned: state.orphaned,
                    memory_bytes: state.memory,
                    look_age_seconds: state.look_age,
                };
                (name.to_owned(), status)
            })
            .collect();
        let all_starts = |window| {
            let starts = guard.registry.identities().map(|(_, one)| one.starts_within(now, window));
            rate(starts.sum(), window)
        };
        // The rates that will apply once these totals are taken.
        let mut rates = guard.rates.clone();
        rates.add(now, totals_now);
        let per_second =
            |field: fn(&Totals) -> u64| PerSecond::of(|window| rates.per_second(window, field));
        Self {
            guard: guard.id,
            name: guard.name.clone(),
            mode: guard.terms.mode,
            highest: guard.terms.highest,
            state: GuardState::of(guard),
            refused: guard.refusal.as_ref().map(ToString::to_string),
            processes: guard.registry.processes(),
            pids: guard.registry.pids(),
            not_kept: guard.registry.overflowed,
            starts_per_second: PerSecond::of(all_starts),
            identities,
            totals: totals(guard, totals_now),
            forks_per_second: per_second(|totals| totals.process_forks),
            execs_per_second: per_second(|totals| totals.execs),
        }
    }
}

/// How many servers of one identity are in which state.
#[derive(Clone, Copy, Default)]
struct States {
    used: Option<usize>,
    idle: Option<usize>,
    suspended: usize,
    disconnected: Option<usize>,
    orphaned: Option<usize>,
    memory: Option<u64>,
    look_age: Option<u64>,
}

impl States {
    const NO_SERVERS: Self = Self {
        used: Some(0),
        idle: Some(0),
        suspended: 0,
        disconnected: Some(0),
        orphaned: Some(0),
        memory: Some(0),
        look_age: None,
    };
}

/// Adds a server of which something is known.
fn add(sum: &mut Option<usize>, is_it: Option<bool>) {
    if let Some(is_it) = is_it {
        *sum = Some(sum.unwrap_or_default() + usize::from(is_it));
    }
}

fn states(now: Time, every: Duration, guard: &Guard) -> BTreeMap<&str, States> {
    let mut all: BTreeMap<&str, States> = BTreeMap::new();
    for server in guard.registry.servers() {
        let (known, states) = (server.known, all.entry(server.identity).or_default());
        let (idle, was_used) = (server.idle(now), known.was_used(now, IDLE));
        states.suspended += usize::from(server.asleep.is_some());
        add(&mut states.used, (was_used || idle.is_some()).then_some(was_used));
        add(&mut states.idle, idle.map(|idle| idle >= IDLE));
        let is_known = known.contact != Contact::Unknown;
        add(&mut states.disconnected, is_known.then(|| known.contact == Contact::Disconnected));
        add(&mut states.orphaned, server.is_orphaned);
        if let Some(memory) = known.memory {
            states.memory = Some(states.memory.unwrap_or_default().saturating_add(memory));
        }
        if server.asleep.is_none() {
            states.look_age = states.look_age.max(look_age(now, every, known));
        }
    }
    all
}

fn rate(events: usize, window: Duration) -> f64 {
    events as f64 / window.as_secs_f64()
}

fn totals(guard: &Guard, totals: Totals) -> TotalsStatus {
    TotalsStatus {
        process_forks: totals.process_forks,
        thread_forks: totals.thread_forks,
        execs: totals.execs,
        process_exits: totals.process_exits,
        thread_exits: totals.thread_exits,
        arrivals: guard.arrivals,
        departures: guard.departures,
        dropped: totals.dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::GuardState;

    #[test]
    fn a_state_serializes_as_it_is_displayed() {
        for (state, text) in [
            (GuardState::Free, "free"),
            (GuardState::Clamped, "clamped"),
            (GuardState::Frozen, "frozen"),
            (GuardState::FrozenAndClamped, "frozen, clamped"),
        ] {
            let json = format!("{text:?}");
            assert_eq!(
                (state.to_string().as_str(), serde_json::to_string(&state).unwrap()),
                (text, json.clone())
            );
            assert_eq!(serde_json::from_str::<GuardState>(&json).unwrap(), state);
        }
    }
}
