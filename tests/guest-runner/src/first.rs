//! The first process of a guest without a distribution: mounts the kernel's file systems, runs the
//! plan in a child, reaps orphans, and turns the guest off.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, WaitOptions, wait},
    system::{RebootCommand, reboot},
};

/// Source, mount point and type of each file system.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
    ("securityfs", "/sys/kernel/security", "securityfs"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
];

/// Never returns: the kernel panics if its first process ends.
pub fn run() -> ! {
    if let Err(error) = prepare().and_then(|()| serve()) {
        let _ = writeln!(std::io::stderr(), "guest-runner: {error:#}");
    }
    // No file system here outlives the guest.
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<()> {
    for (what, place, kind) in MOUNTS {
        mount(what, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids")
        .context("cannot enable the pids controller")
}

fn serve() -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program's path")?;
    let child = Command::new(own)
        .env("PATH", "/bin")
        .env("HOME", "/tmp")
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start the runner")?;
    let runner = Pid::from_child(&child);
    // Reaps every child that ends, not only the runner: orphans are reparented to this process.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == runner => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the runner"),
        }
    }
}
