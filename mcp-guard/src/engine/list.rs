//! All engines of this host, and what is asked of all of them.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use mcp_guard_core::target::Candidate;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Engine,
    container::Container,
    error::Error,
    events::{EngineEvent, EngineEvents, EngineId},
    socket::Socket,
};

/// How long engines may take to say what is paused before something is given back: one that hangs must
/// not keep a container frozen.
pub const LAST_WORD: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
pub struct Engines {
    all: Arc<[Arc<dyn Engine>]>,
    timeout: Duration,
}

/// What all engines list.
#[derive(Debug, Default)]
pub struct Candidates {
    pub found: Vec<(EngineId, Candidate)>,
    /// Of those that do not answer; each names its engine.
    pub errors: Vec<Error>,
}

impl Engines {
    /// The engines of a command line. This is the one place that says which there are.
    #[must_use]
    pub fn at(socket: &str, timeout: Duration) -> Self {
        Self { all: Arc::new([Arc::new(Socket::new(socket, timeout))]), timeout }
    }

    /// How long each may take for one answer.
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

    /// Every container of every engine, running or not.
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

    /// A container of any engine; None where it does not run.
    ///
    /// # Errors
    /// None knows it, or one that might does not answer.
    pub async fn inspect(&self, id: &str) -> Result<Option<Container>, Error> {
        Ok(self.find(id).await?.1)
    }

    /// False where no engine says so in time.
    pub async fn is_paused(&self, container: Option<&str>) -> bool {
        let Some(id) = container else { return false };
        let answer = timeout(LAST_WORD, self.inspect(id)).await;
        matches!(answer, Ok(Ok(Some(container))) if container.paused)
    }

    /// Stores a limit where the container is.
    ///
    /// # Errors
    /// No engine has the container, or its engine refuses.
    pub async fn update_limit(&self, id: &str, limit: u64) -> Result<(), Error> {
        self.engine_of(id).await?.update_limit(id, limit).await
    }

    /// Stops a container where it is.
    ///
    /// # Errors
    /// As for [`Engines::update_limit`].
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        self.engine_of(id).await?.stop(id).await
    }

    /// Every engine tells of its containers for as long as anybody listens.
    pub fn watch(&self, to: &mpsc::Sender<(EngineId, EngineEvent)>, again: Duration) {
        for (id, engine) in self.all.iter().enumerate() {
            let (engine, events) =
                (Arc::clone(engine), EngineEvents::new(EngineId(id), to.clone()));
            tokio::spawn(async move { engine.watch(events, again).await });
        }
    }

    /// The only engine need not be asked whether it has it: it says so when it gets the order.
    async fn engine_of(&self, id: &str) -> Result<&dyn Engine, Error> {
        match &*self.all {
            [only] => Ok(&**only),
            _ => Ok(self.find(id).await?.0),
        }
    }

    /// Asks all at the same time; whoever says that it runs has it.
    async fn find(&self, id: &str) -> Result<(&dyn Engine, Option<Container>), Error> {
        let asked =
            self.iter().map(|(_, engine)| async move { (engine, engine.inspect(id).await) });
        let mut answers: FuturesUnordered<_> = asked.collect();
        let (mut stopped, mut failed) = (None, None);
        while let Some((engine, answer)) = answers.next().await {
            match answer {
                Ok(Some(container)) => return Ok((engine, Some(container))),
                Ok(None) => stopped = Some(engine),
                // An engine that is silent may have it, so its error comes first.
                Err(error) if error.is_unknown_container() && failed.is_some() => {}
                Err(error) => failed = Some(error),
            }
        }
        stopped.map(|engine| (engine, None)).ok_or(failed.unwrap_or(Error::NoEngine))
    }
}

#[cfg(test)]
mod tests;
