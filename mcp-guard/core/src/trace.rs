//! The format of recorded traces: JSON lines, a header and then what the core was told about one guard, oldest first.
//!
//! Times are in nanoseconds since the start of the trace. A trace may be written by another tool: only `format`
//! is needed in the header, and `fork`, `exec` and `exit` are enough. Unknown keys are ignored, so that a recorder may
//! add some.

mod recorder;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::recorder::Recorder;
use crate::{
    evidence::{Activity, Contact, Reaper, ServerSeen, Unreaped},
    id::{Pid, Ticks},
    policy::{Mode, Workload},
    registry::Observed,
    server::CommandLine,
};

pub const FORMAT: &str = "spawn-trace/1";
/// Latest time in a trace. Replay steps through every second, so a damaged time must not make it
/// endless.
const LONGEST_NS: u64 = 366 * 86_400 * 1_000_000_000;
/// Latest time since boot at which a trace may begin.
const LATEST_BOOT_NS: u64 = 100 * LONGEST_NS;

/// A line of a trace that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct MalformedTrace {
    pub line: usize,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHeader {
    pub format: String,
    /// The trace says when processes did something, or has the looks at servers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub evidence: bool,
    /// The trace has the kernel's totals and the tasks in the cgroup. Without it, they are counted from its events.
    #[serde(default, skip_serializing_if = "is_false")]
    pub totals: bool,
    /// When it began on `CLOCK_BOOTTIME`.
    #[serde(default)]
    pub boot_ns: u64,
    /// The mode of the guard. Without it, responses count as carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The maximum number of tasks on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_tasks: Option<u64>,
    /// The words that rules of a policy match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<TracedGuard>,
}

/// The facts that the rules of a policy ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TracedGuard {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
    /// Those of compose, and those that a rule names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<TracedGuard> for Workload {
    fn from(TracedGuard { name, image, cgroup, labels }: TracedGuard) -> Self {
        Self { name, image, labels, cgroup }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "kebab-case")]
pub enum TraceEvent {
    Fork {
        t: u64,
        p: Pid,
        c: Pid,
        #[serde(default, skip_serializing_if = "is_false")]
        thread: bool,
    },
    Exec {
        t: u64,
        p: Pid,
        #[serde(flatten)]
        command: TracedCommand,
        /// When the process was born, if no event says it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        born: Option<i64>,
    },
    Exit {
        t: u64,
        p: Pid,
        #[serde(default, skip_serializing_if = "is_false")]
        thread: bool,
        /// The status as `wait(2)` returns it.
        #[serde(default, skip_serializing_if = "is_zero")]
        code: u32,
    },
    /// The process did something since the last look at it.
    Use {
        t: u64,
        p: Pid,
    },
    /// Nobody can write to its standard input any more.
    Hup {
        t: u64,
        p: Pid,
    },
    /// A process was moved in from outside.
    Join {
        t: u64,
        p: Pid,
        born: i64,
        /// The process as `/proc` showed it soon after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<SeenProcess>,
    },
    /// A process was moved out.
    Leave {
        t: u64,
        p: Pid,
    },
    /// A process as `/proc` showed it. All up to the next `baseline` belong together.
    Seen {
        t: u64,
        #[serde(flatten)]
        process: SeenProcess,
    },
    /// The processes seen since the last one are all that live.
    Baseline {
        t: u64,
    },
    /// The kernel's counts since the guard began.
    Totals {
        t: u64,
        forks: u64,
        threads: u64,
        execs: u64,
        exits: u64,
        thread_exits: u64,
    },
    /// The limit in force, and the tasks.
    Limit {
        t: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tasks: Option<u64>,
    },
    /// Some servers were looked at.
    Look {
        t: u64,
        servers: Vec<SeenServer>,
    },
    /// The zombies were counted.
    Zombies {
        t: u64,
        count: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reaper: Option<SeenReaper>,
    },
    /// The host was suspended until now.
    Woke {
        t: u64,
    },
    /// Lines are missing here.
    Lost {
        t: u64,
        lines: u64,
    },
    End {
        t: u64,
        why: EndOfTrace,
    },
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndOfTrace {
    /// The time for it was over.
    Time,
    /// The file had its largest size.
    Size,
    /// Somebody stopped it.
    Stopped,
    /// The cgroup is gone, or is no longer guarded.
    GuardEnded,
    /// The agent ended, or had to wait too long for the recorder.
    Cut,
}

/// A command line without what its server's name does not need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedCommand {
    pub argv: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenProcess {
    pub p: Pid,
    pub parent: Pid,
    /// In clock ticks since boot.
    pub start: Ticks,
    #[serde(flatten)]
    pub command: TracedCommand,
}

/// A look at a server. What could not be read is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenServer {
    /// One of its processes.
    pub p: Pid,
    #[serde(default, skip_serializing_if = "is_default")]
    pub contact: Contact,
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
    /// Processes, input and output, context switches, CPU time in clock ticks, bytes for disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub did: Option<[u64; 5]>,
    /// How many nanoseconds its threads ran.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ran: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<bool>,
    /// Only its client can give it work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<bool>,
    /// How long the look took, in nanoseconds: what it saw holds from its beginning on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub took: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenReaper {
    pub p: Pid,
    pub name: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub init: bool,
}

