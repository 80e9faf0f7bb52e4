use proptest::prelude::*;

use super::*;
use crate::diagnose::facts::{Compose, Container, Engine, Host, Level, Process, Subject, Unit};

const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A container without a limit: Docker, one process, no systemd.
fn container(stored: Option<i64>, in_force: Limit) -> Facts {
    let path = format!("/docker/{ID}");
    let own = Level { path: path.clone(), max: Some(in_force), ..Level::default() };
    Facts {
        target: Subject { kind: "container".into(), cgroup: path, ..Subject::default() },
        host: Host { pids_enabled: Some(true), ..Host::default() },
        engine: Some(Engine {
            kind: "docker".into(),
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            ..Engine::default()
        }),
        container: Some(Container {
            id: ID.into(),
            init: 7,
            pids_limit: stored,
            ..Container::default()
        }),
        chain: vec![own, Level { path: "/".into(), ..Level::default() }],
        members: vec![Process { pid: 7, parent: 1, threads: 1, ..Process::default() }],
        ..Facts::default()
    }
}

fn in_scope(mut facts: Facts, tasks_max: Limit) -> Facts {
    let name = format!("docker-{ID}.scope");
    facts.target.cgroup = format!("/system.slice/{name}");
    facts.chain[0].path.clone_from(&facts.target.cgroup);
    let transient = true;
    facts.unit =
        Some(Unit { name, tasks_max: Some(tasks_max), transient, systemd: 252, ..Unit::default() });
    facts
}

fn podman(mut facts: Facts, version: &str) -> Facts {
    facts.engine.as_mut().unwrap().kind = "podman".into();
    facts.engine.as_mut().unwrap().version = version.into();
    let name = format!("libpod-{ID}.scope");
    facts.target.cgroup = format!("/machine.slice/{name}/container");
    facts.chain[0].path.clone_from(&facts.target.cgroup);
    facts.unit = Some(Unit { name, transient: true, ..Unit::default() });
    facts
}

fn why(facts: &Facts, limit: Option<u64>) -> String {
    plan(facts, limit, false).unwrap_err().0
}

#[test]
fn the_owner_writes_it() {
    let plain = container(None, Limit::Max);
    let last = |facts: &Facts| match plan(facts, Some(40), false).unwrap().next(1, Limit::Max) {
        Next::Last(writes) => writes,
        other @ (Next::Lower(..) | Next::Wait) => panic!("{other:?}"),
    };
    assert_eq!(last(&plain), [Write::Docker { limit: 40 }]);
    assert_eq!(last(&podman(plain.clone(), "5.4.2")), [Write::Podman { limit: 40 }]);
    let old = last(&podman(plain.clone(), "4.3.1"));
    let unit = format!("libpod-{ID}.scope");
    let tasks_max = Write::TasksMax { unit, limit: 40, runtime: true };
    assert_eq!(old, [tasks_max, Write::PidsMax { limit: 40 }], "scope and payload");
    let mut cgroup = plain;
    (cgroup.engine, cgroup.container) = (None, None);
    assert_eq!(last(&cgroup), [Write::PidsMax { limit: 40 }], "nobody owns it");
}

#[test]
fn steps_down_are_run_time_writes_and_the_store_comes_last() {
    let facts = in_scope(container(Some(500), Limit::Tasks(500)), Limit::Tasks(500));
    let plan = plan(&facts, Some(40), false).unwrap();
    let Next::Lower(writes, 320) = plan.next(300, Limit::Tasks(500)) else { panic!() };
    let unit = format!("docker-{ID}.scope");
    assert_eq!(writes, [Write::TasksMax { unit, limit: 320, runtime: true }]);
    assert_eq!(plan.next(305, Limit::Tasks(320)), Next::Wait, "never up again");
    assert_eq!(plan.next(20, Limit::Tasks(100)), Next::Last(vec![Write::Docker { limit: 40 }]));
    let forced = super::plan(&facts, Some(40), true).unwrap();
    assert!(matches!(forced.next(300, Limit::Tasks(500)), Next::Last(_)));
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let facts = container(None, Limit::Max);
    assert!(why(&facts, None).contains("--limit"));
    assert!(why(&facts, Some(7)).contains("--force"));
    assert!(plan(&facts, Some(7), true).is_ok());
    assert!(why(&facts, Some(0)).contains("no limit"));
    assert!(why(&facts, Some(MOST + 1)).contains("no limit"));
    let mut old = facts.clone();
    old.engine.as_mut().unwrap().api_version = "1.39".into();
    assert!(why(&old, Some(40)).contains("MG-P008"));
    let mut disabled = facts.clone();
    disabled.container.as_mut().unwrap().cgroups = "disabled".into();
    assert!(why(&disabled, Some(40)).contains("MG-P023"));
    let mut gone = facts;
    gone.chain.clear();
    assert!(why(&gone, Some(40)).contains("read back"));
}

#[test]
fn done_means_that_every_place_says_so() {
    let proved = |facts: &Facts| plan(facts, Some(40), false).unwrap().proof(facts).0;
    let done = in_scope(container(Some(40), Limit::Tasks(40)), Limit::Tasks(40));
    assert!(proved(&done));
    assert!(!proved(&in_scope(container(Some(40), Limit::Tasks(40)), Limit::Tasks(50))));
    assert!(!proved(&in_scope(container(Some(50), Limit::Tasks(40)), Limit::Tasks(40))));
    assert!(!proved(&in_scope(container(Some(40), Limit::Tasks(50)), Limit::Tasks(40))));
}

#[test]
fn the_edit_is_shown_where_the_file_disagrees() {
    let mut facts = container(None, Limit::Max);
    let says = Says::Limit { value: 25, key: "pids_limit".into(), file: "/a.yml".into(), line: 7 };
    facts.compose = Some(Compose { says, ..Compose::default() });
    assert_eq!(edit(&facts, 25), None);
    assert_eq!(edit(&facts, 90).unwrap(), "/a.yml:7\n-   pids_limit: 25\n+   pids_limit: 90");
}

proptest! {
    /// Tasks come and go as they like: the limit only ever falls, and never below the room that what
    /// runs needs, until the target holds it.
    #[test]
    fn a_ratchet_only_falls(
        tasks in prop::collection::vec(1_u64..600, 1..60),
        target in LEAST..400,
        start in 1_u64..800,
    ) {
        let facts = container(None, Limit::Tasks(start));
        let plan = plan(&facts, Some(target), false).unwrap();
        let mut in_force = Limit::Tasks(start);
        for tasks in tasks {
            match plan.next(tasks, in_force) {
                Next::Wait => {}
                Next::Lower(_, limit) => {
                    prop_assert!(Limit::Tasks(limit) < in_force);
                    prop_assert!(limit >= tasks + LEAST && limit > target);
                    in_force = Limit::Tasks(limit);
                }
                Next::Last(_) => {
                    prop_assert!(tasks < target || in_force <= Limit::Tasks(target));
                    return Ok(());
                }
            }
        }
    }
}
