//! The agent's end: starts the warden, gives it orders, and passes on its reports.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
        SocketFlags, SocketType, recv, send, sendmsg, shutdown, socketpair,
    },
    process::{Pid, Signal, kill_process},
};

use super::protocol::{
    FILES, FromWarden, LENGTH, MOST_DESCRIPTORS, MOST_PIDFDS, ToWarden, WokenBy,
};

/// A wait for a report.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Waits in a row without a report after which a beat is unanswered for too long: a second at least. Waits are
/// counted, so that a pause of the whole agent is not taken for a silence of the warden.
const MOST_WAITS: u32 = 5;
/// Longest wait for the end of the process, before and after it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A report of the warden, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WardenEvent {
    /// It has thawed this server.
    Woke { number: u64, by: WokenBy },
    /// It does not watch this server, and may not have thawed it.
    Refused { number: u64 },
    /// The process has ended, and nothing wakes the servers that it held. If it was killed, it has not thawed
    /// them. Comes last and once, and not after the drop of the [`Warden`].
    Gone,
}

/// The descriptors of one server.
#[derive(Clone, Copy, Debug)]
pub struct HoldFds<'a> {
    /// `cgroup.freeze` of its own cgroup, open for writing.
    pub freeze: BorrowedFd<'a>,
    /// `cgroup.procs` of its own cgroup, open for reading.
    pub procs: BorrowedFd<'a>,
    /// `cgroup.procs` of the parent, open for writing.
    pub parent_procs: BorrowedFd<'a>,
    /// Its stdin: the read end of a pipe, or a socket.
    pub stdin: BorrowedFd<'a>,
    /// At least one, and at most [`MOST_PIDFDS`].
    pub pidfds: &'a [OwnedFd],
}

/// A running warden. It thaws every server that it holds when this is dropped.
pub struct Warden(Arc<Link>);

/// The connection, shared with the thread that receives.
struct Link {
    socket: OwnedFd,
    child: Mutex<Child>,
    is_unanswered: AtomicBool,
    is_dropped: AtomicBool,
}

impl Warden {
    /// Starts the process, and a thread that passes its reports to `woke`. `program`: this program itself.
    ///
    /// # Errors
    /// The process or the thread cannot be created.
    pub fn start(
        program: &Path,
        woke: impl Fn(WardenEvent) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let mut command = Command::new(program);
        command.arg0("mcp-guard").arg("warden");
        Self::start_command(command, MOST_WAITS, woke)
    }

    fn start_command(
        mut command: Command,
        most_waits: u32,
        woke: impl Fn(WardenEvent) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        command.stdin(theirs).stdout(Stdio::null()).env_clear().current_dir("/");
        let child = Mutex::new(command.spawn()?);
        // It has the other end of the socket, whose end must show the end of the process.
        drop(command);
        let (is_unanswered, is_dropped) = Default::default();
        let link = Arc::new(Link { socket: ours, child, is_unanswered, is_dropped });
        let warden = Arc::new(Self(link.clone()));
        thread::Builder::new()
            .name("warden".to_owned())
            .spawn(move || link.listen(most_waits, &woke))?;
        Ok(warden)
    }

    /// Hands over duplicates of a server's descriptors, before it is frozen.
    ///
    /// # Errors
    /// The warden is gone or does not read, or there are too many pidfds or none.
    pub fn hold(&self, number: u64, files: &HoldFds<'_>) -> io::Result<()> {
        hand_over(&self.0.socket, number, files)
    }

    /// Has a held server watched. It must be frozen: a wake before the freeze is lost.
    ///
    /// # Errors
    /// The warden is gone or does not read.
    pub fn arm(&self, number: u64) -> io::Result<()> {
        self.send(ToWarden::Arm { number })
    }

    /// Has the warden forget a server. It does not thaw it.
    ///
    /// # Errors
    /// The warden is gone or does not read.
    pub fn release(&self, number: u64) -> io::Result<()> {
        self.send(ToWarden::Drop { number })
    }

    /// Shows that the agent's loop runs. While a server is held, the warden wakes all when no beat comes for a
    /// second. One that does not answer for as long is killed.
    ///
    /// # Errors
    /// The warden is gone or does not read.
    pub fn beat(&self) -> io::Result<()> {
        // First, so that the answer cannot come before.
        self.0.is_unanswered.store(true, Ordering::Release);
        self.send(ToWarden::Beat)
    }

