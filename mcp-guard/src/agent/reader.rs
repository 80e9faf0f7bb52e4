//! Reads the facts for repairs. It reads all of /proc, and engines and systemd take their time: so one
//! thread of its own, made at the start, because a host that is full of processes gives none later.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Duration,
};

use mcp_guard_core::{
    diagnose::facts::{self, Facts, Source, Unreadable},
    effect::GuardId,
};
use tokio::{sync::mpsc::UnboundedSender, time::timeout};

use super::limits::News;
use crate::{
    engine::{EngineId, Engines},
    host::observer::Observer,
    snapshot::Snapshot,
    wanted::Limits,
};

/// For the host, and then for each guard; what is not read by then is asked for again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose facts are wanted.
pub(super) struct Ask {
    pub guard: GuardId,
    /// Comes back with the answer.
    pub number: u64,
    pub container: Option<String>,
    /// Its path.
    pub cgroup: String,
    /// What each engine said of itself.
    pub described: BTreeMap<EngineId, facts::Engine>,
}

/// The thread's end that the loop holds. Nobody waits for the thread: it changes nothing, and ends with
/// the program.
pub(super) struct Reader(mpsc::Sender<Ask>);

impl Reader {
    /// # Errors
    /// There is no room for a thread.
    pub fn start(
        engines: Engines,
        limits: Limits,
        observer: Observer,
        news: UnboundedSender<News>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Bounded by the guards: each asks again only when it has its answer.
        let (asks, waiting) = mpsc::channel::<Ask>();
        std::thread::Builder::new().name("facts".to_owned()).spawn(move || {
            while let Ok(first) = waiting.recv() {
                let asks: Vec<Ask> = std::iter::once(first).chain(waiting.try_iter()).collect();
                let whose: Vec<_> = asks.iter().map(|ask| (ask.guard, ask.number)).collect();
                let answered = catch_unwind(AssertUnwindSafe(|| {
                    runtime.block_on(answer(&engines, &limits, &observer, asks, &news));
                }));
                // Whoever has an answer already waits for none of this number.
                for (guard, number) in whose.into_iter().filter(|_| answered.is_err()) {
                    let facts = Err("reading them panicked".to_owned());
                    let _ = news.send(News::Facts { guard, number, facts });
                }
            }
        })?;
        Ok(Self(asks))
    }

    /// False where the thread is gone.
    pub fn ask(&self, ask: Ask) -> bool {
        self.0.send(ask).is_ok()
    }
}

/// One look at the host for all of them.
async fn answer(
    engines: &Engines,
    limits: &Limits,
    observer: &Observer,
    asks: Vec<Ask>,
    news: &UnboundedSender<News>,
) {
    let patience = PATIENCE + engines.timeout();
    let late = |_| format!("not read within {patience:?}");
    let described = asks.last().map(|ask| ask.described.clone()).unwrap_or_default();
    let (limits, observer) = (limits.clone(), observer.clone());
    let taken = Snapshot::take_for_limits(engines.clone(), limits, described, observer);
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
        let Ask { guard, number, .. } = ask;
        // The loop is gone only when the program ends.
        let _ = news.send(News::Facts { guard, number, facts: facts.map(Box::new) });
    }
}

/// As `diagnose` reads them.
async fn of(snapshot: &Snapshot, ask: &Ask) -> Result<Facts, String> {
    let Some(id) = &ask.container else { return Ok(snapshot.cgroup(&ask.cgroup).await) };
    match snapshot.container(id).await {
        Some(facts) if facts.container.is_some() => Ok(facts),
        Some(facts) => Err(silent(&facts.unreadable).unwrap_or_default()),
        // A cgroup may be named by its path, and be of a container of another engine or of none.
        None => match silent(snapshot.unreadable()) {
            Some(why) => Err(why),
            None => Ok(snapshot.cgroup(&ask.cgroup).await),
        },
    }
}

/// Why the engine's word is not known.
fn silent(unreadable: &[Unreadable]) -> Option<String> {
    let of_engine =
        |what: &Source| matches!(what, Source::Engine | Source::Containers | Source::Inspect);
    unreadable.iter().find(|one| of_engine(&one.what)).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::diagnose::facts::SubjectKind;

    use super::*;

    /// A cgroup that no unit and no container has; wherever this runs.
    const NOWHERE: &str = "/mcp-guard-test-none";

    fn ask(guard: GuardId, container: Option<String>) -> Ask {
        let (number, cgroup) = (u64::from(guard) + 100, NOWHERE.to_owned());
        Ask { guard, number, container, cgroup, described: BTreeMap::new() }
    }

    fn read(engines: Engines, asks: Vec<Ask>) -> Vec<(GuardId, u64, Result<Box<Facts>, String>)> {
        let folder = tempfile::tempdir().unwrap();
        let (news, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let reader =
            Reader::start(engines, Limits::new(folder.path()), Observer::start(), news).unwrap();
        let count = asks.len();
        assert!(asks.into_iter().all(|ask| reader.ask(ask)));
        let mut read = || match answers.blocking_recv().unwrap() {
            News::Facts { guard, number, facts } => (guard, number, facts),
            News::Written(..) | News::Listed(..) => panic!("no facts"),
        };
        (0..count).map(|_| read()).collect()
    }

    #[test]
    fn each_gets_its_answer_and_an_engine_that_is_silent_is_not_an_answer() {
        let id = "a".repeat(64);
        let away = Engines::at("/nowhere/docker.sock", Duration::from_secs(10));
        let read_with = read(away, vec![ask(1, None), ask(2, Some(id.clone()))]);
        let [(1, 101, Ok(plain)), (2, 102, Err(why))] = &read_with[..] else {
            panic!("{read_with:?}")
        };
        assert_eq!(
            (&plain.target.kind, plain.target.cgroup.as_str()),
            (&SubjectKind::Cgroup, NOWHERE)
        );
        assert!(why.contains("engine"), "{why}");
        // Where there is no engine at all, the cgroup is all that can be known.
        let read_without = read(Engines::default(), vec![ask(3, Some(id))]);
        let [(3, 103, Ok(plain))] = &read_without[..] else { panic!("{read_without:?}") };
        assert_eq!(plain.target.kind, SubjectKind::Cgroup);
    }
}
