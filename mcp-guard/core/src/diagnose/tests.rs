//! Each cause beside its look-alike, on synthetic facts. Tests on real facts are in `tests/`.

mod every_code;
mod look_alikes;
mod ours;
mod places;
mod saved;

use super::{
    code::{Code, Severity},
    facts::{
        CgroupDriver, Cgroups, Clamp, Compose, ComposeTool, ContainerCgroups, ContainerFacts,
        EngineFacts, EngineKind, Facts, HostFacts, Level, NamespaceMode, Other, PidNamespace,
        Process, Says, SubjectKind, TargetFacts, Unit,
    },
    judge,
    report::{Certainty, Layer, Report, Verdict},
};
use crate::{
    id::{Pid, Ticks},
    limit::Limit,
};

const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const INIT: u32 = 100;
const SHIM: u32 = 50;
const CREATED: u64 = 1_000_000;

fn path() -> String {
    format!("/docker/{ID}")
}

fn process(pid: u32, parent: u32) -> Process {
    let argv = vec!["sleep".to_owned(), "500".to_owned()];
    Process {
        pid: Pid(pid),
        parent: Pid(parent),
        start: Ticks(pid.into()),
        threads: 1,
        argv,
        cgroup: path(),
        ..Process::default()
    }
}

/// A container of Docker with the cgroupfs driver, one process, and a limit that is in force.
fn limited(limit: u64) -> Facts {
    let level = |path: &str, max| Level {
        path: path.to_owned(),
        max,
        current: Some(1),
        peak: Some(3),
        denials: Some(0),
        ..Level::default()
    };
    let (own, parent, root) = (
        level(&path(), Some(Limit::Tasks(limit))),
        level("/docker", Some(Limit::Max)),
        level("/", None),
    );
    Facts {
        target: TargetFacts {
            kind: SubjectKind::Container,
            name: "web".into(),
            id: Some(ID.into()),
            cgroup: path(),
        },
        host: HostFacts {
            kernel: "6.18".into(),
            cgroups: Cgroups::Hybrid,
            pids_enabled: Some(true),
            ..HostFacts::default()
        },
        engine: Some(EngineFacts {
            kind: EngineKind::Docker,
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            kernel: "6.18".into(),
            ..EngineFacts::default()
        }),
        container: Some(ContainerFacts {
            id: ID.into(),
            init: Pid(INIT),
            created: Some(CREATED),
            pids_limit: i64::try_from(limit).ok(),
            ..ContainerFacts::default()
        }),
        chain: vec![own, parent, root],
        members: vec![process(INIT, SHIM)],
        ..Facts::default()
    }
}

fn unlimited() -> Facts {
    let mut facts = limited(25);
    container(&mut facts).pids_limit = None;
    facts.chain[0].max = Some(Limit::Max);
    facts
}

fn container(facts: &mut Facts) -> &mut ContainerFacts {
    facts.container.as_mut().unwrap()
}

/// Facts of a container that compose created, from a file with this limit that was written `newer_by` seconds
/// after the container.
fn composed(mut facts: Facts, value: i64, newer_by: i64) -> Facts {
    let says = Says::Limit {
        value,
        key: "pids_limit".into(),
        file: "/srv/compose.yml".into(),
        line: 7,
        filled: false,
    };
    facts.compose = Some(Compose {
        project: "p".into(),
        service: "web".into(),
        tool: ComposeTool::Docker,
        version: Some("2.26.1".into()),
        files: vec!["/srv/compose.yml".into()],
        modified: CREATED.checked_add_signed(newer_by),
        says,
        content: None,
    });
    facts
}

/// Facts of a container in a scope of systemd with this TasksMax.
fn scoped(mut facts: Facts, tasks_max: Limit, systemd: u32) -> Facts {
    let scope = format!("docker-{ID}.scope");
    facts.chain[0].path = format!("/system.slice/{scope}");
    facts.chain[0].has_pids = Some(true);
    facts.target.cgroup = facts.chain[0].path.clone();
    facts.host.cgroups = Cgroups::Unified;
    facts.unit = Some(Unit {
        name: scope,
        tasks_max: Some(tasks_max),
        default_tasks_max: Some(Limit::Tasks(1698)),
        systemd,
        transient: true,
        slice: "system.slice".into(),
    });
    facts
}

