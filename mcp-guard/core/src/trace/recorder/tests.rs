use std::time::Duration;

use super::*;
use crate::{
    effect::{Action, Effect, Settled},
    evidence::Contact,
    id::Ticks,
    incident::{Detector, Outcome},
    policy::{Response, Workload},
    registry::ticks,
    replay::{ReplayReport, replay},
};

const GUARD: GuardId = GuardId(7);
const SECOND: u64 = 1_000_000_000;
/// When the host had been up for this long, the recording began.
const START: Time = Time(100_000 * SECOND + 123_456_789);

type Decided = (u64, Detector, Option<Response>);

/// A core as the agent steps it, with a recorder beside it.
struct Live {
    core: Core,
    recorder: Recorder,
    now: Time,
    totals: Totals,
    tasks: u64,
    looked: Time,
    lines: Vec<String>,
    decided: Vec<Decided>,
}

impl Live {
    fn new(policy: &str) -> Self {
        let policy = Policy::parse(policy).unwrap();
        let workload = Workload { name: "gate".into(), ..Workload::default() };
        let terms = policy.terms(&workload).unwrap();
        let mut core = Core::new(policy);
        core.step(START, Input::HostTasks { most: 32_768 }, &mut Vec::new());
        let (name, workload) = ("gate".to_owned(), Some(Box::new(workload)));
        let guarded = Input::Guarded { guard: GUARD, name, terms, workload, refusal: None };
        core.step(START, guarded, &mut Vec::new());
        let recorder = Recorder::new(GUARD, START);
        let lines = vec![serde_json::to_string(&recorder.header(&core).unwrap()).unwrap()];
        let (totals, now, looked) = (Totals::default(), START, START);
        Self { core, recorder, now, totals, tasks: 0, looked, lines, decided: Vec::new() }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let events = self.recorder.events(self.now, &input, &self.core);
            self.lines.extend(events.iter().map(|one| serde_json::to_string(one).unwrap()));
            let mut effects = Vec::new();
            self.core.step(self.now, input, &mut effects);
            for effect in effects {
                let Effect::Act(order) = effect else { continue };
                let t = self.now.0 - START.0;
                if let Action::Warn { cause } = &order.action {
                    self.decided.push((t, cause.detector.unwrap(), None));
                    continue;
                }
                if let Action::Contain(done) = &order.action {
                    let detector = done.cause.detector.unwrap();
                    self.decided.push((t, detector, Some(done.response)));
                }
                let (outcome, detail) = (Outcome::Done, String::new());
                let (ticket, guard) = (order.ticket, order.guard);
                inputs.push(Input::Settled(Settled {
                    ticket,
                    guard,
                    outcome,
                    detail,
                    remark: None,
                }));
            }
        }
    }

    /// Passes time as the agent does, with looks every 30 s.
    fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now < until {
            self.now = Time((self.now.0 + SECOND / 4).min(until.0));
            if self.core.next_deadline().is_some_and(|at| at <= self.now) {
                self.step(Input::Tick);
            }
            self.step(Input::Totals { guard: GUARD, totals: self.totals });
            let (in_force, tasks) = (Limit::Tasks(1000), Some(self.tasks));
            let (request, agent_goes_on, clamped) = (None, false, false);
            let seen = SeenLimit { in_force, tasks, request, agent_goes_on, clamped };
            self.step(Input::LimitSeen { guard: GUARD, seen });
            if self.now.since(self.looked) >= Duration::from_secs(30) {
                self.looked = self.now;
                self.look();
            }
        }
    }

    /// Every third server was used since the last look.
    fn look(&mut self) {
        let (now, registry) = (self.now.0, &self.core.guard(GUARD).unwrap().registry);
        let began = self.now.before(Duration::from_secs(2));
        let seen = |id: TreeId, at: usize| {
            let runtime = if at.is_multiple_of(3) { now } else { 5 };
            let activity = Some(Activity { runtime, ..Activity::default() });
            let contact = if at == 1 { Contact::Disconnected } else { Contact::Connected };
            let is_busy = Some(false);
            (id, began, ServerSeen { contact, activity, is_busy, ..ServerSeen::default() })
        };
        let all = registry.servers().enumerate().map(|(at, server)| seen(server.id, at)).collect();
        self.step(Input::Looked { guard: GUARD, servers: all });
    }

    fn start(&mut self, pid: u32, words: &[&str]) {
        let (guard, born, pid) = (GUARD, self.now, Pid(pid));
        (self.totals.process_forks, self.totals.execs) =
            (self.totals.process_forks + 1, self.totals.execs + 1);
        self.tasks += 11;
        self.step(Input::Fork { guard, born, child: pid, parent: Pid(1) });
        let argv: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        self.step(Input::Exec { guard, born, pid, command: argv.into() });
    }

    fn ended(mut self) -> (String, Vec<Decided>) {
        let end = self.recorder.end(self.now, EndOfTrace::Time);
        self.lines.push(serde_json::to_string(&end).unwrap());
        (self.lines.join("\n"), self.decided)
    }
}

fn decided(report: &ReplayReport) -> Vec<Decided> {
    let warned = report.warnings.iter().map(|one| (one.t_ns, one.detector, None));
    let acted = report.actions.iter().map(|one| (one.t_ns, one.detector, Some(one.response)));
    let mut all: Vec<_> = warned.chain(acted).collect();
    all.sort_by_key(|(t, detector, response)| (*t, *detector, *response));
    all
}

