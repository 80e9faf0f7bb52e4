//! Kills a process with all its descendants.
//!
//! A process group is not used for this: a child in its own group would not get the user's Ctrl-C.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kills a child and its descendants.
pub fn end(child: &mut Child) {
    for process in descendants(Pid::from_child(child)) {
        // Fails if the process has already ended, which is fine.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    let _ = child.kill();
}

fn descendants(root: Pid) -> Vec<OwnedFd> {
    let mut known = vec![root];
    let mut handles = Vec::new();
    let mut next = 0;
    while let Some(parent) = known.get(next).copied() {
        for child in children(parent) {
            // Checked again after opening it, because a pid can be reused.
            if let Ok(handle) = pidfd_open(child, PidfdFlags::empty())
                && parent_of(child) == Some(parent)
            {
                known.push(child);
                handles.push(handle);
            }
        }
        next += 1;
    }
    handles
}

fn children(parent: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw).filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// Returns the parent: the second field after the name. The name may contain brackets and blanks.
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let fields = stat.rsplit_once(')')?.1;
    Pid::from_raw(fields.split_whitespace().nth(1)?.parse().ok()?)
}
