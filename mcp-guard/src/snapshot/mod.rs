//! Takes the facts that a diagnosis judges: what all targets share once, then each target.

mod clamp;
mod compose;
mod runtime;
mod trusted;

use std::{
    collections::BTreeMap,
    fs,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use mcp_guard_core::{
    container::container_in,
    diagnose::facts::{self, Facts, Host, Other, PidNamespace, Subject, Unreadable},
};

use self::trusted::Volumes;
use crate::{
    engine::{Details, Engine, Listed},
    host::{
        census::{self, Census},
        chain, kernel,
        layout::{Kind, Layout},
        systemd::Systemd,
    },
    wanted::Limits,
};

/// `RESERVED_PIDS` of the kernel's `kernel/pid.c`, less the share from which on it counts as full.
const SMALLEST: u64 = 280;
/// Containers of the same image that are looked at.
const MAX_OTHERS: usize = 64;

/// What all targets of one diagnosis share.
pub struct Snapshot {
    layout: Layout,
    census: Census,
    host: Host,
    engine: Option<(Engine, facts::Engine)>,
    /// Every running container.
    running: Vec<Listed>,
    volumes: Volumes,
    /// The own level of each, by id.
    levels: BTreeMap<String, facts::Level>,
    /// None where systemd does not run, or does not answer.
    systemd: Option<Systemd>,
    limits: Limits,
    unreadable: Vec<Unreadable>,
    began: Instant,
}

impl Snapshot {
    /// # Errors
    /// Not even `/proc` can be read.
    pub async fn take(engine: Engine, limits: Limits) -> std::io::Result<Self> {
        Self::of_engine(engine, limits, None).await
    }

    /// The same where it is known what the engine says of itself: Podman starts programs to find out.
    ///
    /// # Errors
    /// Not even `/proc` can be read.
    pub async fn of_engine(
        engine: Engine,
        limits: Limits,
        known: Option<facts::Engine>,
    ) -> std::io::Result<Self> {
        let began = Instant::now();
        let layout = Layout::read()?;
        let v1 = layout.pids.as_ref().is_some_and(|tree| tree.v1);
        let census = Census::take(v1)?;
        let mut unreadable: Vec<Unreadable> = hidden(census.hidden).into_iter().collect();
        let (mut described, mut running, mut volumes) = (None, Vec::new(), Vec::new());
        // Each may take its time, and none needs another.
        let describe = async {
            match known {
                Some(known) => Ok(known),
                None => engine.describe().await,
            }
        };
        let (facts, listed, manager) =
            tokio::join!(describe, engine.containers(), Systemd::connect());
        match facts {
            Ok(facts) => match listed {
                Ok(listed) => {
                    described = Some((engine, facts));
                    volumes = listed.iter().flat_map(|one| one.volumes.clone()).collect();
                    running = listed.into_iter().filter(|one| one.runs).collect();
                }
                Err(error) => unreadable.push(unread("containers", &error)),
            },
            Err(error) => unreadable.push(unread("engine", &error)),
        }
        let mut systemd = None;
        match manager {
            Some(Ok(manager)) => systemd = Some(manager),
            Some(Err(error)) => unreadable.push(unread("systemd", &error)),
            None => {}
        }
        if let (Some((_, engine)), Some(systemd)) = (&mut described, &systemd) {
            let unit = format!("{}.service", engine.kind);
            engine.own_tasks_max = systemd.own_tasks_max(&unit).await.unwrap_or(None);
        }
        let host = host(&layout);
        let level = |(id, path): (&str, &str)| Some((id.to_owned(), chain::own(&layout, path)?));
        let levels = census.containers().into_iter().filter_map(level).collect();
        let engine = described;
        Ok(Self {
            layout,
            census,
            host,
            engine,
            running,
            volumes: Volumes::new(volumes),
            levels,
            systemd,
            limits,
            unreadable,
            began,
        })
    }

    /// What could not be known of the host and its engine.
    #[must_use]
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Running containers, by id and name.
    #[must_use]
    pub fn running(&self) -> &[Listed] {
        &self.running
    }

    /// The facts of a container; None where it is gone.
    pub async fn container(&self, id: &str) -> Option<Facts> {
        let (engine, described) = self.engine.as_ref()?;
        let mut facts = self.shared();
        let listed = self.running.iter().find(|one| one.id == id);
        facts.target = Subject {
            kind: "container".to_owned(),
            name: listed.map_or(id, |one| one.name.as_str()).to_owned(),
            id: Some(id.to_owned()),
            cgroup: String::new(),
        };
        let details = match engine.details(id).await {
            Ok(details) => details?,
            Err(error) => {
                // Nothing is judged that the engine did not say.
                facts.unreadable.push(unread("inspect", &error));
                return Some(self.over(facts));
            }
        };
        let init = details.container.init;
        self.place(&mut facts, init, id).await;
        facts.aliens = self.census.aliens(init, &facts.target.cgroup).unwrap_or_default();
        facts.host.pid_namespace = self.pid_namespace(init);
        facts.wanted = self.limits.get(id);
        facts.compose = details.compose.clone().map(|found| self.compose(found, &details));
        facts.others = self.others(id, facts.compose.as_ref().map(|one| one.project.as_str()));
        let mut container = details.container;
        container.oci_limit = runtime::oci_limit(id);
        container.state_limit = runtime::state_limit(id);
        if described.kind == "podman" {
            match engine.cgroups_of_podman(id).await {
                Ok(cgroups) => container.cgroups = cgroups.unwrap_or_default(),
                Err(error) => facts.unreadable.push(unread("HostConfig.Cgroups", &error)),
            }
        }
        container.memory = chain::memory(&self.layout, init).unwrap_or(container.memory);
        facts.container = Some(container);
        Some(self.over(facts))
    }

    /// The cgroup that a process is in; None where there is no such process.
    #[must_use]
    pub fn cgroup_of(&self, pid: u32) -> Option<&str> {
        self.census.cgroup_of(pid)
    }

    /// The facts of a unit of systemd; None where none of that name runs.
    ///
    /// # Errors
    /// systemd does not run this host, or does not answer.
    pub async fn unit(&self, name: &str) -> Result<Option<Facts>, String> {
        let systemd = self.systemd.as_ref().ok_or("systemd does not answer here")?;
        let path = systemd.cgroup_of(name).await.map_err(|error| error.to_string())?;
        let Some(path) = path else { return Ok(None) };
        let mut facts = self.cgroup(&path).await;
        (facts.target.kind, facts.target.name) = ("unit".to_owned(), name.to_owned());
        Ok(Some(facts))
    }

    /// The facts of a cgroup that is named by its path in the hierarchy of the pids controller.
    pub async fn cgroup(&self, path: &str) -> Facts {
        let mut facts = self.shared();
        facts.engine = None;
        facts.target =
            Subject { kind: "cgroup".into(), name: path.into(), id: None, cgroup: path.into() };
        self.read_cgroup(&mut facts).await;
        self.over(facts)
    }

    fn shared(&self) -> Facts {
        Facts {
            schema: facts::SCHEMA,
            taken: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            host: self.host.clone(),
            engine: self.engine.as_ref().map(|(_, facts)| facts.clone()),
            unreadable: self.unreadable.clone(),
            ..Facts::default()
        }
    }

    fn over(&self, mut facts: Facts) -> Facts {
        facts.took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        facts
    }

    /// Where the container's first process is, and what is there.
    async fn place(&self, facts: &mut Facts, init: u32, id: &str) {
        let Some(path) = self.census.cgroup_of(init) else {
            let why = "the engine names a first process that is not there".to_owned();
            facts.unreadable.push(Unreadable { what: "cgroup".to_owned(), why });
            return;
        };
        // A systemd inside may have put it deeper.
        let own =
            container_in(path).filter(|found| found.id == id).map_or(path, |found| found.path);
        own.clone_into(&mut facts.target.cgroup);
        self.read_cgroup(facts).await;
    }

    async fn read_cgroup(&self, facts: &mut Facts) {
        match chain::read(&self.layout, &facts.target.cgroup) {
            Ok(chain) => facts.chain = chain,
            Err(error) => facts.unreadable.push(unread(&facts.target.cgroup, &error)),
        }
        facts.clamp = clamp::read(&self.layout, &facts.target.cgroup);
        facts.members = self.census.members(&facts.target.cgroup);
        facts.zombies = self.census.zombies_of(&facts.members);
        let Some(systemd) = &self.systemd else { return };
        match systemd.unit_of(&facts.target.cgroup).await {
            Ok(unit) => facts.unit = unit,
            Err(error) => facts.unreadable.push(unread("unit of the cgroup", &error)),
        }
    }

    fn pid_namespace(&self, init: u32) -> Option<PidNamespace> {
        // No namespace can have a smaller maximum, and to ask for it takes a process.
        let tasks = self.census.tasks_in_namespace_of(init).filter(|tasks| *tasks >= SMALLEST)?;
        let pid_max = census::pid_max_in_namespace_of(init)?;
        Some(PidNamespace { pid_max, tasks })
    }

    fn compose(&self, found: facts::Compose, details: &Details) -> facts::Compose {
        let environment = details.environment_file.as_deref();
        compose::read(found, &details.working_dir, environment, &self.volumes)
    }

    /// Other running containers of the same image or project.
    fn others(&self, id: &str, project: Option<&str>) -> Vec<Other> {
        let image = self.running.iter().find(|one| one.id == id).map(|one| one.image.as_str());
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
        self.running.iter().filter_map(other).take(MAX_OTHERS).collect()
    }
}

/// Processes of which the kernel does not show everything.
fn hidden(count: usize) -> Option<Unreadable> {
    let what = match count {
        0 => return None,
        1 => "pid namespace of a process".to_owned(),
        count => format!("pid namespaces of {count} processes"),
    };
    let why = "the kernel does not show them to this user".to_owned();
    Some(Unreadable { what, why })
}

/// What a diagnosis reads of the host itself.
#[must_use]
pub fn host(layout: &Layout) -> Host {
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse().ok();
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let about_cgroups = |word: &&str| word.contains("cgroup");
    let cgroups = match layout.kind {
        Kind::Unified => "unified",
        Kind::Hybrid => "hybrid",
        Kind::Legacy => "legacy",
        Kind::None => "none",
    };
    Host {
        kernel: kernel::release(),
        cgroups: cgroups.to_owned(),
        pids_enabled: pids_enabled(&fs::read_to_string("/proc/cgroups").unwrap_or_default()),
        boot_words: words.split_whitespace().filter(about_cgroups).map(str::to_owned).collect(),
        nsdelegate: layout.nsdelegate,
        threads_max: number("/proc/sys/kernel/threads-max"),
        pid_max: number("/proc/sys/kernel/pid_max"),
        tasks: census::host_tasks(),
        pid_namespace: None,
        docker_api_version: std::env::var("DOCKER_API_VERSION").ok(),
    }
}

/// The row of the controller: name, hierarchy, cgroups, enabled.
fn pids_enabled(text: &str) -> Option<bool> {
    let row = text.lines().find(|line| line.split_whitespace().next() == Some("pids"))?;
    row.split_whitespace().nth(3).map(|enabled| enabled == "1")
}

fn unread(what: &str, why: &impl ToString) -> Unreadable {
    Unreadable { what: what.to_owned(), why: why.to_string() }
}
