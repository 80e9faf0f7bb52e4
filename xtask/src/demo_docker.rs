//! `cargo xtask demo --docker`: a real gateway leaks real MCP servers in a real container, and the
//! agent contains it: once by a freeze, once by a kill.

mod agent;
mod container;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::docker::Rig;
use crate::packages::Permission;
use crate::say::{complain, say};
use crate::workspace;
use agent::Agent;
use container::{Container, Leak, Process};

/// More than the policy allows, so that the end shows who stopped it.
const SERVERS: u32 = 14;
const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(250);

/// The exit code: 0 contained both times, 1 not contained, 2 could not.
pub fn run(setup: bool) -> Result<u8> {
    let rig = match Rig::prepare(Permission::from_flag(setup)) {
        Ok(rig) => rig,
        Err(reason) => {
            complain(&format!("could not: {reason:#}"));
            return Ok(2);
        }
    };
    workspace::build_agent()?;
    for response in ["freeze", "kill"] {
        say(&format!("\n== the leak, answered with {response} =="));
        if let Err(error) = act(&rig, response) {
            complain(&format!("NOT CONTAINED: {error:#}"));
            return Ok(1);
        }
    }
    say("\ncontained both times; the containers are removed");
    Ok(0)
}

/// One leak from its start to its end. Whatever happens, all that it made goes away with it.
fn act(rig: &Rig, response: &str) -> Result<()> {
    let container = Container::start(rig)?;
    say(&format!("a gateway listens in container {}", container::NAME));
    let mut agent = Agent::start(rig.socket(), response)?;
    agent.wait_until_it_guards(container::NAME)?;
    say(&format!("mcp-guard watches it; its policy answers duplicates with {response}"));
    let story = Story::new();
    let leak = Leak::start(rig, SERVERS)?;
    story.tell(&format!("a client begins: {SERVERS} requests, each leaves a server behind"));
    watch(&story, &mut agent, response)?;
    match response {
        "freeze" => compare_while_frozen(&container, &agent)?,
        _ => wait_until_dead(&story, &container)?,
    }
    drop(leak);
    say(&format!("audit read back: {} lines, intent before outcome", agent.check_audit()?));
    agent.stop()
}

/// Tells what the agent sees until its audit says that it acted.
fn watch(story: &Story, agent: &mut Agent, response: &str) -> Result<()> {
    let mut shown = None;
    while story.start.elapsed() < DEADLINE {
        if let Some(view) = agent.view(container::NAME, container::IDENTITY)
            && shown.as_ref() != Some(&(view.live, view.state.clone()))
        {
            let identity = container::IDENTITY;
            story.tell(&format!("{} live servers of {identity}, {}", view.live, view.state));
            shown = Some((view.live, view.state));
        }
        for line in agent.new_audit_lines()? {
            story.tell(&format!("audit: {line}"));
            if agent::says_done(&line, response) {
                story.tell(&format!("contained by {response}"));
                return Ok(());
            }
        }
        agent.check_alive()?;
        sleep(POLL);
    }
    bail!("no {response} within {} s", DEADLINE.as_secs())
}

/// Nothing in the container moves: what the agent knows must be what Docker shows.
fn compare_while_frozen(container: &Container, agent: &Agent) -> Result<()> {
    let processes = container.top()?;
    let Some(view) = agent.view(container::NAME, container::IDENTITY) else {
        bail!("the agent's status does not show the container")
    };
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let servers = processes.iter().filter(|process| is_server(process)).count() as u64;
    say(&format!("agent:      {} processes, {} live servers", view.pids.len(), view.live));
    say(&format!("docker top: {} processes, {servers} live servers", pids.len()));
    if !view.state.contains("frozen") {
        bail!("the agent calls the container `{}`, not frozen", view.state);
    }
    if view.pids != pids || view.live != servers {
        bail!("they differ: agent {:?}, docker top {pids:?}", view.pids);
    }
    say("the same, process by process");
    Ok(())
}

fn is_server(process: &Process) -> bool {
    container::is_launcher(&process.command)
}

fn wait_until_dead(story: &Story, container: &Container) -> Result<()> {
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(20) {
        if !container.is_running()? {
            story.tell("the container has ended; no server is left");
            return Ok(());
        }
        sleep(POLL);
    }
    bail!("the audit says killed, but the container still runs")
}

struct Story {
    start: Instant,
}

impl Story {
    fn new() -> Self {
        Self { start: Instant::now() }
    }

    fn tell(&self, line: &str) {
        say(&format!("[{:5.1} s] {line}", self.start.elapsed().as_secs_f64()));
    }
}