/// Adds this number of processes with this parent.
fn with(mut facts: Facts, count: u32, parent: u32) -> Facts {
    let first = facts.members.iter().map(|process| process.pid.0).max().unwrap_or(INIT) + 1;
    facts.members.extend((first..first + count).map(|pid| process(pid, parent)));
    facts.chain[0].current = Some(facts.threads());
    facts
}

fn codes(report: &Report) -> Vec<Code> {
    report.findings.iter().map(|finding| finding.code).collect()
}

#[track_caller]
fn only(facts: &Facts, code: Code, certainty: Certainty) -> Report {
    let report = judge(facts);
    assert_eq!(codes(&report), [code], "{:#?}", report.findings);
    let finding = &report.findings[0];
    assert_eq!(finding.certainty, certainty);
    assert!(!finding.evidence.is_empty() && !finding.repair.command.is_empty(), "{finding:#?}");
    assert_eq!(report.verdict == Verdict::Unknown, super::is_elsewhere(code));
    report
}

use Certainty::{Possible, Proved};

#[test]
fn a_limit_in_force_is_no_finding() {
    let report = judge(&composed(limited(25), 25, -10));
    assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
    assert_eq!(report.ok[0].code, Code::Enforced);
    assert_eq!((report.declared, report.effective_limit), (Some(25), Some(25)));
}

#[test]
fn a_container_not_re_created_is_told_from_a_limit_dropped_by_the_tool() {
    let report = only(&composed(unlimited(), 25, 10), Code::NotRecreated, Proved);
    assert_eq!((report.verdict, report.declared), (Verdict::NotEnforced, Some(25)));
    only(&composed(unlimited(), 25, -10), Code::ToolDropped, Possible);
    let mut old = composed(unlimited(), 25, 10);
    old.compose.as_mut().unwrap().version = Some("v2.1.0".into());
    only(&old, Code::ToolDropped, Proved);
    let mut swarm_style = old.clone();
    let compose = swarm_style.compose.as_mut().unwrap();
    compose.version = Some("2.6.0".into());
    if let Says::Limit { key, .. } = &mut compose.says {
        *key = "deploy.resources.limits.pids".into();
    }
    only(&swarm_style, Code::ToolDropped, Proved);
    swarm_style.compose.as_mut().unwrap().version = Some("2.6.1".into());
    only(&swarm_style, Code::NotRecreated, Proved);
    // The engine has Podman's own default.
    let mut podman = composed(limited(2048), 25, 10);
    let compose = podman.compose.as_mut().unwrap();
    (compose.tool, compose.version) = (ComposeTool::PodmanCompose, Some("1.3.0".into()));
    only(&podman, Code::ToolDropped, Proved);
    podman.compose.as_mut().unwrap().version = Some("1.4.0".into());
    only(&podman, Code::NotRecreated, Proved);
}

#[test]
fn a_container_not_re_created_is_told_from_one_changed_behind_the_file() {
    only(&composed(limited(500), 25, 10), Code::NotRecreated, Proved);
    let report = only(&composed(limited(500), 25, -10), Code::Drift, Proved);
    assert_eq!(report.verdict, Verdict::NotEnforced, "500 is in force, but 25 is wanted");
    let mut no_time = composed(limited(500), 25, 10);
    no_time.compose.as_mut().unwrap().modified = None;
    only(&no_time, Code::Drift, Possible);
}

#[test]
fn a_file_without_a_limit_an_invalid_file_and_an_unknown_one_differ() {
    let mut facts = composed(unlimited(), 25, 10);
    facts.compose.as_mut().unwrap().says = Says::Nothing { elsewhere: vec!["other:3".into()] };
    only(&facts, Code::NeverDeclared, Proved);
    facts.compose.as_mut().unwrap().says = Says::Invalid { why: "two values".into() };
    only(&facts, Code::ComposeInvalid, Proved);
    facts.compose.as_mut().unwrap().says = Says::Unknown { why: "it uses extends".into() };
    only(&facts, Code::NeverDeclared, Possible);
    let facts = composed(unlimited(), 0, 10);
    only(&facts, Code::ExplicitUnlimited, Proved);
}

