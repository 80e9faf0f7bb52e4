//! Process trees that look like MCP servers but need no Node: the kernel sees the forks, the argv
//! and the open stdin of `npm exec`, at a small fraction of the cost.
//!
//! `launcher-lookalike leak --package PKG [--count N] [--every MS] [--shell] [--crash] [--for
//! SECONDS] [--touch MIB]` is the gateway. It starts N trees and keeps their stdins open. When its own stdin
//! reaches EOF or its time is up, even before the last tree has started, it closes their stdins,
//! which ends them. So give it a pipe, not /dev/null. The trees also end if a signal kills it. With
//! `--touch`, each server writes to this much memory, again and again.

use anyhow::{Context, Result, bail, ensure};
use mcp_guard_tests::flags::Flags;
use mcp_guard_tests::lookalike::{self, ROLE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, WaitOptions, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The hidden variable with the folder of the programs of a tree.
const PROGRAMS: &str = "LOOKALIKE_PROGRAMS";
/// The hidden variable that makes the leaf exit at once with code 1.
const CRASH: &str = "LOOKALIKE_CRASH";
/// The hidden variable that makes the leaf write to so many MiB of memory until its stdin ends.
const TOUCH: &str = "LOOKALIKE_TOUCH";
const PAGE: usize = 4096;
const BIN_DIR: &str = "/opt/npm-cache/_npx/0123456789abcdef/node_modules/.bin";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let result = match std::env::var(ROLE).as_deref() {
        Ok("npm") => npm(words.last(), "node"),
        Ok("npm-shell") => npm(words.last(), "sh"),
        Ok("sh") => shell(words.last()),
        Ok("node") => leaf(),
        _ if words.next().as_deref() != Some("leak") => {
            return complain("usage: launcher-lookalike leak --package PKG ...", 64);
        }
        _ => match Leak::parse(words) {
            Ok(leak) => leak.run(),
            Err(error) => return complain(&format!("{error:#}"), 64),
        },
    };
    result.unwrap_or_else(|error| complain(&format!("{error:#}"), 1))
}

fn complain(message: &str, code: u8) -> ExitCode {
    // A failing stderr cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "launcher-lookalike: {message}");
    ExitCode::from(code)
}

struct Leak {
    package: String,
    count: u64,
    every: Duration,
    bound: Duration,
    shell: bool,
    crash: bool,
    touch: u64,
}

impl Leak {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let keys = ["--package", "--count", "--every", "--for", "--touch"];
        let flags = Flags::parse(words, &keys, &["--shell", "--crash"])?;
        let leak = Self {
            package: flags.need("--package")?.to_string(),
            count: flags.number("--count", 1)?,
            every: Duration::from_millis(flags.number("--every", 0)?),
            bound: Duration::from_secs(flags.number("--for", 120)?),
            shell: flags.has("--shell"),
            crash: flags.has("--crash"),
            touch: flags.number("--touch", 0)?,
        };
        ensure!(leak.count <= 1000, "--count must be at most 1000");
        Ok(leak)
    }

    fn run(&self) -> Result<ExitCode> {
        let start = Instant::now();
        let end = start + self.bound;
        raise_open_files()?;
        leave_no_zombies()?;
        let own = std::env::current_exe().context("cannot find this program's path")?;
        let programs = lookalike::links(&own)?;
        let mut stdins = Vec::new();
        let mut asked_to_end = false;
        while !asked_to_end && (stdins.len() as u64) < self.count && Instant::now() < end {
            stdins.push(self.start_tree(&programs)?);
            writeln!(std::io::stdout(), "started {}", stdins.len())?;
            // Measured from the beginning, so that slow starts do not lower the rate.
            let next = start + self.every * u32::try_from(stdins.len())?;
            asked_to_end = (stdins.len() as u64) < self.count && stdin_ends_before(next.min(end))?;
        }
        while !asked_to_end && Instant::now() < end {
            asked_to_end = stdin_ends_before(end)?;
        }
        drop(stdins);
        wait_for_trees()?;
        Ok(ExitCode::SUCCESS)
    }

    fn start_tree(&self, programs: &Path) -> Result<ChildStdin> {
        let role = if self.shell { "npm-shell" } else { "npm" };
        let mut command = program(programs, "npm", role);
        command.env(PROGRAMS, programs);
        command.args(["exec", "--yes", &self.package]).stdin(Stdio::piped()).stdout(Stdio::null());
        if self.crash {
            command.env(CRASH, "1");
        }
        if self.touch > 0 {
            command.env(TOUCH, self.touch.to_string());
        }
        let mut child = command.spawn().context("cannot start a tree")?;
        child.stdin.take().context("a tree has no stdin")
    }
}

