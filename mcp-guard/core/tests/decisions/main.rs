//! Decisions of the core, as stories with times.

mod reload;

use std::time::Duration;

use mcp_guard_common::Totals;
use mcp_guard_core::{
    Core, Time,
    effect::{Action, Effect, Input, OperatorRequest, Order, Remark, SeenLimit, Settled},
    evidence::{ClientIs, ClientsLook, Connections, EndedStdin, InteractiveContainer},
    id::{GuardId, Pid, RequestId, Ticket, Ticks},
    incident::{Detector, End, Hold, Outcome},
    limit::Limit,
    policy::{Mode, Policy, Response, Terms, Workload},
    refusal::{Despite, Refusal},
    registry::Observed,
};

const GUARD: GuardId = GuardId(3);

struct Story {
    core: Core,
    now: Time,
    /// The orders since the last `take`.
    orders: Vec<Action>,
    /// All other effects: reads, log lines, and guards to release.
    others: Vec<Effect>,
    /// Responses that were ordered and have no outcome yet, oldest first.
    unsettled: Vec<(Ticket, Response)>,
    /// The newest order.
    last: Option<Ticket>,
    next_pid: u32,
}

impl Story {
    fn new(policy: &str) -> Self {
        Self::refused(policy, None)
    }

    fn refused(policy: &str, refusal: Option<Refusal>) -> Self {
        let core = Core::new(Policy::parse(policy).expect("valid"));
        let mut story = Self {
            core,
            now: Time(0),
            orders: Vec::new(),
            others: Vec::new(),
            unsettled: Vec::new(),
            last: None,
            next_pid: 100,
        };
        let terms = Terms::new(Mode::Enforce, Response::Kill);
        let (name, workload) = ("story".into(), Some(Box::default()));
        story.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
        story
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(Order { ticket, action, .. }) => {
                    if let Action::Contain(wanted) = &action {
                        self.unsettled.push((ticket, wanted.response));
                    }
                    self.last = Some(ticket);
                    self.orders.push(action);
                }
                other @ (Effect::Rescan { .. }
                | Effect::WarnOfHerd(_)
                | Effect::ReadDenials { .. }
                | Effect::ReadFacts { .. }
                | Effect::ForgetRequest { .. }
                | Effect::Unguard { .. }
                | Effect::Log { .. }) => self.others.push(other),
                // There is no process to read.
                Effect::ReadStdio { .. } => {}
            }
        }
    }

    fn operator(&mut self, request: OperatorRequest) {
        self.step(Input::Operator { guard: GUARD, id: RequestId(1), request });
    }

    /// Time passes. Deadlines, and the totals of each second, come when they are due.
    fn wait(&mut self, seconds: u64) {
        let end = self.now.after(Duration::from_secs(seconds));
        while self.now < end {
            let second = self.now.after(Duration::from_secs(1));
            let deadline = self.core.next_deadline().filter(|next| *next > self.now);
            self.now = deadline.map_or(second, |next| next.min(second)).min(end);
            self.step(Input::Tick);
            self.step(Input::Totals { guard: GUARD, totals: Totals::default() });
        }
    }

    fn server(&mut self, package: &str) -> u32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.step(Input::Fork { guard: GUARD, born: self.now, child: Pid(pid), parent: Pid(1) });
        let command = format!("npx\0-y\0{package}\0").into_bytes().into();
        self.step(Input::Exec { guard: GUARD, born: self.now, pid: Pid(pid), command });
        pid
    }

    /// Forks this number of processes that are not servers.
    fn births(&mut self, count: u32) {
        for child in 1000..1000 + count {
            self.step(Input::Fork {
                guard: GUARD,
                born: self.now,
                child: Pid(child),
                parent: Pid(1),
            });
        }
    }

    fn exit(&mut self, pid: u32, code: u32) {
        self.step(Input::Exit { guard: GUARD, pid: Pid(pid), code });
    }

    /// Settles the oldest unsettled order of this response.
    fn settle(&mut self, response: Response, outcome: Outcome) {
        let at = self.unsettled.iter().position(|(_, ordered)| *ordered == response);
        let (ticket, _) = self.unsettled.remove(at.expect("it was ordered"));
        let detail = String::new();
        self.step(Input::Settled(Settled { ticket, guard: GUARD, outcome, detail, remark: None }));
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.orders)
    }

    fn contained(&mut self) -> Vec<(Detector, Response)> {
        let effects = self.take();
        let contained = effects.into_iter().filter_map(|action| {
            let Action::Contain(done) = action else { return None };
            done.cause.detector.map(|detector| (detector, done.response))
        });
        contained.collect()
    }

    fn state(&self) -> String {
        self.core.status(self.now)[0].state.to_string()
    }
}

#[test]
fn a_leak_is_warned_about_and_then_clamped_at_the_exact_time() {
    let mut story = Story::new("");
    for _ in 0..10 {
        story.server("figma-mcp");
        story.wait(1);
    }
    let born_last = story.now.0 - 1_000_000_000;
    story.wait(100);
    let warned = story.orders.iter().filter(|effect| matches!(effect, Action::Warn { .. }));
    assert_eq!(
        warned.count(),
        2,
        "burst for ten starts in ten seconds, duplicates for five old servers"
    );
    let Some(Action::Contain(clamp)) =
        story.orders.iter().find(|effect| matches!(effect, Action::Contain(c) if c.cause.detector == Some(Detector::Duplicates)))
    else {
        panic!("{:?}", story.orders)
    };
    assert_eq!(clamp.response, Response::Clamp);
    assert_eq!(clamp.decided, Time(born_last + 60_000_000_000), "the tenth turns 60 s");
    assert_eq!(clamp.cause.numbers["aged"], 10);
}

