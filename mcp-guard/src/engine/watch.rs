//! The containers of an engine as they come and change.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    errors::Error as Bollard, models::EventMessage, query_parameters::EventsOptionsBuilder,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use mcp_guard_core::container::is_container_id;
use tokio::{sync::mpsc, time::sleep};

use super::{Change, Container, Engine, Error};

/// Between attempts to reach an engine that is away.
const RETRY: Duration = Duration::from_secs(2);

type Answer = Result<Option<Container>, Error>;

impl Engine {
    /// Tells of every running container, then of changes, for as long as anybody listens. After an
    /// error it begins again with all of them: no event is needed to be right. `again`: after this
    /// time a container is asked about once more for which there was no answer.
    pub async fn watch(self, changes: mpsc::Sender<Change>, again: Duration) {
        let mut away = false;
        while !changes.is_closed() {
            match Stream::new(&self, &changes, again).follow(&mut away).await {
                Ok(()) => tracing::debug!("Docker ended its event stream"),
                Err(error) if !away => {
                    away = true;
                    let _ = changes.send(Change::Away(error.to_string())).await;
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
        }
    }
}

/// One stream of events, and what is asked because of them.
struct Stream<'a> {
    engine: &'a Engine,
    changes: &'a mpsc::Sender<Change>,
    again: Duration,
    /// Containers for which there was no answer.
    unanswered: BTreeSet<String>,
    /// The next question about each of them: it waits beside the events, which it must not hold up.
    questions: FuturesUnordered<BoxFuture<'a, (String, Answer)>>,
}

impl<'a> Stream<'a> {
    fn new(engine: &'a Engine, changes: &'a mpsc::Sender<Change>, again: Duration) -> Self {
        let (unanswered, questions) = (BTreeSet::new(), FuturesUnordered::new());
        Self { engine, changes, again, unanswered, questions }
    }

    async fn follow(mut self, away: &mut bool) -> Result<(), Error> {
        // Closed enums in bollard: an event of another type would end the stream. Beginning before
        // the list is read, so that a container which starts in between is in one of the two.
        let filters = HashMap::from([("type", vec!["container"])]);
        let since = seconds_since_1970().saturating_sub(1).to_string();
        let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
        let docker = self.engine.connect()?;
        for candidate in self.engine.running().await? {
            self.ask(candidate.id).await;
        }
        if std::mem::take(away) {
            let _ = self.changes.send(Change::Back).await;
        }
        if let Ok(described) = self.engine.describe().await {
            let _ = self.changes.send(Change::Described(Box::new(described))).await;
        }
        let mut events = docker.events(Some(options));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.heed(event?).await,
                    None => return Ok(()),
                },
                Some((id, answer)) = self.questions.next() => {
                    self.unanswered.remove(&id);
                    self.tell(id, answer).await;
                }
            }
        }
    }

    async fn heed(&mut self, event: EventMessage) {
        let Some(id) = event.actor.and_then(|actor| actor.id).filter(|id| is_container_id(id))
        else {
            return;
        };
        match event.action.as_deref() {
            Some("start" | "update") => self.ask(id).await,
            Some(action @ ("pause" | "unpause")) => {
                let paused = action == "pause";
                let _ = self.changes.send(Change::Paused { id, paused }).await;
            }
            _ => {}
        }
    }

    async fn ask(&mut self, id: String) {
        let answer = self.engine.inspect(&id).await;
        self.tell(id, answer).await;
    }

    async fn tell(&mut self, id: String, answer: Answer) {
        match answer {
            Ok(Some(container)) => {
                let _ = self.changes.send(Change::Up(container)).await;
            }
            Ok(None) => {}
            // Gone between the list and the question.
            Err(Error::Refused(Bollard::DockerResponseServerError {
                status_code: 404, ..
            })) => {}
            Err(error) => {
                tracing::warn!(id, %error, "container not inspected, so not guarded yet");
                self.ask_again(id);
            }
        }
    }

    fn ask_again(&mut self, id: String) {
        if !self.unanswered.insert(id.clone()) {
            return;
        }
        let (engine, again) = (self.engine, self.again);
        self.questions.push(Box::pin(async move {
            sleep(again).await;
            let answer = engine.inspect(&id).await;
            (id, answer)
        }));
    }
}

/// The engine's clock is the host's.
fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
