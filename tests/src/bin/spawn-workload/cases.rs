//! A worker: runs rounds of one case, or of all cases in turn, until its time or the budget is used
//! up.

use crate::births::{self, Program, Status};
use crate::ledger::Ledger;
use crate::options::{Case, Options, TICK};
use anyhow::{Context, Result, ensure};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

/// One byte for each CLONE_PARENT child of a worker that may wait for the main process to reap it.
const CREDITS: [u8; 16] = [b'c'; 16];
/// Threads alive at once in one round.
const THREADS: usize = 4;

pub struct Worker<'a> {
    ledger: &'static Ledger,
    into: Option<i32>,
    alive: u64,
    program: Program,
    stack: Vec<u128>,
    credits: (&'a PipeReader, &'a PipeWriter),
}

impl<'a> Worker<'a> {
    pub fn new(
        options: &Options,
        ledger: &'static Ledger,
        memory: i32,
        credits: (&'a PipeReader, &'a PipeWriter),
    ) -> Result<Self> {
        // A worker may wait for credits, so it must not outlive the main process, which sends them.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let (_, mut purse) = credits;
        purse.write_all(&CREDITS).context("cannot write credits")?;
        Ok(Self {
            ledger,
            into: options.into.as_ref().map(AsRawFd::as_raw_fd),
            alive: options.alive,
            program: Program::this_one([TICK, &memory.to_string()])?,
            stack: vec![0; 4096],
            credits,
        })
    }

    pub fn run(&mut self, case: Case, end: Instant) -> Result<()> {
        let turns = if case == Case::Mix { Case::all(self.into.is_some()) } else { vec![case] };
        for turn in turns.iter().cycle() {
            if Instant::now() >= end || self.ledger.spent() {
                break;
            }
            self.round(*turn).with_context(|| turn.name())?;
        }
        Ok(())
    }

    fn round(&mut self, case: Case) -> Result<()> {
        match case {
            Case::Fork => self.one(|_| births::fork(|| 0)),
            Case::Vfork => self.one(|worker| births::vfork(&mut worker.stack)),
            Case::Clone3 => self.one(|_| births::clone3(0, None)),
            Case::IntoCgroup => self.one(|worker| births::clone3(0, worker.into)),
            Case::Exec => self.one(|worker| births::fork(|| worker.program.exec())),
            Case::ExecThread => self.one(|worker| births::fork(|| worker.exec_from_a_thread())),
            Case::CloneParent => self.give_away(),
            Case::Threads => self.threads(),
            Case::Bomb => self.bomb(),
            Case::Mix => Ok(()),
        }
    }

    /// Creates one child and reaps it at once.
    fn one(&mut self, birth: impl FnOnce(&mut Self) -> std::io::Result<i32>) -> Result<()> {
        if !self.ledger.claim() {
            return Ok(());
        }
        let result = birth(self);
        match self.ledger.born(result)? {
            Some(pid) => reap_fine(pid),
            None => Ok(()),
        }
    }

    /// In the forked child: a second thread replaces the whole process. It waits until the first
    /// thread, which the exec will kill, has recorded it in the ledger.
    fn exec_from_a_thread(&self) -> i32 {
        if !self.ledger.claim() {
            return 0;
        }
        let (booked, wait) = sync_channel::<()>(1);
        let result = thread::scope(|scope| {
            let program = &self.program;
            let replace = move || {
                if wait.recv().is_ok() {
                    births::exit(program.exec());
                }
            };
            let thread = thread::Builder::new().spawn_scoped(scope, replace);
            let thread = self.ledger.threaded(thread)?;
            thread.map_or(Ok(()), |_| booked.send(()).context("the second thread has ended"))
        });
        i32::from(result.is_err())
    }

    /// Creates a child with CLONE_PARENT: it becomes a sibling, and the main process reaps it.
    fn give_away(&mut self) -> Result<()> {
        let (mut credits, mut purse) = self.credits;
        credits.read_exact(&mut [0]).context("cannot read a credit")?;
        let claimed = self.ledger.claim();
        if claimed && self.ledger.born(births::clone3(libc::CLONE_PARENT, None))?.is_some() {
            return Ok(());
        }
        purse.write_all(b"c").context("cannot return a credit")
    }

    fn threads(&mut self) -> Result<()> {
        let mut alive = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            if self.ledger.claim() {
                alive.extend(self.ledger.threaded(thread::Builder::new().spawn(|| ()))?);
            }
        }
        for thread in alive {
            ensure!(thread.join().is_ok(), "a thread panicked");
        }
        Ok(())
    }

    /// Tries to have the requested number of children alive at once. They end when the pipe's last
    /// writer closes it, so they never outlive this worker.
    fn bomb(&mut self) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
        let ends = (reader.as_raw_fd(), writer.as_raw_fd());
        let mut alive = Vec::new();
        for _ in 0..self.alive {
            if !self.ledger.claim() {
                break;
            }
            let child = births::fork(|| births::wait_for_hangup(ends.0, ends.1));
            alive.extend(self.ledger.born(child)?);
        }
        drop(writer);
        alive.into_iter().try_for_each(reap_fine)
    }
}

fn reap_fine(pid: i32) -> Result<()> {
    ensure!(births::reap(pid)? == Status::Fine, "a child failed");
    Ok(())
}
