//! Bystanders are safe: mcp-guard refuses every request to act on one.
//!
//! Where a broken refusal would harm more than the test's own cgroup, the tests try dry runs only.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one record and ignores the rest"
)]

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::AsRawFd as _,
        unix::fs::{PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mcp_guard::host::{cgroup::Cgroup, facts, layout::Layout};
use mcp_guard_core::{
    audit::Record,
    policy::{Mode, Response},
    refusal::ENGINES,
};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    holds::Holds,
    leak::observing,
    sleeper::Sleeper,
    wait::until,
    workload,
};
use rustix::fs::{XattrFlags, fsetxattr};

const FOUND: u64 = 200;
const NOBODY: &str = "65534";
const DRY: [&[&str]; 2] = [&["freeze", "--dry-run"], &["kill", "--dry-run"]];
/// For the test's own cgroup only.
const REAL: [&[&str]; 4] =
    [&["freeze", "--dry-run"], &["kill", "--dry-run"], &["freeze", "--for", "1s"], &["kill"]];

fn cgroup(what: &str) -> FixtureCgroup {
    let cgroup = FixtureCgroup::new(what).unwrap();
    cgroup.set_pids_max(FOUND).unwrap();
    cgroup
}

fn target(cgroup: &FixtureCgroup) -> String {
    format!("cgroup:{}", cgroup.path())
}

/// Runs the CLI without an agent.
fn cli(arguments: &[&str], target: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), "/nonexistent").unwrap();
    command.args(arguments).arg(target).output().unwrap()
}

fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("refused: ") && said.contains(reason), "{said}, not: {reason}");
}

fn assert_untouched(cgroup: &FixtureCgroup) {
    assert_eq!(Holds::of(cgroup).unwrap(), Holds::nothing(FOUND));
}

#[test]
fn the_root_cgroup_and_that_of_pid_1_are_refused() {
    for verb in DRY {
        assert_refused(&cli(verb, "cgroup:/"), "it is the root cgroup");
        // With systemd this is init.scope, and without systemd it is the root.
        assert_refused(&cli(verb, "pid:1"), "");
    }
}

#[test]
fn mcp_guards_own_cgroup_and_those_above_it_are_refused() {
    let outer = cgroup("own");
    let inner = outer.child("inner").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for verb in DRY {
        for place in [&inner, &outer] {
            let mut command = command(folder.path(), "/nonexistent").unwrap();
            command.args(verb).arg(target(place)).stdout(Stdio::piped());
            let output = inner.spawn(command).unwrap().wait_with_output().unwrap();
            assert_refused(&output, "mcp-guard itself runs in it");
        }
    }
    assert_untouched(&outer);
}

const INVOCATION: &str = "trusted.invocation_id";

/// Marks a cgroup as systemd does.
fn mark(cgroup: &FixtureCgroup) {
    let dir = File::open(cgroup.unified_dir()).unwrap();
    fsetxattr(dir, INVOCATION, &[b'a'; 32], XattrFlags::empty()).unwrap();
}

fn assert_allowed(cgroup: &FixtureCgroup, why: &str) {
    for verb in DRY {
        let output = cli(verb, &target(cgroup));
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{why}: {verb:?} {}: {said}", cgroup.path());
        assert!(said.contains("dry run"), "{why}: {said}");
    }
}

#[test]
fn logins_user_managers_and_init_are_refused() {
    for unit in ["session-1.scope", "user@1000.service", "init.scope"] {
        let above = cgroup("login");
        let inside = above.child(unit).unwrap();
        mark(&inside);
        assert_allowed(&above, "nobody is in it");
        let mut sleeper = Sleeper::start(&inside).unwrap();
        for verb in REAL {
            for place in [&inside, &above] {
                assert_refused(&cli(verb, &target(place)), unit);
            }
        }
        assert_untouched(&above);
        assert!(sleeper.lives().unwrap());
    }
}

