//! The incident that this program was made for: `pids_limit: 25` in the compose file, a container that
//! was never made anew, and a gateway that leaks servers.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use mcp_guard_core::diagnose::{
    code::Code,
    report::{Certainty, Verdict},
};
use mcp_guard_tests::{
    diagnose::{Project, diagnose, first},
    docker::{Container, Engine, wait_until, without_agent},
};

/// Two processes each in this image, so that more than a hundred are there.
const SERVERS: u32 = 52;

#[test]
fn it_is_explained_and_repaired_while_the_gateway_answers() {
    let project = Project::new();
    let labels = project.labels();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let gateway = Container::gateway_with(Engine::Docker, "incident", &labels).unwrap();
    project.write_after(&gateway, 25);
    let place = gateway.cgroup().unwrap();
    let mut client = gateway.ask_gateway(SERVERS).unwrap();
    assert!(client.wait().unwrap().success(), "all were answered");
    wait_until("a hundred processes", || Ok(gateway.top()?.len() > 100)).unwrap();

    let report = first(&gateway, Code::NotRecreated);
    assert_eq!(report.findings[0].certainty, Certainty::Proved);
    assert_eq!((report.verdict, report.declared), (Verdict::NotEnforced, Some(25)));
    let sizing = report.sizing.unwrap();
    assert_eq!(sizing.servers, u64::from(SERVERS), "{sizing:?}");
    assert!(sizing.servers_that_fit <= Some(1), "25 tasks: {sizing:?}");
    let limit = sizing.limit_now;
    assert!(limit > report.charged.tasks.unwrap(), "room for what runs: {sizing:?}");

    let folder = tempfile::tempdir().unwrap();
    let limit = limit.to_string();
    let done = without_agent(folder.path(), &["repair", &gateway.name, "--limit", &limit]).unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}");
    assert!(said.contains(&format!("read back: engine {limit}, kernel {limit}")), "{said}");
    assert!(said.contains(&format!("+   pids_limit: {limit}")), "the edit of the file: {said}");
    assert_eq!(place.pids_max().unwrap(), limit);
    assert_eq!(gateway.inspect(".HostConfig.PidsLimit").unwrap(), limit);
    gateway.await_answer().unwrap();

    // What is left to be said is that the file still says 25.
    let report = diagnose(&gateway);
    assert_eq!(report.findings[0].code, Code::NotRecreated, "{:#?}", report.findings);
    project.write_after(&gateway, limit.parse().unwrap());
    assert_eq!(diagnose(&gateway).findings, []);
}
