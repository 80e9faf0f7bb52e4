//! Requests that Docker itself handles in its own way.

use futures_util::FutureExt as _;
use mcp_guard_core::diagnose::facts::EngineKind;
use serde_json::json;

use super::{EngineAnswer, flavour::Flavour, raw::Api};

pub struct Docker;

impl Flavour for Docker {
    fn name(&self) -> &'static str {
        "Docker"
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Docker
    }

    /// Docker stores the limit, passes it to systemd, and writes pids.max.
    fn update_limit<'a>(
        &'a self,
        api: &'a Api,
        container: &'a str,
        limit: u64,
    ) -> EngineAnswer<'a, ()> {
        async move {
            let body = json!({ "PidsLimit": limit });
            api.post(&format!("{container}/update"), Some(&body)).await
        }
        .boxed()
    }
}
