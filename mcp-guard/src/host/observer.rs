//! Reads processes on threads of its own, because the read of a command line can hang.
//!
//! `/proc/PID/cmdline` waits for the memory lock of the process (`access_remote_vm` of the kernel), and a
//! process that maps a file of a mount whose server is silent holds that lock until the server answers.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::{id::Pid, registry::Observed};

use super::process;

/// For one process; healthy ones take microseconds, on a busy host the thread's turn may take longer.
const PATIENCE: Duration = Duration::from_millis(250);
/// For all that are asked about at once: so much, and so much more for each of them.
const AT_ONCE: Duration = Duration::from_millis(500);
const EACH: Duration = Duration::from_millis(1);
/// So many processes may hang at a time; then no command line is read until one of them answers.
const THREADS: usize = 4;

type Read = fn(Pid) -> Option<Observed>;

/// A pool of threads that read. Clones share it.
#[derive(Clone)]
pub struct Observer {
    pool: Arc<Mutex<Pool>>,
    /// There was no room for a thread: to hang is possible then, to see nothing is worse.
    reads_itself: bool,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Sender<Task>>,
    hanging: Vec<Hanging>,
    /// A process answered for which nobody waited any more.
    late: bool,
}

/// Processes to look at, and where what is seen of each goes, in their order.
struct Task {
    pids: Vec<Pid>,
    seen: Sender<Option<Observed>>,
    _under_way: Arc<()>,
}

struct Hanging {
    pid: Pid,
    thread: Sender<Task>,
    task: Weak<()>,
}

impl Observer {
    /// Makes the threads at once: a host that is full of processes gives none later.
    #[must_use]
    pub fn start() -> Self {
        Self::reading_with(process::observe)
    }

    fn reading_with(read: Read) -> Self {
        let idle: Vec<_> = (0..THREADS).map_while(|_| reading_thread(read).ok()).collect();
        let reads_itself = idle.is_empty();
        let pool = Pool { idle, ..Pool::default() };
        Self { pool: Arc::new(Mutex::new(pool)), reads_itself }
    }

    /// Those of these processes that run; the command line is empty where it is not to be had in time.
    #[must_use]
    pub fn observe(&self, pids: Vec<Pid>) -> Vec<Observed> {
        if self.reads_itself {
            return pids.into_iter().filter_map(process::observe).collect();
        }
        let limit = AT_ONCE + EACH * u32::try_from(pids.len()).unwrap_or(u32::MAX);
        let end = Instant::now() + limit;
        let known = self.known_to_hang();
        let (unread, mut pids): (Vec<Pid>, Vec<Pid>) =
            pids.into_iter().partition(|pid| known.contains(pid));
        let mut seen: Vec<Observed> =
            unread.into_iter().filter_map(process::without_argv).collect();
        while !pids.is_empty() && Instant::now() < end {
            let Some(thread) = self.pool().idle.pop() else { break };
            let read = self.read(thread, &pids, end, &mut seen);
            if let Some(hanging) = pids.get(read) {
                seen.extend(process::without_argv(*hanging));
            }
            pids.drain(..pids.len().min(read + 1));
        }
        seen.extend(pids.into_iter().filter_map(process::without_argv));
        seen
    }

    /// Whether a process that had hung has answered since the last call: what it runs may be read now.
    #[must_use]
    pub fn has_answered_late(&self) -> bool {
        self.known_to_hang();
        std::mem::take(&mut self.pool().late)
    }

    /// How many of them were read before one that hangs.
    fn read(
        &self,
        thread: Sender<Task>,
        pids: &[Pid],
        end: Instant,
        out: &mut Vec<Observed>,
    ) -> usize {
        let (sender, seen) = mpsc::channel();
        let under_way = Arc::new(());
        let task = Arc::downgrade(&under_way);
        // A thread that is gone drops the task, and with it the sender.
        let _ = thread.send(Task { pids: pids.to_vec(), seen: sender, _under_way: under_way });
        for (read, pid) in pids.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            if let Ok(process) = seen.recv_timeout(PATIENCE.min(left)) {
                out.extend(process);
                continue;
            }
            let mut pool = self.pool();
            pool.hanging.push(Hanging { pid: *pid, thread, task });
            let (pid, threads) = (*pid, pool.idle.len());
            tracing::warn!(
                pid = pid.0,
                threads,
                "its command line cannot be read; threads left for others"
            );
            return read;
        }
        self.pool().idle.push(thread);
        pids.len()
    }

    /// Takes back the threads that are through with their task.
    fn known_to_hang(&self) -> Vec<Pid> {
        let mut pool = self.pool();
        let is_through = |one: &mut Hanging| one.task.strong_count() == 0;
        let through: Vec<Hanging> = pool.hanging.extract_if(.., is_through).collect();
        pool.late |= !through.is_empty();
        pool.idle.extend(through.into_iter().map(|one| one.thread));
        pool.hanging.iter().map(|one| one.pid).collect()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It ends when nobody can give it a task any more.
fn reading_thread(read: Read) -> io::Result<Sender<Task>> {
    let (sender, tasks) = mpsc::channel::<Task>();
    thread::Builder::new().name("observer".to_owned()).spawn(move || {
        for task in tasks {
            // Until nobody waits any more.
            let _ = task.pids.iter().try_for_each(|pid| task.seen.send(read(*pid)));
        }
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use super::*;

    fn have_argv(observer: &Observer, pids: Vec<Pid>) -> Vec<bool> {
        observer.observe(pids).iter().map(|one| !one.argv.is_empty()).collect()
    }

    #[test]
    fn what_runs_is_seen_with_its_command_line() {
        let me = process::this();
        let observer = Observer::start();
        for _ in 0..2 * THREADS {
            assert_eq!(have_argv(&observer, vec![me, Pid(u32::MAX), me]), [true, true]);
        }
        let pool = Arc::default();
        assert_eq!(have_argv(&Observer { pool, reads_itself: true }, vec![me]), [true]);
    }

    #[test]
    fn one_that_hangs_is_left_until_it_answers() {
        static DOOR: RwLock<()> = RwLock::new(());
        let observer = Observer::reading_with(|pid| {
            drop(DOOR.read());
            process::observe(pid)
        });
        let closed = DOOR.write().expect("not poisoned");
        let me = process::this();
        assert_eq!(have_argv(&observer, vec![me]), [false], "seen all the same");
        assert_eq!(have_argv(&observer, vec![me]), [false]);
        assert_eq!(observer.pool().idle.len(), THREADS - 1, "it is not asked about twice");
        for pid in 1..8 {
            let _ = observer.observe(vec![Pid(u32::MAX - pid)]);
        }
        assert_eq!(observer.pool().hanging.len(), THREADS);
        assert!(!observer.has_answered_late());
        drop(closed);
        let end = Instant::now() + Duration::from_secs(10);
        while observer.pool().idle.len() < THREADS {
            assert!(Instant::now() < end, "not all answer");
            observer.known_to_hang();
        }
        assert!(observer.has_answered_late() && !observer.has_answered_late());
        assert_eq!(have_argv(&observer, vec![me]), [true]);
    }

    #[test]
    fn many_that_are_slow_hold_nobody_up() {
        let observer = Observer::reading_with(|_| {
            thread::sleep(PATIENCE / 2);
            None
        });
        let began = Instant::now();
        let _ = observer.observe(vec![Pid(u32::MAX); 1000]);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }
}
