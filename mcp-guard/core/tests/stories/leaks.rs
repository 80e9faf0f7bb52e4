//! Each leak is warned about before 45 surplus servers, and acted upon before 100.

use mcp_guard_core::incident::Detector;

use crate::trace::{DAY, HOUR, MINUTE, SECOND, Trace, first};

/// One server each `every` seconds for `hours`, by a chain of programs. `{}` stands for its number.
fn leak(every: u64, hours: u64, chain: &[&str]) {
    let mut trace = Trace::new("node /srv/gateway.js");
    for number in 1..=hours * HOUR / every {
        let chain: Vec<String> =
            chain.iter().map(|command| command.replace("{}", &number.to_string())).collect();
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        trace.start(number * every, 1, &chain);
    }
    let report = trace.report();
    let (warned, acted) = first(&report);
    let servers = |second: Option<u64>| second.map(|second| second / every);
    assert!(servers(warned).is_some_and(|many| many < 45), "{chain:?}: warned at {warned:?} s");
    assert!(servers(acted).is_some_and(|many| many < 100), "{chain:?}: acted at {acted:?} s");
}

#[test]
fn one_a_minute_by_every_kind_of_program() {
    leak(MINUTE, 3, &["node /srv/mcp/server.js --port {}"]);
    leak(MINUTE, 3, &["python3 -m mcp_server --session {}"]);
    leak(MINUTE, 3, &["sh -c uv_run_server", "uv run server.py", "python3 /srv/server.py"]);
    leak(MINUTE, 3, &["docker run -i --rm mcp/time"]);
    leak(MINUTE, 3, &["/bin/sh -c node", "node /srv/x/index.js"]);
    leak(MINUTE, 3, &["claude mcp serve"]);
    leak(MINUTE, 3, &["/usr/local/bin/tool run job-{}"]);
    leak(MINUTE, 3, &["bun my-mcp-server.js"]);
    leak(MINUTE, 3, &["pnpm exec gitnexus mcp", "node /srv/gitnexus/dist/cli/index.js mcp"]);
}

#[test]
fn a_binary_in_three_minutes() {
    leak(3 * MINUTE, 8, &["/usr/local/bin/github-mcp-server stdio"]);
}

/// `mcp-remote` with another address each time, and a package that its caller names otherwise.
#[test]
fn one_package_in_many_spellings() {
    let node = "node /c/_npx/0/node_modules/.bin/mcp-remote https://h.example/mcp?session={}";
    leak(MINUTE, 3, &["npx -y mcp-remote https://h.example/mcp?session={}", node]);
    leak(MINUTE, 3, &["figma /usr/bin/npx -y figma-mcp"]);
}

#[test]
fn a_browser_each_five_minutes_below_one_live_server() {
    let mut trace = Trace::new("node /srv/gateway.js");
    let server =
        trace.start(0, 1, &["npx -y @playwright/mcp", "node /c/_npx/0/node_modules/.bin/mcp"]);
    for number in 1..=12 * HOUR / (5 * MINUTE) {
        let second = number * 5 * MINUTE;
        let browser = trace.start(second, server[1], &["/opt/chrome/chrome --headless"]);
        let handler = trace.fork(second, browser[0]);
        trace.exec(second, handler, "/opt/chrome/chrome_crashpad_handler --monitor-self");
        let zygote = trace.fork(second, browser[0]);
        trace.exec(second, zygote, "/opt/chrome/chrome --type=zygote");
        trace.fork(second, zygote);
    }
    let (warned, acted) = first(&trace.report());
    assert!(warned.is_some_and(|at| at < 45 * 5 * MINUTE), "{warned:?}");
    assert!(acted.is_some_and(|at| at < 100 * 5 * MINUTE), "{acted:?}");
}

/// 226 processes that grew to 536 within five hours, as `npx` and as `node FILE`.
#[test]
fn the_incident() {
    let package: &[&str] = &["npm exec figma-mcp", "node /c/_npx/0/node_modules/.bin/figma-mcp"];
    let script: &[&str] = &["sh -c node", "node /srv/figma/index.js"];
    for chain in [package, script] {
        let mut trace = Trace::new("node /srv/gateway.js");
        // 31 servers an hour, of two processes each.
        for number in 1..=268 {
            trace.start(number * 116, 1, chain);
        }
        let (warned, acted) = first(&trace.report());
        assert!(warned.is_some_and(|at| at < 45 * 116), "{chain:?}: {warned:?}");
        assert!(acted.is_some_and(|at| 2 * at / 116 < 150), "{chain:?}: {acted:?}");
    }
}

