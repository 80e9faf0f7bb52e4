//! Real causes that need systemd, Podman, compose or a privileged container. The diagnosis lists each one
//! first, and does not report its look-alike.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use mcp_guard_core::diagnose::{
    code::Code,
    report::{Certainty, Verdict},
};
use mcp_guard_tests::{
    diagnose::{diagnose, fine, first, younger},
    docker::{
        Container, Engine, Place, busybox_image, fresh_name, output, podman::PodmanService,
        wait_until,
    },
    systemd::{daemon_reload, default_tasks_max, reload_and_start_in, systemctl, version},
};

const SLEEP: [&str; 2] = ["sleep", "600"];

fn sleeper(what: &str, options: &[&str]) -> (Container, Place) {
    let container = Container::run(what, &busybox_image().unwrap(), options, &SLEEP).unwrap();
    let place = container.cgroup().unwrap();
    (container, place)
}

fn podman(what: &str, options: &[&str]) -> Container {
    let image = Engine::Podman.node_image().unwrap();
    Container::run_in(Engine::Podman, what, &image, options, &SLEEP).unwrap()
}

fn is_podman_4() -> bool {
    let version = Engine::Podman.output(&["version", "--format", "{{.Client.Version}}"]);
    version.unwrap().starts_with("4.")
}

fn scope(container: &Container) -> String {
    format!("docker-{}.scope", container.id)
}

fn set_tasks_max(container: &Container, limit: &str) {
    let property = format!("TasksMax={limit}");
    systemctl(&["set-property", "--runtime", &scope(container), &property]);
}

fn write_limit(place: &Place, limit: &str) {
    fs::write(place.pids.join("pids.max"), limit).unwrap();
}

/// A slice of the test's own. When dropped, after its containers, it is stopped and its file is removed.
struct Slice {
    name: String,
    file: PathBuf,
}

impl Slice {
    fn with(lines: &str) -> Self {
        // A dash in the name of a slice would put it into other slices.
        let name = format!("{}.slice", fresh_name("slice").replace('-', ""));
        let file = PathBuf::from(format!("/run/systemd/system/{name}"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("[Slice]\n{lines}\n")).unwrap();
        let slice = Self { name, file };
        daemon_reload();
        slice
    }

    fn run(&self, what: &str, options: &[&str]) -> (Container, Place) {
        sleeper(what, &[&["--cgroup-parent", &self.name], options].concat())
    }

    /// Writes one word to the `cgroup.subtree_control` of the slice's own cgroup.
    fn hand_down(&self, word: &str) {
        fs::write(format!("/sys/fs/cgroup/{}/cgroup.subtree_control", self.name), word).unwrap();
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.name]).status();
        let _ = fs::remove_file(&self.file);
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
}

/// A folder with a compose file, and the containers that compose makes from it.
struct Project {
    engine: Engine,
    folder: tempfile::TempDir,
    name: String,
}

impl Project {
    fn new(engine: Engine) -> Self {
        let name = fresh_name("project").replace('-', "");
        Self { engine, folder: tempfile::tempdir().unwrap(), name }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("docker-compose.yml")
    }

    /// Writes a file with one service, `web`, that has these lines, followed by `after`.
    fn write(&self, lines: &[&str], after: &str) {
        let (image, network) = match self.engine {
            Engine::Docker => (busybox_image().unwrap(), "    network_mode: none\n"),
            // The older podman-compose asks for the project's network in any case, and fails if there is
            // also a network mode. The newer Podman needs nft for a project network.
            Engine::Podman if is_podman_4() => (Engine::Podman.node_image().unwrap(), ""),
            Engine::Podman => (Engine::Podman.node_image().unwrap(), "    network_mode: host\n"),
        };
        let fixed = format!(
            "version: \"3.9\"\nservices:\n  web:\n    image: {image}\n    command: sleep 600\n{network}"
        );
        let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
        fs::write(self.file(), format!("{fixed}{lines}{after}")).unwrap();
    }

    fn compose(&self, words: &[&str]) -> Output {
        let program = match self.engine {
            Engine::Docker => "docker-compose",
            Engine::Podman => "podman-compose",
        };
        Command::new(program)
            .env("DOCKER_HOST", format!("unix://{}", self.engine.socket().unwrap()))
            .env_remove("INVOCATION_ID")
            .current_dir(self.folder.path())
            .args(["-p", &self.name])
            .args(words)
            .output()
            .unwrap()
    }

