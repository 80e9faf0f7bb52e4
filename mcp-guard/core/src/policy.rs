//! The policy files, typed and validated. An unknown key is an error, because a typo must not
//! silently turn off a protection.

mod explained;
mod fault;
mod file;
mod keys;
mod layer;
mod load;
mod pattern;
mod rule;
mod scope;
mod shown;
mod source;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::{
    explained::{Explained, ExplainedServer, PlacedRule, PlacedValue},
    fault::Error,
    file::File,
    keys::{ServerDetect, ServerKeys, SomeKeys},
    layer::{Layer, Leaf, ValueOrigin},
    pattern::{CgroupPattern, Pattern},
    rule::{Rule, unit_of},
    scope::{Applied, Scope, Variant},
    source::PolicySource,
};
use self::{fault::Fault, load::Stated};
use crate::{limit::HEADROOM, server::Launcher};

/// Whether decisions change the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Do everything up to the last step, which is recorded but not done.
    #[default]
    Observe,
    Enforce,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// Responses to a detection, mildest first. The order is that of escalation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Record,
    Clamp,
    Freeze,
    Kill,
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Clamp => "clamp",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
        })
    }
}

/// All files of the policy together.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub mode: Mode,
    pub evidence: Looks,
    /// The first match applies. Without any rule, every container is guarded.
    pub guard: Vec<Rule>,
    pub launcher: Vec<Launcher>,
    /// The terms of guards whose rule has none of its own.
    scope: Scope,
    /// The values that the files state, with their origins.
    stated: Stated,
}

/// Thresholds of the detectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Detect {
    pub duplicates: Duplicates,
    pub burst: Burst,
    pub emergency: Emergency,
    pub raw: Raw,
    pub tasks: Tasks,
    pub growth: Growth,
    pub crash: CrashLoop,
    pub headroom: Headroom,
    pub disconnected: Disconnected,
    pub burning: Burning,
    pub zombies: Zombies,
    pub herd: Herd,
}

/// D: live servers of one package that are idle. Of another identity, only servers count of which looks have proved
/// that they are idle and that only their client can give them work, and only if the number of its servers grows
/// steadily. About these, the detector only warns.
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
    /// The number of live servers of one identity, each at least `warn_age` old, at which the detector
    /// warns even if they are in use.
    pub warn_in_use: usize,
    /// The number of live servers of one identity, each at least `act_age` old, at which the
    /// detector acts.
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

/// E: growth in the number of live processes of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Emergency {
    /// The detector warns if the number of processes has grown by this much during the time
    /// `within`.
    pub warn: usize,
    /// The detector acts if the number of processes has grown by this much during the time
    /// `within`.
    pub act: usize,
    /// The time over which growth is measured; 1s to 1h.
    #[serde(with = "DurationText")]
    pub within: Duration,
    /// How old a process must be to count.
    #[serde(with = "DurationText")]
    pub age: Duration,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Emergency {
    fn default() -> Self {
        Self {
            warn: 100,
            act: 300,
            within: Duration::from_secs(60),
            age: Duration::from_secs(10),
            response: Response::Freeze,
        }
    }
}

/// R: the rate of process forks. It only warns, because harmless work can fork faster than any
/// leak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// The number of process forks per second at which the detector warns.
    pub warn: u64,
    /// How long the number of process forks per second must stay at or above `warn`.
    #[serde(rename = "for", with = "DurationText")]
    pub sustained: Duration,
}

impl Default for Raw {
    fn default() -> Self {
        Self { warn: 2000, sustained: Duration::from_secs(10) }
    }
}

/// T: growth in the number of tasks, threads included. It measures the floor: the lowest number of
/// tasks during the last 10 s. It warns when one of the numbers in this table is reached, and acts
/// at twice that number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Tasks {
    /// The growth of the floor within one minute at which the detector warns, in tasks.
    pub grown_1m: u64,
    /// The growth of the floor within ten minutes at which the detector warns, in tasks.
    pub grown_10m: u64,
    /// The growth of the floor within one hour at which the detector warns, in tasks.
    pub grown_1h: u64,
    /// The floor at which the detector warns, as a percentage of the tasks that the host can have
    /// (the lower of `kernel.pid_max` and `kernel.threads-max`).
    pub host_percent: u64,
    /// The response when the detector acts.
    pub response: Response,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            grown_1m: 500,
            grown_10m: 1000,
            grown_1h: 2000,
            host_percent: 25,
            response: Response::Clamp,
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
    /// The detector warns if this many more servers of one identity are alive than before the growth, and that growth
    /// was steady and has lasted at least ten minutes.
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

/// H: the tasks of a container come close to its limit. It judges the floor, as `[detect.tasks]` does, and only
/// warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Headroom {
    /// The floor at which the detector warns, as a percentage of the limit in force.
    pub warn_percent: u64,
}

