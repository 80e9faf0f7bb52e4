//! The key that proves a mark to be ours.
//!
//! A privileged container can write extended attributes too, so a mark alone proves nothing. The key
//! is in a file that only root on the host can read. It is of this boot, as are all cgroups.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::Path,
};

use hmac::{Hmac, Mac as _};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat, open},
    io::Errno,
};
use sha2::Sha256;

/// Where the key is, whatever `--run-dir` says: every process of ours must find it.
pub const FOLDER: &str = "/run/mcp-guard";
const NAME: &str = "mark.key";
const LENGTH: usize = 32;

/// The length of a code, in bytes.
pub const CODE: usize = 32;

pub struct Key {
    hash: Hmac<Sha256>,
    /// Whether this process has made it. There was none before, and marks had no code.
    pub is_new: bool,
}

impl Key {
    /// Reads the key. `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or another user may know or have written what is in it.
    pub fn existing(folder: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(folder.join(NAME), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_file() || !is_ours || found.mode() & 0o077 != 0 {
            return Err(io::Error::other("another user may know the key"));
        }
        let mut bytes = Vec::new();
        file.take(LENGTH as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() != LENGTH {
            return Err(io::Error::other("the key has another length"));
        }
        Ok(Some(Self::of(&bytes, false)?))
    }

    fn of(bytes: &[u8], is_new: bool) -> io::Result<Self> {
        let hash = Hmac::new_from_slice(bytes).map_err(io::Error::other)?;
        Ok(Self { hash, is_new })
    }

    /// Reads the key, or makes one. A file that is no key is replaced.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn prepare(folder: &Path) -> io::Result<Self> {
        match Self::existing(folder) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {}
            Err(error) => {
                let path = folder.join(NAME);
                tracing::warn!(path = %path.display(), %error, "the key for marks is replaced");
                fs::remove_file(path)?;
            }
        }
        Self::make(folder)
    }

    fn make(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut bytes = [0; LENGTH];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        // It gets its name when it is complete, and only if no other process was faster.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(open(folder, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(&bytes)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, unnamed, CWD, folder.join(NAME), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Self::of(&bytes, true),
            Err(Errno::EXIST) => {
                Self::existing(folder)?.ok_or_else(|| io::Error::other("the key has vanished"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the code of a text.
    pub fn code(&self, text: &[&[u8]]) -> [u8; CODE] {
        self.hash(text).finalize().into_bytes().into()
    }

    pub fn is_code_of(&self, code: &[u8], text: &[&[u8]]) -> bool {
        self.hash(text).verify_slice(code).is_ok()
    }

    fn hash(&self, text: &[&[u8]]) -> Hmac<Sha256> {
        let mut hash = self.hash.clone();
        for part in text {
            hash.update(part);
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const TEXT: &[&[u8]] = &[b"a", b"b"];

    #[test]
    fn a_key_is_made_once_and_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        assert!(Key::existing(&folder).unwrap().is_none());
        let first = Key::prepare(&folder).unwrap();
        let second = Key::prepare(&folder).unwrap();
        assert!(first.is_new && !second.is_new);
        assert!(second.is_code_of(&first.code(TEXT), TEXT), "it is the same");
        assert!(!second.is_code_of(&first.code(&[b"a"]), TEXT));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_key_that_another_user_may_know_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        };
        let shorten = |path: &Path| fs::write(path, "short").unwrap();
        let link = |path: &Path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            symlink(path.with_extension("old"), path).unwrap();
        };
        for spoil in [open as fn(&Path), shorten, link] {
            let before = Key::prepare(folder.path()).unwrap();
            spoil(&path);
            assert!(Key::existing(folder.path()).is_err());
            let after = Key::prepare(folder.path()).unwrap();
            assert!(after.is_new && !after.is_code_of(&before.code(TEXT), TEXT));
        }
    }
}
