//! Reads processes through `/proc`, without mistaking one for another when a pid is reused.

use std::{io, os::fd::OwnedFd};

use mcp_guard_core::{
    id::{Pid, Ticks},
    registry::Observed,
    server::CommandLine,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, openat, readlinkat, statat, statx,
    },
    process::{PidfdFlags, pidfd_open},
};

use super::{
    clock,
    proc::{io::Io, membership::Membership, net::Sockets, session, stat::Stat, status},
};

/// Most bytes read of a command line; the kernel side reads as many.
const MAX_ARGV: usize = 1024;
/// Most threads that are asked for a namespace once the first one has ended. One that another process traces
/// stays there after its end.
const MOST_ASKED: usize = 64;
/// Most threads of a process whose children are read, and most bytes of a list of children.
const MOST_THREADS: usize = 4096;
const MOST_CHILDREN: usize = 64 * 1024;

/// A process that cannot turn into another one: all reads go through one `/proc/PID` directory,
/// which still belongs to the process after its death.
pub struct OpenProcess {
    pid: Pid,
    dir: OwnedFd,
}

impl OpenProcess {
    /// # Errors
    /// If there is no such process.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())?;
        Ok(Self { pid, dir })
    }

    /// Reads its cgroups.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn membership(&self) -> io::Result<Membership> {
        self.read("cgroup", 64 * 1024).map(Membership::new)
    }

    /// Reads the cgroups of one of its threads that have not ended.
    ///
    /// # Errors
    /// If the process is gone, or too many of its threads have ended.
    pub fn membership_of_a_thread(&self) -> io::Result<Membership> {
        for thread in self.entries("task")?.take(MOST_ASKED) {
            let folder = format!("task/{}", thread?);
            let has_ended = |stat: Vec<u8>| Stat::parse(&stat).is_none_or(|stat| stat.first_ends);
            match self.read(&format!("{folder}/stat"), 4096).map(has_ended) {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            }
            match self.read(&format!("{folder}/cgroup"), 64 * 1024) {
                Err(error) if is_gone(&error) => {}
                read => return read.map(Membership::new),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }

    /// Returns the name of the program, at most 15 bytes.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn comm(&self) -> io::Result<Vec<u8>> {
        let mut comm = self.read("comm", 64)?;
        comm.pop_if(|last| *last == b'\n');
        Ok(comm)
    }

    /// Returns the inode of its pid namespace.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show it to us.
    pub fn pid_namespace(&self) -> io::Result<u64> {
        Ok(statat(&self.dir, "ns/pid", AtFlags::empty())?.st_ino)
    }

    /// Whether it may trace processes that are not its own. True if that is not known.
    #[must_use]
    pub fn may_trace(&self) -> bool {
        self.read("status", 64 * 1024).map_or(true, |status| status::may_trace(&status))
    }

    /// Identifies one of its namespaces: `kind` is the name of a file in `/proc/PID/ns`. A thread that has
    /// ended has none, and the first one may end before the others.
    ///
    /// # Errors
    /// If the process is gone, if the kernel does not show it to us, or if too many of its threads have ended.
    pub fn namespace(&self, kind: &str) -> io::Result<Namespace> {
        let in_folder = |folder: &str| {
            let file = statat(&self.dir, format!("{folder}ns/{kind}"), AtFlags::empty())?;
            Ok(Namespace(file.st_dev, file.st_ino))
        };
        let gone = match in_folder("") {
            Err(error) if is_gone(&error) => error,
            read => return read,
        };
        for (asked, thread) in self.entries("task")?.enumerate() {
            if asked == MOST_ASKED {
                return Err(io::Error::other(format!("{MOST_ASKED} of its threads have ended")));
            }
            match in_folder(&format!("task/{}/", thread?)) {
                Err(error) if is_gone(&error) => {}
                read => return read,
            }
        }
        Err(gone)
    }

    /// Returns the path of its program, as the kernel shows it.
    ///
    /// # Errors
    /// If the process is gone or a zombie, or the kernel does not show it to us.
    pub fn exe(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, "exe", Vec::new())?.into_bytes())
    }

    /// Returns its working directory, as the kernel shows it.
    ///
    /// # Errors
    /// As for [`OpenProcess::exe`].
    pub fn cwd(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, "cwd", Vec::new())?.into_bytes())
    }

    /// Returns the metadata of the file of its program, even if that file was removed. The server of
    /// its file system is not asked, because it may not answer.
    ///
    /// # Errors
    /// If the process is gone or a zombie, or the kernel does not show it to us.
    pub fn exe_file(&self) -> io::Result<Statx> {
        let flags = AtFlags::STATX_DONT_SYNC;
        Ok(statx(&self.dir, "exe", flags, StatxFlags::BASIC_STATS)?)
    }

    /// Returns its real and effective uid.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn uids(&self) -> io::Result<(u32, u32)> {
        let status = self.read("status", 64 * 1024)?;
        status::uids(&status).ok_or_else(|| io::Error::other("its /proc status has no uids"))
    }

    /// Returns the login session that it belongs to, as logind numbers it.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn session(&self) -> io::Result<Option<String>> {
        let membership = self.membership()?;
        let in_cgroup = [membership.unified(), membership.systemd()].into_iter().flatten();
        if let Some(session) = in_cgroup.filter_map(session::of_cgroup).next() {
            return Ok(Some(session.to_owned()));
        }
        match self.text("sessionid", 64) {
            // This kernel has no audit.
            Err(error) if is_gone(&error) => Ok(None),
            text => Ok(session::of_audit(&text?)),
        }
    }

    /// See [`status::is_first_of_its_namespace`].
    ///
    /// # Errors
    /// If the process is gone.
    pub fn is_first_of_its_namespace(&self) -> io::Result<bool> {
        Ok(status::is_first_of_its_namespace(&self.read("status", 64 * 1024)?))
    }

    /// Returns its children, without those that end meanwhile (`/proc/PID/task/TID/children`).
    ///
    /// # Errors
    /// If the process is gone, the kernel has no such files, or there are too many threads or children.
    pub fn children(&self) -> io::Result<Vec<Pid>> {
        let mut children = Vec::new();
        for thread in self.threads(MOST_THREADS)? {
            children.extend(self.children_of(thread)?);
        }
        Ok(children)
    }

    /// Returns the children that one of its threads has started.
    ///
    /// # Errors
    /// If the thread is gone, the kernel has no such files, or there are too many children.
    pub fn children_of(&self, thread: Pid) -> io::Result<Vec<Pid>> {
        let text = self.text(&format!("task/{thread}/children"), MOST_CHILDREN)?;
        if text.len() == MOST_CHILDREN {
            return Err(io::Error::other("it has too many children"));
        }
        Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid).collect())
    }

    /// Whether one of its threads is gone.
    #[must_use]
    pub fn has_lost(&self, thread: Pid) -> bool {
        self.read(&format!("task/{thread}/comm"), 64).is_err_and(|error| is_gone(&error))
    }

    /// See [`status::is_init_below`].
    ///
    /// # Errors
    /// If the process is gone.
    pub fn is_init_below(&self) -> io::Result<bool> {
        Ok(status::is_init_below(&self.read("status", 64 * 1024)?))
    }

    /// Returns the start time, which together with the pid identifies the process permanently.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn start_ticks(&self) -> io::Result<Ticks> {
        Ok(self.stat()?.start)
    }

    /// # Errors
    /// If the process is gone.
    pub fn stat(&self) -> io::Result<Stat> {
        let stat = self.read("stat", 4096)?;
        Stat::parse(&stat).ok_or_else(|| io::Error::other("its /proc stat line cannot be parsed"))
    }

    /// Returns the numbers of its open descriptors.
    ///
    /// # Errors
    /// If the process is gone, the kernel does not show them to us, or there are more than `most`.
    pub fn descriptors(&self, most: usize) -> io::Result<Vec<u32>> {
        self.numbers("fd", most)
    }

    /// Reads the lowest numbers of its open descriptors, one after the other, `most` at most.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show them to us.
    pub fn first_descriptors(
        &self,
        most: usize,
    ) -> io::Result<impl Iterator<Item = io::Result<u32>> + use<>> {
        Ok(self.entries("fd")?.take(most))
    }

    /// Returns its threads.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptors`].
    pub fn threads(&self, most: usize) -> io::Result<Vec<Pid>> {
        Ok(self.numbers("task", most)?.into_iter().map(Pid).collect())
    }

    /// Reads its first threads, one after the other, `most` at most.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn first_threads(
        &self,
        most: usize,
    ) -> io::Result<impl Iterator<Item = io::Result<Pid>> + use<>> {
        Ok(self.entries("task")?.take(most).map(|thread| thread.map(Pid)))
    }

    /// Returns what a descriptor refers to, as the kernel shows it.
    ///
    /// # Errors
    /// If it is closed, the process is gone, or the kernel does not show it to us.
    pub fn descriptor(&self, fd: u32) -> io::Result<String> {
        let link = readlinkat(&self.dir, format!("fd/{fd}"), Vec::new())?;
        Ok(String::from_utf8_lossy(link.as_bytes()).into_owned())
    }

    /// Returns whether a descriptor was opened for reading, and whether for writing.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptor`].
    pub fn access(&self, fd: u32) -> io::Result<(bool, bool)> {
        let link = statat(&self.dir, format!("fd/{fd}"), AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(link.st_mode);
        Ok((mode.contains(Mode::RUSR), mode.contains(Mode::WUSR)))
    }

    /// Returns the number of the character device that a descriptor refers to. `None`: it is something else.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptor`].
    pub fn device(&self, fd: u32) -> io::Result<Option<(u32, u32)>> {
        let flags = AtFlags::STATX_DONT_SYNC;
        let file = statx(&self.dir, format!("fd/{fd}"), flags, StatxFlags::BASIC_STATS)?;
        let is_device = FileType::from_raw_mode(file.stx_mode.into()) == FileType::CharacterDevice;
        Ok(is_device.then_some((file.stx_rdev_major, file.stx_rdev_minor)))
    }

    /// Returns the inode of the file that a descriptor refers to.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptor`].
    pub fn inode(&self, fd: u32) -> io::Result<u64> {
        let flags = AtFlags::STATX_DONT_SYNC;
        Ok(statx(&self.dir, format!("fd/{fd}"), flags, StatxFlags::BASIC_STATS)?.stx_ino)
    }

    /// Returns whether a descriptor refers to a pipe, also to one with a name.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptor`].
    pub fn is_pipe(&self, fd: u32) -> io::Result<bool> {
        let flags = AtFlags::STATX_DONT_SYNC;
        let file = statx(&self.dir, format!("fd/{fd}"), flags, StatxFlags::BASIC_STATS)?;
        Ok(FileType::from_raw_mode(file.stx_mode.into()) == FileType::Fifo)
    }

    /// Reads `/proc/PID/fdinfo/FD`.
    ///
    /// # Errors
    /// As for [`OpenProcess::descriptor`].
    pub fn fdinfo(&self, fd: u32) -> io::Result<String> {
        self.text(&format!("fdinfo/{fd}"), 256 * 1024)
    }

    /// Returns its counters, and the bytes of its memory that no file backs.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show them to us.
    pub fn usage(&self) -> io::Result<Usage> {
        let runtime = clock::cpu_time_of(self.pid);
        // The stat line is read after the clock, which knows the process by its pid alone: until it can be read, no
        // other process has got the pid.
        let (cpu, status) = (self.stat()?.cpu, self.read("status", 64 * 1024)?);
        let odd = || io::Error::other("its counters cannot be parsed");
        let io = Io::parse(&self.text("io", 4096)?).ok_or_else(odd)?;
        Ok(Usage {
            io,
            context_switches: status::context_switches(&status).ok_or_else(odd)?,
            cpu,
            runtime: runtime?,
            memory: status::anonymous_memory(&status),
        })
    }

    /// Whether a signal waits that none of its threads has handled.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn has_pending_signals(&self) -> io::Result<bool> {
        Ok(status::has_pending_signals(&self.read("status", 64 * 1024)?))
    }

    /// Whether it has a timer of timer_create(2), or probably one of alarm(2). Neither has a descriptor.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show them to us.
    pub fn has_timer(&self) -> io::Result<bool> {
        let timers = match self.read("timers", 4096) {
            // A kernel that does not list them.
            Err(error) if is_gone(&error) && self.stat().is_ok() => Vec::new(),
            read => read?,
        };
        Ok(!timers.is_empty() || status::awaits_alarm(&self.read("status", 64 * 1024)?))
    }

    /// Reads in which system call one of its threads waits.
    ///
    /// # Errors
    /// If the thread is gone, or the kernel does not show it to us.
    pub fn syscall(&self, thread: Pid) -> io::Result<String> {
        self.text(&format!("task/{thread}/syscall"), 4096)
    }

    /// Reads the sockets of TCP and UDP in its network namespace.
    ///
    /// # Errors
    /// If the process is gone, or the kernel does not show them to us.
    pub fn sockets(&self) -> io::Result<Sockets> {
        let table = |name: &str| match self.text(&format!("net/{name}"), 4 << 20) {
            // This kernel has no IPv6.
            Err(error) if is_gone(&error) && name.ends_with('6') => Ok(String::new()),
            read => read,
        };
        let mut sockets = Sockets::default();
        sockets.add_tcp(&table("tcp")?);
        sockets.add_tcp(&table("tcp6")?);
        sockets.add_udp(&table("udp")?);
        sockets.add_udp(&table("udp6")?);
        Ok(sockets)
    }

    /// Opens one of its namespaces.
    ///
    /// # Errors
    /// As for [`OpenProcess::namespace`].
    pub fn open_namespace(&self, kind: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.dir, format!("ns/{kind}"), flags, Mode::empty())?)
    }

    /// Returns the entries of a directory that are numbers.
    fn numbers(&self, folder: &str, most: usize) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for number in self.entries(folder)? {
            if numbers.len() == most {
                return Err(io::Error::other(format!("more than {most} entries in {folder}")));
            }
            numbers.push(number?);
        }
        Ok(numbers)
    }

    /// Reads the entries of a directory that are numbers, one after the other.
    fn entries(&self, folder: &str) -> io::Result<impl Iterator<Item = io::Result<u32>> + use<>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, folder, flags, Mode::empty())?;
        let number = |entry: rustix::io::Result<rustix::fs::DirEntry>| match entry {
            Ok(entry) => entry.file_name().to_str().ok()?.parse().ok().map(Ok),
            Err(error) => Some(Err(error.into())),
        };
        Ok(rustix::fs::Dir::new(dir)?.filter_map(number))
    }

    fn text(&self, file: &str, limit: usize) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read(file, limit)?).into_owned())
    }

    fn read(&self, file: &str, limit: usize) -> io::Result<Vec<u8>> {
        let fd = openat(&self.dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        read_at_most(&fd, limit)
    }
}