#[test]
fn null_zero_and_minus_one_are_told_apart() {
    let title = |limit| {
        let mut facts = unlimited();
        container(&mut facts).pids_limit = limit;
        only(&facts, Code::ExplicitUnlimited, Proved).findings[0].title.clone()
    };
    let titles = [None, Some(0), Some(-1)].map(title);
    assert!(titles[0].contains("null") && titles[1].contains("update") && titles[2].contains("-1"));
}

#[test]
fn a_limit_on_another_layer_and_a_swarm_service_are_recognised() {
    let mut facts = unlimited();
    container(&mut facts).nproc_ulimit = Some(25);
    only(&facts, Code::WrongLayer, Proved);
    let mut facts = unlimited();
    facts.engine.as_mut().unwrap().own_tasks_max = Some(Limit::Max);
    only(&facts, Code::ExplicitUnlimited, Proved);
    facts.engine.as_mut().unwrap().own_tasks_max = Some(Limit::Tasks(25));
    only(&facts, Code::WrongLayer, Proved);
    container(&mut facts).swarm_service = Some("abc".into());
    only(&facts, Code::Swarm, Proved);
}

#[test]
fn a_direct_write_is_recognised_with_and_without_systemd() {
    let mut raw = limited(25);
    raw.chain[0].max = Some(Limit::Max);
    raw.chain[0].denials = Some(4);
    only(&raw, Code::RawWrite, Proved);
    // systemd still has the engine's value, so it will fix this itself.
    only(&scoped(raw.clone(), Limit::Tasks(25), 252), Code::RawWrite, Proved);
    // systemd has applied its own value.
    let mut reset = scoped(raw.clone(), Limit::Tasks(1698), 252);
    reset.chain[0].max = Some(Limit::Tasks(1698));
    only(&reset, Code::SystemdReset, Proved);
    // The engine's limit is in force, and systemd does not know it.
    only(&scoped(limited(25), Limit::Tasks(1698), 252), Code::NoTasksMax, Proved);
    assert_eq!(codes(&judge(&scoped(limited(25), Limit::Tasks(25), 252))), []);
    container(&mut raw).privileged = true;
    only(&raw, Code::SelfRaised, Possible);
    raw.host.cgroups = Cgroups::Unified;
    raw.host.nsdelegate = Some(true);
    only(&raw, Code::RawWrite, Proved);
    container(&mut raw).cgroupns_mode = NamespaceMode::Host;
    only(&raw, Code::SelfRaised, Possible);
}

#[test]
fn a_stricter_value_is_less_severe_and_a_step_of_a_repair_is_no_finding() {
    let mut facts = limited(90);
    facts.chain[0].max = Some(Limit::Tasks(81));
    let report = only(&facts, Code::RawWrite, Proved);
    assert_eq!(report.findings[0].severity, Severity::Medium);
    facts.wanted = Some(40);
    let report = judge(&facts);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.notes.iter().any(|note| note.contains("a repair to 40")), "{:?}", report.notes);
}

#[test]
fn a_direct_write_that_the_engine_does_not_know_will_be_undone() {
    for (systemd, when) in [(252, "daemon-reload"), (257, "same slice")] {
        let mut facts = scoped(unlimited(), Limit::Tasks(1698), systemd);
        facts.chain[0].max = Some(Limit::Tasks(25));
        let report = judge(&facts);
        assert_eq!(codes(&report), [Code::SystemdReset, Code::ExplicitUnlimited]);
        assert!(report.findings[0].title.contains(when));
    }
}

#[test]
fn a_controller_that_was_re_enabled_has_fresh_counters() {
    let mut facts = scoped(limited(25), Limit::Tasks(25), 252);
    facts.chain[0] = Level { max: Some(Limit::Max), peak: Some(1), ..facts.chain[0].clone() };
    only(&facts, Code::ControllerToggled, Possible);
    facts.chain[0].peak = Some(9);
    only(&facts, Code::RawWrite, Proved);
}

#[test]
fn an_older_podman_loses_updates() {
    let mut facts = limited(25);
    facts.chain[0].max = Some(Limit::Max);
    let engine = facts.engine.as_mut().unwrap();
    (engine.kind, engine.version) = (EngineKind::Podman, "4.3.1".into());
    only(&facts, Code::PodmanUpdateLost, Possible);
    facts.engine.as_mut().unwrap().version = "5.4.2".into();
    only(&facts, Code::RawWrite, Proved);
}

