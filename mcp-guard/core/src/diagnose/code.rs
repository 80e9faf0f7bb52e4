//! The codes of findings. They are stable, because scripts and reports name them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No limit is in force.
    Critical,
    High,
    Medium,
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Info => "info",
        })
    }
}

macro_rules! codes {
    ($($name:ident $number:literal $severity:ident $title:literal,)*) => {
        /// The code of a cause, or of a state that needs no action.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            #[must_use]
            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// Returns a short title, for lists.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    NotRecreated 1 Critical "the compose file has a limit, but the container was not re-created",
    NeverDeclared 2 Critical "no limit is declared for this service",
    ToolDropped 3 Critical "the compose tool dropped the limit",
    ComposeInvalid 4 Critical "the compose file does not load, so the old container keeps running",
    ExplicitUnlimited 5 Critical "the container was created or updated without a limit (null, 0 or -1)",
    Swarm 6 Critical "the swarm service has no limit",
    Drift 7 Medium "the engine's limit was changed, but the compose file was not",
    ApiTooOld 8 High "the engine API version in use ignores updates of the limit",
    OtherContainers 9 High "the processes are in other containers",
    PodmanUpdateLost 10 High "this version of Podman loses updates of the limit",
    ControllerDisabled 20 Critical "the kernel has no pids controller",
    NotDelegated 21 Critical "the pids controller is not enabled for this cgroup",
    Rootless 22 Critical "the rootless engine cannot use cgroups",
    CgroupsDisabled 23 Critical "the container was created without its own cgroup",
    ControllerToggled 24 Critical "the pids controller was disabled and re-enabled, which removed the limit",
    SystemdReset 30 Critical "systemd restores its own value",
    RawWrite 31 Critical "pids.max was written directly, not through the engine",
    NoTasksMax 32 High "the runtime did not pass the limit to systemd",
    SelfRaised 33 Critical "the container can raise its own limit",
    SystemdDefault 34 Info "the number in force is systemd's default",
    ExecMigration 40 Medium "docker exec adds processes without checking the limit",
    ExternalMigration 41 Medium "processes were moved into the cgroup from outside",
    LoweredBelow 42 Medium "the limit was set below the number of running tasks",
    PidNamespace 50 High "processes in the container's process list are not in its cgroup",
    EscapedCgroup 51 Critical "processes of the container left its cgroup",
    InnerOutside 52 Critical "the containers of an inner engine are outside this cgroup",
    Siblings 53 High "the container starts other containers through the engine's socket",
    Reclassified 54 High "a cgroup rule daemon moved processes of the container to another cgroup",
    Threads 60 Info "the limit counts threads, not processes",
    Zombies 61 Medium "dead processes that are not reaped count against the limit",
    NestedInside 62 Info "processes in cgroups below this one count too",
    WrongHierarchy 63 Info "the limit is in the other cgroup hierarchy",
    WrongLevel 64 Info "the limit is on another level of the cgroup tree",
    AncestorLimit 70 High "a limit above this cgroup is reached first",
    WrongLayer 71 Critical "the limit was set where it does not affect this container",
    HostExhausted 72 High "the host or the pid namespace has reached its own task limit",
    OtherDaemon 80 Critical "the engine that answers does not run on this host",
    DesktopVm 81 Critical "the engine runs in a virtual machine",
    Sandbox 82 High "a sandbox runtime: the host's limit does not apply inside the guest",
    PodLevel 83 High "the limit that applies is the pod's",
    Lxc 85 High "the limit that applies is that of the enclosing system container",
    Threaded 88 Info "the cgroup is threaded",
    Enforced 90 Info "the limit is in force",
    Unknown 99 Info "the limit could not be determined",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MG-P{:03}", self.number())
    }
}

impl FromStr for Code {
    type Err = String;

    /// Parses a code: `MG-P001`, `P001`, `p1` and `1` mean the same.
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let digits = upper.strip_prefix("MG-").unwrap_or(&upper);
        let digits = digits.strip_prefix('P').unwrap_or(digits);
        let number = digits.parse::<u16>().ok();
        let found = Self::ALL.iter().find(|code| Some(code.number()) == number);
        found.copied().ok_or_else(|| {
            format!("no finding has the code {text:?}; `mcp-guard explain` lists all codes")
        })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_parse_in_every_form() {
        assert!(Code::ALL.is_sorted_by_key(|code| code.number()));
        for code in Code::ALL {
            let number = code.number();
            for text in [code.to_string(), format!("p{number:03}"), number.to_string()] {
                assert_eq!(text.parse::<Code>(), Ok(*code));
            }
        }
        for text in ["", "MG-", "P", "P000", "P-1", "P65536", "MG-P01x"] {
            assert!(text.parse::<Code>().is_err(), "{text}");
        }
    }
}
