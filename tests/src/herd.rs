//! Containers and their clients, as `docker run -i` and others start them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use mcp_guard::control::wire::EngineState;
use mcp_guard_core::{audit::Record, incident::Detector, status::HerdStatus};

use crate::{
    agent::Agent,
    docker::{Container, Engine, fresh_name, wait_until},
};

/// A server that stays when its input ends.
const SERVER: [&str; 3] = ["sh", "-c", "cat; sleep 600"];
/// The label that makes a herd of its own.
const LABEL: &str = "docker-mcp-name";

/// A client in the foreground. Killed on drop, as by a crash (SIGKILL).
struct Attached(Child);

impl Attached {
    fn start(engine: Engine, words: &[&str], stdin: Stdio) -> Result<Self> {
        let mut command = engine.command(words)?;
        Ok(Self(command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// `docker attach` to a container of [`SERVER`] whose stdin is open. Returns once it is attached.
    fn attach(container: &Container) -> Result<Self> {
        let mut command = container.engine.command(&["attach", &container.name])?;
        let stdio = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = Self(stdio.spawn()?);
        client.0.stdin.as_mut().context("it has a stdin")?.write_all(b"hello\n")?;
        let mut answer = String::new();
        let stdout = client.0.stdout.as_mut().context("it has a stdout")?;
        BufReader::new(stdout).read_line(&mut answer)?;
        ensure!(answer == "hello\n", "{answer:?}");
        Ok(client)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A container with its client. The client ends first.
pub struct Served {
    client: Option<Attached>,
    container: Container,
    /// Another one, without a client.
    _beside: Option<Container>,
}

impl Served {
    /// Runs a container in the foreground, and waits until it runs.
    fn run(
        engine: Engine,
        herd: &str,
        options: &[&str],
        program: &[&str],
        stdin: Stdio,
    ) -> Result<Self> {
        let (name, image) = (fresh_name("herd"), engine.node_image()?);
        let label = format!("{LABEL}={herd}");
        let fixed = ["run", "--rm", "--network", "none", "--name", &name, "--label", &label];
        let words = [&fixed, options, &[&image], program].concat();
        let client = Attached::start(engine, &words, stdin)?;
        let container = Container { engine, name, id: String::new() };
        let runs = || Ok(container.inspect(".State.Running").is_ok_and(|runs| runs == "true"));
        wait_until("the container runs", runs)?;
        Ok(Self { client: Some(client), container, _beside: None })
    }

    /// `docker run -i`, with a client that keeps its input open.
    fn interactive(engine: Engine, herd: &str) -> Result<Self> {
        Self::run(engine, herd, &["--interactive"], &SERVER, Stdio::piped())
    }

    /// As `interactive`, with a client that is killed as by a crash (SIGKILL).
    fn abandoned(engine: Engine, herd: &str) -> Result<Container> {
        let Self { client, container, .. } = Self::interactive(engine, herd)?;
        drop(client);
        Ok(container)
    }
}

/// Starts an agent, which guards none of these containers, and waits until it knows the engine.
fn agent(engine: Engine, warn: usize) -> Result<Agent> {
    let policy = format!(
        "[evidence]\nevery = \"1s\"\n[detect.herd]\nwarn = {warn}\nage = \"1s\"\n\
         [[guard]]\nname = \"mcp-guard-test-no-such-container\"\n"
    );
    let mut agent = Agent::start_with(&policy, &engine.socket()?, &[])?;
    let is_connected = |agent: &mut Agent| Ok(agent.status()?.engine == EngineState::Connected);
    agent.wait_until("the agent knows the engine", is_connected)?;
    Ok(agent)
}

/// Waits for the herd of this name.
fn await_herd(
    agent: &mut Agent,
    herd: &str,
    fits: impl Fn(&HerdStatus) -> bool,
) -> Result<HerdStatus> {
    let (identity, mut found) = (format!("{LABEL}={herd}"), None);
    let what = format!("the herd {herd} is found");
    agent.wait_until(&what, |agent| {
        let herds = agent.status()?.herds;
        found = herds.into_iter().find(|one| one.identity == identity && fits(one));
        Ok(found.is_some())
    })?;
    found.context("the herd is gone")
}

/// Returns the names of the herds that were warned about, in the order of the warnings.
fn warned(agent: &Agent) -> Result<Vec<(String, Vec<String>)>> {
    let herd = |record| {
        let Record::Herd { cause, containers, .. } = record else { return None };
        assert_eq!(cause.detector, Some(Detector::Herd));
        Some((cause.identity?, containers))
    };
    Ok(agent.audit()?.into_iter().filter_map(herd).collect())
}

/// Five containers of one image whose clients were killed are one herd.
pub fn five_are_one_herd(engine: Engine) -> Result<()> {
    let herd = fresh_name("five");
    let mut containers = Vec::new();
    for _ in 0..5 {
        containers.push(Served::abandoned(engine, &herd)?);
    }
    let alive = Served::interactive(engine, &herd)?;
    let mut agent = agent(engine, 3)?;
    let found = await_herd(&mut agent, &herd, |_| true)?;
    let mut names: Vec<_> = containers.iter().map(|one| one.name.clone()).collect();
    names.sort_unstable();
    assert_eq!(found.containers, names, "not {}", alive.container.name);
    // Others may use the same engine.
    let living = usize::try_from(found.living_connections)?;
    assert_eq!((found.abandoned, found.ended), (5 - living, 5), "{found:?}");
    // Docker keeps dead connections of containers that have ended, too. Podman has no process that has all of them.
    let least = if engine == Engine::Docker { 5 } else { 0 };
    assert!(found.dead_connections >= least, "{found:?}");
    let text = String::from_utf8(agent.cli(&["status"])?.stdout)?;
    let line = format!(" containers of {LABEL}={herd} have no client");
    assert!(text.contains(&line) && text.contains(&names[4]), "{text}");
    // Two more looks.
    await_herd(&mut agent, &herd, |one| one.longest_seconds >= found.longest_seconds + 2)?;
    assert_eq!(warned(&agent)?, [(format!("{LABEL}={herd}"), names)], "once");
    Ok(())
}

/// A way to run a container that must not be taken for an abandoned one: its name, the way, and how many connections
/// of its client may lead to a container whose stdin has ended.
pub type Innocent = (&'static str, fn(Engine, &str) -> Result<Served>, u64);

/// Clients that have started their container, or run something in it.
pub const STARTED: [Innocent; 4] = [
    ("a client that lives", Served::interactive, 0),
    ("docker run without -i", without_stdin, 1),
    ("echo script | docker run -i", script, 1),
    ("docker exec -i c job </dev/null", exec, 1),
];

/// Clients that came later, or none.
pub const ATTACHED: [Innocent; 4] = [
    (
        "stdin_open without a client",
        |engine, herd| {
            Ok(Served { client: None, container: background(engine, herd)?, _beside: None })
        },
        0,
    ),
    ("attached, killed and attached again", attached_again, 1),
    ("attached after the first client was killed", attached_late, 1),
    ("the same, beside a container whose stdin is open without a client", attached_beside, 1),
];

fn without_stdin(engine: Engine, herd: &str) -> Result<Served> {
    Served::run(engine, herd, &[], &["sleep", "600"], Stdio::null())
}

fn script(engine: Engine, herd: &str) -> Result<Served> {
    let mut served = Served::run(engine, herd, &["--interactive"], &["sh"], Stdio::piped())?;
    let client = served.client.as_mut().context("it has a client")?;
    client.0.stdin.take().context("it has a stdin")?.write_all(b"sleep 600\necho done\n")?;
    Ok(served)
}

/// Runs a container in the background whose stdin stays open, as compose does for `stdin_open`.
fn background(engine: Engine, herd: &str) -> Result<Container> {
    let label = format!("{LABEL}={herd}");
    let options = ["--interactive", "--label", &label];
    Container::run_in(engine, "herd", &engine.node_image()?, &options, &SERVER)
}

fn exec(engine: Engine, herd: &str) -> Result<Served> {
    let container = background(engine, herd)?;
    let words = ["exec", "--interactive", &container.name, "sleep", "600"];
    let client = Attached::start(engine, &words, Stdio::null())?;
    let runs = || Ok(engine.output(&["exec", &container.name, "pidof", "sleep"]).is_ok());
    wait_until("the job runs", runs)?;
    Ok(Served { client: Some(client), container, _beside: None })
}

fn attached_again(engine: Engine, herd: &str) -> Result<Served> {
    let container = background(engine, herd)?;
    drop(Attached::attach(&container)?);
    let client = Attached::attach(&container)?;
    Ok(Served { client: Some(client), container, _beside: None })
}

fn attached_late(engine: Engine, herd: &str) -> Result<Served> {
    let container = Served::abandoned(engine, herd)?;
    let client = Attached::start(engine, &["attach", &container.name], Stdio::piped())?;
    Ok(Served { client: Some(client), container, _beside: None })
}

fn attached_beside(engine: Engine, herd: &str) -> Result<Served> {
    let (name, image) = (fresh_name("herd"), engine.node_image()?);
    let created = ["create", "--rm", "--interactive", "--network", "none", "--name", &name, &image];
    engine.output(&[&created, &SERVER[..]].concat())?;
    let beside = Container { engine, name, id: String::new() };
    engine.output(&["start", &beside.name])?;
    Ok(Served { _beside: Some(beside), ..attached_late(engine, herd)? })
}

/// A container of each of these kinds causes no warning, although two abandoned ones beside it do.
pub fn innocents_are_left_out(engine: Engine, innocents: &[Innocent]) -> Result<()> {
    for (what, start, living) in innocents.iter().copied() {
        let (innocent, control) = (fresh_name("innocent"), fresh_name("control"));
        let _innocent = start(engine, &innocent).context(what)?;
        let _abandoned =
            [Served::abandoned(engine, &control)?, Served::abandoned(engine, &control)?];
        let mut agent = agent(engine, 1)?;
        let living = if engine == Engine::Docker { living } else { 0 };
        let fits = |one: &HerdStatus| one.living_connections == living && one.ended == 2;
        let found = await_herd(&mut agent, &control, fits).context(what)?;
        ensure!(found.abandoned as u64 == 2 - living, "{what}: {found:?}");
        let herds = warned(&agent)?;
        let is_control = |(name, _): &(String, _)| *name == format!("{LABEL}={control}");
        ensure!(herds.iter().all(is_control), "{what}: {herds:?}");
        ensure!(agent.status()?.herds.len() == 1, "{what}: {:?}", agent.status()?.herds);
    }
    Ok(())
}