impl Default for Headroom {
    fn default() -> Self {
        Self { warn_percent: 80 }
    }
}

/// O: servers that stay although nobody can write to them any more. It only warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Disconnected {
    /// The detector warns about a server of a package or an image if it is disconnected and does nothing for this
    /// long.
    #[serde(with = "DurationText")]
    pub age: Duration,
    /// The time in all other cases: the server is neither of a package nor of an image, it does something, or
    /// somebody can still read from it.
    #[serde(with = "DurationText")]
    pub other_age: Duration,
    /// Identities of servers that are neither packages nor images, to which `age` applies instead of `other_age`, with `*` and `?` as in the `name` of a guard.
    pub servers: Vec<Pattern>,
}

impl Default for Disconnected {
    fn default() -> Self {
        let [age, other_age] = [60, 600].map(Duration::from_secs);
        Self { age, other_age, servers: Vec::new() }
    }
}

/// K: disconnected servers that use at least half of a CPU. It only warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Burning {
    /// How long a server must have used that much.
    #[serde(with = "DurationText")]
    pub age: Duration,
}

impl Default for Burning {
    fn default() -> Self {
        Self { age: Duration::from_secs(60) }
    }
}

/// Z: processes that have ended and that their parent does not reap. It only warns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Zombies {
    /// How many there must be, in two looks in a row.
    pub warn: u64,
    /// Zombies that fill this percentage of the limit are enough too, if they are at least 5.
    pub warn_percent: u64,
}

impl Default for Zombies {
    fn default() -> Self {
        Self { warn: 20, warn_percent: 5 }
    }
}

/// N: containers of one image whose stdin ends with their client, as after `docker run -i`, and whose clients are gone. It only warns. Its keys stand at the top of the file only, and not in a rule: the containers of a herd may match different rules or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Herd {
    /// How many containers of one image, or with one label `docker-mcp-name` or `toolhive-name`, must have lost their clients.
    pub warn: usize,
    /// How long the stdin of a container must have ended.
    #[serde(with = "DurationText")]
    pub age: Duration,
}

impl Default for Herd {
    fn default() -> Self {
        Self { warn: 3, age: Duration::from_secs(60) }
    }
}

/// How the agent looks at servers: whether they are used, and whether their clients can reach them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Looks {
    /// The time between two looks at a server; 1s to 1h. A look reads a few files of each of its processes. If a connected server is idle, the look also reads files about its descriptors and threads.
    #[serde(with = "DurationText")]
    pub every: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        Self { every: Duration::from_secs(30) }
    }
}

/// How responses are carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// The number of tasks that a clamp leaves free, in addition to four for each live server. The
    /// smallest value is 8.
    pub clamp_headroom: u64,
    /// How long a clamp lasts. It is renewed while a detector still asks for it.
    #[serde(with = "DurationText")]
    pub clamp_lease: Duration,
    /// How long a freeze lasts.
    #[serde(with = "DurationText")]
    pub freeze_lease: Duration,
    /// How long detectors wait. After an operator's `thaw`, or after another program has thawed the
    /// container, no detector acts on it for this time. Within one episode, a detector waits this
    /// long before it acts again: after its hold has ended, after its response has failed or was
    /// refused, and after another program has overwritten its clamp.
    #[serde(with = "DurationText")]
    pub cool_down: Duration,
}

impl Default for Respond {
    fn default() -> Self {
        Self {
            clamp_headroom: HEADROOM,
            clamp_lease: Duration::from_secs(600),
            freeze_lease: Duration::from_secs(300),
            cool_down: Duration::from_secs(60),
        }
    }
}

/// The subject that rules are matched against: a container, or a cgroup that no engine knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub cgroup: String,
}

/// The part of the policy that applies to one guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub mode: Mode,
    pub highest: Response,
    /// The limit to enforce, if the policy names one.
    pub pids_limit: Option<u64>,
    /// The place of its rule in [`Policy::guard`].
    pub rule: Option<usize>,
}

impl Terms {
    /// Returns terms that no rule has set.
    #[must_use]
    pub fn new(mode: Mode, highest: Response) -> Self {
        Self { mode, highest, pids_limit: None, rule: None }
    }

    /// Returns the terms of a cgroup that the policy does not name.
    #[must_use]
    pub fn nothing() -> Self {
        Self::new(Mode::Observe, Response::Record)
    }
}

/// A duration in the form in which people write it: "30s", "5min".
struct DurationText;

impl DurationText {
    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime_serde::deserialize(deserializer)
    }

    fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        humantime_serde::serialize(duration, serializer)
    }
}

impl Default for Policy {
    fn default() -> Self {
        let scope = Scope::new(Applied::default());
        Self {
            mode: Mode::default(),
            evidence: Looks::default(),
            guard: Vec::new(),
            launcher: Vec::new(),
            scope,
            stated: Stated::default(),
        }
    }
}

