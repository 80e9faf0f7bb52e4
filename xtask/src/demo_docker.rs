//! `cargo xtask demo --docker`: a real gateway leaks real MCP servers in a real container, and the
//! agent contains it: once by a freeze, once by a kill.

mod agent;
mod audit;
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

/// More servers than the policy allows, so that the result shows that mcp-guard stopped the leak.
const SERVERS: u32 = 14;
const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(250);

/// Why an act failed.
enum Failed {
    CouldNot(anyhow::Error),
    NotContained(anyhow::Error),
}

/// Runs the demo. Exit codes: 0 contained both times, 1 not contained, 2 cannot run.
pub fn run(setup: bool) -> Result<u8> {
    let permission = Permission::from_flag(setup);
    let rig = match workspace::build_agent().and_then(|()| Rig::prepare(permission)) {
        Ok(rig) => rig,
        Err(reason) => return Ok(could_not(&reason)),
    };
    for response in ["freeze", "kill"] {
        say(&format!("\n== a leak, contained by {response} =="));
        match act(&rig, response) {
            Ok(()) => {}
            Err(Failed::CouldNot(reason)) => return Ok(could_not(&reason)),
            Err(Failed::NotContained(reason)) => {
                complain(&format!("NOT CONTAINED: {reason:#}"));
                return Ok(1);
            }
        }
    }
    rig.close()?;
    say("\ncontained both times; the containers are removed");
    Ok(0)
}

fn could_not(reason: &anyhow::Error) -> u8 {
    complain(&format!("cannot run the demo: {reason:#}"));
    2
}

/// Runs one leak from start to end. Removes everything it created, also after an error.
fn act(rig: &Rig, response: &str) -> Result<(), Failed> {
    let (container, agent) = stage(rig, response).map_err(Failed::CouldNot)?;
    contain(rig, &container, agent, response).map_err(Failed::NotContained)
}

/// Starts a gateway that has no requests yet, and an agent that guards it.
fn stage<'a>(rig: &'a Rig, response: &str) -> Result<(Container<'a>, Agent)> {
    let container = Container::start(rig)?;
    say(&format!("a gateway is listening in container {}", container::NAME));
    let mut agent = Agent::start(rig.socket(), response)?;
    agent.wait_until_it_guards(container::NAME)?;
    say(&format!("mcp-guard guards it; the policy's response to duplicates is {response}"));
    Ok((container, agent))
}

fn contain(rig: &Rig, container: &Container, mut agent: Agent, response: &str) -> Result<()> {
    let story = Story::new();
    let leak = Leak::start(rig, SERVERS)?;
    story.tell(&format!("a client sends {SERVERS} requests; each leaves a server behind"));
    watch(&story, container, &mut agent, response)?;
    match response {
        "freeze" => compare_while_frozen(&story, container, &agent)?,
        _ => wait_until_dead(&story, container)?,
    }
    drop(leak);
    let audit = agent.stop()?;
    story.tell("mcp-guard has released its holds and ended; its audit log:");
    audit.lines.iter().for_each(|line| say(&format!("  {line}")));
    audit.check(response)?;
    story.tell(&format!("{} lines; each outcome follows its intent", audit.lines.len()));
    Ok(())
}

/// Shows what the agent sees until its audit says that it acted.
fn watch(story: &Story, container: &Container, agent: &mut Agent, response: &str) -> Result<()> {
    let mut shown = None;
    while story.start.elapsed() < DEADLINE {
        // After a kill there are no live servers: only counts above 0 are shown.
        let view = agent.view(container::NAME, container::IDENTITY);
        let gone = view.is_none() && !container.is_running()?;
        if let Some(view) = view
            && view.live > 0
            && shown.as_ref() != Some(&(view.live, view.state.clone()))
        {
            let identity = container::IDENTITY;
            story.tell(&format!("{} live servers of {identity}, {}", view.live, view.state));
            shown = Some((view.live, view.state));
        }
        for line in agent.new_audit_lines()? {
            if let Some(told) = audit::told(&line) {
                story.tell(&told);
            }
            if audit::says_done(&line, response) {
                let servers = shown.map_or(0, |(live, _)| live);
                story.tell(&format!("CONTAINED by {response}, after {servers} servers"));
                return Ok(());
            }
        }
        agent.check_alive()?;
        if gone {
            bail!("the container has ended, but not by a {response}");
        }
        sleep(POLL);
    }
    bail!("no {response} within {} s", DEADLINE.as_secs())
}

/// Compares the agent's processes with Docker's. Nothing runs in the frozen container, so they must
/// be equal.
fn compare_while_frozen(story: &Story, container: &Container, agent: &Agent) -> Result<()> {
    let processes = container.top()?;
    let Some(view) = agent.view(container::NAME, container::IDENTITY) else {
        bail!("the agent's status does not show the container")
    };
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let servers = processes.iter().filter(|process| is_server(process)).count() as u64;
    story.tell(&format!("mcp-guard:  {} processes, {} live servers", view.pids.len(), view.live));
    story.tell(&format!("docker top: {} processes, {servers} live servers", pids.len()));
    if !view.state.contains("frozen") {
        bail!("the agent reports the container as `{}`, not as frozen", view.state);
    }
    if view.pids != pids || view.live != servers {
        bail!("the processes differ: the agent has {:?}, docker top has {pids:?}", view.pids);
    }
    story.tell("both show the same processes");
    Ok(())
}

fn is_server(process: &Process) -> bool {
    container::is_launcher(&process.command)
}

fn wait_until_dead(story: &Story, container: &Container) -> Result<()> {
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(20) {
        if !container.is_running()? {
            story.tell("the container has ended, with all its servers");
            return Ok(());
        }
        sleep(POLL);
    }
    bail!("the audit reports a kill, but the container is still running")
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
