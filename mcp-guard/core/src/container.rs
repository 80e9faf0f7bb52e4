//! Which container a cgroup path belongs to. Paths are hints only: a container's cgroup is found from
//! its first process and then compared with this.

/// A container named by a cgroup path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPath<'a> {
    pub id: &'a str,
    /// The path of the container's own cgroup.
    pub path: &'a str,
}

/// Unit name prefixes of the systemd cgroup driver: `docker-ID.scope`.
const PREFIXES: [&str; 5] = ["docker-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"];
/// Length of a container id in hex.
const ID: usize = 64;

/// The outermost container in `path`: `/docker/ID`, `.../docker-ID.scope`, `.../libpod-ID.scope`,
/// `/kubepods/.../ID`, `...slice:cri-containerd:ID`.
#[must_use]
pub fn container_in(path: &str) -> Option<InPath<'_>> {
    let mut end = 0;
    path.split_inclusive('/').find_map(|part| {
        end += part.len();
        let id = container_id(part.trim_end_matches('/'))?;
        Some(InPath { id, path: path[..end].trim_end_matches('/') })
    })
}

fn container_id(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let id = name.rsplit(':').next().unwrap_or(name);
    is_container_id(id).then_some(id)
}

/// 64 lower-case hex digits, the only form that is passed on to an engine.
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
                format!("/machine.slice/libpod-{id}.scope/container"),
                Some(format!("/machine.slice/libpod-{id}.scope")),
            ),
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
}
