//! Sources that could not be read, and why.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    pub what: Source,
    pub why: String,
}

impl Unreadable {
    pub fn new(what: Source, why: impl ToString) -> Self {
        Self { what, why: why.to_string() }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// A source of facts. Serialised as it is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The engine's information about itself.
    Engine,
    /// The engine's list of containers.
    Containers,
    /// The engine's information about one container.
    Inspect,
    /// `HostConfig.Cgroups`, which only Podman's own API has.
    PodmanCgroups,
    /// The running `docker exec` calls.
    Execs,
    Systemd,
    /// The systemd unit that owns the cgroup.
    UnitOfCgroup,
    /// The cgroup of the container's first process.
    CgroupOfInit,
    /// The files of a cgroup, by its path.
    Cgroup(String),
    /// `pid_max` of the container's pid namespace.
    NamespacePidMax,
    /// The pid namespaces of this number of processes.
    PidNamespaces(usize),
    ProcessesOfOthers,
    /// The list of cgroups that a running agent guards.
    Guards,
    /// Another source, from a saved file.
    Other(String),
}

/// The sources whose text is fixed.
const FIXED: [Source; 11] = [
    Source::Engine,
    Source::Containers,
    Source::Inspect,
    Source::PodmanCgroups,
    Source::Execs,
    Source::Systemd,
    Source::UnitOfCgroup,
    Source::CgroupOfInit,
    Source::NamespacePidMax,
    Source::ProcessesOfOthers,
    Source::Guards,
];

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Containers => "containers",
            Self::Inspect => "inspect",
            Self::PodmanCgroups => "HostConfig.Cgroups",
            Self::Execs => "docker exec",
            Self::Systemd => "systemd",
            Self::UnitOfCgroup => "unit of the cgroup",
            Self::CgroupOfInit => "cgroup",
            Self::NamespacePidMax => "pid_max of its pid namespace",
            Self::PidNamespaces(1) => "pid namespace of a process",
            Self::PidNamespaces(count) => return write!(f, "pid namespaces of {count} processes"),
            Self::ProcessesOfOthers => "processes of other users",
            Self::Guards => "cgroups that the agent guards",
            Self::Cgroup(text) | Self::Other(text) => text,
        })
    }
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let fixed = FIXED.into_iter().chain([Self::PidNamespaces(1)]);
        if let Some(found) = fixed.into_iter().find(|one| one.to_string() == text) {
            return Ok(found);
        }
        let count = text
            .strip_prefix("pid namespaces of ")
            .and_then(|rest| rest.strip_suffix(" processes").and_then(|count| count.parse().ok()));
        Ok(match count {
            Some(count) => Self::PidNamespaces(count),
            None if text.starts_with('/') => Self::Cgroup(text.to_owned()),
            None => Self::Other(text.to_owned()),
        })
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Ok(source) = String::deserialize(deserializer)?.parse();
        Ok(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_read_back_as_written() {
        let more = [
            Source::PidNamespaces(1),
            Source::PidNamespaces(7),
            Source::Cgroup("/docker/a b".to_owned()),
            Source::Other("a future source".to_owned()),
            Source::Other(String::new()),
        ];
        for source in FIXED.into_iter().chain(more) {
            let text = serde_json::to_string(&source).unwrap();
            assert_eq!(text, format!("\"{source}\""));
            assert_eq!(serde_json::from_str::<Source>(&text).unwrap(), source, "{text}");
        }
    }

    #[test]
    fn the_words_of_older_files_keep_their_meaning() {
        let read = |text: &str| serde_json::from_value::<Source>(text.into()).unwrap();
        assert_eq!(read("unit of the cgroup"), Source::UnitOfCgroup);
        assert_eq!(read("HostConfig.Cgroups"), Source::PodmanCgroups);
        assert_eq!(read("pid namespaces of 12 processes"), Source::PidNamespaces(12));
        assert_eq!(
            read("pid namespaces of many processes"),
            Source::Other("pid namespaces of many processes".into())
        );
    }
}
