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
    time::Duration,
};

use mcp_guard_core::{
    container::is_container_id,
    evidence::{ClientProcess, Connections},
    id::{Pid, Ticks},
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
    process::{self, OpenProcess},
};

/// How long the daemon may take to accept a connection, and to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most descriptors of the daemon. Each container has six, and each client up to three.
const MOST_DESCRIPTORS: usize = 32_768;
/// An answer to it comes at once, and the connection stays open.
const PING: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The name of its program, of which only that of a process that serves the socket counts.
const NAME: &[u8] = b"dockerd";
/// The first process of a container, in the names of FIFOs.
const INIT: &str = "init";

pub struct Dockerd {
    pid: Pid,
    start: Ticks,
}

/// What the daemon has of its containers.
#[derive(Default)]
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
    let has_it = |pid: Pid| {
        let process = OpenProcess::open(pid).ok()?;
        let start = process.start_ticks().ok()?;
        let fds = process.descriptors(MOST_DESCRIPTORS).ok()?;
        let has_it = fds.into_iter().any(|fd| process.descriptor(fd).is_ok_and(|link| link == its));
        has_it.then_some(Dockerd { pid, start })
    };
    if let Some(known) = known.and_then(|known| has_it(known.pid)) {
        return Ok(known);
    }
    let is_named = |pid: &Pid| {
        OpenProcess::open(*pid).and_then(|process| process.comm()).is_ok_and(|name| name == NAME)
    };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok().map(Pid);
    let all = fs::read_dir("/proc")?.flatten().filter_map(pid);
    all.filter(is_named).find_map(has_it).ok_or_else(none)
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
    pub fn look(&self, containers: &[ClientsContainer]) -> io::Result<FoundClients> {
        let process = OpenProcess::open(self.pid)?;
        if process.start_ticks()? != self.start {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // The connections come first: a container that ends meanwhile, and with it its client, has no FIFOs then.
        let fds = process.descriptors(MOST_DESCRIPTORS)?;
        let clients = by_process(sockets::accepted(&process, self.pid, &fds)?);
        let mut fifos = Fifos::default();
        for fd in process.descriptors(MOST_DESCRIPTORS)? {
            fifos.add(&link(&process, fd)?.unwrap_or_default());
        }
        let asked = containers.iter().map(|one| one.container.id.as_str()).collect();
        Ok(fifos.judge(&asked, clients))
    }
}

/// Groups the connections by the process that made them. Our own are left out.
fn by_process(all: Vec<Accepted>) -> Vec<ClientProcess> {
    let mut known: BTreeMap<Pid, ClientProcess> = BTreeMap::new();
    let mut others = ClientProcess::default();
    for Accepted { by, flags } in all {
        match by {
            Some(pid) if pid == process::this() => {}
            Some(pid) => known.entry(pid).or_default().add(flags),
            None => others.add(flags),
        }
    }
    let known = known.into_iter().map(|(pid, client)| {
        let attaches_once =
            OpenProcess::open(pid).is_ok_and(|process| is_dockers_command(&process));
        ClientProcess { attaches_once, ..client }
    });
    known.chain([others]).collect()
}

/// Whether a process is `docker`. Who may speak to the engine's socket is as good as root, so its name is believed.
fn is_dockers_command(process: &OpenProcess) -> bool {
    let exe = process.exe().unwrap_or_default();
    exe.rsplit(|byte| *byte == b'/').next() == Some(b"docker")
}

/// The FIFOs that the daemon has open: by container, and by its processes that have stdio.
#[derive(Debug, Default)]
struct Fifos(BTreeMap<String, BTreeMap<String, Streams>>);

#[derive(Debug, Default)]
struct Streams {
    stdin: bool,
    stdout: bool,
    /// A process with a terminal has none.
    stderr: bool,
}

impl Fifos {
    fn add(&mut self, link: &str) {
        let mut parts = link.rsplit('/');
        let (Some(name), Some(id)) = (parts.next(), parts.next()) else { return };
        let Some((process, stream)) = name.rsplit_once('-') else { return };
        if !is_container_id(id) || !(process == INIT || is_container_id(process)) {
            return;
        }
        let processes = self.0.entry(id.to_owned()).or_default();
        let streams = processes.entry(process.to_owned()).or_default();
        match stream {
            "stdin" => streams.stdin = true,
            "stdout" => streams.stdout = true,
            "stderr" => streams.stderr = true,
            _ => {}
        }
    }

    fn judge(&self, asked: &BTreeSet<&str>, clients: Vec<ClientProcess>) -> FoundClients {
        let mut found = FoundClients::default();
        let mut open = 0;
        for (id, processes) in &self.0 {
            for (process, streams) in processes {
                let is_interactive = process != INIT || asked.contains(id.as_str());
                if streams.stdin {
                    open += u64::from(is_interactive && streams.stderr);
                } else if process == INIT && is_interactive && streams.stdout {
                    found.ended.insert(id.clone());
                }
            }
        }
        found.connections = Connections::of(clients, open);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `/proc/PID/fd` of dockerd 20.10 shows them.
    fn fifos(of: &[(u8, &str, &[&str])]) -> Fifos {
        let mut fifos = Fifos::default();
        for (container, process, streams) in of {
            for stream in *streams {
                let id = format!("{container}").repeat(64);
                fifos.add(&format!("/run/docker/containerd/{id}/{process}-{stream}"));
            }
        }
        fifos
    }

    #[test]
    fn a_container_without_stdin_has_ended_its_input_and_each_open_stdin_has_a_client() {
        let (with, without) = (&["stdin", "stdout", "stderr"][..], &["stdout", "stderr"][..]);
        let exec = "e".repeat(64);
        let all = fifos(&[
            (1, INIT, with),
            (2, INIT, without),
            (3, INIT, without),
            // One that nobody asks about, such as `docker run -d -i`, with an exec.
            (4, INIT, with),
            (4, &exec, with),
            // An exec with a terminal may have lost its client.
            (5, &exec, &["stdin", "stdout"]),
        ]);
        let ids = [1, 2, 6].map(|number: u8| number.to_string().repeat(64));
        let asked = ids.iter().map(String::as_str).collect();
        let open = ClientProcess { open: 3, attaches_once: true, ..ClientProcess::default() };
        let found = all.judge(&asked, vec![open; 3]);
        assert_eq!(found.ended, BTreeSet::from([ids[1].clone()]));
        assert_eq!(found.connections.living, 1, "two of three have an open stdin");
    }

    #[test]
    fn other_files_are_no_stdio_of_a_container() {
        let mut fifos = Fifos::default();
        let id = "a".repeat(64);
        for link in [
            "socket:[7]".to_owned(),
            "/init-stdin".to_owned(),
            "/run/docker/containerd/short/init-stdin".to_owned(),
            format!("/run/docker/containerd/{id}/other-stdin"),
            format!("/var/lib/docker/containers/{id}/{id}.log"),
            String::new(),
        ] {
            fifos.add(&link);
        }
        assert!(
            fifos.judge(&BTreeSet::from([id.as_str()]), Vec::new()).ended.is_empty(),
            "{fifos:?}"
        );
    }
}
