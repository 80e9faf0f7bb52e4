//! The policy file, typed and validated. An unknown key is an error, because a typo must not
//! silently turn off a protection.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};
use wildmatch::WildMatch;

use crate::{
    escape::is_plain_path,
    limit::{HEADROOM, LEAST, MOST},
    server::Launcher,
};

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

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The mode of each rule that has no `mode` of its own, and of all containers if there is no
    /// rule.
    pub mode: Mode,
    pub detect: Detect,
    pub respond: Respond,
    pub evidence: Looks,
    /// The first match applies. Without any rule, every container is guarded.
    pub guard: Vec<Rule>,
    pub launcher: Vec<Launcher>,
}

/// Thresholds of the detectors.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
}

/// D: live servers of one package that are idle. Of another identity, only servers count of which looks have proved
/// that they are idle and that only their client can give them work, and only if their number grows steadily.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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

/// How the agent looks at servers: whether they are used, and whether their clients can reach them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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

/// Which cgroups are guarded, and how. Each of `name`, `image`, `label` and `cgroup` that is given
/// must match, and at least one must be given.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the container. `*` matches any text, `?` one character.
    #[serde(default)]
    pub name: Option<Pattern>,
    /// Image that the container was started from, with `*` and `?` as in `name`.
    #[serde(default)]
    pub image: Option<Pattern>,
    /// Label of the container: `KEY` or `KEY=VALUE`. In VALUE, `*` and `?` work as in `name`.
    #[serde(default)]
    pub label: Option<String>,
    /// Exact path of the cgroup, such as `/system.slice/NAME.service`. For a cgroup that no
    /// engine lists.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// The mode of these cgroups. Without it, the `mode` at the top of the file applies.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// The strongest response that detectors may use here.
    #[serde(default = "default_highest")]
    pub highest: Response,
    /// The wanted limit in tasks, 8 to 4194304, instead of the number that the engine stores. A
    /// request of `repair` has priority over it. The agent never raises a limit to this number.
    #[serde(default)]
    pub pids_limit: Option<u64>,
}

/// The default is not `kill`, which must be named.
fn default_highest() -> Response {
    Response::Freeze
}

/// A name pattern with `*` and `?`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "String")]
pub struct Pattern(WildMatch);

impl From<String> for Pattern {
    fn from(pattern: String) -> Self {
        Self(WildMatch::new(&pattern))
    }
}

impl Pattern {
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
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
}

/// A duration in the form in which people write it: "30s", "5min".
struct DurationText;

impl DurationText {
    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime_serde::deserialize(deserializer)
    }
}

/// Why a policy is rejected. The text shows line and position if a part of the file is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    #[error("{0}")]
    Meaning(String),
}

impl Policy {
    /// # Errors
    /// If the text has a syntax error, an unknown key, a wrong type, or values that contradict each
    /// other.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let policy: Self = toml::from_str(text)?;
        policy.validate().map_err(Error::Meaning)?;
        Ok(policy)
    }

    /// Returns the terms for a workload, or `None` if it is not guarded.
    #[must_use]
    pub fn terms(&self, workload: &Workload) -> Option<Terms> {
        if self.guard.is_empty() {
            return Some(Terms { mode: self.mode, highest: default_highest(), pids_limit: None });
        }
        let rule = self.guard.iter().find(|rule| rule.matches(workload))?;
        let mode = rule.mode.unwrap_or(self.mode);
        Some(Terms { mode, highest: rule.highest, pids_limit: rule.pids_limit })
    }

    fn validate(&self) -> Result<(), String> {
        self.detect.validate()?;
        let second = Duration::from_secs(1);
        if self.evidence.every < second || self.evidence.every > Duration::from_secs(3600) {
            return Err("evidence.every must lie between 1s and 1h".to_owned());
        }
        self.respond.validate()?;
        match self.guard.iter().position(|rule| !rule.names_something()) {
            Some(at) => Err(format!(
                "guard {} names no container: give name, image, label or cgroup (name = \"*\" for all)",
                at + 1
            )),
            None => self.guard.iter().try_for_each(Rule::validate),
        }
    }
}

impl Detect {
    fn validate(&self) -> Result<(), String> {
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
            ("detect.tasks.host_percent", number(tasks.host_percent)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key} = 0 would fire without a cause; use at least 1"));
        }
        let thresholds = [
            (duplicates.warn, duplicates.act),
            (emergency.warn, emergency.act),
            (growth.warn, growth.act),
        ];
        if thresholds.iter().any(|(warn, act)| act < warn) {
            return Err("act is below warn: a detector warns before it acts".to_owned());
        }
        let second = Duration::from_secs(1);
        if burst.act_for < second || burst.act_for > Duration::from_secs(60) {
            return Err("detect.burst.act_for must lie between 1s and 60s".to_owned());
        }
        if emergency.within < second || emergency.within > Duration::from_secs(3600) {
            return Err("detect.emergency.within must lie between 1s and 1h".to_owned());
        }
        Ok(())
    }
}

impl Respond {
    fn validate(&self) -> Result<(), String> {
        if self.clamp_headroom < 8 {
            return Err("respond.clamp_headroom is below 8: an exec'd health check could not run \
                        and node would abort"
                .to_owned());
        }
        let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
        for (key, lease) in [("clamp_lease", self.clamp_lease), ("freeze_lease", self.freeze_lease)]
        {
            if !bounds.contains(&lease) {
                return Err(format!("respond.{key} must lie between 1s and 1day"));
            }
        }
        Ok(())
    }
}

impl Rule {
    fn names_something(&self) -> bool {
        self.name.is_some() || self.image.is_some() || self.label.is_some() || self.cgroup.is_some()
    }

    fn validate(&self) -> Result<(), String> {
        if let Some(limit) = self.pids_limit.filter(|limit| !(LEAST..=MOST).contains(limit)) {
            return Err(format!("guard pids_limit = {limit} must lie between {LEAST} and {MOST}"));
        }
        match &self.cgroup {
            Some(path) if !is_plain_path(path) => Err(format!(
                "guard cgroup {path:?} must be an absolute path without \".\", \"..\", \"//\" or a \
                 trailing \"/\""
            )),
            _ => Ok(()),
        }
    }

    fn matches(&self, workload: &Workload) -> bool {
        let fits = |pattern: &Option<Pattern>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.0.matches(text))
        };
        fits(&self.name, &workload.name)
            && fits(&self.image, &workload.image)
            && self.cgroup.as_ref().is_none_or(|path| *path == workload.cgroup)
            && self.label.as_ref().is_none_or(|label| label_matches(label, &workload.labels))
    }
}

fn label_matches(label: &str, labels: &BTreeMap<String, String>) -> bool {
    let (key, pattern) = match label.split_once('=') {
        Some((key, value)) => (key, Some(WildMatch::new(value))),
        None => (label, None),
    };
    labels.get(key).is_some_and(|value| pattern.is_none_or(|pattern| pattern.matches(value)))
}

#[cfg(test)]
mod tests;
