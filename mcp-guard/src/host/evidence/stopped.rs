//! Whether processes cannot run: they are frozen, or stopped by a signal or a debugger.
//!
//! A process of version 2 that is frozen looks asleep in `/proc`, so its cgroup is asked. The kernel shows there a
//! freeze of any cgroup above, too.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::super::{
    cgroupfs::Events,
    layout::Layout,
    proc::{membership::Membership, stat::Stat},
    process::OpenProcess,
};

/// Where the kernel shows which cgroups are frozen.
#[derive(Clone, Debug, Default)]
pub struct Freezers {
    unified: Option<PathBuf>,
    v1: Option<PathBuf>,
}

impl Freezers {
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        Self { unified: layout.unified.clone(), v1: layout.v1_freezer.clone() }
    }

    /// Whether a cgroup of this process is frozen. One that cannot be read is gone, and the process with it.
    fn freezes(&self, membership: &Membership) -> bool {
        let read = |mount: &Option<PathBuf>, path: Option<&[u8]>, file: &str| {
            let path = Path::new(OsStr::from_bytes(path?)).strip_prefix("/").ok()?;
            fs::read_to_string(mount.as_ref()?.join(path).join(file)).ok()
        };
        let events = read(&self.unified, membership.unified(), "cgroup.events");
        let state = || read(&self.v1, membership.v1_freezer(), "freezer.state");
        events.is_some_and(|text| Events::parse(&text).frozen)
            || state().is_some_and(|text| text.trim() == "FROZEN")
    }
}

/// How many of several processes cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standstill {
    None,
    /// A server can stop a process of its own.
    Some,
    All,
}

pub(super) fn of<'a>(
    processes: impl Iterator<Item = (&'a OpenProcess, &'a Stat)>,
    freezers: &Freezers,
) -> Standstill {
    // Nearly always, all of them are in the same cgroup.
    let mut last: Option<(Vec<u8>, bool)> = None;
    let (mut stopped, mut all) = (0_usize, 0_usize);
    for (process, stat) in processes {
        all += 1;
        if stat.stopped {
            stopped += 1;
            continue;
        }
        let Ok(membership) = process.membership() else { continue };
        let is_frozen = match &last {
            Some((text, is_frozen)) if text == membership.text() => *is_frozen,
            Some(_) | None => freezers.freezes(&membership),
        };
        last = Some((membership.text().to_owned(), is_frozen));
        stopped += usize::from(is_frozen);
    }
    match stopped {
        0 => Standstill::None,
        _ if stopped == all => Standstill::All,
        _ => Standstill::Some,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_of_either_version_is_seen() {
        let [unified, v1] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (mount, file) in [(&unified, "cgroup.events"), (&v1, "freezer.state")] {
            fs::create_dir(mount.path().join("a")).unwrap();
            let text = if file == "freezer.state" { "THAWED\n" } else { "populated 1\nfrozen 0\n" };
            fs::write(mount.path().join("a").join(file), text).unwrap();
        }
        let both = [&unified, &v1].map(|mount| Some(mount.path().to_owned()));
        let [unified_mount, v1_mount] = both.clone();
        let freezers = Freezers { unified: unified_mount, v1: v1_mount };
        let freezes = |text: &str| freezers.freezes(&Membership::new(text.as_bytes().to_vec()));
        let both = "3:freezer:/a\n0::/a\n";
        assert!(!freezes(both));
        fs::write(v1.path().join("a/freezer.state"), "FROZEN\n").unwrap();
        assert!(freezes(both) && !freezes("0::/a\n") && !freezes("3:freezer:/b\n0::/a\n"));
        fs::write(v1.path().join("a/freezer.state"), "THAWED\n").unwrap();
        fs::write(unified.path().join("a/cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(freezes(both) && freezes("0::/a\n"));
        assert!(!Freezers::default().freezes(&Membership::new(both.as_bytes().to_vec())));
    }
}