#[test]
fn a_lower_limit_above_takes_effect() {
    let mut facts = limited(25);
    facts.chain[1].max = Some(Limit::Tasks(15));
    let report = only(&facts, Code::AncestorLimit, Proved);
    assert_eq!((report.effective_limit, report.verdict), (Some(15), Verdict::Enforced));
    facts.chain[1].path = "/kubepods/pod1".into();
    only(&facts, Code::PodLevel, Proved);
    facts.chain[1].path = "/lxc.payload.a/x".into();
    only(&facts, Code::Lxc, Proved);
    facts.chain[1].max = Some(Limit::Tasks(25));
    assert_eq!(codes(&judge(&facts)), [], "equal is not lower");
}

#[test]
fn excess_tasks_came_by_exec_by_a_move_or_before_the_limit() {
    let mut facts = with(limited(5), 12, SHIM);
    container(&mut facts).execs = (INIT + 1..=INIT + 12).map(Pid).collect();
    let report = only(&facts, Code::ExecMigration, Proved);
    assert_eq!((report.verdict, report.charged.moved_in), (Verdict::Exceeded, 12));
    container(&mut facts).execs.clear();
    only(&facts, Code::ExternalMigration, Proved);
    let facts = with(limited(5), 12, INIT);
    only(&facts, Code::LoweredBelow, Proved);
}

#[test]
fn aliens_are_told_apart_by_their_parents() {
    let alien = |parent, cgroup: &str| Process { cgroup: cgroup.into(), ..process(900, parent) };
    let mut facts = limited(25);
    facts.aliens = vec![alien(1, "/user.slice/session-1.scope")];
    let entered = only(&facts, Code::PidNamespace, Proved);
    assert!(entered.findings[0].title.contains("entered"));
    let other = "b".repeat(64);
    facts.aliens = vec![alien(60, &format!("/docker/{other}"))];
    let shared = only(&facts, Code::PidNamespace, Proved);
    assert!(shared.findings[0].title.contains("bbbbbbbbbbbb"));
    facts.aliens = vec![alien(INIT, "/escaped")];
    only(&facts, Code::Reclassified, Possible);
    container(&mut facts).privileged = true;
    only(&facts, Code::EscapedCgroup, Proved);
    facts.aliens = vec![alien(INIT, &format!("/docker/{other}"))];
    only(&facts, Code::InnerOutside, Proved);
    facts.aliens.clear();
    container(&mut facts).pid_mode = NamespaceMode::Host;
    only(&facts, Code::PidNamespace, Proved);
}

#[test]
fn other_containers_are_reported_if_unlimited_or_started_from_inside() {
    let mut facts = limited(25);
    let other = |limit| Other { same_image: true, limit, tasks: Some(80), ..Other::default() };
    facts.others = vec![other(Some(Limit::Max))];
    only(&facts, Code::OtherContainers, Proved);
    facts.others = vec![other(Some(Limit::Tasks(25)))];
    assert_eq!(codes(&judge(&facts)), []);
    container(&mut facts).binds_docker_socket = true;
    only(&facts, Code::Siblings, Possible);
}

#[test]
fn zombies_threads_and_nested_cgroups_count() {
    let mut facts = limited(25);
    facts.zombies = (200..224).map(|pid| process(pid, INIT)).collect();
    facts.chain[0].current = Some(25);
    only(&facts, Code::Zombies, Proved);
    facts.zombies.clear();
    facts.members[0].threads = 25;
    let report = judge(&facts);
    assert_eq!((codes(&report), report.ok[0].code), (vec![], Code::Threads));
    facts.members[0].threads = 1;
    facts.members.push(Process { cgroup: format!("{}/inner", path()), ..process(300, INIT) });
    assert_eq!(judge(&facts).ok[0].code, Code::NestedInside);
}

#[test]
fn a_threaded_cgroup_is_no_finding() {
    let mut facts = limited(25);
    facts.chain[0].threaded = true;
    let report = judge(&facts);
    assert!(report.findings.is_empty() && report.ok[0].code == Code::Threaded, "{report:?}");
}

