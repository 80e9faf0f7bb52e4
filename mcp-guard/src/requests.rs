//! Limits that an operator asked for and that no owner keeps yet: a ratchet on its way, or a limit
//! whose owner forgets it with the next start. One small file for each container, which goes when its
//! owner keeps that number, when the policy's number changes, or when its engine has no such container any
//! more.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mcp_guard_core::{
    container::is_container_id,
    effect::{LimitRequest, PolicyThen},
    limits::requests::{StoredRequest, gone},
};
use serde::{Deserialize, Deserializer, Serialize};

/// Where they are unless the operator says otherwise; a reboot leaves them.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mcp-guard";
/// Bytes of one file.
const MAX_FILE: u64 = 4096;

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    limit: u64,
    /// Where the engine listens that has the container; none in a file of an older version.
    #[serde(default)]
    engine: String,
    /// `pids_limit` of the policy when it was asked for: null where the policy named none, no key where
    /// no agent was there to tell.
    #[serde(default, deserialize_with = "with_null", skip_serializing_if = "Option::is_none")]
    policy: Option<Option<u64>>,
}

fn with_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The folder of them.
#[derive(Clone, Debug)]
pub struct Requests(PathBuf);

impl Requests {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("limits"))
    }

    /// What is asked for a container; None where nothing is, or where the file is damaged: then what its
    /// engine says counts.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<LimitRequest> {
        let RequestFile { limit, policy, .. } = self.read(id)?;
        let at = self.asked_at(id)?;
        let policy = policy.map_or(PolicyThen::Unknown, PolicyThen::Said);
        Some(LimitRequest { limit, at, policy })
    }

    /// When it was asked for, since 1970.
    fn asked_at(&self, id: &str) -> Option<Duration> {
        let modified = fs::metadata(self.path(id)?).and_then(|meta| meta.modified()).ok()?;
        modified.duration_since(UNIX_EPOCH).ok()
    }

    fn read(&self, id: &str) -> Option<RequestFile> {
        let path = self.path(id)?;
        let known =
            fs::metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() <= MAX_FILE);
        let text = known.and_then(|_| fs::read(&path).ok())?;
        match serde_json::from_slice::<RequestFile>(&text) {
            Ok(content) => Some(content),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a requested limit cannot be read");
                None
            }
        }
    }

    /// On the disk before this returns: what follows may kill us. `engine`: where the one listens that has
    /// the container.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn put(
        &self,
        id: &str,
        limit: u64,
        engine: &str,
        policy: PolicyThen,
    ) -> io::Result<PathBuf> {
        let path = self.path(id).ok_or_else(|| io::Error::other("no id of a container"))?;
        fs::create_dir_all(&self.0)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        let policy = match policy {
            PolicyThen::Unknown => None,
            PolicyThen::Said(limit) => Some(limit),
        };
        let content = RequestFile { limit, engine: engine.to_owned(), policy };
        file.write_all(serde_json::to_string(&content)?.as_bytes())?;
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

    /// Removes the request that was made at `at`, since 1970, and no later one.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove_as_of(&self, id: &str, at: Duration) -> io::Result<()> {
        if self.asked_at(id) == Some(at) { self.remove(id) } else { Ok(()) }
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
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        for id in gone(self.stored()?, listed, engine, since) {
            tracing::info!(id, "the request for a limit is forgotten: its container is gone");
            self.remove(&id)?;
        }
        Ok(())
    }

    fn stored(&self) -> io::Result<Vec<StoredRequest>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut stored = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(id) = name.to_str().filter(|name| is_container_id(name)) else { continue };
            let engine = self.read(id).map_or_else(String::new, |content| content.engine);
            stored.push(StoredRequest { id: id.to_owned(), engine, at: self.asked_at(id) });
        }
        Ok(stored)
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        is_container_id(id).then(|| self.0.join(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "/var/run/docker.sock";

    fn put(requests: &Requests, id: &str, limit: u64) -> io::Result<PathBuf> {
        requests.put(id, limit, DOCKER, PolicyThen::Unknown)
    }

    fn limit(requests: &Requests, id: &str) -> Option<u64> {
        requests.get(id).map(|request| request.limit)
    }

    #[test]
    fn what_the_policy_said_is_kept_with_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        for policy in [PolicyThen::Unknown, PolicyThen::Said(None), PolicyThen::Said(Some(90))] {
            requests.put(&id, 40, DOCKER, policy).unwrap();
            assert_eq!(requests.get(&id).map(|request| request.policy), Some(policy));
        }
    }

    #[test]
    fn what_is_put_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        assert_eq!(limit(&requests, &id), None);
        put(&requests, &id, 40).unwrap();
        let path = put(&requests, &id, 30).unwrap();
        assert_eq!(limit(&Requests::new(folder.path()), &id), Some(30));
        fs::write(path, "{\"limit\":").unwrap();
        assert_eq!(limit(&requests, &id), None, "damaged");
        requests.remove(&id).unwrap();
        requests.remove(&id).unwrap();
        let path = put(&requests, &id, 40).unwrap();
        let at = requests.get(&id).unwrap().at;
        requests.remove_as_of(&id, at + Duration::from_nanos(1)).unwrap();
        assert!(path.exists(), "another was made meanwhile");
        requests.remove_as_of(&id, at).unwrap();
        assert!(!path.exists());
        assert!(requests.put("../../etc/passwd", 1, DOCKER, PolicyThen::Unknown).is_err());
    }

    #[test]
    fn a_file_of_an_older_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        fs::write(put(&requests, &id, 40).unwrap(), "{\"limit\":30}").unwrap();
        assert_eq!(limit(&requests, &id), Some(30));
    }

    #[test]
    fn only_what_the_same_engine_surely_has_no_more_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        requests.forget_gone(&["f".repeat(64)], DOCKER, SystemTime::now()).unwrap();
        let [here, gone, other] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        for (id, engine) in [(&here, DOCKER), (&gone, DOCKER), (&other, "/run/podman.sock")] {
            requests.put(id, 40, engine, PolicyThen::Unknown).unwrap();
        }
        let kept = || [&here, &gone, &other].map(|id| requests.get(id).is_some());
        let at = |id: &str| UNIX_EPOCH + requests.get(id).unwrap().at;
        let later = at(&gone) + Duration::from_secs(1);
        requests.forget_gone(&[], DOCKER, later).unwrap();
        assert_eq!(kept(), [true; 3], "an empty list is no proof");
        let listed = std::slice::from_ref(&here);
        requests.forget_gone(listed, DOCKER, at(&gone)).unwrap();
        assert_eq!(kept(), [true; 3], "it may be newer than the list");
        requests.forget_gone(listed, DOCKER, later).unwrap();
        assert_eq!(kept(), [true, false, true]);
    }
}
