//! Reads the facts for repairs, in a thread of its own: all of /proc is read, and engines and systemd may be
//! slow. The thread is created at the start, because a host that is full of processes refuses one later.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::{Duration, SystemTime},
};

use mcp_guard_core::{
    diagnose::facts::{self, Facts, Source, Unreadable},
    id::{GuardId, Ticket},
};
use tokio::{sync::mpsc::UnboundedSender, time::timeout};

use crate::{
    engine::{EngineId, Engines},
    host::observer::Observer,
    requests::Requests,
    snapshot::Snapshot,
};

/// Longest time to read the host, and then to read each guard. Facts that are late are asked for again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A question for the facts of one guard.
pub(super) struct FactsQuestion {
    pub guard: GuardId,
    /// Returned with the answer.
    pub ticket: Ticket,
    pub container: Option<String>,
    /// Path of the cgroup.
    pub cgroup: String,
    /// Each engine's description of itself.
    pub described: BTreeMap<EngineId, facts::EngineFacts>,
}

/// An answer to a question about limits.
pub(super) enum News {
    Facts {
        guard: GuardId,
        ticket: Ticket,
        facts: Result<Box<Facts>, String>,
    },
    /// Ids of all containers of an engine, running or not, as it listed them after this time.
    Listed(EngineId, Vec<String>, SystemTime),
}

/// The loop's handle of the thread. The thread is never joined: it changes nothing, and ends with the
/// program.
pub(super) struct FactsReader(mpsc::Sender<FactsQuestion>);

impl FactsReader {
    /// # Errors
    /// The thread or its runtime cannot be created.
    pub fn start(
        engines: Engines,
        requests: Requests,
        observer: Observer,
        news: UnboundedSender<News>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Bounded by the number of guards: each asks again only after it has its answer.
        let (asks, waiting) = mpsc::channel::<FactsQuestion>();
        std::thread::Builder::new().name("facts".to_owned()).spawn(move || {
            while let Ok(first) = waiting.recv() {
                let asks: Vec<FactsQuestion> =
                    std::iter::once(first).chain(waiting.try_iter()).collect();
                let whose: Vec<_> = asks.iter().map(|ask| (ask.guard, ask.ticket)).collect();
                let answered = catch_unwind(AssertUnwindSafe(|| {
                    runtime.block_on(answer(&engines, &requests, &observer, asks, &news));
                }));
                // A guard that has its answer already ignores this ticket.
                for (guard, ticket) in whose.into_iter().filter(|_| answered.is_err()) {
                    let facts = Err("reading the facts panicked".to_owned());
                    let _ = news.send(News::Facts { guard, ticket, facts });
                }
            }
        })?;
        Ok(Self(asks))
    }

    /// Sends the question. Returns false if the thread is gone.
    pub fn ask(&self, ask: FactsQuestion) -> bool {
        self.0.send(ask).is_ok()
    }
}

/// Reads the host once and answers all questions from it.
async fn answer(
    engines: &Engines,
    requests: &Requests,
    observer: &Observer,
    asks: Vec<FactsQuestion>,
    news: &UnboundedSender<News>,
) {
    let patience = PATIENCE + engines.timeout();
    let late = |_| format!("the facts could not be read within {patience:?}");
    let described = asks.last().map(|ask| ask.described.clone()).unwrap_or_default();
    let (requests, observer) = (requests.clone(), observer.clone());
    let taken = Snapshot::take_for_limits(engines.clone(), requests, described, observer);
    let taken = timeout(patience, taken).await;
    let taken = taken.map_err(late).and_then(|taken| taken.map_err(|error| error.to_string()));
    for ask in asks {
        let facts = match &taken {
            Ok(snapshot) => {
                let read = timeout(patience, of(snapshot, &ask)).await;
                read.map_err(late).and_then(|read| read)
            }
            Err(why) => Err(why.clone()),
        };
        let FactsQuestion { guard, ticket, .. } = ask;
        // The loop ends only with the program.
        let _ = news.send(News::Facts { guard, ticket, facts: facts.map(Box::new) });
    }
}

/// Reads the facts in the same way as `diagnose`.
async fn of(snapshot: &Snapshot, ask: &FactsQuestion) -> Result<Facts, String> {
    let Some(id) = &ask.container else { return Ok(snapshot.cgroup(&ask.cgroup).await) };
    match snapshot.container(id).await {
        Some(facts) if facts.container.is_some() => Ok(facts),
        Some(facts) => Err(silent(&facts.unreadable).unwrap_or_default()),
        // A cgroup named by its path may belong to a container of another engine or of none.
        None => match silent(snapshot.unreadable()) {
            Some(why) => Err(why),
            None => Ok(snapshot.cgroup(&ask.cgroup).await),
        },
    }
}

/// Returns why the engine could not be read.
fn silent(unreadable: &[Unreadable]) -> Option<String> {
    let of_engine =
        |what: &Source| matches!(what, Source::Engine | Source::Containers | Source::Inspect);
    unreadable.iter().find(|one| of_engine(&one.what)).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{diagnose::facts::SubjectKind, id::Tickets};

    use super::*;

    /// A cgroup that belongs to no unit and no container on any host.
    const NOWHERE: &str = "/mcp-guard-test-none";

    type Answered = (GuardId, Ticket, Result<Box<Facts>, String>);

    /// Asks once for each container, or for a plain cgroup, and returns the answers.
    fn read(engines: Engines, asked: Vec<Option<String>>) -> Vec<Answered> {
        let folder = tempfile::tempdir().unwrap();
        let (news, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let requests = Requests::new(folder.path());
        let reader = FactsReader::start(engines, requests, Observer::start(), news).unwrap();
        let mut tickets = Tickets::default();
        let mut expected = Vec::new();
        for (number, container) in (1..).zip(asked) {
            let (guard, ticket) = (GuardId(number), tickets.draw());
            let (cgroup, described) = (NOWHERE.to_owned(), BTreeMap::new());
            assert!(reader.ask(FactsQuestion { guard, ticket, container, cgroup, described }));
            expected.push((guard, ticket));
        }
        let mut read = || match answers.blocking_recv().unwrap() {
            News::Facts { guard, ticket, facts } => (guard, ticket, facts),
            News::Listed(..) => panic!("a list instead of facts"),
        };
        let found: Vec<_> = expected.iter().map(|_| read()).collect();
        let whose: Vec<_> = found.iter().map(|(guard, ticket, _)| (*guard, *ticket)).collect();
        assert_eq!(whose, expected, "each guard gets its answer");
        found
    }

    #[test]
    fn each_guard_gets_its_answer_and_a_silent_engine_is_an_error() {
        let id = "a".repeat(64);
        let away = Engines::at("/nowhere/docker.sock", Duration::from_secs(10));
        let read_with = read(away, vec![None, Some(id.clone())]);
        let [(_, _, Ok(plain)), (_, _, Err(why))] = &read_with[..] else { panic!("{read_with:?}") };
        assert_eq!(
            (&plain.target.kind, plain.target.cgroup.as_str()),
            (&SubjectKind::Cgroup, NOWHERE)
        );
        assert!(why.contains("engine"), "{why}");
        // Without any engine, only the cgroup can be read.
        let read_without = read(Engines::default(), vec![Some(id)]);
        let [(_, _, Ok(plain))] = &read_without[..] else { panic!("{read_without:?}") };
        assert_eq!(plain.target.kind, SubjectKind::Cgroup);
    }
}
