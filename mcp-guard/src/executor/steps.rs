//! The steps that touch a cgroup. Each checks that the state is nobody else's, marks it as ours
//! before it changes anything, and reads back what it wrote.

use std::{collections::BTreeSet, io};

use mcp_guard_core::{
    Time,
    audit::LimitChange,
    id::{Incident, Pid, Ticks},
    incident::{Cause, Hold, Outcome},
    limit::Limit,
    policy::Mode,
};

use crate::host::{
    cgroup::Cgroup,
    clock,
    mark::{self, Mark},
    process,
};

/// How far a step came.
pub enum Step {
    Settled(Outcome, String),
    /// Written at this time; the kernel confirms later.
    Written(Time, Until),
}

/// What the kernel is to confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// `frozen 1` in `cgroup.events`.
    Frozen,
    /// `populated 0` in `cgroup.events`.
    Dead,
}

/// The process that owns what it marks.
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
        }
    }
}

pub fn freeze(cgroup: &Cgroup, paused: bool, mode: Mode, mark: &Mark) -> Step {
    let attempt = || -> io::Result<Step> {
        if paused {
            return Ok(not_ours("the engine says Paused; its freeze is left alone"));
        }
        if cgroup.freeze_requested()? {
            return Ok(match mark::read(cgroup.dir(), Hold::Freeze)? {
                Some(_) => not_ours("it is already frozen by mcp-guard"),
                None => not_ours("it is already frozen by somebody else, whose state it is"),
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

/// Thaws what carries our mark and nothing else. `engine_freezes`: the engine says Paused, by the
/// same switch.
pub fn thaw(cgroup: &Cgroup, engine_freezes: bool) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        if mark::read(cgroup.dir(), Hold::Freeze)?.is_none() {
            return Ok(left("it carries no mark of mcp-guard, so its freeze is somebody else's"));
        }
        if engine_freezes {
            mark::remove(cgroup.dir(), Hold::Freeze)?;
            return Ok(left("the engine says Paused: it owns the freeze now, the mark is removed"));
        }
        if !cgroup.freeze_requested()? {
            mark::remove(cgroup.dir(), Hold::Freeze)?;
            return Ok(left("somebody else had thawed it, the mark is removed"));
        }
        cgroup.request_freeze(false)?;
        if cgroup.freeze_requested()? {
            return Ok((Outcome::Failed, "cgroup.freeze reads 1 again after writing 0".to_owned()));
        }
        mark::remove(cgroup.dir(), Hold::Freeze)?;
        let frozen_above = cgroup.events()?.frozen;
        let note = if frozen_above { "; a cgroup above it is frozen" } else { "" };
        Ok((Outcome::Done, format!("cgroup.freeze 0 read back{note}")))
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

/// What a clamp would find and write.
pub fn planned_clamp(cgroup: &Cgroup, headroom: u64) -> io::Result<LimitChange> {
    let (found, wanted) = clamp_values(cgroup, headroom)?;
    Ok(LimitChange { found: found.to_string(), wanted: wanted.to_string() })
}

/// The limit as it is, and tasks now + headroom, never above it.
fn clamp_values(cgroup: &Cgroup, headroom: u64) -> io::Result<(Limit, Limit)> {
    let found = cgroup.pids_max()?;
    let room = Limit::Tasks(cgroup.pids_current()?.saturating_add(headroom));
    Ok((found, room.min(found)))
}

pub fn clamp(cgroup: &Cgroup, headroom: u64, mode: Mode, mut mark: Mark) -> Step {
    let mut attempt = || -> io::Result<Step> {
        let Some(dir) = cgroup.pids_dir() else {
            return Ok(Step::Settled(Outcome::Failed, "it has no pids controller".to_owned()));
        };
        if mark::read(dir, Hold::Clamp)?.is_some() {
            return Ok(not_ours("it is already clamped by mcp-guard"));
        }
        // The guard's own are read second: what is born in between is then among them.
        let limited = cgroup.pids_processes()?;
        let own: BTreeSet<Pid> = cgroup.processes()?.into_iter().collect();
        let bystander = |pid: &Pid| !own.contains(pid) && process::runs(*pid);
        if let Some(other) = limited.into_iter().find(bystander) {
            let detail = format!("process {other} shares its pids cgroup and is not of the guard");
            return Ok(Step::Settled(Outcome::Refused, detail));
        }
        let (found, wanted) = clamp_values(cgroup, headroom)?;
        if wanted == found {
            return Ok(not_ours(&format!(
                "pids.max {found} leaves less than the headroom already"
            )));
        }
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
            let detail = format!("wrote {wanted} to pids.max and read {read}");
            return Ok(Step::Settled(Outcome::Failed, detail));
        }
        let detail =
            format!("pids.max {found} -> {read} read back; new processes and threads may fail");
        Ok(Step::Settled(Outcome::Done, detail))
    };
    attempt().unwrap_or_else(failed)
}

/// Puts back the limit that was found, where it still holds what we wrote.
pub fn unclamp(cgroup: &Cgroup) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let Some(dir) = cgroup.pids_dir() else { return Ok(left("it has no pids controller")) };
        let Some(mark) = mark::read(dir, Hold::Clamp)? else {
            return Ok(left("it carries no mark of mcp-guard, so its limit is somebody else's"));
        };
        let found = mark.found.as_deref().and_then(Limit::parse);
        let now = cgroup.pids_max()?;
        let (Some(found), true) = (found, mark.wrote_limit(now)) else {
            mark::remove(dir, Hold::Clamp)?;
            return Ok(left(&format!(
                "pids.max is {now} by somebody else's hand, the mark is removed"
            )));
        };
        cgroup.set_pids_max(found)?;
        let read = cgroup.pids_max()?;
        if read != found {
            let detail = format!("wrote {found} to pids.max and read {read}");
            return Ok((Outcome::Failed, detail));
        }
        mark::remove(dir, Hold::Clamp)?;
        Ok((Outcome::Done, format!("pids.max {now} -> {read} read back")))
    };
    attempt().unwrap_or_else(gone)
}

/// Writes a limit that nobody else owns, for good: it carries no mark.
pub fn limit(cgroup: &Cgroup, limit: Limit) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        // Its owner may have taken half a minute before this.
        if is_clamped(cgroup) {
            return Ok(left("mcp-guard has clamped it meanwhile"));
        }
        let found = cgroup.pids_max()?;
        cgroup.set_pids_max(limit)?;
        Ok(limit_is(cgroup, &found.to_string(), limit))
    };
    attempt().unwrap_or_else(gone)
}

