//! Recognises the cgroups of whole guests: system containers and virtual machines. A guest is a host
//! to those who use it.

use crate::{
    container::container_in,
    id::{Pid, Ticks},
};

/// A guest that has processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The path of its cgroup.
    pub path: String,
    /// A process of it, for the operator who gives it up: its init, if it has one.
    pub pid: Pid,
    /// Start time of this process.
    pub start: Ticks,
}

/// Returns the path of the outermost guest that `path` leads into, by the names that LXC, Incus,
/// LXD, Proxmox, systemd-nspawn and libvirt use. A name alone proves nothing: see
/// [`is_kept_for_the_host`]. `None` if a container is around it.
///
/// LXC's monitor of a guest counts as a guest, because the guest is lost with it.
#[must_use]
pub fn guest_in(path: &str) -> Option<&str> {
    let (mut end, mut above) = (0, "");
    let guest = path.split_inclusive('/').enumerate().find_map(|(depth, part)| {
        end += part.len();
        let name = part.trim_end_matches('/');
        let is_one = is_guest(name, above, depth == 2);
        above = name;
        is_one.then(|| path[..end].trim_end_matches('/'))
    })?;
    let is_inside = container_in(path).is_some_and(|container| container.path.len() < guest.len());
    (!is_inside).then_some(guest)
}

/// `above`: the name of the cgroup that it is in. `above_is_top`: that one is directly below the root.
fn is_guest(name: &str, above: &str, above_is_top: bool) -> bool {
    let is_lxc = ["lxc.payload.", "lxc.monitor."].iter().any(|prefix| name.starts_with(prefix));
    // Proxmox, and old versions of LXC.
    let is_lxc_number = above_is_top && !name.is_empty() && matches!(above, "lxc" | "lxc.monitor");
    let is_machine = above.ends_with(".slice")
        && ((name.starts_with("machine-") && name.ends_with(".scope"))
            || (name.starts_with("systemd-nspawn@") && name.ends_with(".service")));
    is_lxc || is_lxc_number || is_machine
}

/// Whether only the host, or a user's own manager, makes cgroups directly in `path`, whose owner is
/// `owner`. A container or a service that was given a cgroup makes them in that one alone.
#[must_use]
pub fn is_kept_for_the_host(path: &str, owner: u32) -> bool {
    let mut parts = path.split('/').skip(1);
    let is_users = matches!(parts.next(), Some("user.slice"))
        && parts.next().is_some_and(|name| name.starts_with("user-") && name.ends_with(".slice"))
        && parts.next().is_some_and(|name| name.starts_with("user@") && name.ends_with(".service"))
        && parts.all(|name| name.ends_with(".slice"));
    owner == 0 || is_users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_found_by_the_names_of_their_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        for guest in [
            "/lxc.payload.web",
            "/lxc.monitor.web",
            "/lxc/101",
            "/lxc.monitor/101",
            "/system.slice/lxc.payload.web",
            "/machine.slice/machine-web.scope",
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope",
            "/machine.slice/systemd-nspawn@web.service",
        ] {
            assert_eq!(guest_in(guest), Some(guest));
            for below in [
                "/init.scope".to_owned(),
                "/ns/lxc.payload.inner".to_owned(),
                format!("/system.slice/docker-{id}.scope"),
            ] {
                assert_eq!(guest_in(&format!("{guest}{below}")), Some(guest), "{below}");
            }
        }
        for other in [
            "/".to_owned(),
            String::new(),
            "/lxc".to_owned(),
            "/lxc/".to_owned(),
            "/a/lxc/101".to_owned(),
            "/machine.slice".to_owned(),
            format!("/machine.slice/libpod-{id}.scope"),
            "/system.slice/gw.service/machine-web.scope".to_owned(),
            format!("/docker/{id}/lxc.payload.web"),
            format!("/docker/{id}/machine.slice/machine-web.scope"),
        ] {
            assert_eq!(guest_in(&other), None, "{other}");
        }
    }

    #[test]
    fn a_service_or_container_of_a_user_has_its_cgroup_to_itself() {
        let manager = "/user.slice/user-1000.slice/user@1000.service";
        for path in
            [manager, &format!("{manager}/user.slice"), &format!("{manager}/a.slice/b.slice")]
        {
            assert!(is_kept_for_the_host(path, 1000), "{path}");
        }
        for path in [
            "/system.slice/gw.service",
            "/system.slice/gw.service/x.slice",
            "/user.slice/user-1000.slice/session-1.scope",
            &format!("{manager}/app.slice/gw.service"),
            &format!("{manager}/app.slice/gw.service/x.slice"),
            "/lxc.payload.web/user.slice/user-1000.slice/user@1000.service/user.slice",
            "/x",
        ] {
            assert!(!is_kept_for_the_host(path, 1000), "{path}");
            assert!(is_kept_for_the_host(path, 0), "root's: {path}");
        }
    }
}
