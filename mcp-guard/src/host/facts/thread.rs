//! Threads that look at cgroups, so that the loop reads no process there.
//!
//! Reading a process can hang: the kernel makes the reader wait until the process has executed its program, and a
//! hostile one can draw that out for ever. So a look that hangs keeps its thread, and another thread takes over.

use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::id::CgroupId;

use super::{Look, LookFound, LookWanted};
use crate::host::cgroup::Cgroup;

/// How long the thread that needs a look waits for it.
const BRIEF: Duration = Duration::from_millis(10);
/// How long one look goes on before it is the turn of the next.
const SLICE: Duration = Duration::from_millis(20);
/// A look that takes longer before its turn is over hangs.
const PATIENCE: Duration = Duration::from_millis(500);
/// Looks that begin at a time, without those that hang: somebody waits for them.
const BEGIN_AT_ONCE: usize = 2;
/// Looks that go on at a time, without those that hang.
const GO_ON_AT_ONCE: usize = 1;
/// Threads that are created at the start: a host that is full of processes allows none later.
const AT_START: usize = 6;
/// Most threads. Each one beyond those that work at a time stands for a cgroup that holds one up.
const MOST: usize = 64;

type Done = Box<dyn FnOnce(io::Result<LookFound>) + Send>;
type Begin = Box<dyn FnOnce() -> io::Result<Look> + Send>;

/// Takes looks at cgroups on threads of its own. Large ones take turns, so that a large container only waits for
/// itself.
///
/// All who need a look at one cgroup at the same time share it. What it tells them is no older, when it is over,
/// than a look of their own would be at its end.
#[derive(Clone)]
pub struct LookThread {
    waiting: LooksUnderWay,
    queue: Arc<LookQueue>,
}

/// The looks that are under way, and those who wait for them.
#[derive(Clone, Default)]
struct LooksUnderWay(Arc<Mutex<BTreeMap<CgroupId, LookAskers>>>);

struct LookAskers {
    /// The most that one of them wants.
    wanted: LookWanted,
    done: Vec<Done>,
}

/// The work of the threads. They live as long as the program.
#[derive(Default)]
struct LookQueue {
    work: Mutex<LooksWanted>,
    /// There may be something to do.
    changed: Condvar,
}

#[derive(Default)]
struct LooksWanted {
    new: VecDeque<(CgroupId, Begin)>,
    begun: VecDeque<(CgroupId, Box<Look>)>,
    /// The present turn of each thread.
    threads: Vec<Option<Turn>>,
    /// No further thread could be created.
    is_short: bool,
}

#[derive(Clone, Copy)]
struct Turn {
    is_new: bool,
    began: Instant,
}

/// One turn of a look.
enum LookTurn {
    Begin(CgroupId, Begin),
    GoOn(CgroupId, Box<Look>),
}

