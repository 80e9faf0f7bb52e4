//! The answers of `policy show` and `policy explain`

use std::collections::BTreeMap;

use super::super::{Explained, Policy, PolicySource, Workload};

/// A host with containers of compose, units, patterns and an ignored server.
const MIXED: &str = r#"mode = "observe"
[detect.duplicates]
warn = 6
[server."playwright-mcp"]
ignore = true
[server."figma-*".detect.duplicates]
act = 40
[[guard]]
compose_project = "shop"
compose_service = "gateway"
mode = "enforce"
[guard.detect.duplicates]
act = 12
[guard.server."figma-mcp".detect.duplicates]
act = 60
[[guard]]
compose_project = "shop"
[[guard]]
name = "metamcp-*"
highest = "kill"
[[guard]]
unit = "mcp-*.service"
pids_limit = 300
[[guard]]
cgroup = "/user.slice/*/user@*.service/app.slice/mcp-*.service"
"#;

const DROP_IN: &str = "[respond]\ncool_down = \"5m\"\n[[guard]]\nimage = \"*/metamcp:*\"\nmode = \"enforce\"\n[[guard]]\nlabel = \"mcp\"\n";

fn mixed() -> Policy {
    let source =
        |name: &str, text: &str| PolicySource { name: name.to_owned(), text: text.to_owned() };
    Policy::load(&[source("p.toml", MIXED), source("p.d/1.toml", DROP_IN)]).expect("valid")
}

fn container(name: &str, image: &str, labels: &[(&str, &str)]) -> Workload {
    let label = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let labels: BTreeMap<_, _> = labels.iter().map(label).collect();
    let cgroup = format!("/system.slice/docker-{}.scope", "a".repeat(64));
    Workload { name: name.to_owned(), image: image.to_owned(), labels, cgroup }
}

fn cgroup(path: &str) -> Workload {
    Workload { cgroup: path.to_owned(), ..Workload::default() }
}

fn compose(service: &str) -> Workload {
    let key = |part: &str| format!("com.docker.compose.{part}");
    let (project, service_key) = (key("project"), key("service"));
    container("shop-1", "x", &[(&project, "shop"), (&service_key, service)])
}

/// Returns in short what is said about a target: its rule, those that it shadows, and the mode.
fn short(explained: &Explained) -> String {
    let numbers = explained.shadowed.iter().map(|rule| format!(" ({})", rule.number));
    let rule = explained
        .rule
        .as_ref()
        .map_or_else(|| "none".to_owned(), |rule| format!("{} at {}", rule.number, rule.origin));
    let mode = explained.mode.map_or_else(|| "not watched".to_owned(), |mode| mode.to_string());
    format!("{rule}{}, {mode}", numbers.collect::<Vec<_>>().concat())
}

#[test]
fn ten_targets_are_explained() {
    let policy = mixed();
    let labelled = [("mcp", "1")];
    for (workload, expected) in [
        (compose("gateway"), "1 at p.toml:8 (2), enforce"),
        (compose("web"), "2 at p.toml:16, observe"),
        (container("metamcp-1", "x", &[]), "3 at p.toml:18, observe"),
        (container("metamcp-1", "ghcr.io/metamcp:2", &[]), "3 at p.toml:18 (6), observe"),
        (container("other", "ghcr.io/metamcp:2", &labelled), "6 at p.d/1.toml:3 (7), enforce"),
        (container("other", "x", &labelled), "7 at p.d/1.toml:6, observe"),
        (container("other", "x", &[]), "none, not watched"),
        (cgroup("/system.slice/mcp-a.service"), "4 at p.toml:21, observe"),
        (
            cgroup("/user.slice/user-1.slice/user@1.service/app.slice/mcp-a.service"),
            "5 at p.toml:24, observe",
        ),
        (cgroup("/system.slice/web.service"), "none, not watched"),
    ] {
        let explained = policy.explain(&workload, std::iter::empty());
        assert_eq!(short(&explained), expected, "{workload:?}");
    }
}

