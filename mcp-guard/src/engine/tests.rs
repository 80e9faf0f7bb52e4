use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::{socket::Socket, *};

mod orders;

/// Shorter than the engine's timeout, after which all containers would be listed again.
const SOON: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(600);

/// An answer of Podman 5.4, shortened. Docker has no state `stopped`.
const ALL: &str = r#"[
    {"Id":"ID0","Names":["/runs"],"Image":"localhost/a:latest","State":"running","Status":"Up"},
    {"Id":"ID1","Names":["/ended"],"Image":"localhost/a:latest","State":"stopped","Status":"Exited"}
]"#;
const RUNNING: &str = r#"[{"Id":"ID0","Names":["/runs"],"State":"running"}]"#;
/// `State` and `Config` of Podman 4.3, shortened.
const INSPECTED: &str = r#"{"Id":"ID0","Name":"/runs","State":{"Status":"paused","Running":true,
    "Paused":true,"Pid":451,"ExitCode":0,"Health":{"Status":"","FailingStreak":0,"Log":null}},
    "HostConfig":{"CgroupnsMode":"","Isolation":"","RestartPolicy":{"Name":"no"},"PidsLimit":300},
    "Config":{"Image":"localhost/a:latest","Labels":null}}"#;

/// Stand-ins for a status: the request is never answered, or its answer never ends.
const SILENCE: u16 = 0;
const ENDLESS: u16 = 1;

/// Starts an engine that passes each request to `answer`, which returns status and body.
fn engine(
    answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
) -> (tempfile::TempDir, Arc<dyn Engine>) {
    let answer = Arc::new(answer);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, Arc::clone(&answer)));
        }
    });
    let engine = Socket::new(socket.to_str().unwrap(), TIMEOUT);
    (folder, Arc::new(engine))
}

fn watch(
    engine: Arc<dyn Engine>,
    again: Duration,
) -> (JoinHandle<()>, mpsc::Receiver<(EngineId, EngineEvent)>) {
    let (to, reported) = mpsc::channel(8);
    let events = EngineEvents::new(EngineId::default(), to);
    (
        tokio::spawn(async move { engine.watch(events, Rounds::default().every(again)).await }),
        reported,
    )
}

async fn converse(
    mut stream: UnixStream,
    answer: Arc<impl Fn(&str) -> (u16, String) + Send + Sync>,
) {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await.unwrap();
    let (status, body) = answer(&String::from_utf8_lossy(&request[..length]));
    let is_endless = status == ENDLESS;
    let (status, length) = if is_endless { (200, 1 << 20) } else { (status, body.len()) };
    if status != SILENCE {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}");
        let whole = format!("{head}\r\nConnection: close\r\n\r\n{body}");
        // A client that stops reading early closes the connection first.
        let _ = stream.write_all(whole.as_bytes()).await;
    }
    if status == SILENCE || is_endless {
        std::future::pending::<()>().await;
    }
}

const PAUSED: &str = r#"[{"Id":"ID0","Names":["/held"],"State":"paused"},
    {"Id":"ID1","Names":["/runs"],"State":"running"}]"#;

fn with_ids(body: &str) -> String {
    body.replace("ID0", &"0".repeat(64)).replace("ID1", &"1".repeat(64))
}

fn podman(request: &str) -> (u16, String) {
    // The filter is percent-encoded.
    let only_running = request.contains("running") && request.contains("paused");
    match request {
        _ if request.contains("/json?") && only_running => (200, with_ids(RUNNING)),
        _ if request.contains("/containers/json") => (200, with_ids(ALL)),
        _ if request.contains(&"0".repeat(64)) => (200, with_ids(INSPECTED)),
        _ => (404, r#"{"message":"no such container"}"#.to_owned()),
    }
}

#[tokio::test]
async fn a_state_that_only_podman_has_does_not_hide_running_containers() {
    let (_folder, engine) = engine(podman);
    let runs = Candidate { id: "0".repeat(64), name: "runs".to_owned() };
    assert_eq!(engine.candidates().await.unwrap(), [runs]);
}

#[tokio::test]
async fn podmans_description_of_a_container_is_understood() {
    let (_folder, engine) = engine(podman);
    let found = engine.inspect(&"0".repeat(64)).await.unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.init, found.paused), ("runs", Pid(451), true));
    assert!(matches!(engine.inspect("../x").await, Err(Error::BadId(_))));
}

#[tokio::test]
async fn paused_containers_are_listed_by_one_request() {
    let (_folder, engine) = engine(|request| {
        // A filter that an engine ignores adds others to the answer.
        let is_asked = request.starts_with("GET /containers/json?filters=%7B%22status%22");
        if is_asked { (200, with_ids(PAUSED)) } else { (404, "{}".to_owned()) }
    });
    assert_eq!(engine.paused().await.unwrap(), ["0".repeat(64)]);
}

#[tokio::test]
async fn watching_begins_with_the_running_containers() {
    let (_folder, engine) = engine(podman);
    let (watch, mut reported) = watch(engine, Duration::from_secs(3600));
    let Some((_, EngineEvent::Up { container, .. })) = reported.recv().await else {
        panic!("not a running container")
    };
    assert_eq!(container.name, "runs");
    watch.abort();
}

