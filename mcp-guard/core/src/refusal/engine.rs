//! Recognises the processes that run containers.

/// Names of the programs that run containers. k3s is its own containerd.
pub const ENGINES: [&str; 13] = [
    "dockerd",
    "containerd",
    "containerd-shim",
    "podman",
    "conmon",
    "conmonrs",
    "crio",
    "kubelet",
    "docker-proxy",
    "k3s",
    "lxc-start",
    "lxd",
    "incusd",
];

/// The kernel appends this to the path of a running program whose file was removed, as an upgrade
/// does.
pub const DELETED: &[u8] = b" (deleted)";

/// Returns the file name of a program that runs containers. `exe` is the target of
/// `/proc/PID/exe`. The name may have a version or a suffix: `containerd-2.1`, `kubelet.old`,
/// `dockerd~`.
#[must_use]
pub fn engine_name(exe: &[u8]) -> Option<&str> {
    let exe = exe.strip_suffix(DELETED).unwrap_or(exe);
    let name = std::str::from_utf8(exe.rsplit(|byte| *byte == b'/').next()?).ok()?;
    // `containerd-shim-runc-v2`
    let is_shim = name.starts_with("containerd-shim-");
    let is_engine = |engine: &&str| {
        name.strip_prefix(*engine).is_some_and(|rest| {
            let version = rest.strip_prefix('-').is_some_and(|version| {
                version.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit())
            });
            rest.is_empty() || version || rest.starts_with(['.', '~'])
        })
    };
    (is_shim || ENGINES.iter().any(is_engine)).then_some(name)
}

/// The kernel's view of a process whose program has an engine's name. Nothing of it is a name
/// that the process may choose: `/proc/PID/comm` and its arguments are the process's own to write.
#[derive(Clone, Copy, Debug)]
pub struct SuspectFacts {
    /// Real and effective uid.
    pub uids: (u32, u32),
    /// It is in the pid namespace of the host's PID 1.
    pub in_hosts_pids: bool,
    /// It is in the mount namespace of the host's PID 1.
    pub in_hosts_mounts: bool,
    /// Its cgroup is that of a container, or below one.
    pub in_container: bool,
    /// The owner of its cgroup.
    pub cgroup_owner: u32,
}

/// The program that a process must run to be an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MustRun {
    /// Any file with an engine's name: who may run it is proof enough.
    AnyFile,
    /// A file of root that is installed: at the same path on the host, in a folder that only root may
    /// write.
    InstalledFile,
}

impl SuspectFacts {
    /// Returns what the process must run to be an engine; `None` if it is none. An engine is root's
    /// and the host's. A process of root in the host's pid namespace could also kill the agent, so
    /// that it gains nothing by posing as an engine.
    ///
    /// Outside containers an engine may have a mount namespace of its own, as Docker from a snap
    /// has. The monitor of a user's containers is that user's, in a cgroup that he owns. In a mount
    /// namespace of his own he can show any file of root under any name.
    #[must_use]
    pub fn must_run(&self) -> Option<MustRun> {
        if !self.in_hosts_pids || (self.in_container && !self.in_hosts_mounts) {
            return None;
        }
        match self.uids {
            (0, 0) => Some(MustRun::AnyFile),
            (real, effective) => {
                let is_owners = real == effective && real == self.cgroup_owner;
                (is_owners && !self.in_container).then_some(MustRun::InstalledFile)
            }
        }
    }
}

/// Whether only root may write a file or folder.
#[must_use]
pub fn only_root_writes(owner: u32, group: u32, mode: u32) -> bool {
    owner == 0 && mode & 0o002 == 0 && (group == 0 || mode & 0o020 == 0)
}