/// 50 to 2,018 processes within 14 days, of two packages.
#[test]
fn two_weeks() {
    let mut trace = Trace::new("node /srv/metamcp/index.js");
    for number in 1..=1000 {
        let chain: [&[&str]; 2] = [
            &["npm exec x", "node /c/_npx/0/node_modules/.bin/x"],
            &["/usr/bin/uv tool uvx y", "/root/.cache/uv/archive-v0/h/bin/python /srv/bin/y"],
        ];
        trace.start(number * 14 * DAY / 1000, 1, chain[usize::from(number % 2 == 0)]);
    }
    let report = trace.report();
    let (warned, acted) = first(&report);
    let servers = |second: Option<u64>| second.map(|second| second * 1000 / (14 * DAY));
    assert!(servers(warned).is_some_and(|many| many < 45), "{warned:?}");
    assert!(servers(acted).is_some_and(|many| many < 100), "{acted:?}");
}

/// The launcher of each is killed, and started again the next day. The server stays.
#[test]
fn servers_that_lose_their_launcher() {
    let mut trace = Trace::new("node /srv/gateway.js");
    let mut live = 0;
    let mut at_warning = Vec::new();
    for day in 0..5 {
        for server in 0..10 {
            for hour in 0..4 {
                let second = day * DAY + hour * 6 * HOUR + server * 20 * MINUTE + 1;
                let chain = [
                    format!("npx -y server-{server}"),
                    format!("node /c/_npx/{server}/node_modules/.bin/server-{server}"),
                ];
                let pids = trace.start(second, 1, &[&chain[0], &chain[1]]);
                trace.exit(second + 5 * HOUR, pids[0]);
                live += 1;
                at_warning.push((second, live));
            }
        }
    }
    let report = trace.report();
    let (warned, acted) = first(&report);
    at_warning.sort_unstable();
    // One of each of the ten is wanted.
    let surplus =
        |second: u64| at_warning.iter().filter(|(at, _)| *at <= second).count().saturating_sub(10);
    assert!(warned.is_some_and(|at| surplus(at) < 45), "{warned:?}");
    assert!(acted.is_some_and(|at| surplus(at) < 100), "{acted:?}");
}

#[test]
fn a_crash_loop_is_told_and_nothing_is_done() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for number in 0..60 {
        let pids = trace.start(number * 3, 1, &["node /srv/broken.js"]);
        trace.crash(number * 3 + 1, pids[0]);
    }
    let report = trace.report();
    assert_eq!(report.actions, []);
    let warnings: Vec<_> =
        report.warnings.iter().map(|one| (one.detector, one.identity.as_deref())).collect();
    let crash = mcp_guard_core::incident::Detector::Crash;
    assert_eq!(warnings, [(crash, Some("/srv/broken.js"))]);
    assert!(report.warnings[0].t_ns < 30 * SECOND);
}

/// Returns how many servers stayed until the first warning and the first action. Each session has a server, which
/// ends with it, unless `stays`.
fn sessions(
    every: u64,
    days: u64,
    lasts: impl Fn(u64) -> u64,
    stays: impl Fn(u64) -> bool,
) -> (Option<usize>, Option<usize>) {
    let mut trace = Trace::new("node /srv/gateway.js");
    let mut stayed = Vec::new();
    for session in 0..days * DAY / every {
        let second = session * every;
        let pids = trace.start(second, 1, &["node /srv/server.js"]);
        if stays(session) {
            stayed.push(second);
        } else {
            trace.exit(second + lasts(session), pids[0]);
        }
    }
    let (warned, acted) = first(&trace.report());
    let until = |second: Option<u64>| {
        second.map(|second| stayed.iter().filter(|started| **started <= second).count())
    };
    (until(warned), until(acted))
}

fn is_found(name: &str, (warned, acted): (Option<usize>, Option<usize>)) {
    assert!(warned.is_some_and(|stayed| stayed < 45), "{name}: warned with {warned:?}");
    assert!(acted.is_some_and(|stayed| stayed < 100), "{name}: acted with {acted:?}");
}

