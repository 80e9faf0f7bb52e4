//! Reads the facts that a diagnosis judges: first those that all targets share, then each target's
//! own.

mod around;
mod clamp;
mod compose;
mod host;
mod labels;
mod runtime;
mod target;
mod trusted;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use mcp_guard_core::{
    container::container_in,
    diagnose::facts::{self, Facts, HostFacts, Source, SubjectKind, TargetFacts, Unreadable},
    id::Pid,
};

use self::trusted::Volumes;
pub use self::{host::host, target::facts_of};
use crate::{
    engine::{self, Details, Engine, EngineId, Engines, Listed},
    host::{
        census::Census,
        cgroup::Cgroup,
        chain,
        layout::Layout,
        observer::Observer,
        systemd::{self, Systemd},
    },
    requests::Requests,
};

/// How much a snapshot reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Everything that any rule judges.
    Whole,
    /// Only what the repair of a limit needs.
    Limits,
}

/// The containers that the engines list.
#[derive(Default)]
struct List {
    running: Vec<Listed>,
    /// The volumes of all containers, also of those that are stopped.
    volumes: Arc<Volumes>,
    /// Whether every engine was asked and answered.
    is_whole: bool,
}

impl List {
    fn new(all: Vec<Listed>, is_whole: bool) -> Self {
        let volumes = all.iter().flat_map(|one| one.volumes.clone()).collect();
        let running = all.into_iter().filter(|one| one.runs).collect();
        Self { running, volumes: Arc::new(Volumes::new(volumes)), is_whole }
    }
}

/// The facts that all targets of one diagnosis share.
pub struct Snapshot {
    reach: Reach,
    layout: Layout,
    census: Census,
    host: HostFacts,
    engines: Engines,
    /// The description of each engine that answers.
    described: BTreeMap<EngineId, facts::EngineFacts>,
    list: List,
    /// The own cgroup level of each container, by id.
    levels: BTreeMap<String, facts::Level>,
    /// `None` if systemd does not run, or does not answer.
    systemd: Option<Systemd>,
    /// Whether systemd was late once. Then no other target waits for it.
    systemd_is_late: AtomicBool,
    requests: Requests,
    /// The policy's headroom, if a policy was read.
    headroom: Option<u64>,
    unreadable: Vec<Unreadable>,
    began: Instant,
}

impl Snapshot {
    /// Takes a snapshot of everything.
    ///
    /// # Errors
    /// If not even `/proc` can be read.
    pub async fn take(
        engines: Engines,
        requests: Requests,
        observer: Observer,
    ) -> Result<Self, String> {
        let taken = Self::reaching(Reach::Whole, engines, requests, BTreeMap::new(), observer);
        taken.await.map_err(|error| format!("cannot read this host: {error}"))
    }

    /// Takes a snapshot of only what the repair of a limit needs. It reads no other container and
    /// no file that a label names, and starts no process. `known` has the descriptions of engines,
    /// if they are known: Podman starts programs to describe itself.
    ///
    /// # Errors
    /// If not even `/proc` can be read.
    pub async fn take_for_limits(
        engines: Engines,
        requests: Requests,
        known: BTreeMap<EngineId, facts::EngineFacts>,
        observer: Observer,
    ) -> std::io::Result<Self> {
        Self::reaching(Reach::Limits, engines, requests, known, observer).await
    }

    /// Sets a policy's `respond.clamp_headroom`, if there is one.
    #[must_use]
    pub fn with_headroom(self, headroom: Option<u64>) -> Self {
        Self { headroom, ..self }
    }

    async fn reaching(
        reach: Reach,
        engines: Engines,
        requests: Requests,
        known: BTreeMap<EngineId, facts::EngineFacts>,
        observer: Observer,
    ) -> std::io::Result<Self> {
        let began = Instant::now();
        let layout = Layout::read()?;
        let v1 = layout.pids.as_ref().is_some_and(|tree| tree.v1);
        let census = Census::take(v1, observer)?;
        let host = host(&layout);
        let unreadable = host::hidden(&census);
        let mut snapshot = Self {
            reach,
            layout,
            census,
            host,
            engines,
            described: known,
            list: List::default(),
            levels: BTreeMap::new(),
            systemd: None,
            systemd_is_late: AtomicBool::new(false),
            requests,
            headroom: None,
            unreadable,
            began,
        };
        snapshot.ask().await;
        if reach == Reach::Whole {
            let level = |(id, path): (&str, &str)| {
                Some((id.to_owned(), chain::own(&snapshot.layout, path)?))
            };
            snapshot.levels = snapshot.census.containers().into_iter().filter_map(level).collect();
        }
        Ok(snapshot)
    }

