//! A thread for looks that take too long for the loop.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::id::CgroupId;

use super::{Look, LookFound, LookWanted};
use crate::host::cgroup::Cgroup;

/// How long the thread that needs a look takes it itself.
const BRIEF: Duration = Duration::from_millis(10);
/// How long one look goes on before it is the turn of the next.
const SLICE: Duration = Duration::from_millis(20);

type Done = Box<dyn FnOnce(io::Result<LookFound>) + Send>;

/// Ends looks that were begun elsewhere. They take turns, so that a large container only waits for itself.
///
/// All who need a look at one cgroup at the same time share it. What it tells them is no older, when it is over,
/// than a look of their own would be at its end.
#[derive(Clone)]
pub struct LookThread {
    begun: Sender<(CgroupId, Look)>,
    waiting: LooksUnderWay,
}

/// The looks that are under way, and those who wait for them.
#[derive(Clone, Default)]
struct LooksUnderWay(Arc<Mutex<BTreeMap<CgroupId, LookAskers>>>);

struct LookAskers {
    /// The most that one of them wants.
    wanted: LookWanted,
    done: Vec<Done>,
}

impl LookThread {
    /// # Errors
    /// The thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let (looks, begun) = Self::new();
        let waiting = looks.waiting.clone();
        thread::Builder::new().name("looks".to_owned()).spawn(move || serve(&begun, &waiting))?;
        Ok(looks)
    }

    fn new() -> (Self, Receiver<(CgroupId, Look)>) {
        let (begun, looks) = channel();
        (Self { begun, waiting: LooksUnderWay::default() }, looks)
    }

    /// Looks at a cgroup. `None` if it is large: the look then goes on on the other thread, and `done` gets
    /// what is found, there.
    pub fn look(
        &self,
        cgroup: &Cgroup,
        wanted: LookWanted,
        done: impl FnOnce(io::Result<LookFound>) + Send + 'static,
    ) -> Option<io::Result<LookFound>> {
        let id = cgroup.id();
        if let Some(askers) = self.waiting.lock().get_mut(&id) {
            askers.join(wanted, Box::new(done));
            return None;
        }
        let end = Instant::now() + BRIEF;
        let looked = Look::begin(cgroup, wanted)
            .and_then(|mut look| Ok((look.go_on(&|| Instant::now() < end)?, look)));
        match looked {
            Ok((true, look)) => Some(Ok(look.into_found())),
            Ok((false, look)) => {
                self.hand_over(id, look, LookAskers { wanted, done: vec![Box::new(done)] });
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn hand_over(&self, id: CgroupId, look: Look, askers: LookAskers) {
        self.waiting.lock().insert(id, askers);
        if self.begun.send((id, look)).is_err() {
            let gone = io::Error::other("the thread that looks at cgroups is gone");
            self.waiting.answer(id, Err(gone));
        }
    }
}

impl LooksUnderWay {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<CgroupId, LookAskers>> {
        // Nothing is left half done in it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a look that is over find more, if somebody wants that. Otherwise nobody joins it any more, and
    /// those who wait for it are returned.
    fn end(&self, id: CgroupId, look: &mut Look) -> Option<Vec<Done>> {
        let mut all = self.lock();
        let wanted = all.get(&id).map(|askers| askers.wanted);
        if let Some(wanted) = wanted.filter(|wanted| !look.looks_for(*wanted)) {
            look.want(wanted);
            return None;
        }
        Some(all.remove(&id).map(|askers| askers.done).unwrap_or_default())
    }

    fn answer(&self, id: CgroupId, found: io::Result<LookFound>) {
        let askers = self.lock().remove(&id);
        tell(askers.map(|askers| askers.done).unwrap_or_default(), &found);
    }
}

impl LookAskers {
    fn join(&mut self, wanted: LookWanted, done: Done) {
        self.wanted = self.wanted.and(wanted);
        self.done.push(done);
    }
}

fn tell(askers: Vec<Done>, found: &io::Result<LookFound>) {
    for done in askers {
        done(match found {
            Ok(found) => Ok(found.clone()),
            Err(error) => Err(match error.raw_os_error() {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
        });
    }
}

fn serve(begun: &Receiver<(CgroupId, Look)>, waiting: &LooksUnderWay) {
    let mut looks = VecDeque::new();
    loop {
        let new = if looks.is_empty() {
            begun.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            begun.try_recv()
        };
        match new {
            Ok(new) => looks.push_back(new),
            Err(TryRecvError::Disconnected) if looks.is_empty() => return,
            Err(TryRecvError::Disconnected | TryRecvError::Empty) => {}
        }
        let Some((id, mut look)) = looks.pop_front() else { continue };
        let end = Instant::now() + SLICE;
        // A panic must not end the thread: nobody would ever be answered again.
        let went_on = catch_unwind(AssertUnwindSafe(|| look.go_on(&|| Instant::now() < end)));
        match went_on {
            Ok(Ok(true)) => match waiting.end(id, &mut look) {
                Some(askers) => tell(askers, &Ok(look.into_found())),
                None => looks.push_back((id, look)),
            },
            Ok(Ok(false)) => looks.push_back((id, look)),
            Ok(Err(error)) => waiting.answer(id, Err(error)),
            Err(_) => waiting.answer(id, Err(io::Error::other("the look at the cgroup panicked"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::fd::OwnedFd};

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::{cgroup::Dir, layout::Layout};

    #[test]
    fn all_who_need_a_look_at_a_cgroup_meanwhile_share_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
        let layout = Layout::bare();
        let cgroup = Cgroup::at(&dir, "/x", Hold::Freeze, &layout).unwrap();
        let (looks, begun) = LookThread::new();
        let (answer, answers) = channel();
        let done = || {
            let answer = answer.clone();
            move |found: io::Result<LookFound>| answer.send(found.unwrap().facts.path).unwrap()
        };
        let look = Look::begin(&cgroup, LookWanted::FACTS).unwrap();
        let first = LookAskers { wanted: LookWanted::FACTS, done: vec![Box::new(done())] };
        looks.hand_over(cgroup.id(), look, first);
        for wanted in [LookWanted::FACTS, LookWanted::SHARING, LookWanted::FACTS] {
            assert!(looks.look(&cgroup, wanted, done()).is_none());
        }
        let waiting = looks.waiting.clone();
        assert!(waiting.lock()[&cgroup.id()].wanted == LookWanted::SHARING);
        let (id, look) = begun.try_recv().unwrap();
        assert!(begun.try_recv().is_err(), "one look");
        looks.begun.send((id, look)).unwrap();
        drop(looks);
        serve(&begun, &waiting);
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), ["/x"; 4]);
        assert!(waiting.lock().is_empty(), "the next one looks again");
    }
}
