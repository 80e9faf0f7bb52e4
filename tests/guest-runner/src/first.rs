//! The first process of a guest that has nothing but a kernel: mounts what a kernel offers, runs the
//! plan in a child, reaps whatever is left to it, and turns the guest off.

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

/// What, where and of which type.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
    ("securityfs", "/sys/kernel/security", "securityfs"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
];

/// Never returns: an end of the first process is a panic of the kernel.
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
            .with_context(|| format!("mount of {place}"))?;
    }
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids").context("+pids")
}

fn serve() -> Result<()> {
    let own = std::env::current_exe().context("own path")?;
    let child = Command::new(own)
        .env("PATH", "/bin")
        .env("HOME", "/tmp")
        .stdin(Stdio::null())
        .spawn()
        .context("start of the runner")?;
    let runner = Pid::from_child(&child);
    // Every child that comes to its end, not only ours: orphans are adopted here.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == runner => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait"),
        }
    }
}