/// A container chooses the names of its packages, and each new name may be a warning.
#[test]
fn a_warning_says_when_the_limit_is_reached() {
    let mut story = Story::new("");
    let seen = |tasks| SeenLimit {
        in_force: Limit::Tasks(400),
        tasks: Some(tasks),
        request: None,
        agent_goes_on: false,
        clamped: false,
    };
    for minute in 1..=6 {
        story.server("figma-mcp");
        story.step(Input::LimitSeen { guard: GUARD, seen: seen(20 * minute) });
        story.wait(60);
    }
    let forecasts: Vec<_> = story
        .take()
        .into_iter()
        .filter_map(|action| {
            let Action::Warn { cause } = action else { return None };
            Some((cause.detector, cause.forecast))
        })
        .collect();
    let text = "at this pace the limit of 400 is reached in 13 min".to_owned();
    assert_eq!(forecasts, [(Some(Detector::Duplicates), Some(text))]);
}

#[test]
fn the_warnings_of_an_hour_are_bounded_and_withheld_ones_come_later() {
    let mut story = Story::new("");
    let warnings = |story: &mut Story| -> Vec<_> {
        let warned = |effect| {
            let Action::Warn { cause, .. } = effect else { return None };
            Some((cause.identity, cause.numbers))
        };
        story.take().into_iter().filter_map(warned).collect()
    };
    let servers = |story: &mut Story, package: u32| {
        [(); 5].map(|()| story.server(&format!("package-{package}")))
    };
    let pids: Vec<_> = (0..100).map(|package| servers(&mut story, package)).collect();
    story.wait(60);
    let (named, others): (Vec<_>, Vec<_>) =
        warnings(&mut story).into_iter().partition(|(package, _)| package.is_some());
    assert_eq!(
        (named.len(), others.len()),
        (60, 1),
        "the emergency warning names no package, and is never withheld"
    );
    let was_reported = |package: u32| {
        let name = format!("package-{package}");
        named.iter().any(|(reported, _)| reported.as_ref() == Some(&name))
    };
    let (_, withheld): (Vec<u32>, Vec<u32>) = (0..100).partition(|package| was_reported(*package));
    // All servers of the withheld packages end, except those of three packages.
    let ended = withheld.iter().skip(3).flat_map(|package| pids[*package as usize]);
    ended.for_each(|pid| story.exit(pid, 0));
    story.wait(3600);
    let later = warnings(&mut story);
    assert_eq!(later.len(), 3, "{later:?}");
    assert_eq!(later[0].1["withheld"], 37);
    assert!(later[1..].iter().all(|(_, numbers)| !numbers.contains_key("withheld")));
}

#[test]
fn servers_that_end_in_time_are_no_leak() {
    let mut story = Story::new("");
    for _ in 0..40 {
        let pid = story.server("figma-mcp");
        story.wait(5);
        story.exit(pid, 0);
    }
    story.wait(120);
    assert_eq!(story.contained(), []);
}

#[test]
fn a_storm_is_frozen_for_its_start_rate_alone() {
    let policy = "[detect.burst]\nact_for = \"1s\"\n[detect.duplicates]\nwarn = 900\nact = 900";
    let mut story = Story::new(policy);
    for start in 1..=20 {
        assert_eq!(story.contained(), [], "before start {start}");
        story.server("figma-mcp");
        story.now = story.now.after(Duration::from_millis(20));
    }
    assert_eq!(story.contained(), [(Detector::Burst, Response::Freeze)], "at the 20th");
    story.server("figma-mcp");
    assert_eq!(story.contained(), [], "once an episode");
}

#[test]
fn an_emergency_needs_no_launcher() {
    let mut story = Story::new("");
    story.wait(5);
    story.births(400);
    story.wait(9);
    assert_eq!(story.contained(), [], "they are younger than 10 s");
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Emergency, Response::Freeze)]);
}

#[test]
fn nothing_ages_while_the_host_sleeps() {
    let mut story = Story::new("");
    story.wait(5);
    for _ in 0..10 {
        story.server("figma-mcp");
    }
    story.births(300);
    story.wait(1);
    story.take();
    story.now = story.now.after(Duration::from_secs(3600));
    story.step(Input::Woke);
    story.wait(9);
    assert_eq!(story.contained(), [], "they have lived for ten seconds at most");
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Emergency, Response::Freeze)]);
    story.wait(48);
    assert_eq!(story.contained(), []);
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
}

#[test]
fn a_lease_ends_while_the_host_sleeps() {
    let (mut story, _) = clamped("");
    story.operator(OperatorRequest::Freeze {
        lease: Duration::from_secs(600),
        dry_run: false,
        despite: None,
    });
    story.settle(Response::Freeze, Outcome::Done);
    story.take();
    story.now = story.now.after(Duration::from_secs(3600));
    story.step(Input::Woke);
    let released = Action::Release { hold: Hold::Freeze, end: End::LeaseOver };
    assert!(story.take().contains(&released), "as soon as the host is awake");
}

#[test]
fn a_fork_rate_warns_and_never_acts() {
    let mut story = Story::new("");
    for second in 0..30 {
        story.now = Time(second * 1_000_000_000);
        let totals = Totals { process_forks: second * 5000, ..Totals::default() };
        story.step(Input::Totals { guard: GUARD, totals });
    }
    let [Action::Warn { cause, .. }] = &story.take()[..] else { panic!("one warning") };
    assert_eq!(cause.detector, Some(Detector::Raw));
}

const QUICK: &str = "[detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\nact = 3\nact_age = \"2s\"\n";

fn clamped(extra: &str) -> (Story, Vec<u32>) {
    let mut story = Story::new(&format!("{QUICK}{extra}"));
    let pids = (0..3).map(|_| story.server("a")).collect();
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
    story.settle(Response::Clamp, Outcome::Done);
    assert_eq!(story.state(), "clamped");
    (story, pids)
}

