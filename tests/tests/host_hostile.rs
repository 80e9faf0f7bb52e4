//! Ways in which a container may try to blind the agent: processes that hang in the kernel, with their memory
//! locked or as they execute a program, cgroups that fill the map of members, and labels that lead to a file system which does not answer.
//! None blocks the agent or a diagnosis, or hides other processes.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use mcp_guard_common::MAX_CGROUPS;
use mcp_guard_core::{audit::Record, id::Pid, incident::Outcome, policy::Response};
use mcp_guard_tests::{
    agent::{Agent, DEADLINE, command},
    cgroup::FixtureCgroup,
    dead_mount::DeadMount,
    fake_engine,
    leak::{Leak, LeakPolicy, PACKAGE, observing},
    sleeper::Sleeper,
    wait, workload,
};
use serde_json::json;

/// Runs `mcp-guard` and returns its output. Fails if it hangs.
fn said(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = command(agent.folder(), "/nonexistent").unwrap();
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let ended = wait::until(Duration::from_secs(30), || Ok(child.try_wait()?.is_some())).unwrap();
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended, "{arguments:?} hangs: {output:?}");
    output
}

#[test]
fn servers_beside_a_hanging_process_are_recognised_and_diagnosed() {
    let cgroup = FixtureCgroup::new("hang").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let leak = Leak::start(&cgroup, 4).unwrap();
    let dead = DeadMount::mapped_in(&cgroup).unwrap();
    let agent = Agent::start(&observing(&cgroup)).unwrap();
    let guard = agent.guard(cgroup.id()).unwrap().guard;
    assert!(guard.pids.contains(&Pid(dead.pid())), "it is counted: {:?}", guard.pids);
    assert_eq!(guard.identities[PACKAGE].live, 4);
    let diagnosis = said(&agent, &["diagnose", &format!("cgroup:{}", cgroup.path()), "--json"]);
    assert!(matches!(diagnosis.status.code(), Some(0 | 1)), "{diagnosis:?}");
    let warning = String::from_utf8(diagnosis.stderr).unwrap();
    assert!(warning.contains("command line cannot be read"), "{warning}");
    // Another thread reads a process that starts later, and none waits for the thread that hangs.
    let sleeper = Sleeper::start(&cgroup).unwrap();
    assert!(agent.guard(cgroup.id()).unwrap().guard.pids.contains(&Pid(sleeper.pid())));
    let log = agent.log();
    let warnings = log.lines().filter(|line| line.contains("command line cannot be read"));
    let of_it = format!("pid={}", dead.pid());
    assert_eq!(warnings.filter(|line| line.contains(&of_it)).count(), 1, "{log}");
    assert!(leak.end().unwrap().success());
}

/// One task cannot be stopped, and a second request arrives while the agent waits for the first freeze.
#[test]
fn each_freeze_request_gets_its_own_answer() {
    let cgroup = FixtureCgroup::new("hang").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let _dead = DeadMount::mapped_in(&cgroup).unwrap();
    let mut agent = Agent::start(&observing(&cgroup)).unwrap();
    let target = format!("cgroup:{}", cgroup.path());
    let mut first = command(agent.folder(), "/nonexistent").unwrap();
    first.args(["freeze", &target]).stdout(Stdio::piped());
    let first = thread::spawn(move || first.output().unwrap());
    let begun = |record: &Record| matches!(record, Record::Intent { .. }).then_some(());
    agent.await_record("the first freeze", begun).unwrap();
    // The first freeze waits for two seconds only, so this calls the agent directly. The CLI would take time
    // to start.
    let place = json!({ "cgroup": cgroup.path(), "cgroup_id": cgroup.id(), "name": "it",
        "paused": false, "lease_ms": 60_000, "dry_run": false });
    let second = agent.call("io.mcpguard.Freeze", &place).unwrap().to_string();
    let first = String::from_utf8(first.join().unwrap().stdout).unwrap();
    assert!(
        first.contains("freeze requested: ") && first.contains("2 tasks not stopped"),
        "{first}"
    );
    assert!(second.contains("already frozen by mcp-guard"), "{second}");
}

/// Reads of most files of such a process hang, also for other processes of the host.
#[test]
fn a_process_that_hangs_as_it_executes_a_program_holds_up_nothing_else() {
    let (cgroup, beside) =
        (FixtureCgroup::new("exec").unwrap(), FixtureCgroup::new("beside").unwrap());
    cgroup.set_pids_max(200).unwrap();
    let sleepers = [&cgroup, &beside].map(|one| Sleeper::start(one).unwrap());
    let place = |one: &FixtureCgroup| {
        json!({ "cgroup": one.path(), "cgroup_id": one.id(), "name": "it", "paused": false,
            "lease_ms": 60_000, "dry_run": false })
    };
    let dead = DeadMount::executing_in(&cgroup).unwrap();
    let agent = Agent::start(&(observing(&cgroup) + &observing(&beside))).unwrap();
    thread::scope(|scope| {
        let held_up = scope.spawn(|| agent.call("io.mcpguard.Freeze", &place(&cgroup)));
        for (one, sleeper) in [&cgroup, &beside].into_iter().zip(&sleepers) {
            assert!(agent.guard(one.id()).unwrap().guard.pids.contains(&Pid(sleeper.pid())));
        }
        agent.call("io.mcpguard.Freeze", &place(&beside)).unwrap();
        assert!(beside.is_frozen().unwrap() && !cgroup.is_frozen().unwrap());
        assert!(!held_up.is_finished(), "its order waits for the check");
        drop(dead);
        held_up.join().unwrap().unwrap();
    });
    assert!(cgroup.is_frozen().unwrap());
}

