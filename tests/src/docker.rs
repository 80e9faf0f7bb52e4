//! Containers under test, in the engine that `cargo xtask docker` or `cargo xtask test` names, or in
//! a guest's Podman.

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

/// Writes a growing number to `/tmp/tick`, so that a test can see whether the container runs. Like
/// the gateway (`LIFE`), it ends after 1800 s.
pub const TICKER: [&str; 3] = [
    "sh",
    "-c",
    "i=0; while [ $i -lt 36000 ]; do i=$((i+1)); echo $i >/tmp/tick; sleep 0.05; done",
];
/// The port of the gateway of [`Container::gateway`], in its own network namespace.
const PORT: &str = "8871";
/// The server that the gateway starts for each request and never ends.
const SERVER: &str = "npx -y @21st-dev/magic@0.1.0";
/// Seconds until the container ends even if a test was killed and the engine is not ours.
const LIFE: &str = "1800";
/// The environment that the image has in Docker. An import by Podman takes only one variable per
/// line.
const ENVIRONMENT: [&str; 6] = [
    "PATH=/usr/bin:/bin",
    "HOME=/home/u",
    "npm_config_cache=/opt/npm-cache",
    "npm_config_offline=true",
    "npm_config_update_notifier=false",
    "npm_config_yes=true",
];
/// Sends requests one after the other. The gateway throws an exception and ends if a client has gone
/// away, so the client waits as long as node does, 300 s.
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
/// How long to wait. An engine and node start slowly in a guest without hardware virtualisation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns the path of the engine's socket.
pub fn socket() -> Result<String> {
    from_rig("MCP_GUARD_TEST_DOCKER")
}

/// Returns the image with node, npm, real MCP servers and a leaking gateway.
pub fn node_image() -> Result<String> {
    from_rig("MCP_GUARD_TEST_IMAGE")
}

/// Returns the image with only busybox.
pub fn busybox_image() -> Result<String> {
    from_rig("MCP_GUARD_TEST_BUSYBOX")
}

fn from_rig(name: &str) -> Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set; run `cargo xtask docker -- COMMAND`"))
}

/// Returns a `docker` command that talks to the engine under test.
pub fn docker(words: &[&str]) -> Result<Command> {
    Engine::Docker.command(words)
}

/// Runs such a command and returns its trimmed stdout.
pub fn output(words: &[&str]) -> Result<String> {
    Engine::Docker.output(words)
}

/// Runs the command line of mcp-guard without an agent, with its files in `folder`.
pub fn without_agent(folder: &Path, words: &[&str]) -> Result<Output> {
    Ok(command(folder, &socket()?)?.args(words).output()?)
}

/// Returns a name that no other container has.
pub fn fresh_name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("mcp-guard-test-{what}-{}-{next}", std::process::id())
}

/// A container of a test. Removed on drop, also while a failed assertion unwinds.
pub struct Container {
    pub engine: Engine,
    pub name: String,
    pub id: String,
}

impl Container {
    /// Creates and starts a container without a network.
    pub fn run(what: &str, image: &str, options: &[&str], program: &[&str]) -> Result<Self> {
        Self::run_in(Engine::Docker, what, image, options, program)
    }

    /// Creates a container and does not start it.
    pub fn create(what: &str, image: &str) -> Result<Self> {
        Self::begin(Engine::Docker, &["create"], what, image, &[], &["true"])
    }