    fn send(&self, order: ToWarden) -> io::Result<()> {
        send(&self.0.socket, &order.encode(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

pub(super) fn hand_over(socket: &OwnedFd, number: u64, files: &HoldFds<'_>) -> io::Result<()> {
    if files.pidfds.is_empty() || files.pidfds.len() > MOST_PIDFDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut all = [files.stdin; MOST_DESCRIPTORS];
    all[..FILES].copy_from_slice(&[files.freeze, files.procs, files.parent_procs, files.stdin]);
    for (place, pidfd) in all[FILES..].iter_mut().zip(files.pidfds) {
        *place = pidfd.as_fd();
    }
    let all = &all[..FILES + files.pidfds.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(all));
    let packet = ToWarden::Hold { number }.encode();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, flags)?;
    Ok(())
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.0.is_dropped.store(true, Ordering::Release);
        self.0.end(PATIENCE);
    }
}

impl Link {
    fn listen(&self, most_waits: u32, woke: &impl Fn(WardenEvent)) {
        let pass = |event| {
            if !self.is_dropped.load(Ordering::Acquire) {
                woke(event);
            }
        };
        let mut waits = 0;
        while waits < most_waits {
            match self.receive() {
                Ok(Some(FromWarden::Woke { number, by })) => pass(WardenEvent::Woke { number, by }),
                Ok(Some(FromWarden::Refused { number })) => pass(WardenEvent::Refused { number }),
                Ok(Some(FromWarden::Beat)) => {
                    self.is_unanswered.store(false, Ordering::Release);
                    waits = 0;
                }
                Ok(None) if self.is_unanswered.load(Ordering::Acquire) => waits += 1,
                Ok(None) => waits = 0,
                Err(_) => break,
            }
        }
        // One that does not answer must not write to a cgroup later, when others rely on its state.
        self.end(if waits < most_waits { PATIENCE } else { Duration::ZERO });
        pass(WardenEvent::Gone);
    }

    /// Returns the next report, or `None` if there was none for a while.
    fn receive(&self) -> io::Result<Option<FromWarden>> {
        let mut socket = [PollFd::new(&self.socket, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut socket, Some(&WAIT)))? == 0 {
            return Ok(None);
        }
        let mut bytes = [0; LENGTH + 1];
        let (length, _) = retry_on_intr(|| recv(&self.socket, &mut bytes[..], RecvFlags::empty()))?;
        // The end of the socket has no length of a packet either.
        FromWarden::decode(&bytes[..length]).map(Some).map_err(io::Error::other)
    }

    /// Has the process end, and kills it if it does not. One that is killed may still be in the kernel for a
    /// while, but runs no more code of its own.
    fn end(&self, patience: Duration) {
        let _ = shutdown(&self.socket, Shutdown::Both);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if !has_ended(&mut child, patience) {
            // It is not reaped yet, so no other process has its pid.
            let _ = kill_process(Pid::from_child(&child), Signal::KILL);
            has_ended(&mut child, PATIENCE);
        }
    }
}

/// Reaps the process. Returns false if it still runs after this time.
fn has_ended(child: &mut Child, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() >= patience => return false,
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::OwnedFd, unix::fs::FileExt as _},
        sync::mpsc::{Receiver, RecvTimeoutError, channel},
    };

    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;
    use crate::warden::process;

    /// Longest wait for anything, on a machine that has other work.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    #[ignore = "the process that other tests start"]
    fn is_the_warden() {
        // Started by anything else, its stdin is no such socket.
        let _ = process::run();
    }

