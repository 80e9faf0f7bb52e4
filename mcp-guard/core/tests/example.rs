//! The documented policy is valid, and its values are the defaults.

use mcp_guard_core::policy::{Mode, Policy, Response, Terms, Workload};

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../../docs/policy.example.toml");
    let example = Policy::parse(text).expect("valid");
    let default = Policy::default();
    assert_eq!(example.mode, default.mode);
    assert_eq!(example.detect(), default.detect());
    assert_eq!(example.respond(), default.respond());
    assert_eq!(example.guard.len(), 5);
    assert_eq!(example.guard[1].highest, Response::Freeze, "the default `highest`");
    assert_eq!(example.launcher.len(), 1);
}

/// The package's policy changes nothing on a host. The example in its comment is valid too.
#[test]
fn the_shipped_policy_observes() {
    let text = include_str!("../../../package/etc/mcp-guard/policy.toml");
    let shipped = Policy::parse(text).expect("valid");
    assert_eq!((shipped.mode, shipped.guard.len()), (Mode::Observe, 0));
    let (above, shown) = text.split_once("# [[guard]]").expect("an example in a comment");
    let shown = format!("{above}[[guard]]{}", shown.replace("\n# ", "\n").replace("\n#\n", "\n"));
    let shown = Policy::parse(&shown).expect("valid without the comment signs");
    assert_eq!((shown.guard.len(), shown.guard[0].mode), (2, Some(Mode::Enforce)));
}

/// The example of version 0.1, as an operator may have copied it.
#[test]
fn an_old_policy_keeps_its_meaning() {
    let old = Policy::parse(include_str!("policies/version-0.1.toml")).expect("valid");
    let default = Policy::default();
    assert_eq!((old.detect(), old.respond()), (default.detect(), default.respond()));
    let workload = |name: &str, image: &str, cgroup: &str| Workload {
        name: name.to_owned(),
        image: image.to_owned(),
        cgroup: cgroup.to_owned(),
        ..Workload::default()
    };
    let enforce = |pids_limit, rule| {
        let terms = Terms::new(Mode::Enforce, Response::Freeze);
        Some(Terms { pids_limit, rule: Some(rule), ..terms })
    };
    let mut labelled = workload("x", "y", "/z");
    labelled.labels.insert("mcp-guard".to_owned(), "enforce".to_owned());
    let path = "/system.slice/mcp-gateway.service";
    for (workload, expected) in [
        (workload("metamcp-1", "ghcr.io/metamcp:2", "/docker/1"), enforce(Some(400), 0)),
        (workload("metamcp-1", "metamcp", "/docker/1"), None),
        (labelled, enforce(None, 1)),
        (
            workload("", "", path),
            Some(Terms { rule: Some(2), ..Terms::new(Mode::Observe, Response::Freeze) }),
        ),
        (workload("", "", &format!("{path}/below")), None),
        (workload("", "", "/system.slice/mcp-gateway-2.service"), None),
    ] {
        assert_eq!(old.terms(&workload), expected, "{workload:?}");
        // It sets nothing for one rule or one server.
        let scope = old.scope(expected.and_then(|terms| terms.rule));
        assert_eq!(scope, default.scope(None));
    }
}