const POLICY: &str = "mode = \"enforce\"\n[[guard]]\nname = \"gate\"\nhighest = \"freeze\"";

fn leak() -> Live {
    let mut live = Live::new(POLICY);
    for pid in 100..145 {
        live.start(pid, &["npx", "-y", "figma-mcp", "--token", "zqsecret"]);
        live.wait(Duration::from_secs(5));
    }
    live.wait(Duration::from_secs(240));
    live
}

#[test]
fn a_replay_decides_as_the_core_did_while_it_was_recorded() {
    let (trace, live) = leak().ended();
    let mut sorted = live.clone();
    sorted.sort_by_key(|(t, detector, response)| (*t, *detector, *response));
    let acted = sorted.iter().filter(|(_, _, response)| response.is_some()).count();
    assert!(acted > 0 && sorted.len() > acted + 1, "{sorted:?}");
    let report = replay(&trace, Policy::parse(POLICY).unwrap()).unwrap();
    assert_eq!((report.lost, report.ended), (0, Some(EndOfTrace::Time)));
    let replayed = decided(&report);
    let kinds = |all: &[Decided]| -> Vec<_> {
        all.iter().map(|(_, detector, response)| (*detector, *response)).collect()
    };
    assert_eq!(kinds(&replayed), kinds(&sorted), "{replayed:?}\n{sorted:?}");
    for ((live, detector, _), (replayed, ..)) in sorted.iter().zip(&replayed) {
        assert!(live.abs_diff(*replayed) <= SECOND, "{detector:?}: {live} {replayed}");
    }
}

#[test]
fn a_look_in_an_older_trace_is_understood() {
    let seen: SeenServer = serde_json::from_str(r#"{"p":9,"did":[1,2,3,4,5]}"#).unwrap();
    let activity =
        Activity { processes: 1, io: 2, context_switches: 3, cpu: 4, written: 5, runtime: 0 };
    assert_eq!(ServerSeen::from(&seen).activity, Some(activity));
}

/// Without the looks, each server would count as idle.
#[test]
fn what_the_looks_showed_decides_in_a_replay_too() {
    let (trace, _) = leak().ended();
    let acted = |trace: &str| {
        let report = replay(trace, Policy::parse(POLICY).unwrap()).unwrap();
        report.actions.first().map(|one| one.t_ns)
    };
    let blind: Vec<&str> = trace.lines().filter(|line| !line.contains("\"look\"")).collect();
    assert!(acted(&blind.join("\n")) < acted(&trace));
}

#[test]
fn hostile_words_stay_in_their_line_and_secrets_are_left_out() {
    let mut live = Live::new(POLICY);
    let before = live.lines.len();
    let argv = b"npx\0-y\0a\"\n{\"t\":0}\xff\x1b[2J\0https://u:zqsecret@h/\0".to_vec();
    let (guard, born, pid) = (GUARD, START, Pid(9));
    live.step(Input::Exec { guard, born, pid, command: argv.into() });
    let lines = &live.lines[before..];
    assert_eq!(lines.len(), 1);
    assert!(lines[0].bytes().all(|byte| byte >= 0x20) && !lines[0].contains("zqsecret"));
    let (trace, _) = leak().ended();
    assert!(!trace.contains("zqsecret"));
}

#[test]
fn a_recording_begins_with_what_lives_and_follows_what_is_moved() {
    let mut live = Live::new(POLICY);
    let born = START.before(Duration::from_secs(50));
    let observed = |pid: u32, words: &str| Observed {
        pid: Pid(pid),
        start_ticks: ticks(born),
        parent: Pid(0),
        command: words
            .split(' ')
            .flat_map(|word| word.bytes().chain([0]))
            .collect::<Vec<u8>>()
            .into(),
    };
    let processes = vec![observed(1, "node /srv/a.js"), observed(2, "npx -y b-mcp")];
    live.step(Input::Baseline { guard: GUARD, processes });
    let seen = Some(observed(3, "npx -y c-mcp"));
    live.step(Input::Attach { guard: Some(GUARD), born, pid: Pid(3), seen });
    live.step(Input::Attach { guard: None, born, pid: Pid(2), seen: None });
    // It was in no guard that is recorded.
    live.step(Input::Attach { guard: None, born, pid: Pid(99), seen: None });
    let report = replay(&live.ended().0, Policy::parse(POLICY).unwrap()).unwrap();
    let names: Vec<&str> = report.identities.keys().map(String::as_str).collect();
    assert_eq!((names, report.live_at_end), (vec!["/srv/a.js", "b-mcp", "c-mcp"], 2));
    assert_eq!(ticks(born), Ticks(born.0 / 10_000_000));
}

#[test]
fn a_limit_is_recorded_when_it_changes() {
    let mut live = Live::new(POLICY);
    live.wait(Duration::from_secs(60));
    let limits = |live: &Live| live.lines.iter().filter(|line| line.contains("\"limit\"")).count();
    assert_eq!(limits(&live), 1);
    live.start(100, &["sleep", "9"]);
    live.wait(Duration::from_secs(60));
    assert_eq!(limits(&live), 2);
}
