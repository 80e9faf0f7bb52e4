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
/// The name of the key's file until it takes the place of another.
const NEW: &str = "mark.key.new";
/// Exists from the making of the first key until the marks of older versions, which have no code, are
/// signed. The process that makes the key may be another than the one that signs them.
const UNSIGNED: &str = "unsigned-are-ours";
const LENGTH: usize = 32;

/// The length of a code, in bytes.
pub const CODE: usize = 32;

/// Why there is no key although there is a file for it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is no secret of ours, so it proves nothing.
    #[error("{0}")]
    Unfit(&'static str),
    /// It may be the key, and be readable later.
    #[error("the key for marks cannot be read: {0}")]
    Unread(#[from] io::Error),
}

impl From<Errno> for KeyError {
    fn from(error: Errno) -> Self {
        Self::Unread(error.into())
    }
}

impl From<KeyError> for io::Error {
    fn from(error: KeyError) -> Self {
        Self::other(error)
    }
}

pub struct Key {
    bytes: [u8; LENGTH],
    hash: Hmac<Sha256>,
}

impl Key {
    /// Reads the key. `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or another user may know or have written what is in it.
    pub fn existing(folder: &Path) -> Result<Option<Self>, KeyError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(folder.join(NAME), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(KeyError::Unfit("the key is a link")),
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_file() || !is_ours || found.mode() & 0o077 != 0 {
            return Err(KeyError::Unfit("another user may know the key"));
        }
        let mut bytes = Vec::new();
        file.take(LENGTH as u64 + 1).read_to_end(&mut bytes)?;
        let bytes = bytes.try_into().map_err(|_| KeyError::Unfit("the key has another length"))?;
        Ok(Some(Self::of(bytes)?))
    }

    fn of(bytes: [u8; LENGTH]) -> io::Result<Self> {
        let hash = Hmac::new_from_slice(&bytes).map_err(io::Error::other)?;
        Ok(Self { bytes, hash })
    }

    /// Reads the key, or makes one. A file that is no key is replaced.
    ///
    /// # Errors
    /// The key cannot be made, or there may be one that cannot be read now.
    pub fn prepare(folder: &Path) -> io::Result<Self> {
        match Self::existing(folder) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                File::create(folder.join(UNSIGNED))?;
            }
            Err(KeyError::Unfit(why)) => {
                let path = folder.join(NAME);
                tracing::warn!(path = %path.display(), why, "the key for marks is replaced");
                fs::remove_file(path)?;
            }
            Err(error @ KeyError::Unread(_)) => return Err(error.into()),
        }
        let mut bytes = [0; LENGTH];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let made = Self::of(bytes)?;
        if made.publish(folder)? {
            return Ok(made);
        }
        Self::existing(folder)?.ok_or_else(|| io::Error::other("the key has vanished"))
    }

    /// Writes the key's file. Returns false if there is one already.
    fn publish(&self, folder: &Path) -> io::Result<bool> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        self.write(folder, NAME)
    }

    /// Writes a file that has its name once it is complete. Returns false if another one has that name.
    fn write(&self, folder: &Path, name: &str) -> io::Result<bool> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(open(folder, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(&self.bytes)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, unnamed, CWD, folder.join(name), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the key's file again if it does not have this key, or if another user may read or write it.
    /// Returns whether it was written.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn keep(&self, folder: &Path) -> io::Result<bool> {
        match Self::existing(folder) {
            Ok(Some(found)) if found.bytes == self.bytes => Ok(false),
            Ok(None) => self.publish(folder),
            Ok(Some(_)) | Err(KeyError::Unfit(_)) => self.replace(folder).map(|()| true),
            Err(error @ KeyError::Unread(_)) => Err(error.into()),
        }
    }

    /// Puts the key's file in the place of what is there. At any time there is one or the other.
    fn replace(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(NEW);
        remove(&new)?;
        if !self.write(folder, NEW)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(new, folder.join(NAME))
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

/// Whether marks without a code are of an older version, because there was no key before.
pub fn unsigned_are_ours(folder: &Path) -> bool {
    folder.join(UNSIGNED).exists()
}

/// Notes that all marks of older versions are signed.
///
/// # Errors
/// It cannot be noted.
pub fn unsigned_are_signed(folder: &Path) -> io::Result<()> {
    remove(&folder.join(UNSIGNED))
}

/// Removes a file if there is one.
fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    const TEXT: &[&[u8]] = &[b"a", b"b"];

    #[test]
    fn a_key_is_made_once_and_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        assert!(Key::existing(&folder).unwrap().is_none());
        let first = Key::prepare(&folder).unwrap();
        let second = Key::prepare(&folder).unwrap();
        assert!(second.is_code_of(&first.code(TEXT), TEXT), "it is the same");
        assert!(!second.is_code_of(&first.code(&[b"a"]), TEXT));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn marks_of_older_versions_are_ours_until_they_are_signed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!unsigned_are_ours(folder.path()));
        Key::prepare(folder.path()).unwrap();
        Key::prepare(folder.path()).unwrap();
        assert!(unsigned_are_ours(folder.path()), "another process signs them");
        unsigned_are_signed(folder.path()).unwrap();
        unsigned_are_signed(folder.path()).unwrap();
        Key::prepare(folder.path()).unwrap();
        assert!(!unsigned_are_ours(folder.path()));
    }

    /// Each makes the file one that is no secret of ours.
    const SPOIL: [fn(&Path); 3] = [
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
        |path| fs::write(path, "short").unwrap(),
        |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            symlink(path.with_extension("old"), path).unwrap();
        },
    ];

    #[test]
    fn a_key_that_another_user_may_know_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for spoil in SPOIL {
            let before = Key::prepare(folder.path()).unwrap();
            unsigned_are_signed(folder.path()).unwrap();
            spoil(&folder.path().join(NAME));
            assert!(matches!(Key::existing(folder.path()), Err(KeyError::Unfit(_))));
            let after = Key::prepare(folder.path()).unwrap();
            assert!(!after.is_code_of(&before.code(TEXT), TEXT));
            assert!(!unsigned_are_ours(folder.path()), "there was a key before");
        }
    }

    #[test]
    fn a_key_that_cannot_be_read_now_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let not_a_folder = folder.path().join("file");
        fs::write(&not_a_folder, "").unwrap();
        assert!(matches!(Key::existing(&not_a_folder), Err(KeyError::Unread(_))));
        assert!(Key::prepare(&not_a_folder).is_err());
        assert_eq!(fs::read(&not_a_folder).unwrap(), b"", "it is as it was");
    }

    #[test]
    fn a_key_that_was_removed_or_changed_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let key = Key::prepare(&run).unwrap();
        let another: fn(&Path) = |path| fs::write(path, [7; LENGTH]).unwrap();
        let users: fn(&Path) = |path| chown(path, Some(1000), None).unwrap();
        let gone: fn(&Path) = |path| fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let half_replaced: fn(&Path) = |path| {
            fs::write(path.with_file_name(NEW), "").unwrap();
            fs::write(path, "").unwrap();
        };
        let spoil = SPOIL.into_iter().chain([another, gone, half_replaced]);
        let may_chown = rustix::process::geteuid().is_root();
        for spoil in spoil.chain(may_chown.then_some(users)) {
            assert!(!key.keep(&run).unwrap());
            spoil(&run.join(NAME));
            assert!(key.keep(&run).unwrap());
            let read = Key::existing(&run).unwrap().unwrap();
            assert!(read.is_code_of(&key.code(TEXT), TEXT));
            assert!(!run.join(NEW).exists());
        }
    }
}
