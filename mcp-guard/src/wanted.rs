//! Limits that an operator asked for and that no owner keeps yet: a ratchet on its way, or a limit
//! whose owner forgets it with the next start. One small file for each container, which goes when its
//! owner keeps that number, or when its engine has no such container any more.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use mcp_guard_core::container::is_container_id;
use serde::{Deserialize, Serialize};

/// Where they are unless the operator says otherwise; a reboot leaves them.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mcp-guard";
/// Bytes of one file.
const MAX_FILE: u64 = 4096;

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    limit: u64,
    /// Of the engine that has the container; none in a file of an older version.
    #[serde(default)]
    engine: String,
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
        self.read(id).map(|wanted| wanted.limit)
    }

    /// When it was asked for; another time is another request, also for the same limit.
    #[must_use]
    pub fn asked_at(&self, id: &str) -> Option<SystemTime> {
        fs::metadata(self.path(id)?).and_then(|meta| meta.modified()).ok()
    }

    fn read(&self, id: &str) -> Option<Wanted> {
        let path = self.path(id)?;
        let known =
            fs::metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() <= MAX_FILE);
        let text = known.and_then(|_| fs::read(&path).ok())?;
        match serde_json::from_slice::<Wanted>(&text) {
            Ok(wanted) => Some(wanted),
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
    pub fn put(&self, id: &str, limit: u64, engine: &str) -> io::Result<PathBuf> {
        let path = self.path(id).ok_or_else(|| io::Error::other("no id of a container"))?;
        fs::create_dir_all(&self.0)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        let wanted = Wanted { limit, engine: engine.to_owned() };
        file.write_all(serde_json::to_string(&wanted)?.as_bytes())?;
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

    /// Removes what was asked for of containers that `engine` does not have any more. `listed`: all that
    /// it has, running or not, as it said after `since`.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn forget_gone(
        &self,
        listed: &[String],
        engine: &str,
        since: SystemTime,
    ) -> io::Result<()> {
        // No proof: nothing may be all that an engine says which is just starting.
        if listed.is_empty() {
            return Ok(());
        }
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(id) = name.to_str().filter(|name| is_container_id(name)) else { continue };
            let of_engine = self.read(id).is_some_and(|wanted| wanted.engine == engine);
            let is_older = self.asked_at(id).is_some_and(|at| at < since);
            if of_engine && is_older && !listed.iter().any(|one| one == id) {
                tracing::info!(id, "a wanted limit is forgotten: its container is gone");
                self.remove(id)?;
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        is_container_id(id).then(|| self.0.join(id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DOCKER: &str = "/var/run/docker.sock";

    #[test]
    fn what_is_put_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::new(folder.path());
        let id = "a".repeat(64);
        assert_eq!(limits.get(&id), None);
        limits.put(&id, 40, DOCKER).unwrap();
        let path = limits.put(&id, 30, DOCKER).unwrap();
        assert_eq!(Limits::new(folder.path()).get(&id), Some(30));
        fs::write(path, "{\"limit\":").unwrap();
        assert_eq!(limits.get(&id), None, "damaged");
        limits.remove(&id).unwrap();
        limits.remove(&id).unwrap();
        assert!(limits.put("../../etc/passwd", 1, DOCKER).is_err());
    }

    #[test]
    fn a_file_of_an_older_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::new(folder.path());
        let id = "a".repeat(64);
        fs::write(limits.put(&id, 40, DOCKER).unwrap(), "{\"limit\":30}").unwrap();
        assert_eq!(limits.get(&id), Some(30));
    }

    #[test]
    fn only_what_the_same_engine_surely_has_no_more_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::new(folder.path());
        limits.forget_gone(&["f".repeat(64)], DOCKER, SystemTime::now()).unwrap();
        let [here, gone, other] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        for (id, engine) in [(&here, DOCKER), (&gone, DOCKER), (&other, "/run/podman.sock")] {
            limits.put(id, 40, engine).unwrap();
        }
        let kept = || [&here, &gone, &other].map(|id| limits.get(id).is_some());
        let later = limits.asked_at(&gone).unwrap() + Duration::from_secs(1);
        limits.forget_gone(&[], DOCKER, later).unwrap();
        assert_eq!(kept(), [true; 3], "an empty list is no proof");
        let listed = std::slice::from_ref(&here);
        limits.forget_gone(listed, DOCKER, limits.asked_at(&gone).unwrap()).unwrap();
        assert_eq!(kept(), [true; 3], "it may be newer than the list");
        limits.forget_gone(listed, DOCKER, later).unwrap();
        assert_eq!(kept(), [true, false, true]);
    }
}
