//! A thread for looks that take too long for the loop.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::refusal::BystanderFacts;

use super::Look;
use crate::host::cgroup::Cgroup;

/// How long the thread that needs a look takes it itself.
const BRIEF: Duration = Duration::from_millis(10);
/// How long one look goes on before it is the turn of the next.
const SLICE: Duration = Duration::from_millis(20);

type Done = Box<dyn FnOnce(io::Result<BystanderFacts>) + Send>;

/// Ends looks that were begun elsewhere. They take turns, so that a large container only waits for itself.
#[derive(Clone)]
pub struct LookThread(Sender<(Look, Done)>);

impl LookThread {
    /// # Errors
    /// The thread cannot be created.
    pub fn start() -> io::Result<Self> {
        let (looks, begun) = channel();
        thread::Builder::new().name("looks".to_owned()).spawn(move || serve(&begun))?;
        Ok(Self(looks))
    }

    /// Looks at a cgroup. `None` if it is large: the look then goes on on the other thread, and `done` gets
    /// what is found, there.
    pub fn look(
        &self,
        cgroup: &Cgroup,
        done: impl FnOnce(io::Result<BystanderFacts>) + Send + 'static,
    ) -> Option<io::Result<BystanderFacts>> {
        let end = Instant::now() + BRIEF;
        let looked = Look::begin(cgroup)
            .and_then(|mut look| Ok((look.go_on(&|| Instant::now() < end)?, look)));
        match looked {
            Ok((true, look)) => Some(Ok(look.into_facts())),
            Ok((false, look)) => {
                self.end(look, Box::new(done));
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn end(&self, look: Look, done: Done) {
        if let Err(unsent) = self.0.send((look, done)) {
            let (_, done) = unsent.0;
            done(Err(io::Error::other("the thread that looks at cgroups is gone")));
        }
    }
}

fn serve(begun: &Receiver<(Look, Done)>) {
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
        let Some((mut look, done)) = looks.pop_front() else { continue };
        let end = Instant::now() + SLICE;
        // A panic must not end the thread: nobody would ever be answered again.
        let went_on = catch_unwind(AssertUnwindSafe(|| look.go_on(&|| Instant::now() < end)));
        match went_on {
            Ok(Ok(true)) => done(Ok(look.into_facts())),
            Ok(Ok(false)) => looks.push_back((look, done)),
            Ok(Err(error)) => done(Err(error)),
            Err(_) => done(Err(io::Error::other("the look at the cgroup panicked"))),
        }
    }
}
