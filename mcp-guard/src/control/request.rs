//! Parses the messages of clients.

use serde_json::{Value, json};

use super::{
    description::description,
    wire::{
        Call, CallMessage, EXPECTED_MORE, Freeze, GetPolicy, GetServers, GetStatus, INTERFACE,
        Kill, Method, NO_SUCH_METHOD, Reap, RecordTrace, ReloadPolicy, Reply, Resume, Suspend,
        Thaw,
    },
};

/// A reply that needs no loop, or a call for the loop.
pub enum Asked {
    Reply(Reply),
    Call(Call),
}

/// Parses one message.
#[must_use]
pub fn read(message: &[u8]) -> Asked {
    let request: CallMessage = match serde_json::from_slice(message) {
        Ok(request) => request,
        Err(error) => return Asked::Reply(bad_parameter(&error.to_string())),
    };
    let CallMessage { method, parameters, more } = request;
    let call = match method.as_str() {
        "org.varlink.service.GetInfo" => return Asked::Reply(info()),
        "org.varlink.service.GetInterfaceDescription" => {
            return Asked::Reply(describe(&parameters));
        }
        own => own.strip_prefix(INTERFACE).and_then(|own| call(own.strip_prefix('.')?, parameters)),
    };
    match call {
        Some(Ok(Call::Record(_))) if more != Some(true) => {
            let error = Some(EXPECTED_MORE.to_owned());
            Asked::Reply(Reply { error, ..Reply::default() })
        }
        Some(Ok(call)) => Asked::Call(call),
        Some(Err(error)) => Asked::Reply(bad_parameter(&error.to_string())),
        None => {
            let error = Some(NO_SUCH_METHOD.to_owned());
            let parameters = json!({ "method": method });
            Asked::Reply(Reply { error, parameters, continues: None })
        }
    }
}

/// Parses a call of our own interface. Returns `None` if it has no such method.
fn call(method: &str, parameters: Value) -> Option<serde_json::Result<Call>> {
    Some(match method {
        // These take no parameters, and ignore any.
        GetStatus::NAME => Ok(Call::Status),
        ReloadPolicy::NAME => Ok(Call::ReloadPolicy),
        GetPolicy::NAME => Ok(Call::PolicyInForce),
        GetServers::NAME => GetServers::read(parameters).map(Call::Servers),
        RecordTrace::NAME => RecordTrace::read(parameters).map(Call::Record),
        Freeze::NAME => {
            Freeze::read(parameters).map(|Freeze { target, lease_ms, dry_run, despite }| {
                Call::Freeze { target, lease_ms, dry_run, despite }
            })
        }
        Thaw::NAME => Thaw::read(parameters).map(|Thaw { target }| Call::Thaw { target }),
        Kill::NAME => Kill::read(parameters).map(|Kill { target, dry_run, despite }| Call::Kill {
            target,
            dry_run,
            despite,
        }),
        Suspend::NAME => Suspend::read(parameters).map(Call::Suspend),
        Resume::NAME => Resume::read(parameters).map(Call::Resume),
        Reap::NAME => Reap::read(parameters).map(Call::Reap),
        "Panic" if cfg!(debug_assertions) => Ok(Call::Panic),
        _ => return None,
    })
}

fn info() -> Reply {
    let parameters = json!({
        "vendor": "mcp-guard",
        "product": "mcp-guard",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": ["org.varlink.service", INTERFACE],
    });
    Reply { parameters, ..Reply::default() }
}

fn describe(parameters: &Value) -> Reply {
    if parameters["interface"] == INTERFACE {
        let parameters = json!({ "description": description() });
        return Reply { parameters, ..Reply::default() };
    }
    let error = Some("org.varlink.service.InterfaceNotFound".to_owned());
    Reply { error, parameters: parameters.clone(), continues: None }
}

fn bad_parameter(reason: &str) -> Reply {
    let error = Some("org.varlink.service.InvalidParameter".to_owned());
    Reply { error, parameters: json!({ "parameter": reason }), continues: None }
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::id::CgroupId;

    use super::{super::wire::TargetCgroup, *};

    #[test]
    fn calls_are_parsed_and_nonsense_is_answered_with_an_error() {
        let freeze = br#"{"method":"io.mcpguard.Freeze","parameters":
            {"cgroup":"/x","cgroup_id":7,"name":"x","lease_ms":5}}"#;
        let target = TargetCgroup {
            cgroup: "/x".into(),
            cgroup_id: CgroupId(7),
            name: "x".into(),
            paused: false,
        };
        let expected = Call::Freeze { target, lease_ms: 5, dry_run: false, despite: None };
        assert!(matches!(read(freeze), Asked::Call(call) if call == expected));
        for (message, error) in [
            (&b"nonsense"[..], "InvalidParameter"),
            (br#"{"method":"io.mcpguard.Freeze","parameters":{}}"#, "InvalidParameter"),
            (br#"{"method":"a.b"}"#, "MethodNotFound"),
            (br#"{"method":"io.mcpguardFreeze"}"#, "MethodNotFound"),
            (br#"{"method":"io.mcpguard"}"#, "MethodNotFound"),
        ] {
            let Asked::Reply(reply) = read(message) else { panic!("a call") };
            assert!(reply.error.is_some_and(|text| text.ends_with(error)));
        }
        let status = br#"{"method":"io.mcpguard.Status"}"#;
        assert!(matches!(read(status), Asked::Call(Call::Status)));
    }
}
