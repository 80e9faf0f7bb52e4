//! The threads that look at servers.
//!
//! Some files below `/proc` wait for the process that they are about (`exec_update_lock` in the kernel), and a read
//! that waits cannot be given up. So a look that hangs keeps its thread, and another thread takes over: only as many
//! work at a time as are meant to. A guard has one thread at most.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{
    Time,
    evidence::{ClientsLook, ServerSeen, StdioAtExec, Unreaped},
    id::{CgroupId, GuardId, Pid, Ticks},
    registry::{ToLookAt, TreeId},
};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    engine::EngineId,
    host::{cgroup::ChargedTasks, clock, evidence::unreaped},
};

/// Threads that work at a time.
const AT_ONCE: usize = 2;
/// Threads that are created at the start: a host that is full of processes allows none later.
const AT_START: usize = 6;
/// Most threads. Each one beyond [`AT_ONCE`] stands for a guard that holds one up.
const MOST: usize = 64;
/// For each piece of work, this many times its CPU time passes, so that [`AT_ONCE`] threads cost a tenth of a CPU each.
const SPREAD: u32 = 10;
/// How much may be owed before the threads rest.
const OWED: Duration = Duration::from_millis(50);
/// The CPU time of one look for which all threads rest. The guard alone waits for what is beyond that.
const SHARED: Duration = Duration::from_millis(10);
/// A guard that takes longer has the rest of its servers looked at after the others.
const TURN: Duration = Duration::from_secs(2);
/// Most servers in one part of the answer.
const PART: usize = 256;
/// A look at one server that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A finding of a thread.
pub(super) enum Sighted {
    Stdio(Vec<(GuardId, Pid, Ticks, StdioAtExec)>),
    /// Some servers of a guard, in parts. The last part ends the turn of the guard.
    Servers {
        lane: usize,
        guard: GuardId,
        cgroup: CgroupId,
        /// With the time when each look began: one that hangs holds up the others.
        seen: Vec<(TreeId, Time, ServerSeen)>,
        last: Option<TurnEnd>,
    },
    Clients(EngineId, io::Result<ClientsLook>),
    Zombies {
        guard: GuardId,
        cgroup: CgroupId,
        found: Unreaped,
    },
}

/// The end of a guard's turn.
pub(super) struct TurnEnd {
    /// The servers that are to be looked at later, so that the other guards have their turn.
    pub servers: Vec<ToLookAt>,
    /// How long the guard has to wait for its next turn, because a look took too long.
    pub owes: Duration,
}

/// Looks at one server.
pub(super) type Looker = Arc<dyn Fn(&ToLookAt) -> ServerSeen + Send + Sync>;

/// A guard whose servers are to be looked at.
pub(super) struct ToLook {
    pub guard: GuardId,
    pub cgroup: CgroupId,
    pub servers: Vec<ToLookAt>,
    /// Its pids cgroup if it may have zombies, and whether their parent is asked for.
    pub zombies: Option<(ChargedTasks, bool)>,
}

struct Lane {
    thread: mpsc::Sender<ToLook>,
    busy: Option<GuardId>,
    /// When the look at one server began; 0 between two looks.
    began: Arc<AtomicU64>,
    is_reported: bool,
}

impl Lane {
    fn hangs(&self, now: Time) -> bool {
        let began = Time(self.began.load(Ordering::Relaxed));
        self.busy.is_some() && began != Time(0) && now.since(began) > PATIENCE
    }
}

pub(super) struct Lanes {
    lanes: Vec<Lane>,
    look: Looker,
    pace: Arc<Pace>,
    found: UnboundedSender<Sighted>,
    /// No further thread could be created.
    is_short: bool,
}

impl Lanes {
    /// # Errors
    /// A thread cannot be created.
    pub fn start(look: Looker, found: UnboundedSender<Sighted>) -> io::Result<Self> {
        let pace = Arc::default();
        let mut lanes = Self { lanes: Vec::new(), look, pace, found, is_short: false };
        (0..AT_START).try_for_each(|_| lanes.add())?;
        Ok(lanes)
    }