    /// Like [`Container::run`], in a given engine.
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
        // If this fails, dropping it removes the container by its name.
        let mut made = Self { engine, id: String::new(), name: name.clone() };
        let fixed = ["--network", "none", "--init=false", "--name", &name];
        made.id = engine.output(&[verb, &fixed, options, &[image], program].concat())?;
        ensure!(made.id.len() == 64, "{engine:?} {verb:?} printed {:?}", made.id);
        Ok(made)
    }

    /// Starts the gateway and waits until it listens. Each request leaves one more server behind.
    pub fn gateway(what: &str) -> Result<Self> {
        Self::gateway_in(Engine::Docker, what)
    }

    /// Like [`Container::gateway`], in a given engine.
    pub fn gateway_in(engine: Engine, what: &str) -> Result<Self> {
        Self::gateway_with(engine, what, &[])
    }

    /// Like [`Container::gateway_in`], with more options for `docker run`.
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

    /// Starts a client that sends requests to the gateway. It exits with 0 if all were answered.
    pub fn ask_gateway(&self, requests: u32) -> Result<Child> {
        Ok(self.client(requests)?.stdout(Stdio::null()).spawn()?)
    }

    /// Sends one more request to the gateway, and waits for its answer.
    pub fn await_answer(&self) -> Result<()> {
        let done = self.client(1)?.output()?;
        if !done.status.success() {
            let log = self.engine.command(&["logs", "--tail", "20", &self.name])?.output()?;
            bail!("the client failed: {done:?}; the gateway's log: {log:?}");
        }
        Ok(())
    }

    fn client(&self, requests: u32) -> Result<Command> {
        let (url, requests) = (format!("http://127.0.0.1:{PORT}/mcp"), requests.to_string());
        let node = ["node", "--input-type=module", "--eval", CLIENT, &url, &requests];
        self.engine.command(&[&["exec", &self.name], &node[..]].concat())
    }

    /// Returns one field of the engine's `inspect`.
    pub fn inspect(&self, field: &str) -> Result<String> {
        self.engine.output(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.name])
    }

    /// Returns the pid of the first process, as the host sees it.
    pub fn init(&self) -> Result<u32> {
        let pid = self.inspect(".State.Pid")?.parse()?;
        ensure!(pid > 0, "{} is not running", self.name);
        Ok(pid)
    }

    /// Returns the pids and command lines of `docker top`, sorted by pid.
    pub fn top(&self) -> Result<Vec<(u32, String)>> {
        let shown = output(&["top", &self.name, "-eo", "pid,args"])?;
        let line = |line: &str| -> Result<(u32, String)> {
            let (pid, words) =
                line.trim().split_once(' ').context("docker top printed an unexpected line")?;
            Ok((pid.parse()?, words.trim().to_owned()))
        };
        let mut all: Vec<_> = shown.lines().skip(1).map(line).collect::<Result<_>>()?;
        all.sort_unstable();
        Ok(all)
    }

    /// Returns the container's cgroup, found through its first process.
    pub fn cgroup(&self) -> Result<Place> {
        let file = format!("/proc/{}/cgroup", self.init()?);
        let places = fs::read_to_string(&file).context(file)?;
        let layout = Layout::read()?;
        let path = line_of(&places, |controllers| controllers.is_empty())?;
        let unified = below(&layout.unified.context("no cgroup2 tree is mounted")?, path);
        let tree = layout.pids.context("this host has no pids controller")?;
        let pids = if tree.v1 {
            let has_pids = |list: &str| list.split(',').any(|one| one == "pids");
            below(&tree.mount, line_of(&places, has_pids)?)
        } else {
            unified.clone()
        };
        let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&unified)?);
        Ok(Place { path: path.to_owned(), id, unified, pids })
    }

    /// Returns the last number that [`TICKER`] wrote.
    pub fn ticks(&self) -> Result<u64> {
        let file = format!("/proc/{}/root/tmp/tick", self.init()?);
        // The file is empty for a moment each time the shell rewrites it.
        Ok(fs::read_to_string(file).unwrap_or_default().trim().parse().unwrap_or(0))
    }

    /// Waits until [`TICKER`] has written a larger number.
    pub fn await_ticking(&self) -> Result<()> {
        let before = self.ticks()?;
        wait_until("the container runs", || Ok(self.ticks()? > before))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A failed test may leave the container frozen or paused; both are undone first. An error
        // means that it was neither.
        if let Ok(place) = self.cgroup() {
            let _ = fs::write(place.unified.join("cgroup.freeze"), "0");
        }
        let _ = self.engine.output(&["unpause", &self.name]);
        let force: &[&str] = match self.engine {
            Engine::Docker => &["--force"],
            // Without this, Podman would first wait for the container to end.
            Engine::Podman => &["--force", "--time", "0"],
        };
        if let Err(error) = self.engine.output(&[&["rm", "--volumes", &self.name], force].concat())
            && !std::thread::panicking()
        {
            panic!("cannot remove container {}: {error:#}", self.name);
        }
    }
}

/// The cgroup of a container.
pub struct Place {
    pub path: String,
    pub id: u64,
    pub unified: PathBuf,
    pub pids: PathBuf,
}

impl Place {
    /// Returns whether a freeze is requested (cgroup.freeze), by mcp-guard or by another tool.
    pub fn freeze_requested(&self) -> Result<bool> {
        Ok(fs::read_to_string(self.unified.join("cgroup.freeze"))?.trim() == "1")
    }

    /// Returns whether the kernel has confirmed the freeze (cgroup.events).
    pub fn is_frozen(&self) -> Result<bool> {
        Ok(fs::read_to_string(self.unified.join("cgroup.events"))?.contains("frozen 1"))
    }

    pub fn pids_max(&self) -> Result<String> {
        Ok(fs::read_to_string(self.pids.join("pids.max"))?.trim().to_owned())
    }

    /// Returns whether the cgroup has mcp-guard's mark for a freeze.
    pub fn is_marked_frozen(&self) -> Result<bool> {
        has_attribute(&self.unified, "trusted.mcp-guard.lease")
    }

    /// Returns whether the cgroup has mcp-guard's mark for a clamp.
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
        Err(error) => {
            Err(error).with_context(|| format!("cannot read {name} of {}", dir.display()))
        }
    }
}

fn line_of(places: &str, wanted: impl Fn(&str) -> bool) -> Result<&str> {
    let mut lines = places.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    lines
        .find(|(list, _)| wanted(list))
        .map(|(_, path)| path)
        .context("the process is not in that cgroup hierarchy")
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Waits until `reached` returns true.
pub fn wait_until(what: &str, reached: impl Fn() -> Result<bool>) -> Result<()> {
    if !wait::until(PATIENCE, reached)? {
        bail!("did not happen within {PATIENCE:?}: {what}");
    }
    Ok(())
}
