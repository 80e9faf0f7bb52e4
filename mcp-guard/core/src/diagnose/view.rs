//! The values that rules need, computed once from the facts.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::once,
};

use super::{
    compose,
    facts::{Clamp, Compose, ContainerFacts, Facts, Level, Process, Says, SubjectKind, Unit},
    owner::survives,
};
use crate::{id::Pid, limit::Limit};

/// The limit that an engine stores for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredLimit {
    /// `null`: created without a limit, or with 0 or -1.
    Null,
    /// 0 or less: explicitly no limit.
    Unlimited(i64),
    Limit(u64),
}

pub struct View<'a> {
    pub facts: &'a Facts,
    /// The compose facts, with the files evaluated.
    pub compose: Option<Compose>,
    /// `pids.max` of the target's own cgroup.
    pub kernel: Option<Limit>,
    /// `pids.max` as it is without our clamp. The rules judge this value.
    pub lasting: Option<Limit>,
    pub current: Option<u64>,
    /// The lowest limit from the target's cgroup up to the root.
    pub effective: Option<Limit>,
    /// None if the target is not a container of an engine that answers.
    pub stored: Option<StoredLimit>,
    /// The limit in the compose file. 0 and less mean no limit (compose itself drops them).
    pub file: Option<u64>,
    /// `file` comes from a variable, which may have had another value when compose ran.
    pub filled: bool,
    /// Members whose parent is outside the cgroup, except the container's first process.
    pub moved_in: Vec<&'a Process>,
}

impl<'a> View<'a> {
    pub fn of(facts: &'a Facts) -> Self {
        let own = facts.own();
        let init = facts.container.as_ref().map(|container| container.init);
        let mut moved_in = facts.roots();
        moved_in.retain(|process| Some(process.pid) != init);
        let compose = facts.compose.as_ref().map(compose::judged);
        let (file, filled) = match compose.as_ref().map(|compose| &compose.says) {
            Some(Says::Limit { value, filled, .. }) => {
                (u64::try_from(*value).ok().filter(|limit| *limit > 0), *filled)
            }
            Some(
                Says::Nothing { .. } | Says::Invalid { .. } | Says::Unknown { .. } | Says::NotAsked,
            )
            | None => (None, false),
        };
        let kernel = own.and_then(|own| own.max);
        Self {
            facts,
            compose,
            kernel,
            lasting: clamp(facts, kernel).map(|clamp| clamp.found).or(kernel),
            current: own.and_then(|own| own.current),
            effective: facts.effective().map(|(_, limit)| limit),
            stored: facts.container.as_ref().map(stored),
            file,
            filled,
            moved_in,
        }
    }

    /// Returns the declared limit. The compose file comes first, because the next container is created from
    /// it; but a number from a variable does not override the one that the engine stores.
    pub fn declared(&self) -> Option<u64> {
        let stored = self.stored_limit();
        if self.filled { stored.or(self.file) } else { self.file.or(stored) }
    }

    /// Returns the engine's limit as its API shows it.
    pub fn stored_word(&self) -> String {
        match self.stored {
            None => "unknown".to_owned(),
            Some(StoredLimit::Null) => "null".to_owned(),
            Some(StoredLimit::Unlimited(value)) => value.to_string(),
            Some(StoredLimit::Limit(limit)) => limit.to_string(),
        }
    }

    pub fn stored_limit(&self) -> Option<u64> {
        match self.stored? {
            StoredLimit::Limit(limit) => Some(limit),
            StoredLimit::Null | StoredLimit::Unlimited(_) => None,
        }
    }

