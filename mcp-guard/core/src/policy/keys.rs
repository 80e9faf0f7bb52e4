//! Keys that may stand in several places of a file. They are only checked here: the values are merged from all places.

use std::marker::PhantomData;

use serde::{Deserialize, Deserializer};

use super::{Burning, Burst, CrashLoop, Disconnected, Duplicates, Growth, Respond};

/// Settings for the servers of one identity, in place of those for all servers. IDENTITY is a name as `status`
/// shows it, with `*` and `?` as in the `name` of a `[[guard]]` rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ServerKeys {
    /// The detectors that count servers ignore these. Those that count all processes or tasks of a container (E, R,
    /// T, H and Z) still count theirs.
    pub ignore: bool,
    /// Thresholds of the detectors that count servers. A key that is not given has the value that it has for all
    /// servers.
    #[cfg_attr(test, schemars(schema_with = "super::tests::reference::server_detect"))]
    pub detect: ServerDetect,
    /// How responses to these servers are carried out. A key that is not given has the value that it has for all servers.
    #[cfg_attr(test, schemars(schema_with = "super::tests::reference::respond"))]
    pub respond: SomeKeys<Respond>,
}

/// The detectors that count servers of one identity.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerDetect {
    pub duplicates: SomeKeys<Duplicates>,
    pub burst: SomeKeys<Burst>,
    pub growth: SomeKeys<Growth>,
    pub crash: SomeKeys<CrashLoop>,
    pub disconnected: SomeKeys<Disconnected>,
    pub burning: SomeKeys<Burning>,
}

/// Some keys of a `T`. Here only their names and types are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SomeKeys<T>(PhantomData<T>);

impl<T> Default for SomeKeys<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for SomeKeys<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer)?;
        Ok(Self::default())
    }
}
