//! Rules: which cgroups are guarded.

use std::collections::BTreeMap;

use serde::Deserialize;
use wildmatch::WildMatch;

use super::{
    CgroupPattern, Detect, Fault, Mode, Pattern, Respond, Response, Scope, ServerKeys, SomeKeys,
    Workload,
};
use crate::limit::{LEAST, MOST};

/// The labels in which compose keeps the names of the project and of the service.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";

/// Which cgroups are guarded, and how. Each of `name`, `image`, `label`, `compose_project`, `compose_service`, `unit`
/// and `cgroup` that is given must match, and at least one must be given.
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
    /// Compose project of the container, with `*` and `?` as in `name`.
    #[serde(default)]
    pub compose_project: Option<Pattern>,
    /// Compose service of the container, with `*` and `?` as in `name`.
    #[serde(default)]
    pub compose_service: Option<Pattern>,
    /// Unit of the system's service manager, such as `mcp-*.service`, with `*` and `?` as in `name`. The units of a user's own manager are named by `cgroup`.
    #[serde(default)]
    pub unit: Option<Pattern>,
    /// Path of the cgroup, such as `/system.slice/mcp-*.service`. `*` and `?` stand for text without `/`. For a cgroup
    /// that no engine lists.
    #[serde(default)]
    pub cgroup: Option<CgroupPattern>,
    /// The mode of these cgroups. Without it, the `mode` at the top of the file applies.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// The strongest response that detectors may use here.
    #[serde(default = "default_highest")]
    pub highest: Response,
    /// The wanted limit in tasks, 8 to 4194304, instead of the number that the engine stores. A
    /// request of `repair` overrides it until this number is changed. The agent never raises a limit to this number.
    #[serde(default)]
    pub pids_limit: Option<u64>,
    /// Thresholds of these cgroups, without those of `[detect.herd]`. A key that is not given has the value that it has for all.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::tests::reference::guard_detect"))]
    pub detect: SomeKeys<Detect>,
    /// How responses are carried out here. A key that is not given has the value that it has for all.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::tests::reference::respond"))]
    pub respond: SomeKeys<Respond>,
    /// Settings for the servers of some identities here.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::tests::reference::server"))]
    pub server: BTreeMap<String, ServerKeys>,
    /// The terms that apply here, if the rule has some of its own.
    #[serde(skip)]
    pub(super) scope: Option<Scope>,
}

/// The default is not `kill`, which must be named.
pub(super) fn default_highest() -> Response {
    Response::Freeze
}

impl Rule {
    pub(super) fn names_something(&self) -> bool {
        self.label.is_some()
            || self.cgroup.is_some()
            || self.patterns(&Workload::default()).iter().any(|(pattern, _)| pattern.is_some())
    }

    pub(super) fn validate(&self) -> Result<(), Fault> {
        match self.pids_limit.filter(|limit| !(LEAST..=MOST).contains(limit)) {
            Some(limit) => {
                let why = format!("= {limit} must lie between {LEAST} and {MOST}");
                Err(Fault::at("pids_limit", &why))
            }
            None => Ok(()),
        }
    }

    pub(super) fn matches(&self, workload: &Workload) -> bool {
        let fits = |(pattern, text): &(&Option<Pattern>, Option<&str>)| {
            let matches = |pattern: &Pattern| text.is_some_and(|text| pattern.matches(text));
            pattern.as_ref().is_none_or(matches)
        };
        self.patterns(workload).iter().all(fits)
            && self.cgroup.as_ref().is_none_or(|path| path.matches(&workload.cgroup))
            && self.label.as_ref().is_none_or(|label| label_matches(label, &workload.labels))
    }

    /// The patterns of names, each with the text that it must match.
    fn patterns<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> [(&'a Option<Pattern>, Option<&'a str>); 5] {
        let label = |key| workload.labels.get(key).map(String::as_str);
        [
            (&self.name, Some(&workload.name)),
            (&self.image, Some(&workload.image)),
            (&self.compose_project, label(PROJECT)),
            (&self.compose_service, label(SERVICE)),
            (&self.unit, unit_of(&workload.cgroup)),
        ]
    }
}

fn label_matches(label: &str, labels: &BTreeMap<String, String>) -> bool {
    let (key, pattern) = match label.split_once('=') {
        Some((key, value)) => (key, Some(WildMatch::new(value))),
        None => (label, None),
    };
    labels.get(key).is_some_and(|value| pattern.is_none_or(|pattern| pattern.matches(value)))
}

/// Returns the unit of the system's service manager to which a cgroup belongs. Below a unit, other programs choose the
/// names.
#[must_use]
pub fn unit_of(cgroup: &str) -> Option<&str> {
    let mut names = cgroup.split('/').filter(|name| !name.is_empty());
    let unit = names.find(|name| !name.ends_with(".slice"))?;
    (unit.ends_with(".service") || unit.ends_with(".scope")).then_some(unit)
}
