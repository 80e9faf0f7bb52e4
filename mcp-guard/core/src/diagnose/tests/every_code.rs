//! Checks that every documented code is emitted by a rule.

use std::collections::BTreeSet;

use super::*;

fn edited(mut facts: Facts, edit: impl FnOnce(&mut Facts)) -> Facts {
    edit(&mut facts);
    facts
}

fn with_container(facts: Facts, edit: impl FnOnce(&mut ContainerFacts)) -> Facts {
    edited(facts, |facts| edit(container(facts)))
}

fn with_engine(facts: Facts, edit: impl FnOnce(&mut EngineFacts)) -> Facts {
    edited(facts, |facts| edit(facts.engine.as_mut().unwrap()))
}

/// Facts of a compose file with this result, beside an engine without a limit.
fn saying(says: Says) -> Facts {
    edited(composed(unlimited(), 25, 10), |facts| facts.compose.as_mut().unwrap().says = says)
}

/// Facts for P001 to P010, and P071.
fn declared() -> Vec<Facts> {
    vec![
        composed(unlimited(), 25, 10),
        saying(Says::Nothing { elsewhere: vec![] }),
        composed(unlimited(), 25, -10),
        saying(Says::Invalid { why: "two values".into() }),
        unlimited(),
        with_container(unlimited(), |one| one.swarm_service = Some("s".into())),
        composed(limited(500), 25, -10),
        edited(limited(25), |facts| facts.host.docker_api_version = Some("1.39".into())),
        with_engine(raised(), |engine| {
            (engine.kind, engine.version) = (EngineKind::Podman, "4.3.1".into());
        }),
        with_container(unlimited(), |one| one.nproc_ulimit = Some(25)),
    ]
}

/// The engine stores 25, and the kernel has no limit.
fn raised() -> Facts {
    edited(limited(25), |facts| {
        (facts.chain[0].max, facts.chain[0].denials) = (Some(Limit::Max), Some(4));
    })
}

/// Facts for P020 to P034.
fn in_the_kernel() -> Vec<Facts> {
    let no_file = edited(unlimited(), |facts| facts.chain[0].max = None);
    let default = edited(scoped(unlimited(), Limit::Tasks(1698), 252), |facts| {
        facts.chain[0].max = Some(Limit::Tasks(1698));
    });
    let toggled = edited(scoped(raised(), Limit::Tasks(25), 252), |facts| {
        (facts.chain[0].peak, facts.chain[0].denials) = (Some(1), Some(0));
    });
    vec![
        edited(no_file.clone(), |facts| facts.host.pids_enabled = Some(false)),
        edited(no_file, |facts| {
            (facts.chain[1].has_pids, facts.chain[1].hands_pids_down) = (Some(true), Some(false));
        }),
        with_engine(limited(25), |engine| {
            (engine.rootless, engine.cgroup_driver) = (true, CgroupDriver::None);
        }),
        with_container(limited(25), |one| one.cgroups = ContainerCgroups::Disabled),
        toggled,
        edited(scoped(raised(), Limit::Tasks(1698), 252), |facts| {
            facts.chain[0].max = Some(Limit::Tasks(1698));
        }),
        raised(),
        scoped(limited(25), Limit::Tasks(1698), 252),
        with_container(raised(), |one| one.privileged = true),
        default,
    ]
}

/// Facts for P040 to P042, P009, P050 to P054, and P061.
fn processes() -> Vec<Facts> {
    let alien = |privileged, parent, cgroup: &str| {
        let mut facts = with_container(limited(25), |one| one.privileged = privileged);
        facts.aliens = vec![Process { cgroup: cgroup.into(), ..process(900, parent) }];
        facts
    };
    let beside = |binds_docker_socket, limit| {
        let mut facts =
            with_container(limited(25), |one| one.binds_docker_socket = binds_docker_socket);
        facts.others = vec![Other { same_image: true, limit, ..Other::default() }];
        facts
    };
    vec![
        with_container(with(limited(5), 12, SHIM), |one| {
            one.execs = (INIT + 1..=INIT + 12).map(Pid).collect();
        }),
        with(limited(5), 12, SHIM),
        with(limited(5), 12, INIT),
        beside(false, Some(Limit::Max)),
        alien(false, 1, "/user.slice"),
        alien(true, INIT, "/escaped"),
        alien(true, INIT, &format!("/docker/{}", "b".repeat(64))),
        beside(true, Some(Limit::Tasks(25))),
        alien(false, INIT, "/escaped"),
        edited(limited(25), |facts| {
            facts.zombies = vec![process(200, INIT)];
            facts.chain[0].current = Some(2);
        }),
    ]
}

