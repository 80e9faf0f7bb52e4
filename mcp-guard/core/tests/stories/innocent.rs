//! Innocent work that lasts for days. Nothing is done about it, and at most one warning is made.

use std::collections::VecDeque;

use mcp_guard_core::replay::ReplayReport;

use crate::trace::{DAY, HOUR, MINUTE, Trace};

fn is_left_alone(name: &str, report: &ReplayReport) {
    assert_eq!((&report.actions[..], &report.reaps[..]), (&[][..], &[][..]), "{name}");
    assert!(report.warnings.len() <= 1, "{name}: {:?}", report.warnings);
}

#[test]
fn worker_pools() {
    let mut trace = Trace::new("node /srv/pool.js");
    for worker in 0..32 {
        trace.start(worker / 16, 1, &[&format!("node /srv/worker.js {worker}")]);
        trace.fork(worker, 1);
    }
    let later = trace.fork(3 * DAY, 1);
    trace.exit(3 * DAY + 1, later);
    is_left_alone("a pool", &trace.report());
}

/// Backends from 5 to 190 and back, twice a day, which are forked.
#[test]
fn a_database() {
    let mut trace = Trace::new("/usr/lib/postgresql/15/bin/postgres -D /data");
    let mut live = Vec::new();
    for minute in 0..3 * 24 * 60 {
        let wanted = 5 + 185 * (minute % 720_u64).min(720 - minute % 720) / 360;
        while (live.len() as u64) < wanted {
            live.push(trace.fork(minute * MINUTE, 1));
        }
        while live.len() as u64 > wanted
            && let Some(pid) = live.pop()
        {
            trace.exit(minute * MINUTE, pid);
        }
    }
    is_left_alone("postgres", &trace.report());
}

#[test]
fn autoscaled_workers() {
    let mut trace = Trace::new("python3 -m scaler");
    let mut live: VecDeque<u32> = VecDeque::new();
    for step in 0..3 * 24 * 6 {
        let second = step * 10 * MINUTE;
        let wanted = if (36..80).contains(&(step % 144)) { (step % 144 - 35).min(32) } else { 4 };
        while (live.len() as u64) < wanted {
            live.extend(trace.start(second, 1, &["python3 /srv/worker.py"]));
        }
        while live.len() as u64 > wanted
            && let Some(pid) = live.pop_front()
        {
            trace.exit(second, pid);
        }
    }
    is_left_alone("autoscaled workers", &trace.report());
}

/// Each test has a browser of a few programs, and ends.
#[test]
fn a_test_runner_with_browsers() {
    let mut trace = Trace::new("node /srv/node_modules/.bin/playwright test");
    for test in 0..4000 {
        let second = test * 20;
        let browser = trace.start(second, 1, &["/opt/chrome/chrome --headless"]);
        let zygote = trace.fork(second, browser[0]);
        trace.exec(second, zygote, "/opt/chrome/chrome --type=zygote");
        let renderer = trace.fork(second, zygote);
        for (after, pid) in [(30, renderer), (30, zygote), (31, browser[0])] {
            trace.exit(second + after, pid);
        }
    }
    is_left_alone("a test runner", &trace.report());
}

#[test]
fn builds() {
    let mut trace = Trace::new("make -j8");
    for file in 0..6000_u64 {
        let second = 300 * (file / 600) + file % 600 / 8;
        let chain = ["gcc -c a.c", "/usr/lib/gcc/cc1 a.c", "as -o a.o"];
        for pid in trace.start(second, 1, &chain).into_iter().rev() {
            trace.exit(second + 2, pid);
        }
        let probe = trace.start(second, 1, &["grep -q x conftest.c"]);
        trace.crash(second, probe[0]);
    }
    is_left_alone("builds", &trace.report());
}

#[test]
fn a_daily_job() {
    let mut trace = Trace::new("/usr/sbin/crond -f");
    for day in 0..7 {
        let job = trace.start(day * DAY, 1, &["sh -c job", "python3 /srv/job.py"]);
        for part in 0..200 {
            let second = day * DAY + part * 10;
            let pids = trace.start(second, job[1], &["/usr/bin/pg_dump db"]);
            trace.exit(second + 30, pids[0]);
        }
        job.iter().rev().for_each(|pid| trace.exit(day * DAY + HOUR, *pid));
    }
    is_left_alone("a daily job", &trace.report());
}

/// A session lasts two hours, and has a server of its own that ends with it.
#[test]
fn servers_of_sessions_that_end() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for session in 0..3 * 24 * 12 {
        let second = session * 5 * MINUTE;
        let pids = trace.start(second, 1, &["node /srv/server.js"]);
        trace.exit(second + 2 * HOUR, pids[0]);
    }
    is_left_alone("sessions", &trace.report());
}

