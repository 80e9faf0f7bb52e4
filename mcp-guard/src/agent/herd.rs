//! Looks at the clients of containers, on a thread of its own: whether a container is guarded does not matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::mpsc,
    thread,
    time::Duration,
};

use mcp_guard_core::{
    Time,
    diagnose::facts::EngineKind,
    effect::Input,
    escape::escape,
    evidence::{ClientsLook, InteractiveContainer},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{Agent, lanes::Sighted};
use crate::{
    engine::{Container, EngineId, Speaker, StdinConfig},
    host::{
        clock,
        evidence::clients::{ClientsContainer, ClientsLooker, ServedBy},
    },
};

/// Most containers of one engine that are looked at.
const MOST: usize = 1024;
/// A container that was not reported for this time is gone. Engines report containers every [`super::ASK_AGAIN`].
const GONE: Duration = Duration::from_secs(90);
/// Most characters kept of a name, an image or a label.
const MAX_TEXT: usize = 255;
/// Labels that name the server of a container: those of the gateway of Docker, and of ToolHive.
const LABELS: [&str; 2] = ["docker-mcp-name", "toolhive-name"];

/// What one look is about.
struct ToAsk {
    engine: EngineId,
    socket: String,
    served_by: ServedBy,
    containers: Vec<ClientsContainer>,
}

/// A container whose stdin may end with its client.
struct Interactive {
    container: ClientsContainer,
    stdin: StdinConfig,
    seen: Time,
}

pub(super) struct Herdsman {
    containers: BTreeMap<EngineId, BTreeMap<String, Interactive>>,
    thread: mpsc::Sender<ToAsk>,
    /// Engines that are being looked at.
    under_way: BTreeSet<EngineId>,
    /// Engines that could not be looked at the last time.
    failed: BTreeSet<EngineId>,
    next_round: Time,
    is_full: bool,
}

impl Herdsman {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(now: Time, found: UnboundedSender<Sighted>) -> io::Result<Self> {
        let (thread, asked) = mpsc::channel::<ToAsk>();
        thread::Builder::new().name("clients".to_owned()).spawn(move || {
            let mut lookers: BTreeMap<EngineId, ClientsLooker> = BTreeMap::new();
            for ToAsk { engine, socket, served_by, containers } in asked {
                let looker = lookers.entry(engine).or_default();
                let look = looker.look(&socket, served_by, containers);
                // The loop ends only with the program.
                let _ = found.send(Sighted::Clients(engine, look));
            }
        })?;
        let (under_way, failed) = (BTreeSet::new(), BTreeSet::new());
        let containers = BTreeMap::new();
        Ok(Self { containers, thread, under_way, failed, next_round: now, is_full: false })
    }

    /// Notes a container that runs.
    pub fn note(&mut self, now: Time, engine: EngineId, by: Speaker, container: &Container) {
        let StdinConfig { is_open, is_terminal, .. } = container.stdin;
        // A terminal does not end, and another user's engine could name any container.
        if !is_open || is_terminal || !by.is_trusted() {
            return;
        }
        let known = self.containers.entry(engine).or_default();
        if known.len() >= MOST && !known.contains_key(&container.id) {
            if !std::mem::replace(&mut self.is_full, true) {
                tracing::warn!("more than {MOST} containers are interactive; herds may be missed");
            }
            return;
        }
        let one =
            Interactive { container: described(container), stdin: container.stdin, seen: now };
        known.insert(container.id.clone(), one);
    }

    /// Returns the containers of an engine whose stdin ends with their client.
    fn of(&mut self, now: Time, engine: EngineId, served_by: ServedBy) -> Vec<ClientsContainer> {
        let Some(known) = self.containers.get_mut(&engine) else { return Vec::new() };
        known.retain(|_, one| now.since(one.seen) < GONE);
        let ends = |one: &&Interactive| match served_by {
            ServedBy::Dockerd => one.stdin.is_once,
            // Podman does not say it, and its conmon shows it.
            ServedBy::Conmon => true,
        };
        known.values().filter(ends).map(|one| one.container.clone()).collect()
    }
}

fn described(container: &Container) -> ClientsContainer {
    let text = |text: &str| escape(text.as_bytes(), MAX_TEXT);
    let label = |key: &&str| Some(format!("{key}={}", text(container.labels.get(*key)?)));
    ClientsContainer {
        container: InteractiveContainer {
            id: container.id.clone(),
            name: text(&container.name),
            image: text(&container.image),
            image_id: text(&container.image_id),
            label: LABELS.iter().find_map(label),
        },
        init: container.init,
    }
}

impl Agent {
    /// Has the clients of all engines' containers looked at if that is due.
    pub(super) fn look_at_clients(&mut self) {
        let now = clock::now();
        if now < self.herdsman.next_round {
            return;
        }
        self.herdsman.next_round = now.after(self.core.policy().evidence.every);
        let engines =
            self.engines.all.iter().filter(|(id, _)| !self.herdsman.under_way.contains(id));
        let engines: Vec<_> = engines.map(|(id, one)| (id, one.socket().to_owned())).collect();
        for (engine, socket) in engines {
            let served_by = match self.engines.described.get(&engine).map(|one| one.kind) {
                Some(EngineKind::Docker) => ServedBy::Dockerd,
                Some(EngineKind::Podman) => ServedBy::Conmon,
                None => continue,
            };
            let containers = self.herdsman.of(now, engine, served_by);
            if containers.is_empty() {
                let look = ClientsLook { engine: socket, ..ClientsLook::default() };
                self.step(Input::Clients(look));
            } else if self
                .herdsman
                .thread
                .send(ToAsk { engine, socket, served_by, containers })
                .is_ok()
            {
                self.herdsman.under_way.insert(engine);
            }
        }
    }

    /// Takes what the thread has found.
    pub(super) fn take_clients(&mut self, engine: EngineId, look: io::Result<ClientsLook>) {
        self.herdsman.under_way.remove(&engine);
        match look {
            Ok(look) => {
                self.herdsman.failed.remove(&engine);
                self.step(Input::Clients(look));
            }
            Err(error) => {
                if self.herdsman.failed.insert(engine) {
                    tracing::warn!(%error, "cannot look at the clients of containers; no herd is detected meanwhile");
                }
            }
        }
    }
}
