//! Limits that an operator asked for and that no owner keeps yet: a ratchet on its way, or a limit
//! whose owner forgets it with the next start. One small file for each container.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use mcp_guard_core::container::is_container_id;
use serde::{Deserialize, Serialize};

/// Where they are unless the operator says otherwise; a reboot leaves them.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mcp-guard";
/// Bytes of one file.
const MAX_FILE: u64 = 4096;

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    limit: u64,
}

/// The folder of them.
#[derive(Clone, Debug)]
pub struct Limits(PathBuf);

impl Limits {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("limits"))
    }

    /// The limit that is wanted of a container; None where none is, or where the file is damaged: then
    /// what its engine says counts.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<u64> {
        let path = self.path(id)?;
        let known =
            fs::metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() <= MAX_FILE);
        let text = known.and_then(|_| fs::read(&path).ok())?;
        match serde_json::from_slice::<Wanted>(&text) {
            Ok(wanted) => Some(wanted.limit),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a wanted limit cannot be read");
                None
            }
        }
    }

    /// On the disk before this returns: what follows may kill us.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn put(&self, id: &str, limit: u64) -> io::Result<PathBuf> {
        let path = self.path(id).ok_or_else(|| io::Error::other("no id of a container"))?;
        fs::create_dir_all(&self.0)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(serde_json::to_string(&Wanted { limit })?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.0)?.sync_all()?;
        Ok(path)
    }

    /// # Errors
    /// The folder cannot be written.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        let Some(path) = self.path(id) else { return Ok(()) };
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        is_container_id(id).then(|| self.0.join(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::new(folder.path());
        let id = "a".repeat(64);
        assert_eq!(limits.get(&id), None);
        limits.put(&id, 40).unwrap();
        let path = limits.put(&id, 30).unwrap();
        assert_eq!(Limits::new(folder.path()).get(&id), Some(30));
        fs::write(path, "{\"limit\":").unwrap();
        assert_eq!(limits.get(&id), None, "damaged");
        limits.remove(&id).unwrap();
        limits.remove(&id).unwrap();
        assert!(limits.put("../../etc/passwd", 1).is_err());
    }
}