/// What the kernel says after the owner of a limit was asked for it.
pub fn limit_is(cgroup: &Cgroup, found: &str, wanted: Limit) -> (Outcome, String) {
    match cgroup.pids_max() {
        Ok(read) if read == wanted => {
            (Outcome::Done, format!("pids.max {found} -> {read} read back"))
        }
        Ok(read) => (Outcome::Failed, format!("pids.max is {read} after writing {wanted}")),
        Err(error) => gone(error),
    }
}

/// Whether a clamp is in force, of this process or of one that is gone.
pub fn is_clamped(cgroup: &Cgroup) -> bool {
    let mark = cgroup.pids_dir().and_then(|dir| mark::read(dir, Hold::Clamp).ok()).flatten();
    let now = cgroup.pids_max();
    mark.is_some_and(|mark| now.is_ok_and(|now| mark.wrote_limit(now)))
}

/// Whether the limit is another than we wrote. False where it cannot be read: then nobody knows.
pub fn is_unclamped(cgroup: &Cgroup) -> bool {
    let Some(dir) = cgroup.pids_dir() else { return false };
    match (mark::read(dir, Hold::Clamp), cgroup.pids_max()) {
        (Ok(Some(mark)), Ok(now)) => !mark.wrote_limit(now),
        _ => false,
    }
}

pub fn loosen(cgroup: &Cgroup, by: u64) -> (Outcome, String) {
    let attempt = || -> io::Result<(Outcome, String)> {
        let dir = cgroup.pids_dir().ok_or_else(|| io::Error::other("no pids controller"))?;
        let Some(mut mark) = mark::read(dir, Hold::Clamp)? else {
            return Ok(left("it carries no mark of mcp-guard"));
        };
        let now = cgroup.pids_max()?;
        let found = mark.found.as_deref().and_then(Limit::parse).unwrap_or(Limit::Max);
        let (Limit::Tasks(tasks), true) = (now, mark.wrote_limit(now)) else {
            return Ok(left(&format!("pids.max is {now} by somebody else's hand")));
        };
        let wanted = Limit::Tasks(tasks.saturating_add(by)).min(found);
        // Both are ours until the new one is in force.
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
        let dir = cgroup.pids_dir().ok_or_else(|| io::Error::other("no pids controller"))?;
        let Some(mut mark) = mark::read(dir, Hold::Clamp)? else {
            return Ok(left("it carries no mark of mcp-guard"));
        };
        mark.deadline = deadline;
        mark::write(dir, Hold::Clamp, &mark)?;
        Ok((Outcome::Done, "the lease is renewed: the reason still holds".to_owned()))
    };
    attempt().unwrap_or_else(gone)
}

/// Removes the mark and leaves the state.
pub fn disown(cgroup: &Cgroup, hold: Hold) -> String {
    let (state, removed) = match hold {
        Hold::Freeze => ("cgroup.freeze is 0".to_owned(), mark::remove(cgroup.dir(), Hold::Freeze)),
        Hold::Clamp => {
            let now =
                cgroup.pids_max().map_or_else(|error| error.to_string(), |now| now.to_string());
            let removed = cgroup.pids_dir().map_or(Ok(()), |dir| mark::remove(dir, Hold::Clamp));
            (format!("pids.max is {now}"), removed)
        }
    };
    let mark = match removed {
        Ok(()) => "the mark is removed".to_owned(),
        Err(error) => format!("the mark could not be removed: {error}"),
    };
    format!("{state} by somebody else's hand, {mark}")
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

/// A removed cgroup takes its freeze, its limit and our mark with it.
fn gone(error: io::Error) -> (Outcome, String) {
    if super::is_gone(&error) {
        return (Outcome::NotOurs, format!("the cgroup is gone or was replaced ({error})"));
    }
    (Outcome::Failed, error.to_string())
}
