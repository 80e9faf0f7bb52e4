//! Containers under test, in the engine that `cargo xtask docker` or `cargo xtask test` names.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use mcp_guard::host::layout::Layout;
use rustix::{fs::getxattr, io::Errno};

use crate::agent::{DEADLINE, command};

/// Writes a growing number to `/tmp/tick`, so that a test can see whether the container runs.
pub const TICKER: [&str; 3] =
    ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/tmp/tick; sleep 0.05; done"];
/// Where the gateway of [`Container::gateway`] listens, inside its own network.
const PORT: &str = "8871";
/// What the gateway starts for each request, and never ends.
const SERVER: &str = "npx -y @21st-dev/magic@0.1.0";
/// The container ends by itself, also where a test was killed and the engine is not ours.
const LIFE: &str = "900";

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
    let mut docker = Command::new("docker");
    docker.arg("--host").arg(format!("unix://{}", socket()?)).args(words).stdin(Stdio::null());
    Ok(docker)
}

/// Runs one to its end and returns its stdout, trimmed.
pub fn output(words: &[&str]) -> Result<String> {
    let done = docker(words)?.output().context("cannot start docker")?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "docker {words:?}: {}: {}", done.status, stderr.trim());
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
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
    pub name: String,
    pub id: String,
}

impl Container {
    /// Makes and starts one without network.
    pub fn run(what: &str, image: &str, options: &[&str], program: &[&str]) -> Result<Self> {
        Self::begin(&["run", "--detach"], what, image, options, program)
    }

    /// Makes one and does not start it.
    pub fn create(what: &str, image: &str) -> Result<Self> {
        Self::begin(&["create"], what, image, &[], &["true"])
    }

    fn begin(
        verb: &[&str],
        what: &str,
        image: &str,
        options: &[&str],
        program: &[&str],
    ) -> Result<Self> {
        let name = fresh_name(what);
        // The name alone is enough to remove what a failure leaves.
        let mut made = Self { id: String::new(), name: name.clone() };
        let fixed = ["--network", "none", "--init=false", "--name", &name];
        made.id = output(&[verb, &fixed, options, &[image], program].concat())?;
        ensure!(made.id.len() == 64, "docker {verb:?} printed {:?}", made.id);
        Ok(made)
    }

    /// The gateway, listening: each request leaves one more server behind.
    pub fn gateway(what: &str) -> Result<Self> {
        let gateway = "/opt/gw/node_modules/supergateway/dist/index.js";
        let program = ["timeout", LIFE, "node", gateway, "--stdio", SERVER, "--outputTransport"];
        let program = [&program[..], &["streamableHttp", "--port", PORT]].concat();
        let made = Self::run(what, &node_image()?, &[], &program)?;
        let listens = || Ok(output(&["logs", &made.name])?.contains("Listening on port"));
        wait_until("the gateway listens", listens)?;
        Ok(made)
    }

    /// Sends requests to the gateway. 0 from the client: all were answered.
    pub fn ask_gateway(&self, requests: u32) -> Result<Child> {
        let url = format!("http://127.0.0.1:{PORT}/mcp");
        let requests = requests.to_string();
        let words = ["exec", &self.name, "node", "/opt/gw/leak.mjs", &url, &requests, "100"];
        Ok(docker(&words)?.stdout(Stdio::null()).spawn()?)
    }

    /// One field of `docker inspect`.
    pub fn inspect(&self, field: &str) -> Result<String> {
        output(&["inspect", "--format", &format!("{{{{{field}}}}}"), &self.name])
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
        let _ = output(&["unpause", &self.name]);
        if let Err(error) = output(&["rm", "--force", "--volumes", &self.name])
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

/// Looks every few milliseconds until `reached`.
pub fn wait_until(what: &str, reached: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !reached()? {
        if began.elapsed() > DEADLINE {
            bail!("not within {DEADLINE:?}: {what}");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}
