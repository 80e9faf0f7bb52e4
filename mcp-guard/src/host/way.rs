//! The way on which the kernel comes to a file, one name after the other.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Most links that are followed, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Follows an absolute path as the kernel does, also through links. `visit` is asked before each name is
/// looked for, with the folder, whose path has no links, and with the path of the name in it.
///
/// # Errors
/// If there is no such file, or if `visit` fails.
pub fn follow(
    path: &Path,
    mut visit: impl FnMut(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut way: VecDeque<OsString> = names(path).collect();
    let (mut folder, mut links) = (PathBuf::from("/"), 0);
    while let Some(name) = way.pop_front() {
        if name == ".." {
            folder.pop();
            continue;
        }
        let entry = folder.join(name);
        visit(&folder, &entry)?;
        if !fs::symlink_metadata(&entry)?.is_symlink() {
            folder = entry;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = fs::read_link(&entry)?;
        if target.is_absolute() {
            folder = PathBuf::from("/");
        }
        for name in names(&target).rev() {
            way.push_front(name);
        }
    }
    Ok(())
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_where_they_lead() {
        let top = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(top.path()).unwrap();
        for folder in ["a", "b/c"] {
            fs::create_dir_all(top.join(folder)).unwrap();
        }
        fs::write(top.join("b/c/file"), "").unwrap();
        symlink("../b/./c", top.join("a/relative")).unwrap();
        symlink(top.join("a"), top.join("absolute")).unwrap();
        let mut seen = Vec::new();
        follow(&top.join("absolute/relative/../c/file"), |folder, entry| {
            assert_eq!(entry.parent(), Some(folder));
            seen.extend(entry.strip_prefix(&top).ok().map(Path::to_owned));
            Ok(())
        })
        .unwrap();
        let expected = ["", "absolute", "a", "a/relative", "b", "b/c", "b/c", "b/c/file"];
        let from_the_root = expected.iter().filter(|path| !path.is_empty()).map(PathBuf::from);
        seen.retain(|path| !path.as_os_str().is_empty());
        assert_eq!(seen, from_the_root.collect::<Vec<_>>());
    }

    #[test]
    fn a_way_ends_at_a_loop_at_nothing_and_where_it_is_told_to() {
        let top = tempfile::tempdir().unwrap();
        symlink("loop", top.path().join("loop")).unwrap();
        let error = |name: &str| {
            let found = follow(&top.path().join(name), |_, entry| match entry.ends_with("told") {
                true => Err(io::ErrorKind::Other.into()),
                false => Ok(()),
            });
            found.unwrap_err()
        };
        assert_eq!(error("loop").raw_os_error(), Some(libc::ELOOP));
        assert_eq!(error("nothing").kind(), io::ErrorKind::NotFound);
        assert_eq!(error("told/nothing").kind(), io::ErrorKind::Other);
    }
}