#[test]
fn a_host_or_pid_namespace_without_free_pids_is_reported() {
    let mut facts = limited(25);
    facts.host.pid_namespace = Some(PidNamespace { pid_max: 400, tasks: 399 });
    only(&facts, Code::HostExhausted, Proved);
    facts.host.pid_namespace = Some(PidNamespace { pid_max: 400, tasks: 3 });
    (facts.host.tasks, facts.host.threads_max) = (Some(96), Some(100));
    only(&facts, Code::HostExhausted, Proved);
    facts.host.threads_max = Some(1000);
    assert_eq!(codes(&judge(&facts)), []);
}

#[test]
fn a_missing_controller_and_another_engine_are_reported() {
    let mut facts = unlimited();
    facts.chain[0].max = None;
    facts.host.pids_enabled = Some(false);
    only(&facts, Code::ControllerDisabled, Proved);
    facts.host.pids_enabled = Some(true);
    (facts.chain[1].has_pids, facts.chain[1].hands_pids_down) = (Some(true), Some(false));
    only(&facts, Code::NotDelegated, Proved);
    let mut facts = limited(25);
    facts.engine.as_mut().unwrap().kernel = "5.15-linuxkit".into();
    only(&facts, Code::OtherDaemon, Proved);
    facts.engine.as_mut().unwrap().operating_system = "Docker Desktop".into();
    only(&facts, Code::DesktopVm, Proved);
    let mut facts = limited(25);
    facts.target.cgroup = "/user.slice".into();
    only(&facts, Code::OtherDaemon, Possible);
    container(&mut facts).cgroups = ContainerCgroups::Disabled;
    only(&facts, Code::CgroupsDisabled, Proved);
    container(&mut facts).runtime = "runsc".into();
    only(&facts, Code::Sandbox, Proved);
    let mut facts = limited(25);
    let engine = facts.engine.as_mut().unwrap();
    (engine.rootless, engine.cgroup_driver) = (true, CgroupDriver::None);
    only(&facts, Code::Rootless, Proved);
    let mut facts = limited(25);
    facts.host.docker_api_version = Some("1.39".into());
    only(&facts, Code::ApiTooOld, Proved);
}

#[test]
fn several_causes_are_in_the_order_of_their_repair() {
    let mut facts = composed(unlimited(), 25, 10);
    facts.zombies = vec![process(300, INIT)];
    facts.chain[0].current = Some(2);
    assert_eq!(codes(&judge(&facts)), [Code::NotRecreated, Code::Zombies]);

    let mut facts = with(limited(5), 12, SHIM);
    container(&mut facts).execs = (INIT + 1..=INIT + 12).map(Pid).collect();
    facts.chain[1].max = Some(Limit::Tasks(4));
    assert_eq!(codes(&judge(&facts)), [Code::AncestorLimit, Code::ExecMigration]);

    let report = judge(&facts);
    assert!(report.findings.is_sorted_by_key(|finding| finding.severity));
    assert!(report.findings[0].severity < Severity::Medium);
}

#[test]
fn sizing_says_how_many_servers_fit() {
    let mut facts = limited(25);
    let npm = |pid, parent, argv: &str, threads| Process {
        threads,
        argv: argv.split(' ').map(str::to_owned).collect(),
        ..process(pid, parent)
    };
    facts.members.push(npm(201, INIT, "npm exec figma-mcp", 11));
    facts.members.push(npm(
        202,
        201,
        "node /x/_npx/0123456789abcdef/node_modules/.bin/figma-mcp",
        7,
    ));
    let sizing = judge(&facts).sizing.unwrap();
    assert_eq!((sizing.servers, sizing.tasks_per_server, sizing.other_tasks), (1, 18, 1));
    assert_eq!(sizing.servers_that_fit, Some(1));
    assert_eq!((sizing.limit_now, sizing.limit_for(10)), (19 + 4 + 20, 181 + 40 + 20));
    facts.headroom = Some(50);
    let sizing = judge(&facts).sizing.unwrap();
    assert_eq!((sizing.limit_now, sizing.limit_for(10)), (19 + 4 + 50, 181 + 40 + 50));
}

#[test]
fn facts_are_read_back_as_saved() {
    let facts = scoped(composed(limited(25), 25, 10), Limit::Max, 257);
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
    assert_eq!(serde_json::from_str::<Facts>("{}").unwrap(), Facts::default(), "an older file");
    let report = judge(&Facts::default());
    assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Unknown));
}
