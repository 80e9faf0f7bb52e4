//! Which stored requests are over because their container is gone.

use std::time::Duration;

/// A request as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRequest {
    /// Id of the container.
    pub id: String,
    /// Where the engine listens that has the container; empty in a file of an older version.
    pub engine: String,
    /// When it was made, since 1970; None where that cannot be read.
    pub at: Option<Duration>,
}

/// The ids of those whose container `engine` no longer has. `listed`: all containers that it has, running
/// or not, as it said after `since`. An empty list is no proof: it may be all that an engine says which
/// is just starting.
#[must_use]
pub fn gone(
    stored: Vec<StoredRequest>,
    listed: &[String],
    engine: &str,
    since: Duration,
) -> Vec<String> {
    let is_gone = |one: &StoredRequest| {
        let is_older = one.at.is_some_and(|at| at < since);
        !listed.is_empty() && one.engine == engine && is_older && !listed.contains(&one.id)
    };
    stored.into_iter().filter(is_gone).map(|one| one.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_that_the_same_engine_surely_no_longer_has_is_gone() {
        const ENGINE: &str = "/var/run/docker.sock";
        let at = |seconds| Some(Duration::from_secs(seconds));
        for (id, engine, made, listed, expected) in [
            ("a", ENGINE, at(1), &["b"][..], true),
            ("a", ENGINE, at(1), &["b", "a"], false),
            ("a", "/run/podman.sock", at(1), &["b"], false),
            ("a", "", at(1), &["b"], false),
            ("a", ENGINE, at(2), &["b"], false),
            ("a", ENGINE, None, &["b"], false),
            ("a", ENGINE, at(1), &[], false),
        ] {
            let stored = StoredRequest { id: id.into(), engine: engine.into(), at: made };
            let listed: Vec<String> = listed.iter().map(|id| (*id).to_owned()).collect();
            let found = gone(vec![stored], &listed, ENGINE, Duration::from_secs(2));
            assert_eq!(!found.is_empty(), expected, "{engine} {made:?} {listed:?}");
        }
    }
}
