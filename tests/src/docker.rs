//! Containers under test, in the engine that `cargo xtask docker` or `cargo xtask test` names, or in
//! the Podman of a guest.

mod engine;
pub mod podman;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use mcp_guard::host::layout::Layout;
use rustix::{fs::getxattr, io::Errno};

pub use engine::Engine;

use crate::{agent::command, wait};

/// Writes a growing number to `/tmp/tick`, so that a test can see whether the container runs. It ends by
/// itself, like what `LIFE` bounds.
pub const TICKER: [&str; 3] = [
    "sh",
    "-c",
    "i=0; while [ $i -lt 36000 ]; do i=$((i+1)); echo $i >/tmp/tick; sleep 0.05; done",
];
/// Where the gateway of [`Container::gateway`] listens, inside its own network.
const PORT: &str = "8871";
/// What the gateway starts for each request, and never ends.
const SERVER: &str = "npx -y @21st-dev/magic@0.1.0";
/// The container ends by itself, also where a test was killed and the engine is not ours.
const LIFE: &str = "1800";
/// What the image says for Docker; an import by Podman takes one variable of each line.
const ENVIRONMENT: [&str; 6] = [
    "PATH=/usr/bin:/bin",
    "HOME=/home/u",
    "npm_config_cache=/opt/npm-cache",
    "npm_config_offline=true",
    "npm_config_update_notifier=false",
    "npm_config_yes=true",
];
/// Sends requests one after the other. One that gives up would end the gateway, which throws when it
/// has nobody to answer: so it waits as long as node does, 300 s.
const CLIENT: &str = r#"
const [url, count] = process.argv.slice(1);
const client = { name: 'test', version: '1' };
const params = { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: client };
const headers = { 'content-type': 'application/json', accept: 'application/json, text/event-stream' };
for (let id = 1; id <= Number(count); id++) {
  const body = JSON.stringify({ jsonrpc: '2.0', id, method: 'initialize', params });
  const text = await (await fetch(url, { method: 'POST', headers, body })).text();
  if (!text.includes('serverInfo')) throw new Error(text);
}
"#;
/// An engine and node start slowly in a guest without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(120);

/// The path of the engine's socket.
pub fn socket() -> Result<String> {
    from_rig("MCP_GUARD_TEST_DOCKER")
}

/// The image with node, npm, real MCP servers and a leaking gateway.
pub fn node_image() -> Result<String> {
    from_rig("MCP_GUARD_TEST_IMAGE")
}

/// The image with busybox alone.
pub fn busybox_image() -> Result<String> {
    from_rig("MCP_GUARD_TEST_BUSYBOX")
}

fn from_rig(name: &str) -> Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: run through `cargo xtask docker -- COMMAND`"))
}

/// A `docker` command that talks to the engine under test.
pub fn docker(words: &[&str]) -> Result<Command> {
    Engine::Docker.command(words)
}

/// Runs one to its end and returns its stdout, trimmed.
pub fn output(words: &[&str]) -> Result<String> {
    Engine::Docker.output(words)
}

/// Runs the command line of mcp-guard where no agent runs, with its files in `folder`.
pub fn without_agent(folder: &Path, words: &[&str]) -> Result<Output> {
    Ok(command(folder, &socket()?)?.args(words).output()?)
}

/// A name that no other container has.
pub fn fresh_name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("mcp-guard-test-{what}-{}-{next}", std::process::id())
}

/// A container of ours, removed when dropped, also while a failed assertion unwinds.
pub struct Container {
    pub engine: Engine,
    pub name: String,
    pub id: String,
}

impl Container {
    /// Makes and starts one without network.
    pub fn run(what: &str, image: &str, options: &[&str], program: &[&str]) -> Result<Self> {
        Self::run_in(Engine::Docker, what, image, options, program)
    }

    /// Makes one and does not start it.
    pub fn create(what: &str, image: &str) -> Result<Self> {
        Self::begin(Engine::Docker, &["create"], what, image, &[], &["true"])
    }

