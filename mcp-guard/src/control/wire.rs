//! What goes over the socket.

use std::collections::BTreeMap;

use mcp_guard_core::{effect::Outcome, policy::Mode, status::GuardStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A message of more bytes ends the connection.
pub const MAX_MESSAGE: usize = 4 << 20;

pub const INTERFACE: &str = "io.mcpguard";

/// The interface in Varlink's own language.
pub const DESCRIPTION: &str = "\
# What mcp-guard watches and holds. Times are milliseconds.
interface io.mcpguard

# The agent's view, as `mcp-guard status --json` prints it.
method Status() -> (version: string, pid: int, uptime_ms: int, mode: string, guards: []object, losses: object, audit_lost: int)

# TARGET is a cgroup of the unified tree, by path and id; the id must still be the path's.
method Freeze(cgroup: string, cgroup_id: int, name: string, paused: ?bool, lease_ms: int, dry_run: bool) -> (outcome: string, detail: string)
method Thaw(cgroup: string, cgroup_id: int, name: string, paused: ?bool) -> (outcome: string, detail: string)
method Kill(cgroup: string, cgroup_id: int, name: string, paused: ?bool, dry_run: bool) -> (outcome: string, detail: string)

error Failed (reason: string)
";

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
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
        target: Place,
        lease_ms: u64,
        dry_run: bool,
    },
    Thaw {
        target: Place,
    },
    Kill {
        target: Place,
        dry_run: bool,
    },
    /// Debug builds only: ends the loop by a panic, to test what becomes of holds.
    Panic,
}

/// A cgroup by path and id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub cgroup: String,
    pub cgroup_id: u64,
    pub name: String,
    /// Whoever asks has just heard from the engine that it is paused.
    #[serde(default)]
    pub paused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub mode: Mode,
    pub guards: Vec<WatchedStatus>,
    /// By cause, since the agent began. Totals stay right except under "recursion".
    pub losses: BTreeMap<String, u64>,
    /// Audit lines given up because the log could not be written.
    pub audit_lost: u64,
    pub engine: String,
}

/// A guard with what the host says of its cgroup.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchedStatus {
    #[serde(flatten)]
    pub guard: GuardStatus,
    pub cgroup: String,
    pub cgroup_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub paused: bool,
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

#[derive(Deserialize)]
struct FreezeParameters {
    #[serde(flatten)]
    target: Place,
    lease_ms: u64,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
struct KillParameters {
    #[serde(flatten)]
    target: Place,
    #[serde(default)]
    dry_run: bool,
}

/// What a request asks for: an answer at hand, or a call for the loop.
pub enum Asked {
    Reply(Reply),
    Call(Call),
}

/// Reads one message.
#[must_use]
pub fn read(message: &[u8]) -> Asked {
    let request: Request = match serde_json::from_slice(message) {
        Ok(request) => request,
        Err(error) => return Asked::Reply(bad_parameter(&error.to_string())),
    };
    let Request { method, parameters } = request;
    let call = match method.as_str() {
        "io.mcpguard.Status" => Ok(Call::Status),
        "io.mcpguard.Freeze" => serde_json::from_value(parameters).map(
            |FreezeParameters { target, lease_ms, dry_run }| Call::Freeze {
                target,
                lease_ms,
                dry_run,
            },
        ),
        "io.mcpguard.Thaw" => {
            serde_json::from_value(parameters).map(|target| Call::Thaw { target })
        }
        "io.mcpguard.Kill" => serde_json::from_value(parameters)
            .map(|KillParameters { target, dry_run }| Call::Kill { target, dry_run }),
        "io.mcpguard.Panic" if cfg!(debug_assertions) => Ok(Call::Panic),
        "org.varlink.service.GetInfo" => return Asked::Reply(info()),
        "org.varlink.service.GetInterfaceDescription" => {
            return Asked::Reply(describe(&parameters));
        }
        _ => {
            let parameters = serde_json::json!({ "method": method });
            let error = Some("org.varlink.service.MethodNotFound".to_owned());
            return Asked::Reply(Reply { error, parameters });
        }
    };
    match call {
        Ok(call) => Asked::Call(call),
        Err(error) => Asked::Reply(bad_parameter(&error.to_string())),
    }
}

fn info() -> Reply {
    let parameters = serde_json::json!({
        "vendor": "mcp-guard",
        "product": "mcp-guard",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": ["org.varlink.service", INTERFACE],
    });
    Reply { error: None, parameters }
}

fn describe(parameters: &Value) -> Reply {
    if parameters["interface"] == INTERFACE {
        let parameters = serde_json::json!({ "description": DESCRIPTION });
        return Reply { error: None, parameters };
    }
    let error = Some("org.varlink.service.InterfaceNotFound".to_owned());
    Reply { error, parameters: parameters.clone() }
}

fn bad_parameter(reason: &str) -> Reply {
    let error = Some("org.varlink.service.InvalidParameter".to_owned());
    Reply { error, parameters: serde_json::json!({ "parameter": reason }) }
}

#[must_use]
pub fn failed(reason: &str) -> Reply {
    let error = Some("io.mcpguard.Failed".to_owned());
    Reply { error, parameters: serde_json::json!({ "reason": reason }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_and_nonsense_is_answered() {
        let freeze = br#"{"method":"io.mcpguard.Freeze","parameters":
            {"cgroup":"/x","cgroup_id":7,"name":"x","lease_ms":5}}"#;
        let target = Place { cgroup: "/x".into(), cgroup_id: 7, name: "x".into(), paused: false };
        let expected = Call::Freeze { target, lease_ms: 5, dry_run: false };
        assert!(matches!(read(freeze), Asked::Call(call) if call == expected));
        for (message, error) in [
            (&b"nonsense"[..], "InvalidParameter"),
            (br#"{"method":"io.mcpguard.Freeze","parameters":{}}"#, "InvalidParameter"),
            (br#"{"method":"a.b"}"#, "MethodNotFound"),
        ] {
            let Asked::Reply(reply) = read(message) else { panic!("a call") };
            assert!(reply.error.is_some_and(|text| text.ends_with(error)));
        }
    }
}
