//! Limits that an operator asked for and that no owner keeps yet: a limit that is still being lowered, or one
//! that its owner forgets at the next start. Each container has one small file. It is removed when the owner
//! keeps the number, when the policy's number changes, or when the engine no longer has the container.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mcp_guard_core::{
    container::is_container_id,
    effect::{LimitRequest, PolicyThen},
    limits::requests::{StoredRequest, gone},
};
use serde::{Deserialize, Deserializer, Serialize};

/// The default state directory, which survives a reboot.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mcp-guard";
/// Largest file, in bytes.
const MAX_FILE: u64 = 4096;
/// Numbers the files that this process writes.
static STORED: AtomicU64 = AtomicU64::new(0);

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    limit: u64,
    /// Socket of the container's engine. Empty in a file of an older version.
    #[serde(default)]
    engine: String,
    /// `pids_limit` of the policy at the time of the request: null if the policy had none, no key if no agent
    /// was there to tell.
    #[serde(default, deserialize_with = "with_null", skip_serializing_if = "Option::is_none")]
    policy: Option<Option<u64>>,
}

fn with_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The directory of the requests.
#[derive(Clone, Debug)]
pub struct Requests(PathBuf);

impl Requests {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("limits"))
    }

    /// Returns the request for a container. Returns `None` if there is none or its file is damaged; then the
    /// engine's limit applies.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<LimitRequest> {
        let RequestFile { limit, policy, .. } = self.read(id)?;
        let at = self.asked_at(id)?;
        let policy = policy.map_or(PolicyThen::Unknown, PolicyThen::Said);
        Some(LimitRequest { limit, at, policy })
    }

    /// Returns the time of the request, since 1970.
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
                tracing::warn!(path = %path.display(), %error, "cannot read the request for a limit");
                None
            }
        }
    }

    /// Stores a request. It is on the disk when this returns, because the writes that follow may kill us.
    /// `engine` is the socket of the container's engine.
    ///
    /// # Errors
    /// The id is not a container's, or the directory cannot be written.
    pub fn put(
        &self,
        id: &str,
        limit: u64,
        engine: &str,
        policy: PolicyThen,
    ) -> io::Result<PathBuf> {
        let path = self.path(id).ok_or_else(|| io::Error::other("not the id of a container"))?;
        fs::create_dir_all(&self.0)?;
        // A name of its own, because another repair may store its request at the same moment.
        let number = STORED.fetch_add(1, Ordering::Relaxed);
        let new = self.0.join(format!(".{}-{number}.{id}.new", std::process::id()));
        let policy = match policy {
            PolicyThen::Unknown => None,
            PolicyThen::Said(limit) => Some(limit),
        };
        let content = RequestFile { limit, engine: engine.to_owned(), policy };
        let text = serde_json::to_string(&content)?;
        let stored = write_durably(&new, &text).and_then(|()| fs::rename(&new, &path));
        if stored.is_err() {
            let _ = fs::remove_file(&new);
        }
        stored?;
        File::open(&self.0)?.sync_all()?;
        Ok(path)
    }

    /// Restores a request that another one replaced, with the time at which it was made.
    ///
    /// # Errors
    /// The id is not a container's, or the directory cannot be written.
    pub fn restore(&self, id: &str, request: LimitRequest, engine: &str) -> io::Result<()> {
        let path = self.put(id, request.limit, engine, request.policy)?;
        File::options().write(true).open(path)?.set_modified(UNIX_EPOCH + request.at)
    }

    /// Removes the request for a container, if there is one.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        let Some(path) = self.path(id) else { return Ok(()) };
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the request if it was made at `at`, since 1970. Keeps a later one.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove_as_of(&self, id: &str, at: Duration) -> io::Result<()> {
        if self.asked_at(id) == Some(at) { self.remove(id) } else { Ok(()) }
    }

    /// Removes the requests for containers that `engine` no longer has. `listed` has all its containers,
    /// running or not, listed after `since`.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn forget_gone(
        &self,
        listed: &[String],
        engine: &str,
        since: SystemTime,
    ) -> io::Result<()> {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        for id in gone(self.stored()?, listed, engine, since) {
            tracing::info!(id, "removing the request for a limit: its container is gone");
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
    fn the_policys_limit_is_stored_with_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        for policy in [PolicyThen::Unknown, PolicyThen::Said(None), PolicyThen::Said(Some(90))] {
            requests.put(&id, 40, DOCKER, policy).unwrap();
            assert_eq!(requests.get(&id).map(|request| request.policy), Some(policy));
        }
    }

    #[test]
    fn a_request_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        assert_eq!(limit(&requests, &id), None);
        put(&requests, &id, 40).unwrap();
        let path = put(&requests, &id, 30).unwrap();
        assert_eq!(limit(&Requests::new(folder.path()), &id), Some(30));
        fs::write(path, "{\"limit\":").unwrap();
        assert_eq!(limit(&requests, &id), None, "a damaged file");
        requests.remove(&id).unwrap();
        requests.remove(&id).unwrap();
        let path = put(&requests, &id, 40).unwrap();
        let at = requests.get(&id).unwrap().at;
        requests.remove_as_of(&id, at + Duration::from_nanos(1)).unwrap();
        assert!(path.exists(), "a later request was made in the meantime");
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
    fn a_request_is_restored_with_its_time_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        put(&requests, &id, 40).unwrap();
        let former = requests.get(&id).unwrap();
        put(&requests, &id, 60).unwrap();
        requests.restore(&id, former, DOCKER).unwrap();
        assert_eq!(requests.get(&id), Some(former));
        assert_eq!(fs::read_dir(&requests.0).unwrap().count(), 1);
    }

    #[test]
    fn repairs_at_the_same_time_do_not_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let requests = Requests::new(folder.path());
        let id = "a".repeat(64);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (requests, id) = (&requests, &id);
                scope.spawn(move || {
                    for _ in 0..50 {
                        put(requests, id, 40 + number).unwrap();
                    }
                });
            }
        });
        assert!(limit(&requests, &id).is_some());
    }

    #[test]
    fn only_requests_for_containers_that_their_engine_has_lost_are_removed() {
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
        assert_eq!(kept(), [true; 3], "the request may be newer than the list");
        requests.forget_gone(listed, DOCKER, later).unwrap();
        assert_eq!(kept(), [true, false, true]);
    }
}
