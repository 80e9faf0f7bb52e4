//! The policy is read again while the agent runs.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use mcp_guard_core::{
    audit::Record,
    incident::{End, Outcome},
    policy::Response,
    status::GuardState,
};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::{Leak, LeakPolicy},
    log_server::{LogServer, LogService},
    sleeper::Sleeper,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The limit that the owner set.
const FOUND: u64 = 400;
const RELOADS: usize = 1000;
/// The servers that start while the policy is read again and again, one every 100 ms.
const SERVERS: u64 = 100;
/// The agent may grow by this many bytes, because it remembers the servers.
const GROWTH: u64 = 4 << 20;

fn file(agent: &Agent) -> PathBuf {
    agent.folder().join("policy.toml")
}

/// Has the agent read this policy. Returns the answer.
fn reload(agent: &Agent, policy: &str) -> Value {
    fs::write(file(agent), policy).unwrap();
    let answer = agent.call("io.mcpguard.ReloadPolicy", &json!({})).unwrap();
    answer["parameters"].clone()
}

fn clamped(record: &Record) -> Option<Outcome> {
    match record {
        Record::Outcome { response: Response::Clamp, outcome, .. } => Some(*outcome),
        _ => None,
    }
}

fn rejected(record: &Record) -> Option<String> {
    match record {
        Record::PolicyRejected { reason } => Some(reason.clone()),
        _ => None,
    }
}

/// Returns the resident memory in bytes, without what is mapped from files.
fn memory(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}

/// Has the agent read good and bad policies. Returns its memory after a part of them.
fn reload_again_and_again(agent: &Agent, policy: &str) -> u64 {
    let mut small = 0;
    for at in 0..RELOADS {
        if at == RELOADS / 5 {
            small = memory(agent);
        }
        let (text, error) = match at % 4 {
            0 => (policy.to_owned(), None),
            1 => (policy.replace("[evidence]", "[evidenec]"), Some("unknown field `evidenec`")),
            2 => (
                policy.replace(
                    "warn = 2\n",
                    "warn = 2\n[server.x]\nignore = true\n[detect.duplicates]\n",
                ),
                Some("duplicate key"),
            ),
            _ => (format!("{policy}\n[server.\"x{at}\"]\nignore = true\n"), None),
        };
        let answer = reload(agent, &text);
        match error {
            None => assert_eq!(answer["error"], Value::Null, "{answer}"),
            Some(error) => assert!(answer["error"].as_str().unwrap().contains(error), "{answer}"),
        }
        if at % 50 == 0 {
            agent.signal(Signal::HUP).unwrap();
        }
    }
    small
}

#[test]
fn a_thousand_reloads_lose_nothing_and_release_nothing() {
    let held = FixtureCgroup::new("reload-held").unwrap();
    held.set_pids_max(FOUND).unwrap();
    let frozen = FixtureCgroup::new("reload-frozen").unwrap();
    let leaking = FixtureCgroup::new("reload-leak").unwrap();
    let _sleeper = Sleeper::start(&frozen).unwrap();
    let rules = format!(
        "[[guard]]\ncgroup = \"{}\"\n[[guard]]\ncgroup = \"{}\"\nmode = \"observe\"\n",
        frozen.path(),
        leaking.path()
    );
    let policy = LeakPolicy::enforcing(&held, "clamp").toml() + &rules;
    let mut agent = Agent::start(&policy).unwrap();
    let _leak = Leak::start(&held, 4).unwrap();
    assert_eq!(agent.await_record("clamped", clamped).unwrap(), Outcome::Done);
    let target = format!("cgroup:{}", frozen.path());
    let freeze = agent.cli(&["freeze", "--for", "1h", &target]).unwrap();
    assert_eq!(freeze.status.code(), Some(0), "{freeze:?}");
    let before = Holds::of(&held).unwrap();
    let is_hold = |record: &Record| matches!(record, Record::Intent { guard, .. } if guard.cgroup == held.path());

    let more = ["--count", &SERVERS.to_string(), "--every", "100"];
    let _more = Leak::begin(&leaking, "slow-mcp", &more).unwrap();
    let small = reload_again_and_again(&agent, &policy);
    let grown = memory(&agent).saturating_sub(small);
    agent
        .wait_until("all servers were seen", |agent| {
            let guard = agent.guard(leaking.id())?;
            Ok(guard.guard.identities.get("slow-mcp").is_some_and(|one| one.starts == SERVERS))
        })
        .unwrap();
    assert!(grown < GROWTH, "{grown} bytes");
    assert_eq!(Holds::of(&held).unwrap(), before);
    assert!(frozen.is_frozen().unwrap());
    let status = agent.status().unwrap();
    let lost: u64 = status.losses.values().sum();
    assert_eq!((lost, status.audit_lost, status.guards.len()), (0, 0, 3));
    let of = |id: u64| status.guards.iter().find(|one| one.cgroup_id.0 == id).unwrap();
    assert_eq!(of(held.id()).guard.state, GuardState::Clamped);
    assert_eq!(of(leaking.id()).guard.totals.dropped, 0);
    assert_eq!(status.policy.error, None);
    let records = agent.audit().unwrap();
    let count = |is_it: &dyn Fn(&Record) -> bool| records.iter().filter(|one| is_it(one)).count();
    assert_eq!(count(&|one| matches!(one, Record::GuardStop { .. } | Record::Release { .. })), 0);
    assert_eq!(count(&|one| matches!(one, Record::GuardStart { .. })), 3);
    assert_eq!(count(&is_hold), 1, "what was done once is not done again");
    assert!(count(&|one| matches!(one, Record::PolicyRejected { .. })) >= RELOADS / 2);
}

