//! Real causes, made in Docker. The diagnosis lists each one first, and does not report its look-alike.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

mod above;
mod charged;
mod file;
mod hostile;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Command, Stdio},
};

use mcp_guard::host::mark::{self, Mark};
use mcp_guard_core::{
    Time,
    diagnose::{
        code::Code,
        report::{Certainty, Report, Verdict},
        version::version,
    },
    id::{Pid, Ticks},
    incident::Hold,
};
use mcp_guard_tests::{
    cgroup::FixtureCgroup,
    diagnose::{Project, diagnose, fine, first},
    docker::{Container, busybox_image, docker, output, socket, wait_until, without_agent},
};

const SLEEP: [&str; 2] = ["sleep", "600"];

fn sleeper(what: &str, options: &[&str]) -> Container {
    Container::run(what, &busybox_image().unwrap(), options, &SLEEP).unwrap()
}

fn update(container: &Container, limit: i64) {
    // The `docker` command never sends 0, so this uses the API directly.
    let body = format!("{{\"PidsLimit\":{limit}}}");
    post(&format!("/containers/{}/update", container.id), &body);
}

/// Sends one request to the engine, and returns its response.
fn post(path: &str, body: &str) -> String {
    use std::{io::Read as _, io::Write as _, os::unix::net::UnixStream};
    let mut stream = UnixStream::connect(socket().unwrap()).unwrap();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    answer
}

fn run(project: &Project, what: &str, options: &[&str]) -> Container {
    let labels = project.labels();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    sleeper(what, &[&labels, options].concat())
}

#[test]
fn our_own_clamp_is_not_reported_as_a_cause() {
    let container = sleeper("clamp", &["--pids-limit", "50"]);
    let pids = container.cgroup().unwrap().pids;
    let mark = Mark {
        incident: "i-1".into(),
        reason: "a test".to_owned(),
        deadline: Time(0),
        boot_id: String::new(),
        holder: Pid(0),
        holder_start: Ticks(0),
        found: Some("50".to_owned()),
        wrote: Some("20".to_owned()),
        before: None,
        freeze: None,
        of_a_server: false,
    };
    let dir = fs::File::open(&pids).unwrap();
    mark::write(&dir, Hold::Clamp, &mark).unwrap();
    fs::write(pids.join("pids.max"), "20").unwrap();
    let report = fine(&container, Code::Enforced);
    assert_eq!((report.declared, report.effective_limit), (Some(50), Some(20)));
    let note = format!("`mcp-guard thaw {}`", container.name);
    assert!(report.notes.iter().any(|one| one.contains(&note)), "{:#?}", report.notes);
    // A limit that the mark does not have was written by another tool.
    fs::write(pids.join("pids.max"), "30").unwrap();
    first(&container, Code::RawWrite);
}

#[test]
fn p008_an_older_api_accepts_the_update_and_ignores_it() {
    let container = sleeper("p008", &["--pids-limit", "25"]);
    post(&format!("/v1.39/containers/{}/update", container.id), "{\"PidsLimit\":40}");
    fine(&container, Code::Enforced);
    let folder = tempfile::tempdir().unwrap();
    let mut command = mcp_guard_tests::agent::command(folder.path(), &socket().unwrap()).unwrap();
    command.env("DOCKER_API_VERSION", "1.39").args(["diagnose", "--json", &container.name]);
    let report: Report = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(report.findings[0].code, Code::ApiTooOld);
}

