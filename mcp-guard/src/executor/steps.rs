//! The steps that change a cgroup. Each checks that the state belongs to no other process, marks it
//! as ours before it changes anything, and reads back what it wrote.

mod growth;

use std::{io, os::fd::AsFd};

use mcp_guard_core::{
    Time,
    audit::LimitChange,
    id::{Incident, Pid, Ticks},
    incident::{Cause, Hold, Outcome},
    limit::{Limit, clamped, loosened},
    policy::Mode,
};

pub use self::growth::stop_growth;
use self::growth::{allow_growth, clamp_beneath};
use crate::host::{
    cgroup::{Cgroup, ChildCgroup, Dir, TaskCount},
    cgroupfs::Events,
    clock,
    facts::Sharing,
    mark::{self, Mark, MarkFound},
    process,
};

/// The result of a step.
pub enum Step {
    Settled(Outcome, String),
    /// Not frozen, because of a process that serves a FUSE file system. Why, in words.
    Spared(String),
    /// Written at this time; the kernel confirms later.
    Written(Time, Until),
}

/// The state that the kernel must confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// `frozen 1` in `cgroup.events`.
    Frozen,
    /// `populated 0` in `cgroup.events`.
    Dead,
}

impl Until {
    #[must_use]
    pub fn is_reached(self, events: Events) -> bool {
        match self {
            Self::Frozen => events.frozen,
            Self::Dead => !events.populated,
        }
    }

    /// Counts the tasks that have not reached it.
    #[must_use]
    pub fn left(self, dir: &Dir) -> TaskCount {
        match self {
            Self::Frozen => dir.unstopped_tasks(),
            Self::Dead => dir.tasks(),
        }
    }
}

/// The process that owns the holds it marks.
pub struct Holder {
    pid: Pid,
    start: Ticks,
    boot_id: String,
}

impl Holder {
    #[must_use]
    pub fn this_process() -> Self {
        let pid = process::this();
        let start = process::OpenProcess::open(pid)
            .and_then(|process| process.start_ticks())
            .unwrap_or_default();
        Self { pid, start, boot_id: clock::boot_id() }
    }

    #[must_use]
    pub fn mark(&self, incident: &Incident, cause: &Cause, deadline: Time) -> Mark {
        let reason = match (&cause.detector, &cause.identity) {
            (None, _) => "operator".to_owned(),
            (Some(detector), None) => format!("{detector:?}"),
            (Some(detector), Some(identity)) => format!("{detector:?} of {identity}"),
        };
        Mark {
            incident: incident.clone(),
            reason,
            deadline,
            boot_id: self.boot_id.clone(),
            holder: self.pid,
            holder_start: self.start,
            found: None,
            wrote: None,
            before: None,
            freeze: None,
            of_a_server: false,
        }
    }
}

/// Requests a freeze. If it is slow, [`stop_growth`] follows.
pub fn freeze(cgroup: &Cgroup, paused: bool, mode: Mode, mark: &Mark) -> Step {
    let attempt = || -> io::Result<Step> {
        if paused {
            return Ok(not_ours("the engine has paused the container; its freeze is left alone"));
        }
        if cgroup.freeze_requested()? {
            return Ok(match mark::read(cgroup.dir(), Hold::Freeze)? {
                Some(_) => not_ours("the cgroup is already frozen by mcp-guard"),
                None => {
                    not_ours("another process has already frozen it; that freeze is left alone")
                }
            });
        }
        if mode == Mode::Observe {
            return Ok(Step::Settled(
                Outcome::WouldDo,
                "would write 1 to cgroup.freeze".to_owned(),
            ));
        }
        mark::write(cgroup.dir(), Hold::Freeze, mark)?;
        if let Err(error) = cgroup.request_freeze(true) {
            let _ = mark::remove(cgroup.dir(), Hold::Freeze);
            return Err(error);
        }
        Ok(Step::Written(clock::now(), Until::Frozen))
    };
    attempt().unwrap_or_else(failed)
}

/// Thaws a cgroup if it carries our mark, and gives back the limit beside the freeze.
/// `engine_freezes`: the engine has paused it through the same file.
pub fn thaw(cgroup: &Cgroup, engine_freezes: bool) -> (Outcome, String) {
    // Before the thaw, so that no task inside meets the lower limit.
    let limit = allow_growth(cgroup);
    let (thawed, detail) = thaw_alone(cgroup, engine_freezes);
    let Some((raised, said)) = limit else { return (thawed, detail) };
    let failed = thawed == Outcome::Done && raised == Outcome::Failed;
    (if failed { raised } else { thawed }, format!("{detail}; {said}"))
}

