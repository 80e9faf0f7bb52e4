//! The engine and the images of the Docker tests.

mod image;
mod keeper;
mod leftovers;
mod npm;
mod rootfs;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use image::{BUSYBOX_IMAGE, NODE_IMAGE, SETTINGS};
pub use keeper::keep_engine;
pub use leftovers::cgroup_mounts;
pub use rootfs::{Rootfs, add_busybox, busybox as busybox_files, node as node_files};

use crate::packages::{self, Permission};
use crate::program;
use crate::say::{complain, say};

/// `cargo xtask docker`: runs a command with the engine and images of the Docker tests, and returns
/// its exit code.
pub fn with_rig(setup: bool, words: &[String]) -> Result<u8> {
    let rig = match Rig::for_tests(Permission::from_flag(setup)) {
        Ok(rig) => rig,
        Err(reason) => {
            complain(&format!("cannot run the command: {reason:#}"));
            return Ok(2);
        }
    };
    let Some((name, arguments)) = words.split_first() else { bail!("no command to run") };
    let mut command = Command::new(name);
    rig.tell(command.args(arguments));
    command.env("DOCKER_HOST", format!("unix://{}", rig.socket().display()));
    let code = program::exit_code(&mut command)?;
    rig.close()?;
    Ok(code)
}

/// An engine that answers, with the images that the tests need.
pub struct Rig {
    engine: Engine,
}

impl Rig {
    /// Finds or starts an engine and imports the images. Installs and starts nothing without
    /// permission.
    pub fn prepare(permission: Permission) -> Result<Self> {
        Self::with(permission, "no Docker engine answers", |_| true)
    }

    /// Like [`Rig::prepare`], with an engine that uses the cgroupfs driver: the tests name cgroups by
    /// path. An engine with the systemd driver is not used.
    pub fn for_tests(permission: Permission) -> Result<Self> {
        Self::with(permission, "no Docker engine with the cgroupfs driver answers", uses_cgroupfs)
    }

    fn with(permission: Permission, none: &str, fits: fn(&Path) -> bool) -> Result<Self> {
        let find = || answering_socket().filter(|socket| fits(socket));
        let found = find();
        let permission = packages::provide(permission, found.is_some())?;
        // If systemd runs, installing the engine may have started it.
        let engine = match found.or_else(find) {
            Some(socket) => Engine { socket, keeper: None },
            None => {
                packages::ask(permission, none, "dockerd")?;
                Engine::start()?
            }
        };
        say(&format!("docker: using the engine at {}", engine.socket.display()));
        image::provide(&engine)?;
        Ok(Self { engine })
    }

    /// Stops the engine if it was started for this rig. The error says what could not be cleaned up.
    ///
    /// Dropping a rig does the same, but only prints the error.
    pub fn close(mut self) -> Result<()> {
        self.engine.close()
    }

    /// Returns the Unix socket of the engine.
    pub fn socket(&self) -> &Path {
        &self.engine.socket
    }

    /// Passes the engine's socket and the image names to a command, in its environment.
    pub fn tell(&self, command: &mut Command) {
        command
            .env("MCP_GUARD_TEST_DOCKER", &self.engine.socket)
            .env("MCP_GUARD_TEST_IMAGE", NODE_IMAGE)
            .env("MCP_GUARD_TEST_BUSYBOX", BUSYBOX_IMAGE);
    }

    /// Returns a `docker` command that talks to this engine.
    pub fn docker(&self) -> Command {
        self.engine.docker()
    }
}

struct Engine {
    socket: PathBuf,
    /// The process that runs the engine. None for an engine that was already there.
    keeper: Option<Child>,
}

impl Engine {
    /// Starts a private engine in a separate keeper process.
    ///
    /// The keeper stops the engine when its stdin closes. That happens whenever this process ends:
    /// normally, by an error, by Ctrl-C, or by SIGKILL.
    fn start() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find the xtask program itself")?;
        let mut keeper = Command::new(own)
            .arg("engine-keeper")
            // Ctrl-C on a terminal goes to the whole process group, and the keeper must survive it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the keeper of the private Docker engine")?;
        let mut line = String::new();
        let stdout = keeper.stdout.take().context("the keeper has no stdout")?;
        BufReader::new(stdout).read_line(&mut line).context("cannot read from the keeper")?;
        let engine = Self { socket: PathBuf::from(line.trim_end()), keeper: Some(keeper) };
        if line.is_empty() {
            bail!("the private Docker engine did not start; see its last lines above");
        }
        Ok(engine)
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        drop(keeper.stdin.take());
        let status = keeper.wait().context("cannot wait for the keeper of the private engine")?;
        // The keeper has already printed what went wrong.
        ensure!(status.success(), "the private Docker engine was not cleaned up; see above");
        Ok(())
    }

    fn docker(&self) -> Command {
        let docker = program::find("docker").unwrap_or_else(|| PathBuf::from("docker"));
        let mut command = Command::new(docker);
        command.arg("--host").arg(format!("unix://{}", self.socket.display()));
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            complain(&format!("{error:#}"));
        }
    }
}

/// The longest answer to read, in bytes. An engine's `/info` has about ten thousand.
const LONGEST: u64 = 1 << 20;

/// Returns the socket of an engine that is already there and answers.
fn answering_socket() -> Option<PathBuf> {
    let named = std::env::var("DOCKER_HOST").ok();
    let named = named.as_deref().and_then(|host| host.strip_prefix("unix://"));
    let usual = ["/var/run/docker.sock", "/run/docker.sock"];
    named.into_iter().chain(usual).map(PathBuf::from).find(|socket| answers(socket))
}

/// Returns the names of the containers of this host's own engine, if one answers.
pub fn containers() -> Vec<String> {
    let Some(socket) = answering_socket() else { return Vec::new() };
    let names =
        program::output(patient_docker(&socket).args(["ps", "--all", "--format", "{{.Names}}"]));
    names.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Returns a `docker` command with a deadline: an engine that hangs must not block the run.
fn patient_docker(socket: &Path) -> Command {
    let mut docker = Command::new("timeout");
    docker.args(["60", "docker", "--host"]).arg(format!("unix://{}", socket.display()));
    docker
}

/// Returns whether an engine answers a ping.
fn answers(socket: &Path) -> bool {
    let well = |answer: String| answer.starts_with("HTTP/1.") && answer.contains(" 200 ");
    get(socket, "/_ping").is_ok_and(well)
}

/// Returns whether an engine creates cgroups itself, instead of through systemd.
fn uses_cgroupfs(socket: &Path) -> bool {
    get(socket, "/info").is_ok_and(|answer| answer.contains(r#""CgroupDriver":"cgroupfs""#))
}

fn get(socket: &Path, path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