#[test]
fn a_cgroup_with_the_name_of_a_login_is_none() {
    for unit in ["session-1.scope", "user@1000.service", "init.scope"] {
        let above = cgroup("login-name");
        let inside = above.child(unit).unwrap();
        let _sleeper = Sleeper::start(&inside).unwrap();
        assert_allowed(&above, unit);
        assert_allowed(&inside, unit);
    }
}

/// A folder of root, with a copy of `sleep` under another name.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn copy(&self, name: &str) -> PathBuf {
        let program = self.0.path().join(name);
        fs::copy("/bin/sleep", &program).unwrap();
        program
    }
}

#[test]
fn processes_that_run_containers_are_refused() {
    let programs = Programs::new();
    for name in ENGINES.iter().copied().chain(["containerd-shim-runc-v2"]) {
        let program = programs.copy(name);
        let above = cgroup("engine");
        let inside = above.child("inside").unwrap();
        let mut sleeper = Sleeper::start_as(&inside, &program).unwrap();
        for verb in REAL {
            for place in [&inside, &above] {
                assert_refused(&cli(verb, &target(place)), &format!("({name})"));
            }
        }
        // An upgrade removes the program of a running engine.
        fs::remove_file(&program).unwrap();
        assert_refused(&cli(&["kill", "--dry-run"], &target(&above)), &format!("({name})"));
        assert_untouched(&above);
        assert!(sleeper.lives().unwrap());
    }
}

