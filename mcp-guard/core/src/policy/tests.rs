mod explain;
mod precedence;
pub(super) mod reference;

use std::collections::BTreeMap;

use super::*;

#[test]
fn the_defaults_observe_and_guard_every_container() {
    let policy = Policy::parse("").expect("an empty policy");
    assert_eq!((policy.mode, policy.guard.len()), (Mode::Observe, 0));
    assert_eq!(policy.detect(), &Detect::default());
    assert_eq!(policy.respond(), &Respond::default());
    let terms = policy.terms(&Workload { name: "anything".into(), ..Workload::default() });
    assert_eq!(terms, Some(Terms::new(Mode::Observe, Response::Freeze)));
}

#[test]
fn a_typo_is_an_error_with_its_line_and_a_caret() {
    let text = "mode = \"enforce\"\n[detect.duplicates]\nwarm = 3\n";
    let error = Policy::parse(text).expect_err("unknown key").to_string();
    assert!(error.contains("line 3"), "{error}");
    assert!(error.contains("| ^^^^"), "{error}");
    assert!(error.contains("unknown field `warm`"), "{error}");
}

#[test]
fn contradictions_are_rejected_with_the_key_at_fault() {
    let star = "[[guard]]\nname = \"*\"\n";
    let cases = [
        ("[detect.duplicates]\nwarn = 0", "detect.duplicates.warn = 0"),
        ("[detect.duplicates]\nact = 2", "act is below warn"),
        ("[detect.burst]\nact_for = \"0s\"", "act_for"),
        ("[respond]\nclamp_headroom = 4", "clamp_headroom"),
        ("[respond]\nfreeze_lease = \"8days\"", "freeze_lease"),
        ("[[guard]]\nmode = \"enforce\"", "guard 1 names no container"),
        (
            "[[guard]]\nmode = \"enforce\"",
            "error at line 1, column 1\n  |\n1 | [[guard]]\n  | ^^^^^^^^^\n",
        ),
        ("[[guard]]\ncgroup = \"../x\"", "absolute path"),
        ("[[guard]]\ncgroup = \"../x\"", "line 2, column 10"),
        (
            "[[guard]]\nname = \"a\"\npids_limit = 3",
            "error at line 3, column 1\n  |\n3 | pids_limit = 3\n  | ^^^^^^^^^^\n",
        ),
        (
            "[detect]\n  duplicates.warn = 0",
            "error at line 2, column 14\n  |\n2 |   duplicates.warn = 0\n  |              ^^^^\n",
        ),
        ("[server.\"a\".detect.emergency]\nwarn = 1", "unknown field `emergency`"),
        ("[server.\"a\".detect.duplicates]\nact = 2", "line 2"),
        ("[server.\"a\"]\nignore = 1", "line 2"),
        ("[server.\"a\".detect.herd]\nwarn = 4", "unknown field `herd`"),
        ("[[guard]]\nname = \"a\"\n[guard.detect.herd]\nwarn = 4", "line 4, column 1"),
        (
            "[[guard]]\nname = \"a\"\ndetect.herd.age = \"4s\"",
            "detect.herd.age cannot be set for a guard",
        ),
        (
            "[[guard]]\nname = \"a\"\n[guard.detect.herd]\nwarn = 4",
            "put it into [detect.herd] at the top of the file",
        ),
        ("mode = \"on\"", "unknown variant `on`"),
        ("[guard.detect.burst]\nwarn_10s = 3", "[guard.detect] belongs below a [[guard]]"),
        ("[guard.detect]", "error at line 1, column 2\n  |\n1 | [guard.detect]\n  |  ^^^^^\n"),
        (
            "[guard.server.x]\nignore = true\n[[guard]]\nname = \"a\"",
            "[guard....] belongs below a [[guard]]",
        ),
        ("[guard]\nname = \"a\"", "[guard] must have double brackets: [[guard]]"),
        ("[launcher]\nprogram = \"x\"", "must have double brackets: [[launcher]]"),
        ("[detect.duplicates]\nwarn_age = \"soon\"", "line 2"),
    ];
    let long = format!("# {}\n[[guard]] # ü\nname = \"a\"\npids_limit = 3", "x".repeat(5000));
    assert!(Policy::parse(&long).expect_err("bad").text.contains("line 4"));
    let guards = format!("{star}{star}[guard.detect.growth]\nact = 2\n");
    let error = Policy::parse(&guards).expect_err("bad").text;
    assert!(error.contains("line 6, column 1\n  |\n6 | act = 2\n  | ^^^\n"), "{error}");
    assert!(error.contains("detect.growth: act is below warn, 2 below 15"), "{error}");
    for (text, expected) in cases {
        let error = Policy::parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_first_matching_rule_decides() {
    let policy = Policy::parse(
        r#"
        mode = "observe"
        [[guard]]
        name = "metamcp-*"
        image = "ghcr.io/*"
        mode = "enforce"
        highest = "kill"
        [[guard]]
        label = "mcp=yes"
        highest = "clamp"
        [[guard]]
        label = "guarded"
        [[guard]]
        cgroup = "/system.slice/mcp.service"
        "#,
    )
    .expect("valid");
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let (mcp, guarded) = (labels("mcp", "yes"), labels("guarded", ""));
    let terms = |name: &str, image: &str, labels: Option<&BTreeMap<_, _>>, cgroup: &str| {
        let workload = Workload {
            name: name.into(),
            image: image.into(),
            labels: labels.cloned().unwrap_or_default(),
            cgroup: cgroup.into(),
        };
        policy.terms(&workload).map(|terms| (terms.mode, terms.highest))
    };
    let observe = |highest| Some((Mode::Observe, highest));
    assert_eq!(
        terms("metamcp-1", "ghcr.io/x", None, "/docker/1"),
        Some((Mode::Enforce, Response::Kill))
    );
    assert_eq!(terms("metamcp-1", "other", None, "/docker/1"), None);
    assert_eq!(terms("x", "y", Some(&mcp), "/docker/1"), observe(Response::Clamp));
    assert_eq!(terms("x", "y", Some(&guarded), "/docker/1"), observe(Response::Freeze));
    assert_eq!(terms("", "", None, "/system.slice/mcp.service"), observe(Response::Freeze));
}

#[test]
fn guards_match_by_compose_names_units_and_patterns_of_cgroups() {
    let policy = Policy::parse(
        r#"
        [[guard]]
        compose_project = "shop"
        compose_service = "mcp*"
        [[guard]]
        compose_project = "*"
        [[guard]]
        unit = "mcp-*.service"
        [[guard]]
        cgroup = "/user.slice/*/user@*.service/app.slice/mcp-*.service"
        "#,
    )
    .expect("valid");
    let rule = |labels: &[(&str, &str)], cgroup: &str| {
        let label = |(key, value): &(&str, &str)| {
            (format!("com.docker.compose.{key}"), (*value).to_owned())
        };
        let workload = Workload {
            labels: labels.iter().map(label).collect(),
            cgroup: cgroup.to_owned(),
            ..Workload::default()
        };
        policy.terms(&workload).map(|terms| terms.rule)
    };
    for (labels, cgroup, expected) in [
        (&[("project", "shop"), ("service", "mcp-1")][..], "/x", Some(Some(0))),
        (&[("project", "shop"), ("service", "web")], "/x", Some(Some(1))),
        (&[("service", "mcp")], "/x", None),
        (&[], "/system.slice/mcp-a.service", Some(Some(2))),
        (&[], "/system.slice/system-mcp.slice/mcp-a.service/sub", Some(Some(2))),
        (&[], "/docker/1/mcp-a.service", None),
        (&[], "/user.slice/user-1.slice/user@1.service/app.slice/mcp-a.service", Some(Some(3))),
        (&[], "/user.slice/user-1.slice/user@1.service/app.slice/mcp-a.service/x", None),
        (&[], "/user.slice/user-1.slice/user@1.service/a.scope/mcp-a.service", None),
    ] {
        assert_eq!(rule(labels, cgroup), expected, "{labels:?} {cgroup}");
    }
}
