//! Looks at the clients of containers, on a thread of its own: whether a container is guarded does not matter.

use std::{collections::BTreeMap, fmt::Display, io, sync::mpsc, thread, time::Duration};

use mcp_guard_core::{
    Time,
    diagnose::facts::EngineKind,
    effect::Input,
    escape::escape,
    evidence::{ClientsLook, InteractiveContainer},
    id::Ticks,
    redact,
    status::UnseenClients,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{Agent, lanes::Sighted};
use crate::{
    engine::{Container, EngineId, Speaker, StdinConfig},
    host::{
        clock,
        evidence::clients::{ClientsContainer, ClientsLooker, ServedBy},
        observer::Observer,
    },
};

/// Most containers of one engine that are looked at.
const MOST: usize = 1024;
/// A container that was not reported for this time is gone. Engines report containers every [`super::ASK_AGAIN`].
const GONE: Duration = Duration::from_secs(90);
/// A look that takes longer is reported. It takes milliseconds, and each of its waits has a deadline of seconds.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// Most characters kept of a name, an image or a label.
const MAX_TEXT: usize = 255;
/// Labels that name the server of a container: those of the gateway of Docker, and of ToolHive.
const LABELS: [&str; 2] = ["docker-mcp-name", "toolhive-name"];

/// The subject of one look.
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

pub(super) struct HerdLooker {
    containers: BTreeMap<EngineId, BTreeMap<String, Interactive>>,
    thread: mpsc::Sender<ToAsk>,
    looks: BTreeMap<EngineId, EngineLooks>,
    next_round: Time,
    is_full: bool,
}

impl HerdLooker {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(
        now: Time,
        observer: Observer,
        found: UnboundedSender<Sighted>,
    ) -> io::Result<Self> {
        let (thread, asked) = mpsc::channel::<ToAsk>();
        thread::Builder::new().name("attached".to_owned()).spawn(move || {
            let mut lookers: BTreeMap<EngineId, ClientsLooker> = BTreeMap::new();
            for ToAsk { engine, socket, served_by, containers } in asked {
                let looker =
                    lookers.entry(engine).or_insert_with(|| ClientsLooker::new(observer.clone()));
                let look = looker.look(&socket, served_by, containers);
                // The loop ends only with the program.
                let _ = found.send(Sighted::Clients(engine, look));
            }
        })?;
        Ok(Self::sending_to(now, thread))
    }

    fn sending_to(now: Time, thread: mpsc::Sender<ToAsk>) -> Self {
        let (containers, looks) = (BTreeMap::new(), BTreeMap::new());
        Self { containers, thread, looks, next_round: now, is_full: false }
    }

    /// Notes a container that runs.
    pub fn note(
        &mut self,
        now: Time,
        (engine, by): (EngineId, Speaker),
        container: &Container,
        observer: &Observer,
    ) {
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
        // One whose first process is gone has ended.
        let Some(init) = observer.place(container.init) else { return };
        let one = Interactive {
            container: described(container, init.start_ticks),
            stdin: container.stdin,
            seen: now,
        };
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

    /// Begins a look at an engine, unless one is under way. Returns the look if it is made already, because no
    /// container needs one.
    fn begin(
        &mut self,
        now: Time,
        engine: EngineId,
        socket: String,
        served_by: ServedBy,
    ) -> Option<ClientsLook> {
        let containers = self.of(now, engine, served_by);
        let looks = self.looks.entry(engine).or_insert(EngineLooks {
            under_way: None,
            last: now,
            failed: false,
        });
        if let Some(began) = looks.under_way {
            if now.since(began) >= LONGEST_LOOK {
                looks.fail(&socket, &"the look does not end");
            }
            return None;
        }
        if containers.is_empty() {
            (looks.last, looks.failed) = (now, false);
            return Some(ClientsLook { engine: socket, ..ClientsLook::default() });
        }
        match self.thread.send(ToAsk { engine, socket, served_by, containers }) {
            Ok(()) => looks.under_way = Some(now),
            Err(mpsc::SendError(ToAsk { socket, .. })) => {
                looks.fail(&socket, &"the thread that looks has ended; restart the agent");
            }
        }
        None
    }

    /// Takes the end of a look at an engine.
    fn end(
        &mut self,
        now: Time,
        engine: EngineId,
        socket: &str,
        look: io::Result<ClientsLook>,
    ) -> Option<ClientsLook> {
        let looks = self.looks.get_mut(&engine)?;
        looks.under_way = None;
        match look {
            Ok(look) => {
                (looks.last, looks.failed) = (now, false);
                Some(look)
            }
            Err(error) => {
                looks.fail(socket, &error);
                None
            }
        }
    }
}

fn described(container: &Container, start: Ticks) -> ClientsContainer {
    let text = |text: &str| escape(text.as_bytes(), MAX_TEXT);
    let masked = |value: &str| text(&redact::text(value));
    let label = |key: &&str| Some(format!("{key}={}", masked(container.labels.get(*key)?)));
    ClientsContainer {
        container: InteractiveContainer {
            id: container.id.clone(),
            name: masked(&container.name),
            image: masked(&container.image),
            image_id: text(&container.image_id),
            label: LABELS.iter().find_map(label),
        },
        init: (container.init, start),
    }
}

/// The looks at one engine.
struct EngineLooks {
    /// When the one under way began.
    under_way: Option<Time>,
    /// When the last one ended well, or else the first one began.
    last: Time,
    /// The last one failed or takes too long, and there was a warning.
    failed: bool,
}

impl EngineLooks {
    fn fail(&mut self, socket: &str, why: &dyn Display) {
        if !std::mem::replace(&mut self.failed, true) {
            let engine = escape(socket.as_bytes(), MAX_TEXT);
            tracing::warn!(engine, %why, "cannot look at the clients of containers; no herd is detected meanwhile");
        }
    }
}

impl Agent {
    /// Has the clients of all engines' containers looked at if that is due.
    pub(super) fn look_at_clients(&mut self) {
        let now = clock::now();
        if now < self.herd_looker.next_round {
            return;
        }
        self.herd_looker.next_round = now.after(self.core.policy().evidence.every);
        let engines: Vec<_> =
            self.engines.all.iter().map(|(id, one)| (id, one.socket().to_owned())).collect();
        for (engine, socket) in engines {
            let served_by = match self.engines.described.get(&engine).map(|one| one.kind) {
                Some(EngineKind::Docker) => ServedBy::Dockerd,
                Some(EngineKind::Podman) => ServedBy::Conmon,
                None => continue,
            };
            if let Some(look) = self.herd_looker.begin(now, engine, socket, served_by) {
                self.step(Input::Clients(look));
            }
        }
    }

    /// Takes what the thread has found.
    pub(super) fn take_clients(&mut self, engine: EngineId, look: io::Result<ClientsLook>) {
        let socket = self.engines.all.iter().find(|(id, _)| *id == engine);
        let socket = socket.map_or_else(String::new, |(_, one)| one.socket().to_owned());
        if let Some(look) = self.herd_looker.end(clock::now(), engine, &socket, look) {
            self.step(Input::Clients(look));
        }
    }

    /// Returns the engines whose containers could not be looked at the last time.
    pub(super) fn clients_unseen(&self, now: Time) -> Vec<UnseenClients> {
        let engines = self.engines.all.iter();
        let unseen = engines.filter_map(|(id, one)| {
            let looks = self.herd_looker.looks.get(&id).filter(|looks| looks.failed)?;
            let seconds = now.since(looks.last).as_secs();
            Some(UnseenClients { engine: one.socket().to_owned(), seconds })
        });
        unseen.collect()
    }
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::id::Pid;

    use super::*;

    /// Its thread takes looks and ends none.
    fn looker() -> (HerdLooker, mpsc::Receiver<ToAsk>) {
        let (thread, asked) = mpsc::channel();
        let mut looker = HerdLooker::sending_to(Time(0), thread);
        let one = Interactive {
            container: ClientsContainer {
                container: InteractiveContainer::default(),
                init: (Pid(1), Ticks(1)),
            },
            stdin: StdinConfig { is_open: true, is_once: true, is_terminal: false },
            seen: Time(0),
        };
        looker.containers.insert(EngineId::default(), BTreeMap::from([(String::new(), one)]));
        (looker, asked)
    }

    fn begin(looker: &mut HerdLooker, at: Duration) -> Option<ClientsLook> {
        looker.begin(Time(0).after(at), EngineId::default(), "socket".to_owned(), ServedBy::Dockerd)
    }

    #[test]
    fn secrets_of_a_container_are_masked_and_its_image_stays_known() {
        let token = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
        let image_id = format!("sha256:{}", "3f2504e04f8941d3".repeat(4));
        let container = Container {
            id: String::new(),
            name: format!("mcp-{token}\n"),
            image: format!("https://u:{token}@h.example/mcp/time"),
            image_id: image_id.clone(),
            labels: BTreeMap::from([(LABELS[0].to_owned(), format!("time token={token}"))]),
            stdin: StdinConfig::default(),
            init: Pid(1),
            paused: false,
            limit: None,
        };
        let InteractiveContainer { id: _, name, image, image_id: known, label } =
            described(&container, Ticks(1)).container;
        assert_eq!(known, image_id);
        let shown = format!("{name} {image} {}", label.unwrap());
        assert!(!shown.contains(token) && !shown.contains('\n'), "{shown}");
        assert!(shown.contains("h.example/mcp/time") && shown.contains("=time"), "{shown}");
    }

    #[test]
    fn a_look_that_does_not_end_in_time_has_failed_until_it_ends() {
        let (mut looker, asked) = looker();
        assert_eq!(begin(&mut looker, Duration::ZERO), None);
        assert_eq!(begin(&mut looker, LONGEST_LOOK - Duration::from_secs(1)), None);
        assert!(!looker.looks[&EngineId::default()].failed);
        assert_eq!(begin(&mut looker, LONGEST_LOOK), None);
        assert!(looker.looks[&EngineId::default()].failed);
        assert_eq!(asked.try_iter().count(), 1, "one at a time");
        let look = ClientsLook::default();
        let end = Time(0).after(LONGEST_LOOK);
        assert_eq!(looker.end(end, EngineId::default(), "socket", Ok(look.clone())), Some(look));
        assert!(!looker.looks[&EngineId::default()].failed);
        assert_eq!(begin(&mut looker, LONGEST_LOOK), None);
        assert_eq!(asked.try_iter().count(), 1);
    }

    #[test]
    fn a_look_that_fails_or_cannot_begin_leaves_the_time_of_the_last_one() {
        let (mut looker, asked) = looker();
        begin(&mut looker, Duration::from_secs(1));
        let failed = Err(io::ErrorKind::TimedOut.into());
        assert_eq!(
            looker.end(Time(0).after(LONGEST_LOOK), EngineId::default(), "socket", failed),
            None
        );
        let looks = &looker.looks[&EngineId::default()];
        assert_eq!((looks.failed, looks.last), (true, Time(0).after(Duration::from_secs(1))));
        let ended = Ok(ClientsLook::default());
        begin(&mut looker, Duration::from_secs(2));
        looker.end(Time(0).after(Duration::from_secs(2)), EngineId::default(), "socket", ended);
        assert!(!looker.looks[&EngineId::default()].failed);
        drop(asked);
        begin(&mut looker, Duration::from_secs(3));
        assert!(looker.looks[&EngineId::default()].failed, "its thread has ended");
    }
}
