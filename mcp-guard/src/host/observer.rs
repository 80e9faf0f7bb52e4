//! Reads processes on threads of its own, because reading one can hang.
//!
//! `/proc/PID/cmdline` waits for the process's memory lock (`access_remote_vm` in the kernel). A
//! process that maps a file of a mount whose server does not answer holds that lock until the
//! server answers. Other threads then read the rest. That can hang too: most other files of a
//! process wait until it has executed its program (`exec_update_lock`), and before that it closes
//! its files, of which one may be on such a mount.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{id::Pid, registry::Observed, server::CommandLine};

use super::process;

/// The time limit for one process. Healthy ones take microseconds, but on a busy host the thread
/// may have to wait for its turn.
const PATIENCE: Duration = Duration::from_millis(250);
/// The time limit for one call, to which [`EACH`] is added for every process.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Added to [`AT_ONCE`] for every process.
const EACH: Duration = Duration::from_millis(1);
/// Most processes that may hang at a time. After that no command line is read until one of them
/// answers.
const THREADS: usize = 4;
/// Most processes that may hang at a time where the rest is read. After that it is not read either.
const PLACES: usize = 16;

type Read = fn(Pid) -> Option<Observed>;

/// Threads that read processes. Clones share them.
#[derive(Clone)]
pub struct Observer {
    whole: Readers,
    /// Read all but the command line.
    places: Readers,
}

/// A pool of threads that read processes in one way. Clones share it.
#[derive(Clone)]
struct Readers {
    pool: Arc<Mutex<Pool>>,
    read: Read,
    /// The part of a process that is not read if it hangs.
    part: &'static str,
    /// Whether the caller's thread reads, because none could be started. It may hang then, but
    /// seeing no process would be worse.
    reads_itself: bool,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Sender<ReadTask>>,
    hanging: Vec<Hanging>,
    /// Whether a process answered after its reader had given up.
    late: bool,
}

/// The observation of each process, in order.
type Seen = Mutex<Vec<Option<Observed>>>;

/// Processes to read. They are not answered one by one, because each answer wakes a thread, which costs
/// more than the reading.
struct ReadTask {
    pids: Vec<Pid>,
    seen: Weak<Seen>,
    /// Dropped at the end of the task.
    _done: Sender<()>,
    _under_way: Arc<()>,
}

struct Hanging {
    pid: Pid,
    thread: Sender<ReadTask>,
    task: Weak<()>,
}

impl Observer {
    /// Starts all threads at once, because a host that is full of processes allows none later.
    #[must_use]
    pub fn start() -> Self {
        Self::reading_with(process::observe, process::place)
    }

    /// For tests: no command line can be read.
    #[cfg(test)]
    pub(crate) fn that_hangs() -> Self {
        Self::reading_with(never, process::place)
    }

    fn reading_with(whole: Read, place: Read) -> Self {
        Self {
            whole: Readers::start(THREADS, whole, "command line"),
            places: Readers::start(PLACES, place, "process"),
        }
    }

    /// Returns those of the processes that run. The command line is empty if it cannot be read in
    /// time. A process is left out if nothing of it can be read in time.
    #[must_use]
    pub fn observe(&self, pids: Vec<Pid>) -> Vec<Observed> {
        let limit = AT_ONCE + each(&pids);
        self.observe_until(Instant::now() + limit, pids)
    }

    /// As [`Observer::observe`], with a time limit of the caller's for the command lines.
    pub fn observe_until(&self, end: Instant, pids: Vec<Pid>) -> Vec<Observed> {
        let (mut seen, unread) = self.whole.read_until(end, pids);
        if !unread.is_empty() {
            let end = Instant::now() + PATIENCE + each(&unread);
            let (places, _) = self.places.read_until(end, unread);
            let without = |one| Observed { command: CommandLine::default(), ..one };
            seen.extend(places.into_iter().map(without));
        }
        seen
    }

    /// Reads the working directory of a process, and not its command line. `None` if it does not
    /// run, or cannot be read in time.
    #[must_use]
    pub fn place(&self, pid: Pid) -> Option<Observed> {
        self.places.read_until(Instant::now() + PATIENCE, vec![pid]).0.pop()
    }

    /// Whether a process that hung has answered since the last call, so that it can be read now.
    #[must_use]
    pub fn has_answered_late(&self) -> bool {
        [&self.whole, &self.places].map(Readers::has_answered_late).contains(&true)
    }
}

fn each(pids: &[Pid]) -> Duration {
    EACH * u32::try_from(pids.len()).unwrap_or(u32::MAX)
}

impl Readers {
    fn start(threads: usize, read: Read, part: &'static str) -> Self {
        let idle: Vec<_> = (0..threads).map_while(|_| reading_thread(read).ok()).collect();
        let reads_itself = idle.is_empty();
        let pool = Pool { idle, ..Pool::default() };
        Self { pool: Arc::new(Mutex::new(pool)), read, part, reads_itself }
    }

    /// Returns those of the processes that run, and which could not be read in time.
    fn read_until(&self, end: Instant, pids: Vec<Pid>) -> (Vec<Observed>, Vec<Pid>) {
        if self.reads_itself {
            return (pids.into_iter().filter_map(self.read).collect(), Vec::new());
        }
        let known = self.known_to_hang();
        let (mut unread, mut pids): (Vec<Pid>, Vec<Pid>) =
            pids.into_iter().partition(|pid| known.contains(pid));
        let mut seen = Vec::new();
        while !pids.is_empty() && Instant::now() < end {
            let Some(thread) = self.pool().idle.pop() else { break };
            let read = self.read(thread, &pids, end, &mut seen);
            unread.extend(pids.get(read));
            pids.drain(..pids.len().min(read + 1));
        }
        unread.extend(pids);
        (seen, unread)
    }