#[test]
fn a_clamp_is_renewed_while_its_reason_lasts_and_then_removed() {
    let (mut story, pids) = clamped("");
    story.wait(601);
    assert!(matches!(story.take()[..], [Action::Renew { .. }]));
    for pid in pids {
        story.exit(pid, 0);
    }
    story.wait(601);
    let release = Action::Release { hold: Hold::Clamp, end: End::LeaseOver };
    assert_eq!(story.take(), [release]);
    assert_eq!(story.state(), "free");
}

#[test]
fn a_clamp_that_does_harm_is_loosened() {
    let (mut story, pids) = clamped("");
    story.exit(pids[0], 6);
    story.exit(pids[1], 6);
    let effects = story.take();
    assert!(matches!(effects[..], [Action::Loosen { by: 20, aborts: 1, .. }]), "{effects:?}");

    let (mut story, _) = clamped("");
    story.step(Input::Denials { guard: GUARD, count: 7 });
    assert_eq!(story.take(), [], "these denials are from before the clamp");
    story.step(Input::Denials { guard: GUARD, count: 8 });
    assert!(matches!(story.take()[..], [Action::Loosen { denials: 1, .. }]));

    let (mut story, pids) = clamped("");
    story.wait(31);
    story.exit(pids[0], 6);
    assert_eq!(story.take(), [], "long after the clamp, the abort is not blamed on it");
}

#[test]
fn a_freeze_ends_with_its_lease() {
    let mut story = Story::new("");
    let lease = Duration::from_secs(300);
    story.operator(OperatorRequest::Freeze { lease, dry_run: false, despite: None });
    assert!(matches!(&story.take()[..], [Action::Contain(c)] if c.response == Response::Freeze));
    story.settle(Response::Freeze, Outcome::Done);
    story.wait(299);
    assert_eq!(story.state(), "frozen");
    story.wait(2);
    let release = Action::Release { hold: Hold::Freeze, end: End::LeaseOver };
    assert_eq!(story.take(), [release]);
}

const FREEZE: OperatorRequest =
    OperatorRequest::Freeze { lease: Duration::from_secs(300), dry_run: false, despite: None };

/// The tasks of a cgroup may need longer than any lease to stop. The freeze is in force all the same.
#[test]
fn a_freeze_is_held_from_its_order_to_the_end_of_its_lease() {
    for outcome in [None, Some(Outcome::Requested), Some(Outcome::Done)] {
        let mut story = Story::new("");
        story.operator(FREEZE);
        story.take();
        assert_eq!(story.state(), "frozen", "the write does not wait for the outcome");
        story.wait(2);
        if let Some(outcome) = outcome {
            story.settle(Response::Freeze, outcome);
        }
        story.wait(297);
        assert_eq!((story.state(), story.take()), ("frozen".to_owned(), vec![]), "{outcome:?}");
        story.wait(1);
        let release = Action::Release { hold: Hold::Freeze, end: End::LeaseOver };
        assert_eq!(story.take(), [release], "{outcome:?}");
        story.wait(600);
        assert_eq!((story.state(), story.take()), ("free".to_owned(), vec![]));
    }
}

#[test]
fn a_freeze_can_be_thawed_before_its_outcome() {
    for late in [Outcome::Done, Outcome::NotNeeded, Outcome::Failed] {
        let mut story = Story::new("");
        story.operator(FREEZE);
        story.take();
        story.operator(OperatorRequest::Thaw);
        let release = Action::Release { hold: Hold::Freeze, end: End::Operator };
        assert_eq!(story.take(), [release]);
        story.settle(Response::Freeze, late);
        assert_eq!(story.state(), "free", "{late:?}");
        // A new freeze is not ended by the outcome of an old one.
        story.operator(FREEZE);
        assert_eq!(story.state(), "frozen");
    }
}

#[test]
fn a_freeze_that_was_not_made_is_not_held() {
    for outcome in [Outcome::NotOurs, Outcome::Refused, Outcome::Failed] {
        let mut story = Story::new("");
        story.operator(FREEZE);
        story.settle(Response::Freeze, outcome);
        assert_eq!(story.state(), "free", "{outcome:?}");
    }
    let mut story = Story::new("");
    story.operator(OperatorRequest::Freeze {
        lease: Duration::from_secs(300),
        dry_run: true,
        despite: None,
    });
    assert_eq!(story.state(), "free");
}

/// A freeze that is asked for again is refused by the executor, and the first one stays.
#[test]
fn a_second_freeze_does_not_end_the_first() {
    let mut story = Story::new("");
    story.operator(FREEZE);
    story.operator(FREEZE);
    let first = story.unsettled.remove(0);
    story.settle(Response::Freeze, Outcome::NotOurs);
    assert_eq!(story.state(), "frozen");
    story.unsettled.push(first);
    story.settle(Response::Freeze, Outcome::Requested);
    assert_eq!(story.state(), "frozen");
}

/// The freeze has lowered the limit of the clamp, and gives it back.
#[test]
fn a_clamp_is_neither_ended_nor_loosened_during_a_freeze() {
    let (mut story, pids) = clamped("");
    story.operator(OperatorRequest::Freeze {
        lease: Duration::from_secs(900),
        dry_run: false,
        despite: None,
    });
    story.settle(Response::Freeze, Outcome::Requested);
    story.take();
    story.step(Input::Denials { guard: GUARD, count: 7 });
    story.step(Input::Denials { guard: GUARD, count: 9 });
    for pid in pids {
        story.exit(pid, 0);
    }
    story.wait(899);
    assert_eq!((story.state(), story.take()), ("frozen, clamped".to_owned(), vec![]));
    story.wait(1);
    let ended = [Hold::Freeze, Hold::Clamp];
    assert_eq!(story.take(), ended.map(|hold| Action::Release { hold, end: End::LeaseOver }));
}