/// Process A, `npm exec --yes PKG`. Waits for the server that it started, like npm.
fn npm(package: Option<String>, next: &str) -> Result<ExitCode> {
    let bin = bin_of(&package.context("the package is missing")?);
    if next == "sh" {
        // npm quotes the name; the quotes are part of the argument.
        wait_for(program(&programs()?, "sh", "sh").args(["-c", &format!("'{bin}'")]))
    } else {
        wait_for(&mut server(&bin)?)
    }
}

/// Process B, `sh -c 'BIN'`: a shell that forks for its last command, like dash.
fn shell(script: Option<String>) -> Result<ExitCode> {
    let script = script.context("the script is missing")?;
    wait_for(&mut server(script.trim_matches('\''))?)
}

/// Process C, `node CACHE/_npx/HASH/node_modules/.bin/BIN`.
fn server(bin: &str) -> Result<Command> {
    let mut command = program(&programs()?, "node", "node");
    command.arg(format!("{BIN_DIR}/{bin}"));
    Ok(command)
}

fn leaf() -> Result<ExitCode> {
    if std::env::var_os(CRASH).is_some() {
        return Ok(ExitCode::from(1));
    }
    if let Ok(size) = std::env::var(TOUCH) {
        touch(size.parse()?)?;
    }
    let mut bytes = [0; 64];
    while std::io::stdin().lock().read(&mut bytes).context("cannot read stdin")? > 0 {}
    Ok(ExitCode::SUCCESS)
}

/// Writes to each page of `size` MiB, again and again, until stdin ends.
fn touch(size: usize) -> Result<()> {
    let mut memory = vec![0_u8; size << 20];
    loop {
        // 4 MiB between two looks: each page may have to come from the disk.
        for part in memory.chunks_mut(1024 * PAGE) {
            part.iter_mut().step_by(PAGE).for_each(|byte| *byte = byte.wrapping_add(1));
            std::hint::black_box(part);
            if stdin_ends_before(Instant::now())? {
                return Ok(());
            }
        }
    }
}

fn programs() -> Result<PathBuf> {
    std::env::var_os(PROGRAMS).map(PathBuf::from).context("the folder of the programs is missing")
}

fn program(folder: &Path, name: &str, role: &str) -> Command {
    let mut command = Command::new(folder.join(name));
    command.arg0(name).env(ROLE, role);
    command
}

fn wait_for(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start the next process")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1))?))
}

/// Returns the program that a package installs: `name` for `@scope/name@1.2`.
fn bin_of(package: &str) -> String {
    let name = package.rsplit('/').next().unwrap_or(package);
    name.split('@').next().unwrap_or(name).to_string()
}

/// Waits until stdin reaches EOF (true) or until `time` (false). Discards input.
fn stdin_ends_before(time: Instant) -> Result<bool> {
    let stdin = std::io::stdin();
    loop {
        let left = Timespec::try_from(time.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => {
                if stdin.lock().read(&mut [0; 64]).context("cannot read stdin")? == 0 {
                    return Ok(true);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => bail!("cannot poll stdin: {error}"),
        }
    }
}

/// Raises the limit of open files: a thousand trees need a thousand pipes, and the usual soft limit
/// is 1024.
fn raise_open_files() -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.unwrap_or(4096).min(4096).max(now.current.unwrap_or(4096));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum })
        .context("cannot raise the limit of open files")
}

/// Makes the kernel reap children, so that a crashed tree leaves no zombie while the gateway sleeps.
/// An exec resets this to the default.
fn leave_no_zombies() -> Result<()> {
    // SAFETY: all zero is a valid sigaction: the default handler, an empty mask.
    #[allow(unsafe_code, reason = "no safe wrapper sets SA_NOCLDWAIT")]
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_NOCLDWAIT;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut())
    };
    ensure!(set == 0, "cannot set SA_NOCLDWAIT: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Blocks until the last tree has ended.
fn wait_for_trees() -> Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => bail!("cannot wait for the trees: {error}"),
        }
    }
}