    fn add(&mut self) -> io::Result<()> {
        let (thread, wanted) = mpsc::channel();
        let began = Arc::<AtomicU64>::default();
        let number = self.lanes.len();
        let (look, found, begins) = (self.look.clone(), self.found.clone(), began.clone());
        let pace = self.pace.clone();
        let work = move || {
            for one in wanted {
                look_at(number, one, &*look, &begins, &pace, &found);
            }
        };
        thread::Builder::new().name("evidence".to_owned()).spawn(work)?;
        self.lanes.push(Lane { thread, busy: None, began, is_reported: false });
        Ok(())
    }

    /// Returns a thread that may begin to work.
    pub fn free(&mut self, now: Time) -> Option<usize> {
        let work = |lane: &&Lane| lane.busy.is_some() && !lane.hangs(now);
        if self.lanes.iter().filter(work).count() >= AT_ONCE {
            return None;
        }
        let free = self.lanes.iter().position(|lane| lane.busy.is_none());
        if free.is_some() || self.lanes.len() >= MOST {
            return free;
        }
        match self.add() {
            Ok(()) => Some(self.lanes.len() - 1),
            Err(error) => {
                if !mem::replace(&mut self.is_short, true) {
                    tracing::error!(%error, "no thread is left that looks at servers");
                }
                None
            }
        }
    }

    /// Whether a thread is at work on this guard, or hangs there.
    pub fn are_at(&self, guard: GuardId) -> bool {
        self.lanes.iter().any(|lane| lane.busy == Some(guard))
    }

    pub fn give(&mut self, lane: usize, wanted: ToLook) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let guard = wanted.guard;
        match lane.thread.send(wanted) {
            Ok(()) => lane.busy = Some(guard),
            Err(_) => tracing::error!("a thread that looks at servers is gone"),
        }
    }

    /// Notes that a thread has looked at all servers of its guard.
    pub fn finished(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            (lane.busy, lane.is_reported) = (None, false);
        }
    }

    /// Returns a guard that holds up a thread, once.
    pub fn hanging(&mut self, now: Time) -> Option<GuardId> {
        let hangs = |lane: &&mut Lane| !lane.is_reported && lane.hangs(now);
        let lane = self.lanes.iter_mut().find(hangs)?;
        lane.is_reported = true;
        lane.busy
    }
}

/// Looks at the servers of one guard.
fn look_at(
    lane: usize,
    wanted: ToLook,
    look: &dyn Fn(&ToLookAt) -> ServerSeen,
    begins: &AtomicU64,
    pace: &Pace,
    found: &UnboundedSender<Sighted>,
) {
    let ToLook { guard, cgroup, servers, zombies } = wanted;
    let mut owes = Duration::ZERO;
    if let Some((charged, names_parent)) = zombies {
        if let Some(rest) = pace.rest(Instant::now()) {
            thread::sleep(rest);
        }
        let (zombies, owed) = pace.work(begins, || unreaped(&charged, names_parent));
        owes = owed;
        if let Some(zombies) = zombies {
            let _ = found.send(Sighted::Zombies { guard, cgroup, found: zombies });
        }
    }
    let mut seen: Vec<(TreeId, Time, ServerSeen)> = Vec::new();
    let tell = |seen: Vec<_>, last| {
        // The loop ends only with the program.
        let _ = found.send(Sighted::Servers { lane, guard, cgroup, seen, last });
    };
    let began = Instant::now();
    let mut servers = VecDeque::from(servers);
    while let Some(server) = servers.pop_front() {
        let is_over = owes > Duration::ZERO || (began.elapsed() >= TURN && !seen.is_empty());
        if is_over {
            servers.push_front(server);
            break;
        }
        let rest = pace.rest(Instant::now());
        if (rest.is_some() || seen.len() >= PART) && !seen.is_empty() {
            tell(mem::take(&mut seen), None);
        }
        if let Some(rest) = rest {
            thread::sleep(rest);
        }
        let at = clock::now();
        let (found, owed) = pace.work(begins, || look(&server));
        seen.push((server.server, at, found));
        owes = owed;
    }
    tell(seen, Some(TurnEnd { servers: servers.into(), owes }));
}

