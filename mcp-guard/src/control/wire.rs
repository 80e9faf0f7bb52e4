//! What goes over the socket.

use std::{collections::BTreeMap, fmt};

use mcp_guard_core::{
    id::{CgroupId, Pid},
    incident::Outcome,
    policy::Mode,
    status::GuardStatus,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A message of more bytes ends the connection.
pub const MAX_MESSAGE: usize = 4 << 20;

pub const INTERFACE: &str = "io.mcpguard";

#[derive(Debug, Serialize, Deserialize)]
pub struct CallMessage {
    pub method: String,
    #[serde(default)]
    pub parameters: Value,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default)]
    pub parameters: Value,
}

/// A call that only the agent's loop can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Status,
    Freeze {
        target: TargetCgroup,
        lease_ms: u64,
        dry_run: bool,
    },
    Thaw {
        target: TargetCgroup,
    },
    Kill {
        target: TargetCgroup,
        dry_run: bool,
    },
    /// Debug builds only: ends the loop by a panic, to test what becomes of holds.
    Panic,
}

/// A cgroup by path and id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCgroup {
    pub cgroup: String,
    pub cgroup_id: CgroupId,
    pub name: String,
    /// Whoever asks has just heard from the engine that it is paused.
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
    /// By cause, since the agent began. Totals stay right except under "recursion".
    pub losses: BTreeMap<String, u64>,
    /// Audit lines given up because the log could not be written.
    pub audit_lost: u64,
    pub engine: EngineState,
}

/// How the agent stands with the engine. Sent as the text that is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum EngineState {
    /// The agent was started without one.
    None,
    /// It has not answered yet.
    Connecting,
    Connected,
    /// It cannot be reached, and why.
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
                None => Err(format!("{other:?} is no state of an engine")),
            },
        }
    }
}

/// A guard with what the host says of its cgroup.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchedStatus {
    #[serde(flatten)]
    pub guard: GuardStatus,
    pub cgroup: String,
    pub cgroup_id: CgroupId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub paused: bool,
    /// An operator acts upon it, and no policy names it.
    #[serde(default)]
    pub by_hand: bool,
    pub pids_max: Option<String>,
    pub pids_current: Option<u64>,
    /// The limit that is held here; None where nobody wants one.
    pub pids_wanted: Option<u64>,
    /// The one of the policy.
    pub pids_policy: Option<u64>,
    /// It is not in force and left alone: undone too often, or only observed.
    pub pids_left: bool,
}

/// How an operator's request ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub outcome: Outcome,
    pub detail: String,
}

/// Why a method of ours could not be carried out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    pub reason: String,
}

/// A method of [`INTERFACE`]: the type has its parameters.
pub trait Method: Serialize + DeserializeOwned {
    const NAME: &'static str;
    type Reply: Serialize + DeserializeOwned;

    /// # Errors
    /// A parameter is missing, or is of another type.
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
pub struct Freeze {
    #[serde(flatten)]
    pub target: TargetCgroup,
    pub lease_ms: u64,
    #[serde(default)]
    pub dry_run: bool,
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
}

impl Method for Kill {
    const NAME: &'static str = "Kill";
    type Reply = Answer;
}

#[must_use]
pub fn failed(reason: &str) -> Reply {
    let error = Some("io.mcpguard.Failed".to_owned());
    Reply { error, parameters: serde_json::json!(Failed { reason: reason.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::EngineState;

    #[test]
    fn the_state_of_the_engine_is_sent_as_a_text_and_read_again() {
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
