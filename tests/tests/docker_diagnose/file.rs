//! Limits in the compose file, and how they are lost.

use super::*;

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
fn p007_an_update_changed_it_without_the_file() {
    let project = Project::new();
    project.write(25);
    let container = run(&project, "p007", &["--pids-limit", "25"]);
    fine(&container, Code::Enforced);
    update(&container, 500);
    let report = first(&container, Code::Drift);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(500)));
    // If the file changed afterwards, the cause is another one.
    project.write_after(&container, 25);
    first(&container, Code::NotRecreated);
}

#[test]
fn p005_null_and_zero_are_told_apart() {
    let kept = |container: &Container, kept: &str| {
        assert_eq!(container.inspect("json .HostConfig.PidsLimit").unwrap(), kept);
        first(container, Code::ExplicitUnlimited).findings[0].title.clone()
    };
    // Three ways to create a container without a limit.
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
fn p005_an_update_removed_the_limit_of_the_file() {
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
fn p005_and_p002_the_file_asks_for_no_limit() {
    let project = Project::new();
    let container = run(&project, "p005-none", &[]);
    let write = |limit: &str| {
        let text = format!("services:\n  web:\n    image: x\n    pids_limit: {limit}\n");
        fs::write(project.file(), text).unwrap();
    };
    write("-1");
    let report = first(&container, Code::ExplicitUnlimited);
    assert!(report.findings[0].title.contains("pids_limit: -1"), "{report:#?}");
    // compose treats 0 as not set.
    write("0");
    first(&container, Code::NeverDeclared);
}

#[test]
fn a_limit_from_a_variable_is_only_a_possible_cause() {
    let project = Project::new();
    let text = "services:\n  web:\n    image: x\n    pids_limit: ${MCP_PIDS:-500}\n";
    fs::write(project.file(), text).unwrap();
    let env = project.folder().join(".env.production");
    fs::write(&env, "MCP_PIDS=25 # of them\n").unwrap();
    let named = format!("--label=com.docker.compose.project.environment_file={}", env.display());
    // The shell's environment had another value when compose ran.
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
fn files_that_labels_name_are_read_only_where_that_is_safe() {
    let project = Project::new();
    let title = |container: &Container| {
        let report = diagnose(container);
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("root:"), "{text}");
        report.findings[0].title.clone()
    };
    // A link to a file with secrets.
    symlink("/etc/shadow", project.file()).unwrap();
    let container = run(&project, "hostile", &[]);
    assert!(title(&container).contains("not read"), "a link");
    fs::remove_file(project.file()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        project.file(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(title(&container).contains("not a regular file"), "a pipe without a writer");
    fs::remove_file(project.file()).unwrap();
    fs::write(project.file(), " ".repeat(10 << 20)).unwrap();
    assert!(title(&container).contains("larger than"), "ten megabytes");
    fs::remove_file(project.file()).unwrap();
    project.write(25);
    let inside = format!("{}:/p", project.folder().display());
    let writer = sleeper("writer", &["--volume", &inside]);
    assert!(title(&container).contains("containers can write to"), "a volume");
    output(&["kill", &writer.name]).unwrap();
    assert!(
        title(&container).contains("containers can write to"),
        "a volume of a container that has ended"
    );
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
    assert!(title(&shadow).contains("not read"), "a file that is not a compose file");
}
