//! Which engine serves Docker's API at a socket, and in what it differs from the others that do.

use futures_util::{FutureExt as _, future};
use mcp_guard_core::diagnose::facts::{ContainerCgroups, EngineKind};

use super::{EngineAnswer, raw::Api};

pub trait Flavour: Send + Sync {
    /// In messages.
    fn name(&self) -> &'static str;

    /// In facts.
    fn kind(&self) -> EngineKind;

    /// `container`: its path in the API, without a prefix.
    fn update_limit<'a>(
        &'a self,
        api: &'a Api,
        container: &'a str,
        limit: u64,
    ) -> EngineAnswer<'a, ()>;

    /// `HostConfig.Cgroups` ("disabled", "split", ...), where Docker's API leaves it out.
    fn cgroups<'a>(
        &'a self,
        _api: &'a Api,
        _container: &'a str,
    ) -> EngineAnswer<'a, Option<ContainerCgroups>> {
        future::ready(Ok(None)).boxed()
    }
}
