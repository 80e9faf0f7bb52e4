//! Limits of a parent cgroup, and limits of another kind.

use super::*;

#[test]
fn p070_a_cgroup_above_has_a_lower_limit() {
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

/// A parent cgroup's path. On a hybrid host, the engine makes a cgroup of that path in each hierarchy, and
/// leaves it there. All are removed when this is dropped, after the container.
struct Everywhere(String);

impl Drop for Everywhere {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            if let Some(point) = mount.split(' ').nth(4) {
                // Not every hierarchy has the cgroup.
                let _ = fs::remove_dir(format!("{point}{}", self.0));
            }
        }
    }
}

#[test]
fn p071_the_limit_is_of_another_kind() {
    let container = sleeper("p071", &["--ulimit", "nproc=25"]);
    let report = first(&container, Code::WrongLayer);
    assert!(report.findings[0].title.contains("nproc=25"));
    // Dropped, because it would count as another container of the image without a limit.
    drop(container);
    // The finding is also made for a project whose file has no limit.
    let project = Project::new();
    fs::write(project.file(), "services:\n  web:\n    image: x\n").unwrap();
    first(&run(&project, "p071-project", &["--ulimit", "nproc=25"]), Code::WrongLayer);
    // With a real limit it is no mistake, and other ulimits do not limit processes.
    let options = ["--ulimit", "nproc=25", "--pids-limit", "30"];
    fine(&sleeper("p071-look-alike", &options), Code::Enforced);
    let other = sleeper("p071-other", &["--ulimit", "nofile=100"]);
    first(&other, Code::ExplicitUnlimited);
}

#[test]
fn p070_other_containers_filled_the_parent() {
    let parent = FixtureCgroup::new("parent").unwrap();
    let _everywhere = Everywhere(parent.path().to_owned());
    let above = ["--cgroup-parent", parent.path(), "--pids-limit", "8"];
    let (container, other) = (sleeper("p070-full", &above), sleeper("p070-other", &above));
    let place = other.cgroup().unwrap();
    let _others: Vec<Ended> = (0..8).map(|_| Ended::moved_into(&place.pids)).collect();
    parent.set_pids_max(50).unwrap();
    fine(&container, Code::Enforced);
    // The parent's limit is not below the container's own, but it is used up.
    parent.set_pids_max(10).unwrap();
    let report = first(&container, Code::AncestorLimit);
    let title = &report.findings[0].title;
    assert!(title.contains("10 of 10 tasks") && title.contains("1 of 8"), "{title}");
}

#[test]
fn p070_and_p040_are_both_reported() {
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

/// Each pid namespace has a pid_max of its own since Linux 6.14. Before that, the write below would change
/// the host's.
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
    assert_eq!(fs::read_to_string(HOST).unwrap(), before, "the host's is unchanged");
    let report = first(&container, Code::HostExhausted);
    assert!(report.findings[0].title.contains("291 of 301"), "{}", report.findings[0].title);
}