/// Numbers that look like chance and are the same in each run (the generator of MMIX).
fn chance(seed: u64, below: u64) -> u64 {
    let step = |x: u64, _| {
        x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
    };
    ((0..4).fold(seed, step) >> 33) % below
}

/// Sessions last from a minute to hours, most of them minutes.
#[test]
fn servers_of_sessions_of_every_length() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for session in 0..5 * 24 * 30 {
        let second = session * 2 * MINUTE + chance(session, 100);
        let pids = trace.start(second, 1, &["node /srv/server.js"]);
        let lasts = MINUTE << chance(session + 1_000_000, 8);
        trace.exit(second + lasts, pids[0]);
    }
    is_left_alone("sessions of every length", &trace.report());
}

/// Three bursts of sessions an hour, which all end.
#[test]
fn bursts_of_sessions_that_end() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for burst in 0..3 * 24 * 3 {
        for session in 0..30 {
            let second = burst * 20 * MINUTE + session;
            let pids = trace.start(second, 1, &["node /srv/server.js"]);
            trace.exit(second + 15 * MINUTE + chance(burst * 30 + session, 240), pids[0]);
        }
    }
    is_left_alone("bursts of sessions", &trace.report());
}

/// Backends from 5 to 50 and back, twice a day. Those that came last go first.
#[test]
fn a_database_of_programs() {
    let mut trace = Trace::new("/usr/bin/pooler");
    let mut live = Vec::new();
    for minute in 0..7 * 24 * 60 {
        let wanted = 5 + 45 * (minute % 720_u64).min(720 - minute % 720) / 360;
        while (live.len() as u64) < wanted {
            live.extend(trace.start(minute * MINUTE, 1, &["/usr/lib/postgres backend"]));
        }
        while live.len() as u64 > wanted
            && let Some(pid) = live.pop()
        {
            trace.exit(minute * MINUTE, pid);
        }
    }
    is_left_alone("a database of programs", &trace.report());
}

/// A hundred workers that are replaced one after another, for days.
#[test]
fn a_pool_that_is_renewed() {
    let mut trace = Trace::new("node /srv/pool.js");
    let start = |trace: &mut Trace, second| trace.start(second, 1, &["node /srv/worker.js"])[0];
    let mut live: VecDeque<u32> = (0..100).map(|at| start(&mut trace, at / 2)).collect();
    for round in 1..3 * 24 * 12 {
        let second = round * 5 * MINUTE;
        let old = live.pop_front();
        live.push_back(start(&mut trace, second));
        old.into_iter().for_each(|pid| trace.exit(second + 2, pid));
    }
    is_left_alone("a pool that is renewed", &trace.report());
}

/// Forty users come in the morning and go in the evening.
#[test]
fn a_server_for_each_of_forty_users() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for day in 0..5 {
        for user in 0..40 {
            let second = day * DAY + 8 * HOUR + user * 3 * MINUTE;
            let pids = trace.start(second, 1, &["node /srv/server.js"]);
            trace.exit(day * DAY + 17 * HOUR + user * 2 * MINUTE, pids[0]);
        }
    }
    is_left_alone("forty users", &trace.report());
}

/// Each uses his copy of one package every half a minute, as far as the trace says.
#[test]
fn forty_users_with_a_copy_of_a_package_each() {
    let mut trace = Trace::new("node /srv/gateway.js");
    for user in 0..40 {
        let began = user * 10 * MINUTE;
        let chain = ["npx -y figma-mcp", "node /c/_npx/0/node_modules/.bin/figma-mcp"];
        let pids = trace.start(began, 1, &chain);
        (began..DAY).step_by(25).for_each(|second| trace.used(second, pids[1]));
    }
    is_left_alone("forty users", &trace.report());
}

/// An MCP client closes the input of a server to end it, and a job that got all of its input looks the same.
#[test]
fn servers_that_are_closed_and_jobs_without_more_input() {
    for (command, works) in [("npx -y figma-mcp", 10), ("python3 /srv/job.py", 9 * MINUTE)] {
        let mut trace = Trace::new("node /srv/gateway.js");
        for second in (0..3 * DAY).step_by(15 * 60) {
            let pids = trace.start(second, 1, &[command]);
            trace.hung_up(second + 1, pids[0]);
            trace.exit(second + 1 + works, pids[0]);
        }
        let report = trace.report();
        assert_eq!((report.warnings, report.actions), (Vec::new(), Vec::new()), "{command}");
    }
}
