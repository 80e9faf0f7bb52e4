//! The queue of audit lines between the loop and the thread that writes them.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mcp_guard_core::audit::Line;

/// Most lines kept while the log cannot be written.
pub const MAX_WAITING: usize = 4096;

#[derive(Default)]
struct Pending {
    lines: VecDeque<Line>,
    /// The writer has taken a line and not written it yet.
    is_writing: bool,
    /// The last attempt to write failed, so waiting would be useless.
    is_failing: bool,
    /// No more lines will follow.
    is_closed: bool,
}

#[derive(Default)]
pub struct Queue {
    state: Mutex<Pending>,
    changed: Condvar,
    lost: AtomicU64,
}

/// The result of [`Queue::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    All,
    /// The number of lines that could not be written.
    Without(usize),
}

impl Queue {
    pub fn push(&self, line: Line) {
        let mut state = self.lock();
        if state.lines.len() == MAX_WAITING {
            state.lines.pop_front();
            self.lose();
        }
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Counts a line that could not be written.
    pub fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns whether at least half of the queue is free.
    pub fn has_room(&self) -> bool {
        self.lock().lines.len() < MAX_WAITING / 2
    }

    /// Waits for the next line. Returns None if the queue is closed and empty. The writer calls
    /// [`Queue::written`] after each line.
    pub fn next(&self) -> Option<Line> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return Some(line);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records that the line taken last is written.
    pub fn written(&self) {
        let mut state = self.lock();
        (state.is_writing, state.is_failing) = (false, false);
        drop(state);
        self.changed.notify_all();
    }

    /// Records that the line taken last could not be written, and waits before the next attempt. Returns
    /// false if the queue is closed, so that no attempt should follow.
    pub fn failed(&self, pause: Duration) -> bool {
        let mut state = self.lock();
        state.is_failing = true;
        self.changed.notify_all();
        let is_open = |state: &mut Pending| !state.is_closed;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, pause, is_open)
            .unwrap_or_else(PoisonError::into_inner);
        !state.is_closed
    }

    /// Returns the number of waiting lines, including the one being written.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.lines.len() + usize::from(state.is_writing)
    }

    /// Returns whether the last attempt to write failed.
    #[cfg(test)]
    pub fn is_failing(&self) -> bool {
        self.lock().is_failing
    }

    /// Waits until all lines are written, for at most `within`, and not at all if the log refuses them.
    /// Closes the queue.
    pub fn finish(&self, within: Duration) -> Finished {
        let end = Instant::now() + within;
        let mut state = self.lock();
        let left = |state: &Pending| state.lines.len() + usize::from(state.is_writing);
        while left(&state) > 0 && !state.is_failing {
            let Some(rest) = end.checked_duration_since(Instant::now()) else { break };
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_closed = true;
        let left = left(&state);
        drop(state);
        self.changed.notify_all();
        if left == 0 { Finished::All } else { Finished::Without(left) }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
