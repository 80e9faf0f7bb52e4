//! How each kind of image is started, and whether this host can do it in hardware.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use guest_runner::Plan;

use super::built::Built;
use super::image::{Image, Kind};
use super::payload::Payload;
use super::qemu::{Accel, Machine};
use super::run;
use crate::say::say;

/// A kernel that boots in hardware is up within a second or two.
const PROBE: Duration = Duration::from_secs(20);

/// Hardware where it works. A device that is there proves nothing: a kernel is booted for a moment.
pub fn accel(built: &Built) -> Result<Accel> {
    // Held while a kernel boots: one probe is enough for all guests.
    static FOUND: Mutex<Option<Accel>> = Mutex::new(None);
    let mut known = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = *known {
        return Ok(found);
    }
    let found = if Path::new("/dev/kvm").exists() && boots_with_kvm(built)? {
        Accel::Kvm
    } else {
        Accel::Tcg
    };
    say(match found {
        Accel::Kvm => "vm: with KVM",
        Accel::Tcg => "vm: in software; KVM does not work here",
    });
    *known = Some(found);
    Ok(found)
}

fn boots_with_kvm(built: &Built) -> Result<bool> {
    let payload = Payload::new()?;
    let machine = kernel(built, Accel::Kvm, payload.initrd(&Plan::default())?);
    let report = run::run(&machine, &payload.console(), PROBE, |_| {})?;
    Ok(report.over && report.failures.is_empty())
}

/// A guest that has a kernel and an initial file system of ours. Two CPUs, also in software: here the
/// kernel's counts are compared under storms.
pub fn kernel(built: &Built, accel: Accel, initrd: PathBuf) -> Machine {
    let (kernel, disks, append) = (built.kernel(), Vec::new(), Vec::new());
    Machine { accel, cpus: 2, kernel, initrd, disks, keep: false, append }
}

/// A guest with systemd, its disk and the payload's. One CPU in software: where guests run side by side, a
/// second one waits for the first, and all takes half as long again.
pub fn system(image: &Image, built: &Built, accel: Accel, payload: PathBuf) -> Machine {
    let mut append = vec!["root=/dev/vda".to_owned(), "rw".to_owned()];
    if let Kind::System { append: more, .. } = image.kind {
        append.extend(more.iter().map(|word| (*word).to_owned()));
    }
    let cpus = match accel {
        Accel::Kvm => 2,
        Accel::Tcg => 1,
    };
    let (kernel, initrd) = (built.kernel(), built.initrd());
    let disks = vec![built.disk(), payload];
    Machine { accel, cpus, kernel, initrd, disks, keep: false, append }
}
