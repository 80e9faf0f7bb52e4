//! Podman, through its implementation of Docker's API, and through its own API for what the other
//! lacks.

use futures_util::FutureExt as _;
use mcp_guard_core::diagnose::facts::{ContainerCgroups, EngineKind};
use serde_json::json;

use super::{EngineAnswer, container::text, flavour::Flavour, raw::Api};

/// Prefix of Podman's own API. Every supported system has a Podman that is newer than 4.0.
const LIBPOD: &str = "/v4.0.0/libpod";

pub struct Podman;

impl Flavour for Podman {
    fn name(&self) -> &'static str {
        "Podman"
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Podman
    }

    /// Uses Podman's own API, because an update through its Docker API would reset the restart
    /// policy.
    fn update_limit<'a>(
        &'a self,
        api: &'a Api,
        container: &'a str,
        limit: u64,
    ) -> EngineAnswer<'a, ()> {
        async move {
            let body = json!({ "pids": { "limit": limit } });
            api.post(&format!("{LIBPOD}{container}/update"), Some(&body)).await
        }
        .boxed()
    }

    fn cgroups<'a>(
        &'a self,
        api: &'a Api,
        container: &'a str,
    ) -> EngineAnswer<'a, Option<ContainerCgroups>> {
        async move {
            let found = api.get(&format!("{LIBPOD}{container}/json")).await?;
            let said = found.map(|found| text(&found["HostConfig"]["Cgroups"]));
            Ok(Some(said.unwrap_or_default().into()))
        }
        .boxed()
    }
}
