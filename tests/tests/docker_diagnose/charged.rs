//! The tasks that are charged to the container, and how they came in.

use super::*;

#[test]
fn p040_docker_exec_p041_a_move_and_p042_a_lower_limit_are_told_apart() {
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

#[test]
fn p050_a_process_entered_by_nsenter_or_a_shared_namespace() {
    let container = sleeper("p050", &["--pids-limit", "25"]);
    let init = container.init().unwrap().to_string();
    let mut nsenter = Command::new("nsenter");
    // The process that enters ends with the nsenter that started it.
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
fn p060_threads_count_and_p090_nothing_is_wrong() {
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
fn p061_zombies_that_are_not_reaped_count() {
    // A shell that execs sleep no longer waits for the children that it started.
    let program = ["sh", "-c", "for i in 1 2 3 4 5 6; do (exit 0) & done; exec sleep 600"];
    let options = ["--pids-limit", "25"];
    let container = Container::run("p061", &busybox_image().unwrap(), &options, &program).unwrap();
    wait_until("they are dead", || Ok(diagnose(&container).charged.zombies == 6)).unwrap();
    let report = first(&container, Code::Zombies);
    assert_eq!((report.charged.processes, report.charged.tasks), (1, Some(7)));
    // A shell that waits for its children leaves no zombies.
    let program = ["sh", "-c", "for i in 1 2 3 4 5 6; do (exit 0) & done; wait; exec sleep 600"];
    let image = busybox_image().unwrap();
    let container = Container::run("p061-look-alike", &image, &options, &program).unwrap();
    let sleeps = |(_, line): &(u32, String)| line.starts_with("sleep");
    wait_until("it has waited", || Ok(container.top()?.iter().all(sleeps))).unwrap();
    assert_eq!(fine(&container, Code::Enforced).charged.tasks, Some(1));
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
