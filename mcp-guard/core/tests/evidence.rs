//! The looks at single servers change which ones count as duplicates, and which ones are reported.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test fails at each effect that it does not expect"
)]

use std::time::Duration;

use mcp_guard_common::Totals;
use mcp_guard_core::{
    Core, Time,
    effect::{Action, Effect, Input},
    evidence::{Activity, Contact, ServerSeen},
    id::{GuardId, Pid},
    incident::Detector,
    policy::{Mode, Policy, Response, Terms},
    registry::{Observed, ticks},
    status::ServerStatus,
};

const GUARD: GuardId = GuardId(3);
/// A little later than they are due, as on a real host.
const EVERY: u64 = 31;

/// A guard whose servers are looked at again and again.
struct Story {
    core: Core,
    seconds: u64,
    warned: Vec<(Detector, u64)>,
    acted: Vec<(Detector, Response)>,
}

impl Story {
    fn new() -> Self {
        let core = Core::new(Policy::default());
        let mut story = Self { core, seconds: 1000, warned: Vec::new(), acted: Vec::new() };
        let terms = Terms::new(Mode::Enforce, Response::Freeze);
        let (name, workload, refusal) = ("story".to_owned(), None, None);
        story.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal });
        story
    }

    /// Starts servers of one package, so slowly that it is no burst.
    fn start(&mut self, count: u32, look: impl Fn(usize, u64) -> ServerSeen) {
        self.start_each(7, count, b"npx\0-y\0figma-mcp\0", look);
    }

    /// Starts a server each time these seconds have passed.
    fn start_each(
        &mut self,
        seconds: u64,
        count: u32,
        command: &[u8],
        look: impl Fn(usize, u64) -> ServerSeen,
    ) {
        for server in 0..count {
            self.start_one(server, command);
            self.wait(seconds, &look);
        }
    }

    fn start_one(&mut self, server: u32, command: &[u8]) {
        let (now, pid) = (self.now(), Pid(100 + server));
        self.step(Input::Fork { guard: GUARD, born: now, child: pid, parent: Pid(1) });
        let command = command.to_vec().into();
        self.step(Input::Exec { guard: GUARD, born: now, pid, command });
    }

    fn live(&self) -> usize {
        self.core.guard(GUARD).expect("it is guarded").registry.servers().count()
    }

    fn now(&self) -> Time {
        Time(self.seconds * 1_000_000_000)
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now(), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Act(order) => match order.action {
                    Action::Warn { cause } => {
                        self.warned.extend(cause.detector.map(|one| (one, self.seconds)));
                    }
                    Action::Contain(wanted) => {
                        let by = wanted.cause.detector;
                        self.acted.extend(by.map(|by| (by, wanted.response)));
                    }
                    other => panic!("{other:?}"),
                },
                Effect::ReadStdio { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Time passes. `look` says what is seen of the server with this number, at this second.
    fn wait(&mut self, seconds: u64, look: impl Fn(usize, u64) -> ServerSeen) {
        for _ in 0..seconds {
            self.seconds += 1;
            if self.seconds.is_multiple_of(EVERY) {
                let registry = &self.core.guard(GUARD).expect("it is guarded").registry;
                let age = Duration::from_secs(30);
                let servers = registry.to_look_at(self.now(), age).into_iter().enumerate();
                let servers = servers.map(|(at, one)| (one.server, look(at, self.seconds)));
                let servers = servers.map(|(server, seen)| (server, self.now(), seen));
                let servers: Vec<_> = servers.collect();
                // As the agent does.
                if !servers.is_empty() {
                    self.step(Input::Looked { guard: GUARD, servers });
                }
            }
            self.step(Input::Totals { guard: GUARD, totals: Totals::default() });
            self.step(Input::Tick);
        }
    }

    /// Time passes, and nobody looks.
    fn wait_unseen(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.seconds += 1;
            self.step(Input::Totals { guard: GUARD, totals: Totals::default() });
            self.step(Input::Tick);
        }
    }

    fn warnings(&self, by: Detector) -> usize {
        self.warned.iter().filter(|(detector, _)| *detector == by).count()
    }
}