fn thaw_alone(cgroup: &Cgroup, engine_freezes: bool) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let note = match mark::find(cgroup.dir(), Hold::Freeze)? {
            MarkFound::Nothing => {
                return Ok(left(
                    "the cgroup carries no mark of mcp-guard, so its freeze is not ours to end",
                ));
            }
            MarkFound::Ours(_) => "",
            // It may be ours, if the key was lost: nothing stays frozen.
            MarkFound::Unsigned(_) | MarkFound::Forged => "; its mark was forged",
        };
        if engine_freezes {
            mark::remove(cgroup.dir(), Hold::Freeze)?;
            return Ok(left(
                "the engine has paused the container and owns the freeze now; the mark is removed",
            ));
        }
        if !cgroup.freeze_requested()? {
            mark::remove(cgroup.dir(), Hold::Freeze)?;
            return Ok(left("another process had already thawed it; the mark is removed"));
        }
        cgroup.request_freeze(false)?;
        if cgroup.freeze_requested()? {
            return Ok((Outcome::Failed, "cgroup.freeze reads 1 after 0 was written".to_owned()));
        }
        mark::remove(cgroup.dir(), Hold::Freeze)?;
        let frozen_above = cgroup.events()?.frozen;
        let above = if frozen_above { "; a cgroup above it is still frozen" } else { "" };
        Ok((Outcome::Done, format!("cgroup.freeze 0 read back{note}{above}")))
    };
    attempt().unwrap_or_else(gone)
}

/// Marks the cgroup of a server that is about to be suspended.
pub fn mark_server(child: &ChildCgroup, mark: &Mark) -> io::Result<()> {
    mark::write(child.dir(), Hold::Freeze, mark)
}

/// Thaws the cgroup of a suspended server, moves its processes to the cgroup above, and removes it with its mark.
pub fn give_back_server(cgroup: &Cgroup) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        cgroup.child_of_ours()?.give_back()?;
        Ok((Outcome::Done, "its processes are back in the cgroup above".to_owned()))
    };
    attempt().unwrap_or_else(gone)
}

pub fn kill(cgroup: &Cgroup, mode: Mode) -> Step {
    if mode == Mode::Observe {
        return Step::Settled(Outcome::WouldDo, "would write 1 to cgroup.kill".to_owned());
    }
    match cgroup.kill() {
        Ok(()) => Step::Written(clock::now(), Until::Dead),
        Err(error) => failed(error),
    }
}

/// Returns the limit that a clamp would find, and the one it would write.
pub fn planned_clamp(cgroup: &Cgroup, headroom: u64) -> io::Result<LimitChange> {
    let found = cgroup.pids_max()?;
    let wanted = clamped(found, cgroup.pids_current()?, headroom).unwrap_or(found);
    Ok(LimitChange { found: found.to_string(), wanted: wanted.to_string() })
}

/// `sharing`: whether others share the pids cgroup.
pub fn clamp(
    cgroup: &Cgroup,
    (headroom, sharing): (u64, Sharing),
    mode: Mode,
    mut mark: Mark,
) -> Step {
    let mut attempt = || -> io::Result<Step> {
        let Some(dir) = cgroup.pids_dir() else {
            return Ok(Step::Settled(
                Outcome::Failed,
                "the cgroup has no pids controller".to_owned(),
            ));
        };
        match mark::read(dir, Hold::Clamp)? {
            Some(beside) if beside.ends_with_a_freeze() => {
                return clamp_beneath(cgroup, (beside, mark.deadline), headroom, mode);
            }
            Some(_) => return Ok(not_ours("the cgroup is already clamped by mcp-guard")),
            None => {}
        }
        if let Some(other) = bystander(cgroup, sharing)? {
            let detail = format!("process {other} is outside the guard but shares its pids cgroup");
            return Ok(Step::Settled(Outcome::Refused, detail));
        }
        let found = cgroup.pids_max()?;
        let Some(wanted) = clamped(found, cgroup.pids_current()?, headroom) else {
            return Ok(not_ours(&format!(
                "pids.max {found} already leaves no more than the headroom"
            )));
        };
        if mode == Mode::Observe {
            let detail = format!("would write {wanted} to pids.max, now {found}");
            return Ok(Step::Settled(Outcome::WouldDo, detail));
        }
        mark.found = Some(found.to_string());
        mark.wrote = Some(wanted.to_string());
        mark::write(dir, Hold::Clamp, &mark)?;
        if let Err(error) = cgroup.set_pids_max(wanted) {
            let _ = mark::remove(dir, Hold::Clamp);
            return Err(error);
        }
        let read = cgroup.pids_max()?;
        if read != wanted {
            let detail = format!("pids.max reads {read} after {wanted} was written");
            return Ok(Step::Settled(Outcome::Failed, detail));
        }
        let detail =
            format!("pids.max {found} -> {read} read back; new processes and threads may fail");
        Ok(Step::Settled(Outcome::Done, detail))
    };
    attempt().unwrap_or_else(failed)
}