#[test]
fn a_freeze_that_another_tool_thawed_is_disowned() {
    let mut story = Story::new("");
    story.operator(OperatorRequest::Freeze {
        lease: Duration::from_secs(300),
        dry_run: false,
        despite: None,
    });
    story.settle(Response::Freeze, Outcome::Done);
    story.take();
    story.step(Input::ThawedByOther { guard: GUARD });
    assert!(matches!(story.take()[..], [Action::Disown { .. }]));
    story.wait(600);
    assert_eq!(story.take(), [], "a later freeze may be another tool's, and is not thawed");
}

#[test]
fn a_clamp_that_another_tool_undid_is_repeated_after_the_cool_down() {
    let (mut story, _) = clamped("[respond]\ncool_down = \"60s\"\n");
    story.step(Input::Unclamped { guard: GUARD, found: Limit::Max });
    let end = End::UnclampedByOther;
    assert_eq!(story.take(), [Action::Disown { hold: Hold::Clamp, end }]);
    assert_eq!(story.state(), "free");
    story.births(400);
    story.wait(59);
    let freeze = (Detector::Emergency, Response::Freeze);
    assert_eq!(
        story.contained(),
        [freeze],
        "duplicates wait for the cool-down, but an emergency does not"
    );
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
}

#[test]
fn after_an_operators_thaw_detectors_wait_for_the_cool_down() {
    let (mut story, _) = clamped("[respond]\ncool_down = \"60s\"\n");
    story.operator(OperatorRequest::Thaw);
    let release = Action::Release { hold: Hold::Clamp, end: End::Operator };
    assert_eq!(story.take(), [release]);
    for _ in 0..3 {
        story.server("b");
    }
    story.wait(59);
    assert_eq!(story.contained(), []);
    story.wait(2);
    // Both the package that caused the clamp and the new one ask again, and one clamp answers both.
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
}

/// A large cgroup is checked for some time before the order is carried out.
#[test]
fn a_thaw_also_ends_a_clamp_that_is_still_under_way() {
    let mut story = Story::new(QUICK);
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
    story.operator(OperatorRequest::Thaw);
    let release = Action::Release { hold: Hold::Clamp, end: End::Operator };
    assert_eq!(story.take(), [release]);
    story.settle(Response::Clamp, Outcome::NotNeeded);
    assert_eq!(story.state(), "free");
}

/// Its lease is known only when it is settled.
#[test]
fn the_mark_of_an_order_under_way_is_not_overdue() {
    let mut story = Story::new(QUICK);
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
    story.step(Input::Overdue { guard: GUARD, hold: Hold::Clamp });
    assert_eq!(story.take(), []);
    story.settle(Response::Clamp, Outcome::Failed);
    story.step(Input::Overdue { guard: GUARD, hold: Hold::Clamp });
    assert_eq!(story.take(), [Action::Release { hold: Hold::Clamp, end: End::LeaseOver }]);
}

#[test]
fn a_failed_action_is_retried_after_the_cool_down() {
    let mut story = Story::new(&format!("{QUICK}[respond]\ncool_down = \"60s\"\n"));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
    story.settle(Response::Clamp, Outcome::Failed);
    story.wait(59);
    assert_eq!(story.contained(), []);
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
}

/// The executor's reason may be gone later, for example when tasks have ended or a bystander has left.
#[test]
fn a_response_that_the_executor_refused_or_left_alone_is_retried() {
    for (outcome, seconds) in [(Outcome::NotOurs, 600), (Outcome::Refused, 60)] {
        let mut story = Story::new(QUICK);
        for _ in 0..3 {
            story.server("a");
        }
        story.wait(3);
        assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
        story.settle(Response::Clamp, outcome);
        story.wait(seconds - 1);
        assert_eq!(story.contained(), [], "{outcome:?}: it is not retried in a loop");
        story.wait(2);
        assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)], "{outcome:?}");
    }
}

/// A container chooses the names of its packages, and each order has the whole cgroup checked.
#[test]
fn a_freeze_that_two_detectors_ask_for_is_ordered_once() {
    let mut story = Story::new(&format!("{QUICK}response = \"freeze\"\n"));
    for package in ["a", "a", "a", "b", "b", "b"] {
        story.server(package);
    }
    story.wait(3);
    let once = [(Detector::Duplicates, Response::Freeze)];
    assert_eq!(story.contained(), once);
    story.settle(Response::Freeze, Outcome::Done);
    // It was ordered a second ago.
    story.wait(299 + 59);
    assert_eq!(story.contained(), [], "a freeze is not renewed");
    story.wait(2);
    assert_eq!(story.contained(), once, "what outlasts it is frozen again after the cool-down");
    story.settle(Response::Freeze, Outcome::Done);
    story.wait(300 + 61);
    assert_eq!(story.contained(), once);
    story.settle(Response::Freeze, Outcome::Done);
    story.wait(3600);
    assert_eq!(story.contained(), [], "three times, and no more");
    for _ in 0..3 {
        story.server("c");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Freeze)], "a new episode");
}