/// How long the threads must rest for their work: all together, so that those that hung do not add to the cost.
#[derive(Default)]
struct Pace(Mutex<Owed>);

#[derive(Default)]
struct Owed {
    rest: Duration,
    /// When that was so.
    at: Option<Instant>,
}

impl Pace {
    /// Does a piece of work. `begins` has its time meanwhile. Returns how long its guard has to wait for it.
    fn work<T>(&self, begins: &AtomicU64, work: impl FnOnce() -> T) -> (T, Duration) {
        let before = clock::thread_cpu_time();
        begins.store(clock::now().0, Ordering::Relaxed);
        let result = work();
        begins.store(0, Ordering::Relaxed);
        let worked = clock::thread_cpu_time().saturating_sub(before);
        (result, self.with(|owed| owed.add(Instant::now(), worked)))
    }

    /// Returns for how long to rest before the next look.
    fn rest(&self, now: Instant) -> Option<Duration> {
        self.with(|owed| owed.rest(now))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Owed) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Owed {
    /// Takes work. Returns how long its guard has to wait for it.
    fn add(&mut self, now: Instant, worked: Duration) -> Duration {
        let shared = worked.min(SHARED);
        self.pay(now);
        self.rest += shared * SPREAD / AT_ONCE as u32;
        (worked - shared) * SPREAD
    }

    fn rest(&mut self, now: Instant) -> Option<Duration> {
        self.pay(now);
        (self.rest >= OWED).then_some(self.rest)
    }

    /// All time since the last look counts, also that between two guards.
    fn pay(&mut self, now: Instant) {
        let passed = self.at.replace(now).map_or(Duration::MAX, |at| now.duration_since(at));
        self.rest = self.rest.saturating_sub(passed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    fn wanted(guard: u32, servers: u64) -> ToLook {
        let one = |number| ToLookAt {
            server: TreeId(u64::from(guard) * 1000 + number),
            stdio: StdioAtExec::Unread,
            activity: None,
            members: Vec::new(),
        };
        let servers = (0..servers).map(one).collect();
        ToLook { guard: GuardId(guard), cgroup: CgroupId(1), servers, zombies: None }
    }

    /// Each of ten guards holds up a thread for ever.
    #[test]
    fn guards_that_hold_up_their_threads_do_not_hold_up_the_others() {
        static DOOR: RwLock<()> = RwLock::new(());
        let closed = DOOR.write().unwrap();
        let (to_found, mut found) = unbounded_channel();
        let look = |server: &ToLookAt| {
            if server.server.0 < 11_000 {
                drop(DOOR.read());
            }
            ServerSeen::default()
        };
        let mut lanes = Lanes::start(Arc::new(look), to_found).unwrap();
        let mut now = clock::now();
        for guard in 1..=10 {
            let lane = lanes.free(now).expect("those that hang do not count");
            lanes.give(lane, wanted(guard, 1));
            assert!(lanes.are_at(GuardId(guard)));
            // Until it has begun.
            while lanes.lanes[lane].began.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            now = clock::now().after(PATIENCE + Duration::from_secs(guard.into()));
            assert_eq!((lanes.hanging(now), lanes.hanging(now)), (Some(GuardId(guard)), None));
        }
        let lane = lanes.free(now).expect("there is another thread");
        lanes.give(lane, wanted(11, 600));
        let (mut seen, mut parts) = (0, 0);
        loop {
            let Sighted::Servers { guard, seen: part, last, .. } = found.blocking_recv().unwrap()
            else {
                panic!("something else")
            };
            assert!(guard == GuardId(11) && part.len() <= PART);
            (seen, parts) = (seen + part.len(), parts + 1);
            if last.is_some() {
                break;
            }
        }
        assert!(seen == 600 && parts >= 3, "{seen} servers in {parts} parts");
        lanes.finished(lane);
        assert!(!lanes.are_at(GuardId(11)));
        drop(closed);
    }

    /// A server that takes as long as a whole turn.
    #[test]
    fn the_rest_of_a_guard_that_takes_long_is_handed_back() {
        let (to_found, mut found) = unbounded_channel();
        let look = |_: &ToLookAt| {
            thread::sleep(TURN);
            ServerSeen::default()
        };
        let mut lanes = Lanes::start(Arc::new(look), to_found).unwrap();
        let lane = lanes.free(clock::now()).unwrap();
        lanes.give(lane, wanted(1, 3));
        let Some(Sighted::Servers { seen, last: Some(left), .. }) = found.blocking_recv() else {
            panic!("something else")
        };
        assert_eq!((seen.len(), left.servers.len(), left.owes), (1, 2, Duration::ZERO));
    }

    /// A container decides how much CPU time a look takes.
    #[test]
    fn the_next_guard_does_not_wait_for_what_an_expensive_look_took() {
        let (to_found, mut found) = unbounded_channel();
        let look = |server: &ToLookAt| {
            let end = clock::thread_cpu_time() + Duration::from_millis(200);
            while server.server.0 < 2000 && clock::thread_cpu_time() < end {}
            ServerSeen::default()
        };
        let mut lanes = Lanes::start(Arc::new(look), to_found).unwrap();
        let lane = lanes.free(clock::now()).unwrap();
        lanes.give(lane, wanted(1, 3));
        let mut turn = || match found.blocking_recv() {
            Some(Sighted::Servers { seen, last: Some(left), .. }) => (seen.len(), left),
            _ => panic!("something else"),
        };
        let (seen, left) = turn();
        assert_eq!((seen, left.servers.len()), (1, 2), "its turn is over");
        assert!(left.owes >= Duration::from_millis(1900), "{:?}", left.owes);
        lanes.finished(lane);
        let began = Instant::now();
        lanes.give(lane, wanted(2, 1));
        let (seen, left) = turn();
        assert_eq!((seen, left.servers.len(), left.owes), (1, 0, Duration::ZERO));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[test]
    fn only_two_threads_work_at_a_time() {
        static DOOR: RwLock<()> = RwLock::new(());
        let closed = DOOR.write().unwrap();
        let (to_found, _found) = unbounded_channel();
        let look = |_: &ToLookAt| {
            drop(DOOR.read());
            ServerSeen::default()
        };
        let mut lanes = Lanes::start(Arc::new(look), to_found).unwrap();
        let now = clock::now();
        for guard in 1..=2 {
            let lane = lanes.free(now).unwrap();
            lanes.give(lane, wanted(guard, 1));
        }
        assert_eq!(lanes.free(now), None);
        drop(closed);
    }

    #[test]
    fn the_threads_rest_for_their_work_from_the_end_of_each_look() {
        let (mut owed, mut now) = (Owed::default(), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(owed.rest(now), None);
        // A look that hung for an hour, and worked for 6 ms.
        now += ms(3_600_000);
        assert_eq!(owed.add(now, ms(6)), Duration::ZERO);
        assert_eq!(owed.rest(now), None);
        // One of another thread at the same time, and what is beyond the share of all.
        assert_eq!(owed.add(now, ms(50)), ms(400));
        assert_eq!(owed.rest(now), Some(ms(80)));
        assert_eq!(owed.rest(now + ms(20)), Some(ms(60)));
        // They slept longer than they had to.
        assert_eq!(owed.rest(now + ms(500)), None);
        owed.add(now + ms(510), ms(10));
        assert_eq!(owed.rest(now + ms(510)), Some(ms(50)));
        assert_eq!(owed.rest(now + ms(530)), None, "the time between two guards is a rest");
    }
}