/// Returns a process outside the guard that shares its pids cgroup, so that a lower limit would hit it
/// too.
fn bystander(cgroup: &Cgroup, sharing: Sharing) -> io::Result<Option<Pid>> {
    match sharing {
        Sharing::Nobody => Ok(None),
        Sharing::With(other) => Ok(Some(other)),
        Sharing::NotLooked if !cgroup.may_share_pids() => Ok(None),
        Sharing::NotLooked => Err(io::Error::other("it is not known who shares the pids cgroup")),
    }
}

/// Returns the command that gives a cgroup another limit.
#[must_use]
pub fn raise_command(path: &str) -> String {
    format!("mcp-guard repair --limit NUMBER 'cgroup:{path}'")
}

/// Restores the limit that was found, if the current one is still ours.
pub fn unclamp(cgroup: &Cgroup) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let Some(dir) = cgroup.pids_dir() else {
            return Ok(left("the cgroup has no pids controller"));
        };
        let mark = match mark::find(dir, Hold::Clamp)? {
            MarkFound::Ours(mark) => mark,
            MarkFound::Nothing => {
                return Ok(left(
                    "the cgroup carries no mark of mcp-guard, so its limit is not ours to change",
                ));
            }
            MarkFound::Unsigned(_) | MarkFound::Forged => {
                let now = cgroup.pids_max()?;
                mark::note_kept(dir, now)?;
                mark::remove(dir, Hold::Clamp)?;
                return Ok(left(&format!(
                    "its mark was forged and is removed; pids.max is not changed: it stays at {now}. If \
                     mcp-guard lowered it and lost its key, raise it again: {}",
                    raise_command(cgroup.path())
                )));
            }
        };
        let found = mark.found.as_deref().and_then(Limit::parse);
        let now = cgroup.pids_max()?;
        let (Some(found), true) = (found, mark.wrote_limit(now)) else {
            mark::remove(dir, Hold::Clamp)?;
            return Ok(left(&format!(
                "pids.max has changed to {now} since then; it is left alone, and the mark is removed"
            )));
        };
        cgroup.set_pids_max(found)?;
        let read = cgroup.pids_max()?;
        if read != found {
            let detail = format!("pids.max reads {read} after {found} was written");
            return Ok((Outcome::Failed, detail));
        }
        mark::remove(dir, Hold::Clamp)?;
        Ok((Outcome::Done, format!("pids.max {now} -> {read} read back")))
    };
    attempt().unwrap_or_else(gone)
}

/// Writes a limit that has no owner. It is permanent, so it carries no mark.
pub fn limit(cgroup: &Cgroup, limit: Limit) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        // The check before this order was announced may be old by now.
        if is_clamped(cgroup) {
            return Ok(left("mcp-guard has clamped the cgroup meanwhile"));
        }
        let found = cgroup.pids_max()?;
        cgroup.set_pids_max(limit)?;
        Ok(limit_is(cgroup, &found.to_string(), limit))
    };
    attempt().unwrap_or_else(gone)
}

/// Compares the kernel's limit with the one that was written.
pub fn limit_is(cgroup: &Cgroup, found: &str, wanted: Limit) -> (Outcome, String) {
    match cgroup.pids_max() {
        Ok(read) if read == wanted => {
            (Outcome::Done, format!("pids.max {found} -> {read} read back"))
        }
        Ok(read) => (Outcome::Failed, format!("pids.max reads {read} after {wanted} was written")),
        Err(error) => gone(error),
    }
}

/// Whether a clamp is in force, of this process or an earlier one. What a freeze has lowered is no clamp:
/// a limit that is written meanwhile replaces it and stays, and the freeze goes on.
pub fn is_clamped(cgroup: &Cgroup) -> bool {
    let mark = cgroup.pids_dir().and_then(|dir| mark::read(dir, Hold::Clamp).ok()).flatten();
    let now = cgroup.pids_max();
    let is_clamp = |mark: &Mark| !mark.ends_with_a_freeze();
    mark.filter(is_clamp).is_some_and(|mark| now.is_ok_and(|now| mark.wrote_limit(now)))
}