#[test]
fn a_full_map_of_cgroups_hides_no_server() {
    let [greedy, other, above] =
        ["greedy", "other", "above"].map(|what| FixtureCgroup::new(what).unwrap());
    let rule = |path: &str| format!("[[guard]]\ncgroup = \"{path}\"\n");
    let policy =
        [greedy.path(), other.path(), &format!("{}/later", above.path())].map(rule).concat();
    let mut agent = Agent::start(&policy).unwrap();
    for number in 0..MAX_CGROUPS {
        fs::create_dir(greedy.unified_dir().join(format!("c{number}"))).unwrap();
    }
    // One is below a guard, and the other is a new guard.
    let inside = other.child("inside").unwrap();
    let later = above.child("later").unwrap();
    let leaks = [&inside, &later].map(|cgroup| Leak::start(cgroup, 4).unwrap());
    for guard in [other.id(), later.id()] {
        let is_seen = |agent: &mut Agent| {
            let servers = agent.guard(guard).map(|one| one.guard.identities);
            Ok(servers.is_ok_and(|all| all.get(PACKAGE).is_some_and(|one| one.live == 4)))
        };
        agent.wait_until("its servers are recognised", is_seen).unwrap();
    }
    assert_eq!(agent.status().unwrap().losses["cgroups-full"], 0, "all of them are counted");
    assert!(leaks.into_iter().all(|leak| leak.end().unwrap().success()));
}

/// Mounts a file system of a kind, whose server is at the other end of `server`, and runs a command.
const MOUNT: &str =
    "mount -i -t \"$1\" -o \"fd=0,$2\" test \"$3\" && shift 3 && exec \"$@\" </dev/null";

/// Diagnoses a container whose labels name a compose file on a file system that only this command sees.
/// Returns the facts that it saved.
fn facts_with_a_label(kind: &str, options: &str, server: OwnedFd) -> String {
    let cgroup = FixtureCgroup::new("label").unwrap();
    let id = "e".repeat(64);
    let container = cgroup.child(&id).unwrap();
    let init = Sleeper::start(&container).unwrap();
    let folder = tempfile::Builder::new().prefix("mcp-guard-test-").tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("mounted")).unwrap();
    let file = at("mounted/web/compose.yml");
    let labels = json!({
        "com.docker.compose.project": "web", "com.docker.compose.service": "web",
        "com.docker.compose.project.config_files": file,
        "com.docker.compose.project.working_dir": file.parent(),
    });
    let state = json!({ "Running": true, "Paused": false, "Pid": init.pid() });
    let container = json!({
        "Id": id, "Name": "/web", "State": state, "HostConfig": { "PidsLimit": 7 },
        "Config": { "Image": "i", "Labels": labels },
    });
    fake_engine::serve(&at("engine.sock"), &container).unwrap();
    let diagnose = command(folder.path(), at("engine.sock").to_str().unwrap()).unwrap();
    let mut seen_alone = Command::new("unshare");
    seen_alone.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        MOUNT,
        "sh",
        kind,
        options,
    ]);
    seen_alone.arg(at("mounted")).arg(diagnose.get_program()).args(diagnose.get_args());
    seen_alone.args(["diagnose", "web", "--save"]).arg(at("facts.json"));
    seen_alone.stdin(server).stdout(Stdio::piped()).stderr(Stdio::piped());
    // An automounter's own group mounts nothing.
    let mut child = seen_alone.process_group(0).spawn().unwrap();
    let ended = wait::until(Duration::from_secs(30), || Ok(child.try_wait()?.is_some())).unwrap();
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended && matches!(output.status.code(), Some(0 | 1)), "{ended} {output:?}");
    fs::read_to_string(at("facts.json")).unwrap()
}

#[test]
fn a_label_mounts_nothing() {
    let (mut asked, server) = std::io::pipe().unwrap();
    let group = rustix::process::getpgrp().as_raw_nonzero();
    let options = format!("pgrp={group},minproto=5,maxproto=5,indirect");
    let facts = facts_with_a_label("autofs", &options, server.into());
    assert!(facts.contains("not read: an automounter would mount something for it"), "{facts}");
    assert_eq!(asked.read(&mut [0; 512]).unwrap(), 0, "the automounter was asked");
}

#[test]
fn a_label_that_leads_to_a_dead_server_delays_a_diagnosis_briefly() {
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let server = device.try_clone().unwrap().into();
    let facts = facts_with_a_label("fuse", "rootmode=40000,user_id=0,group_id=0", server);
    assert!(facts.contains("not read: no answer within 3s"), "{facts}");
    drop(device);
}

