use std::{fs::File, os::fd::OwnedFd};

use futures_util::{FutureExt as _, future};
use mcp_guard_core::{id::Pid, incident::Hold};
use rustix::fs::{Uid, fchown};

use super::{super::EngineAnswer, *};
use crate::host::{cgroup::Dir, layout::Layout};

const ID: &str = "an id";

/// An engine that can only list names.
struct Names;

impl Engine for Names {
    fn socket(&self) -> &str {
        "/run/names.sock"
    }

    fn name(&self) -> String {
        "names".to_owned()
    }

    fn candidates(&self) -> EngineAnswer<'_, Vec<Candidate>> {
        future::ready(Ok(vec![Candidate { id: ID.to_owned(), name: "named".to_owned() }])).boxed()
    }
}

/// The answer of [`One`] about its only container.
#[derive(Clone, Copy)]
enum Says {
    Paused,
    Stopped,
    Away,
    Unknown,
    Nothing,
}

struct One {
    says: Says,
    by: Speaker,
}

impl Engine for One {
    fn speaker(&self) -> EngineAnswer<'_, Speaker> {
        match self.says {
            Says::Away => future::ready(Err(away())).boxed(),
            Says::Paused | Says::Stopped | Says::Unknown | Says::Nothing => {
                future::ready(Ok(self.by)).boxed()
            }
        }
    }

    fn socket(&self) -> &str {
        "/run/one.sock"
    }

    fn name(&self) -> String {
        "one".to_owned()
    }

    fn candidates(&self) -> EngineAnswer<'_, Vec<Candidate>> {
        future::ready(Err(away())).boxed()
    }

    fn inspect<'a>(&'a self, id: &'a str) -> EngineAnswer<'a, Option<Container>> {
        let container = || Container {
            id: id.to_owned(),
            name: String::new(),
            image: String::new(),
            image_id: String::new(),
            stdin: Default::default(),
            labels: Default::default(),
            init: Pid(1),
            paused: true,
            limit: None,
        };
        match self.says {
            Says::Paused => future::ready(Ok(Some(container()))).boxed(),
            Says::Stopped => future::ready(Ok(None)).boxed(),
            Says::Away => future::ready(Err(away())).boxed(),
            Says::Unknown => future::ready(Err(unknown())).boxed(),
            Says::Nothing => future::pending().boxed(),
        }
    }

    fn paused(&self) -> EngineAnswer<'_, Vec<String>> {
        match self.says {
            Says::Paused => future::ready(Ok(vec![ID.to_owned()])).boxed(),
            Says::Stopped | Says::Unknown => future::ready(Ok(Vec::new())).boxed(),
            Says::Away => future::ready(Err(away())).boxed(),
            Says::Nothing => future::pending().boxed(),
        }
    }

    fn update_limit<'a>(&'a self, _id: &'a str, _limit: u64) -> EngineAnswer<'a, ()> {
        future::ready(Ok(())).boxed()
    }
}

fn away() -> Error {
    Error::Raw { engine: "one".to_owned(), why: "away".to_owned() }
}

fn unknown() -> Error {
    let source = bollard::errors::Error::DockerResponseServerError {
        status_code: 404,
        message: "no such container".to_owned(),
    };
    Error::Refused { engine: "one".to_owned(), source }
}

fn engines(all: impl IntoIterator<Item = Arc<dyn Engine>>) -> Engines {
    Engines { all: all.into_iter().collect(), timeout: Duration::ZERO, rounds: Rounds::default() }
}

fn one(says: Says) -> Arc<dyn Engine> {
    Arc::new(One { says, by: Speaker::User(0) })
}

fn ones(says: &[Says]) -> Engines {
    engines(says.iter().copied().map(one))
}

/// A folder in place of a cgroup.
fn cgroup(folder: &tempfile::TempDir) -> Cgroup {
    let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
    let layout = Layout::bare();
    Cgroup::at(&dir, "/x", Hold::Freeze, &layout).unwrap()
}

#[tokio::test]
async fn an_engine_that_is_away_does_not_hide_the_others() {
    let both = engines([one(Says::Away), Arc::new(Names)]);
    let Candidates { found, errors } = both.candidates().await;
    let found: Vec<_> = found.iter().map(|(from, one)| (from.0, one.name.as_str())).collect();
    assert_eq!((found, errors.len()), (vec![(1, "named")], 1));
}