    /// [`Container::run`] in an engine.
    pub fn run_in(
        engine: Engine,
        what: &str,
        image: &str,
        options: &[&str],
        program: &[&str],
    ) -> Result<Self> {
        Self::begin(engine, &["run", "--detach"], what, image, options, program)
    }

    fn begin(
        engine: Engine,
        verb: &[&str],
        what: &str,
        image: &str,
        options: &[&str],
        program: &[&str],
    ) -> Result<Self> {
        let name = fresh_name(what);
        // The name alone is enough to remove what a failure leaves.
        let mut made = Self { engine, id: String::new(), name: name.clone() };
        let fixed = ["--network", "none", "--init=false", "--name", &name];
        made.id = engine.output(&[verb, &fixed, options, &[image], program].concat())?;
        ensure!(made.id.len() == 64, "{engine:?} {verb:?} printed {:?}", made.id);
        Ok(made)
    }

    /// The gateway, listening: each request leaves one more server behind.
    pub fn gateway(what: &str) -> Result<Self> {
        Self::gateway_in(Engine::Docker, what)
    }

    /// [`Container::gateway`] in an engine.
    pub fn gateway_in(engine: Engine, what: &str) -> Result<Self> {
        Self::gateway_with(engine, what, &[])
    }

    /// The same with more options of `docker run`.
    pub fn gateway_with(engine: Engine, what: &str, more: &[&str]) -> Result<Self> {
        let gateway = "/opt/gw/node_modules/supergateway/dist/index.js";
        let program = ["timeout", LIFE, "node", gateway, "--stdio", SERVER, "--outputTransport"];
        let program = [&program[..], &["streamableHttp", "--port", PORT]].concat();
        let environment = ENVIRONMENT.map(|variable| ["--env", variable]).concat();
        let options = [&environment[..], more].concat();
        let made = Self::run_in(engine, what, &engine.node_image()?, &options, &program)?;
        let listens = || Ok(engine.output(&["logs", &made.name])?.contains("Listening on port"));
        wait_until("the gateway listens", listens)?;
        Ok(made)
    }

    /// Sends requests to the gateway. 0 from the client: all were answered.
    pub fn ask_gateway(&self, requests: u32) -> Result<Child> {
        Ok(self.client(requests)?.stdout(Stdio::null()).spawn()?)
    }

    /// Sends one more request to the gateway, and waits for its answer.
    pub fn await_answer(&self) -> Result<()> {
        let done = self.client(1)?.output()?;
        if !done.status.success() {
            let log = self.engine.command(&["logs", "--tail", "20", &self.name])?.output()?;
            bail!("{done:?}, and the gateway: {log:?}");
        }
        Ok(())
    }

    fn client(&self, requests: u32) -> Result<Command> {
        let (url, requests) = (format!("http://127.0.0.1:{PORT}/mcp"), requests.to_string());
        let node = ["node", "--input-type=module", "--eval", CLIENT, &url, &requests];
        self.engine.command(&[&["exec", &self.name], &node[..]].concat())
    }