#[test]
fn what_a_new_policy_does_not_name_is_given_back() {
    let (old, new) =
        (FixtureCgroup::new("reload-old").unwrap(), FixtureCgroup::new("reload-new").unwrap());
    old.set_pids_max(FOUND).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&old, "clamp").toml()).unwrap();
    let _leak = Leak::start(&old, 4).unwrap();
    assert_eq!(agent.await_record("clamped", clamped).unwrap(), Outcome::Done);
    let answer = reload(&agent, &LeakPolicy::enforcing(&new, "clamp").toml());
    assert_eq!(answer["error"], Value::Null);
    let changes = answer["changes"].to_string();
    assert!(changes.contains("gone: [[guard]]") && changes.contains("new: [[guard]]"), "{changes}");
    let stopped = |record: &Record| match record {
        Record::GuardStop { guard } => Some(guard.cgroup.clone()),
        _ => None,
    };
    assert_eq!(agent.await_record("it is given back", stopped).unwrap(), old.path());
    assert_eq!(Holds::of(&old).unwrap(), Holds::nothing(FOUND));
    let released = |record: &Record| match record {
        Record::Release { end, outcome: Some(outcome), .. } => Some((*end, *outcome)),
        _ => None,
    };
    let release = agent.await_record("the clamp is released", released).unwrap();
    assert_eq!(release, (End::Unguarded, Outcome::Done));
    assert!(agent.guard(new.id()).is_ok(), "what is named now is guarded at once");
}