/// Returns the limit in force if it differs from the one that our clamp wrote. `None` if it cannot be read,
/// because it is unknown then.
pub fn unclamped(cgroup: &Cgroup) -> Option<Limit> {
    let mark = mark::read(cgroup.pids_dir()?, Hold::Clamp).ok()??;
    cgroup.pids_max().ok().filter(|now| !mark.wrote_limit(*now))
}

pub fn loosen(cgroup: &Cgroup, by: u64) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let dir = cgroup
            .pids_dir()
            .ok_or_else(|| io::Error::other("the cgroup has no pids controller"))?;
        let Some(mut mark) = mark::read(dir, Hold::Clamp)? else {
            return Ok(left("the cgroup carries no mark of mcp-guard"));
        };
        if mark.freeze.is_some() {
            return Ok(left("a freeze has lowered the limit, and gives it back when it ends"));
        }
        let now = cgroup.pids_max()?;
        let found = mark.found.as_deref().and_then(Limit::parse).unwrap_or(Limit::Max);
        let (Limit::Tasks(tasks), true) = (now, mark.wrote_limit(now)) else {
            return Ok(left(&format!(
                "pids.max has changed to {now} since then; it is left alone"
            )));
        };
        let wanted = loosened(tasks, by, found);
        // Both values count as ours until the new one is in force.
        mark.before = Some(now.to_string());
        mark.wrote = Some(wanted.to_string());
        mark::write(dir, Hold::Clamp, &mark)?;
        cgroup.set_pids_max(wanted)?;
        let read = cgroup.pids_max()?;
        if read == wanted {
            mark.before = None;
            mark::write(dir, Hold::Clamp, &mark)?;
        }
        let outcome = if read == wanted { Outcome::Done } else { Outcome::Failed };
        Ok((outcome, format!("loosened: pids.max {now} -> {read} read back")))
    };
    attempt().unwrap_or_else(gone)
}

pub fn renew_clamp(cgroup: &Cgroup, deadline: Time) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let dir = cgroup
            .pids_dir()
            .ok_or_else(|| io::Error::other("the cgroup has no pids controller"))?;
        let Some(mut mark) = mark::read(dir, Hold::Clamp)? else {
            return Ok(left("the cgroup carries no mark of mcp-guard"));
        };
        mark.deadline = deadline;
        mark::write(dir, Hold::Clamp, &mark)?;
        Ok((Outcome::Done, "the lease is renewed, because its reason persists".to_owned()))
    };
    attempt().unwrap_or_else(gone)
}

/// Signs the mark of an older version.
pub fn adopt(dir: impl AsFd, hold: Hold, mark: &Mark) -> io::Result<()> {
    mark::write(dir, hold, mark)
}

/// Removes the mark and leaves the state unchanged. A frozen cgroup keeps its mark: without it, nothing
/// would thaw the cgroup at the end of the lease. `by`: who has changed it, as a sentence.
pub fn disown(cgroup: &Cgroup, hold: Hold, by: &str) -> String {
    let (state, removed) = match hold {
        Hold::Freeze if cgroup.freeze_requested().is_ok_and(|requested| requested) => {
            return "cgroup.freeze is 1; the mark stays until the lease ends".to_owned();
        }
        Hold::Freeze => {
            let limit = allow_growth(cgroup).map(|(_, said)| format!("; {said}"));
            let state = format!("cgroup.freeze is now 0{}", limit.unwrap_or_default());
            (state, mark::remove(cgroup.dir(), Hold::Freeze))
        }
        Hold::Clamp => {
            let now =
                cgroup.pids_max().map_or_else(|error| error.to_string(), |now| now.to_string());
            let removed = cgroup.pids_dir().map_or(Ok(()), |dir| mark::remove(dir, Hold::Clamp));
            (format!("pids.max is now {now}"), removed)
        }
    };
    let mark = match removed {
        Ok(()) => "the mark is removed".to_owned(),
        Err(error) => format!("the mark cannot be removed: {error}"),
    };
    format!("{by}: {state}; {mark}")
}

fn not_ours(detail: &str) -> Step {
    Step::Settled(Outcome::NotOurs, detail.to_owned())
}

fn left(detail: &str) -> (Outcome, String) {
    (Outcome::NotOurs, detail.to_owned())
}

fn failed(error: io::Error) -> Step {
    let (outcome, detail) = gone(error);
    Step::Settled(outcome, detail)
}

/// Converts an error. A removed cgroup took its freeze, its limit and our mark with it, so that is
/// not a failure.
fn gone(error: io::Error) -> (Outcome, String) {
    if super::is_gone(&error) {
        return (Outcome::NotOurs, format!("the cgroup is gone or was replaced ({error})"));
    }
    (Outcome::Failed, error.to_string())
}