/// A detector finds a leak while an operator's freeze is in force, three times. The freeze answers it, and is
/// no act of the detector.
#[test]
fn an_operators_freezes_use_up_no_act_of_a_detector() {
    let mut story = Story::new(&format!("{QUICK}response = \"freeze\"\n"));
    let once = [(Detector::Duplicates, Response::Freeze)];
    let lease = Duration::from_secs(3600);
    for _ in 0..3 {
        story.operator(OperatorRequest::Freeze { lease, dry_run: false, despite: None });
        story.settle(Response::Freeze, Outcome::Done);
        // The leak is there from the first round on, so that all rounds are one episode.
        if story.next_pid == 100 {
            for _ in 0..3 {
                story.server("a");
            }
        }
        story.wait(61);
        assert_eq!(story.contained(), [], "an operator has frozen it");
        story.operator(OperatorRequest::Thaw);
        story.wait(58);
        assert_eq!(story.contained(), [], "a thaw is followed by the cool-down");
    }
    for seconds in [3, 300 + 61, 300 + 61] {
        story.wait(seconds);
        assert_eq!(story.contained(), once);
        story.settle(Response::Freeze, Outcome::Done);
    }
    story.wait(3600);
    assert_eq!(story.contained(), [], "three times, and no more");
}

impl Story {
    /// The executor finds a process that serves a FUSE file system, and freezes nothing.
    fn spare(&mut self) {
        let at = self.unsettled.iter().position(|(_, ordered)| *ordered == Response::Freeze);
        let (ticket, _) = self.unsettled.remove(at.expect("a freeze was ordered"));
        let remark = Some(Remark::ServesFuse);
        let (outcome, detail) = (Outcome::Refused, String::new());
        self.step(Input::Settled(Settled { ticket, guard: GUARD, outcome, detail, remark }));
    }

    fn holds(&self, hold: Hold) -> bool {
        self.core.guard(GUARD).is_some_and(|guard| guard.lease(hold).is_some())
    }
}

/// Orders of freezes, and whether each spares a server of a FUSE file system.
fn spared(actions: &[Action]) -> Vec<bool> {
    let freezes = actions.iter().filter_map(|action| {
        let Action::Contain(wanted) = action else { return None };
        (wanted.response == Response::Freeze).then_some(wanted.spares_fuse)
    });
    freezes.collect()
}

#[test]
fn a_leak_beside_a_fuse_server_is_clamped_and_not_frozen() {
    let mut story = Story::new(&format!("{QUICK}response = \"freeze\"\n"));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(spared(&story.take()), [true]);
    story.spare();
    assert!(!story.holds(Hold::Freeze));
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)], "at once");
    story.settle(Response::Clamp, Outcome::Done);
    assert!(story.holds(Hold::Clamp));
    story.wait(3600);
    assert_eq!(story.contained(), [], "the clamp lasts while the leak does");
    assert!(story.holds(Hold::Clamp));
    // An operator knows what waits, and is told.
    let lease = Duration::from_secs(60);
    story.operator(OperatorRequest::Freeze { lease, dry_run: false, despite: None });
    assert_eq!(spared(&story.take()), [false]);
}

#[test]
fn a_leak_beside_a_fuse_server_is_frozen_if_it_cannot_be_clamped() {
    let clamp_for_freeze = || {
        let mut story = Story::new(&format!("{QUICK}response = \"freeze\"\n"));
        for _ in 0..3 {
            story.server("a");
        }
        story.wait(3);
        story.take();
        story.spare();
        assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
        story
    };
    for (outcome, seconds) in
        [(Outcome::Failed, 2), (Outcome::Refused, 62), (Outcome::NotOurs, 602)]
    {
        let mut story = clamp_for_freeze();
        story.settle(Response::Clamp, outcome);
        story.wait(seconds);
        assert_eq!(spared(&story.take()), [false], "{outcome:?}");
    }
    // It does not last: somebody writes over it.
    let mut story = clamp_for_freeze();
    story.settle(Response::Clamp, Outcome::Done);
    story.step(Input::Unclamped { guard: GUARD, found: Limit::Max });
    story.wait(62);
    assert_eq!(spared(&story.take()), [false]);
}

#[test]
fn a_failing_clamp_does_not_delay_a_freeze() {
    let mut story = Story::new(QUICK);
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
    story.settle(Response::Clamp, Outcome::Failed);
    for child in 0..400 {
        let born = story.now;
        story.step(Input::Fork { guard: GUARD, born, child: Pid(1000 + child), parent: Pid(1) });
    }
    story.wait(12);
    assert_eq!(story.contained(), [(Detector::Emergency, Response::Freeze)]);
}

/// They share the identity `(other)` but are different packages, so ten of them are no duplicates.
#[test]
fn packages_beyond_the_bound_are_warned_about_but_not_acted_on() {
    let mut story = Story::new("[detect.emergency]\nwarn = 9000\nact = 9000\n");
    for package in 0..1024 + 30 {
        story.server(&format!("p{package}"));
    }
    story.wait(120);
    let warned = |effect: &Action| matches!(effect, Action::Warn { cause, .. } if cause.identity.as_deref() == Some("(other)"));
    assert!(story.orders.iter().any(warned), "{:?}", story.orders);
    assert_eq!(story.contained(), []);
}