    /// Asks the engines and systemd.
    async fn ask(&mut self) {
        // Each may be slow, and none needs another's answer.
        let asked = join_all(self.engines.iter().map(|(id, engine)| self.ask_engine(id, engine)));
        let (engines, systemd) = tokio::join!(asked, Systemd::connect());
        let (mut all, mut is_whole) = (Vec::new(), self.reach == Reach::Whole);
        for (id, described, listed) in engines {
            match described {
                Ok(described) => self.described.insert(id, described),
                Err(error) => {
                    self.unreadable.push(Unreadable::new(Source::Engine, error));
                    is_whole = false;
                    continue;
                }
            };
            match listed {
                Some(Ok(listed)) => all.extend(listed),
                Some(Err(error)) => {
                    self.unreadable.push(Unreadable::new(Source::Containers, error));
                    is_whole = false;
                }
                None => {}
            }
        }
        self.list = List::new(all, is_whole);
        match systemd {
            Some(Ok(manager)) => self.systemd = Some(manager),
            Some(Err(error)) => self.unreadable.push(Unreadable::new(Source::Systemd, error)),
            None => {}
        }
        for id in self.described.keys().copied().collect::<Vec<_>>() {
            self.ask_for_own_unit(id).await;
        }
    }

    /// Asks an engine for its description, unless that is known, and for its list of containers, if
    /// that is wanted.
    async fn ask_engine(
        &self,
        id: EngineId,
        engine: &dyn Engine,
    ) -> (
        EngineId,
        Result<facts::EngineFacts, engine::Error>,
        Option<Result<Vec<Listed>, engine::Error>>,
    ) {
        let describe = async {
            match self.described.get(&id) {
                Some(known) => Ok(known.clone()),
                None => engine.describe().await,
            }
        };
        let list = async {
            match self.reach {
                Reach::Whole => Some(engine.containers().await),
                Reach::Limits => None,
            }
        };
        let (described, listed) = tokio::join!(describe, list);
        (id, described, listed)
    }

    async fn ask_for_own_unit(&mut self, id: EngineId) {
        let Some(engine) = self.described.get(&id) else { return };
        let unit = format!("{}.service", engine.kind);
        let own = self.ask_systemd(async |systemd| systemd.own_tasks_max(&unit).await).await;
        if let Some(engine) = self.described.get_mut(&id) {
            engine.own_tasks_max = own.and_then(Result::ok).flatten();
        }
    }

    /// Asks systemd, unless it was late before. `None` if systemd does not run here.
    async fn ask_systemd<T>(
        &self,
        ask: impl AsyncFnOnce(&Systemd) -> Result<T, systemd::Error>,
    ) -> Option<Result<T, systemd::Error>> {
        let systemd = self.systemd.as_ref()?;
        if self.systemd_is_late.load(Ordering::Relaxed) {
            return Some(Err(systemd::Error::Late));
        }
        let answer = ask(systemd).await;
        if matches!(answer, Err(systemd::Error::Late)) {
            self.systemd_is_late.store(true, Ordering::Relaxed);
        }
        Some(answer)
    }

    /// The facts about the host and its engines that could not be read.
    #[must_use]
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// The running containers, by id and name.
    #[must_use]
    pub fn running(&self) -> &[Listed] {
        &self.list.running
    }

    /// Whether the list of containers is complete.
    #[must_use]
    pub fn has_list(&self) -> bool {
        self.list.is_whole
    }

    /// Whether an engine lists a container as running. `None` if the list is not complete.
    #[must_use]
    pub fn lists(&self, id: &str) -> Option<bool> {
        self.has_list().then(|| self.running().iter().any(|one| one.id == id))
    }

    /// Returns the cgroup of a container that has a process, whether an engine knows it or not.
    #[must_use]
    pub fn cgroup_of_container(&self, id: &str) -> Option<String> {
        self.census.containers().get(id).map(|path| (*path).to_owned())
    }

    /// Reads the facts of a container. `None` if no engine that answers knows it.
    pub async fn container(&self, id: &str) -> Option<Facts> {
        let mut silent = None;
        for (from, engine) in self.engines.iter() {
            let Some(described) = self.described.get(&from) else { continue };
            match self.container_of(engine, described, id).await {
                Some(facts) if facts.container.is_some() => return Some(facts),
                Some(facts) => silent = Some(facts),
                None => {}
            }
        }
        silent
    }