    /// Returns our clamp if the kernel still has its value. Otherwise another process has written `pids.max`.
    pub fn our_clamp(&self) -> Option<&'a Clamp> {
        clamp(self.facts, self.kernel)
    }

    /// Returns the lowest limit up to the root without our clamp.
    pub fn lasting_effective(&self) -> Option<Limit> {
        let above = self.facts.chain.iter().skip(1).filter_map(|level| level.max);
        self.lasting.into_iter().chain(above).min()
    }

    /// Returns whether the limit in force is only the default that systemd gives to units without a limit.
    pub fn has_only_the_default(&self) -> bool {
        let default = self.unit().and_then(|unit| unit.default_tasks_max);
        self.declared().is_none() && default.is_some() && default == self.lasting
    }

    pub fn own(&self) -> Option<&'a Level> {
        self.facts.own()
    }

    pub fn container(&self) -> Option<&'a ContainerFacts> {
        self.facts.container.as_ref()
    }

    pub fn unit(&self) -> Option<&'a Unit> {
        self.facts.unit.as_ref()
    }

    /// Returns whether the target's cgroup is its unit's own, so that systemd manages its limit. systemd does
    /// not touch a cgroup below the unit's.
    pub fn is_the_units_own(&self) -> bool {
        let name = self.own().and_then(|own| own.path.rsplit('/').next());
        self.unit().is_some_and(|unit| name == Some(unit.name.as_str()))
    }

    /// Returns the path of a file in the target's cgroup, below the root of the hierarchy.
    pub fn file_of(&self, name: &str) -> String {
        let path = self.own().map_or("", |own| own.path.as_str());
        format!("{}/{name}", path.trim_end_matches('/'))
    }

    /// Counts the tasks that were created by forks inside the cgroup, and the container's first task. The
    /// kernel checks a fork against the limit, but not a move (`pids_can_fork` in `kernel/cgroup/pids.c`), so
    /// more of these tasks than the limit means that it was not in force when they were created.
    ///
    /// A process that was moved in may have brought threads and children along, so its tree is not counted.
    /// The tree of an exec is, except its first task, because an exec begins with a single task. Without a
    /// container the two cannot be told apart: every tree is counted, except its first task.
    pub fn born_inside(&self) -> u64 {
        let facts = self.facts;
        let first: Vec<Pid> = match &facts.container {
            Some(container) => {
                once(container.init).chain(container.execs.iter().copied()).collect()
            }
            None => facts.roots().iter().map(|process| process.pid).collect(),
        };
        let family = self.family_of(&first);
        let came_in = match &facts.container {
            Some(container) => container.execs.iter().filter(|pid| family.contains(pid)).count(),
            None => first.len(),
        };
        let in_family = |pid| family.contains(&pid);
        let living = facts.members.iter().filter(|process| in_family(process.pid));
        let dead = facts.zombies.iter().filter(|process| in_family(process.parent)).count();
        let tasks: u64 = living.map(|process| process.threads).sum();
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        tasks.saturating_add(count(dead)).saturating_sub(count(came_in))
    }

    /// Returns the members that are in `first`, or descend from one of them.
    fn family_of(&self, first: &[Pid]) -> BTreeSet<Pid> {
        let members: BTreeSet<Pid> = self.facts.members.iter().map(|process| process.pid).collect();
        let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for process in &self.facts.members {
            children.entry(process.parent).or_default().push(process.pid);
        }
        let mut family = BTreeSet::new();
        let mut waiting = first.to_vec();
        while let Some(pid) = waiting.pop() {
            if members.contains(&pid) && family.insert(pid) {
                waiting.extend(children.get(&pid).into_iter().flatten());
            }
        }
        family
    }

    /// Returns the command that makes the owner write a limit at once.
    pub fn repair_command(&self, limit: Option<u64>) -> String {
        let limit = limit.map_or_else(|| "N".to_owned(), |limit| limit.to_string());
        format!("mcp-guard repair {} --limit {limit}", self.target_word())
    }

    /// Returns the events that such a repair survives.
    pub fn survives(&self) -> &'static [&'static str] {
        survives(self.facts)
    }

    /// Returns whether the kernel's limit comes from a repair: the wanted limit, or a step on the way down.
    pub fn is_our_repair(&self) -> bool {
        let (Some(wanted), Some(kernel)) = (self.facts.wanted, self.kernel) else { return false };
        let is_a_step = self.stored_limit().is_some_and(|stored| kernel < Limit::Tasks(stored));
        kernel == Limit::Tasks(wanted) || is_a_step
    }

    /// Returns the target as one word of a shell command.
    pub fn target_word(&self) -> String {
        let target = &self.facts.target;
        if target.kind == SubjectKind::Container {
            return shell_word(&target.name);
        }
        shell_word(&format!("{}:{}", target.kind, target.name))
    }
}

fn clamp(facts: &Facts, kernel: Option<Limit>) -> Option<&Clamp> {
    facts.clamp.as_ref().filter(|clamp| Some(clamp.wrote) == kernel)
}

/// Quotes text as one shell word: a cgroup may have any name, and operators copy the commands.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.:@-".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn stored(container: &ContainerFacts) -> StoredLimit {
    match container.pids_limit {
        None => StoredLimit::Null,
        Some(limit) => match u64::try_from(limit) {
            Ok(limit) if limit > 0 => StoredLimit::Limit(limit),
            _ => StoredLimit::Unlimited(limit),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_name_is_quoted_as_one_shell_word() {
        assert_eq!(shell_word("cgroup:/a-b/c.slice"), "cgroup:/a-b/c.slice");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("a b;$(reboot)"), "'a b;$(reboot)'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }
}