/// No event reports a container that runs already.
#[tokio::test]
async fn a_container_that_could_not_be_inspected_is_inspected_again() {
    static FAILED: AtomicBool = AtomicBool::new(false);
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => (SILENCE, String::new()),
        _ if request.contains(&format!("/{}/json", "0".repeat(64)))
            && !FAILED.swap(true, Ordering::Relaxed) =>
        {
            (500, r#"{"message":"not now"}"#.to_owned())
        }
        _ => podman(request),
    });
    let (watch, mut reported) = watch(engine, Duration::from_millis(10));
    let is_reported = async {
        while let Some((_, event)) = reported.recv().await {
            if matches!(event, EngineEvent::Up { .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, is_reported).await.expect("it is reported");
    watch.abort();
}

/// Docker drops events that are not read in time.
#[tokio::test]
async fn a_container_whose_start_was_not_reported_is_found() {
    static LISTED: AtomicBool = AtomicBool::new(false);
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => (SILENCE, String::new()),
        _ if request.contains("/containers/json") && !LISTED.swap(true, Ordering::Relaxed) => {
            (200, "[]".to_owned())
        }
        _ => podman(request),
    });
    let (watch, mut reported) = watch(engine, Duration::from_millis(10));
    let is_reported =
        async { while !matches!(reported.recv().await, Some((_, EngineEvent::Up { .. }))) {} };
    tokio::time::timeout(SOON, is_reported).await.expect("it is reported");
    watch.abort();
}

/// An event invalidates the answers to older requests, not to later ones.
#[tokio::test]
async fn a_container_reported_by_an_event_is_inspected_again_later() {
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => {
            let event = r#"{"Type":"container","Action":"update","Actor":{"ID":"ID0"}}"#;
            (ENDLESS, with_ids(event) + "\n")
        }
        _ => podman(request),
    });
    let (watch, mut reported) = watch(engine, Duration::from_millis(10));
    let is_reported = async {
        let mut times = 0;
        // The first list, the event, and the lists after them.
        while times < 5 {
            times += u32::from(matches!(reported.recv().await, Some((_, EngineEvent::Up { .. }))));
        }
    };
    tokio::time::timeout(SOON, is_reported).await.expect("it is reported");
    watch.abort();
}

/// Nor is an event delayed by a container about which the engine never answers.
#[tokio::test]
async fn events_are_not_delayed_by_a_container_that_hangs() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => {
            let event = r#"{"Type":"container","Action":"pause","Actor":{"ID":"ID0"}}"#;
            (200, with_ids(event))
        }
        _ if request.contains(&format!("/{}/json", "0".repeat(64))) => {
            let first = !ASKED.swap(true, Ordering::Relaxed);
            if first { (500, "{}".to_owned()) } else { (SILENCE, String::new()) }
        }
        _ => podman(request),
    });
    let (watch, mut reported) = watch(engine, Duration::ZERO);
    let is_reported = async {
        while let Some((_, event)) = reported.recv().await {
            if matches!(event, EngineEvent::Paused { paused: true, .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, is_reported).await.expect("the pause is reported");
    watch.abort();
}

#[tokio::test]
async fn every_label_of_an_image_is_kept() {
    let (_folder, engine) = engine(|_| {
        let many: String = (0..2000).map(|n| format!("\"l{n}\":\"x\",")).collect();
        let many = format!("\"Labels\":{{{many}\"mcp-guard\":\"on\"}}");
        (200, with_ids(INSPECTED).replace("\"Labels\":null", &many))
    });
    let found = engine.inspect(&"0".repeat(64)).await.unwrap().unwrap();
    assert_eq!((found.labels.len(), found.labels["mcp-guard"].as_str()), (2001, "on"));
}

#[tokio::test]
async fn requests_contain_no_version_that_an_engine_may_refuse() {
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains(" /v1") => {
            (400, "{\"message\":\"client version is too old\"}".into())
        }
        _ if request.contains("/containers/json") => (200, with_ids(ALL)),
        _ => (200, "{\"Version\":\"29.0.0\",\"ApiVersion\":\"1.52\"}".into()),
    });
    assert_eq!(engine.describe().await.unwrap().api_version, "1.52");
    let all = engine.containers().await.unwrap();
    let runs: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.runs)).collect();
    assert_eq!(runs, [("runs", true), ("ended", false)]);
    assert!(engine.details(&"0".repeat(64)).await.unwrap().is_some());
    engine.update_limit(&"0".repeat(64), 7).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_an_error() {
    let (_folder, engine) = engine(|_| (200, " ".repeat(17 << 20)));
    let error = engine.details(&"0".repeat(64)).await.unwrap_err().to_string();
    assert!(error.contains("larger than 16777216 bytes"), "{error}");
    let error = engine.containers().await.unwrap_err().to_string();
    assert!(error.contains("not JSON"), "a list may be larger: {error}");
}

#[tokio::test]
async fn no_more_execs_are_asked_about_after_the_first_error() {
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains(&format!("/exec/{}", "b".repeat(64))) => (500, "{}".into()),
        _ if request.contains("/exec/") => (200, "{\"Running\":true,\"Pid\":7}".into()),
        _ => (
            200,
            format!(
                "{{\"ExecIDs\":[\"{}\",\"{}\",\"{}\"]}}",
                "a".repeat(64),
                "b".repeat(64),
                "c".repeat(64)
            ),
        ),
    });
    let details = engine.details(&"0".repeat(64)).await.unwrap().unwrap();
    let (running, unreadable) = engine.execs(&details).await;
    assert_eq!(running, [Pid(7)]);
    assert!(unreadable.unwrap().why.contains("status 500"));
}
