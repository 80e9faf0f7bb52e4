//! All engines of this host, and the requests that go to all of them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use mcp_guard_core::target::Candidate;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Engine,
    container::Container,
    error::Error,
    events::{EngineEvent, EngineEvents, EngineId, Rounds},
    socket::Socket,
    speaker::Speaker,
};
use crate::host::cgroup::Cgroup;

/// How long engines may take to report whether a container is paused before its hold is released.
/// An engine that hangs must not keep a container frozen.
pub const LAST_WORD: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
pub struct Engines {
    all: Arc<[Arc<dyn Engine>]>,
    timeout: Duration,
    rounds: Rounds,
}

/// The containers of all engines.
#[derive(Debug, Default)]
pub struct Candidates {
    pub found: Vec<(EngineId, Candidate)>,
    /// One error for each engine that does not answer. Each names its engine.
    pub errors: Vec<Error>,
}

/// The paused containers of all engines.
#[derive(Debug)]
pub struct Paused(Vec<PausedSaid>);

/// An engine's answer about its paused containers.
#[derive(Debug)]
struct PausedSaid {
    /// `None` if that is not known.
    by: Option<Speaker>,
    /// `None` if it did not answer.
    ids: Option<BTreeSet<String>>,
}

impl Paused {
    /// Whether the container of this cgroup is paused. `known`: what was known before. It holds if an
    /// engine that may have the container did not answer.
    #[must_use]
    pub fn includes(&self, container: Option<&str>, cgroup: &Cgroup, known: bool) -> bool {
        let says = |id: &str, PausedSaid { by, ids }: &PausedSaid| match (by, ids) {
            (Some(by), _) if !by.may_speak_for(cgroup) => false,
            (Some(_), Some(ids)) => ids.contains(id),
            (Some(_), None) | (None, _) => known,
        };
        container.is_some_and(|id| self.0.iter().any(|said| says(id, said)))
    }
}

impl Engines {
    /// Creates the engines that the command line names. No other code decides which engines there
    /// are.
    #[must_use]
    pub fn at(socket: &str, timeout: Duration) -> Self {
        Self {
            all: Arc::new([Arc::new(Socket::new(socket, timeout))]),
            timeout,
            rounds: Rounds::default(),
        }
    }

    /// The time limit for one answer of one engine.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (EngineId, &dyn Engine)> {
        self.all.iter().enumerate().map(|(at, engine)| (EngineId(at), &**engine))
    }

    #[must_use]
    pub fn get(&self, id: EngineId) -> Option<Arc<dyn Engine>> {
        self.all.get(id.0).cloned()
    }

    /// Lists every container of every engine, running or not.
    pub async fn candidates(&self) -> Candidates {
        let mut all = Candidates::default();
        let asked = self.iter().map(|(id, engine)| async move { (id, engine.candidates().await) });
        for (id, answer) in join_all(asked).await {
            match answer {
                Ok(found) => all.found.extend(found.into_iter().map(|one| (id, one))),
                Err(error) => all.errors.push(error),
            }
        }
        all
    }

    /// Describes a container of any engine, with whose engine it is. `None` if it does not run.
    ///
    /// # Errors
    /// If no engine knows it, or if an engine that may have it does not answer.
    pub async fn inspect(&self, id: &str) -> Result<Option<(Speaker, Container)>, Error> {
        match self.find(id).await? {
            (engine, Some(container)) => Ok(Some((engine.speaker().await?, container))),
            (_, None) => Ok(None),
        }
    }

    /// Asks all engines at the same time which containers are paused. Takes at most [`LAST_WORD`],
    /// however many containers are asked about.
    pub async fn paused(&self) -> Paused {
        let ask = async |engine: &dyn Engine| {
            let both = async { tokio::join!(in_time(engine.speaker()), in_time(engine.paused())) };
            let (by, ids) = both.await;
            PausedSaid { by, ids: ids.map(|ids| ids.into_iter().collect()) }
        };
        Paused(join_all(self.iter().map(|(_, engine)| ask(engine))).await)
    }

    /// Has the container's engine store a limit and apply it.
    ///
    /// # Errors
    /// If no engine has the container, or its engine refuses.
    pub async fn update_limit(&self, id: &str, limit: u64) -> Result<(), Error> {
        self.engine_of(id).await?.update_limit(id, limit).await
    }

    /// Has the container's engine stop it.
    ///
    /// # Errors
    /// See [`Engines::update_limit`].
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        self.engine_of(id).await?.stop(id).await
    }

    /// Starts a task for each engine that reports its containers until the receiver is dropped.
    pub fn watch(&self, to: &mpsc::Sender<(EngineId, EngineEvent)>, again: Duration) {
        for (id, engine) in self.all.iter().enumerate() {
            let (engine, events) =
                (Arc::clone(engine), EngineEvents::new(EngineId(id), to.clone()));
            let rounds = self.rounds.every(again);
            tokio::spawn(async move { engine.watch(events, rounds).await });
        }
    }

    /// Has all containers reported again soon.
    pub fn ask_again(&self) {
        self.rounds.ask();
    }

    /// Returns the engine that has the container. A single engine is not asked first: it rejects an
    /// order for a container that it does not have.
    async fn engine_of(&self, id: &str) -> Result<&dyn Engine, Error> {
        match &*self.all {
            [only] => Ok(&**only),
            _ => Ok(self.find(id).await?.0),
        }
    }

    /// Asks all engines at the same time. The container belongs to the first one that reports it as
    /// running.
    async fn find(&self, id: &str) -> Result<(&dyn Engine, Option<Container>), Error> {
        let asked =
            self.iter().map(|(_, engine)| async move { (engine, engine.inspect(id).await) });
        let mut answers: FuturesUnordered<_> = asked.collect();
        let (mut stopped, mut failed) = (None, None);
        while let Some((engine, answer)) = answers.next().await {
            match answer {
                Ok(Some(container)) => return Ok((engine, Some(container))),
                Ok(None) => stopped = Some(engine),
                // An engine that did not answer may have the container, so its error takes
                // precedence.
                Err(error) if error.is_unknown_container() && failed.is_some() => {}
                Err(error) => failed = Some(error),
            }
        }
        stopped.map(|engine| (engine, None)).ok_or(failed.unwrap_or(Error::NoEngine))
    }
}

/// Returns an answer that comes within [`LAST_WORD`] and is no error.
async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Option<T> {
    timeout(LAST_WORD, answer).await.ok()?.ok()
}

#[cfg(test)]
mod tests;
