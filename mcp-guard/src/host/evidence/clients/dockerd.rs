//! Docker's daemon: it has one end of each client's connection, and of the FIFOs of each container's stdio.
//!
//! The FIFOs are `.../ID/init-stdin`, `init-stdout` and `init-stderr`, and for an exec its id in the place of `init`
//! (moby `libcontainerd/remote/client.go`). When the stdin of a client ends, the daemon closes that of its container,
//! if it was created with StdinOnce. Nothing tells which connection leads to which container.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use mcp_guard_core::{
    container::is_container_id,
    evidence::{ClientProcess, ClientProgram, Connections},
    id::{Pid, Ticks},
    registry::Observed,
};
use rustix::{
    fs::fstat,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
};

use super::{
    ClientsContainer,
    sockets::{self, Accepted, link},
};
use crate::host::{
    evidence::unix_diag::UnixDiag,
    observer::Observer,
    process::{self, OpenProcess},
};

/// How long the daemon may take to accept a connection, and to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long its process may be searched for.
const SEARCH: Duration = Duration::from_secs(2);
/// Most descriptors of the daemon. Each container has six, and each client up to three.
const MOST_DESCRIPTORS: usize = 32_768;
/// An answer to it comes at once, and the connection stays open.
const PING: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The name of its program, of which only that of a process that serves the socket counts.
const NAME: &[u8] = b"dockerd";

pub struct Dockerd {
    pid: Pid,
    start: Ticks,
}

/// The parts of containers that the daemon has.
pub struct FoundClients {
    /// The ids of those whose stdin has ended.
    pub ended: BTreeSet<String>,
    pub connections: Connections,
}

/// Finds the process that serves a socket: it has the other end of a connection that we make. `known`: the process that
/// did so before.
pub fn find(socket: &str, known: Option<Dockerd>) -> io::Result<Dockerd> {
    let mut connection = connect_to(socket)?;
    connection.write_all(PING)?;
    // After the answer, the daemon has accepted the connection.
    connection.read_exact(&mut [0])?;
    let ours = fstat(&connection)?.st_ino;
    let none = || io::Error::new(io::ErrorKind::NotFound, "no process serves the engine's socket");
    let its = UnixDiag::open()?.peer(ours)?.ok_or_else(none)?;
    let its = format!("socket:[{its}]");
    let end = Instant::now() + SEARCH;
    let has_it = |pid: Pid| {
        let process = OpenProcess::open(pid).ok()?;
        let start = process.start_ticks().ok()?;
        let fds = process.descriptors(MOST_DESCRIPTORS).ok()?;
        let has_it = fds
            .into_iter()
            .take_while(|_| Instant::now() < end)
            .any(|fd| process.descriptor(fd).is_ok_and(|link| link == its));
        has_it.then_some(Dockerd { pid, start })
    };
    if let Some(known) = known.and_then(|known| has_it(known.pid)) {
        return Ok(known);
    }
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok().map(Pid);
    let all = fs::read_dir("/proc")?.flatten().filter_map(pid);
    let ours = OpenProcess::open(process::this())?.pid_namespace()?;
    let may_be_it = |pid: &Pid| may_be_dockerd(*pid, ours).unwrap_or_default();
    let searched = all.take_while(|_| Instant::now() < end);
    searched.filter(may_be_it).find_map(has_it).ok_or_else(|| {
        let is_late = Instant::now() >= end;
        if is_late { io::ErrorKind::TimedOut.into() } else { none() }
    })
}

/// Whether it is called dockerd and is root's, in our pid namespace: a container's process cannot hold up the search
/// by its name.
fn may_be_dockerd(pid: Pid, pid_namespace: u64) -> io::Result<bool> {
    let process = OpenProcess::open(pid)?;
    Ok(process.comm()? == NAME
        && process.uids()? == (0, 0)
        && process.pid_namespace()? == pid_namespace)
}