    fn this_program() -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = "warden::client::tests::is_the_warden";
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        command
    }

    fn sleep() -> Command {
        let mut command = Command::new("sleep");
        command.arg("3600");
        command
    }

    /// Starts a process that is killed after this many waits for an answer.
    fn start(command: Command, most_waits: u32) -> (Arc<Warden>, Receiver<WardenEvent>) {
        let (report, reports) = channel();
        let woke = move |event| report.send(event).unwrap();
        (Warden::start_command(command, most_waits, woke).unwrap(), reports)
    }

    fn is_over(reports: &Receiver<WardenEvent>) -> bool {
        reports.recv_timeout(LONG) == Err(RecvTimeoutError::Disconnected)
    }

    fn soon(is_so: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !is_so() && begun.elapsed() < LONG {
            thread::yield_now();
        }
        is_so()
    }

    fn pid(warden: &Warden) -> u32 {
        warden.0.child.lock().unwrap().id()
    }

    fn runs(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    struct Suspended {
        freeze: File,
        empty: File,
        stdin: OwnedFd,
        client: OwnedFd,
        pidfds: Vec<OwnedFd>,
    }

    impl Suspended {
        fn new() -> Self {
            let (stdin, client) = io::pipe().unwrap();
            let freeze = tempfile::tempfile().unwrap();
            freeze.write_at(b"1", 0).unwrap();
            let pidfds = vec![pidfd_open(getpid(), PidfdFlags::empty()).unwrap()];
            let empty = tempfile::tempfile().unwrap();
            Self { freeze, empty, stdin: stdin.into(), client: client.into(), pidfds }
        }

        fn files(&self) -> HoldFds<'_> {
            HoldFds {
                freeze: self.freeze.as_fd(),
                procs: self.empty.as_fd(),
                parent_procs: self.empty.as_fd(),
                stdin: self.stdin.as_fd(),
                pidfds: &self.pidfds,
            }
        }

        fn is_thawed(&self) -> bool {
            let mut first = [0];
            self.freeze.read_exact_at(&mut first, 0).unwrap();
            first == *b"0"
        }
    }

    #[test]
    fn a_process_wakes_servers_and_ends_with_its_owner() {
        let (warden, reports) = start(this_program(), u32::MAX);
        let servers = [Suspended::new(), Suspended::new()];
        for (number, server) in (1..).zip(&servers) {
            warden.hold(number, &server.files()).unwrap();
            warden.arm(number).unwrap();
        }
        warden.beat().unwrap();
        let is_unanswered = &warden.0.is_unanswered;
        assert!(soon(|| !is_unanswered.load(Ordering::Acquire)));
        rustix::io::write(&servers[0].client, b"{").unwrap();
        let woken = WardenEvent::Woke { number: 1, by: WokenBy::Request };
        // On a machine that has other work, no beat may come for a second; it is then woken by the silence.
        let silent = WardenEvent::Woke { number: 1, by: WokenBy::Silence };
        let found = reports.recv_timeout(LONG).unwrap();
        assert!(found == woken || found == silent, "{found:?}");
        assert!(servers[0].is_thawed());
        warden.release(1).unwrap();
        warden.arm(1).unwrap();
        let refused = WardenEvent::Refused { number: 1 };
        while reports.recv_timeout(LONG).unwrap() != refused {}

        let pid = pid(&warden);
        drop(warden);
        assert!(servers[1].is_thawed() && !runs(pid));
        while let Ok(event) = reports.recv_timeout(LONG) {
            assert!(matches!(event, WardenEvent::Woke { number: 2, .. }), "{event:?}");
        }
    }

    #[test]
    fn a_process_that_ends_is_gone_once() {
        let (warden, reports) = start(Command::new("true"), MOST_WAITS);
        assert_eq!(reports.recv_timeout(LONG), Ok(WardenEvent::Gone));
        assert!(is_over(&reports) && !runs(pid(&warden)));
        assert!(warden.arm(1).is_err());
    }

    #[test]
    fn a_process_that_does_not_answer_a_beat_is_killed_and_gone() {
        let (warden, reports) = start(sleep(), MOST_WAITS);
        let begun = Instant::now();
        warden.beat().unwrap();
        assert_eq!(reports.recv_timeout(LONG), Ok(WardenEvent::Gone));
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert!(is_over(&reports) && !runs(pid(&warden)));
    }

    #[test]
    fn one_that_does_not_end_is_killed_and_not_reported() {
        let (warden, reports) = start(sleep(), MOST_WAITS);
        let pid = pid(&warden);
        drop(warden);
        assert!(!runs(pid) && is_over(&reports));
    }

    #[test]
    fn a_server_has_a_bounded_number_of_processes() {
        let (warden, _reports) = start(sleep(), MOST_WAITS);
        let mut server = Suspended::new();
        let own = server.pidfds.remove(0);
        let hold = |server: &Suspended| warden.hold(1, &server.files()).map_err(|e| e.kind());
        assert_eq!(hold(&server), Err(io::ErrorKind::InvalidInput));
        server.pidfds = (0..MOST_PIDFDS).map(|_| own.try_clone().unwrap()).collect();
        assert_eq!(hold(&server), Ok(()));
        server.pidfds.push(own);
        assert_eq!(hold(&server), Err(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        assert!(Warden::start(Path::new("/nonexistent"), |_| ()).is_err());
    }
}
