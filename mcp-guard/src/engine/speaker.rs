//! Whose word an engine's answer is, and about which cgroups it counts.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _};

use tokio::net::UnixStream;

use crate::host::cgroup::Cgroup;

/// The user whose engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaker(u32);

impl Speaker {
    #[must_use]
    pub fn user(uid: u32) -> Self {
        Self(uid)
    }

    /// Finds out whose engine serves a socket: the user who serves it, or who could put another one
    /// there, because a folder on the way to it or to what it is linked to is his.
    ///
    /// # Errors
    /// If nobody listens.
    pub(super) async fn at(socket: &str) -> io::Result<Self> {
        let served_by = UnixStream::connect(socket).await?.peer_cred()?.uid();
        let mut owners = vec![served_by];
        let socket = std::path::absolute(socket)?;
        for path in [fs::canonicalize(&socket)?, socket] {
            for folder in path.ancestors().skip(1) {
                owners.push(fs::metadata(folder)?.uid());
            }
        }
        Ok(Self(owners.into_iter().find(|uid| *uid != 0).unwrap_or(0)))
    }

    /// Whether its word counts for every cgroup: it is the system's, or that of our own user, who
    /// could do by himself whatever we do.
    #[must_use]
    pub fn is_trusted(self) -> bool {
        self.0 == 0 || self.0 == rustix::process::geteuid().as_raw()
    }

    /// Whether the word of this engine counts for a cgroup: that of another user's engine for what was
    /// delegated to this user.
    #[must_use]
    pub fn may_speak_for(self, cgroup: &Cgroup) -> bool {
        self.is_trusted() || cgroup.is_delegated_to(self.0).unwrap_or(false)
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine of user {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{chown, symlink},
        path::Path,
    };

    use tokio::net::UnixListener;

    use super::*;

    async fn at(socket: &Path) -> io::Result<u32> {
        Speaker::at(socket.to_str().unwrap()).await.map(|speaker| speaker.0)
    }

    #[tokio::test]
    async fn an_engine_is_that_of_its_server_or_of_the_owner_of_a_folder() {
        let me = rustix::process::geteuid().as_raw();
        let (place, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let below = place.path().join("below");
        fs::create_dir(&below).unwrap();
        let real = below.join("docker.sock");
        assert!(at(&real).await.is_err());
        let _listener = UnixListener::bind(&real).unwrap();
        assert_eq!(at(&real).await.unwrap(), me);
        let linked = users.path().join("docker.sock");
        symlink(&real, &linked).unwrap();
        assert_eq!(at(&linked).await.unwrap(), me);
        if me == 0 {
            chown(users.path(), Some(1000), None).unwrap();
            assert_eq!(at(&linked).await.unwrap(), 1000, "this user could link to another");
            chown(users.path(), Some(0), None).unwrap();
            chown(place.path(), Some(1001), None).unwrap();
            assert_eq!(at(&real).await.unwrap(), 1001, "this user could replace the folder");
            assert_eq!(at(&linked).await.unwrap(), 1001, "also behind a link");
        }
    }
}
