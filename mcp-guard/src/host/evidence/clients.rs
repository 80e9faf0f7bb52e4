//! Whether the clients of containers live. Only processes of the engine are looked at: a container cannot make such a
//! look wrong, or hold it up.

mod conmon;
mod dockerd;
mod sockets;

use std::io;

use mcp_guard_core::{
    evidence::{ClientIs, ClientsLook, EndedStdin, InteractiveContainer},
    id::{Pid, Ticks},
};

use self::dockerd::Dockerd;
use super::super::observer::Observer;

/// A container whose stdin is open as long as its client is there.
#[derive(Clone, Debug)]
pub struct ClientsContainer {
    pub container: InteractiveContainer,
    /// Its first process, and when that began.
    pub init: (Pid, Ticks),
}

/// Which process has the engine's end of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// One process for all containers.
    Dockerd,
    /// One process for each container, its parent.
    Conmon,
}

/// Looks at the containers of one engine.
pub struct ClientsLooker {
    observer: Observer,
    dockerd: Option<Dockerd>,
}

impl ClientsLooker {
    #[must_use]
    pub fn new(observer: Observer) -> Self {
        Self { observer, dockerd: None }
    }

    /// # Errors
    /// If the engine does not answer, or its process is not found or cannot be read. Nothing is known then.
    pub fn look(
        &mut self,
        socket: &str,
        served_by: ServedBy,
        containers: Vec<ClientsContainer>,
    ) -> io::Result<ClientsLook> {
        let mut look = ClientsLook { engine: socket.to_owned(), ..ClientsLook::default() };
        match served_by {
            ServedBy::Dockerd => {
                let dockerd = dockerd::find(socket, self.dockerd.take())?;
                let found = dockerd.look(&containers, &self.observer)?;
                self.dockerd = Some(dockerd);
                look.connections = found.connections;
                let ended = containers.into_iter().map(|one| one.container);
                let ended = ended.filter(|one| found.ended.contains(&one.id));
                look.ended = ended
                    .map(|container| EndedStdin { container, client: ClientIs::NotTold })
                    .collect();
            }
            ServedBy::Conmon => {
                // A container that cannot be read is not known, and most likely gone.
                let ended =
                    containers.into_iter().filter_map(|ClientsContainer { container, init }| {
                        let client = conmon::client(&container.id, init, &self.observer).ok()??;
                        Some(EndedStdin { container, client })
                    });
                look.ended = ended.collect();
            }
        }
        Ok(look)
    }
}
