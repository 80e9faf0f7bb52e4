//! Configures the machine for each kind of image, and detects whether KVM works on this host.

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

/// The time limit of the probe. With KVM a kernel boots within a second or two.
const PROBE: Duration = Duration::from_secs(20);

/// Returns KVM if it works, otherwise TCG. The existence of /dev/kvm proves nothing, so a kernel is
/// booted.
pub fn accel(built: &Built) -> Result<Accel> {
    // The lock is held while the kernel boots, so that all guests share one probe.
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
        Accel::Kvm => "vm: using KVM",
        Accel::Tcg => "vm: emulating in software; KVM does not work here",
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

/// Returns a machine with a kernel and our own initial file system. It has two CPUs, also in software,
/// because its tests compare the kernel's counts under storms.
pub fn kernel(built: &Built, accel: Accel, initrd: PathBuf) -> Machine {
    let (kernel, disks, append) = (built.kernel(), Vec::new(), Vec::new());
    Machine { accel, cpus: 2, kernel, initrd, disks, keep: false, append }
}

/// Returns a machine with systemd, the image's disk and the payload's.
///
/// In software it has one CPU: if guests run in parallel, a second CPU waits for the first, and
/// everything takes half as long again.
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
