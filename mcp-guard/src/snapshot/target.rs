//! Finds the target of a diagnosis among what a snapshot has read, by a container's name, a unit, a
//! cgroup or a pid.

use mcp_guard_core::{
    container::{container_in, is_container_id},
    diagnose::facts::{Facts, Source},
    target::{Candidate, NoMatch, Target, choose},
};

use super::Snapshot;
use crate::{
    engine::{Engines, Listed},
    host::observer::Observer,
    requests::Requests,
};

/// Takes a snapshot, and reads the facts of one target in it.
///
/// # Errors
/// If the host cannot be read, or the target cannot be found. The text says why.
pub async fn facts_of(
    target: &Target,
    engines: Engines,
    requests: Requests,
    observer: Observer,
    headroom: Option<u64>,
) -> Result<Facts, String> {
    let snapshot = Snapshot::take(engines, requests, observer).await?.with_headroom(headroom);
    match target {
        Target::Container(name) | Target::Docker(name) => snapshot.named(name).await,
        Target::Unit(name) => {
            let facts = snapshot.unit(name).await?;
            facts.ok_or_else(|| format!("unit {name} is not running"))
        }
        Target::Cgroup(path) => {
            let own = container_in(path).filter(|found| found.path == path);
            Ok(snapshot.known_or_cgroup(own.map(|found| found.id), path).await)
        }
        Target::Pid(pid) => {
            let path =
                snapshot.cgroup_of(*pid).ok_or_else(|| format!("there is no process {pid}"))?;
            let container = container_in(path).map(|found| found.id);
            Ok(snapshot.known_or_cgroup(container, path).await)
        }
    }
}

impl Snapshot {
    /// Reads the facts of a container, or of a cgroup if no engine knows the container.
    async fn known_or_cgroup(&self, id: Option<&str>, path: &str) -> Facts {
        match self.known(id).await {
            Some(facts) => facts,
            None => self.cgroup(path).await,
        }
    }

    /// Reads a container's facts through its engine, which knows more than the cgroup shows.
    async fn known(&self, id: Option<&str>) -> Option<Facts> {
        self.container(id.filter(|id| self.lists(id) != Some(false))?).await
    }

    /// Reads the facts of the container with this name. A full id works even if no list could be read; if
    /// no engine answers, its cgroup is read.
    async fn named(&self, name: &str) -> Result<Facts, String> {
        let gone = || {
            format!(
                "{name}: the container ended while it was being read, or a user's engine lists it \
                 and that user does not own it"
            )
        };
        match self.chosen(name) {
            Ok(id) => self.container(&id).await.ok_or_else(gone),
            Err(why) => {
                let id = Some(name).filter(|name| is_container_id(name));
                if let Some(facts) = self.known(id).await {
                    return Ok(facts);
                }
                let path = id.and_then(|id| self.cgroup_of_container(id)).ok_or(why)?;
                Ok(self.cgroup(&path).await)
            }
        }
    }

    /// Returns the id of the running container that a name means, or why there is none.
    fn chosen(&self, name: &str) -> Result<String, String> {
        let candidate = |one: &Listed| Candidate { id: one.id.clone(), name: one.name.clone() };
        let all: Vec<Candidate> = self.running().iter().map(candidate).collect();
        match choose(name, &all) {
            Ok(found) => Ok(found.id.clone()),
            Err(NoMatch::None) => {
                // Other unreadable sources do not affect the lookup of a name.
                let engine = |what: &Source| matches!(what, Source::Engine | Source::Containers);
                let why = self.unreadable().iter().filter(|one| engine(&one.what));
                let why: String = why.map(|one| format!("; {one}")).collect();
                // Only a complete list proves that there is no such container.
                Err(match self.lists(name) {
                    Some(_) => format!("no running container is called {name:?}{why}"),
                    None => {
                        format!("{name:?} cannot be looked up{why}; cgroup:/PATH needs no engine")
                    }
                })
            }
            Err(NoMatch::Several(found)) => {
                let names: Vec<String> =
                    found.iter().map(|one| format!("{:.12} {}", one.id, one.name)).collect();
                Err(format!("{name:?} is ambiguous; it may mean {}", names.join(", ")))
            }
        }
    }
}
