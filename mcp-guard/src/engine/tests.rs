use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::{socket::Socket, *};

mod orders;

const TIMEOUT: Duration = Duration::from_secs(10);

/// As Podman 5.4 answers it, shortened: `stopped` is a state that Docker does not have.
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

/// The status of a request that is never answered, and of one whose answer never ends.
const SILENCE: u16 = 0;
const ENDLESS: u16 = 1;

/// An engine that gives each request to `answer`, which returns status and body.
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
    let (to, told) = mpsc::channel(8);
    let events = EngineEvents::new(EngineId::default(), to);
    (tokio::spawn(async move { engine.watch(events, again).await }), told)
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
        // Who reads no more than it wants goes away first.
        let _ = stream.write_all(whole.as_bytes()).await;
    }
    if status == SILENCE || is_endless {
        std::future::pending::<()>().await;
    }
}

fn with_ids(body: &str) -> String {
    body.replace("ID0", &"0".repeat(64)).replace("ID1", &"1".repeat(64))
}

fn podman(request: &str) -> (u16, String) {
    // The filter, percent-encoded.
    let of_those_that_run = request.contains("running") && request.contains("paused");
    match request {
        _ if request.contains("/json?") && of_those_that_run => (200, with_ids(RUNNING)),
        _ if request.contains("/containers/json") => (200, with_ids(ALL)),
        _ if request.contains(&"0".repeat(64)) => (200, with_ids(INSPECTED)),
        _ => (404, r#"{"message":"no such container"}"#.to_owned()),
    }
}

#[tokio::test]
async fn a_state_that_only_podman_has_hides_no_container_that_runs() {
    let (_folder, engine) = engine(podman);
    let runs = Candidate { id: "0".repeat(64), name: "runs".to_owned() };
    assert_eq!(engine.candidates().await.unwrap(), [runs]);
}

#[tokio::test]
async fn what_podman_says_of_a_container_is_understood() {
    let (_folder, engine) = engine(podman);
    let found = engine.inspect(&"0".repeat(64)).await.unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.init, found.paused), ("runs", Pid(451), true));
    assert!(matches!(engine.inspect("../x").await, Err(Error::BadId(_))));
}

#[tokio::test]
async fn watching_begins_with_what_runs() {
    let (_folder, engine) = engine(podman);
    let (watch, mut told) = watch(engine, Duration::from_secs(3600));
    let Some((_, EngineEvent::Up(container))) = told.recv().await else {
        panic!("not the container")
    };
    assert_eq!(container.name, "runs");
    watch.abort();
}

/// No event tells of a container that runs already.
#[tokio::test]
async fn a_container_without_an_answer_is_asked_about_again() {
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
    let (watch, mut told) = watch(engine, Duration::from_millis(10));
    let is_told = async {
        while let Some((_, event)) = told.recv().await {
            if matches!(event, EngineEvent::Up(_)) {
                return;
            }
        }
    };
    // Less than the stream of events is waited for: its end asks about everything anew.
    tokio::time::timeout(Duration::from_secs(5), is_told).await.expect("it is told");
    watch.abort();
}

/// Docker forgets events that nobody reads in time.
#[tokio::test]
async fn a_container_whose_start_was_not_told_is_found() {
    static LISTED: AtomicBool = AtomicBool::new(false);
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => (SILENCE, String::new()),
        _ if request.contains("/containers/json") && !LISTED.swap(true, Ordering::Relaxed) => {
            (200, "[]".to_owned())
        }
        _ => podman(request),
    });
    let (watch, mut told) = watch(engine, Duration::from_millis(10));
    let is_told = async { while !matches!(told.recv().await, Some((_, EngineEvent::Up(_)))) {} };
    tokio::time::timeout(Duration::from_secs(5), is_told).await.expect("it is told");
    watch.abort();
}

/// An event makes older answers worthless, not those to later questions.
#[tokio::test]
async fn a_container_that_an_event_told_of_is_asked_about_again() {
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains("/events") => {
            let event = r#"{"Type":"container","Action":"update","Actor":{"ID":"ID0"}}"#;
            (ENDLESS, with_ids(event) + "\n")
        }
        _ => podman(request),
    });
    let (watch, mut told) = watch(engine, Duration::from_millis(10));
    let is_told = async {
        let mut times = 0;
        // The first list, the event, and what comes after them.
        while times < 5 {
            times += u32::from(matches!(told.recv().await, Some((_, EngineEvent::Up(_)))));
        }
    };
    tokio::time::timeout(Duration::from_secs(5), is_told).await.expect("it is told");
    watch.abort();
}

/// Nor do events wait for a container about which the engine never answers.
#[tokio::test]
async fn events_pass_a_container_that_hangs() {
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
    let (watch, mut told) = watch(engine, Duration::ZERO);
    let is_told = async {
        while let Some((_, event)) = told.recv().await {
            if matches!(event, EngineEvent::Paused { paused: true, .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), is_told).await.expect("the pause is told");
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
async fn no_version_is_asked_for_that_an_engine_may_refuse() {
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
async fn an_answer_that_is_too_large_says_so() {
    let (_folder, engine) = engine(|_| (200, " ".repeat(17 << 20)));
    let error = engine.details(&"0".repeat(64)).await.unwrap_err().to_string();
    assert!(error.contains("larger than 16777216 bytes"), "{error}");
    let error = engine.containers().await.unwrap_err().to_string();
    assert!(error.contains("no JSON"), "a list may be larger: {error}");
}

#[tokio::test]
async fn the_first_exec_that_is_not_answered_is_the_last_asked_about() {
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