/// Connects to a socket, with deadlines.
fn connect_to(path: &str) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(PATIENCE))?;
    }
    connect(socket.as_fd(), &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Dockerd {
    /// Looks at the daemon. `containers`: those whose stdin ends with their client.
    pub fn look(
        &self,
        containers: &[ClientsContainer],
        observer: &Observer,
    ) -> io::Result<FoundClients> {
        let process = OpenProcess::open(self.pid)?;
        if process.start_ticks()? != self.start {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // The connections come first: a container that ends meanwhile, and with it its client, has no FIFOs then.
        let fds = process.descriptors(MOST_DESCRIPTORS)?;
        let accepted = sockets::accepted(&process, self.pid, &fds)?;
        let connections = Connections::of(by_process(accepted, observer));
        let mut fifos = Fifos::default();
        for fd in process.descriptors(MOST_DESCRIPTORS)? {
            fifos.add(&link(&process, fd)?.unwrap_or_default());
        }
        let asked = containers.iter().map(|one| one.container.id.as_str()).collect();
        Ok(FoundClients { ended: fifos.ended(&asked), connections })
    }
}

/// Groups the connections by the process that made them. Our own are left out.
fn by_process(all: Vec<Accepted>, observer: &Observer) -> Vec<ClientProcess> {
    let mut known: BTreeMap<Pid, ClientProcess> = BTreeMap::new();
    let mut others = ClientProcess::default();
    for Accepted { by, flags } in all {
        match by {
            Some(pid) if pid == process::this() => {}
            Some(pid) => known.entry(pid).or_default().add(flags),
            None => others.add(flags),
        }
    }
    for Observed { pid, command, .. } in observer.observe(known.keys().copied().collect()) {
        let exe = command.exe.unwrap_or_default();
        // A process that may speak to the engine's socket is as good as root, so the name of its program is believed.
        if exe.rsplit(|byte| *byte == b'/').next() == Some(b"docker")
            && let Some(client) = known.get_mut(&pid)
        {
            client.runs = ClientProgram::of_docker(&command.argv);
        }
    }
    known.into_values().chain([others]).collect()
}

/// The FIFOs that the daemon has open of the first process of each container.
#[derive(Debug, Default)]
struct Fifos(BTreeMap<String, Streams>);

#[derive(Debug, Default)]
struct Streams {
    stdin: bool,
    stdout: bool,
}

impl Fifos {
    fn add(&mut self, link: &str) {
        let mut parts = link.rsplit('/');
        let (Some(name), Some(id)) = (parts.next(), parts.next()) else { return };
        if !is_container_id(id) {
            return;
        }
        let streams = self.0.entry(id.to_owned()).or_default();
        match name {
            "init-stdin" => streams.stdin = true,
            "init-stdout" => streams.stdout = true,
            _ => {}
        }
    }

    /// Returns the containers whose stdin has ended. Each of these had one.
    fn ended(&self, had_stdin: &BTreeSet<&str>) -> BTreeSet<String> {
        let ended = |(id, streams): &(&String, &Streams)| {
            had_stdin.contains(id.as_str()) && streams.stdout && !streams.stdin
        };
        self.0.iter().filter(ended).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `/proc/PID/fd` of dockerd 20.10 shows them.
    #[test]
    fn a_container_with_stdout_and_without_stdin_has_ended_its_input() {
        let id = |container: u8| container.to_string().repeat(64);
        let exec = "e".repeat(64);
        let mut fifos = Fifos::default();
        for (container, process, streams) in [
            (1, "init", &["stdin", "stdout", "stderr"][..]),
            (2, "init", &["stdout", "stderr"]),
            // One that nobody asks about.
            (3, "init", &["stdout", "stderr"]),
            (4, "init", &["stdin", "stdout", "stderr"]),
            (4, &exec, &["stdout", "stderr"]),
            // It has ended just now.
            (5, &exec, &["stdin", "stdout"]),
        ] {
            for stream in streams {
                fifos.add(&format!("/run/docker/containerd/{}/{process}-{stream}", id(container)));
            }
        }
        let ids = [1, 2, 4, 5, 6].map(id);
        let asked = ids.iter().map(String::as_str).collect();
        assert_eq!(fifos.ended(&asked), BTreeSet::from([id(2)]));
    }

    #[test]
    fn other_files_are_no_stdio_of_a_container() {
        let mut fifos = Fifos::default();
        let id = "a".repeat(64);
        for link in [
            "socket:[7]".to_owned(),
            "/init-stdout".to_owned(),
            "/run/docker/containerd/short/init-stdout".to_owned(),
            format!("/run/docker/containerd/{id}/other-stdout"),
            format!("/var/lib/docker/containers/{id}/{id}.log"),
            String::new(),
        ] {
            fifos.add(&link);
        }
        assert_eq!(fifos.ended(&BTreeSet::from([id.as_str()])), BTreeSet::new(), "{fifos:?}");
    }
}
