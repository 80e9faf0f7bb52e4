//! `policy explain` about what runs here.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::process::Output;

use mcp_guard_tests::{
    agent::command, cgroup::FixtureCgroup, fake_engine, leak::Leak, sleeper::Sleeper,
};
use serde_json::{Value, json};

/// A host's files and its engine, which has one container in a cgroup.
struct Scene {
    folder: tempfile::TempDir,
    /// A container's cgroup inside it.
    _above: FixtureCgroup,
    container: FixtureCgroup,
    _init: Sleeper,
}

impl Scene {
    fn new() -> Self {
        let above = FixtureCgroup::new("explain").unwrap();
        let id = "e".repeat(64);
        let container = above.child(&id).unwrap();
        let init = Sleeper::start(&container).unwrap();
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
        let labels = json!({
            "com.docker.compose.project": "shop",
            "com.docker.compose.service": "gateway",
        });
        let described = json!({
            "Id": id, "Name": "/shop-gateway-1",
            "State": { "Running": true, "Pid": init.pid() },
            "HostConfig": {}, "Config": { "Image": "ghcr.io/gateway:1", "Labels": labels },
        });
        fake_engine::serve(&folder.path().join("docker.sock"), &described).unwrap();
        Self { folder, _above: above, container, _init: init }
    }

    fn cli(&self, arguments: &[&str]) -> Output {
        let socket = self.folder.path().join("docker.sock");
        let mut command = command(self.folder.path(), socket.to_str().unwrap()).unwrap();
        command.args(arguments).output().unwrap()
    }

    fn policy(&self, text: &str) -> String {
        let path = self.folder.path().join("policy.toml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn a_container_is_explained_with_what_would_be_done_now() {
    let scene = Scene::new();
    let _leak = Leak::start(&scene.container, 4).unwrap();
    let _ignored = Leak::of("quiet-mcp", &scene.container, 4).unwrap();
    let policy = scene.policy(
        "mode = \"enforce\"\n[detect.duplicates]\nwarn = 2\nwarn_age = \"1ms\"\nact_age = \"1ms\"\n\
         [detect.burst]\nwarn_10s = 1000\nwarn_60s = 1000\nact_rate = 1000\n\
         [server.\"quiet-*\"]\nignore = true\n\
         [[guard]]\nname = \"other\"\n\
         [[guard]]\ncompose_project = \"shop\"\ncompose_service = \"gate*\"\n\
         [guard.server.demo-mcp.detect.duplicates]\nact = 3\n\
         [[guard]]\nname = \"shop-*\"\n",
    );
    let output = scene.cli(&["policy", "explain", "shop-gateway-1", "--policy", &policy]);
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let cgroup = format!("  cgroup {}\n", scene.container.path());
    let places = |line: u32| format!("{policy}:{line}");
    for expected in [
        "shop-gateway-1, image ghcr.io/gateway:1\n",
        &cgroup,
        &format!(
            "  rule 2, compose_project = \"shop\", compose_service = \"gate*\" ({}) applies\n",
            places(14)
        ),
        &format!("  rule 3, name = \"shop-*\" ({}) matches too, and does not apply", places(19)),
        "  mode = \"enforce\" ",
        &places(1),
        "  demo-mcp: [guard.server.demo-mcp]\n",
        "  quiet-mcp, ignored: [server.\"quiet-*\"]\n",
        "servers: 4 demo-mcp, 4 quiet-mcp, ",
        "  would warn: Duplicates demo-mcp (",
        "  would clamp: Duplicates demo-mcp (",
        "if none of the servers is in use",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert!(!said.contains("Duplicates quiet-mcp"), "{said}");

    let output = scene.cli(&["policy", "explain", "shop-gateway-1", "--json", "--policy", &policy]);
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&explained["rule"]["number"], &explained["is_guarded"]), (&json!(2), &json!(true)));
}

#[test]
fn a_cgroup_is_explained_by_its_path_and_one_that_no_rule_names_too() {
    let scene = Scene::new();
    let cgroup = FixtureCgroup::new("explain-plain").unwrap();
    let _sleeper = Sleeper::start(&cgroup).unwrap();
    let target = format!("cgroup:{}", cgroup.path());
    let pattern = "[[guard]]\ncgroup = \"/mcp-guard-test-explain-plain-*\"\n";
    let policy = scene.policy(pattern);
    let explain = |policy: &str| scene.cli(&["policy", "explain", &target, "--policy", policy]);
    let said = String::from_utf8(explain(&policy).stdout).unwrap();
    assert!(said.contains("rule 1, cgroup = \"/mcp-guard-test-explain-plain-*\""), "{said}");
    assert!(
        said.contains("now: 1 process; servers: 1 sleep\n  no detector would warn or act\n"),
        "{said}"
    );
    let check = scene.cli(&["policy", "check", &policy]);
    let checked = String::from_utf8(check.stdout).unwrap();
    assert!(!checked.contains("warning"), "{checked}");

    let policy = scene.policy("[[guard]]\nname = \"other\"\n");
    let output = explain(&policy);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("  NOT WATCHED: no rule matches it\n"), "{said}");
    let checked = String::from_utf8(scene.cli(&["policy", "check", &policy]).stdout).unwrap();
    assert!(
        checked.contains("warning: rule 1") && checked.contains("matches nothing"),
        "{checked}"
    );
}
