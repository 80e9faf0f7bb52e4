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
    Anybody,
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
    /// It attaches to one container at most: it is Docker's own command.
    pub attaches_once: bool,
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
}

impl Connections {
    /// `streams`: how many containers and execs there are whose stdin is open, and would not be without a client.
    /// A client of each has an open connection.
    pub fn of(clients: impl IntoIterator<Item = ClientProcess>, streams: u64) -> Self {
        let (mut open, mut half_closed, mut dead) = (0_u64, 0_u64, 0_u64);
        for client in clients {
            // `docker run` has up to two more connections, which ask when the container ends.
            open += match (client.attaches_once, client.half_closed) {
                (true, 0) => client.open.min(1),
                (true, _) => 0,
                (false, _) => client.open,
            };
            half_closed += client.half_closed;
            dead += client.dead;
        }
        Self { living: half_closed + open.saturating_sub(streams), dead }
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
        let docker =
            |open, half_closed| ClientProcess { open, half_closed, dead: 0, attaches_once: true };
        let other =
            |open, half_closed| ClientProcess { open, half_closed, dead: 0, attaches_once: false };
        let killed = ClientProcess { dead: 1, attaches_once: true, ..ClientProcess::default() };
        for (clients, streams, expected) in [
            (vec![], 0, (0, 0)),
            (vec![killed; 5], 0, (0, 5)),
            // `docker run -i`, with one connection for the stream and two that ask for its end.
            (vec![docker(3, 0); 2], 2, (0, 0)),
            (vec![docker(3, 0), docker(3, 0), killed], 2, (0, 1)),
            // `echo script | docker run -i`, `docker exec -i c job </dev/null`, `docker run` without `-i`.
            (vec![docker(2, 1); 3], 0, (3, 0)),
            (vec![docker(2, 1); 3], 5, (3, 0)),
            // `docker attach` to such a container, `docker logs -f`, `docker events`.
            (vec![docker(1, 0), docker(3, 0)], 1, (1, 0)),
            // A gateway that attaches through the API, with idle connections.
            (vec![other(4, 2)], 1, (5, 0)),
        ] {
            let Connections { living, dead } = Connections::of(clients.clone(), streams);
            assert_eq!((living, dead), expected, "{clients:?}, {streams}");
        }
    }
}
