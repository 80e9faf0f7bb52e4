//! `/proc/PID/cgroup`: the cgroup of a process in each hierarchy, see cgroups(7).

/// The lines of the file. Paths are bytes, because a name may contain any byte but a slash and a
/// newline.
pub struct Membership(Vec<u8>);

impl Membership {
    #[must_use]
    pub fn new(text: Vec<u8>) -> Self {
        Self(text)
    }

    /// Returns the whole file.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path in the unified tree.
    #[must_use]
    pub fn unified(&self) -> Option<&[u8]> {
        self.path(|number, _| number == b"0")
    }

    /// Returns the path in the version 1 hierarchy that has the pids controller.
    #[must_use]
    pub fn v1_pids(&self) -> Option<&[u8]> {
        self.v1(b"pids")
    }

    /// Returns the path in the version 1 hierarchy that has the freezer.
    #[must_use]
    pub fn v1_freezer(&self) -> Option<&[u8]> {
        self.v1(b"freezer")
    }

    /// Returns the path in the version 1 hierarchy of systemd.
    #[must_use]
    pub fn systemd(&self) -> Option<&[u8]> {
        self.v1(b"name=systemd")
    }

    fn v1(&self, controller: &[u8]) -> Option<&[u8]> {
        self.path(|_, controllers| {
            controllers.split(|byte| *byte == b',').any(|one| one == controller)
        })
    }

    /// Returns the path in the first hierarchy whose number and controllers are `wanted`.
    fn path(&self, wanted: impl Fn(&[u8], &[u8]) -> bool) -> Option<&[u8]> {
        self.0.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (number, controllers) = (fields.next()?, fields.next()?);
            wanted(number, controllers).then(|| fields.next()).flatten()
        })
    }
}

/// Whether the path of a process is that of a cgroup, or below it.
#[must_use]
pub fn is_inside(path: Option<&[u8]>, cgroup: &[u8]) -> bool {
    let below = path.and_then(|path| path.strip_prefix(cgroup));
    matches!(below, Some([] | [b'/', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(text: &[u8]) -> Membership {
        Membership::new(text.to_vec())
    }

    #[test]
    fn the_line_of_each_hierarchy_is_found() {
        let hybrid = membership(b"4:name=pids:/b\n3:pids,misc:/a\n0::/c\n");
        assert_eq!((hybrid.v1_pids(), hybrid.v1_freezer()), (Some(&b"/a"[..]), None));
        assert_eq!(membership(b"2:freezer:/d\n0::/c").v1_freezer(), Some(&b"/d"[..]));
        assert_eq!(hybrid.unified(), Some(&b"/c"[..]));
        let systemd = membership(b"9:pids:/b\n1:name=systemd:/user.slice\n0::/c\n");
        assert_eq!(systemd.systemd(), Some(&b"/user.slice"[..]));
        assert_eq!(membership(b"0::/c").v1_pids(), None);
        assert_eq!(membership(b"3:pids:/a").unified(), None);
        assert_eq!(membership(b"10:cpu:/a\n0::/c").unified(), Some(&b"/c"[..]));
    }

    #[test]
    fn a_path_is_bytes_to_the_end_of_its_line() {
        let odd = membership(b"0::/a:b/\xff c (deleted)\n");
        assert_eq!(odd.unified(), Some(&b"/a:b/\xff c (deleted)"[..]));
        assert_eq!(membership(b"0::").unified(), Some(&b""[..]));
        for bad in [&b""[..], b"\n\n", b"0", b"0:", b"garbage"] {
            assert_eq!(membership(bad).unified(), None);
            assert_eq!(membership(bad).v1_pids(), None);
        }
    }
}