fn seen(cpu: u64, contact: Contact) -> ServerSeen {
    let activity = Some(Activity { cpu, ..Activity::default() });
    ServerSeen { activity, contact, is_busy: Some(false), ..ServerSeen::default() }
}

/// Twelve copies that were in use in each look, until none came.
#[test]
fn copies_in_use_do_not_become_idle_because_nobody_looks() {
    let used = |_, second| seen(second, Contact::Connected);
    let idle = |_, _| seen(7, Contact::Connected);
    let mut story = Story::new();
    story.start(12, used);
    story.wait(60, used);
    story.wait_unseen(600);
    assert_eq!((story.acted.as_slice(), story.warned.as_slice()), (&[][..], &[][..]));
    // Two looks find them idle, the next ones come late again.
    story.wait(2 * EVERY, idle);
    story.wait_unseen(600);
    assert_eq!(story.acted, []);
    story.wait(130, idle);
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
}

/// Their counters cannot be read any more.
#[test]
fn copies_in_use_do_not_become_idle_because_looks_fail() {
    let used = |_, second| seen(second, Contact::Connected);
    let unreadable = |_, _| ServerSeen { activity: None, ..seen(0, Contact::Connected) };
    let mut story = Story::new();
    story.start(12, used);
    story.wait(60, used);
    story.wait(600, unreadable);
    assert_eq!((story.acted.as_slice(), story.warned.as_slice()), (&[][..], &[][..]));
    story.wait(130, |_, _| seen(7, Contact::Connected));
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
    // Nothing was ever known of these.
    let mut story = Story::new();
    story.start(12, unreadable);
    story.wait(130, unreadable);
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
}

const SCRIPT: &[u8] = b"node\0/srv/server.js\0";

/// A stdio server that does nothing. `alone`: whether only its client can give it work.
fn idle_stdio(alone: bool) -> ServerSeen {
    ServerSeen { is_stdio_alone: Some(alone), ..seen(7, Contact::Connected) }
}

/// `node FILE`, `python -m`, a Go binary: one a minute, and each is left alone by its client.
#[test]
fn idle_stdio_servers_that_become_more_are_told_long_before_growth_acts() {
    for command in [SCRIPT, b"python3\0-m\0mcp_server\0", b"/usr/bin/github-mcp-server\0stdio\0"] {
        let (mut story, mut told) = (Story::new(), None);
        while story.acted.is_empty() && story.live() < 80 {
            let next = story.live() as u32;
            story.start_one(next, command);
            story.wait(60, |_, _| idle_stdio(true));
            if told.is_none() && story.warnings(Detector::Duplicates) > 0 {
                told = Some(story.live());
            }
        }
        assert_eq!(story.acted, [(Detector::Growth, Response::Clamp)]);
        assert!(told.is_some_and(|at| (6..=14).contains(&at)), "{told:?}");
        assert_eq!(story.warnings(Detector::Duplicates), 1);
    }
}

/// A gateway has a server for each of its users, who pause. They arrive in a morning, or within weeks.
#[test]
fn idle_servers_of_users_are_left_alone() {
    for (seconds, users) in [(600, 40), (86_400, 30)] {
        let mut story = Story::new();
        let idle = |_, _| idle_stdio(true);
        story.start_each(seconds, users, SCRIPT, idle);
        story.wait(3600, idle);
        assert_eq!(story.acted, []);
        assert!(story.warnings(Detector::Duplicates) <= 1, "{:?}", story.warned);
    }
}

/// Most of the servers that became more are in use.
#[test]
fn a_few_idle_servers_of_many_in_use_are_not_told() {
    let mut story = Story::new();
    let look = |at, now| match at {
        0..6 => idle_stdio(true),
        _ => seen(now, Contact::Connected),
    };
    story.start_each(60, 40, SCRIPT, look);
    // While they are half of all, they are told. That ends.
    let findings = |story: &Story| {
        story.core.guard(GUARD).expect("it is guarded").findings().collect::<Vec<_>>()
    };
    assert!(!findings(&story).contains(&Detector::Duplicates), "{:?}", findings(&story));
}

