//! The places that store a limit, where it is lost between them, and which events a repair survives.

use super::*;

/// Returns the places at which the limit is lost.
fn breaks(facts: &Facts) -> Vec<String> {
    let places = judge(facts).places.into_iter();
    places.filter(|place| place.breaks).map(|place| place.place.to_string()).collect()
}

fn podman(mut facts: Facts, version: &str) -> Facts {
    let engine = facts.engine.as_mut().unwrap();
    (engine.kind, engine.version) = (EngineKind::Podman, version.into());
    facts
}

/// A payload below its scope, as crun creates it. systemd has another number for the scope.
fn payload(facts: Facts) -> Facts {
    let mut facts = scoped(facts, Limit::Tasks(1698), 252);
    facts.chain[0].path += "/container";
    facts.target.cgroup = facts.chain[0].path.clone();
    facts
}

#[test]
fn a_limit_is_lost_only_where_one_was_expected() {
    let mut default = scoped(unlimited(), Limit::Tasks(1698), 252);
    default.chain[0].max = Some(Limit::Tasks(1698));
    let mut nothing = composed(limited(25), 25, -10);
    nothing.compose.as_mut().unwrap().says = Says::Nothing { elsewhere: vec![] };
    let mut raw = limited(25);
    raw.chain[0].max = Some(Limit::Max);
    for (facts, expected) in [
        (composed(limited(25), 25, -10), &[][..]),
        (payload(limited(25)), &[]),
        (default, &[]),
        (nothing, &[]),
        (composed(unlimited(), 25, 10), &["engine"]),
        (composed(raw.clone(), 500, 10), &["engine", "kernel"]),
        (raw, &["kernel"]),
        (scoped(limited(25), Limit::Tasks(50), 252), &["systemd"]),
    ] {
        assert_eq!(breaks(&facts), expected, "{:#?}", judge(&facts).places);
    }
}

#[test]
fn a_repair_that_podman_does_not_store_is_no_lost_update() {
    let mut facts = payload(podman(limited(2048), "4.3.1"));
    facts.chain[0].max = Some(Limit::Tasks(25));
    only(&facts, Code::PodmanUpdateLost, Possible);
    facts.wanted = Some(25);
    let report = judge(&facts);
    assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
    assert_eq!(breaks(&facts), [""; 0]);
    // The repair raised it above the engine's limit.
    facts.container.as_mut().unwrap().pids_limit = Some(10);
    let report = judge(&facts);
    assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
    // A step on the way down has not reached the wanted limit yet.
    facts.container.as_mut().unwrap().pids_limit = Some(500);
    facts.chain[0].max = Some(Limit::Tasks(200));
    assert_eq!(judge(&facts).verdict, Verdict::NotEnforced);
}

#[test]
fn the_events_a_repair_survives_depend_on_the_owner() {
    let survives = |facts: Facts| judge(&facts).findings[0].repair.survives.join(", ");
    let kept = "container restart, daemon-reload, reboot";
    assert_eq!(survives(composed(unlimited(), 25, 10)), kept);
    assert_eq!(survives(podman(composed(unlimited(), 25, 10), "5.4.2")), kept);
    assert_eq!(survives(podman(composed(unlimited(), 25, 10), "4.3.1")), "");
    let scope = podman(scoped(composed(unlimited(), 25, 10), Limit::Max, 252), "4.3.1");
    assert_eq!(survives(scope), "daemon-reload");
}