impl Policy {
    /// Reads a policy of one file.
    ///
    /// # Errors
    /// If the text has a syntax error, an unknown key, a wrong type, or values that contradict each
    /// other.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::load(&[PolicySource { name: String::new(), text: text.to_owned() }])
    }

    /// Returns the terms for a workload, or `None` if it is not guarded.
    #[must_use]
    pub fn terms(&self, workload: &Workload) -> Option<Terms> {
        if self.guard.is_empty() {
            return Some(Terms::new(self.mode, rule::default_highest()));
        }
        let (at, rule) = self.guard.iter().enumerate().find(|(_, rule)| rule.matches(workload))?;
        let mode = rule.mode.unwrap_or(self.mode);
        let Rule { highest, pids_limit, .. } = *rule;
        Some(Terms { mode, highest, pids_limit, rule: Some(at) })
    }

    /// Returns what applies in the guards of a rule.
    #[must_use]
    pub fn scope(&self, rule: Option<usize>) -> &Scope {
        let own = rule.and_then(|rule| self.guard.get(rule)?.scope.as_ref());
        own.unwrap_or(&self.scope)
    }

    /// Returns the thresholds of guards whose rule has none of its own.
    #[must_use]
    pub fn detect(&self) -> &Detect {
        &self.scope.all().detect
    }

    /// Returns how responses are carried out in guards whose rule does not say it.
    #[must_use]
    pub fn respond(&self) -> &Respond {
        &self.scope.all().respond
    }
}

impl Looks {
    fn validate(&self) -> Result<(), Fault> {
        let second = Duration::from_secs(1);
        if self.every < second || self.every > Duration::from_secs(3600) {
            return Err(Fault::at("evidence.every", "must lie between 1s and 1h"));
        }
        Ok(())
    }
}

impl Detect {
    fn validate(&self) -> Result<(), Fault> {
        let Detect {
            duplicates,
            burst,
            emergency,
            raw,
            tasks,
            growth,
            crash,
            headroom,
            zombies,
            herd,
            ..
        } = self;
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let at_least_one = [
            ("detect.duplicates.warn", duplicates.warn),
            ("detect.duplicates.warn_in_use", duplicates.warn_in_use),
            ("detect.duplicates.act", duplicates.act),
            ("detect.burst.warn_10s", burst.warn_10s),
            ("detect.burst.warn_60s", burst.warn_60s),
            ("detect.burst.survivors", burst.survivors),
            ("detect.burst.act_rate", burst.act_rate),
            ("detect.growth.warn", growth.warn),
            ("detect.growth.act", growth.act),
            ("detect.crash.warn", crash.warn),
            ("detect.emergency.warn", emergency.warn),
            ("detect.emergency.act", emergency.act),
            ("detect.raw.warn", number(raw.warn)),
            ("detect.tasks.grown_1m", number(tasks.grown_1m)),
            ("detect.tasks.grown_10m", number(tasks.grown_10m)),
            ("detect.tasks.grown_1h", number(tasks.grown_1h)),
            ("detect.headroom.warn_percent", number(headroom.warn_percent)),
            ("detect.zombies.warn", number(zombies.warn)),
            ("detect.zombies.warn_percent", number(zombies.warn_percent)),
            ("detect.herd.warn", herd.warn),
            ("detect.tasks.host_percent", number(tasks.host_percent)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(Fault::at(key, "= 0 would fire without a cause; use at least 1"));
        }
        let thresholds = [
            ("detect.duplicates", duplicates.warn, duplicates.act),
            ("detect.emergency", emergency.warn, emergency.act),
            ("detect.growth", growth.warn, growth.act),
        ];
        if let Some((table, warn, act)) = thresholds.iter().find(|(_, warn, act)| act < warn) {
            let why = format!(
                "{table}: act is below warn, {act} below {warn}: a detector warns before it acts"
            );
            return Err(Fault::between([format!("{table}.act"), format!("{table}.warn")], why));
        }
        let second = Duration::from_secs(1);
        if burst.act_for < second || burst.act_for > Duration::from_secs(60) {
            return Err(Fault::at("detect.burst.act_for", "must lie between 1s and 60s"));
        }
        if emergency.within < second || emergency.within > Duration::from_secs(3600) {
            return Err(Fault::at("detect.emergency.within", "must lie between 1s and 1h"));
        }
        Ok(())
    }
}

impl Respond {
    fn validate(&self) -> Result<(), Fault> {
        if self.clamp_headroom < 8 {
            return Err(Fault::at(
                "respond.clamp_headroom",
                "is below 8: an exec'd health check could not run and node would abort",
            ));
        }
        let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
        for (key, lease) in
            [("respond.clamp_lease", self.clamp_lease), ("respond.freeze_lease", self.freeze_lease)]
        {
            if !bounds.contains(&lease) {
                return Err(Fault::at(key, "must lie between 1s and 1day"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