    fn has_answered_late(&self) -> bool {
        self.known_to_hang();
        std::mem::take(&mut self.pool().late)
    }

    /// Reads processes on one thread. Returns how many were read before one that hangs.
    fn read(
        &self,
        thread: Sender<ReadTask>,
        pids: &[Pid],
        end: Instant,
        out: &mut Vec<Observed>,
    ) -> usize {
        let (done, ended) = mpsc::channel();
        let (seen, under_way) = (Arc::<Seen>::default(), Arc::new(()));
        let task = Arc::downgrade(&under_way);
        let (all, shared) = (pids.to_vec(), Arc::downgrade(&seen));
        // If the thread is gone, the task is dropped, and its sender with it.
        let _ =
            thread.send(ReadTask { pids: all, seen: shared, _done: done, _under_way: under_way });
        let mut read = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let waited = ended.recv_timeout(PATIENCE.min(left));
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            // After a timeout, what was read since the last one counts as progress.
            if waited == Err(RecvTimeoutError::Timeout) && seen.len() > read && !left.is_zero() {
                read = seen.len();
                continue;
            }
            read = seen.len();
            out.extend(seen.drain(..).flatten());
            break;
        }
        let Some(pid) = pids.get(read) else {
            self.pool().idle.push(thread);
            return read;
        };
        let mut pool = self.pool();
        pool.hanging.push(Hanging { pid: *pid, thread, task });
        let threads = pool.idle.len();
        tracing::warn!(
            pid = pid.0,
            threads,
            "the {} cannot be read: the read hangs (`threads`: readers left)",
            self.part
        );
        read
    }

    /// Puts the threads that have finished their task back into the pool. Returns the processes
    /// that still hang.
    fn known_to_hang(&self) -> Vec<Pid> {
        let mut pool = self.pool();
        let is_finished = |one: &mut Hanging| one.task.strong_count() == 0;
        let finished: Vec<Hanging> = pool.hanging.extract_if(.., is_finished).collect();
        pool.late |= !finished.is_empty();
        pool.idle.extend(finished.into_iter().map(|one| one.thread));
        pool.hanging.iter().map(|one| one.pid).collect()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
fn never(_: Pid) -> Option<Observed> {
    loop {
        thread::park();
    }
}

/// Starts a thread that reads until the pool is dropped.
fn reading_thread(read: Read) -> io::Result<Sender<ReadTask>> {
    let (sender, tasks) = mpsc::channel::<ReadTask>();
    thread::Builder::new().name("observer".to_owned()).spawn(move || {
        for task in tasks {
            for pid in &task.pids {
                let one = read(*pid);
                // Nobody waits any more if this one was slow: the others are read elsewhere.
                let Some(seen) = task.seen.upgrade() else { break };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            }
        }
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use super::*;

    fn have_argv(observer: &Observer, pids: Vec<Pid>) -> Vec<bool> {
        observer.observe(pids).iter().map(|one| !one.command.argv.is_empty()).collect()
    }

    #[test]
    fn running_processes_are_seen_with_their_command_lines() {
        let me = process::this();
        let observer = Observer::start();
        for _ in 0..2 * THREADS {
            assert_eq!(have_argv(&observer, vec![me, Pid(u32::MAX), me]), [true, true]);
        }
        let whole = Readers { reads_itself: true, ..observer.whole.clone() };
        assert_eq!(have_argv(&Observer { whole, ..observer }, vec![me]), [true]);
    }

    #[test]
    fn a_process_that_hangs_is_skipped_until_it_answers() {
        static DOOR: RwLock<()> = RwLock::new(());
        let whole = |pid| {
            drop(DOOR.read());
            process::observe(pid)
        };
        let observer = Observer::reading_with(whole, process::place);
        let closed = DOOR.write().expect("not poisoned");
        let me = process::this();
        assert_eq!(have_argv(&observer, vec![me]), [false], "seen without its command line");
        assert_eq!(have_argv(&observer, vec![me]), [false]);
        assert_eq!(observer.whole.pool().idle.len(), THREADS - 1, "it is not read twice");
        for pid in 1..8 {
            let _ = observer.observe(vec![Pid(u32::MAX - pid)]);
        }
        assert_eq!(observer.whole.pool().hanging.len(), THREADS);
        assert!(!observer.has_answered_late());
        drop(closed);
        let end = Instant::now() + Duration::from_secs(10);
        while observer.whole.pool().idle.len() < THREADS {
            assert!(Instant::now() < end, "not all of them answer");
            observer.whole.known_to_hang();
        }
        assert!(observer.has_answered_late() && !observer.has_answered_late());
        assert_eq!(have_argv(&observer, vec![me]), [true]);
    }

    #[test]
    fn a_process_of_which_nothing_can_be_read_is_left_out() {
        let observer = Observer::reading_with(never, never);
        for began in [Instant::now(); 3] {
            assert_eq!(have_argv(&observer, vec![process::this()]).len(), 0);
            assert!(observer.place(process::this()).is_none());
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        }
        assert_eq!(observer.places.pool().hanging.len(), 1, "it is not read twice");
    }

    #[test]
    fn many_slow_processes_do_not_block_the_caller() {
        let slow = |_| {
            thread::sleep(PATIENCE / 2);
            None
        };
        let observer = Observer::reading_with(slow, process::place);
        let began = Instant::now();
        let _ = observer.observe(vec![Pid(u32::MAX); 1000]);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }
}
