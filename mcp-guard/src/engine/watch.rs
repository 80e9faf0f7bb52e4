//! Watches the containers of an engine.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use mcp_guard_core::{container::is_container_id, target::Candidate};
use tokio::time::sleep;

use super::{
    Engine as _,
    container::Container,
    error::Error,
    events::{EngineEvent, EngineEvents, Rounds},
    socket::Socket,
    speaker::Speaker,
};

/// The pause between attempts to reach an engine that is away.
const RETRY: Duration = Duration::from_secs(2);
/// Parallel requests, so that one container without an answer delays few others.
const AT_A_TIME: usize = 4;

type Inspected = Result<Option<Container>, Error>;

impl Socket {
    /// Reports containers until the receiver is dropped. It does not rely on events: after an error
    /// it starts again with all containers, and it also asks about all of them periodically. Docker
    /// keeps only 256 events for a slow reader.
    pub(super) async fn follow(&self, events: EngineEvents, mut rounds: Rounds) {
        let mut away = false;
        while !events.is_closed() {
            let followed = async {
                // Before anything that the engine says.
                let by = self.speaker().await?;
                Stream::new(self, by, &events).follow(&mut away, &mut rounds).await
            };
            match followed.await {
                Ok(()) => tracing::debug!(engine = self.name(), "the stream of events ended"),
                Err(error) if !away => {
                    away = true;
                    events.send(EngineEvent::Away(error.to_string())).await;
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
        }
    }
}

#[derive(Clone, Copy)]
enum Newer {
    /// The container was inspected after an event.
    Inspected,
    Paused(bool),
}

/// One stream of events, and beside it periodic requests about all containers.
struct Stream<'a> {
    engine: &'a Socket,
    by: Speaker,
    events: &'a EngineEvents,
    /// The containers with events since the current requests began. The answers to those requests
    /// may be older.
    newer: HashMap<String, Newer>,
}

impl<'a> Stream<'a> {
    fn new(engine: &'a Socket, by: Speaker, events: &'a EngineEvents) -> Self {
        Self { engine, by, events, newer: HashMap::new() }
    }

    async fn follow(mut self, away: &mut bool, rounds: &mut Rounds) -> Result<(), Error> {
        // This filter is needed because bollard's enums are closed: an event of another type would
        // end the stream. The stream begins before the list is read, so that a container which
        // starts in between is in one of the two.
        let filters = HashMap::from([("type", vec!["container"])]);
        let since = seconds_since_1970().saturating_sub(1).to_string();
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let docker = self.engine.connect()?;
        let mut answers = ask(self.engine, self.engine.running().await?);
        if std::mem::take(away) {
            self.events.send(EngineEvent::Back).await;
        }
        let mut events = docker.events(Some(options));
        let (mut all_answered, mut is_described) = (false, false);
        let mut next_round = rounds.interval();
        let end = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.take_event(event).await,
                    Some(Err(error)) => break Err(self.engine.refused(error)),
                    None => break Ok(()),
                },
                answer = answers.next(), if !all_answered => match answer {
                    Some(Ok((id, answer))) => self.answered(id, answer).await,
                    Some(Err(error)) => break Err(error),
                    None => {
                        all_answered = true;
                        next_round = rounds.interval();
                        // The guards come first, because this answer may take seconds.
                        if !std::mem::replace(&mut is_described, true) {
                            self.describe().await;
                        }
                    }
                },
                () = rounds.due(&mut next_round), if all_answered => {
                    all_answered = false;
                    self.newer.clear();
                    answers = ask_all(self.engine);
                }
            }
        };
        // Without access to events, the containers of the first list are still reported.
        while !is_described && let Some(Ok((id, answer))) = answers.next().await {
            self.answered(id, answer).await;
        }
        end
    }

    async fn take_event(&mut self, event: EventMessage) {
        let Some(id) = event.actor.and_then(|actor| actor.id).filter(|id| is_container_id(id))
        else {
            return;
        };
        match event.action.as_deref() {
            Some("start" | "update") => {
                self.newer.insert(id.clone(), Newer::Inspected);
                let answer = self.engine.running_container(&id).await;
                self.report(&id, answer).await;
            }
            Some(action @ ("pause" | "unpause")) => {
                let paused = action == "pause";
                let newer = self.newer.entry(id.clone()).or_insert(Newer::Paused(paused));
                if let Newer::Paused(known) = newer {
                    *known = paused;
                }
                self.events.send(EngineEvent::Paused { by: self.by, id, paused }).await;
            }
            _ => {}
        }
    }

    async fn answered(&self, id: String, mut answer: Inspected) {
        match (self.newer.get(&id), &mut answer) {
            (Some(Newer::Inspected), _) => return,
            (Some(Newer::Paused(paused)), Ok(Some(container))) => container.paused = *paused,
            _ => {}
        }
        self.report(&id, answer).await;
    }

    async fn describe(&self) {
        if let Ok(described) = self.engine.describe().await {
            self.events.send(EngineEvent::Described(Box::new(described))).await;
        }
    }

    async fn report(&self, id: &str, answer: Inspected) {
        match answer {
            Ok(Some(container)) => {
                self.events.send(EngineEvent::Up { by: self.by, container }).await;
            }
            Ok(None) => {}
            // It was removed between the list and the request.
            Err(error) if error.is_unknown_container() => {}
            Err(error) => {
                tracing::warn!(id, %error, "cannot inspect the container; it is tried again later")
            }
        }
    }
}

