//! What runc and its shim keep of a container's limit, in files of their own.

use std::{fs::File, io::Read as _};

use mcp_guard_core::{container::is_container_id, diagnose::facts::OciLimit};
use serde_json::Value;

/// Of the shim, with containerd as a service and below dockerd.
const BUNDLES: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task/moby",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
];
/// Bytes of one of them; an image's environment is among them.
const MAX_FILE: u64 = 16 << 20;
const STATES: [&str; 2] = ["/run/docker/runtime-runc/moby", "/run/containerd/runc/moby"];

/// `linux.resources.pids.limit` of the OCI config. None where the file cannot be read.
pub fn oci_limit(id: &str) -> Option<OciLimit> {
    let config =
        BUNDLES.iter().find_map(|folder| json(&format!("{folder}/{id}/config.json"), id))?;
    let pids = &config["linux"]["resources"]["pids"];
    Some(pids["limit"].as_i64().map_or(OciLimit::Absent, OciLimit::Limit))
}

/// `cgroups.pids_limit` of runc's state.
pub fn state_limit(id: &str) -> Option<i64> {
    let state = STATES.iter().find_map(|folder| json(&format!("{folder}/{id}/state.json"), id))?;
    state["config"]["cgroups"]["pids_limit"].as_i64()
}

fn json(path: &str, id: &str) -> Option<Value> {
    // The only part of the path that is not ours.
    if !is_container_id(id) {
        return None;
    }
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
