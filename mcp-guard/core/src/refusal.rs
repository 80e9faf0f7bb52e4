//! The bystander rules: cgroups that are never acted on, no matter who asks. They are checked when
//! a guard begins, and again on fresh facts right before each action.

mod engine;
mod guest;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::engine::{
    DELETED, ENGINES, MustRun, SuspectFacts, engine_name, is_engine_comm, only_root_writes,
};
pub use self::guest::{Guest, guest_in, is_kept_for_the_host};
use crate::id::{Pid, Ticks};

/// The facts that the rules check. Paths are in the unified hierarchy and begin with `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BystanderFacts {
    pub path: String,
    /// The agent's own cgroup.
    pub own: String,
    /// The cgroup of PID 1, if it is known.
    pub init: Option<String>,
    pub holds_pid_1: bool,
    pub holds_the_agent: bool,
    /// A populated cgroup for which [`is_login_or_init`] is true, at `path` or below.
    pub login_or_init: Option<String>,
    /// Engine, shim, monitor and kubelet processes in the cgroup.
    pub engines: Vec<EngineProcess>,
    /// Guests at `path` or below, and the one around `path` if its init is in the cgroup.
    pub guests: Vec<Guest>,
    /// Number of containers below `path`, without those in its guests. 0 if `path` is in a container.
    pub containers: usize,
    /// A process that serves a FUSE file system, if one was looked for and found. No rule judges it.
    pub fuse_server: Option<Pid>,
    /// Number of processes in the cgroup and below it; `None` if they were not counted. No rule judges it.
    pub processes: Option<usize>,
}

/// A process that runs containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineProcess {
    pub pid: Pid,
    /// Start time, which together with the pid identifies the process permanently.
    pub start: Ticks,
    /// The file name of its program.
    pub name: String,
}

/// A process that an operator accepts to stop or to lose: one that runs containers, or the one that a
/// refusal names for a whole guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Despite {
    pub pid: Pid,
    pub start_ticks: Ticks,
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
    /// A whole system container or virtual machine.
    HoldsGuest {
        unit: String,
        pid: Pid,
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
            Self::HoldsGuest { unit, pid } => write!(
                f,
                "it contains the whole of {unit} (a system container or virtual machine, with \
                 process {pid}); name a cgroup inside it"
            ),
            Self::SeveralContainers { count } => {
                write!(f, "it contains {count} containers side by side; name one of them")
            }
        }
    }
}

impl Refusal {
    /// Whether the refusal names the process that the operator gave up.
    #[must_use]
    pub fn is_overridden(&self, despite: Option<Despite>) -> bool {
        let given_up = despite.map(|despite| despite.pid);
        match self {
            Self::HoldsEngine { pid, .. } | Self::HoldsGuest { pid, .. } => Some(*pid) == given_up,
            Self::RootCgroup
            | Self::OwnCgroup
            | Self::HoldsPid1
            | Self::LoginOrInit { .. }
            | Self::SeveralContainers { .. } => false,
        }
    }
}

/// Returns the first rule that forbids acting on a cgroup.
#[must_use]
pub fn refusal(facts: &BystanderFacts) -> Option<Refusal> {
    refusal_despite(facts, None)
}

/// Like [`refusal`], for an operator who gave up one process that runs containers, or one guest. Every
/// other rule still applies, and every other such process or guest.
#[must_use]
pub fn refusal_despite(facts: &BystanderFacts, despite: Option<Despite>) -> Option<Refusal> {
    if let Some(refusal) = refusal_by_place(facts) {
        return Some(refusal);
    }
    if facts.holds_pid_1 {
        return Some(Refusal::HoldsPid1);
    }
    if facts.holds_the_agent {
        return Some(Refusal::OwnCgroup);
    }
    if let Some(path) = &facts.login_or_init {
        return Some(Refusal::LoginOrInit { unit: file_name(path).to_owned() });
    }
    let given_up = |pid, start_ticks| despite == Some(Despite { pid, start_ticks });
    if let Some(EngineProcess { pid, name, .. }) =
        facts.engines.iter().find(|engine| !given_up(engine.pid, engine.start))
    {
        return Some(Refusal::HoldsEngine { pid: *pid, name: name.clone() });
    }
    if let Some(Guest { path, pid, .. }) =
        facts.guests.iter().find(|guest| !given_up(guest.pid, guest.start))
    {
        return Some(Refusal::HoldsGuest { unit: file_name(path).to_owned(), pid: *pid });
    }
    (facts.containers > 1).then_some(Refusal::SeveralContainers { count: facts.containers })
}

