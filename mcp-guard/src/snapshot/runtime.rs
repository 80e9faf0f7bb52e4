//! Reads a container's limit from the files of runc and its shim.

use std::{fs::File, io::Read as _};

use mcp_guard_core::{container::is_container_id, diagnose::facts::OciLimit};
use serde_json::Value;

/// The shim's bundles, with containerd as a service and with containerd started by dockerd.
const BUNDLES: [&str; 2] = [
    "/run/containerd/io.containerd.runtime.v2.task/moby",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
];
/// Most bytes read of one file, which includes the image's environment.
const MAX_FILE: u64 = 16 << 20;
const STATES: [&str; 2] = ["/run/docker/runtime-runc/moby", "/run/containerd/runc/moby"];

/// Reads `linux.resources.pids.limit` of the OCI config. `None` if the file cannot be read.
pub fn oci_limit(id: &str) -> Option<OciLimit> {
    let config =
        BUNDLES.iter().find_map(|folder| json(&format!("{folder}/{id}/config.json"), id))?;
    let pids = &config["linux"]["resources"]["pids"];
    Some(pids["limit"].as_i64().map_or(OciLimit::Absent, OciLimit::Limit))
}

/// Reads `cgroups.pids_limit` of runc's state.
pub fn state_limit(id: &str) -> Option<i64> {
    let state = STATES.iter().find_map(|folder| json(&format!("{folder}/{id}/state.json"), id))?;
    state["config"]["cgroups"]["pids_limit"].as_i64()
}

fn json(path: &str, id: &str) -> Option<Value> {
    // The id is the only part of the path that comes from outside.
    if !is_container_id(id) {
        return None;
    }
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
