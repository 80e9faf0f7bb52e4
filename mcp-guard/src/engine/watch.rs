//! The containers of an engine as they come and change.

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
    events::{EngineEvent, EngineEvents},
    socket::Socket,
};

/// Between attempts to reach an engine that is away.
const RETRY: Duration = Duration::from_secs(2);
/// Questions at a time, so that a container about which the engine is silent holds up few others.
const AT_A_TIME: usize = 4;

type Inspected = Result<Option<Container>, Error>;

impl Socket {
    /// No event is needed to be right: after an error it begins again with all containers, and beside
    /// the events all are asked about again. Docker keeps 256 events for a slow reader.
    pub(super) async fn follow(&self, events: EngineEvents, again: Duration) {
        let mut away = false;
        while !events.is_closed() {
            match Stream::new(self, &events).follow(&mut away, again).await {
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
enum Heard {
    /// It was asked about anew.
    Anew,
    Paused(bool),
}

/// One stream of events; beside it, everything is asked about again and again.
struct Stream<'a> {
    engine: &'a Socket,
    events: &'a EngineEvents,
    /// What events told since the questions began whose answers come: those may be older.
    heard: HashMap<String, Heard>,
}

impl<'a> Stream<'a> {
    fn new(engine: &'a Socket, events: &'a EngineEvents) -> Self {
        Self { engine, events, heard: HashMap::new() }
    }

    async fn follow(mut self, away: &mut bool, again: Duration) -> Result<(), Error> {
        // Closed enums in bollard: an event of another type would end the stream. Beginning before
        // the list is read, so that a container which starts in between is in one of the two.
        let filters = HashMap::from([("type", vec!["container"])]);
        let since = seconds_since_1970().saturating_sub(1).to_string();
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let docker = self.engine.connect()?;
        let mut answers = ask(self.engine, self.engine.running().await?);
        if std::mem::take(away) {
            self.events.send(EngineEvent::Back).await;
        }
        let mut events = docker.events(Some(options));
        let (mut is_over, mut is_described) = (false, false);
        let mut next_look = Box::pin(sleep(again));
        let end = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.heed(event).await,
                    Some(Err(error)) => break Err(self.engine.refused(error)),
                    None => break Ok(()),
                },
                answer = answers.next(), if !is_over => match answer {
                    Some(Ok((id, answer))) => self.answered(id, answer).await,
                    Some(Err(error)) => break Err(error),
                    None => {
                        is_over = true;
                        next_look.set(sleep(again));
                        // Guards come first: this answer may take seconds.
                        if !std::mem::replace(&mut is_described, true) {
                            self.describe().await;
                        }
                    }
                },
                () = &mut next_look, if is_over => {
                    is_over = false;
                    self.heard.clear();
                    answers = look(self.engine);
                }
            }
        };
        // Whoever may not read events is told of containers all the same.
        while !is_described && let Some(Ok((id, answer))) = answers.next().await {
            self.answered(id, answer).await;
        }
        end
    }

    async fn heed(&mut self, event: EventMessage) {
        let Some(id) = event.actor.and_then(|actor| actor.id).filter(|id| is_container_id(id))
        else {
            return;
        };
        match event.action.as_deref() {
            Some("start" | "update") => {
                self.heard.insert(id.clone(), Heard::Anew);
                let answer = self.engine.running_container(&id).await;
                self.tell(&id, answer).await;
            }
            Some(action @ ("pause" | "unpause")) => {
                let paused = action == "pause";
                let heard = self.heard.entry(id.clone()).or_insert(Heard::Paused(paused));
                if let Heard::Paused(known) = heard {
                    *known = paused;
                }
                self.events.send(EngineEvent::Paused { id, paused }).await;
            }
            _ => {}
        }
    }

    async fn answered(&self, id: String, mut answer: Inspected) {
        match (self.heard.get(&id), &mut answer) {
            (Some(Heard::Anew), _) => return,
            (Some(Heard::Paused(paused)), Ok(Some(container))) => container.paused = *paused,
            _ => {}
        }
        self.tell(&id, answer).await;
    }

    async fn describe(&self) {
        if let Ok(described) = self.engine.describe().await {
            self.events.send(EngineEvent::Described(Box::new(described))).await;
        }
    }

    async fn tell(&self, id: &str, answer: Inspected) {
        match answer {
            Ok(Some(container)) => {
                self.events.send(EngineEvent::Up(container)).await;
            }
            Ok(None) => {}
            // Gone between the list and the question.
            Err(error) if error.is_unknown_container() => {}
            Err(error) => {
                tracing::warn!(id, %error, "container not inspected, it is asked about again")
            }
        }
    }
}

/// What the engine says of each container that runs.
fn look(engine: &Socket) -> BoxStream<'_, Result<(String, Inspected), Error>> {
    let listed = stream::once(engine.running());
    listed.map_ok(|running| ask(engine, running)).try_flatten().boxed()
}

/// What it says of each of these, as it says it.
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

/// The engine's clock is the host's.
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
    use crate::engine::EngineId;

    #[tokio::test]
    async fn an_event_is_newer_than_the_answer_to_an_older_question() {
        let engine = Socket::new("/nonexistent", Duration::from_secs(10));
        let (to, mut told) = mpsc::channel(8);
        let events = EngineEvents::new(EngineId::default(), to);
        let mut stream = Stream::new(&engine, &events);
        let container = Container {
            id: "0".repeat(64),
            name: "one".to_owned(),
            image: String::new(),
            labels: BTreeMap::new(),
            init: Pid(1),
            paused: false,
            limit: None,
        };
        let answer = || Ok(Some(container.clone()));
        let id = || container.id.clone();
        stream.answered(id(), answer()).await;
        assert!(matches!(told.try_recv(), Ok((_, EngineEvent::Up(told))) if !told.paused));
        for (action, paused) in [("pause", true), ("unpause", false), ("pause", true)] {
            stream.heed(event(&container.id, action)).await;
            let Ok((_, EngineEvent::Paused { paused: told, .. })) = told.try_recv() else {
                panic!("{action}")
            };
            assert_eq!(told, paused);
        }
        stream.answered(id(), answer()).await;
        assert!(
            matches!(told.try_recv(), Ok((_, EngineEvent::Up(told))) if told.paused),
            "it is, by now"
        );
        stream.heed(event(&container.id, "update")).await;
        stream.answered(id(), answer()).await;
        assert!(told.try_recv().is_err(), "the limit in it may be an old one");
    }

    fn event(id: &str, action: &str) -> EventMessage {
        let actor = Some(EventActor { id: Some(id.to_owned()), attributes: None });
        EventMessage { actor, action: Some(action.to_owned()), ..EventMessage::default() }
    }
}
