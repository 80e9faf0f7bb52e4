//! The threads that act on servers. An order takes some seconds, and a hostile server may hold its thread up for ever. An
//! order that hangs is reported as failed after a while, and its thread is lost until the server lets it go.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

/// Threads that are created at the start: a host that is full of processes allows none later.
const AT_START: usize = 2;
const MOST: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

struct ServerThread {
    jobs: Sender<Job>,
    is_busy: Arc<AtomicBool>,
}

pub struct ServerThreads(Vec<ServerThread>);

impl ServerThreads {
    /// # Errors
    /// A thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let mut threads = Self(Vec::new());
        (0..AT_START).try_for_each(|_| threads.add())?;
        Ok(threads)
    }

    fn add(&mut self) -> io::Result<()> {
        let (jobs, wanted) = channel::<Job>();
        let is_busy = Arc::<AtomicBool>::default();
        let works = is_busy.clone();
        let work = move || {
            for job in wanted {
                // Its order is reported as failed when its time is over.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a thread that acts on servers panicked");
                }
                works.store(false, Ordering::Release);
            }
        };
        thread::Builder::new().name("servers".to_owned()).spawn(work)?;
        self.0.push(ServerThread { jobs, is_busy });
        Ok(())
    }

    /// Begins a job with these things on a free thread. Without one, they come back, and why.
    pub fn begin_with<T: Send + 'static>(
        &mut self,
        things: T,
        job: impl FnOnce(T) + Send + 'static,
    ) -> Result<(), (T, String)> {
        match self.free() {
            Ok(thread) => {
                thread.give(Box::new(move || job(things)));
                Ok(())
            }
            Err(why) => Err((things, why)),
        }
    }

    /// Begins a job on a free thread.
    ///
    /// # Errors
    /// There is none, and why there cannot be another one.
    pub fn begin(&mut self, job: impl FnOnce() + Send + 'static) -> Result<(), String> {
        self.free().map(|thread| thread.give(Box::new(job)))
    }

    fn free(&mut self) -> Result<&ServerThread, String> {
        let free = |one: &ServerThread| !one.is_busy.load(Ordering::Acquire);
        if !self.0.iter().any(free) {
            if self.0.len() >= MOST {
                return Err(format!("all {MOST} threads that act on servers are busy"));
            }
            self.add()
                .map_err(|error| format!("no thread is free, and no other begins: {error}"))?;
        }
        self.0.iter().find(|one| free(one)).ok_or_else(|| "no thread is free".to_owned())
    }
}

impl ServerThread {
    fn give(&self, job: Job) {
        self.is_busy.store(true, Ordering::Release);
        if self.jobs.send(job).is_err() {
            tracing::error!("a thread that acts on servers is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_hang_leave_threads_for_others_up_to_a_bound() {
        let mut threads = ServerThreads::start().unwrap();
        let (hold, held) = channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let hang = |threads: &mut ServerThreads| {
            let held = held.clone();
            threads.begin(move || assert!(held.lock().unwrap().recv().is_err()))
        };
        for _ in 0..MOST {
            hang(&mut threads).unwrap();
        }
        assert_eq!(
            hang(&mut threads),
            Err("all 16 threads that act on servers are busy".to_owned())
        );
        drop(hold);
    }

    #[test]
    fn a_panic_ends_one_job_alone() {
        let mut threads = ServerThreads::start().unwrap();
        let (done, ended) = channel();
        for number in 0..8 {
            let done = done.clone();
            let job = move || {
                assert!(number % 2 == 0);
                done.send(number).unwrap();
            };
            threads.begin(job).unwrap();
        }
        let mut all: Vec<_> = (0..4).map(|_| ended.recv().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 2, 4, 6]);
    }
}