    async fn container_of(
        &self,
        engine: &dyn Engine,
        described: &facts::EngineFacts,
        id: &str,
    ) -> Option<Facts> {
        let mut facts = self.shared();
        facts.engine = Some(described.clone());
        let listed = self.running().iter().find(|one| one.id == id);
        facts.target = TargetFacts {
            kind: SubjectKind::Container,
            name: listed.map_or(id, |one| one.name.as_str()).to_owned(),
            id: Some(id.to_owned()),
            cgroup: String::new(),
        };
        let details = match engine.details(id).await {
            Ok(details) => details?,
            Err(error) => {
                // Nothing is judged that the engine did not report.
                facts.unreadable.push(Unreadable::new(Source::Inspect, error));
                return Some(self.finish(facts));
            }
        };
        if !self.is_believed(engine, &details).await {
            return None;
        }
        let mut container = details.container.clone();
        if listed.is_none() && !container.name.is_empty() {
            facts.target.name.clone_from(&container.name);
        }
        self.place(&mut facts, container.init, id).await;
        facts.wanted = self.requests.get(id).map(|request| request.limit);
        container.oci_limit = runtime::oci_limit(id);
        container.state_limit = runtime::state_limit(id);
        facts.unreadable.extend(details.unread.clone());
        let memory = chain::memory(&self.layout, &facts.target.cgroup);
        container.memory = memory.unwrap_or(container.memory);
        facts.container = Some(container);
        facts.compose = self.compose(&details);
        if self.reach == Reach::Whole {
            self.read_surroundings(engine, &mut facts, &details).await;
        }
        Some(self.finish(facts))
    }

    /// Whether the engine's word counts for the container that it describes.
    async fn is_believed(&self, engine: &dyn Engine, details: &Details) -> bool {
        let facts::ContainerFacts { id, init, .. } = &details.container;
        engine.speaker().await.is_ok_and(|speaker| {
            // Without a cgroup driver, a user's container has no cgroup of its own.
            let of = |id: Option<&str>| Cgroup::of_process(&self.layout, *init, id);
            speaker.is_trusted()
                || of(Some(id))
                    .or_else(|_| of(None))
                    .is_ok_and(|cgroup| speaker.may_speak_for(&cgroup))
        })
    }

    /// Returns the cgroup of a process. `None` if there is no such process.
    #[must_use]
    pub fn cgroup_of(&self, pid: Pid) -> Option<&str> {
        self.census.cgroup_of(pid)
    }

    /// Reads the facts of a systemd unit. `None` if no unit of that name runs.
    ///
    /// # Errors
    /// If systemd is not the init of this host, or does not answer.
    pub async fn unit(&self, name: &str) -> Result<Option<Facts>, String> {
        let path = self.ask_systemd(async |systemd| systemd.cgroup_of(name).await).await;
        let path = path
            .ok_or("systemd is not the init of this host, or does not answer")?
            .map_err(|error| error.to_string())?;
        let Some(path) = path else { return Ok(None) };
        let mut facts = self.cgroup(&path).await;
        (facts.target.kind, facts.target.name) = (SubjectKind::Unit, name.to_owned());
        Ok(Some(facts))
    }

    /// Reads the facts of a cgroup that is named by its path in the hierarchy with the pids
    /// controller.
    pub async fn cgroup(&self, path: &str) -> Facts {
        let mut facts = self.shared();
        let (kind, name) = (SubjectKind::Cgroup, path.to_owned());
        facts.target = TargetFacts { kind, name, id: None, cgroup: path.to_owned() };
        self.read_cgroup(&mut facts).await;
        self.finish(facts)
    }

    fn shared(&self) -> Facts {
        Facts {
            schema: facts::SCHEMA,
            taken: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            host: self.host.clone(),
            headroom: self.headroom,
            unreadable: self.unreadable.clone(),
            ..Facts::default()
        }
    }

    fn finish(&self, mut facts: Facts) -> Facts {
        facts.took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        facts
    }

    /// Finds the cgroup of the container's first process, and reads it.
    async fn place(&self, facts: &mut Facts, init: Pid, id: &str) {
        let Some(path) = self.census.cgroup_of(init) else {
            let hides = if self.census.is_partial() { ", or is hidden by /proc" } else { "" };
            let why = format!("the first process that the engine names does not exist{hides}");
            facts.unreadable.push(Unreadable::new(Source::CgroupOfInit, why));
            return;
        };
        // A systemd inside the container may have moved the process to a cgroup below.
        let own =
            container_in(path).filter(|found| found.id == id).map_or(path, |found| found.path);
        own.clone_into(&mut facts.target.cgroup);
        self.read_cgroup(facts).await;
    }

    async fn read_cgroup(&self, facts: &mut Facts) {
        let cgroup = facts.target.cgroup.clone();
        match chain::read(&self.layout, &cgroup) {
            Ok(chain) => facts.chain = chain,
            Err(error) => {
                facts.unreadable.push(Unreadable::new(Source::Cgroup(cgroup.clone()), error));
            }
        }
        facts.clamp = clamp::read(&self.layout, &cgroup);
        facts.members = self.census.members(&cgroup);
        facts.zombies = self.census.zombies_of(&facts.members);
        match self.ask_systemd(async |systemd| systemd.unit_of(&cgroup).await).await {
            Some(Ok(unit)) => facts.unit = unit,
            Some(Err(error)) => {
                facts.unreadable.push(Unreadable::new(Source::UnitOfCgroup, error));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