    fn must(&self, words: &[&str]) {
        let done = self.compose(words);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Runs `compose up`, and returns the service's container.
    fn up(&self) -> Container {
        let up = self.compose(&["up", "-d", "web"]);
        assert!(up.status.success(), "{up:?}");
        let filter = format!("label=com.docker.compose.project={}", self.name);
        let shown = ["ps", "--no-trunc", "--filter", &filter, "--format", "{{.ID}} {{.Names}}"];
        let shown = self.engine.output(&shown).unwrap();
        let first = shown.lines().next().unwrap_or_else(|| panic!("no container: {up:?}"));
        let (id, name) = first.split_once(' ').unwrap();
        Container { engine: self.engine, id: id.to_owned(), name: name.to_owned() }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.compose(&["down"]);
    }
}

#[test]
fn p001_a_limit_in_the_file_does_not_reach_an_existing_container() {
    let project = Project::new(Engine::Docker);
    project.write(&[], "");
    let container = project.up();
    let limited = || project.write(&["pids_limit: 25"], "");
    younger(&project.file(), &container, limited);
    project.must(&["restart"]);
    let report = first(&container, Code::NotRecreated);
    assert_eq!((report.declared, report.verdict), (Some(25), Verdict::NotEnforced));
    assert_eq!(report.findings[0].certainty, Certainty::Proved);
    let seen = &report.findings[0].evidence;
    let sign = seen.iter().find(|one| one.r#where == "DefaultTasksMax").unwrap();
    assert_eq!(sign.value, default_tasks_max(), "the number in force is systemd's (MG-P034)");
    assert_eq!(report.places.iter().filter(|place| place.breaks).count(), 1, "{report:#?}");
    drop(container);
    fine(&project.up(), Code::Enforced);
}

#[test]
fn p002_the_limit_is_declared_for_another_service() {
    let project = Project::new(Engine::Docker);
    project.write(&[], "  other:\n    image: x\n    pids_limit: 25\n");
    let container = project.up();
    let report = first(&container, Code::NeverDeclared);
    let elsewhere = report.findings[0].evidence.iter().any(|one| one.r#where.contains("other"));
    assert!(elsewhere && report.declared.is_none(), "{:#?}", report.findings[0]);
    // Then it is declared for this service, but the container is not re-created.
    younger(&project.file(), &container, || project.write(&["pids_limit: 25"], ""));
    first(&container, Code::NotRecreated);
}

#[test]
fn p003_podman_compose_drops_the_limit() {
    let _service = PodmanService::start().unwrap();
    let project = Project::new(Engine::Podman);
    project.write(&["pids_limit: 25"], "");
    let container = project.up();
    let report = first(&container, Code::ToolDropped);
    assert_eq!(report.findings[0].certainty, Certainty::Proved, "{:#?}", report.findings[0]);
    assert_eq!(report.declared, Some(25));
    // The look-alike has the same file, labels and version, and the limit reached it.
    let labels = container.inspect("json .Config.Labels").unwrap();
    let labels: BTreeMap<String, String> = serde_json::from_str(&labels).unwrap();
    let labels = labels.iter().map(|(key, value)| format!("--label={key}={value}"));
    let options: Vec<String> = labels.chain(["--pids-limit=25".to_owned()]).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    fine(&podman("p003-look-alike", &options), Code::Enforced);
}

#[test]
fn p004_compose_rejects_the_file() {
    let project = Project::new(Engine::Docker);
    project.write(&[], "");
    let container = project.up();
    let version = container.inspect("index .Config.Labels \"com.docker.compose.version\"").unwrap();
    let limits = ["deploy:", "  resources:", "    limits:"];
    let long = if version.starts_with("1.") {
        [&limits[..], &["      pids: 25"]].concat()
    } else {
        [&["pids_limit: 25"], &limits[..], &["      memory: 64m"]].concat()
    };
    younger(&project.file(), &container, || project.write(&long, ""));
    assert!(!project.compose(&["up", "-d"]).status.success(), "compose {version} takes the file");
    first(&container, Code::ComposeInvalid);
    project.write(&["pids_limit: 25"], "");
    first(&container, Code::NotRecreated);
}

/// The other container has systemd's default, which no setting asks for.
#[test]
fn p009_another_container_of_the_image_has_no_limit() {
    let (limited, _) = sleeper("p009", &["--pids-limit", "25"]);
    let (twin, _) = sleeper("p009-twin", &["--pids-limit", "30"]);
    fine(&limited, Code::Enforced);
    drop(twin);
    let (_twin, place) = sleeper("p009-twin", &[]);
    assert_eq!(place.pids_max().unwrap(), default_tasks_max());
    first(&limited, Code::OtherContainers);
}

#[test]
fn p010_podman_keeps_an_update() {
    let _service = PodmanService::start().unwrap();
    let container = podman("p010", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    if Engine::Podman.output(&["update", "--pids-limit", "30", &container.name]).is_err() {
        assert!(is_podman_4(), "Podman has an update from 5 on");
        return assert_eq!(diagnose(&container).effective_limit, Some(25));
    }
    let report = fine(&container, Code::Enforced);
    assert_eq!(report.effective_limit, Some(30));
}

/// Runs in a boot of its own, with `cgroup_disable=pids`. Its look-alike, P021, needs a kernel that has the
/// controller.
#[test]
fn p020_the_kernel_has_no_pids_controller() {
    let words = fs::read_to_string("/proc/cmdline").unwrap();
    assert!(words.contains("cgroup_disable=pids"), "{words}");
    // Docker accepts the limit, warns, and forgets it.
    let options = ["--pids-limit", "25"];
    let container = Container::run("p020", &busybox_image().unwrap(), &options, &SLEEP).unwrap();
    assert_eq!(container.inspect(".HostConfig.PidsLimit").unwrap(), "<nil>");
    let report = first(&container, Code::ControllerDisabled);
    assert_eq!((report.verdict, report.effective_limit), (Verdict::NotEnforced, None));
}

#[test]
fn p021_the_controller_is_not_handed_down() {
    let slice = Slice::with("");
    let (container, place) = slice.run("p021", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    fs::write(&slice.file, "[Slice]\nDisableControllers=pids\n").unwrap();
    daemon_reload();
    // The newer systemd applies it at the next change in the slice.
    let set = ["set-property", "--runtime", &slice.name, "CPUWeight=50"];
    systemctl(&set);
    wait_until("the files are gone", || Ok(!place.pids.join("pids.max").exists())).unwrap();
    let report = first(&container, Code::NotDelegated);
    assert!(report.findings[0].title.contains(&slice.name), "{}", report.findings[0].title);
}

#[test]
fn p023_a_container_without_a_cgroup_of_its_own() {
    let _service = PodmanService::start().unwrap();
    fine(&podman("p023-look-alike", &["--pids-limit", "25"]), Code::Enforced);
    let container = podman("p023", &["--cgroups=disabled", "--pids-limit", "25"]);
    first(&container, Code::CgroupsDisabled);
}

#[test]
fn p024_the_controller_was_disabled_and_enabled_again() {
    let slice = Slice::with("");
    let (container, place) = slice.run("p024", &["--pids-limit", "25"]);
    slice.hand_down("-pids");
    slice.hand_down("+pids");
    assert_eq!(place.pids_max().unwrap(), "max");
    let report = first(&container, Code::ControllerToggled);
    assert_eq!(report.findings[0].certainty, Certainty::Possible);
    // A raw write, unlike this, does not reset the counters.
    let (other, place) = slice.run("p024-look-alike", &["--pids-limit", "25"]);
    output(&["exec", &other.name, "true"]).unwrap();
    write_limit(&place, "max");
    first(&other, Code::RawWrite);
}

#[test]
fn p030_systemd_restores_its_own_value() {
    let (container, place) = sleeper("p030", &[]);
    let default = place.pids_max().unwrap();
    write_limit(&place, "25");
    let report = first(&container, Code::SystemdReset);
    let when = if version() < 256 { "at the next daemon-reload" } else { "starts after a" };
    assert!(report.findings[0].title.contains(when), "{}", report.findings[0].title);
    reload_and_start_in("system.slice");
    assert_eq!(place.pids_max().unwrap(), default, "as the report said");
    first(&container, Code::ExplicitUnlimited);

    let (container, _) = sleeper("p030-set", &["--pids-limit", "25"]);
    set_tasks_max(&container, "40");
    let report = first(&container, Code::SystemdReset);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(40)));
}

#[test]
fn p032_the_limit_is_in_force_but_unknown_to_systemd() {
    let (container, place) = sleeper("p032", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    set_tasks_max(&container, "50");
    write_limit(&place, "25");
    let report = first(&container, Code::NoTasksMax);
    assert_eq!((report.verdict, report.findings.len()), (Verdict::Enforced, 1));
    reload_and_start_in("system.slice");
    assert_eq!(place.pids_max().unwrap(), "50", "as the report said");
    first(&container, Code::SystemdReset);
}

const OUTER: [&str; 3] = ["--privileged", "--cgroupns", "host"];

/// Writes a file of the container's own cgroup, from inside the container.
fn write_inside(container: &Container, place: &Place, file: &str, value: &str) {
    let script = format!("echo {value} > /sys/fs/cgroup{}/{file}", place.path);
    output(&["exec", &container.name, "sh", "-c", &script]).unwrap();
}

#[test]
fn p033_the_container_raised_its_own_limit() {
    let (container, place) = sleeper("p033", &[&OUTER[..], &["--pids-limit", "25"]].concat());
    fine(&container, Code::Enforced);
    write_inside(&container, &place, "pids.max", "max");
    let report = first(&container, Code::SelfRaised);
    assert_eq!((report.declared, report.verdict), (Some(25), Verdict::NotEnforced));
    // A container that cannot write its cgroup: the write came from outside.
    let (container, place) = sleeper("p033-look-alike", &["--pids-limit", "25"]);
    output(&["exec", &container.name, "true"]).unwrap();
    write_limit(&place, "max");
    first(&container, Code::RawWrite);
}

#[test]
fn p033_and_p042_are_both_reported() {
    let image = busybox_image().unwrap();
    let program =
        "until [ -e /go ]; do sleep 1; done; for i in $(seq 60); do sleep 600 & done; wait";
    let options = [&OUTER[..], &["--pids-limit", "30"]].concat();
    let container = Container::run("pair", &image, &options, &["sh", "-c", program]).unwrap();
    let place = container.cgroup().unwrap();
    write_inside(&container, &place, "pids.max", "max");
    output(&["exec", &container.name, "touch", "/go"]).unwrap();
    wait_until("all run", || Ok(container.top()?.len() == 61)).unwrap();
    write_inside(&container, &place, "pids.max", "40");
    let codes: Vec<Code> = diagnose(&container).findings.iter().map(|one| one.code).collect();
    assert_eq!(codes, [Code::SelfRaised, Code::LoweredBelow]);
}

/// A cgroup that a container made at the root of the host's tree. Removed when dropped, after the container.
struct Outside(PathBuf);

impl Drop for Outside {
    fn drop(&mut self) {
        // The kernel may need some time to release the processes that were in it.
        let _ = wait_until("it is empty", || Ok(fs::remove_dir(&self.0).is_ok()));
    }
}

#[test]
fn p051_processes_left_the_cgroup() {
    let outside = Outside(PathBuf::from("/sys/fs/cgroup").join(fresh_name("outside")));
    let dir = outside.0.display();
    let program = format!(
        "mkdir {dir} && echo $$ > {dir}/cgroup.procs && for i in 1 2 3; do sleep 600 & done; \
         echo 0 >/dev/null; exec sleep 600"
    );
    let options = [&OUTER[..], &["--pids-limit", "25"]].concat();
    let (container, _) = sleeper("p051", &options);
    // A child of the first process leaves, and the first process stays. `docker exec` would not do, because
    // it comes from outside.
    drop(container);
    let inside = format!("sh -c '{program}' & exec sleep 600");
    let image = busybox_image().unwrap();
    let container = Container::run("p051", &image, &options, &["sh", "-c", &inside]).unwrap();
    wait_until("they have left", || Ok(diagnose(&container).charged.aliens == 4)).unwrap();
    first(&container, Code::EscapedCgroup);
    drop(container);
    drop(outside);
}

#[test]
fn p070_a_slice_above_has_a_lower_limit() {
    let slice = Slice::with("TasksMax=15");
    let (container, place) = slice.run("p070", &["--pids-limit", "25"]);
    let report = first(&container, Code::AncestorLimit);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(15)));
    let owner = &report.findings[0].repair;
    assert_eq!(owner.command, format!("systemctl set-property {} TasksMax=N", slice.name));
    // The kernel's version decides which cgroup counts a refused fork.
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 600 & done; wait";
    output(&["exec", "--detach", &container.name, "sh", "-c", fork]).unwrap();
    let blamed = place.pids.join("pids.events.local").exists();
    let refusing = if blamed { slice.name.clone() } else { place.path.clone() };
    let named = || {
        let report = first(&container, Code::AncestorLimit);
        let refused = report.findings[0].evidence.iter().find(|one| one.what == "forks refused");
        Ok(refused.is_some_and(|one| one.r#where.contains(&refusing) && one.value != "0"))
    };
    wait_until("a fork is refused", named).unwrap();
    systemctl(&["set-property", "--runtime", &slice.name, "TasksMax=100"]);
    assert!(diagnose(&container).findings.iter().all(|one| one.code != Code::AncestorLimit));
}
