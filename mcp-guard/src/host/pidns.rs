//! `pid_max` of a container's own pid namespace.
//!
//! Since Linux 6.14 each has its own, and the sysctl answers for the namespace of whoever asks: a process
//! must be started inside, where the container can stop it. So it gets little time. It keeps its
//! capabilities, because they are what forbids the container to trace it (ptrace(2): the tracer needs
//! all those of the traced, or `CAP_SYS_PTRACE`): a process without any, in the host's other namespaces,
//! would be its way out. Where somebody inside may trace all the same, nothing is started.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mcp_guard_core::id::Pid;
use rustix::process::{Signal, kill_process_group};

/// A whole container is stopped or slow at worst.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// Digits of the largest, and a newline.
const MAX_ANSWER: u64 = 32;

/// # Errors
/// Says why it could not be asked for.
pub async fn pid_max_in_namespace_of(pid: Pid) -> Result<u64, String> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &pid.to_string(), "--pid", "--"]);
    answer(nsenter.args(["cat", "/proc/sys/kernel/pid_max"]), PATIENCE).await
}

async fn answer(command: &mut Command, patience: Duration) -> Result<u64, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let started = command.spawn();
    let mut child = started.map_err(|error| format!("nsenter cannot be started: {error}"))?;
    let ended = end_of(&mut child, patience).await;
    if ended.is_none() {
        // Its group has what it started inside of the container, and keeps its number until the wait.
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = child.wait();
    }
    if ended != Some(true) {
        return Err(
            "no process can be started in its pid namespace: it may be full, or not for this user"
                .to_owned(),
        );
    }
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_string(&mut text).map_err(|error| error.to_string())?;
    }
    text.trim().parse().map_err(|_| "what pid_max is there is no number".to_owned())
}

/// Whether it did its work; None where it took too long.
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
    async fn an_answer_is_a_number_in_time() {
        assert_eq!(said("echo 4194304").await, Ok(4_194_304));
        assert!(said("echo many").await.is_err());
        assert!(said("exit 1").await.unwrap_err().contains("may be full"));
        let began = Instant::now();
        // Also what it has started ends, and holds nobody up.
        assert!(said("sleep 60 & wait").await.unwrap_err().contains("may be full"));
        assert!(said("kill -STOP $$").await.is_err());
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
