use super::*;
use crate::{
    id::Pid,
    policy::Response,
    registry::{Registry, STEPS},
    server::{CommandLine, Grammar},
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600;

/// A registry in which time passes second by second.
struct Story {
    registry: Registry,
    grammar: Grammar,
    next: u32,
    warned: Option<usize>,
    acted: Option<usize>,
    warnings: usize,
    is_warning: bool,
}

impl Story {
    fn new() -> Self {
        let (registry, grammar) = (Registry::default(), Grammar::default());
        let (warned, acted, warnings, is_warning) = (None, None, 0, false);
        Self { registry, grammar, next: 1, warned, acted, warnings, is_warning }
    }

    fn start(&mut self, second: u64) -> Pid {
        let (now, pid) = (Time(second * SECOND), Pid(self.next));
        self.next += 1;
        let command = CommandLine::from(b"node\0/srv/server.js\0".to_vec());
        self.registry.exec(now, now, pid, &command, &self.grammar);
        pid
    }

    fn look(&mut self, second: u64) {
        let Some(identity) = self.registry.identity("/srv/server.js") else {
            self.is_warning = false;
            return;
        };
        let now = Time(second * SECOND);
        let found = look(now, "/srv/server.js", identity, &Growth::default(), None);
        let live = identity.live();
        if found.is_some() && !self.is_warning {
            self.warnings += 1;
            self.warned.get_or_insert(live);
        }
        self.is_warning = found.is_some();
        if found.is_some_and(|found| found.act == Some(Response::Clamp)) {
            self.acted.get_or_insert(live);
        }
    }
}

/// How many servers live when it first warns and first acts, if one starts every so many seconds and none ends.
fn leak(every: u64) -> (Option<usize>, Option<usize>) {
    let mut story = Story::new();
    for number in 1..=120 {
        story.start(number * every);
        story.look(number * every);
    }
    (story.warned, story.acted)
}

#[test]
fn a_leak_is_found_at_every_pace() {
    for every in [20, 60, 180, 600, 2 * HOUR] {
        let (warned, acted) = leak(every);
        assert!(warned.is_some_and(|at| at <= 31), "one in {every} s: {warned:?}");
        assert!(acted.is_some_and(|at| at <= 65), "one in {every} s: {acted:?}");
    }
    assert_eq!(leak(4 * HOUR), (Some(15), None), "six a day");
}

#[test]
fn a_leak_in_bursts_is_found() {
    let mut story = Story::new();
    for burst in 1..=20 {
        for _ in 0..10 {
            story.start(burst * HOUR);
        }
        story.look(burst * HOUR);
    }
    assert!(story.warned.is_some_and(|at| at <= 60), "{:?}", story.warned);
    assert!(story.acted.is_some_and(|at| at <= 90), "{:?}", story.acted);
}

#[test]
fn a_pool_that_stays_is_no_growth() {
    let mut story = Story::new();
    for second in 0..12 * HOUR {
        // A hundred workers within three minutes.
        if second < 200 && second.is_multiple_of(2) {
            story.start(second);
        }
        if second.is_multiple_of(7) {
            story.look(second);
        }
    }
    assert_eq!((story.warned, story.acted), (None, None));
}

#[test]
fn servers_that_replace_each_other_are_no_growth_also_after_a_restart() {
    for began in [0, 3 * HOUR] {
        let mut story = Story::new();
        let mut live = std::collections::VecDeque::new();
        for minute in 0..12 * 60 {
            let second = minute * 60;
            let pid = story.start(second);
            live.push_back(pid);
            if live.len() > 90
                && let Some(old) = live.pop_front()
            {
                story.registry.exit(old);
            }
            if second == began && began > 0 {
                // The agent knows nothing of the ends before.
                let mut registry = Registry::default();
                let seen = live.iter().zip(0..).map(|(pid, at)| crate::registry::Observed {
                    pid: *pid,
                    start_ticks: crate::registry::ticks(Time((second - 60 * (89 - at)) * SECOND)),
                    parent: Pid(0),
                    command: b"node\0/srv/server.js\0".to_vec().into(),
                });
                registry.reconcile(Time(second * SECOND), seen.collect(), &story.grammar);
                story.registry = registry;
            }
            // The pool begins like a leak, and is warned about as one.
            if minute > 180 {
                story.look(second);
            }
        }
        assert_eq!(story.acted, None);
        assert_eq!(story.warned, None);
    }
}

#[test]
fn a_restart_of_the_agent_does_not_hide_a_leak() {
    let mut story = Story::new();
    let seen = (1..=50_u64).map(|number| crate::registry::Observed {
        pid: Pid(number as u32),
        start_ticks: crate::registry::ticks(Time(number * 60 * SECOND)),
        parent: Pid(0),
        command: b"node\0/srv/server.js\0".to_vec().into(),
    });
    story.registry.reconcile(Time(50 * 60 * SECOND), seen.collect(), &story.grammar);
    story.next = 100;
    for number in 51..100 {
        story.start(number * 60);
        story.look(number * 60);
    }
    assert!(story.acted.is_some_and(|at| at <= 65), "{:?}", story.acted);
}

#[test]
fn load_that_comes_and_goes_is_told_once() {
    let mut story = Story::new();
    let mut live = Vec::new();
    for minute in 0..5 * 24 * 60 {
        let hour = minute / 60 % 24;
        if minute % 10 == 0 {
            if (6..12).contains(&hour) {
                live.push(story.start(minute * 60));
            } else if (16..23).contains(&hour)
                && let Some(pid) = live.pop()
            {
                story.registry.exit(pid);
            }
        }
        story.look(minute * 60);
    }
    assert_eq!(story.acted, None, "36 workers");
    assert!(story.warnings <= 1, "{} warnings", story.warnings);
}

/// It had many sessions once, and weeks later begins to leak.
#[test]
fn a_service_that_was_once_large_does_not_hide_a_leak_for_ever() {
    let mut story = Story::new();
    let all: Vec<Pid> = (0..200).map(|_| story.start(0)).collect();
    all[..190].iter().for_each(|pid| drop(story.registry.exit(*pid)));
    let peaks = |story: &Story| {
        let identity = story.registry.identity("/srv/server.js").expect("it lives");
        (identity.live_peak, identity.peak())
    };
    // One a day comes and goes.
    for day in 1..=16 {
        let pid = story.start(day * 24 * HOUR);
        story.look(day * 24 * HOUR);
        assert_eq!(peaks(&story), (200, if day <= 14 { 200 } else { 11 }), "{day}");
        story.registry.exit(pid);
    }
    let leaks = 16 * 24 * HOUR;
    for number in 1..=100 {
        story.start(leaks + number * 600);
        story.look(leaks + number * 600);
    }
    assert!(story.warned.is_some_and(|at| at <= 31), "{:?}", story.warned);
    assert!(story.acted.is_some_and(|at| at <= 90), "{:?}", story.acted);
}

/// It begins while the large number is remembered.
#[test]
fn a_leak_is_seen_from_its_beginning_when_a_peak_is_forgotten() {
    let mut story = Story::new();
    let all: Vec<Pid> = (0..200).map(|_| story.start(0)).collect();
    all[..190].iter().for_each(|pid| drop(story.registry.exit(*pid)));
    for number in 0..15 * 8 {
        let second = 24 * HOUR + number * 3 * HOUR;
        story.start(second);
        story.look(second);
    }
    assert_eq!(story.warned, Some(10 + 14 * 8 + 1), "at the end of the fourteenth day");
    assert_eq!(story.acted, None, "8 a day");
}

#[test]
fn servers_that_share_a_name_for_want_of_room_are_not_acted_on() {
    let mut story = Story::new();
    for number in 1..=100 {
        story.start(number * 60);
    }
    let identity = story.registry.identity("/srv/server.js").expect("it lives");
    let now = Time(100 * 60 * SECOND);
    let found = look(now, OTHER_IDENTITIES, identity, &Growth::default(), None);
    assert_eq!(found.map(|found| found.act), Some(None));
}

/// The steps of a look beside so many servers that started at once, while some come and go.
fn steps(servers: u64) -> u64 {
    let mut story = Story::new();
    for _ in 0..servers {
        story.start(0);
    }
    let comes_and_goes = (0..100).map(|at| {
        let second = HOUR + at;
        let pid = story.start(second);
        let before = STEPS.get();
        story.look(second);
        story.registry.exit(pid);
        STEPS.get() - before
    });
    comes_and_goes.max().unwrap_or_default()
}

#[test]
fn a_look_takes_hardly_more_steps_beside_many_servers() {
    let (few, many) = (steps(100), steps(20_000));
    assert!(many <= 3 * few && many <= 400, "{many} steps, and {few} beside 100 servers");
}
