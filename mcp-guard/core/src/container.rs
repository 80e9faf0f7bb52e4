//! Finds the container that a cgroup path belongs to. Paths are only hints: a container's cgroup is
//! found through its first process and then compared with the path.

/// A container named by a cgroup path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPath<'a> {
    pub id: &'a str,
    /// The path of the container's own cgroup.
    pub path: &'a str,
}

/// Unit name prefixes of the systemd cgroup driver, as in `docker-ID.scope`. The longer of two that
/// match comes first.
const PREFIXES: [&str; 6] =
    ["docker-", "libpod-payload-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"];
/// crun puts the payload into a cgroup of this name inside the scope, and pauses and limits that
/// cgroup; the scope itself belongs to systemd. The name counts only below the units of engines
/// that use crun, because a container that may create cgroups can create one with this name.
const PAYLOAD: &str = "container";
const WITH_PAYLOAD: [&str; 2] = ["libpod-", "crio-"];
/// Number of hex digits in a container id.
const ID: usize = 64;

/// Returns the outermost container in `path`: `/docker/ID`, `.../docker-ID.scope`,
/// `.../libpod-ID.scope/container`, `.../x.service/libpod-payload-ID`, `/kubepods/.../ID`,
/// `...slice:cri-containerd:ID`.
#[must_use]
pub fn container_in(path: &str) -> Option<InPath<'_>> {
    let mut end = 0;
    path.split_inclusive('/').find_map(|part| {
        end += part.len();
        let name = part.trim_end_matches('/');
        let id = container_id(name)?;
        let unit = path[..end].trim_end_matches('/');
        let own = if has_payload(name) { payload_of(path, unit) } else { unit };
        Some(InPath { id, path: own })
    })
}

fn has_payload(unit: &str) -> bool {
    unit.ends_with(".scope") && WITH_PAYLOAD.iter().any(|prefix| unit.starts_with(prefix))
}

/// Returns the name of the child cgroup that may hold the payload, if `path` is a container's
/// scope.
#[must_use]
pub fn payload_below(path: &str) -> Option<&'static str> {
    let found = container_in(path).filter(|found| found.path == path)?;
    let unit = found.path.rsplit('/').next()?;
    has_payload(unit).then_some(PAYLOAD)
}

/// Returns the payload's cgroup below `unit` if `path` leads through it, else `unit` itself.
fn payload_of<'a>(path: &'a str, unit: &'a str) -> &'a str {
    let below = path[unit.len()..].strip_prefix('/').unwrap_or_default();
    if below.split('/').next() == Some(PAYLOAD) {
        return &path[..=unit.len() + PAYLOAD.len()];
    }
    unit
}

fn container_id(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let id = name.rsplit(':').next().unwrap_or(name);
    is_container_id(id).then_some(id)
}

/// Returns whether `text` is 64 lower-case hex digits, the only form that is passed to an engine.
#[must_use]
pub fn is_container_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_container_is_found() {
        let id = "0123456789abcdef".repeat(4);
        let inner = "f".repeat(64);
        let cases = [
            (format!("/docker/{id}"), Some(format!("/docker/{id}"))),
            (
                format!("/system.slice/docker-{id}.scope/init.scope"),
                Some(format!("/system.slice/docker-{id}.scope")),
            ),
            (
                format!("/machine.slice/libpod-{id}.scope"),
                Some(format!("/machine.slice/libpod-{id}.scope")),
            ),
            (
                format!("/system.slice/mcp.service/libpod-payload-{id}"),
                Some(format!("/system.slice/mcp.service/libpod-payload-{id}")),
            ),
            ("/system.slice/mcp.service/runtime".to_owned(), None),
            (
                format!("/a.slice:cri-containerd:{id}"),
                Some(format!("/a.slice:cri-containerd:{id}")),
            ),
            (
                format!("/kubepods/burstable/pod1/{id}/x"),
                Some(format!("/kubepods/burstable/pod1/{id}")),
            ),
            (format!("/docker/{id}/docker/{inner}"), Some(format!("/docker/{id}"))),
            ("/docker".to_owned(), None),
            (format!("/docker/{}", &id[1..]), None),
            (format!("/machine.slice/libpod-conmon-{id}.scope"), None),
            (format!("/docker/{}", id.to_uppercase()), None),
            ("/".to_owned(), None),
        ];
        for (path, own) in cases {
            assert_eq!(container_in(&path).map(|found| found.path.to_owned()), own, "{path}");
        }
    }

    #[test]
    fn the_payload_cgroup_of_crun_is_the_container() {
        let id = "0123456789abcdef".repeat(4);
        let own = |path: &str| container_in(path).map(|found| found.path.to_owned());
        for unit in [format!("/machine.slice/libpod-{id}.scope"), format!("/a/crio-{id}.scope")] {
            let payload = format!("{unit}/container");
            assert_eq!(own(&payload), Some(payload.clone()));
            assert_eq!(own(&format!("{payload}/init.scope")), Some(payload.clone()), "systemd");
            assert_eq!(own(&format!("{payload}/")), Some(payload));
            for other in ["containers", "contain", "container2/container", "x/container"] {
                assert_eq!(own(&format!("{unit}/{other}")), Some(unit.clone()), "{other}");
            }
        }
        assert_eq!(payload_below(&format!("/a/libpod-{id}.scope")), Some("container"));
        assert_eq!(payload_below(&format!("/a/libpod-{id}.scope/container")), None);
        assert_eq!(payload_below(&format!("/a/docker-{id}.scope")), None);
        // Docker's runtime pauses the scope itself, so a cgroup named `container` there was created
        // by the container.
        let docker = format!("/system.slice/docker-{id}.scope");
        assert_eq!(own(&format!("{docker}/container")), Some(docker));
        let bare = format!("/libpod_parent/libpod-{id}");
        assert_eq!(own(&format!("{bare}/container")), Some(bare), "no systemd, no payload");
    }
}