#[test]
fn a_bad_policy_changes_nothing_and_is_shown_until_it_is_good() {
    let cgroup = FixtureCgroup::new("reload-bad").unwrap();
    let good = LeakPolicy::enforcing(&cgroup, "clamp").toml();
    let mut agent = Agent::start(&good).unwrap();
    fs::create_dir(agent.folder().join("policy.d")).unwrap();
    let drop_in = agent.folder().join("policy.d/10.toml");
    fs::write(&drop_in, "[detect.growth]\nwram = 3\n").unwrap();
    agent.signal(Signal::HUP).unwrap();
    let reason = agent.await_record("it is rejected", rejected).unwrap();
    for expected in
        ["policy.d/10.toml", "line 2, column 1", "2 | wram = 3", "  | ^^^^", "unknown field"]
    {
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    let status = agent.cli(&["status"]).unwrap();
    assert_eq!(status.status.code(), Some(1));
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(said.contains("POLICY NOT APPLIED") && said.contains("wram = 3"), "{said}");
    let command = agent.cli(&["policy", "reload"]).unwrap();
    assert_eq!(command.status.code(), Some(65), "{command:?}");
    let said = String::from_utf8(command.stderr).unwrap();
    assert!(said.contains("^^^^") && said.contains("the old policy stays in force"), "{said}");

    fs::write(&drop_in, "[detect.growth]\nwarn = 3\n").unwrap();
    let command = agent.cli(&["policy", "reload"]).unwrap();
    assert_eq!(command.status.code(), Some(0), "{command:?}");
    let said = String::from_utf8(command.stdout).unwrap();
    assert!(said.contains("detect.growth.warn: 15 -> 3"), "{said}");
    let status = agent.status().unwrap();
    assert_eq!((status.policy.error, status.policy.files.len()), (None, 2));
}

/// Thresholds, responses and rules change while a clamp is held.
#[test]
fn a_clamp_keeps_its_terms_until_its_rule_is_gone() {
    let cgroup = FixtureCgroup::new("reload-terms").unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    let old = LeakPolicy::enforcing(&cgroup, "clamp").toml();
    let mut agent = Agent::start(&old).unwrap();
    let _leak = Leak::start(&cgroup, 4).unwrap();
    assert_eq!(agent.await_record("clamped", clamped).unwrap(), Outcome::Done);
    let before = Holds::of(&cgroup).unwrap();
    for new in [
        old.replace("act = 3\n", "act = 300\n"),
        old.replace("\"clamp\"", "\"freeze\"").replace("act = 3\n", "act = 300\n"),
        old.replace("300s", "1s"),
        old.replace("enforce", "observe"),
        old.clone() + "[guard.server.\"*\"]\nignore = true\n",
        old.replace(cgroup.path(), "/mcp-guard-test-reload-terms-*"),
    ] {
        let answer = reload(&agent, &new);
        assert_eq!(answer["error"], Value::Null, "{new}");
        assert_ne!(answer["changes"], json!([]), "{new}");
        assert_eq!(Holds::of(&cgroup).unwrap(), before, "{new}");
        let state = agent.guard(cgroup.id()).unwrap().guard.state;
        assert_eq!(state, GuardState::Clamped, "{new}");
    }
    let answer = reload(&agent, &old.replace(cgroup.path(), "/mcp-guard-test-none"));
    assert_eq!(answer["error"], Value::Null);
    let stopped = |record: &Record| matches!(record, Record::GuardStop { .. }).then_some(());
    agent.await_record("its rule is gone", stopped).unwrap();
    assert_eq!(Holds::of(&cgroup).unwrap(), Holds::nothing(FOUND));
}

fn said(agent: &Agent, arguments: &[&str]) -> String {
    let output = agent.cli(arguments).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Between a change of the files and a reload, the agent runs another policy than the files say.
#[test]
fn the_policy_that_the_agent_runs_is_shown_and_not_its_changed_files() {
    let cgroup = FixtureCgroup::new("reload-shown").unwrap();
    let _sleeper = Sleeper::start(&cgroup).unwrap();
    let old = LeakPolicy::enforcing(&cgroup, "clamp").toml();
    let agent = Agent::start(&old).unwrap();
    let (file, target) = (file(&agent), format!("cgroup:{}", cgroup.path()));
    let named = ["--policy", file.to_str().unwrap()];
    let show = |more: &[&str]| said(&agent, &[&["policy", "show"][..], more].concat());
    let explain =
        |more: &[&str]| said(&agent, &[&["policy", "explain", &target][..], more].concat());
    let source = || serde_json::from_str::<Value>(&explain(&["--json"])).unwrap()["source"].clone();
    let explained = |first: &str, act: u32| {
        for (text, first) in [(explain(&[]), first), (show(&[]), &first.replace("note:", "#"))] {
            assert!(text.starts_with(first), "{first}\n{text}");
            assert!(text.contains(&format!("act = {act} ")), "{act}\n{text}");
        }
    };
    assert_eq!(source(), json!({ "from": "agent", "differs": false }));

    let new = old.replace("act = 3\n", "act = 30\n");
    fs::write(&file, &new).unwrap();
    explained("note: the agent still runs this policy, read ", 3);
    let note = source()["note"].as_str().unwrap().to_owned();
    assert!(note.ends_with("(1 difference); `mcp-guard policy reload` applies them"), "{note}");
    assert_eq!((&source()["from"], &source()["differs"]), (&json!("agent"), &json!(true)));
    let (first, rest) =
        show(&named).split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(
        first.contains("the agent runs another one") && rest.contains("act = 30 "),
        "{first}\n{rest}"
    );

    fs::write(&file, "nonsense = 1\n").unwrap();
    explained("note: the agent still runs this policy, read ", 3);
    let note = source()["note"].as_str().unwrap().to_owned();
    assert!(
        note.contains("its files cannot be applied now: policy ") && note.contains("line 1"),
        "{note}"
    );
    assert_eq!(
        agent.cli(&[&["policy", "show"][..], &named].concat()).unwrap().status.code(),
        Some(65)
    );

    assert_eq!(reload(&agent, &new)["error"], Value::Null);
    // Other lines with the same meaning differ in nothing.
    fs::write(&file, format!("# a comment\n{new}")).unwrap();
    assert_eq!(source(), json!({ "from": "agent", "differs": false }));
    assert!(explain(&[]).contains("act = 30 ") && explain(&[]).contains("policy.toml:6"));
}

/// A file server that does not answer holds up the reading, and nothing else.
#[test]
fn a_policy_that_cannot_be_read_holds_up_nothing() {
    let cgroup = FixtureCgroup::new("reload-hung").unwrap();
    let good = LeakPolicy::enforcing(&cgroup, "clamp").toml();
    let server = LogServer::start().unwrap();
    let mut agent = Agent::start(&good).unwrap();
    let link = agent.folder().join("policy.d/10.toml");
    fs::create_dir(agent.folder().join("policy.d")).unwrap();
    symlink(server.path(), &link).unwrap();
    server.set(LogService::StandsStill);
    agent.signal(Signal::HUP).unwrap();
    let _leak = Leak::start(&cgroup, 4).unwrap();
    assert_eq!(agent.await_record("clamped", clamped).unwrap(), Outcome::Done);
    let reason = agent.await_record("it is late", rejected).unwrap();
    assert!(reason.contains("could not be read within 10s"), "{reason}");
    assert_eq!(agent.status().unwrap().policy.error, Some(reason));

    server.set(LogService::Answers);
    fs::remove_file(&link).unwrap();
    // Until the server has answered, a reload is refused at once.
    agent
        .wait_until("the policy is read again", |agent| {
            Ok(reload(agent, &good)["error"] == Value::Null)
        })
        .unwrap();
    assert_eq!(agent.status().unwrap().policy.error, None);
}