/// With an agent and without one, an operator may give up the process that the refusal names.
#[test]
fn an_operator_may_give_up_one_engine() {
    let programs = Programs::new();
    let program = programs.copy("conmon");
    for with_agent in [true, false] {
        let place = cgroup("despite");
        let agent = with_agent.then(|| Agent::start(&observing(&place)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let run = |words: &[&str]| {
            let target = target(&place);
            let words = [words, &[target.as_str()]].concat();
            match &agent {
                Some(agent) => agent.cli(&words).unwrap(),
                None => {
                    command(folder.path(), "/nonexistent").unwrap().args(words).output().unwrap()
                }
            }
        };
        let mut engine = Sleeper::start_as(&place, &program).unwrap();
        let second = Sleeper::start_as(&place, &program).unwrap();
        let other = Sleeper::start(&place).unwrap();
        let pid = engine.pid().to_string();
        let kill = ["kill", "--despite", &pid];
        assert_refused(&run(&kill), "(conmon)");
        drop(second);
        for wrong in [other.pid().to_string(), "1".to_owned()] {
            assert_refused(
                &run(&["kill", "--despite", &wrong]),
                &format!("process {pid} (conmon)"),
            );
        }
        assert_eq!(
            run(&["kill", "--despite", "4194305"]).status.code(),
            Some(2),
            "no such process"
        );
        assert_refused(&run(&["kill"]), "(conmon)");
        assert!(engine.lives().unwrap());
        assert_eq!(run(&["freeze", "--dry-run", "--despite", &pid]).status.code(), Some(0));
        let killed = run(&kill);
        assert_eq!(killed.status.code(), Some(0), "{}", String::from_utf8_lossy(&killed.stdout));
        place.wait_until("all are dead", DEADLINE, || !engine.lives().unwrap()).unwrap();
        if let Some(agent) = &agent {
            let given_up = |record: &Record| match record {
                Record::Intent {
                    response: Response::Kill,
                    mode: Mode::Enforce,
                    despite: Some(one),
                    ..
                } => Some(one.pid.0),
                _ => None,
            };
            let recorded: Vec<u32> = agent.audit().unwrap().iter().filter_map(given_up).collect();
            assert_eq!(recorded.last(), Some(&engine.pid()));
        }
    }
}

fn words<I: IntoIterator<Item: AsRef<OsStr>>>(program: &str, words: I) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// Starts a command in a new cgroup. Its process must come to run `program`.
fn started(command: Command, program: &Path) -> (FixtureCgroup, Sleeper) {
    let place = cgroup("no-engine");
    let sleeper = Sleeper::run(&place, command, program).unwrap();
    (place, sleeper)
}

#[test]
fn a_process_with_the_name_of_an_engine_is_none() {
    let programs = Programs::new();
    let (conmon, sleep) = (programs.copy("conmon"), fs::canonicalize("/bin/sleep").unwrap());
    let as_nobody = ["--reuid", NOBODY, "--clear-groups"].map(OsStr::new);
    let named = programs.0.path().join("conmon");

    let place = cgroup("comm");
    let renames = "printf conmon > /proc/$$/comm; sleep 600; :";
    let mut shell = place.spawn(words("sh", ["-c", renames])).unwrap();
    let comm = format!("/proc/{}/comm", shell.id());
    let is_renamed = || Ok(fs::read_to_string(&comm)? == "conmon\n");
    assert!(until(DEADLINE, is_renamed).unwrap());
    assert_allowed(&place, "it only calls itself conmon");
    place.wait_until("its end", DEADLINE, || Child::kill(&mut shell).is_ok()).unwrap();
    shell.wait().unwrap();

    // The kernel cannot show the path of a program that is longer than 4,096 bytes.
    let folder = tempfile::tempdir().unwrap();
    let by_descriptor = |dir: &File| format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut dir = File::open(folder.path()).unwrap();
    for _ in 0..25 {
        let below = format!("{}/{}", by_descriptor(&dir), "a".repeat(200));
        fs::create_dir(&below).unwrap();
        dir = File::open(below).unwrap();
    }
    let inside = by_descriptor(&dir);
    fs::copy(&sleep, format!("{inside}/dockerd")).unwrap();
    let mut deep = words("./dockerd", ["600"]);
    deep.current_dir(inside);
    let place = cgroup("deep");
    let mut deep = place.spawn(deep).unwrap();
    let comm = format!("/proc/{}/comm", deep.id());
    assert!(until(DEADLINE, || Ok(fs::read_to_string(&comm)? == "dockerd\n")).unwrap());
    let exe = fs::read_link(format!("/proc/{}/exe", deep.id()));
    assert_eq!(exe.unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_allowed(&place, "its path is too long");
    Child::kill(&mut deep).unwrap();
    deep.wait().unwrap();

    let (place, _sleeper) = started(words(conmon.to_str().unwrap(), ["600"]), &conmon);
    assert_refused(&cli(&["kill", "--dry-run"], &target(&place)), "(conmon)");

    let run = as_nobody.into_iter().chain([named.as_os_str(), OsStr::new("600")]);
    let (place, _sleeper) = started(words("setpriv", run.clone()), &conmon);
    assert_allowed(&place, "a user's process in a cgroup of root");
    chown(place.unified_dir(), Some(65534), None).unwrap();
    assert_refused(&cli(&["kill", "--dry-run"], &target(&place)), "(conmon)");

    // The user mounts `sleep` over the program, in a mount namespace of his own.
    let mounts = format!("mount --bind {0} {1} && exec {1} 600", sleep.display(), named.display());
    let own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"].map(OsStr::new);
    let run = as_nobody.into_iter().chain(own).chain([OsStr::new(&mounts)]);
    let (place, _sleeper) = started(words("setpriv", run), &conmon);
    chown(place.unified_dir(), Some(65534), None).unwrap();
    assert_allowed(&place, "another program under this name");

    // As in a container that shares the host's pid namespace.
    let run = [OsStr::new("--mount"), named.as_os_str(), OsStr::new("600")];
    let above = cgroup("host-pids");
    let container = above.child(&"a".repeat(64)).unwrap();
    let _sleeper = Sleeper::run(&container, words("unshare", run), &conmon).unwrap();
    assert_allowed(&container, "it is in a container");
    assert_allowed(&above, "it is in a container below");
    let (place, _sleeper) = started(words("unshare", run), &conmon);
    assert_refused(&cli(&["kill", "--dry-run"], &target(&place)), "(conmon)");
}

/// In a container, a process can have any program. One that ends while it is looked at is no
/// process of the host.
#[test]
fn a_process_that_ends_meanwhile_is_no_engine() {
    let programs = Programs::new();
    let dockerd = programs.copy("dockerd");
    let place = cgroup("churn");
    let churn =
        format!("while :; do for n in 1 2 3 4; do {0} 0 & done; wait; done", dockerd.display());
    let inside = ["--pid", "--fork", "--kill-child", "sh", "-c", &churn];
    let mut shell = place.spawn(words("unshare", inside)).unwrap();
    let layout = Layout::read().unwrap();
    let held = Cgroup::open(&layout, place.path()).unwrap();
    let (end, mut looks) = (Instant::now() + Duration::from_secs(3), 0);
    while Instant::now() < end {
        let facts = facts::gather(&held).unwrap();
        assert_eq!(facts.engines, [], "after {looks} looks");
        looks += 1;
    }
    assert!(looks > 100, "only {looks} looks");
    place.wait_until("its end", DEADLINE, || Child::kill(&mut shell).is_ok()).unwrap();
    shell.wait().unwrap();
}

#[test]
fn containers_side_by_side_are_refused_but_nested_ones_are_not() {
    let above = cgroup("side-by-side");
    let (id_a, id_b) = ("a".repeat(64), "b".repeat(64));
    let first = above.child(&id_a).unwrap();
    let nested = first.child(&id_b).unwrap();
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    let contained = |cgroup: &FixtureCgroup| {
        Sleeper::run(cgroup, words("unshare", ["--mount", "sleep", "600"]), &sleep).unwrap()
    };
    let mut sleeper = contained(&first);
    let _nested = contained(&nested);
    for place in [&nested, &first, &above] {
        assert_allowed(place, "one container, and one in it");
    }
    let second = above.child(&id_b).unwrap();
    assert_allowed(&above, "the second is a name without processes");
    let posing = Sleeper::start(&second).unwrap();
    assert_allowed(&above, "its process is in no container");
    drop(posing);
    let other = contained(&second);
    for verb in REAL {
        assert_refused(&cli(verb, &target(&above)), "2 containers side by side");
    }
    // As an engine does for a container with users of its own.
    for container in [&first, &second] {
        chown(container.unified_dir(), Some(65534), None).unwrap();
    }
    for verb in REAL {
        assert_refused(&cli(verb, &target(&above)), "2 containers side by side");
    }
    chown(above.unified_dir(), Some(65534), None).unwrap();
    assert_allowed(&above, "its owner can make as many as he likes, and no engine started them");
    drop(other);
    assert_untouched(&above);
    assert!(sleeper.lives().unwrap());
}

/// Such a process shows no namespace of its own.
#[test]
fn a_container_cannot_leave_the_count_by_ending_its_first_thread() {
    let above = cgroup("leaderless");
    let place = |letter: &str| above.child(&letter.repeat(64)).unwrap();
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    let (first, second) = (place("a"), place("b"));
    let run = |program: &Path| words("unshare", ["--mount".as_ref(), program.as_os_str()]);
    let mut sleeps = run(&sleep);
    sleeps.arg("600");
    let _sleeper = Sleeper::run(&first, sleeps, &sleep).unwrap();
    let mut alone = Sleeper::spawn(&second, run(&workload("leaderless").unwrap())).unwrap();
    assert_eq!(alone.line().unwrap(), "the first thread has ended");
    for verb in DRY {
        assert_refused(&cli(verb, &target(&above)), "2 containers side by side");
    }
}

/// The engine of a user, in a cgroup of his. It makes cgroups in another one of his, as K3s or Docker without
/// root does in its service.
struct UsersEngine {
    monitors: Vec<Sleeper>,
    programs: Programs,
    above: FixtureCgroup,
    outside: FixtureCgroup,
}

impl UsersEngine {
    fn new() -> Self {
        let (above, outside) = (cgroup("rootless"), cgroup("rootless-engine"));
        for place in [&above, &outside] {
            chown(place.unified_dir(), Some(65534), None).unwrap();
        }
        let programs = Programs::new();
        fs::copy("/bin/sh", programs.0.path().join("conmon")).unwrap();
        Self { monitors: Vec::new(), programs, above, outside }
    }

    /// Makes a cgroup, and moves into it a process in namespaces of its own, the child of its monitor.
    fn makes(&mut self, name: &str) -> FixtureCgroup {
        let cgroup = self.above.child(name).unwrap();
        chown(cgroup.unified_dir(), Some(65534), None).unwrap();
        let monitor = self.programs.0.path().join("conmon");
        let users = ["--reuid", NOBODY, "--clear-groups", "unshare", "--user", "--map-root-user"];
        let starts = ["-c", "unshare --mount sleep 600 & echo $! && wait"].map(OsStr::new);
        let run = users.map(OsStr::new).into_iter().chain(["--pid".as_ref(), monitor.as_os_str()]);
        let mut command = words("setpriv", run.chain(starts));
        command.stdout(Stdio::piped());
        let mut monitor = Sleeper::run(&self.outside, command, &monitor).unwrap();
        let started = monitor.line().unwrap();
        self.monitors.push(monitor);
        let sleep = fs::canonicalize("/bin/sleep").unwrap();
        let runs = || Ok(fs::read_link(format!("/proc/{started}/exe"))? == sleep);
        assert!(until(DEADLINE, runs).unwrap());
        fs::write(cgroup.unified_dir().join("cgroup.procs"), started).unwrap();
        cgroup
    }

    /// Makes the engine one that anybody can replace.
    fn is_anybodys(&self) {
        fs::set_permissions(self.programs.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    }
}

#[test]
fn containers_of_a_users_engine_are_refused_side_by_side() {
    let mut engine = UsersEngine::new();
    let first = engine.makes(&"a".repeat(64));
    assert_allowed(&engine.above, "one container");
    let second = engine.makes(&"b".repeat(64));
    for verb in REAL {
        assert_refused(&cli(verb, &target(&engine.above)), "2 containers side by side");
    }
    for container in [&first, &second] {
        assert_allowed(container, "one of them");
    }
    assert_untouched(&engine.above);
    engine.is_anybodys();
    assert_allowed(&engine.above, "nothing says that an engine started them");
}

#[test]
fn a_guest_of_a_users_engine_is_refused() {
    let mut engine = UsersEngine::new();
    let guest = engine.makes("lxc.payload.web");
    for verb in REAL {
        for place in [&guest, &engine.above] {
            assert_refused(&cli(verb, &target(place)), "the whole of lxc.payload.web");
        }
    }
    assert_untouched(&engine.above);
    engine.is_anybodys();
    assert_allowed(&guest, "nothing says that an engine started it");
}

/// Returns the processes in `cgroup` with this number of pids, one for each pid namespace.
fn with_pids(cgroup: &FixtureCgroup, number: usize) -> Vec<i32> {
    let pids = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        line.map_or(0, |line| line.split_whitespace().count())
    };
    let procs = cgroup.procs().unwrap();
    procs.into_iter().filter(|pid| pids(pid) == number).collect()
}

#[test]
fn a_whole_guest_is_refused_unless_the_operator_gives_it_up() {
    let above = cgroup("guest");
    let guest = above.child("lxc.payload.web").unwrap();
    let (init_scope, service) =
        (guest.child("init.scope").unwrap(), guest.child("gw.service").unwrap());
    let unshare = fs::canonicalize("/usr/bin/unshare").unwrap();
    let inner = "unshare --pid --fork --kill-child sleep 600 & wait";
    let run = ["--pid", "--fork", "--kill-child", "sh", "-c", inner];
    let mut outside = Sleeper::run(&init_scope, words("unshare", run), &unshare).unwrap();
    let is_up = || with_pids(&init_scope, 2).len() == 2 && with_pids(&init_scope, 3).len() == 1;
    assert!(until(DEADLINE, || Ok(is_up())).unwrap());
    let init = with_pids(&init_scope, 2).into_iter().min().unwrap().to_string();
    let gateway = Sleeper::start(&service).unwrap();
    for verb in REAL {
        for place in [&init_scope, &guest, &above] {
            let output = cli(verb, &target(place));
            assert_refused(&output, "the whole of lxc.payload.web");
            assert_refused(&output, &format!("process {init})"));
        }
    }
    assert_allowed(&service, "a part of the guest");
    let nested = with_pids(&init_scope, 3)[0].to_string();
    fs::write(service.unified_dir().join("cgroup.procs"), &nested).unwrap();
    assert_allowed(&service, "the first process of a namespace that the guest made");
    let despite = |pid: &str| cli(&["kill", "--dry-run", "--despite", pid], &target(&above));
    assert_eq!(despite(&init).status.code(), Some(0), "given up");
    assert_refused(&despite(&gateway.pid().to_string()), "the whole of lxc.payload.web");
    chown(above.unified_dir(), Some(65534), None).unwrap();
    for place in [&init_scope, &guest, &above] {
        assert_allowed(place, "a user's service made it in its own cgroup");
    }
    assert_untouched(&above);
    assert!(outside.lives().unwrap());
}

#[test]
fn a_container_that_names_a_cgroup_like_a_guest_is_none() {
    let above = cgroup("guest-name");
    let container = above.child(&"a".repeat(64)).unwrap();
    let posing = container.child("lxc.payload.web").unwrap();
    let _sleeper = Sleeper::start(&posing).unwrap();
    for place in [&posing, &container, &above] {
        assert_allowed(place, "it is in a container");
    }
}

/// Neither does a subtree with more cgroups than the agent can count make itself untouchable, nor
/// does it hide an engine.
#[test]
fn thousands_of_cgroups_neither_protect_nor_hide() {
    let above = cgroup("thousands");
    for number in 0..20_000 {
        fs::create_dir(above.unified_dir().join(number.to_string())).unwrap();
    }
    let mut sleeper = Sleeper::start(&above).unwrap();
    assert_allowed(&above, "20,000 empty cgroups");
    let layout = Layout::read().unwrap();
    let held = Cgroup::open(&layout, above.path()).unwrap();
    let began = Instant::now();
    facts::gather(&held).unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let last = above.child("zz").unwrap();
    let programs = Programs::new();
    let engine = Sleeper::start_as(&last, &programs.copy("dockerd")).unwrap();
    for verb in REAL {
        assert_refused(&cli(verb, &target(&above)), "(dockerd)");
    }
    drop(engine);
    assert_untouched(&above);
    assert!(sleeper.lives().unwrap());
}

/// Neither an engine nor a target that cannot be reached hides the reason.
#[test]
fn a_user_is_told_first_that_root_is_needed() {
    let programs = Programs::new();
    let program = programs.0.path().join("mcp-guard");
    fs::copy(mcp_guard_tests::workload("mcp-guard").unwrap(), &program).unwrap();
    for verb in ["freeze", "thaw", "kill"] {
        let mut command = words("setpriv", ["--reuid", NOBODY, "--clear-groups"]);
        command.arg(&program).args(["--docker", "/nonexistent", verb, "web"]);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{verb}: {said}");
        assert!(said.contains("needs root"), "{verb}: {said}");
    }
}

/// The root's tree contains every guard, so a refused request for the root must not affect them.
#[test]
fn the_other_guards_keep_counting_after_a_refused_request() {
    let guarded = cgroup("bystander");
    let mut sleeper = Sleeper::start(&guarded).unwrap();
    let agent = Agent::start(&observing(&guarded)).unwrap();
    let before = agent.guard(guarded.id()).unwrap().guard.totals.execs;
    for verb in DRY {
        assert_refused(&agent.cli(&[verb, &["cgroup:/"]].concat()).unwrap(), "root cgroup");
    }
    let mut second = Sleeper::start(&guarded).unwrap();
    let after = agent.guard(guarded.id()).unwrap().guard.totals;
    assert_eq!((before, after.execs), (0, 1), "the exec of the second process");
    assert!(sleeper.lives().unwrap() && second.lives().unwrap());
}
