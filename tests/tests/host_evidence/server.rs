//! A real program whose client is the test.

use std::{
    any::Any,
    fs,
    io::Read as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use mcp_guard::host::{
    evidence::{Freezers, ServerLook, look, stdio, survey},
    process::OpenProcess,
};
use mcp_guard_core::{
    evidence::{Activity, AtWork, Channels, ServerSeen, StdioAtExec, at_work},
    id::Pid,
    registry::{Member, ToLookAt, TreeId},
};
use mcp_guard_tests::{agent::DEADLINE, wait};

/// Answers each line.
pub const ECHO: &str = "process.stdin.on('data', line => process.stdout.write(line));";

/// Returns the stdio of a process.
pub fn stdio_of(pid: u32) -> StdioAtExec {
    stdio(Pid(pid)).unwrap().1
}

/// A program with its stdio. Killed and reaped on drop, with all that it has started.
pub struct Server {
    pub child: Child,
    /// As it was at the start.
    pub stdio: StdioAtExec,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    /// The one member that is looked at, if it is not all of them.
    pub alone: Option<Pid>,
    /// Lives as long as the program.
    pub kept: Vec<Box<dyn Any>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for member in self.members().into_iter().skip(1) {
            let pid = rustix::process::Pid::from_raw(i32::try_from(member.pid.0).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program with pipes.
    pub fn start(words: &[&str]) -> Self {
        Self::with(words, Stdio::piped(), Stdio::piped())
    }

    pub fn with(words: &[&str], stdin: Stdio, stdout: Stdio) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(stdin).stdout(stdout).stderr(Stdio::null());
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdio = stdio_of(child.id());
        Self { child, stdio, stdin, stdout, alone: None, kept: Vec::new() }
    }

    /// A script of node, once it has written `ready`.
    pub fn node(script: &str) -> Self {
        Self::start(&["node", "-e", script]).once_ready()
    }

    pub fn once_ready(mut self) -> Self {
        let mut ready = [0; 6];
        self.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        self
    }

    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    pub fn keeping(mut self, what: impl Any) -> Self {
        self.kept.push(Box::new(what));
        self
    }

    pub fn channels(&self) -> Channels {
        match self.stdio {
            StdioAtExec::Are(channels) => channels,
            StdioAtExec::Other | StdioAtExec::Unread => panic!("it has no stdio"),
        }
    }

    /// The program and all of its descendants.
    pub fn members(&self) -> Vec<Member> {
        let mut pids = vec![Pid(self.child.id())];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            pids.extend(children.split_whitespace().map(|pid| Pid(pid.parse().unwrap())));
            next += 1;
        }
        // One may end meanwhile.
        let member = |pid| {
            let start_ticks = OpenProcess::open(pid).and_then(|process| process.start_ticks());
            Some(Member { pid, start_ticks: start_ticks.ok()?, is_launcher: false })
        };
        pids.into_iter().filter_map(member).collect()
    }

    pub fn look(&self) -> ServerLook {
        look(&self.members(), self.channels()).unwrap()
    }

    /// Looks at it as the agent does. `activity`: what the look before has seen.
    pub fn survey(&self, activity: Option<Activity>) -> ServerSeen {
        let (server, stdio, mut members) = (TreeId(1), self.stdio, self.members());
        members.retain(|one| self.alone.is_none_or(|alone| alone == one.pid));
        survey(&ToLookAt { server, stdio, activity, members }, &Freezers::default())
    }

    /// Waits until a look says this.
    pub fn await_verdict(&self, what: &str, is_it: impl Fn(Option<AtWork>) -> bool) {
        let mut last = None;
        let reached = wait::until(DEADLINE, || {
            // A member may end meanwhile.
            let Ok(look) = look(&self.members(), self.channels()) else { return Ok(false) };
            last = at_work(&look.tree);
            Ok(is_it(last))
        });
        assert!(reached.unwrap(), "{what}: {last:?}");
    }

    pub fn await_rest(&self) {
        self.await_verdict("at rest", |verdict| verdict.is_none());
    }
}
