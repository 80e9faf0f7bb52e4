//! The differences between the engines that serve Docker's API.

use futures_util::{FutureExt as _, future};
use mcp_guard_core::diagnose::facts::{ContainerCgroups, EngineKind};

use super::{EngineAnswer, raw::Api};

pub trait Flavour: Send + Sync {
    /// The engine's name in messages.
    fn name(&self) -> &'static str;

    /// The engine's kind in facts.
    fn kind(&self) -> EngineKind;

    /// Stores a container's limit and applies it. `container` is its path in the API, without a
    /// prefix.
    fn update_limit<'a>(
        &'a self,
        api: &'a Api,
        container: &'a str,
        limit: u64,
    ) -> EngineAnswer<'a, ()>;

    /// Returns `HostConfig.Cgroups` ("disabled", "split", ...) if Docker's API leaves it out.
    fn cgroups<'a>(
        &'a self,
        _api: &'a Api,
        _container: &'a str,
    ) -> EngineAnswer<'a, Option<ContainerCgroups>> {
        future::ready(Ok(None)).boxed()
    }
}
