use proptest::prelude::*;

use super::{plan as plan_with, *};
use crate::{
    diagnose::facts::{
        Compose, ContainerCgroups, ContainerFacts, EngineFacts, EngineKind, HostFacts, Level,
        Process, Source, SubjectKind, TargetFacts, Unreadable,
    },
    id::Pid,
};

const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A container without a limit: Docker, one process, no systemd.
fn container(stored: Option<i64>, in_force: Limit) -> Facts {
    let path = format!("/docker/{ID}");
    let own = Level { path: path.clone(), max: Some(in_force), ..Level::default() };
    Facts {
        target: TargetFacts {
            kind: SubjectKind::Container,
            cgroup: path,
            ..TargetFacts::default()
        },
        host: HostFacts { pids_enabled: Some(true), ..HostFacts::default() },
        engine: Some(EngineFacts {
            kind: EngineKind::Docker,
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            ..EngineFacts::default()
        }),
        container: Some(ContainerFacts {
            id: ID.into(),
            init: Pid(7),
            pids_limit: stored,
            ..ContainerFacts::default()
        }),
        chain: vec![own, Level { path: "/".into(), ..Level::default() }],
        members: vec![Process { pid: Pid(7), parent: Pid(1), threads: 1, ..Process::default() }],
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
    facts.engine.as_mut().unwrap().kind = EngineKind::Podman;
    facts.engine.as_mut().unwrap().version = version.into();
    let name = format!("libpod-{ID}.scope");
    facts.target.cgroup = format!("/machine.slice/{name}/container");
    facts.chain[0].path.clone_from(&facts.target.cgroup);
    facts.unit = Some(Unit { name, transient: true, ..Unit::default() });
    facts
}

/// With the policy's default headroom.
fn plan(facts: &Facts, limit: Option<u64>, force: bool) -> Result<Plan, Refused> {
    plan_with(facts, Wanted { limit, force, headroom: 20 })
}

fn why(facts: &Facts, limit: Option<u64>) -> String {
    plan(facts, limit, false).unwrap_err().0
}

#[test]
fn the_owner_writes_the_limit() {
    let plain = container(None, Limit::Max);
    let last = |facts: &Facts| match plan(facts, Some(40), false).unwrap().next(1, Limit::Max, None)
    {
        Next::Last(writes) => writes,
        other @ (Next::Lower(..) | Next::Wait) => panic!("{other:?}"),
    };
    assert_eq!(last(&plain), [Write::Docker { limit: 40 }]);
    assert_eq!(last(&podman(plain.clone(), "5.4.2")), [Write::Podman { limit: 40 }]);
    let old = last(&podman(plain.clone(), "4.3.1"));
    let unit = format!("libpod-{ID}.scope");
    let tasks_max = Write::TasksMax { unit, limit: 40, runtime: true };
    assert_eq!(old, [Write::PidsMax { limit: 40 }, tasks_max], "the payload comes first");
    let mut cgroup = plain;
    (cgroup.engine, cgroup.container) = (None, None);
    assert_eq!(last(&cgroup), [Write::PidsMax { limit: 40 }], "no owner");
}

#[test]
fn steps_are_run_time_writes_and_the_owners_store_is_written_last() {
    let facts = in_scope(container(Some(500), Limit::Tasks(500)), Limit::Tasks(500));
    let plan = plan(&facts, Some(40), false).unwrap();
    let Next::Lower(writes, 320) = plan.next(300, Limit::Tasks(500), None) else { panic!() };
    let unit = format!("docker-{ID}.scope");
    assert_eq!(writes, [Write::TasksMax { unit, limit: 320, runtime: true }]);
    assert_eq!(plan.next(305, Limit::Tasks(320), Some(320)), Next::Wait, "never raised again");
    let last = Next::Last(vec![Write::Docker { limit: 40 }]);
    assert_eq!(plan.next(20, Limit::Tasks(100), Some(100)), last);
    let forced = super::tests::plan(&facts, Some(40), true).unwrap();
    assert!(matches!(forced.next(300, Limit::Tasks(500), None), Next::Last(_)));
}

#[test]
fn an_undone_step_is_written_again_but_no_higher() {
    let plan = plan(&container(None, Limit::Max), Some(40), false).unwrap();
    for (tasks, step) in [(60, 80), (70, 80), (79, 80), (90, 80)] {
        let Next::Lower(_, next) = plan.next(tasks, Limit::Max, Some(step)) else { panic!() };
        assert_eq!(next, 80, "{tasks} tasks");
    }
    let Next::Lower(_, 70) = plan.next(50, Limit::Max, Some(80)) else { panic!("lower") };
}

#[test]
fn a_step_leaves_the_policys_headroom_free() {
    let facts = container(None, Limit::Max);
    let wanted = Wanted { limit: Some(40), force: false, headroom: 50 };
    let Next::Lower(_, 350) = plan_with(&facts, wanted).unwrap().next(300, Limit::Max, None) else {
        panic!("a step")
    };
}

#[test]
fn no_step_is_below_the_limit_however_small_the_headroom() {
    let wanted = Wanted { limit: Some(40), force: false, headroom: 1 };
    let plan = plan_with(&container(None, Limit::Max), wanted).unwrap();
    let Next::Lower(_, 41) = plan.next(40, Limit::Max, None) else { panic!("a step") };
    assert_eq!(plan.next(39, Limit::Max, None), Next::Last(vec![Write::Docker { limit: 40 }]));
}

/// One npm exec server with 20 tasks, which the limit of 25 allowed before.
#[test]
fn a_restored_limit_that_fits_needs_no_headroom() {
    let mut facts = container(Some(25), Limit::Max);
    facts.members[0].argv = ["npm", "exec", "a-server"].map(str::to_owned).into();
    facts.members[0].threads = 20;
    let plan = plan(&facts, None, false).unwrap();
    let last = Next::Last(vec![Write::Docker { limit: 25 }]);
    for tasks in [20, 24, 25] {
        assert_eq!(plan.next(tasks, Limit::Max, None), last, "{tasks} tasks");
    }
    let Next::Lower(_, 50) = plan.next(26, Limit::Max, None) else { panic!("a step") };
}

/// The thread pools of its servers, and a `docker exec`.
#[test]
fn a_new_limit_leaves_room_for_tasks_that_may_still_start() {
    let mut facts = container(None, Limit::Max);
    facts.members[0].argv = ["npm", "exec", "a-server"].map(str::to_owned).into();
    facts.members[0].threads = 20;
    let plan = plan(&facts, Some(40), false).unwrap();
    let last = Next::Last(vec![Write::Docker { limit: 40 }]);
    assert_eq!(plan.next(31, Limit::Max, None), last);
    let Next::Lower(_, 56) = plan.next(32, Limit::Max, None) else { panic!("a step") };
}

/// A cgroup that no engine knows, with a unit as systemd names it.
fn cgroup(path: &str, unit: &str, transient: bool) -> Facts {
    let mut facts = container(None, Limit::Max);
    (facts.engine, facts.container) = (None, None);
    path.clone_into(&mut facts.target.cgroup);
    path.clone_into(&mut facts.chain[0].path);
    facts.unit = Some(Unit { name: unit.into(), transient, ..Unit::default() });
    facts
}

#[test]
fn a_unit_owns_only_its_own_cgroup_and_its_payload() {
    let (unit, libpod) = ("gw.service", format!("libpod-{ID}.scope"));
    let payload = format!("/machine.slice/{libpod}/container");
    let user = "/user.slice/user-1000.slice/user@1000.service";
    let standings = [
        ("/system.slice/gw.service".to_owned(), unit, Some(Standing::Own)),
        ("/system.slice/gw.service/worker".to_owned(), unit, None),
        ("/system.slice/my-gw.service".to_owned(), unit, None),
        ("/system.slice/gw.service/container".to_owned(), unit, None),
        (format!("/system.slice/gw.service/libpod-payload-{ID}"), unit, None),
        (format!("{user}/user.slice/{libpod}/container"), "user@1000.service", None),
        (payload.clone(), libpod.as_str(), Some(Standing::Payload)),
        (format!("{payload}/deeper"), libpod.as_str(), None),
        ("/a.slice/a\\x2db.service".to_owned(), "a\\x2db.service", Some(Standing::Own)),
    ];
    for (path, unit, standing) in standings {
        assert_eq!(Standing::of(&path, unit), standing, "{path}");
        let owner = plan(&cgroup(&path, unit, false), Some(40), false).unwrap().owner;
        let payload = standing == Some(Standing::Payload);
        let of_unit = Owner::Unit { name: unit.into(), transient: false, payload };
        assert_eq!(owner, if standing.is_some() { of_unit } else { Owner::Kernel }, "{path}");
    }
    let old = podman(container(None, Limit::Max), "4.3.1");
    let mut split = old;
    split.chain[0].path = format!("/system.slice/gw.service/libpod-payload-{ID}");
    split.unit = Some(Unit { name: unit.into(), ..Unit::default() });
    assert_eq!(plan(&split, Some(40), false).unwrap().owner, Owner::Kernel, "conmon is in it");
}

#[test]
fn a_step_sets_no_property_of_a_permanent_unit() {
    let steps = |transient| {
        let facts = cgroup("/system.slice/gw.service", "gw.service", transient);
        let Next::Lower(writes, 320) =
            plan(&facts, Some(40), false).unwrap().next(300, Limit::Max, None)
        else {
            panic!("a step")
        };
        writes
    };
    assert_eq!(steps(false), [Write::PidsMax { limit: 320 }]);
    let unit = "gw.service".to_owned();
    assert_eq!(steps(true), [Write::TasksMax { unit, limit: 320, runtime: true }]);
}

#[test]
fn a_unit_manager_that_does_not_answer_is_not_bypassed() {
    for what in [Source::Systemd, Source::UnitOfCgroup] {
        let mut facts = cgroup("/system.slice/gw.service", "gw.service", false);
        facts.unit = None;
        facts.unreadable = vec![Unreadable::new(what.clone(), "late")];
        assert!(why(&facts, Some(40)).contains("late"), "{what}");
        // The cgroup inside the scope belongs to the engine, and systemd leaves it alone.
        facts.chain[0].path = format!("/machine.slice/libpod-{ID}.scope/container");
        assert_eq!(plan(&facts, Some(40), false).unwrap().owner, Owner::Kernel);
        facts.chain[0].path = format!("/machine.slice/libpod-{ID}.scope");
        assert!(why(&facts, Some(40)).contains("late"), "{what}");
    }
}

#[test]
fn an_impossible_limit_is_refused_with_advice() {
    let facts = container(None, Limit::Max);
    assert!(why(&facts, None).contains("--limit"));
    assert!(why(&facts, Some(7)).contains("--force"));
    assert!(plan(&facts, Some(7), true).is_ok());
    assert!(why(&facts, Some(0)).contains("not a valid limit"));
    assert!(why(&facts, Some(MOST + 1)).contains("not a valid limit"));
    let mut old = facts.clone();
    old.engine.as_mut().unwrap().api_version = "1.39".into();
    assert!(why(&old, Some(40)).contains("MG-P008"));
    let mut disabled = facts.clone();
    disabled.container.as_mut().unwrap().cgroups = ContainerCgroups::Disabled;
    assert!(why(&disabled, Some(40)).contains("MG-P023"));
    let mut gone = facts;
    gone.chain.clear();
    assert!(why(&gone, Some(40)).contains("read back"));
}

#[test]
fn a_limit_is_proved_only_if_every_place_shows_it() {
    let proved = |facts: &Facts| plan(facts, Some(40), false).unwrap().proof(facts).0;
    let done = in_scope(container(Some(40), Limit::Tasks(40)), Limit::Tasks(40));
    assert!(proved(&done));
    assert!(!proved(&in_scope(container(Some(40), Limit::Tasks(40)), Limit::Tasks(50))));
    assert!(!proved(&in_scope(container(Some(50), Limit::Tasks(40)), Limit::Tasks(40))));
    assert!(!proved(&in_scope(container(Some(40), Limit::Tasks(50)), Limit::Tasks(40))));
    let mut silent = done.clone();
    silent.unit = None;
    assert!(!plan(&done, Some(40), false).unwrap().proof(&silent).0, "systemd was not asked");
}

#[test]
fn an_edit_is_proposed_if_the_file_disagrees() {
    let mut facts = container(None, Limit::Max);
    let says = Says::Limit {
        value: 25,
        key: "pids_limit".into(),
        file: "/a.yml".into(),
        line: 7,
        filled: false,
    };
    facts.compose = Some(Compose { says, ..Compose::default() });
    assert_eq!(edit(&facts, 25), None);
    assert_eq!(edit(&facts, 90).unwrap(), "/a.yml:7\n-   pids_limit: 25\n+   pids_limit: 90");
}

proptest! {
    /// However tasks come and go, the limit only falls. Until the target fits the running tasks, it
    /// stays above the room that they need.
    #[test]
    fn a_ratchet_only_falls(
        tasks in prop::collection::vec((1_u64..600, any::<bool>()), 1..60),
        target in LEAST..400,
        start in 1_u64..800,
    ) {
        let facts = container(None, Limit::Tasks(start));
        let plan = plan(&facts, Some(target), false).unwrap();
        let (mut in_force, mut step) = (Limit::Tasks(start), None);
        for (tasks, undone) in tasks {
            if undone {
                in_force = Limit::Max;
            }
            match plan.next(tasks, in_force, step) {
                Next::Wait => {}
                Next::Lower(_, limit) => {
                    prop_assert!(Limit::Tasks(limit) < in_force);
                    prop_assert!(step.is_none_or(|step| limit <= step), "raised again");
                    prop_assert!(limit >= tasks + LEAST || step == Some(limit));
                    prop_assert!(limit > target);
                    (in_force, step) = (Limit::Tasks(limit), Some(limit));
                }
                Next::Last(_) => {
                    prop_assert!(tasks + 5 <= target || in_force <= Limit::Tasks(target));
                    return Ok(());
                }
            }
        }
    }
}

#[test]
fn a_container_whose_engine_cannot_be_read_is_not_taken_for_nobodys() {
    let mut facts = container(None, Limit::Max);
    (facts.engine, facts.container) = (None, None);
    facts.unreadable = vec![Unreadable::new(Source::Inspect, "status 500")];
    let refused = why(&facts, Some(40));
    assert!(refused.contains("its engine cannot be read"), "{refused}");
    // An engine that answered and has no such container.
    facts.unreadable.clear();
    assert!(plan(&facts, Some(40), false).is_ok());
    // A cgroup of no container.
    facts.unreadable = vec![Unreadable::new(Source::Engine, "no such file")];
    facts.target.cgroup = "/mine".into();
    facts.chain[0].path = "/mine".into();
    assert!(plan(&facts, Some(40), false).is_ok());
}

#[test]
fn a_reversion_names_the_engine_that_stores_the_other_limit() {
    let facts = container(Some(500), Limit::Tasks(500));
    let who = undone_by(&facts, 40, Limit::Tasks(500));
    assert!(who.ends_with("the engine stores 500"), "{who}");
    let who = undone_by(&facts, 40, Limit::Tasks(300));
    assert!(who.contains("another process wrote pids.max"), "{who}");
    let who = undone_by(&container(None, Limit::Max), 40, Limit::Max);
    assert!(who.contains("another process wrote pids.max"), "{who}");
}

#[test]
fn an_operator_is_told_what_a_forced_limit_and_one_above_a_parents_do() {
    let mut facts = container(None, Limit::Max);
    facts.chain[0].current = Some(30);
    let forced = plan(&facts, Some(20), true).unwrap();
    assert!(forced.notes.iter().any(|note| note.starts_with("--force: with 30")), "{forced:?}");
    facts
        .chain
        .insert(1, Level { path: "/p".into(), max: Some(Limit::Tasks(50)), ..Level::default() });
    let above = plan(&facts, Some(60), false).unwrap();
    assert_eq!(above.notes, ["/p allows only 50 tasks, and binds first"]);
    assert!(plan(&facts, Some(40), false).unwrap().notes.is_empty());
}