/// The counters of a process, see proc_pid_io(5), proc_pid_status(5) and proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub io: Io,
    /// Those of its first thread.
    pub context_switches: u64,
    pub cpu: Ticks,
    /// How many nanoseconds its threads ran.
    pub runtime: u64,
    /// `None` if it has no memory any more.
    pub memory: Option<u64>,
}

/// A namespace, by the device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace(u64, u64);

/// Whether an error means that a process is gone, or has ended and waits for its parent.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Reads up to `limit` bytes from the start.
pub(super) fn read_at_most(fd: &OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut filled = 0;
    while filled < limit {
        // Most files are small. Clearing the whole limit for each would add to every latency.
        if filled == bytes.len() {
            bytes.resize(limit.min((2 * filled).max(4096)), 0);
        }
        match rustix::io::pread(fd, &mut bytes[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads a process for the registry. `None` if it is gone, a zombie, or ending. Reading the command
/// line can hang, so call this only through [`super::observer`].
pub(super) fn observe(pid: Pid) -> Option<Observed> {
    let process = OpenProcess::open(pid).ok()?;
    let exe = process.exe().ok();
    let argv = process.read("cmdline", MAX_ARGV).ok()?;
    let cwd = process.cwd().ok();
    // If it runs another program meanwhile, the executable may not be that of the command line.
    let exe = exe.filter(|exe| process.exe().is_ok_and(|now| now == *exe));
    // The stat line is read last: a process that execs in between is seen as it was before.
    observed(&process, CommandLine { argv, exe, cwd })
}

/// Reads the working directory of a process, but not its command line. That can hang too, while the process executes
/// its program, so call this only through [`super::observer`].
pub(super) fn place(pid: Pid) -> Option<Observed> {
    let process = OpenProcess::open(pid).ok()?;
    let cwd = process.cwd().ok();
    observed(&process, CommandLine { cwd, ..CommandLine::default() })
}

fn observed(process: &OpenProcess, command: CommandLine) -> Option<Observed> {
    let stat = process.stat().ok().filter(|stat| !stat.ending)?;
    Some(Observed { pid: process.pid, start_ticks: stat.start, parent: stat.parent, command })
}

/// Returns the pid of this process.
#[must_use]
pub fn this() -> Pid {
    Pid(std::process::id())
}

/// Returns the state of a task, as a letter of proc_pid_status(5). `None` if it is gone. Unlike that of most of its
/// other files, the reading of this one does not hang while the task executes a program.
#[must_use]
pub fn state(task: Pid) -> Option<u8> {
    let path = format!("/proc/{task}/status");
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    status::state(&read_at_most(&fd, 4096).ok()?)
}

/// Whether the process with this start time still runs, and with it the loop on its first thread. The others
/// may wait in the kernel for ever, for example to close an audit log whose file server stands still.
#[must_use]
pub fn is_alive(pid: Pid, start_ticks: Ticks) -> bool {
    OpenProcess::open(pid)
        .and_then(|process| process.stat())
        .is_ok_and(|stat| stat.start == start_ticks && !stat.first_ends)
}

/// Returns a handle on a process, to check whether it stayed alive during several reads.
///
/// # Errors
/// If there is no such process.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process behind the handle still runs.
#[must_use]
pub fn still_runs(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A pidfd becomes readable when its process ends (pidfd_open(2)).
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(0)
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::evidence::Wait;

    use super::*;
    use crate::host::proc::syscall;

    #[test]
    fn we_can_observe_ourselves() {
        let me = observe(this()).expect("we run");
        assert!(is_alive(me.pid, me.start_ticks));
        assert!(!is_alive(me.pid, Ticks(me.start_ticks.0 + 1)));
        assert!(still_runs(&pidfd(me.pid).expect("we run")));
        assert!(!me.command.argv.is_empty());
        let path = |path: std::path::PathBuf| Some(path.into_os_string().into_encoded_bytes());
        assert_eq!(me.command.exe, path(std::env::current_exe().expect("we run")));
        assert_eq!(me.command.cwd, path(std::env::current_dir().expect("it exists")));
    }

    #[test]
    fn the_runtime_grows_with_the_work_of_any_thread_and_only_with_work() {
        let me = OpenProcess::open(this()).expect("we run");
        let before = me.usage().expect("we run").runtime;
        std::thread::spawn(|| ()).join().expect("it does nothing");
        assert!(me.usage().expect("we run").runtime > before);
        let mut command = std::process::Command::new("cat");
        let mut idle = command.stdin(std::process::Stdio::piped()).spawn().expect("it starts");
        let process = OpenProcess::open(Pid(idle.id())).expect("it runs");
        let runtime = || process.usage().expect("it runs").runtime;
        let text = || process.syscall(Pid(idle.id())).expect("it runs");
        while syscall::wait(&text()) != Wait::Read(0) {
            std::thread::yield_now();
        }
        let before = runtime();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(runtime(), before);
        drop(idle.stdin.take());
        idle.wait().expect("its input has ended");
        assert!(process.usage().is_err(), "its pid may be given to another process now");
    }
}
