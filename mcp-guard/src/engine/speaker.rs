//! Whose word an engine's answer is, and about which cgroups it counts.

use std::{collections::BTreeSet, fmt, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use tokio::net::UnixStream;

use crate::host::{cgroup::Cgroup, way};

/// The user whose engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaker {
    User(u32),
    /// Nobody knows who answers: more than one user could put another engine there.
    Anybody,
}

impl Speaker {
    /// Finds out whose engine serves a socket: the user who serves it, or who could put another one
    /// there, because a folder that is looked into on the way to it is his.
    ///
    /// # Errors
    /// If nobody listens.
    pub(super) async fn at(socket: &str) -> io::Result<Self> {
        let served_by = UnixStream::connect(socket).await?.peer_cred()?.uid();
        let mut users = users_on_the_way(&std::path::absolute(socket)?)?;
        users.insert(Self::User(served_by));
        users.remove(&Self::User(0));
        let mut users = users.into_iter();
        Ok(match (users.next(), users.next()) {
            (None, _) => Self::User(0),
            (Some(one), None) => one,
            (Some(_), Some(_)) => Self::Anybody,
        })
    }

    /// Whether its word counts for every cgroup: it is the system's, or that of our own user, who
    /// could do by himself whatever we do.
    #[must_use]
    pub fn is_trusted(self) -> bool {
        match self {
            Self::User(uid) => uid == 0 || uid == rustix::process::geteuid().as_raw(),
            Self::Anybody => false,
        }
    }

    /// Whether the word of this engine counts for a cgroup: that of another user's engine for what was
    /// delegated to this user.
    #[must_use]
    pub fn may_speak_for(self, cgroup: &Cgroup) -> bool {
        let is_delegated = match self {
            Self::User(uid) => cgroup.is_delegated_to(uid).unwrap_or(false),
            Self::Anybody => false,
        };
        self.is_trusted() || is_delegated
    }
}

/// Returns the users who could lead the way to a socket elsewhere: each folder on it is looked into, also
/// those behind links. Links themselves give no right: to change one, its folder must be written to.
fn users_on_the_way(socket: &Path) -> io::Result<BTreeSet<Speaker>> {
    let mut users = BTreeSet::new();
    way::follow(socket, |folder, entry| {
        users.extend(users_of(&fs::metadata(folder)?, &fs::symlink_metadata(entry)?));
        Ok(())
    })?;
    Ok(users)
}

/// Returns the users who could put something else in the place of `entry`, which is in `folder`.
fn users_of(folder: &fs::Metadata, entry: &fs::Metadata) -> [Speaker; 2] {
    let (owner, group, mode) = (folder.uid(), folder.gid(), folder.mode());
    // A group with the number of its user has no other members.
    let is_groups = mode & 0o020 != 0 && group != 0 && group != owner;
    let others = match (is_groups || mode & 0o002 != 0, mode & 0o1000 != 0) {
        (false, _) => Speaker::User(owner),
        (true, true) => Speaker::User(entry.uid()),
        (true, false) => Speaker::Anybody,
    };
    [Speaker::User(owner), others]
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "the engine of user {uid}"),
            Self::Anybody => write!(f, "an engine whose socket several users can replace"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use tokio::net::UnixListener;

    use super::*;

    async fn at(socket: &Path) -> io::Result<Speaker> {
        Speaker::at(socket.to_str().unwrap()).await
    }

    fn me() -> Speaker {
        Speaker::User(rustix::process::geteuid().as_raw())
    }

    #[tokio::test]
    async fn an_engine_is_that_of_its_server_or_of_the_owner_of_a_folder() {
        let (place, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let below = place.path().join("below");
        fs::create_dir(&below).unwrap();
        let real = below.join("docker.sock");
        assert!(at(&real).await.is_err());
        let _listener = UnixListener::bind(&real).unwrap();
        assert_eq!(at(&real).await.unwrap(), me());
        let linked = users.path().join("docker.sock");
        symlink(&real, &linked).unwrap();
        assert_eq!(at(&linked).await.unwrap(), me());
        if me() == Speaker::User(0) {
            chown(users.path(), Some(1000), None).unwrap();
            let one = Speaker::User(1000);
            assert_eq!(at(&linked).await.unwrap(), one, "this user could link to another");
            chown(users.path(), Some(0), None).unwrap();
            chown(place.path(), Some(1001), None).unwrap();
            let other = Speaker::User(1001);
            assert_eq!(at(&real).await.unwrap(), other, "this user could replace the folder");
            assert_eq!(at(&linked).await.unwrap(), other, "also behind a link");
            chown(users.path(), Some(1000), None).unwrap();
            assert_eq!(at(&linked).await.unwrap(), Speaker::Anybody, "either could");
        }
    }

    /// The way goes through a folder that is neither above the name nor above the socket.
    #[tokio::test]
    async fn an_engine_is_that_of_the_owner_of_a_link_in_the_middle_of_the_way() {
        let [place, users, first] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let real = place.path().join("docker.sock");
        let _listener = UnixListener::bind(&real).unwrap();
        symlink(place.path(), users.path().join("second")).unwrap();
        // As /var/run is a link to ../run.
        let up = Path::new("..").join(users.path().file_name().unwrap()).join("second");
        symlink(up, first.path().join("first")).unwrap();
        let named = first.path().join("first/docker.sock");
        assert_eq!(at(&named).await.unwrap(), me());
        if me() == Speaker::User(0) {
            chown(users.path(), Some(1000), None).unwrap();
            assert_eq!(at(&named).await.unwrap(), Speaker::User(1000), "he can change his link");
        }
    }

    #[tokio::test]
    async fn an_engine_is_nobodys_if_several_users_may_write_to_a_folder() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("docker.sock");
        let _listener = UnixListener::bind(&real).unwrap();
        for (mode, expected) in
            [(0o755, me()), (0o777, Speaker::Anybody), (0o1777, me()), (0o700, me())]
        {
            fs::set_permissions(place.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(at(&real).await.unwrap(), expected, "{mode:o}");
        }
        if me() == Speaker::User(0) {
            chown(place.path(), None, Some(1000)).unwrap();
            fs::set_permissions(place.path(), fs::Permissions::from_mode(0o770)).unwrap();
            assert_eq!(at(&real).await.unwrap(), Speaker::Anybody, "a group of users");
            chown(place.path(), Some(1000), Some(1000)).unwrap();
            assert_eq!(at(&real).await.unwrap(), Speaker::User(1000), "a user's own group");
            chown(place.path(), Some(0), Some(0)).unwrap();
            fs::set_permissions(place.path(), fs::Permissions::from_mode(0o1777)).unwrap();
            chown(&real, Some(1000), None).unwrap();
            assert_eq!(at(&real).await.unwrap(), Speaker::User(1000), "he may remove what is his");
        }
    }
}