/// Returns the first rule that forbids acting on a cgroup because of its place alone. It needs
/// `path`, `own` and `init`, and nothing of what is in the cgroup.
#[must_use]
pub fn refusal_by_place(facts: &BystanderFacts) -> Option<Refusal> {
    let path = facts.path.trim_end_matches('/');
    if path.is_empty() {
        return Some(Refusal::RootCgroup);
    }
    if facts.init.as_deref().is_some_and(|init| holds(path, init)) {
        return Some(Refusal::HoldsPid1);
    }
    holds(path, &facts.own).then_some(Refusal::OwnCgroup)
}

/// Whether `path` is the cgroup `other`, or one above it.
#[must_use]
pub fn holds(path: &str, other: &str) -> bool {
    other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether a cgroup has the name of a unit of init, a login session or a user manager. Anyone who
/// may create a cgroup can choose that name; [`is_login_or_init`] decides.
#[must_use]
pub fn is_named_login_or_init(path: &str) -> bool {
    let name = file_name(path);
    name == "init.scope" || is_session(name) || is_user_manager(name)
}

/// Whether a cgroup is a unit of init, a login session or a user manager: it has the name, and
/// systemd created it. That is proved by its place, because only root can create a cgroup there, or
/// by `is_marked`: it carries `trusted.invocation_id`, for which root needs `CAP_SYS_ADMIN`.
///
/// systemd marks no scope that it creates before it has drawn the id, which is every session scope.
#[must_use]
pub fn is_login_or_init(path: &str, is_marked: bool) -> bool {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let of_user = |slice: &str| slice.starts_with("user-") && slice.ends_with(".slice");
    let is_in_place = match parts[..] {
        ["init.scope"] => true,
        ["user.slice", slice, unit] => {
            of_user(slice) && (is_session(unit) || is_user_manager(unit))
        }
        // The user manager's own processes.
        ["user.slice", slice, manager, "init.scope"] => of_user(slice) && is_user_manager(manager),
        _ => false,
    };
    is_in_place || (is_marked && is_named_login_or_init(path))
}

fn is_session(name: &str) -> bool {
    name.starts_with("session-") && name.ends_with(".scope")
}

fn is_user_manager(name: &str) -> bool {
    name.starts_with("user@") && name.ends_with(".service")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(path: &str) -> BystanderFacts {
        BystanderFacts {
            path: path.to_owned(),
            own: "/system.slice/mcp-guard.service".to_owned(),
            init: Some("/init.scope".to_owned()),
            ..BystanderFacts::default()
        }
    }

    fn verdict(path: &str) -> Option<Refusal> {
        refusal(&facts(path))
    }

    #[test]
    fn the_host_and_the_agent_are_safe() {
        assert_eq!(verdict("/"), Some(Refusal::RootCgroup));
        assert_eq!(verdict(""), Some(Refusal::RootCgroup));
        assert_eq!(verdict("/system.slice/mcp-guard.service"), Some(Refusal::OwnCgroup));
        assert_eq!(verdict("/system.slice"), Some(Refusal::OwnCgroup), "an ancestor");
        assert_eq!(verdict("/system.slice/mcp"), None, "only a common prefix");
        assert_eq!(verdict("/init.scope"), Some(Refusal::HoldsPid1));
        let agent_inside = BystanderFacts { holds_the_agent: true, ..facts("/x") };
        assert_eq!(refusal(&agent_inside), Some(Refusal::OwnCgroup));
        let init_inside = BystanderFacts { holds_pid_1: true, ..facts("/x") };
        assert_eq!(refusal(&init_inside), Some(Refusal::HoldsPid1));
        let in_the_root = BystanderFacts { init: Some(String::new()), ..facts("/x") };
        assert_eq!(refusal(&in_the_root), None, "without systemd, PID 1 is in the root cgroup");
    }

    #[test]
    fn login_sessions_and_init_are_safe_where_systemd_creates_them() {
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        for path in [
            "/init.scope",
            "/user.slice/user-0.slice/session-3.scope",
            "/user.slice/user-1000.slice/session-c1.scope",
            manager,
            &format!("{manager}/init.scope"),
        ] {
            assert!(is_named_login_or_init(path) && is_login_or_init(path, false), "{path}");
        }
        for path in [
            "/x/init.scope",
            "/session-3.scope",
            "/system.slice/gw.service/session-1.scope",
            "/system.slice/gw.service/user.slice/user-0.slice/session-1.scope",
            "/user.slice/session-1.scope",
            "/user.slice/user-0.slice/x/session-1.scope",
            &format!("{manager}/app.slice/gw.service/init.scope"),
            &format!("{manager}/session-1.scope"),
        ] {
            assert!(is_named_login_or_init(path), "{path}");
            assert!(!is_login_or_init(path, false), "a name proves nothing: {path}");
            assert!(is_login_or_init(path, true), "the mark proves it: {path}");
        }
        for path in ["/system.slice/gw.service", "/user.slice/user-0.slice", "/user@.slice", ""] {
            assert!(!is_login_or_init(path, true), "{path}");
        }
        let session = "/user.slice/user-0.slice/session-3.scope".to_owned();
        let above = BystanderFacts { login_or_init: Some(session), ..facts("/user.slice") };
        let expected = Refusal::LoginOrInit { unit: "session-3.scope".to_owned() };
        assert_eq!(refusal(&above), Some(expected));
    }

    #[test]
    fn processes_that_run_containers_are_safe() {
        let (pid, start, name) = (Pid(7), Ticks(70), "conmon".to_owned());
        let engines = vec![EngineProcess { pid, start, name: name.clone() }];
        let mut holding = BystanderFacts { engines, ..facts("/x") };
        assert_eq!(refusal(&holding), Some(Refusal::HoldsEngine { pid, name: name.clone() }));
        let despite = |pid, ticks| Some(Despite { pid, start_ticks: Ticks(ticks) });
        assert_eq!(refusal_despite(&holding, despite(pid, 70)), None);
        for other in [despite(pid, 71), despite(Pid(8), 70)] {
            assert!(refusal_despite(&holding, other).is_some(), "{other:?} is another process");
        }
        holding.engines.push(EngineProcess { pid: Pid(8), start, name: name.clone() });
        let second = Some(Refusal::HoldsEngine { pid: Pid(8), name });
        assert_eq!(refusal_despite(&holding, despite(pid, 70)), second, "one process alone");
        let login = BystanderFacts { login_or_init: Some("/init.scope".to_owned()), ..holding };
        assert!(refusal_despite(&login, despite(pid, 70)).is_some(), "another rule");
    }

    #[test]
    fn guests_are_safe_unless_the_operator_gives_up_the_only_one() {
        let guest = |pid| Guest {
            path: format!("/lxc.payload.{pid}"),
            pid: Pid(pid),
            start: Ticks(10 * u64::from(pid)),
        };
        let mut holding = BystanderFacts { guests: vec![guest(7)], ..facts("/x") };
        let refused =
            |pid| Refusal::HoldsGuest { unit: format!("lxc.payload.{pid}"), pid: Pid(pid) };
        let despite = |pid, ticks| Some(Despite { pid: Pid(pid), start_ticks: Ticks(ticks) });
        assert_eq!(refusal(&holding), Some(refused(7)));
        assert_eq!(refusal_despite(&holding, despite(7, 70)), None);
        assert!(refused(7).is_overridden(despite(7, 70)));
        assert!(refusal_despite(&holding, despite(7, 71)).is_some(), "another process");
        holding.guests.push(guest(8));
        assert_eq!(refusal_despite(&holding, despite(7, 70)), Some(refused(8)), "one guest alone");
    }

    #[test]
    fn containers_side_by_side_are_safe() {
        let holding = |containers| refusal(&BystanderFacts { containers, ..facts("/docker") });
        assert_eq!((holding(0), holding(1)), (None, None));
        assert_eq!(holding(2), Some(Refusal::SeveralContainers { count: 2 }));
    }
}
