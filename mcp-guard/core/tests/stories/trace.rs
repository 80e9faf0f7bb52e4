//! Writes traces.

use std::fmt::Write as _;

use mcp_guard_core::{
    policy::{Policy, Response},
    replay::{ReplayReport, replay},
};

pub const SECOND: u64 = 1_000_000_000;
pub const MINUTE: u64 = 60;
pub const HOUR: u64 = 3600;
pub const DAY: u64 = 86_400;

/// A trace of one container, second by second. Its first process is 1.
pub struct Trace {
    lines: Vec<(u64, String)>,
    next: u32,
}

impl Trace {
    /// `command`: the words of the first process, separated by spaces.
    pub fn new(command: &str) -> Self {
        let mut trace = Self { lines: Vec::new(), next: 2 };
        trace.exec(0, 1, command);
        trace
    }

    fn line(&mut self, second: u64, event: &str, pid: u32, rest: &str) {
        // Events of one second keep their order.
        let t = second * SECOND + self.lines.len() as u64 % SECOND;
        self.lines.push((t, format!("{{\"t\":{t},\"e\":\"{event}\",\"p\":{pid}{rest}}}")));
    }

    pub fn fork(&mut self, second: u64, parent: u32) -> u32 {
        let child = self.next;
        self.next += 1;
        self.line(second, "fork", parent, &format!(",\"c\":{child}"));
        child
    }

    pub fn exec(&mut self, second: u64, pid: u32, command: &str) {
        let argv: Vec<&str> = command.split(' ').collect();
        let argv = serde_json::to_string(&argv).expect("JSON");
        self.line(second, "exec", pid, &format!(",\"argv\":{argv}"));
    }

    pub fn exit(&mut self, second: u64, pid: u32) {
        self.line(second, "exit", pid, "");
    }

    pub fn used(&mut self, second: u64, pid: u32) {
        self.line(second, "use", pid, "");
    }

    pub fn hung_up(&mut self, second: u64, pid: u32) {
        self.line(second, "hup", pid, "");
    }

    pub fn crash(&mut self, second: u64, pid: u32) {
        self.line(second, "exit", pid, ",\"code\":256");
    }

    /// Starts a chain of programs, each the child of the one before. Returns their processes.
    pub fn start(&mut self, second: u64, parent: u32, chain: &[&str]) -> Vec<u32> {
        let mut parent = parent;
        let mut pids = Vec::new();
        for command in chain {
            parent = self.fork(second, parent);
            self.exec(second, parent, command);
            pids.push(parent);
        }
        pids
    }

    pub fn report(mut self) -> ReplayReport {
        self.lines.sort_by_key(|(t, _)| *t);
        let mut text = "{\"format\":\"spawn-trace/1\"}\n".to_owned();
        for (_, line) in self.lines {
            let _ = writeln!(text, "{line}");
        }
        replay(&text, Policy::default()).expect("well-formed")
    }
}

/// Returns the seconds of the first warning, and of the first action that is more than a record.
pub fn first(report: &ReplayReport) -> (Option<u64>, Option<u64>) {
    let acts = report.actions.iter().find(|one| one.response > Response::Record);
    let warned = report.warnings.first().map(|one| one.t_ns / SECOND);
    (warned, acts.map(|one| one.t_ns / SECOND))
}
