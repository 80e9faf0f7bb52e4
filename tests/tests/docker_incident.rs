//! The incident that this program was written for: `pids_limit: 25` in the compose file, a container that
//! was never re-created, and a gateway that leaks servers.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::process::{Child, Output, Stdio};

use mcp_guard_core::diagnose::{
    code::Code,
    report::{Certainty, Verdict},
};
use mcp_guard_tests::{
    agent::command,
    diagnose::{Project, diagnose, first},
    docker::{Container, Engine, socket, wait_until},
};
use rustix::process::{Pid, Signal, kill_process};

/// How many servers leak. Each is two processes in this image, so there are more than a hundred.
const SERVERS: u32 = 52;

/// A child process. Killed when dropped.
struct Running(Option<Child>);

impl Running {
    fn ended(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills this number of servers. The `npm exec` above each one reaps it, and ends too.
fn end_servers(gateway: &Container, count: usize) {
    let servers = gateway.top().unwrap();
    let servers = servers.iter().filter(|(_, line)| line.contains("node_modules/.bin/"));
    let pids: Vec<u32> = servers.map(|(pid, _)| *pid).take(count).collect();
    assert_eq!(pids.len(), count);
    for pid in pids {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
}

#[test]
fn the_incident_is_explained_and_repaired_while_the_gateway_keeps_answering() {
    let project = Project::new();
    let labels = project.labels();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let gateway = Container::gateway_with(Engine::Docker, "incident", &labels).unwrap();
    project.write_after(&gateway, 25);
    let place = gateway.cgroup().unwrap();
    let mut client = gateway.ask_gateway(SERVERS).unwrap();
    assert!(client.wait().unwrap().success(), "a request failed");
    wait_until("a hundred processes", || Ok(gateway.top()?.len() > 100)).unwrap();

    let report = first(&gateway, Code::NotRecreated);
    assert_eq!(report.findings[0].certainty, Certainty::Proved);
    assert_eq!((report.verdict, report.declared), (Verdict::NotEnforced, Some(25)));
    let sizing = report.sizing.unwrap();
    assert_eq!(sizing.servers, u64::from(SERVERS), "{sizing:?}");
    assert!(sizing.servers_that_fit <= Some(1), "25 tasks: {sizing:?}");
    assert!(
        sizing.limit_now > report.charged.tasks.unwrap(),
        "no room for the tasks that run: {sizing:?}"
    );

    // A limit for half of them is too low for the tasks that run, so it is lowered in steps as servers end.
    let limit = sizing.limit_for(u64::from(SERVERS) / 2).to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut repair = command(folder.path(), &socket().unwrap()).unwrap();
    let repair = repair.args(["repair", &gateway.name, "--limit", &limit]);
    let repair = Running(Some(repair.stdout(Stdio::piped()).spawn().unwrap()));
    wait_until("a first step", || Ok(place.pids_max()? != "max")).unwrap();
    let step: u64 = place.pids_max().unwrap().parse().unwrap();
    assert!(step > limit.parse().unwrap(), "no room for the tasks that run: {step}");
    gateway.await_answer().unwrap();
    end_servers(&gateway, 30);
    let done = repair.ended();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}");
    assert!(said.contains(&format!("lowered to {step}")), "{said}");
    assert!(said.contains(&format!("read back: engine {limit}, kernel {limit}")), "{said}");
    assert!(said.contains(&format!("+   pids_limit: {limit}")), "the edit of the file: {said}");
    assert_eq!(place.pids_max().unwrap(), limit);
    assert_eq!(gateway.inspect(".HostConfig.PidsLimit").unwrap(), limit);
    gateway.await_answer().unwrap();

    // The only finding left is that the file still says 25.
    let report = diagnose(&gateway);
    assert_eq!(report.findings[0].code, Code::NotRecreated, "{:#?}", report.findings);
    project.write_after(&gateway, limit.parse().unwrap());
    assert_eq!(diagnose(&gateway).findings, []);
}
