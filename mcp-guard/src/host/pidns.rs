//! `pid_max` of a container's own pid namespace.
//!
//! Since Linux 6.14 each pid namespace has its own, and the sysctl shows that of the process that
//! reads it. So a process must be started inside, where the container can stop it; it gets little
//! time. It keeps its capabilities, because they prevent the container from tracing it (ptrace(2):
//! a tracer needs all capabilities of the traced process, or `CAP_SYS_PTRACE`). Without them it
//! would be a way out of the container, because its other namespaces are the host's. If a process
//! inside may trace it nevertheless, nothing is started.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mcp_guard_core::id::Pid;
use rustix::process::{Signal, kill_process_group};

/// The time limit, for the case that the whole container is stopped or slow.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// Most bytes read of the answer: enough for the largest number and a newline.
const MAX_ANSWER: u64 = 32;

/// # Errors
/// Says why the value cannot be read.
pub async fn pid_max_in_namespace_of(pid: Pid) -> Result<u64, String> {
    let mut nsenter = Command::new(program("nsenter")?);
    nsenter.args(["--target", &pid.to_string(), "--pid", "--"]);
    nsenter.arg(program("cat")?).arg("/proc/sys/kernel/pid_max");
    answer(&mut nsenter, PATIENCE).await
}

/// Finds a program of the system. `PATH` may name folders of other users.
fn program(name: &str) -> Result<PathBuf, String> {
    let paths =
        ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
    paths.into_iter().find(|path| path.is_file()).ok_or_else(|| format!("{name} is not installed"))
}

async fn answer(command: &mut Command, patience: Duration) -> Result<u64, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let started = command.spawn();
    let mut child = started.map_err(|error| format!("cannot start nsenter: {error}"))?;
    let ended = end_of(&mut child, patience).await;
    if ended.is_none() {
        // Its process group includes what it started inside the container. The group's number stays
        // valid until the wait.
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = child.wait();
    }
    if ended != Some(true) {
        return Err(
            "cannot start a process in its pid namespace: it may be full, or closed to this user"
                .to_owned(),
        );
    }
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_string(&mut text).map_err(|error| error.to_string())?;
    }
    text.trim().parse().map_err(|_| "its pid_max is not a number".to_owned())
}

/// Waits for its end, and returns whether it succeeded. `None` if it took too long.
async fn end_of(child: &mut Child, patience: Duration) -> Option<bool> {
    let began = Instant::now();
    while began.elapsed() < patience {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) => tokio::time::sleep(LOOK).await,
            Err(_) => return Some(false),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(script: &str) -> Result<u64, String> {
        let patience = Duration::from_millis(300);
        answer(Command::new("sh").args(["-c", script]), patience).await
    }

    #[tokio::test]
    async fn an_answer_is_a_number_that_arrives_in_time() {
        assert_eq!(said("echo 4194304").await, Ok(4_194_304));
        assert!(said("echo many").await.is_err());
        assert!(said("exit 1").await.unwrap_err().contains("may be full"));
        let began = Instant::now();
        // Processes that it has started end too, and do not block the caller.
        assert!(said("sleep 60 & wait").await.unwrap_err().contains("may be full"));
        assert!(said("kill -STOP $$").await.is_err());
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
