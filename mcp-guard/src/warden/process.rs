//! The process of the warden: one loop on one thread. After the start it allocates nothing, and its memory is
//! locked: it must also wake servers on a host that is out of memory.

#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    ops::ControlFlow,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::{Errno, pread, retry_on_intr, write},
    mm::{MlockAllFlags, mlockall},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketType,
        recvmsg, send, sockopt::socket_type,
    },
    process::setsid,
    thread::set_name,
};

use super::protocol::{
    FromWarden, LENGTH, MOST_DESCRIPTORS, MOST_PIDFDS, PacketError, ToWarden, WokenBy,
};

/// Most servers that are held.
pub const MOST: usize = 512;
/// Longest time without a beat of the agent, while a server is held.
pub const SILENCE: Duration = Duration::from_secs(1);
/// Most writes to bring the processes of one server back. Its cgroup may be filled faster than it is emptied.
const MOST_MOVES: usize = 4096;
/// Most orders that are carried out between two looks at the servers: more than the socket queues.
const MOST_ORDERS: usize = 1024;
/// Signals that would end or stop the process. The end of the agent's socket is its only order to end.
/// systemd sends SIGABRT when the agent's watchdog has run out, and a terminal sends SIGQUIT and SIGTSTP.
const IGNORED: [libc::c_int; 6] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGABRT, libc::SIGQUIT, libc::SIGTSTP];

/// Serves the agent, whose socket is the stdin, until it closes the socket.
///
/// # Errors
/// The stdin is no such socket, or the host lacks the descriptors or the memory to begin.
pub fn run() -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if socket_type(&socket) != Ok(SocketType::SEQPACKET) {
        return Err(io::Error::other("the stdin is not a socket of the agent"));
    }
    ignore_signals();
    // A signal to the agent's process group is none to this process.
    let _ = setsid();
    let _ = set_name(c"mcp-warden");
    // Without it, it works all the same on a host that does not swap.
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    serve(socket, SILENCE)
}

#[expect(unsafe_code, reason = "rustix has no dispositions of signals")]
fn ignore_signals() {
    for signal in IGNORED {
        // SAFETY: SIG_IGN installs no handler, and no other thread runs that could rely on another one.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn serve(socket: OwnedFd, silence: Duration) -> io::Result<()> {
    Sleepers::new(socket, silence)?.serve()
}

/// The servers that are held. However their keeper ends, they are awake and back in their cgroups.
struct Sleepers {
    socket: OwnedFd,
    epoll: OwnedFd,
    slots: Box<[Option<Sleeper>]>,
    silence: Duration,
    /// The last beat, the last wake for silence, or the moment when the first server came.
    heard: Instant,
}

/// A server from its `Hold` to its `Drop`.
struct Sleeper {
    number: u64,
    freeze: OwnedFd,
    procs: OwnedFd,
    parent_procs: OwnedFd,
    /// `None` once it was woken.
    lookout: Option<Lookout>,
}

/// The descriptors that show that a server must be woken.
struct Lookout {
    stdin: OwnedFd,
    pidfds: [Option<OwnedFd>; MOST_PIDFDS],
    is_armed: bool,
}

/// The descriptor behind an event. A server is named by its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Socket,
    Stdin(usize),
    Process(usize),
}

type PassedFds = [Option<OwnedFd>; MOST_DESCRIPTORS];

enum Received {
    Order(ToWarden, PassedFds),
    /// An order whose descriptors did not all arrive: this process may have no more.
    Unusable {
        number: u64,
    },
    Nothing,
    /// The agent is gone, or does not speak this protocol.
    End,
}