#[tokio::test]
async fn a_container_belongs_to_the_engine_that_reports_it_as_running() {
    use Says::{Away, Nothing, Paused, Stopped, Unknown};
    // containerd lists Docker's containers too, and an engine that hangs must not hide another's
    // answer.
    for says in
        [&[Paused][..], &[Away, Paused], &[Unknown, Paused], &[Stopped, Paused], &[Nothing, Paused]]
    {
        let found = ones(says).inspect(ID).await.unwrap();
        assert!(found.is_some_and(|(by, one)| by.is_trusted() && one.paused));
        assert!(ones(says).update_limit(ID, 7).await.is_ok());
    }
    assert!(ones(&[Away, Stopped]).inspect(ID).await.unwrap().is_none());
    assert!(ones(&[Unknown, Unknown]).inspect(ID).await.unwrap_err().is_unknown_container());
    for says in [[Away, Unknown], [Unknown, Away]] {
        let silent = ones(&says).inspect(ID).await.unwrap_err();
        assert!(silent.to_string().contains("away"), "the other may have it: {silent}");
    }
    assert!(matches!(ones(&[]).inspect(ID).await, Err(Error::NoEngine)));
}

#[tokio::test]
async fn one_question_says_which_containers_are_paused() {
    use Says::{Away, Nothing, Paused, Stopped};
    let folder = tempfile::tempdir().unwrap();
    let cgroup = cgroup(&folder);
    for (says, known, is_paused) in [
        (&[Paused][..], false, true),
        (&[Nothing, Paused], false, true),
        (&[Stopped], true, false),
        // An engine that does not answer may have paused it.
        (&[Stopped, Away], true, true),
        (&[Nothing], true, true),
        (&[Nothing], false, false),
        (&[], true, false),
    ] {
        assert_eq!(ones(says).paused().await.includes(Some(ID), &cgroup, known), is_paused);
    }
    let paused = ones(&[Paused]).paused().await;
    assert!(!paused.includes(None, &cgroup, true), "it is not a container");
}

#[tokio::test]
async fn a_users_engine_pauses_containers_of_that_user_only() {
    let folder = tempfile::tempdir().unwrap();
    let cgroup = cgroup(&folder);
    let me = rustix::process::geteuid().as_raw();
    for (says, known) in [(Says::Paused, false), (Says::Nothing, true)] {
        for (user, is_paused) in [(me, true), (me + 1, false)] {
            let engine: Arc<dyn Engine> = Arc::new(One { says, by: Speaker::User(user) });
            let paused = engines([engine]).paused().await;
            assert_eq!(paused.includes(Some(ID), &cgroup, known), is_paused, "{user}");
        }
    }
    if me == 0 {
        fchown(cgroup.dir(), Some(Uid::from_raw(1000)), None).unwrap();
        let engine: Arc<dyn Engine> = Arc::new(One { says: Says::Paused, by: Speaker::User(1000) });
        assert!(engines([engine]).paused().await.includes(Some(ID), &cgroup, false));
    }
}

#[tokio::test]
async fn an_engine_that_only_lists_names_reports_what_it_cannot_do() {
    let names = engines([Arc::new(Names) as Arc<dyn Engine>]);
    for error in [
        names.update_limit(ID, 7).await.unwrap_err(),
        names.stop(ID).await.unwrap_err(),
        names.inspect(ID).await.unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("names cannot "), "{error}");
    }
    let (to, mut events) = mpsc::channel(1);
    names.watch(&to, Duration::ZERO);
    drop(to);
    assert!(events.recv().await.is_none(), "it sends no events");
}

#[tokio::test]
async fn an_event_names_the_engine_that_sent_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| {
        let path = folder.path().join(name).display().to_string();
        Arc::new(Socket::new(&path, Duration::from_secs(10))) as Arc<dyn Engine>
    };
    let both = engines([socket("a.sock"), socket("b.sock")]);
    let (to, mut events) = mpsc::channel(8);
    both.watch(&to, Duration::from_secs(3600));
    for _ in 0..2 {
        let Some((from, EngineEvent::Away(why))) = events.recv().await else { panic!("not away") };
        assert!(why.contains(both.get(from).unwrap().socket()), "{why}");
    }
}
