//! `status`: shows what the agent reports about itself and its guards.

use super::{Exit, Failure, HostOptions, out};
use crate::{
    control::{client, lock, wire::WatchedStatus},
    render,
};

pub fn status(host: &HostOptions, json: bool) -> Result<Exit, Failure> {
    let status = client::status(&lock::socket(&host.run_dir)).map_err(|error| {
        let hint = "; start it with `mcp-guard run`, as root";
        Failure::could_not(format!("{error}{}", if no_agent(&error) { hint } else { "" }))
    })?;
    let text = if json {
        serde_json::to_string(&status).map_err(Failure::could_not)?
    } else {
        render::status(&status)
    };
    out::answer(&text);
    let is_wrong = |one: &WatchedStatus| one.pids_left || one.guard.refused.is_some();
    let is_lost = status.audit_lost > 0 || status.unguarded > 0;
    let is_wrong = is_lost || status.guards.iter().any(is_wrong);
    Ok(if is_wrong { Exit::Wrong } else { Exit::Done })
}

fn no_agent(error: &client::Error) -> bool {
    matches!(error, client::Error::NoAgent(_))
}
