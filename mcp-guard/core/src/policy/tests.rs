mod reference;

use super::*;

#[test]
fn the_defaults_observe_and_guard_every_container() {
    let policy = Policy::parse("").expect("an empty policy");
    assert_eq!(policy, Policy::default());
    let terms = policy.terms(&Workload { name: "anything".into(), ..Workload::default() });
    assert_eq!(
        terms,
        Some(Terms { mode: Mode::Observe, highest: Response::Freeze, pids_limit: None })
    );
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
    let cases = [
        ("[detect.duplicates]\nwarn = 0", "detect.duplicates.warn = 0"),
        ("[detect.duplicates]\nact = 2", "act is below warn"),
        ("[detect.burst]\nact_for = \"0s\"", "act_for"),
        ("[respond]\nclamp_headroom = 4", "clamp_headroom"),
        ("[respond]\nfreeze_lease = \"8days\"", "freeze_lease"),
        ("[[guard]]\nmode = \"enforce\"", "guard 1 names no container"),
        ("[[guard]]\ncgroup = \"../x\"", "absolute path"),
        ("mode = \"on\"", "unknown variant `on`"),
        ("[detect.duplicates]\nwarn_age = \"soon\"", "line 2"),
    ];
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