impl LookThread {
    /// # Errors
    /// A thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let looks = Self { waiting: LooksUnderWay::default(), queue: Arc::default() };
        let mut work = looks.queue.lock();
        (0..AT_START).try_for_each(|_| add_thread(&mut work, &looks.queue, &looks.waiting))?;
        drop(work);
        Ok(looks)
    }

    /// Looks at a cgroup. `None` if that takes long, because it is large or one of its processes hangs: `done`
    /// then gets what is found, on another thread.
    pub fn look(
        &self,
        cgroup: &Cgroup,
        wanted: LookWanted,
        done: impl FnOnce(io::Result<LookFound>) + Send + 'static,
    ) -> Option<io::Result<LookFound>> {
        let begin = match cgroup.try_clone() {
            Ok(cgroup) => move || Look::begin(&cgroup, wanted),
            Err(error) => return Some(Err(error)),
        };
        self.have_looked(cgroup.id(), wanted, Box::new(begin), done)
    }

    fn have_looked(
        &self,
        id: CgroupId,
        wanted: LookWanted,
        begin: Begin,
        done: impl FnOnce(io::Result<LookFound>) + Send + 'static,
    ) -> Option<io::Result<LookFound>> {
        // The first to take the sender decides whether the answer is waited for.
        let (answer, answered) = sync_channel(1);
        let in_time = Arc::new(Mutex::new(Some(answer)));
        let late = in_time.clone();
        {
            let mut waiting = self.waiting.lock();
            if let Some(askers) = waiting.get_mut(&id) {
                askers.join(wanted, Box::new(done));
                return None;
            }
            let tell = move |found| {
                let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
                match late.take() {
                    // There is room for one.
                    Some(answer) => drop(answer.send(found)),
                    None => done(found),
                }
            };
            waiting.insert(id, LookAskers { wanted, done: vec![Box::new(tell)] });
        }
        self.queue.lock().new.push_back((id, begin));
        self.queue.changed.notify_one();
        match answered.recv_timeout(BRIEF) {
            Ok(found) => Some(found),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let left = in_time.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Without the sender, the answer has come in between.
                if left.is_some() { None } else { answered.recv().ok() }
            }
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

impl LookQueue {
    fn lock(&self) -> MutexGuard<'_, LooksWanted> {
        // Nothing is left half done in it.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do on this thread.
    fn next(self: &Arc<Self>, thread: usize, waiting: &LooksUnderWay) -> LookTurn {
        let mut work = self.lock();
        loop {
            let now = Instant::now();
            if let Some(task) = work.take(now) {
                let is_new = matches!(task, LookTurn::Begin(..));
                work.threads[thread] = Some(Turn { is_new, began: now });
                if work.threads.iter().all(Option::is_some) {
                    work.add_spare(self, waiting);
                }
                // Another thread may have been woken by this task alone, or must watch this one.
                self.changed.notify_one();
                return task;
            }
            let is_idle = work.new.is_empty() && work.begun.is_empty();
            work = if is_idle {
                self.changed.wait(work).unwrap_or_else(PoisonError::into_inner)
            } else {
                // Those at work may hang.
                let waited = self.changed.wait_timeout(work, PATIENCE / 4);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn finished(&self, thread: usize, again: Option<(CgroupId, Box<Look>)>) {
        let mut work = self.lock();
        work.threads[thread] = None;
        work.begun.extend(again);
    }
}

impl LooksWanted {
    fn take(&mut self, now: Instant) -> Option<LookTurn> {
        let at_work = |is_new| {
            let counts = |turn: &&Turn| {
                turn.is_new == is_new && now.saturating_duration_since(turn.began) <= PATIENCE
            };
            self.threads.iter().flatten().filter(counts).count()
        };
        let (begin, go_on) = (at_work(true), at_work(false));
        if begin < BEGIN_AT_ONCE
            && let Some((id, begin)) = self.new.pop_front()
        {
            return Some(LookTurn::Begin(id, begin));
        }
        let (id, look) = self.begun.pop_front_if(|_| go_on < GO_ON_AT_ONCE)?;
        Some(LookTurn::GoOn(id, look))
    }

    /// Adds a thread for the time when all others hang.
    fn add_spare(&mut self, queue: &Arc<LookQueue>, waiting: &LooksUnderWay) {
        if self.threads.len() >= MOST {
            return;
        }
        if let Err(error) = add_thread(self, queue, waiting)
            && !mem::replace(&mut self.is_short, true)
        {
            tracing::error!(%error, "no thread is left that looks at cgroups");
        }
    }
}

fn add_thread(
    work: &mut LooksWanted,
    queue: &Arc<LookQueue>,
    waiting: &LooksUnderWay,
) -> io::Result<()> {
    let (number, queue, waiting) = (work.threads.len(), queue.clone(), waiting.clone());
    let serve = move || {
        loop {
            let task = queue.next(number, &waiting);
            let again = take_turn(task, &waiting);
            queue.finished(number, again);
        }
    };
    thread::Builder::new().name("looks".to_owned()).spawn(serve)?;
    work.threads.push(None);
    Ok(())
}

/// Looks for a while. Returns the look if it is not over then.
fn take_turn(task: LookTurn, waiting: &LooksUnderWay) -> Option<(CgroupId, Box<Look>)> {
    let (LookTurn::Begin(id, _) | LookTurn::GoOn(id, _)) = task;
    let end = Instant::now() + SLICE;
    // A panic must not end the thread, and those who wait must be answered.
    let went_on = catch_unwind(AssertUnwindSafe(|| {
        let mut look = match task {
            LookTurn::Begin(_, begin) => Box::new(begin()?),
            LookTurn::GoOn(_, look) => look,
        };
        Ok((look.go_on(&|| Instant::now() < end)?, look))
    }));
    match went_on {
        Ok(Ok((true, mut look))) => {
            let Some(askers) = waiting.end(id, &mut look) else { return Some((id, look)) };
            tell(askers, &Ok(look.into_found()));
            None
        }
        Ok(Ok((false, look))) => Some((id, look)),
        Ok(Err(error)) => {
            waiting.answer(id, Err(error));
            None
        }
        Err(_) => {
            waiting.answer(id, Err(io::Error::other("the look at the cgroup panicked")));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        fs::File,
        os::fd::OwnedFd,
        sync::{RwLock, mpsc::channel},
    };

    use mcp_guard_core::incident::Hold;

    use super::*;
    use crate::host::{cgroup::Dir, layout::Layout};

    const SOON: Duration = Duration::from_secs(20);

    fn empty_cgroup() -> (tempfile::TempDir, Cgroup) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        let dir = Dir::from(OwnedFd::from(File::open(folder.path()).unwrap()));
        let cgroup = Cgroup::at(&dir, "/x", Hold::Freeze, &Layout::bare()).unwrap();
        (folder, cgroup)
    }

    fn beginning(cgroup: &Cgroup, door: &'static RwLock<()>) -> Begin {
        let cgroup = cgroup.try_clone().unwrap();
        Box::new(move || {
            drop(door.read());
            Look::begin(&cgroup, LookWanted::FACTS)
        })
    }

    #[test]
    fn all_who_need_a_look_at_a_cgroup_meanwhile_share_one() {
        static DOOR: RwLock<()> = RwLock::new(());
        let closed = DOOR.write().unwrap();
        let (_folder, cgroup) = empty_cgroup();
        let looks = LookThread::start().unwrap();
        let (answer, answers) = channel();
        let done = || {
            let answer = answer.clone();
            move |found: io::Result<LookFound>| answer.send(found.unwrap().facts.path).unwrap()
        };
        let begin = beginning(&cgroup, &DOOR);
        assert!(looks.have_looked(cgroup.id(), LookWanted::FACTS, begin, done()).is_none());
        for wanted in [LookWanted::FACTS, LookWanted::SHARING, LookWanted::FACTS] {
            assert!(looks.look(&cgroup, wanted, done()).is_none());
        }
        assert!(looks.waiting.lock()[&cgroup.id()].wanted == LookWanted::SHARING);
        assert!(looks.queue.lock().new.is_empty(), "one look");
        drop(closed);
        let paths: Vec<_> = (0..4).map(|_| answers.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(paths, ["/x"; 4]);
        assert!(looks.waiting.lock().is_empty(), "the next one looks again");
    }

    #[test]
    fn looks_that_hang_hold_up_neither_the_caller_nor_other_looks() {
        static DOOR: RwLock<()> = RwLock::new(());
        let closed = DOOR.write().unwrap();
        let (_folder, cgroup) = empty_cgroup();
        let looks = LookThread::start().unwrap();
        let (answer, answers) = channel();
        let done = || {
            let answer = answer.clone();
            move |found: io::Result<LookFound>| answer.send(found.unwrap().facts.path).unwrap()
        };
        let hanging = 2 * AT_START;
        for id in 1..=hanging as u64 {
            let begin = beginning(&cgroup, &DOOR);
            assert!(looks.have_looked(CgroupId(id), LookWanted::FACTS, begin, done()).is_none());
        }
        if let Some(found) = looks.look(&cgroup, LookWanted::FACTS, done()) {
            done()(found);
        }
        assert_eq!(answers.recv_timeout(SOON).unwrap(), "/x", "the others hang");
        assert_eq!(looks.queue.lock().threads.iter().flatten().count(), hanging);
        drop(closed);
        for _ in 0..hanging {
            assert_eq!(answers.recv_timeout(SOON).unwrap(), "/x", "they answer late");
        }
    }
}