    /// One field of the engine's `inspect`.
    pub fn inspect(&self, field: &str) -> Result<String> {
        self.engine.output(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.name])
    }

    /// The first process, by the host's number.
    pub fn init(&self) -> Result<u32> {
        let pid = self.inspect(".State.Pid")?.parse()?;
        ensure!(pid > 0, "{} does not run", self.name);
        Ok(pid)
    }

    /// `docker top`: pids and command lines, sorted by pid.
    pub fn top(&self) -> Result<Vec<(u32, String)>> {
        let shown = output(&["top", &self.name, "-eo", "pid,args"])?;
        let line = |line: &str| -> Result<(u32, String)> {
            let (pid, words) = line.trim().split_once(' ').context("a line of docker top")?;
            Ok((pid.parse()?, words.trim().to_owned()))
        };
        let mut all: Vec<_> = shown.lines().skip(1).map(line).collect::<Result<_>>()?;
        all.sort_unstable();
        Ok(all)
    }

    /// Its cgroup, found from its first process.
    pub fn cgroup(&self) -> Result<Place> {
        let file = format!("/proc/{}/cgroup", self.init()?);
        let places = fs::read_to_string(&file).context(file)?;
        let layout = Layout::read()?;
        let path = line_of(&places, |controllers| controllers.is_empty())?;
        let unified = below(&layout.unified.context("no cgroup2 tree")?, path);
        let tree = layout.pids.context("no pids controller")?;
        let pids = if tree.v1 {
            let has_pids = |list: &str| list.split(',').any(|one| one == "pids");
            below(&tree.mount, line_of(&places, has_pids)?)
        } else {
            unified.clone()
        };
        let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&unified)?);
        Ok(Place { path: path.to_owned(), id, unified, pids })
    }

    /// What [`TICKER`] counted so far.
    pub fn ticks(&self) -> Result<u64> {
        let file = format!("/proc/{}/root/tmp/tick", self.init()?);
        // Empty for the moment in which the shell writes it anew.
        Ok(fs::read_to_string(file).unwrap_or_default().trim().parse().unwrap_or(0))
    }

    /// Waits until [`TICKER`] has counted on.
    pub fn await_ticking(&self) -> Result<()> {
        let before = self.ticks()?;
        wait_until("the container runs", || Ok(self.ticks()? > before))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A failed test may leave it stopped in two ways; each is taken away first, and an error
        // says that there was nothing to take away.
        if let Ok(place) = self.cgroup() {
            let _ = fs::write(place.unified.join("cgroup.freeze"), "0");
        }
        let _ = self.engine.output(&["unpause", &self.name]);
        let force: &[&str] = match self.engine {
            Engine::Docker => &["--force"],
            // Else it would first wait whether the container ends by itself.
            Engine::Podman => &["--force", "--time", "0"],
        };
        if let Err(error) = self.engine.output(&[&["rm", "--volumes", &self.name], force].concat())
            && !std::thread::panicking()
        {
            panic!("container {} is left behind: {error:#}", self.name);
        }
    }
}

/// Where a container's cgroup lies.
pub struct Place {
    pub path: String,
    pub id: u64,
    pub unified: PathBuf,
    pub pids: PathBuf,
}

impl Place {
    /// What anybody asked of the kernel.
    pub fn freeze_requested(&self) -> Result<bool> {
        Ok(fs::read_to_string(self.unified.join("cgroup.freeze"))?.trim() == "1")
    }

    /// What the kernel reached.
    pub fn is_frozen(&self) -> Result<bool> {
        Ok(fs::read_to_string(self.unified.join("cgroup.events"))?.contains("frozen 1"))
    }

    pub fn pids_max(&self) -> Result<String> {
        Ok(fs::read_to_string(self.pids.join("pids.max"))?.trim().to_owned())
    }

    /// Whether it says that mcp-guard owns its freeze.
    pub fn is_marked_frozen(&self) -> Result<bool> {
        has_attribute(&self.unified, "trusted.mcp-guard.lease")
    }

    /// Whether it says that mcp-guard owns its limit.
    pub fn is_marked_clamped(&self) -> Result<bool> {
        has_attribute(&self.pids, "trusted.mcp-guard.clamp")
    }

    pub fn exists(&self) -> bool {
        self.unified.exists()
    }
}

fn has_attribute(dir: &Path, name: &str) -> Result<bool> {
    match getxattr(dir, name, &mut [0_u8; 4096][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{name} of {}", dir.display())),
    }
}

fn line_of(places: &str, wanted: impl Fn(&str) -> bool) -> Result<&str> {
    let mut lines = places.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    lines.find(|(list, _)| wanted(list)).map(|(_, path)| path).context("no such hierarchy")
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Waits until `reached`.
pub fn wait_until(what: &str, reached: impl Fn() -> Result<bool>) -> Result<()> {
    if !wait::until(PATIENCE, reached)? {
        bail!("not within {PATIENCE:?}: {what}");
    }
    Ok(())
}
