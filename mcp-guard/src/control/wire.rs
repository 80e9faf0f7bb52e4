//! Messages of the control socket.

use std::{collections::BTreeMap, fmt, time::Duration};

use mcp_guard_core::{
    id::{CgroupId, Pid},
    incident::Outcome,
    policy::{Mode, PolicySource},
    refusal::Despite,
    server_order::ListedServer,
    status::{GuardStatus, HerdStatus, ServerStatus, UnseenClients},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Largest message, in bytes. A larger one ends the connection.
pub const MAX_MESSAGE: usize = 4 << 20;

pub const INTERFACE: &str = "io.mcpguard";
/// The error of a call of a method that does not exist.
pub const NO_SUCH_METHOD: &str = "org.varlink.service.MethodNotFound";
/// The error of a call without `more` of a method that has several replies.
pub const EXPECTED_MORE: &str = "org.varlink.service.ExpectedMore";

#[derive(Debug, Serialize, Deserialize)]
pub struct CallMessage {
    pub method: String,
    #[serde(default)]
    pub parameters: Value,
    /// The caller takes several replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default)]
    pub parameters: Value,
    /// Another reply to the same call follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<bool>,
}

/// A call that only the agent's loop can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Status,
    Servers(GetServers),
    ReloadPolicy,
    PolicyInForce,
    Record(RecordTrace),
    Freeze {
        target: TargetCgroup,
        lease_ms: u64,
        dry_run: bool,
        despite: Option<Despite>,
    },
    Thaw {
        target: TargetCgroup,
    },
    Kill {
        target: TargetCgroup,
        dry_run: bool,
        despite: Option<Despite>,
    },
    Suspend(Suspend),
    Resume(Resume),
    Reap(Reap),
    /// Panics in the loop, to test that holds are released. Debug builds only.
    Panic,
}

/// A cgroup, identified by path and id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCgroup {
    pub cgroup: String,
    pub cgroup_id: CgroupId,
    pub name: String,
    /// The caller has just learned from the engine that the container is paused.
    #[serde(default)]
    pub paused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: Pid,
    pub uptime_ms: u64,
    pub mode: Mode,
    pub guards: Vec<WatchedStatus>,
    /// Losses by cause, since the agent started. Totals stay exact except for "recursion".
    pub losses: BTreeMap<String, u64>,
    /// Audit lines dropped because the log could not be written.
    pub audit_lost: u64,
    /// Cgroups that the policy names and that could not be guarded.
    #[serde(default)]
    pub unguarded: usize,
    /// The longest turn of the agent's loop in the last one to two minutes, in microseconds. Nothing else
    /// is handled during a turn.
    #[serde(default)]
    pub longest_turn_us: u64,
    /// Containers of one image that have lost their clients. Not all of them need be guarded.
    #[serde(default)]
    pub herds: Vec<HerdStatus>,
    /// Engines for which `herds` says nothing, because the clients of their containers could not be looked at.
    #[serde(default)]
    pub clients_unseen: Vec<UnseenClients>,
    pub engine: EngineState,
    #[serde(default)]
    pub policy: PolicyStatus,
}

/// The policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The files that it was read from, in that order.
    pub files: Vec<String>,
    /// Why the present content of the files is not in force, since it was last read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// State of the agent's connection to the engine. It is sent as the displayed text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum EngineState {
    /// The agent was started without an engine.
    None,
    /// The engine has not answered yet.
    Connecting,
    Connected,
    /// The engine cannot be reached, and why.
    Away(String),
}

impl fmt::Display for EngineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Connecting => f.write_str("connecting"),
            Self::Connected => f.write_str("connected"),
            Self::Away(why) => write!(f, "away: {why}"),
        }
    }
}

impl From<EngineState> for String {
    fn from(state: EngineState) -> Self {
        state.to_string()
    }
}

impl TryFrom<String> for EngineState {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "none" => Ok(Self::None),
            "connecting" => Ok(Self::Connecting),
            "connected" => Ok(Self::Connected),
            other => match other.strip_prefix("away: ") {
                Some(why) => Ok(Self::Away(why.to_owned())),
                None => Err(format!("{other:?} is not a state of an engine")),
            },
        }
    }
}

/// A guard, with the host's state of its cgroup.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchedStatus {
    #[serde(flatten)]
    pub guard: GuardStatus,
    pub cgroup: String,
    pub cgroup_id: CgroupId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub paused: bool,
    /// Tasks that a freeze or a kill has not stopped yet; a large number is a lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<u64>,
    /// Held by an operator; no policy names it.
    #[serde(default)]
    pub by_hand: bool,
    pub pids_max: Option<String>,
    pub pids_current: Option<u64>,
    /// The limit that mcp-guard enforces here; `None` if none is wanted.
    pub pids_wanted: Option<u64>,
    /// The limit that the policy asks for.
    pub pids_policy: Option<u64>,
    /// The limit is not in force, and mcp-guard does not restore it: it was undone too often, or the mode is
    /// observe.
    pub pids_left: bool,
}

/// The outcome of an operator's request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub outcome: Outcome,
    pub detail: String,
}

/// Why a call could not be carried out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    pub reason: String,
}

/// A method of [`INTERFACE`]. The implementing type is its parameters.
pub trait Method: Serialize + DeserializeOwned {
    const NAME: &'static str;
    /// The longest wait for an answer. The agent confirms a freeze, or fails, in less.
    const PATIENCE: Duration = Duration::from_secs(15);
    type Reply: Serialize + DeserializeOwned;

