//! `policy explain` about what runs here.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::process::Output;

use mcp_guard_tests::{
    agent::command, cgroup::FixtureCgroup, fake_engine, leak::Leak, sleeper::Sleeper,
};
use serde_json::{Value, json};

/// A host's files and its engine, whose containers are in cgroups of one above them.
struct Scene {
    folder: tempfile::TempDir,
    _above: FixtureCgroup,
    containers: Vec<(FixtureCgroup, Sleeper)>,
}

/// A container as the engine describes it: name, image, and labels.
type Container<'a> = (&'a str, &'a str, Value);

fn compose(service: &str) -> Value {
    json!({ "com.docker.compose.project": "shop", "com.docker.compose.service": service })
}

impl Scene {
    fn new() -> Self {
        Self::of(&[("shop-gateway-1", "ghcr.io/gateway:1", compose("gateway"))])
    }

    fn of(containers: &[Container<'_>]) -> Self {
        let above = FixtureCgroup::new("explain").unwrap();
        let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
        let (mut all, mut described) = (Vec::new(), Vec::new());
        for (number, (name, image, labels)) in containers.iter().enumerate() {
            let id = format!("{number:x}").repeat(64);
            let container = above.child(&id).unwrap();
            let init = Sleeper::start(&container).unwrap();
            described.push(json!({
                "Id": id, "Name": format!("/{name}"),
                "State": { "Running": true, "Pid": init.pid() },
                "HostConfig": {}, "Config": { "Image": image, "Labels": labels },
            }));
            all.push((container, init));
        }
        fake_engine::serve_all(&folder.path().join("docker.sock"), &described).unwrap();
        Self { folder, _above: above, containers: all }
    }

    /// The cgroup of the first container.
    fn container(&self) -> &FixtureCgroup {
        &self.containers[0].0
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
    let _leak = Leak::start(scene.container(), 4).unwrap();
    let _ignored = Leak::of("quiet-mcp", scene.container(), 4).unwrap();
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
    let cgroup = format!("  cgroup {}\n", scene.container().path());
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

/// Rules of every kind, in two files.
const MIXED: &str = r#"mode = "observe"
[detect.duplicates]
warn = 6
[server."quiet-*"]
ignore = true

[[guard]]
compose_project = "shop"
compose_service = "gate*"
mode = "enforce"
[guard.server.sleep.detect.duplicates]
act = 40

[[guard]]
compose_project = "shop"
pids_limit = 200

[[guard]]
name = "metamcp-*"
highest = "clamp"

[[guard]]
unit = "mcp-guard-test-explain-*.service"

[[guard]]
cgroup = "/mcp-guard-test-explained-*"
"#;
const DROP_IN: &str = r#"[detect.duplicates]
warn = 7

[[guard]]
image = "ghcr.io/*"

[[guard]]
label = "mcp=1"
[guard.respond]
cool_down = "5min"
"#;

/// Returns the lines above those about what runs now, with short names of the files and without padding.
fn short(said: &str, folder: &str) -> Vec<String> {
    let above = said.split("\nnow: ").next().unwrap();
    let one = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    above
        .replace(&format!("{folder}/"), "")
        .lines()
        .map(one)
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn targets_of_every_kind_are_explained_by_a_policy_of_two_files() {
    let labelled = || json!({ "mcp": "1" });
    let scene = Scene::of(&[
        ("shop-gateway-1", "node:24", compose("gateway")),
        ("shop-web-1", "node:24", compose("web")),
        ("metamcp-1", "ghcr.io/metamcp:2", json!({})),
        ("other-1", "ghcr.io/other:2", labelled()),
        ("labelled-1", "node:24", labelled()),
        ("plain-1", "node:24", json!({})),
    ]);
    let (unit, cgroup) =
        (FixtureCgroup::like_a_unit("explain").unwrap(), FixtureCgroup::new("explained").unwrap());
    let nested = cgroup.child("nested").unwrap();
    let [_in_unit, in_cgroup, _nested] =
        [&unit, &cgroup, &nested].map(|cgroup| Sleeper::start(cgroup).unwrap());
    let policy = scene.policy(MIXED);
    let folder = scene.folder.path().to_str().unwrap();
    std::fs::create_dir(scene.folder.path().join("policy.d")).unwrap();
    std::fs::write(scene.folder.path().join("policy.d/10.toml"), DROP_IN).unwrap();

    let at = |cgroup: &FixtureCgroup| format!("cgroup:{}", cgroup.path());
    let rule =
        |number: u32, matches: &str, place: &str| format!("rule {number}, {matches} ({place})");
    let (gateway, shop) = (
        rule(1, "compose_project = \"shop\", compose_service = \"gate*\"", "policy.toml:7"),
        rule(2, "compose_project = \"shop\"", "policy.toml:14"),
    );
    let name = rule(3, "name = \"metamcp-*\"", "policy.toml:18");
    let units = rule(4, "unit = \"mcp-guard-test-explain-*.service\"", "policy.toml:22");
    let paths = rule(5, "cgroup = \"/mcp-guard-test-explained-*\"", "policy.toml:25");
    let image = rule(6, "image = \"ghcr.io/*\"", "policy.d/10.toml:4");
    let label = rule(7, "label = \"mcp=1\"", "policy.d/10.toml:7");
    let applies = |rule: &str| format!("{rule} applies");
    let too = |rule: &str| format!("{rule} matches too, and does not apply: the first match wins");
    let observe = || "mode = \"observe\" policy.toml:1".to_owned();
    let freeze = || "highest = \"freeze\" default".to_owned();
    let warn = || "detect.duplicates.warn = 7 policy.d/10.toml:2".to_owned();
    let table: [(String, Vec<String>); 9] = [
        (
            "shop-gateway-1".to_owned(),
            vec![
                applies(&gateway),
                too(&shop),
                "mode = \"enforce\" policy.toml:10".to_owned(),
                freeze(),
                warn(),
                "sleep: [guard.server.sleep]".to_owned(),
                "detect.duplicates.act = 40 policy.toml:12".to_owned(),
            ],
        ),
        (
            "docker:shop-web-1".to_owned(),
            vec![
                applies(&shop),
                observe(),
                freeze(),
                "pids_limit = 200 policy.toml:16".to_owned(),
                warn(),
            ],
        ),
        (
            "metamcp-1".to_owned(),
            vec![
                applies(&name),
                too(&image),
                observe(),
                "highest = \"clamp\" policy.toml:20".to_owned(),
                warn(),
            ],
        ),
        ("other-1".to_owned(), vec![applies(&image), too(&label), observe(), freeze(), warn()]),
        (
            "labelled-1".to_owned(),
            vec![
                applies(&label),
                observe(),
                freeze(),
                warn(),
                "respond.cool_down = \"5min\" policy.d/10.toml:10".to_owned(),
            ],
        ),
        (at(&unit), vec![applies(&units), observe(), freeze(), warn()]),
        (at(&cgroup), vec![applies(&paths), observe(), freeze(), warn()]),
        (format!("pid:{}", in_cgroup.pid()), vec![applies(&paths), observe(), freeze(), warn()]),
        (at(&nested), vec!["NOT WATCHED: no rule matches it".to_owned()]),
    ];
    for (target, expected) in table {
        let output = scene.cli(&["policy", "explain", &target, "--policy", &policy]);
        let is_watched = !expected[0].starts_with("NOT WATCHED");
        assert_eq!(output.status.code(), Some(i32::from(!is_watched)), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let headings =
            ["set for it; every other key has its default", "servers with terms of their own"];
        let lines: Vec<String> = short(&said, folder)
            .into_iter()
            .skip(2)
            .filter(|line| !headings.contains(&line.as_str()))
            .collect();
        assert_eq!(lines, expected, "{target}\n{said}");
        assert_eq!(said.contains("\nnow: "), is_watched, "{said}");
    }

    let plain = scene.cli(&["policy", "explain", "plain-1", "--policy", &policy]);
    assert_eq!(plain.status.code(), Some(1), "{plain:?}");
    for (target, why) in [
        ("no-such-container", "no container is called \"no-such-container\""),
        ("-1", "unexpected argument"),
        ("cgroup:/mcp-guard-test-none", "cgroup /mcp-guard-test-none: No such file"),
    ] {
        let output = scene.cli(&["policy", "explain", target, "--policy", &policy]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why) && output.stdout.is_empty(), "{said}");
        assert_eq!(output.status.code(), Some(if target == "-1" { 64 } else { 2 }), "{said}");
    }
}
