//! No command line makes an identity with a secret in it.

use proptest::{collection::vec, prelude::*, sample::select};

use super::{super::table::Syntax, super::table::TABLE, *};

/// A word that occurs nowhere else. Lower case and short, so that no mask is needed to hide it: it would pass for a
/// package, a command and a file.
const SECRET: &str = "zqsecret";

/// Returns the names of a list of options, without the open ends.
fn options(lists: &[&'static str]) -> Vec<&'static str> {
    lists.iter().flat_map(|list| list.split_whitespace()).filter(|o| !o.ends_with('*')).collect()
}

/// A program of the table with the words that must follow, and its syntax. Or one that is not in the table.
fn programs() -> Vec<(String, Syntax)> {
    let mut all = Vec::new();
    for group in TABLE {
        for (names, subcommand, _) in group.programs {
            for name in names.split_whitespace() {
                let words: Vec<&str> =
                    [name].into_iter().chain(subcommand.split_whitespace()).collect();
                all.push((words.join("|"), group.options));
                // The form of a `#!` script.
                all.push((
                    format!("/usr/bin/env|node|/usr/bin/{}", words.join("|")),
                    group.options,
                ));
            }
        }
    }
    let mut wrapped = Vec::new();
    for wrapper in ["npx|-y", "uvx", "uv|run", "docker|run|-i|node:22|npx", "pnpm|exec"] {
        for group in TABLE.iter().filter(|group| group.scripts) {
            for (names, subcommand, _) in group.programs {
                let package = names.split_whitespace().next().expect("a name");
                let words = [wrapper, package].into_iter().chain(subcommand.split_whitespace());
                wrapped.push((words.collect::<Vec<_>>().join("|"), group.options));
            }
        }
    }
    all.extend(wrapped);
    all.push(("/opt/plain/server".to_owned(), all[0].1));
    all
}

/// Words that hold the secret as a user, a password, a query, or the value of an option.
fn hiding() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(format!("https://{SECRET}@h.example/a")),
        Just(format!("https://u:{SECRET}@h.example/a@b/c")),
        Just(format!("git+https://{SECRET}@h.example/o/r.git@main")),
        Just(format!("postgresql://u:{SECRET}@h/d")),
        Just(format!("https://u:{SECRET}/x@h.example/a")),
        Just(format!("https://u:x/{SECRET}@h.example/a")),
        Just(format!("git+https://u:x#{SECRET}@h.example/o/r")),
        Just(format!("postgresql://u:x?{SECRET}@h/d")),
        Just(format!("u:x/{SECRET}@h.example/a")),
        Just(format!("u:{SECRET}#x@h.example/a")),
        Just(format!("github:{SECRET}/x@owner/name")),
        Just(format!("https://h.example/a?key={SECRET}")),
        Just(format!("https://h.example/a.tgz#{SECRET}")),
        Just(format!("u:{SECRET}@h.example/a")),
        Just(format!("github:{SECRET}@owner/name")),
        Just(format!("@scope/name?{SECRET}")),
        Just(format!("/srv/a.js?key={SECRET}")),
        Just(format!("name @ https://{SECRET}@h.example/a")),
        Just(format!("--unknown={SECRET}")),
        Just(format!("-Zunknown={SECRET}")),
    ]
}

/// An option with the secret as its value, which the syntax does not mark as naming what is run.
fn valued(syntax: Syntax) -> impl Strategy<Value = Vec<String>> {
    let values = options(syntax.values);
    let longs: Vec<&str> = values.iter().copied().filter(|o| o.starts_with("--")).collect();
    let secret = prop_oneof![
        Just(SECRET.to_owned()),
        Just(format!("@s/{SECRET}")),
        Just(format!("/srv/{SECRET}.js")),
        hiding()
    ]
    .prop_filter("a value", |word| !word.starts_with('-'));
    let unknown = prop_oneof![Just("--unknown"), Just("-Z")];
    let known = if values.is_empty() { Just("--unknown").boxed() } else { select(values).boxed() };
    let attached = if longs.is_empty() { Just("--unknown").boxed() } else { select(longs).boxed() };
    prop_oneof![
        (known, secret.clone()).prop_map(|(option, secret)| vec![option.to_owned(), secret]),
        (attached, secret.clone()).prop_map(|(option, secret)| vec![format!("{option}={secret}")]),
        (unknown, secret).prop_map(|(option, secret)| vec![option.to_owned(), secret]),
    ]
}

