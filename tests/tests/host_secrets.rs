//! A token in a command line appears nowhere that the agent writes or shows.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::fs;

use mcp_guard_core::{audit::Record, policy::Response};
use mcp_guard_tests::{
    agent::Agent,
    cgroup::FixtureCgroup,
    leak::{Leak, LeakPolicy},
};

/// A string in the form of a real token.
const TOKEN: &str = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";

/// The extended attribute of a clamp.
const MARK: &str = "trusted.mcp-guard.clamp";

/// Asserts that a text has no token, and that it is not empty.
fn assert_masked(what: &str, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    assert!(!text.trim().is_empty(), "{what} is empty");
    assert!(!text.contains(TOKEN), "{what} shows the token: {text}");
}

#[test]
fn a_token_in_a_package_specification_is_shown_nowhere() {
    let cgroup = FixtureCgroup::new("secret").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "clamp").toml()).unwrap();
    let package = format!("git+https://oauth2:{TOKEN}@example.org/acme/mcp.git");
    let leak = Leak::of(&package, &cgroup, 4).unwrap();
    let is_clamp = |record: &Record| {
        matches!(record, Record::Outcome { response: Response::Clamp, .. }).then_some(())
    };
    agent.await_record("the clamp", is_clamp).unwrap();
    let audit = fs::read(agent.folder().join("audit.jsonl")).unwrap();
    assert_masked("the audit log", &audit);
    let seen = String::from_utf8_lossy(&audit);
    assert!(seen.contains("git+https://example.org/acme/mcp.git"), "the package is named: {seen}");
    for arguments in [&["status"][..], &["status", "--json"]] {
        assert_masked("status", &agent.cli(arguments).unwrap().stdout);
    }
    assert_masked("the agent's log", agent.log().as_bytes());
    let mut mark = vec![0; 4096];
    let length = rustix::fs::getxattr(cgroup.pids_dir(), MARK, &mut mark[..]).unwrap();
    assert_masked("the mark", &mark[..length]);
    let saved = agent.folder().join("facts.json");
    let target = format!("cgroup:{}", cgroup.path());
    let file = saved.to_str().unwrap();
    for extra in [&[][..], &["--json"]] {
        let arguments = [&["diagnose", &target, "--save", file], extra].concat();
        assert_masked("diagnose", &agent.cli(&arguments).unwrap().stdout);
        assert_masked("saved facts", &fs::read(&saved).unwrap());
    }
    agent.cli(&["diagnose", &target, "--save", file, "--with-secrets"]).unwrap();
    let kept = String::from_utf8(fs::read(&saved).unwrap()).unwrap();
    assert!(kept.contains(TOKEN), "kept if that is asked for");
    assert!(leak.end().unwrap().success());
}