/// Whether a process has the name of an engine, where no more than that can be read.
/// `/proc/PID/comm` keeps 15 bytes of the name.
#[must_use]
pub fn is_engine_comm(comm: &[u8]) -> bool {
    const COMM: usize = 15;
    ENGINES.iter().any(|name| comm == &name.as_bytes()[..name.len().min(COMM)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOTS: SuspectFacts = SuspectFacts {
        uids: (0, 0),
        in_hosts_pids: true,
        in_hosts_mounts: true,
        in_container: false,
        cgroup_owner: 0,
    };

    #[test]
    fn an_engine_is_known_by_its_file() {
        let cases = [
            ("/usr/bin/dockerd", Some("dockerd")),
            ("/usr/bin/dockerd (deleted)", Some("dockerd")),
            ("/snap/docker/2915/bin/dockerd", Some("dockerd")),
            ("/usr/bin/containerd-shim-runc-v2", Some("containerd-shim-runc-v2")),
            ("/var/lib/rancher/k3s/data/0a/bin/k3s", Some("k3s")),
            ("conmon", Some("conmon")),
            ("/usr/bin/containerd-2.1", Some("containerd-2.1")),
            ("/usr/bin/containerd-v2.1", Some("containerd-v2.1")),
            ("/usr/bin/kubelet.old", Some("kubelet.old")),
            ("/usr/bin/dockerd~ (deleted)", Some("dockerd~")),
            ("/usr/bin/podman-mcp-server", None),
            ("/usr/bin/dockerdx", None),
            ("/usr/bin/docker", None),
            ("/usr/bin/dockerd/x", None),
            ("/usr/bin/xdockerd", None),
            ("/usr/bin/dockerd ", None),
            ("", None),
        ];
        for (exe, expected) in cases {
            assert_eq!(engine_name(exe.as_bytes()), expected, "{exe}");
        }
        assert_eq!(engine_name(b"/bin/\xff"), None);
    }

    #[test]
    fn an_engine_of_root_runs_on_the_host() {
        let roots = Some(MustRun::AnyFile);
        assert_eq!(ROOTS.must_run(), roots);
        let snap = SuspectFacts { in_hosts_mounts: false, ..ROOTS };
        assert_eq!(snap.must_run(), roots, "a snap has its own mount namespace");
        for (other, why) in [
            (SuspectFacts { uids: (1000, 0), ..ROOTS }, "started by a user"),
            (SuspectFacts { uids: (0, 1000), ..ROOTS }, "it has become a user"),
            (SuspectFacts { in_hosts_pids: false, ..ROOTS }, "in a container"),
            (
                SuspectFacts { in_hosts_mounts: false, in_container: true, ..ROOTS },
                "in a container with the host's pid namespace",
            ),
        ] {
            assert_eq!(other.must_run(), None, "{why}");
        }
    }

    #[test]
    fn the_monitor_of_a_users_containers_is_an_installed_program_in_the_users_own_cgroup() {
        let uids = (1000, 1000);
        let users = SuspectFacts { uids, in_hosts_mounts: false, cgroup_owner: 1000, ..ROOTS };
        assert_eq!(users.must_run(), Some(MustRun::InstalledFile));
        for (other, why) in [
            (SuspectFacts { cgroup_owner: 0, ..users }, "in a service of the system"),
            (SuspectFacts { cgroup_owner: 1001, ..users }, "in the cgroup of another user"),
            (SuspectFacts { in_container: true, ..users }, "in a container of the user"),
            (SuspectFacts { in_hosts_pids: false, ..users }, "in a pid namespace of the user"),
        ] {
            assert_eq!(other.must_run(), None, "{why}");
        }
    }

    #[test]
    fn a_file_of_root_is_written_by_root_alone() {
        assert!(only_root_writes(0, 990, 0o100_755));
        assert!(only_root_writes(0, 0, 0o100_775), "only root is in its group");
        assert!(!only_root_writes(1000, 0, 0o100_755) && !only_root_writes(0, 0, 0o100_757));
        assert!(!only_root_writes(0, 990, 0o100_775));
    }

    #[test]
    fn where_only_the_name_can_be_read_it_is_cut() {
        assert!(is_engine_comm(b"dockerd") && is_engine_comm(b"containerd-shim"));
        assert!(
            !is_engine_comm(b"containerd-shi") && !is_engine_comm(b"") && !is_engine_comm(b"sh")
        );
    }
}
