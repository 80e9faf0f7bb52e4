//! The control socket, byte by byte: Varlink's framing, and malformed messages.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::Command,
};

use mcp_guard_tests::{agent::Agent, cgroup::FixtureCgroup, workload};
use serde_json::{Value, json};

/// A policy that guards nothing.
const POLICY: &str = "[[guard]]\ncgroup = \"/mcp-guard-test-none\"\n";

#[test]
fn it_describes_itself() {
    let agent = Agent::start(POLICY).unwrap();
    let info = agent.call("org.varlink.service.GetInfo", &json!({})).unwrap();
    assert_eq!(info["parameters"]["product"], "mcp-guard");
    let interfaces = json!(["org.varlink.service", "io.mcpguard"]);
    assert_eq!(info["parameters"]["interfaces"], interfaces);
    let describe = "org.varlink.service.GetInterfaceDescription";
    let ours = agent.call(describe, &json!({ "interface": "io.mcpguard" })).unwrap();
    let text = ours["parameters"]["description"].as_str().unwrap();
    for line in ["interface io.mcpguard", "method Status()", "method Freeze(", "error Failed"] {
        assert!(text.lines().any(|one| one.starts_with(line)), "{line} is not in {text}");
    }
    let other = agent.call(describe, &json!({ "interface": "a.b" })).unwrap();
    assert_eq!(other["error"], "org.varlink.service.InterfaceNotFound");
}

#[test]
fn two_messages_in_one_write_get_two_replies_in_order() {
    let agent = Agent::start(POLICY).unwrap();
    let both =
        b"{\"method\":\"io.mcpguard.Status\"}\0{\"method\":\"org.varlink.service.GetInfo\"}\0";
    let replies = agent.converse(both, 2).unwrap();
    assert_eq!(replies[0]["parameters"]["pid"], agent.pid());
    assert_eq!(replies[1]["parameters"]["vendor"], "mcp-guard");
    assert_eq!(replies.len(), 2);
}

#[test]
fn a_malformed_message_gets_an_error_and_does_no_harm() {
    let agent = Agent::start(POLICY).unwrap();
    let table: [(&[u8], &str); 7] = [
        (b"garbage\0", "InvalidParameter"),
        (b"\xff\xfe\x00", "InvalidParameter"),
        (b"\0", "InvalidParameter"),
        (b"{\"method\":\"io.mcpguard.Nope\"}\0", "MethodNotFound"),
        (b"{\"method\":\"io.mcpguard.Freeze\"}\0", "InvalidParameter"),
        (
            b"{\"method\":\"io.mcpguard.Thaw\",\"parameters\":{\"cgroup\":\"/../..\",\
              \"cgroup_id\":1,\"name\":\"x\"}}\0",
            "Failed",
        ),
        (
            b"{\"method\":\"io.mcpguard.Freeze\",\"parameters\":{\"cgroup\":\"/\",\"cgroup_id\":1,\
              \"name\":\"x\",\"lease_ms\":18446744073709551615,\"dry_run\":true}}\0",
            "Failed",
        ),
    ];
    for (bytes, error) in table {
        let shown = String::from_utf8_lossy(bytes);
        let replies = agent.converse(bytes, 1).unwrap();
        let said = replies[0]["error"].as_str().unwrap_or("no error");
        assert!(said.ends_with(error), "{shown}: {replies:?}");
        assert_eq!(agent.status().unwrap().pid.0, agent.pid(), "after {shown}");
    }
    // The agent drops the connection of a message that never ends, and keeps running.
    let endless = vec![b'x'; 5 << 20];
    assert!(agent.converse(&endless, 1).map_or(true, |replies: Vec<Value>| replies.is_empty()));
    assert_eq!(agent.status().unwrap().pid.0, agent.pid());
}

#[test]
fn only_root_may_use_the_socket() {
    let agent = Agent::start(POLICY).unwrap();
    let mode = fs::metadata(agent.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// As many as the agent serves at once.
const SILENT: usize = 16;

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let agent = Agent::start(POLICY).unwrap();
    let connect = |_| UnixStream::connect(agent.socket()).unwrap();
    let silent: Vec<UnixStream> = (0..SILENT).map(connect).collect();
    let status = agent.status();
    drop(silent);
    assert_eq!(status.unwrap().pid.0, agent.pid());
}

#[test]
fn root_of_another_pid_namespace_is_told_why_it_gets_no_answer() {
    let agent = Agent::start(POLICY).unwrap();
    let program = workload("mcp-guard").unwrap();
    let said = |wrapper: &[&str], words: &[&str]| {
        let (first, rest) = wrapper.split_first().unwrap();
        let mut command = Command::new(first);
        command.args(rest).arg(&program).arg("--run-dir").arg(agent.folder());
        command.arg("--audit").arg(agent.audit_path()).args(["--docker", "/nonexistent"]);
        let output = command.args(words).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(said(&["env"], &["status", "--json"]).0);
    let place = FixtureCgroup::new("control").unwrap();
    let target = format!("cgroup:{}", place.path());
    let verbs: [&[&str]; 3] =
        [&["status"], &["status", "--json"], &["freeze", "--dry-run", &target]];
    for words in verbs {
        let (is_answered, error) = said(&["unshare", "--pid", "--fork", "--mount-proc"], words);
        assert!(!is_answered && error.contains("pid namespace"), "{words:?}: {error}");
        assert!(error.contains("run the command on the host itself"), "{words:?}: {error}");
    }
}
