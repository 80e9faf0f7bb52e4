//! The place of a cgroup in a walk. A walk that kept each level open would need as many descriptors as a
//! container likes.

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
};

use mcp_guard_core::escape::cgroup_name;

use super::Dir;

/// Fewest bytes of a path that no program can open.
const PATH_MAX: usize = libc::PATH_MAX.cast_unsigned() as usize;

/// A cgroup below the first one of a walk, by the names on the way to it.
pub(super) struct PlaceBelow {
    /// `None`: the first one.
    above: Option<Arc<Self>>,
    name: CString,
    /// Bytes of its path below the first one.
    length: usize,
}

impl PlaceBelow {
    /// `None` if it is nested too deep: its path is longer than any program can open.
    pub fn below(above: Option<&Arc<Self>>, name: &CStr) -> Option<Arc<Self>> {
        let before = above.map_or(0, |above| above.length + 1);
        let length = before + name.to_bytes().len();
        let place = || Self { above: above.cloned(), name: name.to_owned(), length };
        (length < PATH_MAX).then(|| Arc::new(place()))
    }

    /// Opens it. `first`: the first one.
    pub fn open(&self, first: &Dir) -> io::Result<Dir> {
        first.below(Path::new(OsStr::from_bytes(&self.names().join(&b'/'))))
    }

    /// Returns its path as it is shown. `push` appends a name to the path of the cgroup above.
    pub fn shown(&self, first: &str, push: impl Fn(&mut String, &[u8])) -> String {
        let mut path = first.trim_end_matches('/').to_owned();
        self.names().into_iter().for_each(|name| push(&mut path, name));
        path
    }

    fn names(&self) -> Vec<&[u8]> {
        let way = std::iter::successors(Some(self), |place| place.above.as_deref());
        let mut names: Vec<&[u8]> = way.map(|place| place.name.to_bytes()).collect();
        names.reverse();
        names
    }
}

/// Appends the name of a cgroup to a path that is not cut, however long it is.
pub(super) fn push_name(path: &mut String, name: &[u8]) {
    path.push('/');
    path.push_str(&cgroup_name(name));
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use mcp_guard_core::escape::push_cgroup;

    use super::*;

    /// Counts the descriptors of this process for a folder and what is below it.
    pub fn held_open(folder: &Path) -> usize {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(folder))).count()
    }

    #[test]
    fn a_place_is_as_deep_as_a_program_can_open() {
        let mut place = None;
        for _ in 0..2048 {
            place = Some(PlaceBelow::below(place.as_ref(), c"x").unwrap());
        }
        let deepest = place.unwrap();
        assert_eq!(deepest.names().join(&b'/').len(), PATH_MAX - 1);
        assert!(PlaceBelow::below(Some(&deepest), c"x").is_none());
        assert!(PlaceBelow::below(deepest.above.as_ref(), c"xx").is_none());
        let child = PlaceBelow::below(PlaceBelow::below(None, c"a").as_ref(), c"b").unwrap();
        assert_eq!(child.shown("/", push_cgroup), "/a/b");
    }
}
