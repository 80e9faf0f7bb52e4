//! Orphans: holds left behind by an agent that did not stop cleanly. They are found by their marks
//! and released.

use std::{io, time::Duration};

use mcp_guard_core::{
    audit::Record,
    container::container_in,
    id::{Incident, Pid, Ticks},
    incident::{End, Hold, Outcome},
};

use super::{Executor, hold::release_record, is_gone, steps};
use crate::guards::Held;
use crate::host::{
    cgroup::Cgroup,
    clock,
    layout::Layout,
    mark::{self, Mark, MarkFound},
    patience::{self, NoAnswer},
    process,
};

/// How long the holder of a mark may take to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// A marked cgroup whose holder is gone.
pub struct Orphan {
    pub hold: Hold,
    pub held: Held,
    /// `None` if it is forged.
    mark: Option<Mark>,
}

/// The treatment of marks that have no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsigned {
    /// There was no key until now: they are of an older version.
    AreOurs,
    AreForged,
}

impl Unsigned {
    /// Prepares the key for marks, and decides.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn decide() -> io::Result<Self> {
        Ok(if mark::prepare_key()? { Self::AreOurs } else { Self::AreForged })
    }
}

impl Orphan {
    /// Why it was held.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.mark.as_ref().map_or("a forged mark", |mark| &mark.reason)
    }

    /// Reads the mark again.
    fn mark_now(&self) -> Option<Mark> {
        let dir = match self.hold {
            Hold::Freeze => Some(self.held.cgroup.dir()),
            Hold::Clamp => self.held.cgroup.pids_dir(),
        };
        dir.and_then(|dir| mark::read(dir, self.hold).ok()).flatten()
    }
}

/// Finds every mark on this host that no other process will remove: its holder no longer runs, is
/// this process, or has let the deadline pass, as a stopped process does; or it is forged. It also
/// returns an error if not all cgroups could be read.
pub fn find(layout: &Layout, unsigned: Unsigned) -> (Vec<Orphan>, io::Result<()>) {
    let mut found = Vec::new();
    let read = search(layout, unsigned, &mut found);
    if read.is_ok()
        && unsigned == Unsigned::AreOurs
        && let Err(error) = mark::all_are_signed()
    {
        tracing::warn!(%error, "marks without a code count as ours until the next start");
    }
    (found, read)
}

fn search(layout: &Layout, unsigned: Unsigned, found: &mut Vec<Orphan>) -> io::Result<()> {
    let boot_id = clock::boot_id();
    let mut read = Ok(());
    for (hold, root) in Cgroup::roots(layout)? {
        let mut unread = Ok(());
        let walked = root.walk_all(&mut |dir, path| {
            let mark = match mark::find(dir, hold) {
                Ok(MarkFound::Ours(mark)) => Some(mark),
                Ok(MarkFound::Unsigned(mark)) if unsigned == Unsigned::AreOurs => {
                    steps::adopt(dir, hold, &mark).is_ok().then_some(mark)
                }
                Ok(MarkFound::Unsigned(_) | MarkFound::Forged) => None,
                Ok(MarkFound::Nothing) => return Ok(()),
                Err(error) => {
                    if !is_gone(&error) && unread.is_ok() {
                        unread = Err(error);
                    }
                    return Ok(());
                }
            };
            if !mark.as_ref().is_some_and(|mark| will_be_undone(mark, &boot_id))
                && let Ok(mut cgroup) = Cgroup::at(dir, path, hold, layout)
            {
                // For the limit beside a freeze.
                cgroup.find_pids(layout);
                let name = container_in(path).map_or(path, |container| container.id).to_owned();
                let container = container_in(path).map(|container| container.id.to_owned());
                let held = Held::new(cgroup, &name, container, false);
                found.push(Orphan { hold, held, mark });
            }
            Ok(())
        });
        read = read.and(walked).and(unread);
    }
    read
}

fn will_be_undone(mark: &Mark, boot_id: &str) -> bool {
    mark.holder != process::this()
        && mark.boot_id == boot_id
        && clock::now() < mark.deadline
        && is_alive(mark.holder, mark.holder_start)
}

/// Another process may have got the pid, and the reading of one can hang. That of an agent does not.
fn is_alive(pid: Pid, start: Ticks) -> bool {
    match patience::within(PATIENCE, move || process::is_alive(pid, start)) {
        Ok(is_alive) => is_alive,
        Err(NoAnswer::Late(_)) => false,
        Err(NoAnswer::NoThread(_)) => process::is_alive(pid, start),
    }
}

impl Executor {
    /// Releases an orphan. `held.paused` must be what the engine reports now. `None` if it ended
    /// meanwhile with the release of another: a limit that was lowered beside a freeze.
    pub fn release_orphan(&mut self, orphan: &Orphan, end: End) -> Option<Outcome> {
        let Orphan { hold, held, mark } = orphan;
        let subject = &held.subject;
        let now = orphan.mark_now();
        if now.is_none() && mark.as_ref().is_some_and(Mark::ends_with_a_freeze) {
            return None;
        }
        // Nothing that a forger wrote gets into the log.
        let (incident, begin) = match mark {
            Some(mark) => {
                let begin = format!("marked by process {}: {}", mark.holder, mark.reason);
                (mark.incident.clone(), begin)
            }
            None => (Incident::from("forged"), "its mark is forged".to_owned()),
        };
        self.audit.write(release_record(&incident, subject, *hold, end, None, begin));
        let (outcome, detail) = match hold {
            // The engine was asked after the orphan was found, and that takes time.
            _ if now.is_some_and(|now| is_of_another(&now, mark.as_ref())) => (
                Outcome::NotOurs,
                "another process holds the cgroup now; the hold is left to it".to_owned(),
            ),
            Hold::Freeze if mark.as_ref().is_some_and(|mark| mark.of_a_server) => {
                steps::give_back_server(&held.cgroup)
            }
            Hold::Freeze => steps::thaw(&held.cgroup, self.engine_freezes(held)),
            Hold::Clamp => steps::unclamp(&held.cgroup),
        };
        tracing::info!(cgroup = subject.cgroup, ?hold, ?outcome, detail, "released an orphan");
        let record: Record = release_record(&incident, subject, *hold, end, Some(outcome), detail);
        self.audit.write(record);
        Some(outcome)
    }
}

/// Whether the hold was released meanwhile, and another process holds the cgroup now. The release of a
/// freeze changes the mark of a clamp beneath it.
fn is_of_another(now: &Mark, found: Option<&Mark>) -> bool {
    let key = |mark: &Mark| (mark.incident.clone(), mark.holder, mark.deadline);
    found.map(key) != Some(key(now))
}