impl TraceEvent {
    #[must_use]
    pub fn time(&self) -> u64 {
        match self {
            Self::Fork { t, .. }
            | Self::Exec { t, .. }
            | Self::Exit { t, .. }
            | Self::Use { t, .. }
            | Self::Hup { t, .. }
            | Self::Join { t, .. }
            | Self::Leave { t, .. }
            | Self::Seen { t, .. }
            | Self::Baseline { t }
            | Self::Totals { t, .. }
            | Self::Limit { t, .. }
            | Self::Look { t, .. }
            | Self::Zombies { t, .. }
            | Self::Woke { t }
            | Self::Lost { t, .. }
            | Self::End { t, .. } => *t,
        }
    }
}

impl From<&CommandLine> for TracedCommand {
    fn from(command: &CommandLine) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let words = command.argv.strip_suffix(b"\0").unwrap_or(&command.argv);
        let argv = if command.argv.is_empty() {
            Vec::new()
        } else {
            words.split(|byte| *byte == 0).map(text).collect()
        };
        let [exe, cwd] = [&command.exe, &command.cwd].map(|path| path.as_deref().map(text));
        Self { argv, exe, cwd }
    }
}

impl From<&TracedCommand> for CommandLine {
    fn from(TracedCommand { argv, exe, cwd }: &TracedCommand) -> Self {
        let argv = argv.iter().flat_map(|word| word.bytes().chain([0])).collect();
        let [exe, cwd] = [exe, cwd].map(|text| text.clone().map(String::into_bytes));
        Self { argv, exe, cwd }
    }
}

impl From<&SeenProcess> for Observed {
    fn from(SeenProcess { p, parent, start, command }: &SeenProcess) -> Self {
        Self { pid: *p, start_ticks: *start, parent: *parent, command: command.into() }
    }
}

impl From<&SeenServer> for ServerSeen {
    fn from(seen: &SeenServer) -> Self {
        let activity = |[processes, io, context_switches, cpu, written]: [u64; 5]| Activity {
            runtime: seen.ran,
            processes,
            io,
            context_switches,
            cpu,
            written,
        };
        Self {
            is_stopped: seen.stopped,
            contact: seen.contact,
            activity: seen.did.map(activity),
            is_busy: seen.busy,
            is_stdio_alone: seen.alone,
            ..Self::default()
        }
    }
}

impl From<&SeenReaper> for Reaper {
    fn from(SeenReaper { p, name, init }: &SeenReaper) -> Self {
        Self { pid: *p, name: name.clone(), is_init: *init }
    }
}

/// Returns the zombies of a [`TraceEvent::Zombies`].
pub(crate) fn unreaped(count: u64, reaper: Option<&SeenReaper>) -> Unreaped {
    Unreaped { zombies: count, reaper: reaper.map(Reaper::from) }
}

/// Parses a whole trace.
///
/// # Errors
/// If a line does not match the format. The error names the first one.
pub fn parse(trace: &str) -> Result<(TraceHeader, Vec<TraceEvent>), MalformedTrace> {
    let mut lines = trace.lines().enumerate().map(|(at, line)| (at + 1, line));
    let malformed = |line, reason: String| MalformedTrace { line, reason };
    let (_, header) =
        lines.next().ok_or_else(|| malformed(1, "the file is empty; it needs a header".into()))?;
    let header: TraceHeader = serde_json::from_str(header)
        .map_err(|error| malformed(1, format!("not the header of a spawn trace: {error}")))?;
    if header.format != FORMAT {
        let reason = format!("unknown format {:?}; expected {FORMAT:?}", header.format);
        return Err(malformed(1, reason));
    }
    if header.boot_ns > LATEST_BOOT_NS {
        return Err(malformed(1, "boot_ns is more than a century after the boot".into()));
    }
    let mut events: Vec<TraceEvent> = Vec::new();
    for (number, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let event: TraceEvent =
            serde_json::from_str(line).map_err(|error| malformed(number, in_line(&error)))?;
        if event.time() > LONGEST_NS {
            return Err(malformed(number, "the time is more than a year after the start".into()));
        }
        events.push(event);
    }
    Ok((header, events))
}

/// Returns the error without its line number: the parser sees one line at a time and calls each one
/// line 1.
fn in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("column {}: {what}", error.column()),
        None => text,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