/// Facts for P070, P072 and P080 to P085.
fn around() -> Vec<Facts> {
    let below = |path: &str| {
        edited(limited(25), |facts| {
            facts.chain[1].path = path.into();
            facts.chain[1].max = Some(Limit::Tasks(15));
        })
    };
    let on_other_kernel = with_engine(limited(25), |engine| engine.kernel = "5.15".into());
    vec![
        below("/docker"),
        below("/kubepods/pod1"),
        below("/lxc.payload.a/x"),
        edited(limited(25), |facts| {
            facts.host.pid_namespace = Some(PidNamespace { pid_max: 400, tasks: 399 });
        }),
        on_other_kernel.clone(),
        with_engine(on_other_kernel, |one| one.operating_system = "Docker Desktop".into()),
        with_container(limited(25), |one| one.runtime = "runsc".into()),
    ]
}

/// Names the target as `cgroup:/PATH`.
fn by_path(facts: Facts) -> Facts {
    edited(facts, |facts| facts.target.kind = SubjectKind::Cgroup)
}

/// Facts for P060, P062 to P064, P088, P090 and P099.
fn fine() -> Vec<Facts> {
    vec![
        edited(limited(25), |facts| facts.members[0].threads = 7),
        edited(limited(25), |facts| facts.members[0].cgroup = format!("{}/inner", path())),
        limited(25),
        by_path(limited(25)),
        edited(limited(25), |facts| {
            (facts.container, facts.chain[0].max) = (None, Some(Limit::Max));
            facts.chain[1].max = Some(Limit::Tasks(100));
        }),
        edited(limited(25), |facts| facts.chain[0].threaded = true),
        Facts::default(),
    ]
}

#[test]
fn every_code_is_emitted_by_a_rule() {
    let all = [declared(), in_the_kernel(), processes(), around(), fine()].concat();
    let mut emitted = BTreeSet::new();
    for report in all.iter().map(judge) {
        emitted.extend(report.findings.iter().map(|finding| finding.code));
        emitted.extend(report.ok.iter().map(|fine| fine.code));
    }
    let silent: Vec<&Code> = Code::ALL.iter().filter(|code| !emitted.contains(code)).collect();
    assert!(silent.is_empty(), "no rule emits {silent:?}");
}

#[test]
fn the_default_of_systemd_is_a_sign_only_if_no_limit_was_set() {
    let is_said =
        |facts: &Facts| judge(facts).ok.iter().any(|one| one.code == Code::SystemdDefault);
    let default = edited(scoped(unlimited(), Limit::Tasks(1698), 252), |facts| {
        facts.chain[0].max = Some(Limit::Tasks(1698));
    });
    assert!(is_said(&default));
    // A limit in the engine; a direct write that systemd does not have; a repair; a payload below its unit.
    for edit in [
        |facts: &mut Facts| container(facts).pids_limit = Some(1698),
        |facts: &mut Facts| facts.unit.as_mut().unwrap().tasks_max = Some(Limit::Max),
        |facts: &mut Facts| facts.wanted = Some(1698),
        |facts: &mut Facts| facts.chain[0].path += "/container",
    ] {
        assert!(!is_said(&edited(default.clone(), edit)));
    }
}

#[test]
fn a_limit_in_version_1_is_told_from_the_version_2_tree() {
    let is_said =
        |facts: &Facts| judge(facts).ok.iter().any(|one| one.code == Code::WrongHierarchy);
    assert!(is_said(&by_path(limited(25))));
    assert!(!is_said(&limited(25)), "a container's name does not name a tree");
    assert!(!is_said(&by_path(unlimited())), "there is no limit in either tree");
    let edited = |edit: fn(&mut Facts)| edited(by_path(limited(25)), edit);
    assert!(!is_said(&edited(|facts| facts.host.cgroups = Cgroups::Unified)));
    // The version 2 tree itself has the controller.
    assert!(!is_said(&edited(|facts| facts.chain[0].has_pids = Some(true))));
}

#[test]
fn only_an_unknown_verdict_reports_the_code_unknown() {
    let is_said = |facts: &Facts| judge(facts).ok.iter().any(|one| one.code == Code::Unknown);
    assert!(is_said(&Facts::default()));
    assert!(!is_said(&limited(25)) && !is_said(&unlimited()));
}
