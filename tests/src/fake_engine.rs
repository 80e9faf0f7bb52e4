//! An engine with a few containers, as far as mcp-guard asks.

use std::{
    io::{Read as _, Result, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use serde_json::{Value, json};

/// Docker, as far as a limit needs it.
const VERSION: &str =
    r#"{"Version":"27.5.1","ApiVersion":"1.47","Components":[{"Name":"Engine"}]}"#;

/// Updates of the container that are under way: the engine does not answer them.
#[derive(Clone, Default)]
pub struct Updates(Arc<Mutex<Vec<UnixStream>>>);

impl Updates {
    /// Answers all of them.
    pub fn answer(&self) -> Result<usize> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.drain(..).map(|mut stream| say(&mut stream, "{}").map(|()| 1)).sum()
    }
}

/// Answers at a socket until the test ends. `container` is the engine's description of its only container.
pub fn serve(socket: &Path, container: &Value) -> Result<Updates> {
    serve_all(socket, std::slice::from_ref(container))
}

/// Like [`serve`], for several containers.
pub fn serve_all(socket: &Path, containers: &[Value]) -> Result<Updates> {
    let updates = Updates::default();
    let hung = updates.clone();
    let listener = UnixListener::bind(socket)?;
    let listed = |container: &Value| {
        let state = if container["State"]["Paused"] == true { "paused" } else { "running" };
        json!({ "Id": container["Id"], "Names": [container["Name"]], "State": state })
    };
    let list = Value::from(containers.iter().map(listed).collect::<Vec<_>>()).to_string();
    let id = |container: &Value| container["Id"].as_str().unwrap_or_default().to_owned();
    let described: Vec<_> = containers.iter().map(|one| (id(one), one.to_string())).collect();
    thread::spawn(move || {
        let mut streams = Vec::new();
        for mut stream in listener.incoming().flatten() {
            match answer(&mut stream, &list, &described) {
                Ok(Then::GoesOn) => streams.push(stream),
                Ok(Then::Hangs) => {
                    hung.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream)
                }
                Ok(Then::Ends) | Err(_) => {}
            }
        }
    });
    Ok(updates)
}

enum Then {
    Ends,
    /// The stream of events stays open.
    GoesOn,
    /// It has no answer yet.
    Hangs,
}

fn answer(stream: &mut UnixStream, list: &str, described: &[(String, String)]) -> Result<Then> {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..length]);
    let asked = described.iter().find(|(id, _)| request.contains(id));
    let body = match &*request {
        _ if request.contains("/events") => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            return stream.write_all(head.as_bytes()).map(|()| Then::GoesOn);
        }
        _ if request.contains("/update ") => return Ok(Then::Hangs),
        _ if request.contains("/version ") => VERSION,
        _ if request.contains("/containers/json") => list,
        _ => asked.map_or("{}", |(_, container)| container),
    };
    say(stream, body).map(|()| Then::Ends)
}

fn say(stream: &mut UnixStream, body: &str) -> Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())
}
