//! Several places set a key: the more specific one wins.

use super::super::{Applied, Policy, PolicySource};

/// The places that may set `detect.duplicates.act`, each with the value that it sets, from the least specific on.
const PLACES: [(&str, &str); 6] = [
    ("10", ""),
    ("11", "[detect.duplicates]\nact = 11\n"),
    ("12", "[[guard]]\nname = \"g\"\n[guard.detect.duplicates]\nact = 12\n"),
    ("13", "[server.\"a*\".detect.duplicates]\nact = 13\n"),
    ("14", "[server.\"a-mcp\".detect.duplicates]\nact = 14\n"),
    ("15", "[[guard]]\nname = \"g\"\n[guard.server.\"a*\".detect.duplicates]\nact = 15\n"),
];

fn load(texts: &[&str]) -> Policy {
    let source = |text: &&str| PolicySource { name: String::new(), text: (*text).to_owned() };
    let sources: Vec<PolicySource> = texts.iter().map(source).collect();
    Policy::load(&sources).expect("valid")
}

fn applied(policy: &Policy, identity: &str) -> Applied {
    let rule = (!policy.guard.is_empty()).then_some(0);
    let scope = policy.scope(rule);
    scope.of(scope.variant(identity)).clone()
}

fn act(policy: &Policy, identity: &str) -> usize {
    applied(policy, identity).detect.duplicates.act
}

/// Each pair of places, in one file and in two, in both orders.
#[test]
fn the_more_specific_place_wins() {
    for (at, (value, text)) in PLACES.iter().enumerate() {
        let expected: usize = value.parse().expect("a number");
        assert_eq!(act(&load(&[text]), "a-mcp"), expected, "{text}");
        for (_, lower) in &PLACES[..at] {
            // One rule: both places in the same one.
            let rules = lower.contains("[[guard]]") && text.contains("[[guard]]");
            let upper = if rules {
                text.replace("[[guard]]\nname = \"g\"\n", "")
            } else {
                (*text).to_owned()
            };
            let (top, rule) = match lower.contains("[[guard]]") {
                true if rules => (format!("{lower}{upper}"), String::new()),
                _ => ((*lower).to_owned(), upper),
            };
            for texts in [[top.as_str(), rule.as_str()], [rule.as_str(), top.as_str()]] {
                assert_eq!(act(&load(&texts), "a-mcp"), expected, "{texts:?}");
            }
        }
    }
}

#[test]
fn other_identities_and_other_guards_keep_what_applies_to_all() {
    let policy =
        load(&["[[guard]]\nname = \"g\"\n[guard.server.\"a*\".detect.duplicates]\nact = 20\n\
         [[guard]]\nname = \"*\"\n[server.b.detect.duplicates]\nact = 30\nwarn_age = \"7s\"\n\
         [detect.duplicates]\nwarn = 6\n"]);
    let found = |rule: usize, identity: &str| {
        let scope = policy.scope(Some(rule));
        let one = &scope.of(scope.variant(identity)).detect.duplicates;
        (one.act, one.warn, one.warn_age.as_secs())
    };
    for (rule, identity, expected) in [
        (0, "a1", (20, 6, 30)),
        (0, "b", (30, 6, 7)),
        (0, "c", (10, 6, 30)),
        (1, "a1", (10, 6, 30)),
        (1, "b", (30, 6, 7)),
    ] {
        assert_eq!(found(rule, identity), expected, "{rule} {identity}");
    }
}

/// If several entries of one place match, the most specific one applies, and no other.
#[test]
fn the_most_specific_entry_for_a_server_applies() {
    let policy = load(&[
        "[server.\"*\".detect.duplicates]\nact = 20\nwarn = 7\n[server.\"figma-*\".detect.duplicates]\nact = 30\n",
        "[server.\"figma-mcp\"]\nignore = true\n[server.\"figma-?\".detect.duplicates]\nact = 40\n",
    ]);
    let found = |identity: &str| {
        let one = applied(&policy, identity);
        (one.detect.duplicates.act, one.detect.duplicates.warn, one.ignore)
    };
    assert_eq!(found("other"), (20, 7, false));
    assert_eq!(found("figma-context"), (30, 5, false));
    assert_eq!(found("figma-x"), (40, 5, false), "the same length, and read later");
    assert_eq!(found("figma-mcp"), (10, 5, true));
}