#[test]
fn the_core_refuses_to_act_on_a_bystander() {
    let mut story = Story::refused(QUICK, Some(Refusal::RootCgroup));
    for _ in 0..3 {
        story.server("a");
    }
    story.operator(OperatorRequest::Kill { dry_run: false, despite: None });
    story.wait(3);
    let effects = story.take();
    let refusals = effects.iter().filter(|effect| matches!(effect, Action::Refuse { .. })).count();
    assert_eq!(refusals, 2, "the operator's and the detector's: {effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Action::Contain(_))));
}

#[test]
fn an_operator_gives_up_the_engine_that_the_refusal_names_and_no_other() {
    let (pid, start_ticks) = (Pid(7), Ticks(70));
    let refusals = [
        (Refusal::HoldsEngine { pid, name: "conmon".to_owned() }, true),
        (Refusal::HoldsEngine { pid: Pid(8), name: "conmon".to_owned() }, false),
        (Refusal::HoldsGuest { unit: "machine-a.scope".to_owned(), pid }, true),
        (Refusal::HoldsPid1, false),
    ];
    for (refusal, is_given_up) in refusals {
        let mut story = Story::refused(QUICK, Some(refusal));
        let despite = Some(Despite { pid, start_ticks });
        story.operator(OperatorRequest::Kill { dry_run: false, despite });
        let ordered = story.take();
        let passed_on = |action: &Action| matches!(action, Action::Contain(wanted) if wanted.despite == despite);
        assert_eq!(ordered.iter().any(passed_on), is_given_up, "{ordered:?}");
    }
}

/// A dry run of an operator changes nothing, however long its check takes.
#[test]
fn a_dry_run_that_is_under_way_neither_answers_nor_delays_a_detector() {
    for response in [Response::Freeze, Response::Clamp, Response::Kill] {
        let mut story = Story::new(&format!("{QUICK}response = \"{response}\"\n"));
        let lease = Duration::from_secs(60);
        story.operator(OperatorRequest::Freeze { lease, dry_run: true, despite: None });
        story.operator(OperatorRequest::Kill { dry_run: true, despite: None });
        story.take();
        for _ in 0..3 {
            story.server("a");
        }
        story.wait(3);
        assert_eq!(story.contained(), [(Detector::Duplicates, response)]);
    }
}

/// A container chooses the names of its packages, and each order has the whole cgroup checked.
#[test]
fn an_order_that_is_under_way_delays_those_of_other_packages() {
    for response in [Response::Clamp, Response::Kill] {
        let mut story = Story::new(&format!("{QUICK}response = \"{response}\"\n"));
        for package in ["a", "a", "a", "b", "b", "b"] {
            story.server(package);
        }
        story.wait(3);
        let asked = [(Detector::Duplicates, response)];
        assert_eq!(story.contained(), asked, "one at a time");
        story.wait(5);
        assert_eq!(story.contained(), []);
        story.settle(response, Outcome::Failed);
        story.wait(61);
        assert_eq!(story.contained(), asked, "one again, after the cool-down");
    }
}

#[test]
fn a_refused_response_is_decided_again_when_the_refusal_ends() {
    let mut story = Story::refused(QUICK, Some(Refusal::HoldsPid1));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), []);
    story.step(Input::Standing { guard: GUARD, refusal: None, asked: true });
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Clamp)]);
}

#[test]
fn a_refusal_is_recorded_when_it_begins_and_when_its_reason_was_silent_for_a_while() {
    let mut story = Story::new(QUICK);
    let check = |story: &mut Story, found: bool, asked: bool| {
        let refusal = found.then_some(Refusal::HoldsPid1);
        story.step(Input::Standing { guard: GUARD, refusal, asked });
        let is_record =
            |action: &Action| matches!(action, Action::RefusalBegins { .. } | Action::RefusalEnds);
        story.take().into_iter().filter(is_record).collect::<Vec<_>>()
    };
    assert_eq!(check(&mut story, false, false), []);
    let begins = [Action::RefusalBegins { refusal: Refusal::HoldsPid1 }];
    assert_eq!(check(&mut story, true, false), begins);
    for seconds in [9, 5, 9] {
        story.wait(seconds);
        assert_eq!(check(&mut story, false, false), [], "silent for {seconds} s only");
        assert_eq!(check(&mut story, true, false), []);
    }
    story.wait(10);
    assert_eq!(check(&mut story, false, false), [Action::RefusalEnds]);
    assert_eq!(check(&mut story, true, false), begins);
    assert_eq!(check(&mut story, false, true), [Action::RefusalEnds], "an operator waits");
}

#[test]
fn a_clamp_leaves_room_for_each_servers_thread_pool() {
    let mut story = Story::new(QUICK);
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    let headroom = story.take().into_iter().find_map(|effect| {
        let Action::Contain(done) = effect else { return None };
        Some(done.headroom)
    });
    assert_eq!(headroom, Some(20 + 3 * 4));
}

#[test]
fn lost_records_cause_one_rescan_of_their_guard() {
    let mut story = Story::new("");
    let totals = Totals { dropped: 4, ..Totals::default() };
    story.step(Input::Totals { guard: GUARD, totals });
    assert_eq!(std::mem::take(&mut story.others), [Effect::Rescan { guard: GUARD }]);
    story.step(Input::Totals { guard: GUARD, totals });
    assert_eq!(story.others, [], "once per loss");
}

#[test]
fn arrivals_and_departures_are_distinguished_from_moves_inside() {
    let mut story = Story::new("");
    let born = story.now;
    story.step(Input::Attach { guard: Some(GUARD), born, pid: Pid(7), seen: None });
    story.step(Input::Attach { guard: Some(GUARD), born, pid: Pid(7), seen: None });
    story.step(Input::Attach { guard: None, born, pid: Pid(8), seen: None });
    let totals = story.core.status(story.now)[0].totals;
    assert_eq!((totals.arrivals, totals.departures), (1, 0));
    story.step(Input::Attach { guard: None, born, pid: Pid(7), seen: None });
    let status = &story.core.status(story.now)[0];
    assert_eq!((status.totals.departures, status.processes), (1, 0));
}

#[test]
fn a_process_that_leaves_for_a_cgroup_without_a_guard_is_logged_but_not_each_time() {
    let mut story = Story::new("");
    let born = story.now;
    for pid in 7..100 {
        story.step(Input::Attach { guard: Some(GUARD), born, pid: Pid(pid), seen: None });
        story.step(Input::Attach { guard: None, born, pid: Pid(pid), seen: None });
    }
    let logged = std::mem::take(&mut story.others);
    let [Effect::Log { guard: GUARD, message }] = &logged[..] else { panic!("{logged:?}") };
    assert!(message.contains("process 7 was moved"), "{message}");
    story.now = story.now.after(Duration::from_secs(600));
    story.step(Input::Attach { guard: Some(GUARD), born, pid: Pid(7), seen: None });
    story.step(Input::Attach { guard: None, born, pid: Pid(7), seen: None });
    let logged = std::mem::take(&mut story.others);
    let [Effect::Log { message, .. }] = &logged[..] else { panic!("{logged:?}") };
    assert!(message.contains("; 94 were"), "{message}");
}