/// The package is also started by a launcher once, and installed.
#[test]
fn one_start_by_a_launcher_does_not_hide_the_other_copies() {
    let mut story = Story::new();
    let idle = |_, _| idle_stdio(true);
    story.start_one(0, b"npx\0-y\0k8s-mcp\0");
    story.wait(60, idle);
    for server in 1..30 {
        story.start_one(server, b"node\0/srv/node_modules/.bin/k8s-mcp\0");
        story.wait(60, idle);
    }
    let names: Vec<_> = {
        let guard = story.core.guard(GUARD).expect("it is guarded");
        guard.registry.identities().map(|(name, one)| (name.to_owned(), one.live())).collect()
    };
    assert_eq!(names, [("k8s-mcp".to_owned(), 30)]);
    let told = story.warned.iter().find(|(by, _)| *by == Detector::Duplicates);
    // Not by their number alone, of which D tells from 30 on.
    assert!(told.is_some_and(|(_, at)| *at < 1000 + 16 * 60), "{:?}", story.warned);
}

/// The servers that G alone acts upon, at 60 more.
#[test]
fn programs_that_may_be_no_stdio_servers_are_not_counted_as_duplicates() {
    type Case = (&'static str, fn(u64) -> ServerSeen);
    let cases: [Case; 5] = [
        ("consumers of a queue", |_| idle_stdio(false)),
        ("servers in use", |now| ServerSeen {
            is_stdio_alone: None,
            ..seen(now, Contact::Connected)
        }),
        ("workers without stdio", |_| seen(7, Contact::NoStdio)),
        ("jobs that got all of their input", |_| seen(7, Contact::Closing)),
        ("programs that cannot be read", |_| ServerSeen::default()),
    ];
    for (what, look) in cases {
        let mut story = Story::new();
        story.start_each(60, 40, SCRIPT, |_, now| look(now));
        story.wait(3600, |_, now| look(now));
        assert_eq!((story.warnings(Detector::Duplicates), story.acted.len()), (0, 0), "{what}");
    }
}

/// As in a guard in which all looks hang from now on.
#[test]
fn an_old_look_does_not_prove_that_a_program_is_an_idle_stdio_server() {
    let mut story = Story::new();
    story.start_each(60, 9, SCRIPT, |_, _| idle_stdio(true));
    let findings = |story: &Story| {
        story.core.guard(GUARD).expect("it is guarded").findings().collect::<Vec<_>>()
    };
    assert_eq!(findings(&story), []);
    for server in 9..14 {
        story.start_one(server, SCRIPT);
        story.wait(60, |_, _| idle_stdio(true));
    }
    assert_eq!(findings(&story), [Detector::Duplicates]);
    // Nothing starts or ends, and the proofs grow old.
    for _ in 0..200 {
        story.seconds += 1;
        story.step(Input::Tick);
    }
    assert_eq!(story.warnings(Detector::Duplicates), 1);
    story.wait(60, |_, _| idle_stdio(true));
    assert_eq!(story.warnings(Detector::Duplicates), 2, "it is a new episode");
}

/// 32 workers that are idle stdio servers, of which one is replaced each hour.
#[test]
fn an_idle_pool_is_left_alone() {
    let mut story = Story::new();
    let idle = |_, _| idle_stdio(true);
    story.start_each(1, 32, SCRIPT, idle);
    for hour in 0..48 {
        story.wait(3600, idle);
        story.step(Input::Exit { guard: GUARD, pid: Pid(100 + hour), code: 0 });
        story.start_one(32 + hour, SCRIPT);
    }
    assert_eq!((story.warned.len(), story.acted.len()), (0, 0), "{:?}", story.warned);
}

#[test]
fn forty_servers_in_use_are_told_and_left_alone() {
    let mut story = Story::new();
    let used = |_, now| seen(now, Contact::Connected);
    story.start(40, used);
    story.wait(7200, used);
    assert_eq!((story.warned.len(), story.warnings(Detector::Duplicates)), (1, 1));
    assert_eq!(story.acted, []);
}

#[test]
fn copies_that_nobody_uses_are_acted_upon() {
    // This number of twenty are used.
    for (used, is_leak) in [(20, false), (11, false), (10, true), (0, true)] {
        let look = |at, now| seen(if at < used { now } else { 7 }, Contact::Connected);
        let mut story = Story::new();
        story.start(20, look);
        story.wait(600, look);
        let expected = if is_leak { &[(Detector::Duplicates, Response::Clamp)][..] } else { &[] };
        assert_eq!(story.acted, expected, "{used} of 20");
    }
}

/// A container is paused for a backup, or frozen by hand.
#[test]
fn time_in_which_copies_cannot_run_does_not_count() {
    let (begun, pause) = (1000 + 20 * 7, 3600);
    let look = |_, now| ServerSeen {
        is_stopped: (begun..begun + pause).contains(&now),
        ..seen(7, Contact::Connected)
    };
    let mut story = Story::new();
    story.start(20, look);
    story.wait(pause, look);
    assert_eq!(story.acted, []);
    story.wait(160, look);
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
}

#[test]
fn copies_that_nobody_can_reach_are_not_in_use_because_of_a_timer() {
    for (contact, is_leak) in [(Contact::Disconnected, true), (Contact::Connected, false)] {
        let look = |_, now| seen(now / EVERY, contact);
        let mut story = Story::new();
        story.start(20, look);
        story.wait(600, look);
        let by_duplicates = [(Detector::Duplicates, Response::Clamp)];
        assert_eq!(story.acted == by_duplicates, is_leak, "{contact:?}: {:?}", story.acted);
    }
}

#[test]
fn where_use_is_not_known_age_decides() {
    let mut story = Story::new();
    story.start(10, |_, _| ServerSeen::default());
    story.wait(60, |_, _| ServerSeen::default());
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
}

/// Whether it did something right before the first look is not known.
#[test]
fn a_server_is_not_idle_before_two_looks_have_seen_the_same() {
    let mut story = Story::new();
    let idle = |_, _| seen(7, Contact::Connected);
    story.start(10, idle);
    let (begun, mut seconds) = (story.seconds, 0);
    while story.acted.is_empty() && seconds < 300 {
        story.wait(1, idle);
        seconds = story.seconds - begun;
    }
    // The last one started 22 s before the first look at it, and may be in use until the next one.
    assert_eq!(seconds + 7, 22 + 30 + 60);
}

#[test]
fn a_server_that_nobody_can_reach_is_told_once() {
    let mut story = Story::new();
    let [left, reached] =
        [Contact::Disconnected, Contact::Connected].map(|contact| move |_, _| seen(7, contact));
    story.start(1, left);
    let began = story.seconds;
    story.wait(3600, left);
    let told: Vec<u64> = story.warned.iter().map(|(_, at)| at - began).collect();
    assert_eq!((story.warnings(Detector::Disconnected), told.len()), (1, 1), "{told:?}");
    // The first look at it comes when it is half a minute old.
    assert!((83..=150).contains(&told[0]), "{told:?}");
    assert_eq!(story.acted, []);
    story.wait(120, reached);
    story.wait(300, left);
    assert_eq!(story.warnings(Detector::Disconnected), 2, "it is a new episode");
}

#[test]
fn a_server_that_is_gone_is_not_told_any_more() {
    let left = |_, now| seen(now * 90, Contact::Disconnected);
    let mut story = Story::new();
    story.start(1, left);
    story.wait(700, left);
    let findings = |story: &Story| {
        let guard = story.core.guard(GUARD).expect("it is guarded");
        guard.findings().collect::<Vec<_>>()
    };
    assert_eq!(findings(&story), [Detector::Disconnected, Detector::Burning]);
    story.step(Input::Exit { guard: GUARD, pid: Pid(100), code: 0 });
    story.wait(60, left);
    assert_eq!(findings(&story), []);
}

/// The processes of a guard that were there before the agent.
fn found(count: u32, ages: u64) -> Story {
    let mut story = Story::new();
    let born = Time((story.seconds - ages) * 1_000_000_000);
    let seen = |pid| Observed {
        pid: Pid(pid),
        start_ticks: ticks(born),
        parent: Pid(1),
        command: b"npx\0-y\0figma-mcp\0".to_vec().into(),
    };
    let processes = (100..100 + count).map(seen).collect();
    story.step(Input::Baseline { guard: GUARD, processes });
    story
}

#[test]
fn servers_that_were_there_before_the_agent_are_judged_after_a_look() {
    let mut story = found(20, 900);
    let used = |_, now| seen(now, Contact::Connected);
    story.wait(3600, used);
    assert_eq!((story.warnings(Detector::Duplicates), &story.acted[..]), (0, &[][..]));
    let mut idle = found(20, 900);
    idle.wait(200, |_, _| seen(7, Contact::Connected));
    assert_eq!(idle.acted, [(Detector::Duplicates, Response::Clamp)]);
}

/// As in a guard in which all looks hang.
#[test]
fn servers_that_are_never_looked_at_are_judged_by_age() {
    let mut story = found(20, 900);
    let never = |_, _| ServerSeen::default();
    story.wait(30 + 59, never);
    assert_eq!(story.acted, []);
    story.wait(2, never);
    assert_eq!(story.acted, [(Detector::Duplicates, Response::Clamp)]);
}

#[test]
fn status_tells_the_unknown_from_none_and_an_old_look_from_the_present() {
    let mut story = Story::new();
    let status = |story: &Story, later| {
        let now = story.now().after(Duration::from_secs(later));
        let mut guard = story.core.status(now).remove(0);
        let identity = guard.identities.remove("figma-mcp").expect("it lives");
        let listed = story.core.guard(GUARD).expect("it is guarded");
        let every = Duration::from_secs(30);
        let (mut servers, left_out) = ServerStatus::all((now, every), listed, None, 1);
        assert_eq!((servers.len(), left_out), (1, 1));
        assert_eq!(servers.remove(0).look_age_seconds, identity.look_age_seconds);
        identity
    };
    let idle = |_, _| ServerSeen { memory: Some(7), ..seen(7, Contact::Connected) };
    story.start(2, |_, _| ServerSeen::default());
    let new = status(&story, 0);
    assert_eq!((new.used, new.idle, new.disconnected), (None, None, None));
    assert_eq!((new.memory_bytes, new.look_age_seconds), (None, None));
    story.wait(4 * EVERY, idle);
    let known = status(&story, 0);
    assert_eq!((known.used, known.idle, known.disconnected), (Some(0), Some(2), Some(0)));
    assert_eq!((known.memory_bytes, known.look_age_seconds), (Some(14), None));
    let seconds = story.seconds % EVERY;
    assert_eq!(status(&story, 60 - seconds).look_age_seconds, None);
    assert_eq!(status(&story, 61 - seconds).look_age_seconds, Some(61));
    for pid in [100, 101] {
        story.step(Input::Exit { guard: GUARD, pid: Pid(pid), code: 0 });
    }
    let gone = story.core.status(story.now()).remove(0).identities.remove("figma-mcp");
    assert_eq!(gone.map(|one| (one.live, one.used, one.orphaned)), Some((0, Some(0), Some(0))));
}

#[test]
fn a_server_that_burns_a_cpu_for_nobody_is_told() {
    for (contact, warnings) in [(Contact::Disconnected, 1), (Contact::Connected, 0)] {
        let burns = |_, now| seen(now * 90, contact);
        let mut story = Story::new();
        story.start(1, burns);
        story.wait(599, burns);
        assert_eq!((story.warnings(Detector::Burning), story.acted.len()), (warnings, 0));
    }
}
