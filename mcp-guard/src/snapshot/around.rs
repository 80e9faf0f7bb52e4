//! Reads facts that a container's limit does not depend on, but that explain its state.

use mcp_guard_core::{
    diagnose::{
        facts::{ContainerFacts, Facts, Other, PidNamespace, Source, Unreadable},
        version::version,
    },
    id::Pid,
};

use super::Snapshot;
use crate::{
    engine::{Details, Engine, Listed},
    host::pidns,
};

/// Fewest tasks with which a pid namespace can count as nearly full: a share of the smallest
/// `pid_max`, which is above `RESERVED_PIDS` of the kernel's `kernel/pid.c`.
const SMALLEST: u64 = 280;
/// The first Linux in which each pid namespace has its own maximum.
const OWN_PID_MAX: (u32, u32, u32) = (6, 14, 0);
/// Most other containers that are reported.
const MAX_OTHERS: usize = 64;

impl Snapshot {
    pub(super) async fn read_surroundings(
        &self,
        engine: &dyn Engine,
        facts: &mut Facts,
        details: &Details,
    ) {
        let ContainerFacts { id, init, .. } = &details.container;
        facts.aliens = self.census.aliens(*init, &facts.target.cgroup).unwrap_or_default();
        facts.others = self.others(id, details.compose.as_ref().map(|one| one.project.as_str()));
        self.read_pid_namespace(facts, *init).await;
        let (execs, late) = engine.execs(details).await;
        facts.unreadable.extend(late);
        if let Some(container) = &mut facts.container {
            container.execs = execs;
        }
    }

    async fn read_pid_namespace(&self, facts: &mut Facts, init: Pid) {
        // With fewer tasks no namespace can be nearly full, and reading the maximum takes a
        // process.
        let tasks = self.census.tasks_in_namespace_of(init).filter(|tasks| *tasks >= SMALLEST);
        let Some(tasks) = tasks else { return };
        let is_the_hosts = version(&self.host.kernel).is_some_and(|kernel| kernel < OWN_PID_MAX);
        let pid_max = if is_the_hosts {
            self.host.pid_max.ok_or_else(|| "the host's pid_max is not known".to_owned())
        } else if self.census.may_trace_in_namespace_of(init) {
            Err("a process in the namespace could trace the one that would have to read it there"
                .to_owned())
        } else {
            pidns::pid_max_in_namespace_of(init).await
        };
        match pid_max {
            Ok(pid_max) => facts.host.pid_namespace = Some(PidNamespace { pid_max, tasks }),
            Err(why) => facts.unreadable.push(Unreadable::new(Source::NamespacePidMax, why)),
        }
    }

    /// Returns the other running containers of the same image or project.
    fn others(&self, id: &str, project: Option<&str>) -> Vec<Other> {
        let image = self.running().iter().find(|one| one.id == id).map(|one| one.image.as_str());
        let other = |one: &Listed| {
            let same_image = Some(one.image.as_str()) == image;
            let same_project = project.is_some() && one.project.as_deref() == project;
            let level = self.levels.get(&one.id);
            (one.id != id && (same_image || same_project)).then(|| Other {
                id: one.id.clone(),
                name: one.name.clone(),
                same_image,
                same_project,
                limit: level.and_then(|level| level.max),
                tasks: level.and_then(|level| level.current),
            })
        };
        self.running().iter().filter_map(other).take(MAX_OTHERS).collect()
    }
}
