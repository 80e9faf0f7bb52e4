//! The codes of findings. They are stable: scripts and reports name them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How bad it is.
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
        /// A cause, or a state that needs no action.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// In the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            #[must_use]
            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// In a few words, for lists.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    NotRecreated 1 Critical "the limit was added to the compose file, and the container was not made anew",
    NeverDeclared 2 Critical "no limit is declared for this service",
    ToolDropped 3 Critical "the compose tool dropped the limit",
    ComposeInvalid 4 Critical "the compose file does not load, and the old container runs on",
    ExplicitUnlimited 5 Critical "created or updated without a limit: null, 0 and -1 mean none",
    Swarm 6 Critical "the swarm service has no limit",
    Drift 7 Medium "the engine's value was changed behind the compose file",
    ApiTooOld 8 High "the engine's API in use ignores limits",
    OtherContainers 9 High "the processes are in other containers",
    PodmanUpdateLost 10 High "this Podman loses an updated limit",
    ControllerDisabled 20 Critical "the kernel has no pids controller",
    NotDelegated 21 Critical "the pids controller is not handed down to this cgroup",
    Rootless 22 Critical "a rootless engine that cannot use cgroups",
    CgroupsDisabled 23 Critical "the container was made without a cgroup of its own",
    ControllerToggled 24 Critical "the controller was switched off and on, which takes the limit away",
    SystemdReset 30 Critical "systemd puts its own value back",
    RawWrite 31 Critical "somebody wrote pids.max by hand",
    NoTasksMax 32 High "the runtime never told systemd of the limit",
    SelfRaised 33 Critical "the container can raise its own limit",
    SystemdDefault 34 Info "the number in force is systemd's default",
    ExecMigration 40 Medium "docker exec joins without being checked",
    ExternalMigration 41 Medium "processes were moved in from outside",
    LoweredBelow 42 Medium "the limit is younger than the processes above it",
    PidNamespace 50 High "seen in the container's process list, and not in its cgroup",
    EscapedCgroup 51 Critical "processes of the container left its cgroup",
    InnerOutside 52 Critical "the containers of an inner engine are outside",
    Siblings 53 High "its own containers run beside it, through the engine's socket",
    Reclassified 54 High "a rule daemon moved its processes elsewhere",
    Threads 60 Info "threads count, not processes",
    Zombies 61 Medium "dead processes that nobody reaps hold the limit",
    NestedInside 62 Info "processes in cgroups below count too",
    WrongHierarchy 63 Info "the limit is in another hierarchy than the one looked at",
    WrongLevel 64 Info "the limit is on another level than the one looked at",
    AncestorLimit 70 High "a lower limit above this cgroup is the one in force",
    WrongLayer 71 Critical "the limit was set where it does not reach this container",
    HostExhausted 72 High "the host or the pid namespace has no numbers left",
    OtherDaemon 80 Critical "the engine that answers is not the one of this host",
    DesktopVm 81 Critical "the engine runs in a virtual machine of its own",
    Sandbox 82 High "a sandbox runtime: the host's limit does not reach the guest",
    PodLevel 83 High "the limit is the pod's",
    Lxc 85 High "the limit is the one of the system container around it",
    Threaded 88 Info "a threaded cgroup",
    Enforced 90 Info "the limit is in force",
    Unknown 99 Info "not enough is known",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MG-P{:03}", self.number())
    }
}

impl FromStr for Code {
    type Err = String;

    /// `MG-P001`, `P001`, `p1` and `1` are one code.
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let digits = upper.strip_prefix("MG-").unwrap_or(&upper);
        let digits = digits.strip_prefix('P').unwrap_or(digits);
        let number = digits.parse::<u16>().ok();
        let found = Self::ALL.iter().find(|code| Some(code.number()) == number);
        found.copied().ok_or_else(|| format!("there is no finding {text:?}; the first is MG-P001"))
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
    fn numbers_rise_and_are_read_in_every_form() {
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