#[test]
fn each_value_has_its_place() {
    let policy = mixed();
    let identities = ["figma-mcp", "playwright-mcp", "other"];
    let explained = policy.explain(&compose("gateway"), identities.into_iter());
    let values: Vec<String> = explained
        .values
        .iter()
        .map(|one| format!("{} = {} {}", one.key, one.value, one.origin))
        .collect();
    assert_eq!(
        values,
        [
            "mode = \"enforce\" p.toml:11",
            "highest = \"freeze\" default",
            "detect.duplicates.act = 12 p.toml:13",
            "detect.duplicates.warn = 6 p.toml:3",
            "respond.cool_down = \"5m\" p.d/1.toml:2",
        ]
    );
    let servers: Vec<_> = explained
        .servers
        .iter()
        .map(|one| {
            (one.identity.as_str(), one.ignore, one.entries.join(" "), one.values[0].value.clone())
        })
        .collect();
    assert_eq!(
        servers,
        [
            (
                "figma-mcp",
                false,
                "[guard.server.figma-mcp] [server.\"figma-*\"]".to_owned(),
                "60".to_owned()
            ),
            ("playwright-mcp", true, "[server.playwright-mcp]".to_owned(), "true".to_owned()),
        ]
    );
}

/// The text that is shown is a policy with the same meaning.
#[test]
fn the_policy_that_is_shown_means_the_same() {
    let example = include_str!("../../../../../docs/policy.example.toml");
    for policy in
        [mixed(), Policy::parse("").expect("valid"), Policy::parse(example).expect("valid")]
    {
        let shown = policy.show();
        let again = Policy::parse(&shown).expect(&shown);
        assert_eq!(
            policy.changes(&again, 99).iter().filter(|one| !is_default(one)).count(),
            0,
            "{shown}"
        );
        assert_eq!((policy.mode, policy.evidence.clone()), (again.mode, again.evidence.clone()));
        assert_eq!(
            (policy.scope(None), policy.launcher.clone()),
            (again.scope(None), again.launcher.clone())
        );
        let terms = |policy: &Policy| -> Vec<_> {
            (0..policy.guard.len()).map(|at| policy.scope(Some(at)).clone()).collect()
        };
        assert_eq!(terms(&policy), terms(&again), "{shown}");
        let titles = |policy: &Policy| policy.titles();
        assert_eq!(titles(&policy), titles(&again));
    }
    let shown = mixed().show();
    for line in [
        "warn = 6                                      # p.toml:3",
        "cool_down = \"5m\"                              # p.d/1.toml:2",
        "act_age = \"1m\"                                # default",
        "[guard.server.figma-mcp.detect.duplicates]",
        "[server.playwright-mcp]",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
}

/// The text that is shown also states the defaults of a rule.
fn is_default(change: &str) -> bool {
    change.contains(": mode = ") || change.contains(": highest = ")
}

#[test]
fn changes_are_named_with_the_values() {
    let policy = |text: &str| Policy::parse(text).expect("valid");
    let changes = |one: &str, other: &str| policy(one).changes(&policy(other), 3);
    let star = "[[guard]]\nname = \"*\"\n";
    assert!(changes(star, star).is_empty());
    assert_eq!(changes("", "[detect.growth]\nact = 99\n"), ["detect.growth.act: 60 -> 99"]);
    assert_eq!(
        changes("", "[server.\"a b\"]\nignore = true\n"),
        ["new: server.\"a b\".ignore = true"]
    );
    assert_eq!(changes(star, ""), ["gone: [[guard]] name = \"*\""]);
    assert_eq!(
        changes(star, &format!("{star}highest = \"kill\"\n")),
        ["new: [[guard]] name = \"*\": highest = \"kill\""]
    );
    let other = "[[guard]]\nname = \"a\"\n";
    assert_eq!(
        changes(&format!("{star}{other}"), &format!("{other}{star}")),
        ["the order of the rules"]
    );
    let many = "[detect.burst]\nwarn_10s = 1\nwarn_60s = 1\nsurvivors = 1\nact_rate = 1\n";
    assert_eq!(changes("", many).last().map(String::as_str), Some("and 1 more"));
}

#[test]
fn rules_behind_one_for_all_are_reported() {
    let text = "[[guard]]\nname = \"a\"\n[[guard]]\nname = \"*\"\n[[guard]]\nname = \"b\"\n";
    let policy = Policy::parse(text).expect("valid");
    let numbers: Vec<_> =
        policy.unreachable().iter().map(|(rule, first)| (rule.number, first.number)).collect();
    assert_eq!(numbers, [(3, 2)]);
}
