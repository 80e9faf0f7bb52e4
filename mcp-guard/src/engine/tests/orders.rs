//! Requests that change something.

use std::sync::Mutex;

use super::*;

const DOCKER: &str = r#"{"Version":"29.0.0","Components":[{"Name":"Engine"}]}"#;
const PODMAN: &str = r#"{"Version":"5.4.2","Components":[{"Name":"Podman Engine"}]}"#;

/// Starts an engine that carries out every request, and records each: method, path and body.
fn obedient(version: &'static str) -> (tempfile::TempDir, Arc<dyn Engine>, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let (folder, engine) = engine(move |request| {
        let line = request.split(" HTTP/").next().unwrap_or_default();
        let body = request.split("\r\n\r\n").nth(1).unwrap_or_default();
        log.0.lock().unwrap().push(format!("{line} {body}").trim_end().to_owned());
        match line {
            "GET /version" => (200, version.to_owned()),
            "GET /info" => (200, "{}".to_owned()),
            _ if line.starts_with("GET /v4.0.0/libpod/") => {
                (200, r#"{"HostConfig":{"Cgroups":"split"}}"#.to_owned())
            }
            _ if line.starts_with("GET ") => {
                (200, r#"{"HostConfig":{"Cgroups":"docker's"}}"#.to_owned())
            }
            _ if line.ends_with("/stop") => (204, String::new()),
            _ => (200, "{}".to_owned()),
        }
    });
    (folder, engine, asked)
}

#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn id() -> String {
    "0".repeat(64)
}

#[tokio::test]
async fn each_engine_gets_a_limit_through_its_own_api() {
    let docker = format!("POST /containers/{}/update {{\"PidsLimit\":7}}", id());
    // Podman's Docker API would reset the restart policy.
    let podman =
        format!("POST /v4.0.0/libpod/containers/{}/update {{\"pids\":{{\"limit\":7}}}}", id());
    for (version, expected) in [(DOCKER, docker), (PODMAN, podman)] {
        let (_folder, engine, asked) = obedient(version);
        engine.update_limit(&id(), 7).await.unwrap();
        assert_eq!(asked.take(), ["GET /version", &expected]);
        engine.update_limit(&id(), 7).await.unwrap();
        assert_eq!(asked.take(), [expected], "the version is asked for only once");
    }
}

#[tokio::test]
async fn each_engine_stops_a_container() {
    for version in [DOCKER, PODMAN] {
        let (_folder, engine, asked) = obedient(version);
        engine.stop(&id()).await.unwrap();
        assert_eq!(asked.take(), [format!("POST /containers/{}/stop", id())]);
        assert!(matches!(engine.stop("../x").await, Err(Error::BadId(_))));
        assert!(matches!(engine.update_limit("../x", 7).await, Err(Error::BadId(_))));
        assert!(asked.take().is_empty());
    }
}

#[tokio::test]
async fn stopping_a_stopped_container_succeeds_and_an_unknown_one_fails() {
    let (_folder, engine) = engine(|request| match request {
        _ if request.contains(&"0".repeat(64)) => (304, String::new()),
        _ => (404, r#"{"message":"no such container"}"#.to_owned()),
    });
    engine.stop(&id()).await.unwrap();
    let refused = engine.stop(&"1".repeat(64)).await.unwrap_err().to_string();
    assert!(refused.contains("status 404: no such container"), "{refused}");
}

#[tokio::test]
async fn the_cgroup_mode_comes_from_podmans_own_api() {
    for (version, expected) in [(DOCKER, "docker's"), (PODMAN, "split")] {
        let (_folder, engine, _asked) = obedient(version);
        let details = engine.details(&id()).await.unwrap().unwrap();
        assert_eq!(details.container.cgroups, expected.to_owned().into());
    }
}

#[tokio::test]
async fn messages_name_an_engine_by_its_latest_answer() {
    let (folder, engine, _asked) = obedient(PODMAN);
    let socket = folder.path().join("engine.sock").display().to_string();
    assert_eq!(engine.name(), format!("the engine at {socket}"));
    assert_eq!(engine.describe().await.unwrap().kind, facts::EngineKind::Podman);
    assert_eq!(engine.name(), format!("Podman at {socket}"));
    std::fs::remove_file(&socket).unwrap();
    let away = engine.candidates().await.unwrap_err().to_string();
    assert!(away.starts_with(&format!("Podman at {socket} does not answer: ")), "{away}");
    assert!(away.ends_with("; is it running, and is --docker right?"), "{away}");
}

#[tokio::test]
async fn a_change_may_take_longer_than_an_answer() {
    let silent = |request: &str| match request {
        _ if request.starts_with("GET /version") => (200, DOCKER.to_owned()),
        _ => (SILENCE, String::new()),
    };
    let (folder, _) = engine(silent);
    let socket = folder.path().join("engine.sock").display().to_string();
    let engine = Socket::new(&socket, Duration::from_millis(100));
    let late = [
        engine.containers().await.unwrap_err(),
        engine.update_limit(&id(), 7).await.unwrap_err(),
        engine.candidates().await.unwrap_err(),
    ];
    assert_eq!(late.each_ref().map(Error::is_unanswered_change), [false, true, false]);
    let late = late.map(|error| error.to_string());
    let within =
        ["no answer within 100ms", "no answer within 300ms", "did not answer within 200ms"];
    assert!(late.iter().zip(within).all(|(late, within)| late.ends_with(within)), "{late:?}");
}
