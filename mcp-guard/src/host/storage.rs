//! Finds out whether files lie on a file system that needs a server to answer. It may stop to answer, and
//! it may even be in a cgroup that we freeze.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{StatFs, statfs};

use super::patience::{NoAnswer, within};

/// How long a file system may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// File systems with a server, by the number that statfs(2) returns (linux/magic.h, and for those that
/// are not there the file system's own sources).
const SERVED: [(u32, &str); 15] = [
    (0x6573_5546, "FUSE"),
    (0x0000_6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0000_517b, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
];

/// Where files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storage {
    Local,
    Served(&'static str),
    /// It did not say what it is.
    Silent,
}

/// Returns one warning about all of these files and folders, each with what it is called, that do not lie
/// on a local file system. They need not exist yet.
#[must_use]
pub fn warning(places: &[(&str, &Path)]) -> Option<String> {
    let bad: Vec<String> = places.iter().filter_map(|(name, path)| trouble(name, path)).collect();
    (!bad.is_empty()).then(|| {
        format!(
            "{}: a server that stops, or that is in a frozen container, makes mcp-guard wait for it; \
             use a local disk",
            bad.join(", and ")
        )
    })
}

fn trouble(name: &str, path: &Path) -> Option<String> {
    let shown = path.display();
    match storage_of(path) {
        Storage::Local => None,
        Storage::Served(kind) => Some(format!("the {name} {shown} is on a {kind} file system")),
        Storage::Silent => Some(format!(
            "the file system of the {name} {shown} does not answer within {PATIENCE:?}"
        )),
    }
}

fn storage_of(path: &Path) -> Storage {
    let path = path.to_owned();
    match within(PATIENCE, move || kind_of(&path)) {
        Ok(Ok(kind)) => served(kind).map_or(Storage::Local, Storage::Served),
        Err(NoAnswer::Late(_)) => Storage::Silent,
        // Nothing is known of it. The program that opens the file reports the reason.
        Ok(Err(_)) | Err(NoAnswer::NoThread(_)) => Storage::Local,
    }
}

/// Returns the number of the file system of a path, or of the nearest folder above it that exists.
fn kind_of(path: &Path) -> io::Result<u32> {
    let path = std::path::absolute(path)?;
    let mut above = path.ancestors().map(PathBuf::from);
    loop {
        let Some(path) = above.next() else { return Err(io::ErrorKind::NotFound.into()) };
        match statfs(&path) {
            Ok(found) => return Ok(number(&found)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the number of a file system. The kernel's numbers have 32 bits, whatever the width and sign of
/// the field.
#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "see above")]
pub fn number(found: &StatFs) -> u32 {
    found.f_type as u32
}

fn served(kind: u32) -> Option<&'static str> {
    SERVED.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_with_a_server_are_known_by_their_number() {
        for (kind, name) in [(0x6573_5546, Some("FUSE")), (0x6969, Some("NFS"))] {
            assert_eq!(served(kind), name);
        }
        // ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(served(local), None, "{local:x}");
        }
    }

    #[test]
    fn a_path_that_does_not_exist_lies_where_its_folder_lies() {
        let proc = kind_of(Path::new("/proc/none/below")).unwrap();
        assert_eq!((proc, kind_of(Path::new("/proc")).unwrap()), (0x9fa0, 0x9fa0));
        assert_eq!(warning(&[("audit log", Path::new("/proc/none/below"))]), None);
    }
}
