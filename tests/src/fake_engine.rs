//! An engine with one container, as far as mcp-guard asks.

use std::{
    io::{Read as _, Result, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use serde_json::{Value, json};

/// Answers at a socket until the test ends. `container` is the engine's description of the container.
pub fn serve(socket: &Path, container: &Value) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    let id = container["Id"].as_str().unwrap_or_default().to_owned();
    let state = if container["State"]["Paused"] == true { "paused" } else { "running" };
    let list = json!([{ "Id": id, "Names": [container["Name"]], "State": state }]).to_string();
    let container = container.to_string();
    thread::spawn(move || {
        let mut streams = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // The stream of events stays open.
            if let Ok(true) = answer(&mut stream, &id, &list, &container) {
                streams.push(stream);
            }
        }
    });
    Ok(())
}

/// Returns whether the answer goes on.
fn answer(stream: &mut UnixStream, id: &str, list: &str, container: &str) -> Result<bool> {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request)?;
    let request = String::from_utf8_lossy(&request[..length]);
    let body = match &*request {
        _ if request.contains("/events") => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            return stream.write_all(head.as_bytes()).map(|()| true);
        }
        _ if request.contains(id) => container,
        _ if request.contains("/containers/json") => list,
        _ => "{}",
    };
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).map(|()| false)
}