#[test]
fn a_server_that_is_moved_in_is_counted() {
    let mut story = Story::new("");
    let seen = Observed {
        pid: Pid(7),
        start_ticks: Ticks(0),
        parent: Pid(1),
        command: b"npm exec figma-mcp".to_vec().into(),
    };
    story.step(Input::Attach { guard: Some(GUARD), born: Time(5), pid: Pid(7), seen: Some(seen) });
    assert_eq!(story.core.status(story.now)[0].identities["figma-mcp"].live, 1);
    let reused = Observed {
        pid: Pid(8),
        start_ticks: Ticks(3),
        parent: Pid(1),
        command: b"npm exec figma-mcp".to_vec().into(),
    };
    story.step(Input::Attach {
        guard: Some(GUARD),
        born: Time(5),
        pid: Pid(8),
        seen: Some(reused),
    });
    let live = story.core.status(story.now)[0].identities["figma-mcp"].live;
    assert_eq!(live, 1, "/proc described another process with that pid");
}

fn guarded_by_policy(policy: &str) -> Story {
    let mut story = Story::new(policy);
    let workload = Workload { name: "gateway".to_owned(), ..Workload::default() };
    let terms = story.core.policy().terms(&workload).expect("guarded");
    let (name, workload, refusal) = ("gateway".to_owned(), Some(Box::new(workload)), None);
    story.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
    story
}

#[test]
fn a_new_policy_applies_to_every_guard_at_once() {
    let mut story = guarded_by_policy(&format!("mode = \"observe\"\n{QUICK}"));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    story.settle(Response::Clamp, Outcome::WouldDo);
    story.take();
    story.wait(5);
    assert_eq!(story.contained(), [], "once an episode");
    let enforce = Policy::parse(&format!("mode = \"enforce\"\n{QUICK}")).expect("valid");
    story.step(Input::Policy(Box::new(enforce)));
    let [Action::Contain(clamp)] = &story.take()[..] else { panic!("a clamp") };
    assert_eq!((clamp.mode, clamp.headroom), (Mode::Enforce, 20 + 3 * 4));
    assert_eq!(story.core.status(story.now)[0].mode, Mode::Enforce);
}

#[test]
fn a_hold_stays_under_a_new_policy_that_still_names_its_guard() {
    let mut story = guarded_by_policy(&format!("mode = \"enforce\"\n{QUICK}"));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    story.settle(Response::Clamp, Outcome::Done);
    story.take();
    let other = format!("mode = \"enforce\"\n{QUICK}[respond]\nclamp_headroom = 50\n");
    story.step(Input::Policy(Box::new(Policy::parse(&other).expect("valid"))));
    assert_eq!((story.take(), story.state().as_str()), (vec![], "clamped"));
}

#[test]
fn a_guard_that_a_new_policy_does_not_name_is_released() {
    let mut story = guarded_by_policy(&format!("mode = \"enforce\"\n{QUICK}"));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    story.settle(Response::Clamp, Outcome::Done);
    story.take();
    story.others.clear();
    let other = Policy::parse("[[guard]]\nname = \"another\"\n").expect("valid");
    story.step(Input::Policy(Box::new(other)));
    let release = Action::Release { hold: Hold::Clamp, end: End::Unguarded };
    assert_eq!(story.take(), [release]);
    assert_eq!(story.others, [], "not before the clamp is removed");
    let ticket = story.last.expect("ordered");
    story.step(Input::Settled(settled(ticket, Outcome::Done)));
    assert_eq!(story.others, [Effect::Unguard { guard: GUARD }]);
}

/// Returns for whom a clamp is, and its lease.
fn clamp_of(action: Action) -> Option<(Option<String>, Duration)> {
    if let Action::Contain(contain) = action {
        return Some((contain.cause.identity, contain.lease));
    }
    None
}

/// Terms for one identity apply to its servers only, and an ignored one is never counted.
#[test]
fn terms_for_an_identity_apply_to_its_servers_only() {
    let mut story = guarded_by_policy(&format!(
        "mode = \"enforce\"\n{QUICK}[server.b.detect.duplicates]\nact = 5\n[server.c]\nignore = true\n\
         [server.a.respond]\nclamp_lease = \"7s\"\n"
    ));
    for name in ["b", "c"] {
        for _ in 0..4 {
            story.server(name);
        }
    }
    story.wait(5);
    assert_eq!(story.contained(), [], "four of b are no leak, and c is not counted");
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    let clamps: Vec<_> = story.take().into_iter().filter_map(clamp_of).collect();
    assert_eq!(clamps, [(Some("a".to_owned()), Duration::from_secs(7))]);
}

/// A policy that is read again and says the same about a guard is no reason to act again.
#[test]
fn a_policy_that_says_the_same_repeats_nothing() {
    let policy = format!("mode = \"observe\"\n{QUICK}");
    let mut story = guarded_by_policy(&policy);
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    story.settle(Response::Clamp, Outcome::WouldDo);
    story.take();
    let more = format!("{policy}[[guard]]\nname = \"other\"\n[[guard]]\nname = \"*\"\n");
    for text in [&policy, &more, &policy] {
        story.step(Input::Policy(Box::new(Policy::parse(text).expect("valid"))));
        story.wait(3);
        assert_eq!(story.contained(), [], "{text}");
    }
}

