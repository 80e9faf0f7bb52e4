//! Knows where a look at a path makes an automounter mount something.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::proc::mount::Mount;

/// The mounts of this process.
pub struct Automounts(Vec<MountPoint>);

struct MountPoint {
    path: PathBuf,
    is_automounters: bool,
}

impl Automounts {
    /// # Errors
    /// If the mounts cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/mountinfo")?))
    }

    fn parse(mounts: &[u8]) -> Self {
        let points = mounts.split(|byte| *byte == b'\n').filter_map(Mount::parse);
        let points = points.map(|mount| MountPoint {
            is_automounters: mount.kind == b"autofs",
            path: mount.point,
        });
        Self(points.collect())
    }

    /// Whether looking for `entry` in `folder` may mount something there. Neither path has links.
    #[must_use]
    pub fn would_mount(&self, folder: &Path, entry: &Path) -> bool {
        let is_mounted = self.0.iter().any(|point| point.path == entry && !point.is_automounters);
        // If there are several mounts at one place, the last one is seen.
        let around = self.0.iter().filter(|point| folder.starts_with(&point.path));
        let around = around.max_by_key(|point| point.path.components().count());
        !is_mounted && around.is_some_and(|point| point.is_automounters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_mounted_yet_would_be() {
        let mounts = Automounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
              2 1 0:2 / /net rw - autofs auto.net rw,indirect\n\
              3 2 0:3 / /net/up rw - nfs4 up:/ rw\n\
              4 1 0:4 / /direct rw - autofs auto.direct rw,direct\n\
              5 1 0:5 / /seen rw - autofs auto.direct rw,direct\n\
              6 5 0:6 / /seen rw - nfs4 seen:/ rw\n",
        );
        let would = |entry: &str| {
            let entry = Path::new(entry);
            mounts.would_mount(entry.parent().unwrap(), entry)
        };
        for entry in ["/net/evil", "/direct/x.yml", "/net/evil/below"] {
            assert!(would(entry), "{entry}");
        }
        for entry in ["/net", "/net/up", "/net/up/x.yml", "/direct", "/seen/x.yml", "/home/x.yml"] {
            assert!(!would(entry), "{entry}");
        }
    }
}
