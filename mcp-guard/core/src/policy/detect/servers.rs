//! The thresholds of the detectors that count servers, and of the one that counts containers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{DurationText, Fault, Pattern, Response};

/// D: live servers of one package that are idle. Of another identity, the detector counts only servers that are proved
/// to be idle and to get work from their client alone. It never acts on these. It warns only if they are at least half
/// of the identity's live servers, and if the number of live servers has grown steadily.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Duplicates {
    /// The number of live servers of one identity, each at least `warn_age` old, at which the
    /// detector warns.
    pub warn: usize,
    /// How old a server must be to count for `warn`, and for how long it must have been idle.
    #[serde(with = "DurationText")]
    pub warn_age: Duration,
    /// The number of live servers of one package, each at least `warn_age` old, at which the detector
    /// warns even if they are in use.
    pub warn_in_use: usize,
    /// The number of live servers of one package, each at least `act_age` old, at which the detector acts.
    pub act: usize,
    /// How old a server must be to count for `act`, and for how long it must have been idle.
    #[serde(with = "DurationText")]
    pub act_age: Duration,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Duplicates {
    fn default() -> Self {
        Self {
            warn: 5,
            warn_age: Duration::from_secs(30),
            warn_in_use: 30,
            act: 10,
            act_age: Duration::from_secs(60),
            response: Response::Clamp,
        }
    }
}

/// B: starts of one package in a short time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Burst {
    /// The number of starts within 10 s at which the detector warns, even if `warn_60s` is not
    /// reached.
    pub warn_10s: usize,
    /// The number of starts within 60 s at which the detector warns, even if `warn_10s` is not
    /// reached.
    pub warn_60s: usize,
    /// The detector acts if it warns and this many live servers are at least `survivor_age` old.
    pub survivors: usize,
    /// How old a server must be to count for `survivors`.
    #[serde(with = "DurationText")]
    pub survivor_age: Duration,
    /// The number of starts per second at which the detector acts even without enough `survivors`, if the
    /// rate lasts for `act_for`.
    pub act_rate: usize,
    /// How long the number of starts per second must stay at or above `act_rate`; 1s to 1min.
    #[serde(with = "DurationText")]
    pub act_for: Duration,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            warn_10s: 10,
            warn_60s: 15,
            survivors: 5,
            survivor_age: Duration::from_secs(10),
            act_rate: 20,
            act_for: Duration::from_secs(3),
            response: Response::Freeze,
        }
    }
}

/// G: steady growth in the number of live servers of one identity. For packages, `warn` is not used, because
/// detector D warns about their copies already. `act` is used, because D never acts on copies that are in use. So for
/// a package, G does not warn until `act` is reached. Then it warns and acts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Growth {
    /// The detector warns if this many more servers of one identity are alive than the highest number in the two weeks
    /// before the growth began, and if the growth is steady and has lasted at least ten minutes.
    pub warn: usize,
    /// The number of servers, counted as for `warn`, at which the detector acts.
    pub act: usize,
    /// Only a growth that began within this time counts for `warn` and `act`.
    #[serde(with = "DurationText")]
    pub within: Duration,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Growth {
    fn default() -> Self {
        Self {
            warn: 15,
            act: 60,
            within: Duration::from_secs(7 * 86_400),
            response: Response::Clamp,
        }
    }
}

/// C: servers of one package, image or script that die soon after their start, with a failure. It only
/// warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CrashLoop {
    /// The number of crashes during the time `within` at which the detector warns.
    pub warn: usize,
    /// The time over which crashes are counted.
    #[serde(with = "DurationText")]
    pub within: Duration,
    /// A server that lived for this long or longer has not crashed at its start.
    #[serde(with = "DurationText")]
    pub age: Duration,
}

impl Default for CrashLoop {
    fn default() -> Self {
        Self { warn: 5, within: Duration::from_secs(60), age: Duration::from_secs(5) }
    }
}

/// O: servers that stay although nobody can write to them any more. It only warns, unless `respond.servers` is `reap`.
/// Then it also ends those that do nothing, if they are MCP servers by the name of their package, or if `servers`
/// names them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Disconnected {
    /// The detector warns about a server of a package or an image if it has been disconnected and idle for this long.
    #[serde(with = "DurationText")]
    pub age: Duration,
    /// The detector warns after this time in all other cases: the server is neither of a package nor of an image, or
    /// it does something, or somebody can still read from it.
    #[serde(with = "DurationText")]
    pub other_age: Duration,
    /// The detector ends a server that has been disconnected and idle for this long, at least 30s. It does so only if
    /// the name of the server's package has the word `mcp` or `modelcontextprotocol` in it, or if `servers` names the
    /// server. See `respond.servers`.
    #[serde(with = "DurationText")]
    pub act_age: Duration,
    /// Identities of servers to which `age` applies instead of `other_age`, and which the detector may end. `*` and `?`
    /// work as in the `name` of a `[[guard]]` rule. The detector never ends a server of an image.
    pub servers: Vec<Pattern>,
}

impl Disconnected {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        // Clients give a server ten seconds to end, and two looks must have found it at rest.
        if self.act_age < Duration::from_secs(30) {
            return Err(Fault::at("detect.disconnected.act_age", "must be at least 30s"));
        }
        Ok(())
    }
}

impl Default for Disconnected {
    fn default() -> Self {
        let [age, other_age, act_age] = [60, 600, 120].map(Duration::from_secs);
        Self { age, other_age, act_age, servers: Vec::new() }
    }
}

/// K: disconnected servers that use at least half of a CPU. It only warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Burning {
    /// How long a disconnected server must have used at least half of a CPU.
    #[serde(with = "DurationText")]
    pub age: Duration,
}

impl Default for Burning {
    fn default() -> Self {
        Self { age: Duration::from_secs(60) }
    }
}

/// N: containers of one image whose stdin ends with their client, as after `docker run -i`, and whose clients are gone. It only warns. Its keys can be set only at the top of the file, not in a rule: the containers of a herd may match different rules or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Herd {
    /// How many containers of one image, or with one label `docker-mcp-name` or `toolhive-name`, must have lost their clients.
    pub warn: usize,
    /// How long ago the stdin of each container must have ended, at least.
    #[serde(with = "DurationText")]
    pub age: Duration,
}

impl Default for Herd {
    fn default() -> Self {
        Self { warn: 3, age: Duration::from_secs(60) }
    }
}