impl Sleepers {
    fn new(socket: OwnedFd, silence: Duration) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &socket, Sign::Socket.data(), EventFlags::IN)?;
        let slots = std::iter::repeat_with(|| None).take(MOST).collect();
        Ok(Self { socket, epoll, slots, silence, heard: Instant::now() })
    }

    fn serve(&mut self) -> io::Result<()> {
        while self.turn()?.is_continue() {}
        Ok(())
    }

    /// Waits for one event, and does what is due. One event at a time: the next one may be of a descriptor
    /// that the first one closes.
    fn turn(&mut self) -> io::Result<ControlFlow<()>> {
        match self.wait()? {
            Some((Sign::Stdin(slot), flags)) => self.wake(slot, cause(flags)),
            Some((Sign::Process(slot), _)) => self.wake(slot, WokenBy::Ended),
            Some((Sign::Socket, _)) | None => {}
        }
        // If this process did not run for a while, the beats of that time are counted first.
        let flow = self.take_orders();
        if self.holds_any() && self.heard.elapsed() >= self.silence {
            self.wake_all();
        }
        Ok(flow)
    }

    fn wait(&self) -> io::Result<Option<(Sign, EventFlags)>> {
        let left = self.holds_any().then(|| self.silence.saturating_sub(self.heard.elapsed()));
        let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut space = [MaybeUninit::uninit(); 1];
        match epoll::wait(&self.epoll, &mut space, left.as_ref()) {
            Ok(([event, ..], _)) => Ok(Some((Sign::of(event.data), event.flags))),
            Ok(_) | Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn take_orders(&mut self) -> ControlFlow<()> {
        for _ in 0..MOST_ORDERS {
            match receive(&self.socket) {
                Received::Order(order, descriptors) => self.obey(order, descriptors),
                Received::Unusable { number } => self.report(FromWarden::Refused { number }),
                Received::Nothing => break,
                Received::End => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn obey(&mut self, order: ToWarden, descriptors: PassedFds) {
        match order {
            ToWarden::Hold { number } => self.hold(number, descriptors),
            ToWarden::Arm { number } => self.arm(number),
            ToWarden::Drop { number } => self.forget(number),
            ToWarden::Beat => {
                self.heard = Instant::now();
                self.report(FromWarden::Beat);
            }
        }
    }

    fn hold(&mut self, number: u64, descriptors: PassedFds) {
        let is_first = !self.holds_any();
        let is_new = self.slot(number).is_none();
        let free = self.slots.iter_mut().find(|slot| slot.is_none()).filter(|_| is_new);
        let (Some(free), Some(sleeper)) = (free, Sleeper::new(number, descriptors)) else {
            return self.report(FromWarden::Refused { number });
        };
        *free = Some(sleeper);
        if is_first {
            self.heard = Instant::now();
        }
    }

    /// Watches a server. One that cannot be watched is thawed at once.
    fn arm(&mut self, number: u64) {
        let found = self.slot(number);
        let sleeper = found.and_then(|slot| Some((slot, self.slots.get_mut(slot)?.as_mut()?)));
        let is_watched = match sleeper {
            Some((slot, sleeper)) => sleeper.arm(&self.epoll, slot),
            None => false,
        };
        if !is_watched {
            self.report(FromWarden::Refused { number });
        }
    }

    fn forget(&mut self, number: u64) {
        let slot = self.slot(number).and_then(|slot| self.slots.get_mut(slot));
        if let Some(lookout) = slot.and_then(Option::take).and_then(|sleeper| sleeper.lookout) {
            lookout.close(&self.epoll);
        }
    }

    fn wake(&mut self, slot: usize, by: WokenBy) {
        let Some(sleeper) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(lookout) = sleeper.lookout.take() else { return };
        sleeper.thaw();
        lookout.close(&self.epoll);
        let number = sleeper.number;
        self.report(FromWarden::Woke { number, by });
    }

    /// Wakes every server, because the agent hangs. It may have stopped between a freeze and its `Arm`, so those
    /// that are not armed are woken too; and while it is silent, it may freeze one that was woken already.
    fn wake_all(&mut self) {
        self.heard = Instant::now();
        self.bring_all_back();
        for slot in 0..self.slots.len() {
            self.wake(slot, WokenBy::Silence);
        }
    }

    fn bring_all_back(&self) {
        self.slots.iter().flatten().for_each(Sleeper::bring_back);
    }

    fn holds_any(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    fn slot(&self, number: u64) -> Option<usize> {
        let is_it = |sleeper: &Sleeper| sleeper.number == number;
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(is_it))
    }

    /// Never waits. An agent whose queue is full does not read, so its beats stop too.
    fn report(&self, report: FromWarden) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = retry_on_intr(|| send(&self.socket, &report.encode(), flags));
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        self.bring_all_back();
    }
}

impl Sleeper {
    fn new(number: u64, descriptors: PassedFds) -> Option<Self> {
        let [freeze, procs, parent_procs, stdin, pidfds @ ..] = descriptors;
        let lookout = Some(Lookout { stdin: stdin?, pidfds, is_armed: false });
        let (freeze, procs, parent_procs) = (freeze?, procs?, parent_procs?);
        Some(Self { number, freeze, procs, parent_procs, lookout })
    }

    /// Begins to watch it. Returns false if it was woken before, or if it cannot be watched and is awake now.
    fn arm(&mut self, epoll: &OwnedFd, slot: usize) -> bool {
        let Some(lookout) = &mut self.lookout else { return false };
        if lookout.is_armed {
            return true;
        }
        lookout.is_armed = true;
        if lookout.arm(epoll, slot).is_ok() {
            return true;
        }
        self.thaw();
        if let Some(lookout) = self.lookout.take() {
            lookout.close(epoll);
        }
        false
    }

    /// Moves its processes back, which thaws them, and thaws what is left. A process whose first thread ended before it
    /// is moved would be listed nowhere, and a frozen one cannot end.
    fn bring_back(&self) {
        move_back(&self.procs, &self.parent_procs);
        self.thaw();
    }

    /// The write fails only if the cgroup is gone, and all its processes with it.
    fn thaw(&self) {
        let _ = retry_on_intr(|| write(&self.freeze, b"0"));
    }
}

impl Lookout {
    fn arm(&self, epoll: &OwnedFd, slot: usize) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        epoll::add(epoll, &self.stdin, Sign::Stdin(slot).data(), flags)?;
        for pidfd in self.pidfds.iter().flatten() {
            epoll::add(epoll, pidfd, Sign::Process(slot).data(), EventFlags::IN)?;
        }
        Ok(())
    }

    /// Removes each registration before its descriptor is closed. A close alone would leave it, because the
    /// server has the same open file description.
    fn close(self, epoll: &OwnedFd) {
        if self.is_armed {
            let _ = epoll::delete(epoll, &self.stdin);
            for pidfd in self.pidfds.iter().flatten() {
                let _ = epoll::delete(epoll, pidfd);
            }
        }
    }
}

impl Sign {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Socket => u64::MAX,
            Self::Stdin(slot) => (slot as u64) << 1,
            Self::Process(slot) => ((slot as u64) << 1) | 1,
        })
    }

    fn of(data: EventData) -> Self {
        match (data.u64(), (data.u64() >> 1) as usize) {
            (u64::MAX, _) => Self::Socket,
            (even, slot) if even & 1 == 0 => Self::Stdin(slot),
            (_, slot) => Self::Process(slot),
        }
    }
}