/// One session of five or of ten keeps its server.
#[test]
fn a_part_of_the_sessions_leaks() {
    let [fifth, tenth] = [5, 10].map(|part| move |session: u64| session.is_multiple_of(part));
    is_found("a minute each", sessions(30, 1, |_| MINUTE, fifth));
    is_found("ten minutes each", sessions(MINUTE, 2, |_| 10 * MINUTE, fifth));
    is_found("half an hour each", sessions(MINUTE, 2, |_| 30 * MINUTE, tenth));
    is_found(
        "some hours each",
        sessions(10 * MINUTE, 7, |session| HOUR + session % 7 * HOUR, fifth),
    );
}

/// Twenty at once, four of which keep their server.
#[test]
fn a_part_of_the_sessions_leaks_in_bursts() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for burst in 0..2 * 24 * 2 {
        let second = burst * 30 * MINUTE;
        for session in 0..20 {
            let pids = trace.start(second + session, 1, &["node /srv/server.js"]);
            if session % 5 > 0 {
                trace.exit(second + 20 * MINUTE + session, pids[0]);
            }
        }
    }
    let (warned, acted) = first(&trace.report());
    let stayed = |second: Option<u64>| second.map(|second| 4 * (second / (30 * MINUTE) + 1));
    assert!(stayed(warned).is_some_and(|many| many < 45), "{warned:?}");
    assert!(stayed(acted).is_some_and(|many| many < 100), "{acted:?}");
}

/// Forty users come in the morning and go in the evening, and eight of them leave their server behind.
#[test]
fn a_part_of_each_day_leaks() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for day in 0..14 {
        for user in 0..40 {
            let second = day * DAY + 8 * HOUR + user * 3 * MINUTE;
            let pids = trace.start(second, 1, &["node /srv/server.js"]);
            if user % 5 > 0 {
                trace.exit(day * DAY + 17 * HOUR + user * 2 * MINUTE, pids[0]);
            }
        }
    }
    let (warned, acted) = first(&trace.report());
    let stayed = |second: Option<u64>| second.map(|second| 8 * (second / DAY + 1));
    assert!(stayed(warned).is_some_and(|many| many < 45), "{warned:?}");
    assert!(stayed(acted).is_some_and(|many| many < 100), "{acted:?}");
}

/// A timer runs in each copy, so that none of them is ever idle.
#[test]
fn a_package_whose_copies_have_timers() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for number in 1..=3 * HOUR / MINUTE {
        let pids =
            trace.start(number * MINUTE, 1, &["npx -y mcp-remote", "node /c/_npx/0/mcp-remote"]);
        (number * MINUTE..3 * HOUR).step_by(20).for_each(|second| trace.used(second, pids[0]));
    }
    let (warned, acted) = first(&trace.report());
    assert!(warned.is_some_and(|at| at < 45 * MINUTE), "{warned:?}");
    assert!(acted.is_some_and(|at| at < 100 * MINUTE), "{acted:?}");
}

/// Ten of a hundred copies are in use, the others are not.
#[test]
fn a_leak_beside_copies_in_use() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for number in 1..=100 {
        let second = number * MINUTE;
        let pids = trace.start(second, 1, &["npx -y figma-mcp"]);
        if number % 10 == 0 {
            (second..100 * MINUTE).step_by(20).for_each(|second| trace.used(second, pids[0]));
        }
    }
    let (warned, acted) = first(&trace.report());
    assert!(warned.is_some_and(|at| at < 45 * MINUTE), "{warned:?}");
    assert!(acted.is_some_and(|at| at < 100 * MINUTE), "{acted:?}");
}

#[test]
fn servers_that_stay_when_their_client_has_closed_them_are_told_once() {
    let mut trace = Trace::new("node /srv/gateway.js");
    let pids: Vec<u32> = (0..3).map(|_| trace.start(MINUTE, 1, &["npx -y figma-mcp"])[0]).collect();
    pids.iter().for_each(|pid| trace.hung_up(5 * MINUTE, *pid));
    let later = trace.fork(5 * HOUR, 1);
    trace.exit(5 * HOUR, later);
    let report = trace.report();
    let told: Vec<_> =
        report.warnings.iter().map(|one| (one.detector, one.t_ns / SECOND)).collect();
    let [(Detector::Disconnected, second)] = told[..] else { panic!("{told:?}") };
    assert!((15 * MINUTE..16 * MINUTE).contains(&second), "{second}");
    assert_eq!(report.actions, []);
}
