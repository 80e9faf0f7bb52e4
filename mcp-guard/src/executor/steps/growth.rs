//! The limit beside a slow freeze. A task that has not stopped yet may be in the middle of a fork, so
//! the freeze lowers `pids.max` to the tasks that are there, and gives that back when it ends. A
//! freeze that stops all tasks at once needs no limit: it would only fail the forks in flight.

use std::io;

use mcp_guard_core::{
    Time,
    incident::{Hold, Outcome},
    limit::{Limit, clamped},
    policy::Mode,
};

use super::Step;
use crate::host::{
    cgroup::Cgroup,
    facts::Sharing,
    mark::{self, BesideFreeze, Mark},
};

/// Lowers the limit to the present tasks, if the cgroup carries the mark of a freeze. Returns what
/// was done, for the outcome of the freeze, which is in force either way.
pub fn stop_growth(cgroup: &Cgroup, sharing: io::Result<Sharing>) -> String {
    sharing
        .and_then(|sharing| lower(cgroup, sharing))
        .unwrap_or_else(|error| format!("pids.max is not lowered: {error}"))
}

fn lower(cgroup: &Cgroup, sharing: Sharing) -> io::Result<String> {
    let Some(mark) = mark::read(cgroup.dir(), Hold::Freeze)? else {
        return Ok("pids.max is not lowered: the mark of the freeze is gone".to_owned());
    };
    let Some(dir) = cgroup.pids_dir() else {
        return Ok("pids.max is not lowered: the cgroup has no pids controller".to_owned());
    };
    let now = cgroup.pids_max()?;
    let clamp = mark::read(dir, Hold::Clamp)?;
    let mut new = match &clamp {
        Some(clamp) if !clamp.wrote_limit(now) => {
            return Ok(format!("pids.max is not lowered: it has changed to {now} since the clamp"));
        }
        Some(clamp) => {
            let beneath = BesideFreeze { clamp: Some(now.to_string()) };
            Mark {
                deadline: clamp.deadline.max(mark.deadline),
                freeze: Some(clamp.freeze.clone().unwrap_or(beneath)),
                ..clamp.clone()
            }
        }
        None => {
            Mark { found: Some(now.to_string()), freeze: Some(BesideFreeze::default()), ..mark }
        }
    };
    if let Some(other) = super::bystander(cgroup, sharing)? {
        return Ok(format!("pids.max is not lowered: process {other} outside the guard shares it"));
    }
    let Some(wanted) = clamped(now, cgroup.pids_current()?, 0) else {
        return Ok(format!("pids.max {now} already leaves no room"));
    };
    new.before = clamp.is_some().then(|| now.to_string());
    new.wrote = Some(wanted.to_string());
    mark::write(dir, Hold::Clamp, &new)?;
    if let Err(error) = cgroup.set_pids_max(wanted) {
        let _ = match &clamp {
            Some(clamp) => mark::write(dir, Hold::Clamp, clamp),
            None => mark::remove(dir, Hold::Clamp),
        };
        return Err(error);
    }
    let read = cgroup.pids_max()?;
    if read == wanted && new.before.take().is_some() {
        mark::write(dir, Hold::Clamp, &new)?;
    }
    Ok(format!("pids.max {now} -> {read} read back"))
}

/// Clamps a cgroup whose limit a freeze has lowered, under the mark `beside`. The limit of the clamp
/// comes with the end of the freeze; now it would only allow growth.
pub fn clamp_beneath(
    cgroup: &Cgroup,
    (beside, deadline): (Mark, Time),
    headroom: u64,
    mode: Mode,
) -> io::Result<Step> {
    let found = beside.found.as_deref().and_then(Limit::parse).unwrap_or(Limit::Max);
    let Some(wanted) = clamped(found, cgroup.pids_current()?, headroom) else {
        let detail = format!("pids.max {found} already leaves no more than the headroom");
        return Ok(super::not_ours(&detail));
    };
    if mode == Mode::Observe {
        let detail = format!("would write {wanted} to pids.max, {found} before a freeze");
        return Ok(Step::Settled(Outcome::WouldDo, detail));
    }
    let Some(dir) = cgroup.pids_dir() else { return Err(io::ErrorKind::NotFound.into()) };
    let freeze = Some(BesideFreeze { clamp: Some(wanted.to_string()) });
    let deadline = beside.deadline.max(deadline);
    mark::write(dir, Hold::Clamp, &Mark { deadline, freeze, ..beside })?;
    let detail =
        format!("pids.max {found} -> {wanted} at the end of the freeze, which allows less");
    Ok(Step::Settled(Outcome::Done, detail))
}

/// Gives back the limit that a freeze lowered, if it is still ours: the limit that was found, or
/// that of the clamp beneath. `None` if no freeze has lowered it.
pub fn allow_growth(cgroup: &Cgroup) -> Option<(Outcome, String)> {
    raise(cgroup).unwrap_or_else(|error| Some(super::gone(error)))
}

fn raise(cgroup: &Cgroup) -> io::Result<Option<(Outcome, String)>> {
    let Some(dir) = cgroup.pids_dir() else { return Ok(None) };
    let Some(mut mark) = mark::read(dir, Hold::Clamp)? else { return Ok(None) };
    let Some(beside) = mark.freeze.take() else { return Ok(None) };
    let now = cgroup.pids_max()?;
    let back = beside.clamp.as_ref().or(mark.found.as_ref());
    let (Some(back), true) = (back.and_then(|back| Limit::parse(back)), mark.wrote_limit(now))
    else {
        // The mark of a clamp beneath stays: its own check finds the same.
        match beside.clamp {
            Some(_) => mark::write(dir, Hold::Clamp, &mark)?,
            None => mark::remove(dir, Hold::Clamp)?,
        }
        let detail = format!("pids.max has changed to {now} since then; it is left alone");
        return Ok(Some((Outcome::NotOurs, detail)));
    };
    if beside.clamp.is_some() {
        (mark.before, mark.wrote) = (Some(now.to_string()), Some(back.to_string()));
        mark::write(dir, Hold::Clamp, &mark)?;
    }
    cgroup.set_pids_max(back)?;
    let read = cgroup.pids_max()?;
    if read != back {
        let detail = format!("pids.max reads {read} after {back} was written");
        return Ok(Some((Outcome::Failed, detail)));
    }
    mark.before = None;
    match beside.clamp {
        Some(_) => mark::write(dir, Hold::Clamp, &mark)?,
        None => mark::remove(dir, Hold::Clamp)?,
    }
    Ok(Some((Outcome::Done, format!("pids.max {now} -> {read} read back"))))
}