#[test]
fn a_guard_may_count_again_what_is_ignored_elsewhere() {
    let policy = load(&[
        "[server.a]\nignore = true\nrespond.cool_down = \"5s\"\n[[guard]]\nname = \"g\"\nserver.a.ignore = false\n",
    ]);
    let one = applied(&policy, "a");
    assert_eq!((one.ignore, one.respond.cool_down.as_secs()), (false, 5));
}

#[test]
fn a_later_file_overrides_keys_and_adds_rules() {
    let policy = load(&[
        "mode = \"enforce\"\n[detect.burst]\nwarn_10s = 3\n[[guard]]\nname = \"a\"\n[[launcher]]\nprogram = \"x\"\n",
        "[detect.burst]\nwarn_10s = 4\n[evidence]\nevery = \"9s\"\n[[guard]]\nname = \"b\"\n[[launcher]]\nprogram = \"y\"\n",
    ]);
    assert_eq!(policy.detect().burst.warn_10s, 4);
    assert_eq!(policy.evidence.every.as_secs(), 9);
    let names: Vec<_> = policy.guard.iter().filter_map(|rule| rule.name.as_ref()).collect();
    assert_eq!(names.iter().map(|name| name.text()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(policy.launcher.len(), 2);
    assert_eq!(policy.mode, super::super::Mode::Enforce);
}

#[test]
fn an_error_names_the_file_that_has_it() {
    let source = |text: &str| PolicySource { name: String::new(), text: text.to_owned() };
    for (texts, file) in [
        (["[detect.growth]\nact = 16\n", "[detect.growth]\nwarn = 17\n"], 0),
        (["", "[detect.growth]\nwram = 17\n"], 1),
        (["[detect.growth]\nact = 0\n", "[respond]\nclamp_headroom = 2\n"], 0),
        (["[[guard]]\nname = \"*\"\n", "[[guard]]\nmode = \"enforce\"\n"], 1),
    ] {
        let error = Policy::load(&texts.map(source)).expect_err("bad");
        assert_eq!(error.file, file, "{error}");
    }
}

#[test]
fn entries_for_servers_are_bounded() {
    let entries = |table: &str, count: usize| -> String {
        let entries = (0..count).map(|at| format!("[{table}.s{at}]\nignore = true\n"));
        entries.collect::<Vec<_>>().concat()
    };
    let text = format!(
        "{}[[guard]]\nname = \"g\"\n{}",
        entries("server", 200),
        entries("guard.server", 200)
    );
    let error = Policy::parse(&text).expect_err("too many").text;
    assert!(
        error.contains("too many entries for servers") && error.contains("line 401"),
        "{error}"
    );
    let many = |text: &str, count: usize| -> String {
        (0..count).map(|at| text.replace('@', &at.to_string())).collect()
    };
    // The tables of a file are sorted by name: s999 is the last one.
    let entry = "[server.s@]\nignore = true\n";
    let guard = "[[guard]]\nname = \"a\"\n";
    for (text, line, what) in [
        (many(entry, 1001), "line 1999", "too many entries for servers"),
        (
            guard.to_owned() + &many("[guard.server.s@]\nignore = true\n", 1001),
            "line 2001",
            "too many entries for servers",
        ),
        (many(guard, 10_001), "line 20001", "too many rules"),
        (many("[[launcher]]\nprogram = \"x@\"\n", 1001), "line 2001", "too many launchers"),
    ] {
        let error = Policy::parse(&text).expect_err("too many").text;
        assert!(error.contains(what) && error.contains(line), "{error}");
    }
    // Entries of two files add up.
    let source = |text| PolicySource { name: String::new(), text };
    let both = [source(many(entry, 600)), source(many("[server.t@]\nignore = true\n", 600))];
    assert!(Policy::load(&both).expect_err("too many").text.contains("too many entries"));
    assert!(Policy::parse(&many(entry, 1000)).is_ok());
}