/// Lists the running containers, and inspects each.
fn ask_all(engine: &Socket) -> BoxStream<'_, Result<(String, Inspected), Error>> {
    let listed = stream::once(engine.running());
    listed.map_ok(|running| ask(engine, running)).try_flatten().boxed()
}

/// Inspects each of these containers, and yields the answers as they arrive.
fn ask(
    engine: &Socket,
    running: Vec<Candidate>,
) -> BoxStream<'_, Result<(String, Inspected), Error>> {
    let ask = move |Candidate { id, .. }| async move {
        let answer = engine.running_container(&id).await;
        Ok((id, answer))
    };
    stream::iter(running).map(ask).buffer_unordered(AT_A_TIME).boxed()
}

/// Returns the time for the engine, whose clock is the host's.
fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bollard::models::EventActor;

    use mcp_guard_core::id::Pid;
    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::{EngineId, StdinConfig};

    #[tokio::test]
    async fn an_event_overrides_the_answer_to_an_older_request() {
        let engine = Socket::new("/nonexistent", Duration::from_secs(10));
        let (to, mut reported) = mpsc::channel(8);
        let events = EngineEvents::new(EngineId::default(), to);
        let mut stream = Stream::new(&engine, Speaker::User(0), &events);
        let container = Container {
            id: "0".repeat(64),
            name: "one".to_owned(),
            image: String::new(),
            image_id: String::new(),
            stdin: StdinConfig::default(),
            labels: BTreeMap::new(),
            init: Pid(1),
            paused: false,
            limit: None,
        };
        let answer = || Ok(Some(container.clone()));
        let id = || container.id.clone();
        stream.answered(id(), answer()).await;
        assert!(
            matches!(reported.try_recv(), Ok((_, EngineEvent::Up { container, .. })) if !container.paused)
        );
        for (action, paused) in [("pause", true), ("unpause", false), ("pause", true)] {
            stream.take_event(event(&container.id, action)).await;
            let Ok((_, EngineEvent::Paused { paused: reported, .. })) = reported.try_recv() else {
                panic!("{action}")
            };
            assert_eq!(reported, paused);
        }
        stream.answered(id(), answer()).await;
        assert!(
            matches!(reported.try_recv(), Ok((_, EngineEvent::Up { container, .. })) if container.paused),
            "the event is newer"
        );
        stream.take_event(event(&container.id, "update")).await;
        stream.answered(id(), answer()).await;
        assert!(reported.try_recv().is_err(), "its limit may be outdated");
    }

    fn event(id: &str, action: &str) -> EventMessage {
        let actor = Some(EventActor { id: Some(id.to_owned()), attributes: None });
        EventMessage { actor, action: Some(action.to_owned()), ..EventMessage::default() }
    }
}