/// Returns why a stdin with this event wakes its server.
fn cause(flags: EventFlags) -> WokenBy {
    match flags.intersects(EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR) {
        true => WokenBy::HungUp,
        false => WokenBy::Request,
    }
}

fn receive(socket: &OwnedFd) -> Received {
    // A longer packet is cut to a length that is not that of a packet.
    let mut bytes = [0; LENGTH + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags));
    let received = match received {
        Ok(received) if received.bytes > 0 => received,
        Err(Errno::AGAIN) => return Received::Nothing,
        Ok(_) | Err(_) => return Received::End,
    };
    let (descriptors, mut count) = taken(&mut control);
    if received.flags.contains(ReturnFlags::CTRUNC) {
        count = 0;
    }
    match ToWarden::decode(&bytes[..received.bytes], count) {
        Ok(order) => Received::Order(order, descriptors),
        Err(PacketError::Descriptors { number, .. }) => Received::Unusable { number },
        Err(PacketError::Length(_) | PacketError::Unknown(..)) => Received::End,
    }
}

/// Returns the descriptors that came with a packet, and their number. Those beyond the most are closed.
fn taken(control: &mut RecvAncillaryBuffer<'_>) -> (PassedFds, usize) {
    let mut descriptors = [const { None }; MOST_DESCRIPTORS];
    let mut count = 0;
    for message in control.drain() {
        let RecvAncillaryMessage::ScmRights(received) = message else { continue };
        for descriptor in received {
            if let Some(place) = descriptors.get_mut(count) {
                *place = Some(descriptor);
            }
            count += 1;
        }
    }
    (descriptors, count)
}

/// Moves every process of a cgroup to another one, until none is left. Each round reads the list from its
/// start, and sees those that were born meanwhile.
fn move_back(procs: &OwnedFd, parent_procs: &OwnedFd) {
    let mut writes = 0;
    loop {
        let before = writes;
        let mut list = [0; 4096];
        let Ok(length) = retry_on_intr(|| pread(procs, &mut list, 0)) else { return };
        for line in list[..length].split_inclusive(|byte| *byte == b'\n').filter(is_pid) {
            // A process that has ended meanwhile is no process to move.
            let _ = retry_on_intr(|| write(parent_procs, line));
            writes += 1;
            if writes == MOST_MOVES {
                return;
            }
        }
        if writes == before {
            return;
        }
    }
}

/// Whether a line of `cgroup.procs` names a process that can be moved. The last line may be cut, and its digits
/// would name another process. A process outside our pid namespace is a 0, which would move ourselves.
fn is_pid(line: &&[u8]) -> bool {
    let text = line.strip_suffix(b"\n").and_then(|digits| str::from_utf8(digits).ok());
    text.and_then(|text| text.parse::<u32>().ok()).is_some_and(|pid| pid != 0)
}
