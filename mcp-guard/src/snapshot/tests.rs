use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    sync::mpsc,
    time::Duration,
};

use super::*;
use crate::host::process;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Starts an engine that knows one container, which is this process. It reports each path that it
/// is asked for.
fn engine(folder: &Path) -> (Engines, mpsc::Receiver<String>) {
    let socket = folder.join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (report, asked) = mpsc::channel();
    let container = format!(
        r#"{{"Name":"/web","State":{{"Pid":{}}},"HostConfig":{{"PidsLimit":25}},"ExecIDs":["{}"],
            "Config":{{"Labels":{{"com.docker.compose.project":"p","com.docker.compose.service":"s",
            "com.docker.compose.project.config_files":"/srv/compose.yml"}}}}}}"#,
        std::process::id(),
        "e".repeat(64)
    );
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = match path.as_str() {
                "/containers/json?all=true" => "[]",
                path if path.contains("/aaaa") => container.as_str(),
                path if path.contains("/containers/") => "",
                _ => r#"{"ApiVersion":"1.52"}"#,
            };
            let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
            let _ = stream.write_all(format!("HTTP/1.0 {status}\r\n\r\n{body}").as_bytes());
            let _ = report.send(path);
        }
    });
    (Engines::at(socket.to_str().unwrap(), TIMEOUT), asked)
}

/// Whether the snapshot reports that the engine did not answer.
fn is_silent(snapshot: &Snapshot) -> bool {
    snapshot.unreadable().iter().any(|one| one.what == Source::Engine)
}

#[tokio::test]
async fn a_limit_is_read_without_other_containers_files_or_execs() {
    let folder = tempfile::tempdir().unwrap();
    let (engines, asked) = engine(folder.path());
    let requests = Requests::new(folder.path());
    let (id, engine) = engines.iter().next().unwrap();
    let known = BTreeMap::from([(id, engine.describe().await.unwrap())]);
    assert_eq!(asked.try_iter().count(), 2, "it described itself");
    let snapshot =
        Snapshot::take_for_limits(engines, requests, known, Observer::start()).await.unwrap();
    let id = "a".repeat(64);
    let found = snapshot.container(&id).await.unwrap();
    let container = found.container.unwrap();
    assert_eq!((container.pids_limit, found.target.name.as_str()), (Some(25), "web"));
    let me = process::this();
    assert!(found.members.iter().any(|process| process.pid == me), "its cgroup was read");
    assert_eq!(found.compose.unwrap().says, facts::Says::NotAsked);
    assert!(snapshot.container(&"b".repeat(64)).await.is_none() && !is_silent(&snapshot));
    assert_eq!(snapshot.lists(&id), None);
    // A connection without a request shows whose engine it is.
    let asked: Vec<String> = asked.try_iter().filter(|path| !path.is_empty()).collect();
    let known = |id: &str| format!("/containers/{}/json", id.repeat(64));
    assert_eq!(asked, [known("a"), known("b")]);
}

#[tokio::test]
async fn an_engine_that_does_not_answer_differs_from_one_that_knows_no_container() {
    let folder = tempfile::tempdir().unwrap();
    let limits = || Requests::new(folder.path());
    let none = Engines::at("/nonexistent", TIMEOUT);
    let none = Snapshot::take(none, limits(), Observer::start()).await.unwrap();
    let id = "a".repeat(64);
    assert!(is_silent(&none) && none.container(&id).await.is_none());
    assert_eq!((none.lists(&id), none.cgroup_of_container(&id)), (None, None));
    let (engine, _asked) = engine(folder.path());
    let empty = Snapshot::take(engine, limits(), Observer::start()).await.unwrap();
    assert!(!is_silent(&empty));
    assert_eq!(empty.lists(&id), Some(false));
}
