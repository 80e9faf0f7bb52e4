//! The kinds of targets, hosts, engines and tools.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    Container,
    Unit,
    Cgroup,
    /// Another kind, from a saved file.
    #[serde(untagged)]
    Other(String),
}

impl Default for SubjectKind {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Container => "container",
            Self::Unit => "unit",
            Self::Cgroup => "cgroup",
            Self::Other(kind) => kind,
        })
    }
}

/// A namespace of a container, as the engine's `HostConfig` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    Host,
    /// "", "private", "container:ID" and so on.
    #[serde(untagged)]
    Other(String),
}

impl From<String> for NamespaceMode {
    fn from(mode: String) -> Self {
        match mode.as_str() {
            "host" => Self::Host,
            _ => Self::Other(mode),
        }
    }
}

impl Default for NamespaceMode {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl fmt::Display for NamespaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Other(mode) => mode,
        })
    }
}

/// How Podman creates the cgroups of a container: `HostConfig.Cgroups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerCgroups {
    /// Podman creates none.
    Disabled,
    /// "" (Docker), "default", "split" and so on.
    #[serde(untagged)]
    Other(String),
}

impl From<String> for ContainerCgroups {
    fn from(cgroups: String) -> Self {
        match cgroups.as_str() {
            "disabled" => Self::Disabled,
            _ => Self::Other(cgroups),
        }
    }
}

impl Default for ContainerCgroups {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

words! {
    /// How a host mounts cgroups.
    #[derive(Default)]
    Cgroups {
        /// Version 2 alone.
        Unified "unified",
        /// A version 2 tree beside version 1 controllers.
        Hybrid "hybrid",
        /// Version 1 alone.
        Legacy "legacy",
        None "none",
        /// Not given, or an unknown word.
        #[default]
        #[serde(other)]
        Unknown "",
    }
}

words! {
    /// The kind of an engine.
    #[derive(Default)]
    EngineKind {
        Podman "podman",
        /// Docker, or an unknown engine: all of them are used through Docker's API.
        #[default]
        #[serde(other)]
        Docker "docker",
    }
}

words! {
    /// How an engine creates cgroups.
    #[derive(Default)]
    CgroupDriver {
        Systemd "systemd",
        Cgroupfs "cgroupfs",
        None "none",
        /// The engine names no known driver.
        #[default]
        #[serde(other)]
        Unknown "",
    }
}

words! {
    /// The tool that created a container from compose files. Each has its own labels and versions.
    #[derive(Default)]
    ComposeTool {
        PodmanCompose "podman-compose",
        /// `docker compose` and `docker-compose`.
        #[default]
        #[serde(other)]
        Docker "compose",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, to_string};

    use super::*;

    #[test]
    fn words_are_saved_and_read_as_printed() {
        let quoted = |word: &dyn fmt::Display| format!("\"{word}\"");
        for kind in [SubjectKind::Container, SubjectKind::Unit, SubjectKind::Other("x".into())] {
            assert_eq!(to_string(&kind).unwrap(), quoted(&kind));
            assert_eq!(from_str::<SubjectKind>(&quoted(&kind)).unwrap(), kind);
        }
        for mode in ["host", "private", "container:1f0c", ""] {
            let kind = NamespaceMode::from(mode.to_owned());
            assert_eq!(to_string(&kind).unwrap(), quoted(&mode));
            assert_eq!(from_str::<NamespaceMode>(&quoted(&kind)).unwrap(), kind);
        }
        assert_eq!(NamespaceMode::from("host".to_owned()), NamespaceMode::Host);
        for cgroups in ["disabled", "split", ""] {
            let kind = ContainerCgroups::from(cgroups.to_owned());
            assert_eq!(from_str::<ContainerCgroups>(&quoted(&cgroups)).unwrap(), kind);
            assert_eq!(kind == ContainerCgroups::Disabled, cgroups == "disabled");
        }
        for cgroups in [Cgroups::Unified, Cgroups::Legacy, Cgroups::Unknown] {
            assert_eq!(to_string(&cgroups).unwrap(), quoted(&cgroups));
            assert_eq!(from_str::<Cgroups>(&quoted(&cgroups)).unwrap(), cgroups);
        }
        for engine in [EngineKind::Docker, EngineKind::Podman] {
            assert_eq!(from_str::<EngineKind>(&quoted(&engine)).unwrap(), engine);
        }
        let tool = ComposeTool::PodmanCompose;
        assert_eq!(from_str::<ComposeTool>(&quoted(&tool)).unwrap(), tool);
    }

    #[test]
    fn an_unknown_word_is_not_an_error() {
        for word in ["\"\"", "\"cri-o\""] {
            assert_eq!(from_str::<EngineKind>(word).unwrap(), EngineKind::Docker);
            assert_eq!(from_str::<CgroupDriver>(word).unwrap(), CgroupDriver::Unknown);
            assert_eq!(from_str::<Cgroups>(word).unwrap(), Cgroups::Unknown);
            assert_eq!(from_str::<ComposeTool>(word).unwrap(), ComposeTool::Docker);
        }
    }
}
