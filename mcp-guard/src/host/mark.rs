//! Marks of ownership: a cgroup that we froze or clamped carries one.
//!
//! A mark is an extended attribute of the cgroup's directory. It is written before the change, and
//! removed after the change is undone. It disappears with the cgroup, and survives the agent. It needs
//! `CAP_SYS_ADMIN` to write, which a privileged container has, so it ends with a code that only we can
//! make: of the kind of hold, the cgroup's id, and the text. Without a mark, nothing is changed.

mod key;

use std::{io, os::fd::AsFd, path::Path, sync::OnceLock};

use mcp_guard_core::{
    Time,
    escape::escape,
    id::{Incident, Pid, Ticks},
    incident::Hold,
    limit::Limit,
};
use rustix::{
    fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use self::key::{CODE, FOLDER, Key, KeyError};

/// Before and after the code, which is the last field of a mark.
const BEFORE: &[u8] = b",\"mac\":\"";
const AFTER: &[u8] = b"\"}";
/// Most bytes of a mark.
const MAX: usize = 4096;
/// Most bytes of the incident and the reason in a mark whose writer is not known.
const MAX_INCIDENT: usize = 128;
const MAX_REASON: usize = 512;

/// Returns the name of the attribute for a kind of hold.
fn attribute(hold: Hold) -> &'static str {
    match hold {
        Hold::Freeze => "trusted.mcp-guard.lease",
        Hold::Clamp => "trusted.mcp-guard.clamp",
    }
}

/// The attribute of a cgroup whose limit may be one that we lowered.
const KEPT: &str = "trusted.mcp-guard.kept";

/// The owner of a hold, the reason for it, and its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub incident: Incident,
    pub reason: String,
    /// A time of `CLOCK_BOOTTIME`, in the boot that `boot_id` names.
    pub deadline: Time,
    pub boot_id: String,
    /// The process that will release the hold.
    pub holder: Pid,
    pub holder_start: Ticks,
    /// For a clamp: `pids.max` as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// For a clamp: `pids.max` as we wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrote: Option<String>,
    /// The limit that we wrote before, while a newer write is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// For a limit that was lowered beside a freeze, and is given back with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<BesideFreeze>,
    /// It is on the cgroup of a single suspended server, whose processes go back to the cgroup above.
    #[serde(default, skip_serializing_if = "is_false")]
    pub of_a_server: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A limit that was lowered beside a freeze.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BesideFreeze {
    /// The limit of the clamp beneath, which comes back with the end of the freeze; `None` if there
    /// is no clamp beneath.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<String>,
}

impl Mark {
    /// Whether the limit was lowered for a freeze alone.
    #[must_use]
    pub fn ends_with_a_freeze(&self) -> bool {
        self.freeze.as_ref().is_some_and(|beside| beside.clamp.is_none())
    }

    /// Whether a limit is one that we wrote.
    #[must_use]
    pub fn wrote_limit(&self, now: Limit) -> bool {
        let now = Some(now.to_string());
        now == self.wrote || now == self.before
    }
}

/// A mark as it is found.
#[derive(Debug, PartialEq, Eq)]
pub enum MarkFound {
    Nothing,
    Ours(Mark),
    /// It has no code: it is of an older version, or forged.
    Unsigned(Mark),
    /// It has a wrong code, or cannot be read. It may also be ours, if the key was lost.
    Forged,
}

/// Reads the key that marks are signed with, or makes it. Returns whether marks that are unsigned are of an
/// older version.
///
/// # Errors
/// The key cannot be made, or cannot be read now.
pub fn prepare_key() -> io::Result<bool> {
    key()?;
    Ok(key::unsigned_are_ours(Path::new(FOLDER)))
}

/// Notes that all marks of older versions are signed.
///
/// # Errors
/// It cannot be noted.
pub fn all_are_signed() -> io::Result<()> {
    key::unsigned_are_signed(Path::new(FOLDER))
}

/// Writes the key's file again if it was removed or changed: without it, the next agent could not tell our
/// marks from forged ones. Returns whether it was written.
///
/// # Errors
/// It cannot be written.
pub fn keep_key() -> io::Result<bool> {
    KEY.get().map_or(Ok(false), |key| key.keep(Path::new(FOLDER)))
}

fn key() -> io::Result<&'static Key> {
    known_key()?.map_or_else(|| Ok(keep(Key::prepare(Path::new(FOLDER))?)), Ok)
}

/// Returns the key. `None` if there is none.
///
/// # Errors
/// There may be one, but it cannot be read now.
fn known_key() -> io::Result<Option<&'static Key>> {
    if let Some(key) = KEY.get() {
        return Ok(Some(key));
    }
    match Key::existing(Path::new(FOLDER)) {
        Ok(key) => Ok(key.map(keep)),
        Err(KeyError::Unfit(_)) => Ok(None),
        Err(error @ KeyError::Unread(_)) => Err(error.into()),
    }
}

fn keep(key: Key) -> &'static Key {
    KEY.get_or_init(|| key)
}

/// Read once: it is the same for every process of this boot.
static KEY: OnceLock<Key> = OnceLock::new();