/// Each entry for another server is a change for every guard. Three times is still the most.
#[test]
fn entries_for_another_server_do_not_let_a_detector_act_more_often() {
    let policy = format!("mode = \"observe\"\n{QUICK}[respond]\ncool_down = \"1s\"\n");
    let mut story = guarded_by_policy(&policy);
    for _ in 0..3 {
        story.server("a");
    }
    let mut acted = 0;
    for at in 0..6 {
        story.wait(3);
        let ordered = story.contained().len();
        if ordered > 0 {
            story.settle(Response::Clamp, Outcome::WouldDo);
            story.take();
        }
        acted += ordered;
        let text = format!("{policy}[server.x{at}]\nignore = true\n");
        story.step(Input::Policy(Box::new(Policy::parse(&text).expect("valid"))));
    }
    assert_eq!(acted, 3);
}

/// The cool-down after a freeze is that of the server that was the reason.
#[test]
fn a_freeze_is_followed_by_the_cool_down_of_its_server() {
    let mut story = guarded_by_policy(&format!(
        "mode = \"enforce\"\n{QUICK}response = \"freeze\"\n[respond]\n\
         freeze_lease = \"2s\"\ncool_down = \"5s\"\n[server.a.respond]\ncool_down = \"10m\"\n\
         [[guard]]\nname = \"*\"\nhighest = \"freeze\"\n"
    ));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(2);
    assert_eq!(story.contained(), [(Detector::Duplicates, Response::Freeze)]);
    story.settle(Response::Freeze, Outcome::Done);
    story.take();
    story.wait(60);
    assert_eq!(story.contained(), [], "ten minutes have not passed");
}

/// Its engine describes a guard that was found by its path.
#[test]
fn a_guard_takes_the_rule_that_matches_its_new_description() {
    let policy = "[[guard]]\nname = \"renamed\"\nmode = \"enforce\"\n[[guard]]\nname = \"*\"\n";
    let mut story = guarded_by_policy(policy);
    assert_eq!(story.core.status(story.now)[0].mode, Mode::Observe);
    let workload = Box::new(Workload { name: "renamed".to_owned(), ..Workload::default() });
    story.step(Input::Described { guard: GUARD, name: "renamed".to_owned(), workload });
    let status = &story.core.status(story.now)[0];
    assert_eq!((status.mode, status.name.as_str()), (Mode::Enforce, "renamed"));
}

/// The kernel may confirm a freeze long after it is written.
#[test]
fn a_freeze_under_way_is_thawed_before_its_guard_is_released() {
    let mut story = guarded_by_policy("mode = \"enforce\"\n");
    story.operator(OperatorRequest::Freeze {
        lease: Duration::from_secs(300),
        dry_run: false,
        despite: None,
    });
    story.take();
    let other = Policy::parse("[[guard]]\nname = \"another\"\n").expect("valid");
    story.step(Input::Policy(Box::new(other)));
    let release = Action::Release { hold: Hold::Freeze, end: End::Unguarded };
    assert_eq!((story.take(), story.others.len()), (vec![release], 0));
    story.settle(Response::Freeze, Outcome::NotNeeded);
    let ticket = story.last.expect("ordered");
    story.step(Input::Settled(settled(ticket, Outcome::Failed)));
    assert_eq!(story.others, [], "the release is retried when the lease has ended");
    story.now = story.now.after(Duration::from_secs(10));
    story.step(Input::Overdue { guard: GUARD, hold: Hold::Freeze });
    let ticket = story.last.expect("ordered");
    story.step(Input::Settled(settled(ticket, Outcome::Done)));
    assert_eq!(story.others, [Effect::Unguard { guard: GUARD }]);
}

fn settled(ticket: Ticket, outcome: Outcome) -> Settled {
    Settled { ticket, guard: GUARD, outcome, detail: String::new(), remark: None }
}

#[test]
fn a_failed_release_is_retried_after_ten_seconds() {
    let mut story = Story::new("");
    let overdue = |story: &mut Story| {
        story.step(Input::Overdue { guard: GUARD, hold: Hold::Freeze });
        !story.take().is_empty()
    };
    let mut effects = Vec::new();
    let input = Input::Overdue { guard: GUARD, hold: Hold::Freeze };
    story.core.step(story.now, input, &mut effects);
    let [Effect::Act(Order { ticket, action: Action::Release { .. }, .. })] = &effects[..] else {
        panic!("{effects:?}")
    };
    let (outcome, detail) = (Outcome::Failed, String::new());
    let settled = Settled { ticket: *ticket, guard: GUARD, outcome, detail, remark: None };
    story.step(Input::Settled(settled));
    assert!(!overdue(&mut story));
    story.now = story.now.after(Duration::from_secs(10));
    assert!(overdue(&mut story));
}

#[test]
fn a_herd_of_containers_is_told_although_none_is_guarded() {
    let mut story = Story::new("");
    let ended = |number: u32| EndedStdin {
        container: InteractiveContainer {
            id: number.to_string(),
            name: format!("server-{number}"),
            image: "mcp/time".to_owned(),
            ..InteractiveContainer::default()
        },
        client: ClientIs::NotTold,
    };
    let look = || ClientsLook {
        engine: "/run/docker.sock".to_owned(),
        ended: (0..4).map(ended).collect(),
        connections: Connections { living: 1, dead: 3 },
    };
    story.step(Input::Clients(look()));
    story.wait(60);
    story.step(Input::Clients(look()));
    let [Effect::WarnOfHerd(herd)] = &story.others[..] else { panic!("{:?}", story.others) };
    assert_eq!((herd.abandoned, herd.ended, herd.containers.len()), (3, 4, 4));
    assert_eq!(story.core.herds(story.now).count(), 1);
}