    /// Parses the parameters.
    ///
    /// # Errors
    /// A parameter is missing or has the wrong type.
    fn read(parameters: Value) -> serde_json::Result<Self> {
        serde_json::from_value(parameters)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct GetStatus {}

impl Method for GetStatus {
    const NAME: &'static str = "Status";
    type Reply = Status;
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadPolicy {}

impl Method for ReloadPolicy {
    const NAME: &'static str = "ReloadPolicy";
    type Reply = Reloaded;
}

/// How the policy was read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The files that were read, in that order.
    pub files: Vec<String>,
    /// The differences to the policy before.
    pub changes: Vec<String>,
    /// Why the old policy stays in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct GetPolicy {}

impl Method for GetPolicy {
    // "Policy" is the name of a type.
    const NAME: &'static str = "PolicyInForce";
    type Reply = PolicyInForce;
}

/// The policy that the agent runs. Its files may have changed since it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInForce {
    /// The file that a reload reads; `None` if the agent was started without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    pub age_ms: u64,
    /// The content of the files as they were read, in that order.
    pub sources: Vec<PolicySource>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetServers {
    /// The guard whose servers are listed; without it, those of all guards are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<CgroupId>,
    /// The identity whose servers are listed; without it, those of all identities are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

impl Method for GetServers {
    const NAME: &'static str = "Servers";
    type Reply = Servers;
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Servers {
    pub guards: Vec<GuardServers>,
    /// Servers that are not listed, because there are too many.
    pub left_out: usize,
    /// How old the list was when it was sent: their clients are looked for meanwhile, and other lists come first.
    #[serde(default)]
    pub age_seconds: u64,
}

/// The live servers of one guard, the oldest first.
#[derive(Debug, Serialize, Deserialize)]
pub struct GuardServers {
    pub name: String,
    pub cgroup: String,
    pub cgroup_id: CgroupId,
    pub servers: Vec<ServerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordTrace {
    /// The guard that is recorded.
    pub cgroup_id: CgroupId,
    /// How long it is recorded at most.
    pub for_ms: u64,
}

impl Method for RecordTrace {
    const NAME: &'static str = "RecordTrace";
    type Reply = TracePart;
}

/// Some lines of a trace. The first part has its header.
#[derive(Debug, Serialize, Deserialize)]
pub struct TracePart {
    pub lines: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Freeze {
    #[serde(flatten)]
    pub target: TargetCgroup,
    pub lease_ms: u64,
    #[serde(default)]
    pub dry_run: bool,
    /// The process that runs containers and that the caller gives up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub despite: Option<Despite>,
}

impl Method for Freeze {
    const NAME: &'static str = "Freeze";
    type Reply = Answer;
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Thaw {
    #[serde(flatten)]
    pub target: TargetCgroup,
}

impl Method for Thaw {
    const NAME: &'static str = "Thaw";
    type Reply = Answer;
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Kill {
    #[serde(flatten)]
    pub target: TargetCgroup,
    #[serde(default)]
    pub dry_run: bool,
    /// The process that runs containers and that the caller gives up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub despite: Option<Despite>,
}

impl Method for Kill {
    const NAME: &'static str = "Kill";
    type Reply = Answer;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspend {
    #[serde(flatten)]
    pub target: TargetCgroup,
    /// At most 64. One that is not quiescent any more is left alone.
    pub servers: Vec<ListedServer>,
    #[serde(default)]
    pub dry_run: bool,
}

impl Method for Suspend {
    const NAME: &'static str = "Suspend";
    // Two looks, a pause and a freeze, for up to 64 servers.
    const PATIENCE: Duration = Duration::from_secs(60);
    type Reply = Answer;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    #[serde(flatten)]
    pub target: TargetCgroup,
    /// At most 64.
    pub servers: Vec<ListedServer>,
}

impl Method for Resume {
    const NAME: &'static str = "Resume";
    type Reply = Answer;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reap {
    #[serde(flatten)]
    pub target: TargetCgroup,
    /// At most 64. One that is not as `Servers` has listed it is left alone: its client can reach it again, or it has
    /// done something.
    pub servers: Vec<ListedServer>,
    #[serde(default)]
    pub dry_run: bool,
}

impl Method for Reap {
    const NAME: &'static str = "Reap";
    // A look, a pause, the grace and a kill, for up to 64 servers.
    const PATIENCE: Duration = Duration::from_secs(60);
    type Reply = Answer;
}

#[must_use]
pub fn failed(reason: &str) -> Reply {
    let error = Some("io.mcpguard.Failed".to_owned());
    let parameters = serde_json::json!(Failed { reason: reason.to_owned() });
    Reply { error, parameters, continues: None }
}

#[cfg(test)]
mod tests {
    use super::EngineState;

    #[test]
    fn the_state_of_the_engine_is_sent_as_text_and_parsed_again() {
        for (state, text) in [
            (EngineState::None, "none"),
            (EngineState::Connecting, "connecting"),
            (EngineState::Connected, "connected"),
            (EngineState::Away("no such file: away: 2".to_owned()), "away: no such file: away: 2"),
        ] {
            assert_eq!(serde_json::to_value(&state).unwrap(), text);
            assert_eq!(serde_json::from_value::<EngineState>(text.into()).unwrap(), state);
        }
        assert!(serde_json::from_value::<EngineState>("away".into()).is_err());
    }
}
