//! The bystander rules: cgroups that are never acted on, no matter who asks. They are checked when
//! a guard begins, and again on fresh facts right before each action.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{container::container_in, id::Pid};

/// The facts that the rules check. Paths are in the unified hierarchy and begin with `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BystanderFacts {
    pub path: String,
    /// Paths of all cgroups below `path`.
    pub descendants: Vec<String>,
    /// The agent's own cgroup.
    pub own: String,
    pub holds_pid_1: bool,
    pub holds_the_agent: bool,
    /// Engine, shim, monitor and kubelet processes in the cgroup: pid and name.
    pub engine_processes: Vec<(Pid, String)>,
}

/// Why a cgroup is not acted on. The text completes "refused: ".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    RootCgroup,
    OwnCgroup,
    HoldsPid1,
    /// init.scope, a session scope or user@.service, or a cgroup above one of these.
    LoginOrInit {
        unit: String,
    },
    HoldsEngine {
        pid: Pid,
        name: String,
    },
    SeveralContainers {
        count: usize,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootCgroup => write!(f, "it is the root cgroup, which contains the whole host"),
            Self::OwnCgroup => write!(f, "mcp-guard itself runs in it"),
            Self::HoldsPid1 => write!(f, "it contains PID 1"),
            Self::LoginOrInit { unit } => {
                write!(f, "it contains {unit} (init, a login session or a user manager)")
            }
            Self::HoldsEngine { pid, name } => {
                write!(f, "it contains process {pid} ({name}), which runs containers")
            }
            Self::SeveralContainers { count } => {
                write!(f, "it contains {count} containers side by side; name one of them")
            }
        }
    }
}

/// Programs that run containers. Names are as in `/proc/PID/comm`, which keeps 15 bytes.
pub const ENGINES: [&str; 9] = [
    "dockerd",
    "containerd",
    "containerd-shim",
    "podman",
    "conmon",
    "conmonrs",
    "crio",
    "kubelet",
    "docker-proxy",
];

/// Returns the first rule that forbids acting on a cgroup.
#[must_use]
pub fn refusal(facts: &BystanderFacts) -> Option<Refusal> {
    let path = facts.path.trim_end_matches('/');
    if path.is_empty() {
        return Some(Refusal::RootCgroup);
    }
    if facts.holds_pid_1 {
        return Some(Refusal::HoldsPid1);
    }
    if facts.holds_the_agent || facts.own == path || is_below(&facts.own, path) {
        return Some(Refusal::OwnCgroup);
    }
    let whole_tree = || std::iter::once(path).chain(facts.descendants.iter().map(String::as_str));
    // A container may run its own systemd: cgroups below a container belong to it.
    let outside_containers = || whole_tree().filter(|path| container_in(path).is_none());
    if let Some(unit) = outside_containers().find_map(login_or_init) {
        return Some(Refusal::LoginOrInit { unit: unit.to_owned() });
    }
    if let Some((pid, name)) = facts.engine_processes.first() {
        return Some(Refusal::HoldsEngine { pid: *pid, name: name.clone() });
    }
    if container_in(path).is_none() {
        let mut ids: Vec<_> = whole_tree().filter_map(container_in).map(|found| found.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > 1 {
            return Some(Refusal::SeveralContainers { count: ids.len() });
        }
    }
    None
}

fn is_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.starts_with('/'))
}

/// Returns the last component of `path` if it is a unit of init, a login session or a user manager.
fn login_or_init(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let session = name.starts_with("session-") && name.ends_with(".scope");
    let user_manager = name.starts_with("user@") && name.ends_with(".service");
    (name == "init.scope" || session || user_manager).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(path: &str, descendants: &[&str]) -> BystanderFacts {
        BystanderFacts {
            path: path.to_owned(),
            descendants: descendants.iter().map(|path| (*path).to_owned()).collect(),
            own: "/system.slice/mcp-guard.service".to_owned(),
            ..BystanderFacts::default()
        }
    }

    fn verdict(path: &str, descendants: &[&str]) -> Option<Refusal> {
        refusal(&facts(path, descendants))
    }

    const A: &str = "/docker/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "/docker/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn the_host_and_the_agent_are_safe() {
        assert_eq!(verdict("/", &[]), Some(Refusal::RootCgroup));
        assert_eq!(verdict("", &[]), Some(Refusal::RootCgroup));
        assert_eq!(verdict("/system.slice/mcp-guard.service", &[]), Some(Refusal::OwnCgroup));
        assert_eq!(verdict("/system.slice", &[]), Some(Refusal::OwnCgroup), "an ancestor");
        assert_eq!(verdict("/system.slice/mcp", &[]), None, "only a common prefix");
        let agent_inside = BystanderFacts { holds_the_agent: true, ..facts("/x", &[]) };
        assert_eq!(refusal(&agent_inside), Some(Refusal::OwnCgroup));
        let init_inside = BystanderFacts { holds_pid_1: true, ..facts("/x", &[]) };
        assert_eq!(refusal(&init_inside), Some(Refusal::HoldsPid1));
    }

    #[test]
    fn login_sessions_and_init_are_safe() {
        let login = |unit: &str| Some(Refusal::LoginOrInit { unit: unit.to_owned() });
        assert_eq!(verdict("/init.scope", &[]), login("init.scope"));
        let session = "/user.slice/user-0.slice/session-3.scope";
        assert_eq!(verdict(session, &[]), login("session-3.scope"));
        assert_eq!(verdict("/user.slice", &[session]), login("session-3.scope"), "an ancestor");
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        assert_eq!(verdict(manager, &[]), login("user@1000.service"));
        assert_eq!(verdict("/user.slice/user-1000.slice", &[manager]), login("user@1000.service"));
        let below = format!("{manager}/app.slice/mcp.service");
        assert_eq!(verdict(&below, &[]), None, "a user's own service may be acted on");
    }

    #[test]
    fn processes_that_run_containers_are_safe() {
        let mut engine = facts("/x", &[]);
        engine.engine_processes = vec![(Pid(7), "containerd-shim".to_owned())];
        assert!(matches!(refusal(&engine), Some(Refusal::HoldsEngine { pid: Pid(7), .. })));
    }

    #[test]
    fn sibling_containers_are_safe_and_nested_ones_belong_to_the_outer_one() {
        assert_eq!(verdict("/docker", &[A, B]), Some(Refusal::SeveralContainers { count: 2 }));
        assert_eq!(verdict(A, &[]), None);
        assert_eq!(verdict(A, &[&format!("{A}{A}"), &format!("{A}{B}")]), None, "docker in docker");
        assert_eq!(verdict(A, &[&format!("{A}/init.scope")]), None, "systemd in a container");
        let pod = "/kubepods.slice/kubepods-pod1.slice";
        let one = format!("{pod}/cri-containerd-{}.scope", "a".repeat(64));
        let two = format!("{pod}/cri-containerd-{}.scope", "b".repeat(64));
        assert_eq!(verdict(pod, &[&one, &two]), Some(Refusal::SeveralContainers { count: 2 }));
        assert_eq!(verdict(pod, &[&one]), None);
    }
}
