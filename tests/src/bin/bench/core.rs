//! The cost of one start and one end of a server in the core, beside live servers.

use crate::numbers::median;
use crate::report::Report;
use crate::tell;
use mcp_guard_core::effect::{Action, Effect, Input, Order, Settled};
use mcp_guard_core::id::{GuardId, Pid};
use mcp_guard_core::incident::Outcome;
use mcp_guard_core::policy::{Mode, Policy, Response, Terms};
use mcp_guard_core::{Core, Time};
use std::time::{Duration, Instant};

const GUARD: GuardId = GuardId(0);
/// Live servers, and the number of their packages.
const CASES: [(u32, u32); 5] = [(10, 1), (1000, 1), (1000, 1000), (20_000, 1), (20_000, 1000)];
const KINDS: [Kind; 2] = [Kind::Package, Kind::Script];
/// How old the servers are: long enough for every detector.
const AGE: Duration = Duration::from_secs(7200);

/// The way in which a server starts.
#[derive(Clone, Copy)]
enum Kind {
    /// `npx`, which is counted as a duplicate.
    Package,
    /// `node FILE`, of which only the growth is judged.
    Script,
}
/// Starts and ends of one measurement.
const TURNS: u32 = 2000;
const ROUNDS: usize = 9;
const GOAL_US: f64 = 20.0;

pub fn measure(report: &mut Report) {
    tell(&format!("core: {} cases", CASES.len()));
    report.section("One start and end of a server through the core, beside live servers");
    let mut first = None;
    for (kind, (servers, packages)) in
        KINDS.into_iter().flat_map(|kind| CASES.map(|case| (kind, case)))
    {
        let mut crowd = Crowd::of(kind, servers, packages);
        let rounds: Vec<f64> = (0..ROUNDS).map(|_| crowd.turns()).collect();
        let cost = median(&rounds);
        let first = *first.get_or_insert(cost);
        let what = match kind {
            Kind::Package => "packages",
            Kind::Script => "scripts",
        };
        let name = format!("beside {servers} servers of {packages} {what}");
        report.add_goal(&name, cost, "us", GOAL_US);
        report.add_goal(&format!("{name}, to the first of these"), cost / first, "", 2.0);
    }
}

/// A guard with servers that are all old enough to be a leak.
struct Crowd {
    core: Core,
    now: Time,
    kind: Kind,
    packages: u32,
    next: u32,
    effects: Vec<Effect>,
}

impl Crowd {
    fn of(kind: Kind, servers: u32, packages: u32) -> Self {
        let core = Core::new(Policy::default());
        let (now, next, effects) = (Time(1_000_000_000), 1, Vec::new());
        let mut crowd = Self { core, now, kind, packages, next, effects };
        let terms = Terms::new(Mode::Observe, Response::Freeze);
        let (name, workload, refusal) = ("bench".to_owned(), None, None);
        crowd.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
        for _ in 0..servers {
            crowd.start();
            crowd.now = crowd.now.after(Duration::from_millis(1));
        }
        crowd.now = crowd.now.after(AGE);
        crowd.step(Input::Tick);
        crowd
    }

    fn step(&mut self, input: Input) {
        self.core.step(self.now, input, &mut self.effects);
        // The executor settles each order. While one is under way, the detectors ask again each second.
        for settled in self.effects.drain(..).filter_map(settle).collect::<Vec<_>>() {
            self.core.step(self.now, Input::Settled(settled), &mut self.effects);
            self.effects.clear();
        }
    }

    /// Forks and execs, as `npx -y PACKAGE`.
    fn start(&mut self) -> Pid {
        let (guard, born, pid) = (GUARD, self.now, Pid(self.next));
        let number = self.next % self.packages;
        let argv = match self.kind {
            Kind::Package => format!("npx\0-y\0package-{number}\0"),
            Kind::Script => format!("node\0/srv/server-{number}.js\0"),
        };
        let command = argv.into_bytes().into();
        self.next += 1;
        self.step(Input::Fork { guard, born, child: pid, parent: Pid(0) });
        self.step(Input::Exec { guard, born, pid, command });
        pid
    }

    /// Returns the microseconds of one start and one end, of the oldest of the last eight servers.
    fn turns(&mut self) -> f64 {
        let began = Instant::now();
        let mut last = std::collections::VecDeque::new();
        for _ in 0..TURNS {
            last.push_back(self.start());
            self.now = self.now.after(Duration::from_millis(30));
            if last.len() == 8
                && let Some(pid) = last.pop_front()
            {
                self.step(Input::Exit { guard: GUARD, pid, code: 0 });
            }
        }
        for pid in last {
            self.step(Input::Exit { guard: GUARD, pid, code: 0 });
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(TURNS)
    }
}

/// Settles a response as the executor does in observe mode.
fn settle(effect: Effect) -> Option<Settled> {
    let Effect::Act(Order { ticket, guard, action: Action::Contain(_), .. }) = effect else {
        return None;
    };
    let detail = String::new();
    Some(Settled { ticket, guard, outcome: Outcome::WouldDo, detail, remark: None })
}