fn harmless(syntax: Syntax) -> impl Strategy<Value = Vec<String>> {
    let mut flags = options(syntax.flags);
    flags.push("--verbose");
    let words = [
        "a",
        "b-c",
        "@s/p@1",
        "/srv/a.js",
        "server.py",
        "https://h.example/x",
        "--",
        "image:1",
        "-x",
    ];
    prop_oneof![
        select(flags).prop_map(|flag| vec![flag.to_owned()]),
        select(words.to_vec()).prop_map(|word| vec![word.to_owned()]),
    ]
}

fn command_line() -> impl Strategy<Value = String> {
    select(programs()).prop_flat_map(|(program, syntax)| {
        let part =
            prop_oneof![valued(syntax), hiding().prop_map(|word| vec![word]), harmless(syntax),];
        vec(part, 0..6).prop_map(move |parts| {
            let words: Vec<String> = parts.into_iter().flatten().collect();
            if words.is_empty() {
                program.clone()
            } else {
                format!("{program}|{}", words.join("|"))
            }
        })
    })
}

/// A program, some of its options with harmless values, what it runs, and secrets behind that.
fn command_line_with_secrets_behind() -> impl Strategy<Value = String> {
    let name = select(vec!["a", "@s/p@1", "/srv/a.js", "server.py", "https://h.example/x", "o/i"]);
    select(programs()).prop_flat_map(move |(program, syntax)| {
        let mut values = options(syntax.values);
        values.push("--unknown=1");
        let before = vec(select(values).prop_map(|option| format!("{option}|v|")), 0..30);
        let behind = vec(select(vec![BEHIND, "-p zqsecret9", "--user|zqsecret9", "-x"]), 1..5);
        (before, name.clone(), behind).prop_map(move |(before, name, behind)| {
            format!("{program}|{}{name}|{BEHIND}|{}", before.concat(), behind.join("|"))
        })
    })
}

/// A secret that is no plain word, so that it is in no name of a program.
const BEHIND: &str = "zqsecret9";

fn identity(words: &str) -> Option<String> {
    match start(None, words, Some("/srv")) {
        Start::Server(named) => Some(named.identity),
        Start::Shell | Start::Wrapper => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, max_shrink_iters: 2048, ..ProptestConfig::default() })]

    #[test]
    fn no_identity_has_a_secret(words in command_line()) {
        if let Some(identity) = identity(&words) {
            prop_assert!(!identity.contains(SECRET), "{words}: {identity}");
        }
    }

    #[test]
    fn no_secret_behind_the_name_is_kept(words in command_line_with_secrets_behind()) {
        let whole = CommandLine { argv: joined(&words), exe: None, cwd: Some(b"/srv".to_vec()) };
        let named = identity(&words).unwrap_or_default();
        // The program may also run what comes last.
        prop_assume!(!named.contains(BEHIND));
        let reduced = GRAMMAR.reduced(&whole);
        let kept = String::from_utf8_lossy(&reduced.argv);
        prop_assert!(!kept.contains(BEHIND), "{words}: {kept}");
        let names = argv::split(&whole.argv).iter().position(|word| *word == BEHIND);
        if names.is_some_and(|names| names <= 64) {
            prop_assert_eq!(GRAMMAR.identify(&reduced), GRAMMAR.identify(&whole), "{}", words);
        }
    }

    /// npm writes the same command line into its title, in one word.
    #[test]
    fn no_title_has_a_secret(words in vec(hiding(), 0..4)) {
        let title = ["npm exec", "a"].into_iter().chain(words.iter().map(String::as_str));
        let title = title.collect::<Vec<_>>().join(" ");
        prop_assert_eq!(identity(&title), Some("a".to_owned()));
    }

    #[test]
    fn no_bytes_break_the_grammar(
        exe in proptest::option::of(vec(any::<u8>(), 0..64)),
        argv in vec(any::<u8>(), 0..1024),
        cwd in proptest::option::of(vec(any::<u8>(), 0..64)),
    ) {
        let start = GRAMMAR.identify(&CommandLine { argv, exe, cwd });
        if let Start::Server(named) = start {
            prop_assert!(named.identity.len() <= 214);
            prop_assert!(!named.identity.trim().is_empty());
            prop_assert!(!named.identity.chars().any(char::is_control));
        }
    }
}

/// An option that names what is run is the only one whose value is in an identity.
#[test]
fn only_marked_options_name_what_is_run() {
    for (program, syntax) in programs() {
        for option in options(syntax.values) {
            let found = identity(&format!("{program}|{option}|{SECRET}|{SECRET}-x"));
            let found = found.unwrap_or_default().replace(&format!("{SECRET}-x"), "");
            assert!(!found.contains(SECRET), "{program} {option}: {found}");
        }
    }
}