#[test]
fn p009_another_container_of_the_image_has_no_limit() {
    let limited = sleeper("p009", &["--pids-limit", "25"]);
    let others = limited.inspect(".Config.Image").unwrap();
    let twin = Container::run("p009-other", &others, &["--pids-limit", "30"], &SLEEP).unwrap();
    fine(&limited, Code::Enforced);
    drop(twin);
    let twin = Container::run("p009-other", &others, &[], &SLEEP).unwrap();
    let report = first(&limited, Code::OtherContainers);
    let named = report.findings[0].evidence.iter().any(|one| one.r#where.contains(&twin.name));
    assert!(named, "{:#?}", report.findings[0].evidence);
}

#[test]
fn p031_another_tool_wrote_pids_max() {
    let container = sleeper("p031", &["--pids-limit", "25"]);
    let place = container.cgroup().unwrap();
    fs::write(place.pids.join("pids.max"), "max").unwrap();
    let report = first(&container, Code::RawWrite);
    assert_eq!((report.declared, report.effective_limit), (Some(25), None));
    update(&container, 25);
    fine(&container, Code::Enforced);
}

/// Runs `docker exec` again until it succeeds. While runc enters, its threads count too, and it may be
/// refused. It leaves nothing behind then.
fn exec_beyond_the_limit(container: &Container, program: &[&str]) {
    let words = [&["exec", "--detach", &container.name], program].concat();
    wait_until("it enters", || Ok(docker(&words)?.output()?.status.success())).unwrap();
}

/// A process of this host. Killed when dropped.
struct Ended(Child);

impl Ended {
    /// Starts a sleep and moves it into a cgroup of the pids hierarchy.
    fn moved_into(dir: &Path) -> Self {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_ordinary_user_gets_the_facts_that_can_be_read() {
    let container = sleeper("user", &["--pids-limit", "25"]);
    let path = container.cgroup().unwrap().path;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("cgroup:{path}");
    let as_root = mcp_guard_tests::agent::command(folder.path(), &socket().unwrap()).unwrap();
    // A copy in a place where that user may read it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("mcp-guard");
    fs::copy(as_root.get_program(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
    command.arg(program).args(as_root.get_args());
    let done = command.args(["diagnose", "--json", &target]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    let report: Report = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!((report.effective_limit, report.charged.tasks), (Some(25), Some(1)));
    let why = |what: &str| report.unreadable.iter().find(|one| one.what.to_string().contains(what));
    assert!(why("engine").is_some_and(|one| one.why.contains("ermission")), "{report:#?}");
    assert!(why("pid namespaces").is_some(), "{report:#?}");
}

#[test]
fn two_causes_at_once_are_listed_in_order() {
    let project = Project::new();
    let container = run(&project, "pair", &[]);
    project.write_after(&container, 25);
    let program = "for i in 1 2 3; do (exit 0) & done; exec sleep 600";
    output(&["exec", "--detach", &container.name, "sh", "-c", program]).unwrap();
    wait_until("they are dead", || Ok(diagnose(&container).charged.zombies == 3)).unwrap();
    let report = first(&container, Code::NotRecreated);
    let codes: Vec<Code> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::NotRecreated, Code::Zombies]);
}

#[test]
fn a_saved_snapshot_gives_the_same_diagnosis_elsewhere() {
    let container = sleeper("saved", &["--pids-limit", "25"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("facts.json");
    let file = file.to_str().unwrap();
    let words = ["diagnose", "--json", &container.name, "--save", file];
    let here = without_agent(folder.path(), &words).unwrap();
    assert!(here.status.success());
    drop(container);
    let there = without_agent(folder.path(), &["diagnose", "--json", "--facts", file]).unwrap();
    assert_eq!(here.stdout, there.stdout);
    let bad = folder.path().join("bad.json");
    fs::write(&bad, "{\"schema\": 99}").unwrap();
    let words = ["diagnose", "--facts", bad.to_str().unwrap()];
    assert_eq!(without_agent(folder.path(), &words).unwrap().status.code(), Some(65));
}

#[test]
fn all_containers_are_shown_as_a_table_with_the_worst_first() {
    let limited = sleeper("table", &["--pids-limit", "25"]);
    let unlimited = sleeper("table", &[]);
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", "--all"]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{text}");
    let row = |name: &str| text.lines().position(|line| line.starts_with(name)).unwrap();
    assert!(row(&unlimited.name) < row(&limited.name), "the worst is not first: {text}");
    let done = without_agent(folder.path(), &["diagnose", "nobody"]).unwrap();
    assert_eq!(done.status.code(), Some(2));
}