/// # Errors
/// If the attribute cannot be written. Nothing may be changed then.
pub fn write(dir: impl AsFd, hold: Hold, mark: &Mark) -> io::Result<()> {
    let text = serde_json::to_vec(mark).map_err(io::Error::other)?;
    let value = sign(key()?, hold, fstat(&dir)?.st_ino, text);
    Ok(fsetxattr(dir, attribute(hold), &value, XattrFlags::empty())?)
}

/// Reads a mark that is ours. Before there is a key, an unsigned one is.
///
/// # Errors
/// If the directory is gone.
pub fn read(dir: impl AsFd, hold: Hold) -> io::Result<Option<Mark>> {
    Ok(match find(dir, hold)? {
        MarkFound::Ours(mark) => Some(mark),
        MarkFound::Unsigned(mark) if known_key()?.is_none() => Some(mark),
        MarkFound::Nothing | MarkFound::Unsigned(_) | MarkFound::Forged => None,
    })
}

/// Reads a mark, no matter who wrote it. That of a freeze counts as forged if the key cannot be read now:
/// nothing stays frozen for want of a key. That of a clamp waits for the key, because without it the limit
/// that was found is not known.
///
/// # Errors
/// If the directory is gone, or if the key cannot be read now.
pub fn find(dir: impl AsFd, hold: Hold) -> io::Result<MarkFound> {
    let mut value = vec![0; MAX];
    match fgetxattr(&dir, attribute(hold), &mut value[..]) {
        Ok(length) => match (known_key(), hold) {
            (Ok(key), _) => Ok(judge(key, hold, fstat(&dir)?.st_ino, &value[..length])),
            (Err(_), Hold::Freeze) => Ok(MarkFound::Forged),
            (Err(error), Hold::Clamp) => Err(error),
        },
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(MarkFound::Nothing),
        // Longer than any of ours.
        Err(Errno::RANGE) => Ok(MarkFound::Forged),
        Err(error) => Err(error.into()),
    }
}

/// Adds the code to the text of a mark, as its last field.
fn sign(key: &Key, hold: Hold, id: u64, mut text: Vec<u8>) -> Vec<u8> {
    let code = key.code(&[attribute(hold).as_bytes(), &id.to_le_bytes(), &text]);
    // The closing brace.
    text.pop();
    text.extend_from_slice(BEFORE);
    text.extend(code.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
    text.extend_from_slice(AFTER);
    text
}

fn judge(key: Option<&Key>, hold: Hold, id: u64, value: &[u8]) -> MarkFound {
    let Some((text, code)) = split(value) else {
        return serde_json::from_slice(value)
            .map_or(MarkFound::Forged, |mark| MarkFound::Unsigned(bounded(mark)));
    };
    let of = [attribute(hold).as_bytes(), &id.to_le_bytes(), &text];
    if !key.is_some_and(|key| key.is_code_of(&code, &of)) {
        return MarkFound::Forged;
    }
    serde_json::from_slice(&text).map_or(MarkFound::Forged, MarkFound::Ours)
}

/// Reads the value of a mark as a host without a key does. For the fuzz targets.
#[cfg(feature = "fuzzing")]
#[must_use]
pub fn judge_without_key(value: &[u8]) -> MarkFound {
    judge(None, Hold::Freeze, 0, value)
}

/// Cuts and escapes the words of a mark whose writer is not known.
fn bounded(mark: Mark) -> Mark {
    let incident = escape(mark.incident.as_str().as_bytes(), MAX_INCIDENT).as_str().into();
    let reason = escape(mark.reason.as_bytes(), MAX_REASON);
    Mark { incident, reason, ..mark }
}

/// Splits a mark into the text that was signed and the code. `None` if it has no code.
fn split(value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let end = value.strip_suffix(AFTER)?;
    let (begin, code) = end.split_at_checked(end.len().checked_sub(2 * CODE)?)?;
    let mut text = begin.strip_suffix(BEFORE)?.to_vec();
    text.push(b'}');
    let digits = std::str::from_utf8(code).ok()?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let code: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    Some((text, code?))
}

/// # Errors
/// If the attribute exists but cannot be removed.
pub fn remove(dir: impl AsFd, hold: Hold) -> io::Result<()> {
    match fremovexattr(dir, attribute(hold)) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Notes that a limit stays as it is, although we may have lowered it: the mark that said so proves nothing.
///
/// # Errors
/// If the attribute cannot be written.
pub fn note_kept(dir: impl AsFd, limit: Limit) -> io::Result<()> {
    Ok(fsetxattr(dir, KEPT, limit.to_string().as_bytes(), XattrFlags::empty())?)
}

/// Returns the limit that stays as it is. See [`note_kept`].
#[must_use]
pub fn kept(dir: impl AsFd) -> Option<Limit> {
    let mut value = [0; 32];
    let length = fgetxattr(dir, KEPT, &mut value[..]).ok()?;
    Limit::parse(std::str::from_utf8(&value[..length]).ok()?)
}

#[cfg(test)]
mod tests;
