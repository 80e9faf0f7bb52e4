//! The engine and the images of the tests in Docker.

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

use anyhow::{Context, Result, bail};

pub use image::{BUSYBOX_IMAGE, NODE_IMAGE, SETTINGS};
pub use keeper::keep_engine;
pub use leftovers::cgroup_mounts;
pub use rootfs::{Rootfs, add_busybox, busybox as busybox_files, node as node_files};

use crate::packages::{self, Permission};
use crate::program;
use crate::say::{complain, say};

/// `cargo xtask docker`: runs a command with the rig at hand and passes its exit code on.
pub fn with_rig(setup: bool, words: &[String]) -> Result<u8> {
    let rig = match Rig::prepare(Permission::from_flag(setup)) {
        Ok(rig) => rig,
        Err(reason) => {
            complain(&format!("could not: {reason:#}"));
            return Ok(2);
        }
    };
    let Some((name, arguments)) = words.split_first() else { bail!("no command to run") };
    let mut command = Command::new(name);
    rig.tell(command.args(arguments));
    command.env("DOCKER_HOST", format!("unix://{}", rig.socket().display()));
    program::exit_code(&mut command)
}

/// An engine that answers, and the images the tests need in it.
pub struct Rig {
    engine: Engine,
}

impl Rig {
    /// Finds or starts an engine and fills it. Nothing is installed or started without permission.
    pub fn prepare(permission: Permission) -> Result<Self> {
        let found = answering_socket();
        let permission = packages::provide(permission, found.is_some())?;
        // Installing the engine may have started it, where systemd runs.
        let engine = match found.or_else(answering_socket) {
            Some(socket) => Engine { socket, keeper: None },
            None => {
                packages::ask(permission, "no Docker engine answers", "dockerd")?;
                Engine::start()?
            }
        };
        say(&format!("docker: using the engine at {}", engine.socket.display()));
        image::provide(&engine)?;
        Ok(Self { engine })
    }

    /// The Unix socket of the engine.
    pub fn socket(&self) -> &Path {
        &self.engine.socket
    }

    /// Tells a command where the engine is and how the images are named.
    pub fn tell(&self, command: &mut Command) {
        command
            .env("MCP_GUARD_TEST_DOCKER", &self.engine.socket)
            .env("MCP_GUARD_TEST_IMAGE", NODE_IMAGE)
            .env("MCP_GUARD_TEST_BUSYBOX", BUSYBOX_IMAGE);
    }

    /// A `docker` command that talks to this engine.
    pub fn docker(&self) -> Command {
        self.engine.docker()
    }
}

struct Engine {
    socket: PathBuf,
    /// The process that holds the engine; nothing for an engine that was already there.
    keeper: Option<Child>,
}

impl Engine {
    /// Starts a private engine, held by a process of its own.
    ///
    /// The keeper stops the engine when our end of its stdin closes. That happens at our end
    /// however it comes: normal, by an error, by Ctrl-C, or by SIGKILL.
    fn start() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find the xtask program itself")?;
        let mut keeper = Command::new(own)
            .arg("engine-keeper")
            // Ctrl-C on a terminal goes to the whole group; the keeper must outlive it.
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
            bail!("the private Docker engine did not start; its last lines are above");
        }
        Ok(engine)
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
        let Some(keeper) = &mut self.keeper else { return };
        drop(keeper.stdin.take());
        if let Err(error) = keeper.wait() {
            complain(&format!("cannot wait for the engine's keeper: {error}"));
        }
    }
}

/// The socket of an engine that is already there and answers.
fn answering_socket() -> Option<PathBuf> {
    let named = std::env::var("DOCKER_HOST").ok();
    let named = named.as_deref().and_then(|host| host.strip_prefix("unix://"));
    let usual = ["/var/run/docker.sock", "/run/docker.sock"];
    named.into_iter().chain(usual).map(PathBuf::from).find(|socket| answers(socket))
}

/// Whether an engine says that it is well.
fn answers(socket: &Path) -> bool {
    ping(socket).is_ok_and(|answer| answer.starts_with("HTTP/1.") && answer.contains(" 200 "))
}

fn ping(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut head = [0; 64];
    let length = stream.read(&mut head)?;
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}