/// A process that names a file like the device is no server, and is frozen.
#[test]
fn a_file_with_the_name_of_the_device_spares_nothing() {
    let cgroup = FixtureCgroup::new("no-fuse").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let script = "mount -t tmpfs none /dev && : >/dev/fuse && exec sleep 600 9</dev/fuse";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script]);
    let mut forger = cgroup.spawn(unshare).unwrap();
    let link = format!("/proc/{}/fd/9", forger.id());
    let is_open = || Ok(fs::read_link(&link).is_ok_and(|to| to == Path::new("/dev/fuse")));
    assert!(wait::until(DEADLINE, is_open).unwrap());
    let leak = Leak::start(&cgroup, 4).unwrap();
    let mut agent = Agent::start(&LeakPolicy::enforcing(&cgroup, "freeze").toml()).unwrap();
    let frozen = |record: &Record| {
        let Record::Outcome { response: Response::Freeze, outcome, .. } = record else {
            return None;
        };
        Some(*outcome)
    };
    let outcome = agent.await_record("frozen", frozen).unwrap();
    assert!(matches!(outcome, Outcome::Done | Outcome::Requested), "{outcome:?}");
    drop(agent);
    assert!(leak.end().unwrap().success());
    forger.kill().unwrap();
    forger.wait().unwrap();
}

/// `fusectl`, where the kernel lists each FUSE file system, in a mount namespace of its own.
struct Fusectl(Child);

impl Fusectl {
    fn mounted() -> Self {
        let script = "mount -t fusectl none /sys/fs/fuse/connections && echo && exec sleep 600";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = unshare.spawn().unwrap();
        let read = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        let mounted = Self(child);
        assert_eq!(read, 1, "it is mounted");
        mounted
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        let mount = format!("--mount=/proc/{}/ns/mnt", self.0.id());
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(mount).arg(program).args(arguments).output().unwrap()
    }
}

impl Drop for Fusectl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that has the device open, but that serves nothing, spares nothing.
#[test]
fn only_a_mounted_file_system_has_a_server() {
    let cgroup = FixtureCgroup::new("fuse-connections").unwrap();
    let fusectl = Fusectl::mounted();
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = "read go && mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 none \"$0\" \
                  && echo && exec sleep 600";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &format!("exec 9<&2; {script}")]).arg(folder.path());
    unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(device);
    let mut server = cgroup.spawn(unshare).unwrap();
    let others = fusectl.run(Path::new("ls"), &["/sys/fs/fuse/connections"]).stdout;
    let target = format!("cgroup:{}", cgroup.path());
    let named = format!("process {} has /dev/fuse open", server.id());
    let names_it = || {
        let agent = workload("mcp-guard").unwrap();
        let done = fusectl.run(&agent, &["freeze", "--dry-run", &target]);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        said.contains(&named)
    };
    assert_eq!(names_it(), !others.is_empty(), "without a file system");
    server.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(server.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1, "it is mounted");
    assert!(names_it(), "with a file system");
    server.kill().unwrap();
    server.wait().unwrap();
}

/// While it is frozen, all who use the file system that it serves wait, also outside.
#[test]
fn a_leak_beside_a_server_of_a_file_system_is_clamped_and_not_frozen() {
    let cgroup = FixtureCgroup::new("fuse").unwrap();
    cgroup.set_pids_max(200).unwrap();
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0 none \"$0\" \
                  && echo && exec sleep 600";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", script]).arg(folder.path());
    unshare.stdin(device).stdout(Stdio::piped());
    let mut server = cgroup.spawn(unshare).unwrap();
    assert_eq!(server.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1, "it is mounted");
    let leak = Leak::start(&cgroup, 4).unwrap();
    let policy = LeakPolicy::enforcing(&cgroup, "freeze").toml();
    let mut agent = Agent::start(&policy).unwrap();
    let outcome = |of: Response| {
        move |record: &Record| {
            let Record::Outcome { response, outcome, detail, .. } = record else { return None };
            (*response == of).then(|| (*outcome, detail.clone()))
        }
    };
    let (freeze, said) =
        agent.await_record("the freeze is decided", outcome(Response::Freeze)).unwrap();
    assert_eq!(freeze, Outcome::Refused);
    let named = format!("process {} has /dev/fuse open", server.id());
    assert!(said.contains(&named) && said.contains("clamped instead"), "{said}");
    let (clamp, said) = agent.await_record("clamped", outcome(Response::Clamp)).unwrap();
    assert_eq!(clamp, Outcome::Done, "{said}");
    assert!(!cgroup.is_frozen().unwrap());

    let target = format!("cgroup:{}", cgroup.path());
    for words in [&["freeze", "--dry-run", &target][..], &["freeze", &target]] {
        let done = agent.cli(words).unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(said.contains(&named), "{words:?}: {done:?}");
    }
    assert!(cgroup.is_frozen().unwrap(), "an operator decides");
    assert!(agent.cli(&["thaw", &target]).unwrap().status.success());
    assert!(leak.end().unwrap().success());
    server.kill().unwrap();
    server.wait().unwrap();
}
