//! Whether the clients of containers live, as the engine's own end of their connections shows it.
//!
//! The stdin of a container ends with its client if it was started by `docker run -i` (StdinOnce). That alone is no
//! proof that the client is gone: one that has sent all of its input may wait for the result. The connection to the
//! engine tells both apart. If the client has only shut down its side, it is half closed; if the client is gone, it
//! is hung up.

use super::PollFlags;

/// A look at the containers of an engine whose stdin ends with their client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientsLook {
    /// The engine's socket.
    pub engine: String,
    /// Those whose stdin has ended.
    pub ended: Vec<EndedStdin>,
    pub connections: Connections,
}

/// A running container whose stdin has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedStdin {
    pub container: InteractiveContainer,
    pub client: ClientIs,
}

/// A container whose stdin ends with its client. All texts are escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InteractiveContainer {
    pub id: String,
    pub name: String,
    /// The image as it was named at the start.
    pub image: String,
    /// The digest of the image.
    pub image_id: String,
    /// The label that names its server, as `KEY=VALUE`, if it has one.
    pub label: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientIs {
    /// No living connection leads to this container.
    Gone,
    Alive,
    /// Each living connection of the engine may lead to it: see [`Connections`].
    NotTold,
}

/// The clients' connections to an engine that serves all of its containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Living connections that may lead to a container whose stdin has ended. There may be fewer that do.
    pub living: u64,
    /// Connections that the engine still holds although the client is gone. dockerd 20.10 keeps them after the end of the
    /// container, too, so they prove nothing about one that runs.
    pub dead: u64,
}

/// The connections of one process to an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientProcess {
    pub open: u64,
    /// The process will send nothing more.
    pub half_closed: u64,
    pub dead: u64,
    pub runs: ClientProgram,
}

/// The program of the process that made a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientProgram {
    /// `docker run`: it attaches to the container that it has created, and to no other.
    DockerRun,
    /// Another command of `docker`: it attaches to one container at most.
    Docker,
    /// It may attach to any number of containers.
    #[default]
    Other,
}

/// Options of `docker` itself whose value is the next word.
const WITH_VALUE: [&[u8]; 10] = [
    b"--config",
    b"-c",
    b"--context",
    b"-H",
    b"--host",
    b"-l",
    b"--log-level",
    b"--tlscacert",
    b"--tlscert",
    b"--tlskey",
];
const WITHOUT_VALUE: [&[u8]; 4] = [b"-D", b"--debug", b"--tls", b"--tlsverify"];

impl ClientProgram {
    /// Reads the arguments of a `docker` process, each with a zero byte after it. What is not recognised is not taken
    /// for `docker run`.
    #[must_use]
    pub fn of_docker(arguments: &[u8]) -> Self {
        let mut words = arguments.split(|byte| *byte == 0).skip(1);
        while let Some(word) = words.next() {
            let is_long_with_value = word.starts_with(b"--") && word.contains(&b'=');
            if WITH_VALUE.contains(&word) {
                words.next();
            } else if !is_long_with_value && !WITHOUT_VALUE.contains(&word) {
                let runs = word == b"run" || word == b"container" && words.next() == Some(b"run");
                return if runs { Self::DockerRun } else { Self::Docker };
            }
        }
        Self::Docker
    }
}

impl ClientProcess {
    /// Adds a connection, by what poll(2) says of the engine's end of it.
    pub fn add(&mut self, engine_end: PollFlags) {
        if engine_end.is_hung_up() {
            self.dead += 1;
        } else if engine_end.has_sent_all() {
            self.half_closed += 1;
        } else {
            self.open += 1;
        }
    }

    /// How many of its open connections may lead to a container whose stdin has ended. A connection is left out only
    /// if it is known where it leads: an open stdin elsewhere proves nothing, because it may be open without a client.
    fn may_lead_to_ended(&self) -> u64 {
        match (self.runs, self.half_closed) {
            // The stdin of its container has not ended. Its other connections only ask when the container ends.
            (ClientProgram::DockerRun, 0) => 0,
            (ClientProgram::Docker, 0) => self.open.min(1),
            // Its stream is the one that is half closed.
            (ClientProgram::DockerRun | ClientProgram::Docker, _) => 0,
            (ClientProgram::Other, _) => self.open,
        }
    }
}

impl Connections {
    pub fn of(clients: impl IntoIterator<Item = ClientProcess>) -> Self {
        let (mut living, mut dead) = (0_u64, 0_u64);
        for client in clients {
            living += client.half_closed + client.may_lead_to_ended();
            dead += client.dead;
        }
        Self { living, dead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags were read from dockerd and conmon.
    #[test]
    fn the_engines_end_tells_whether_a_client_lives() {
        for (flags, expected) in [(0x4, (1, 0, 0)), (0x2005, (0, 1, 0)), (0x2015, (0, 0, 1))] {
            let mut client = ClientProcess::default();
            client.add(PollFlags(flags));
            assert_eq!((client.open, client.half_closed, client.dead), expected, "{flags:#x}");
        }
    }

    #[test]
    fn a_connection_that_may_lead_to_a_container_without_stdin_counts() {
        let client = |runs, open, half_closed| ClientProcess { open, half_closed, dead: 0, runs };
        let run = |open, half_closed| client(ClientProgram::DockerRun, open, half_closed);
        let docker = |open, half_closed| client(ClientProgram::Docker, open, half_closed);
        let other = |open, half_closed| client(ClientProgram::Other, open, half_closed);
        let killed = ClientProcess { dead: 1, ..run(0, 0) };
        for (what, clients, expected) in [
            ("no client", vec![], (0, 0)),
            ("killed", vec![killed; 5], (0, 5)),
            ("docker run -i: a stream, and two that ask for its end", vec![run(3, 0); 2], (0, 0)),
            ("some are killed", vec![run(3, 0), run(3, 0), killed], (0, 1)),
            ("echo script | docker run -i, or docker run without -i", vec![run(2, 1); 3], (3, 0)),
            ("docker exec -i c job </dev/null", vec![docker(2, 1)], (1, 0)),
            // A stdin that is open beside them may have no client: `docker create -i` and `docker start`.
            ("docker attach, docker logs -f", vec![docker(1, 0), docker(3, 0)], (2, 0)),
            ("a gateway that attaches through the API", vec![other(4, 2)], (6, 0)),
            ("one whose program is not known", vec![other(1, 0), run(3, 0)], (1, 0)),
        ] {
            let Connections { living, dead } = Connections::of(clients);
            assert_eq!((living, dead), expected, "{what}");
        }
    }

    #[test]
    fn docker_run_is_told_from_other_commands() {
        use ClientProgram::{Docker, DockerRun};
        for (arguments, expected) in [
            ("docker run -i mcp/time", DockerRun),
            ("/usr/bin/docker container run mcp/time", DockerRun),
            ("docker -D --context run -H unix:///a --log-level=info run image", DockerRun),
            ("docker attach run", Docker),
            ("docker -c run attach run", Docker),
            ("docker --config run", Docker),
            ("docker container attach run", Docker),
            ("docker --unknown run image", Docker),
            ("docker -Hunix:///a run image", Docker),
            ("docker exec -i run sh", Docker),
            ("docker", Docker),
            ("", Docker),
        ] {
            let bytes: Vec<u8> =
                arguments.split(' ').flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
            assert_eq!(ClientProgram::of_docker(&bytes), expected, "{arguments}");
        }
    }
}
