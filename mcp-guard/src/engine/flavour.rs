//! Which engine serves Docker's API at a socket, and in what it differs from the others that do.

use futures_util::{FutureExt as _, future};
use mcp_guard_core::diagnose::facts::EngineKind;
use serde_json::Value;

use super::{Answer, docker::Docker, podman::Podman, socket::Socket};

pub trait Flavour: Send + Sync {
    /// In messages.
    fn name(&self) -> &'static str;

    /// In facts.
    fn kind(&self) -> EngineKind;

    /// `container`: its path in the API, without a prefix.
    fn update_limit<'a>(
        &'a self,
        socket: &'a Socket,
        container: &'a str,
        limit: u64,
    ) -> Answer<'a, ()>;

    /// `HostConfig.Cgroups` ("disabled", "split", ...), where Docker's API leaves it out.
    fn cgroups<'a>(
        &'a self,
        _socket: &'a Socket,
        _container: &'a str,
    ) -> Answer<'a, Option<String>> {
        future::ready(Ok(None)).boxed()
    }
}

/// By what it answers to `/version`.
pub fn of(version: &Value) -> &'static dyn Flavour {
    let components = version["Components"].as_array();
    let is_podman = components.into_iter().flatten().any(|one| one["Name"] == "Podman Engine");
    if is_podman { &Podman } else { &Docker }
}
