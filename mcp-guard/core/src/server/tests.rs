pub(super) mod cases;
mod launchers;
mod secrets;

use std::sync::LazyLock;

use self::cases::{OTHERS, REPORTED};
use super::*;

pub(super) static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::default);

pub(super) fn joined(words: &str) -> Vec<u8> {
    words.split('|').flat_map(|word| word.bytes().chain([0])).collect()
}

fn start(exe: Option<&str>, words: &str, cwd: Option<&str>) -> Start {
    let [exe, cwd] = [exe, cwd].map(|text| text.map(|text| text.as_bytes().to_vec()));
    plain(GRAMMAR.identify(&CommandLine { argv: joined(words), exe, cwd }))
}

/// Leaves out whether the program is a launcher, and whether a path is relative.
fn plain(mut start: Start) -> Start {
    if let Start::Server(named) = &mut start {
        (named.launches, named.is_relative) = (false, false);
    }
    start
}

fn server(identity: &str, naming: Naming) -> Start {
    let (launches, is_relative) = (false, false);
    Start::Server(Named { identity: identity.to_owned(), naming, launches, is_relative })
}

#[test]
fn command_lines_and_their_servers() {
    let rows = REPORTED.iter().chain(OTHERS);
    let found = rows.map(|(words, ..)| (*words, start(None, words, None)));
    let rows = REPORTED.iter().chain(OTHERS);
    let wrong: Vec<_> = found
        .zip(rows)
        .filter(|((_, found), (_, identity, naming))| *found != server(identity, *naming))
        .map(|((words, found), _)| format!("{words}: {found:?}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn shells_and_wrappers_are_no_servers() {
    let cases = [
        ("sh|-c|node /srv/a.js", Start::Shell),
        ("-bash", Start::Shell),
        ("bash|/srv/run.sh", Start::Shell),
        ("tini|--|npx|a", Start::Wrapper),
        ("timeout|60|npx|a", Start::Wrapper),
        ("doppler|run|--|npx|a", Start::Wrapper),
        ("env|-Z|x|npx|a", Start::Wrapper),
    ];
    for (words, expected) in cases {
        assert_eq!(start(None, words, None), expected, "{words}");
    }
}

#[test]
fn env_becomes_its_command() {
    for words in ["env|A=b|B=c|npx|a", "env|-S|npx -y a", "env|-Snpx -y|a", "env|-i|-u|X|npx|a"] {
        assert_eq!(start(None, words, None), server("a", Naming::Package), "{words}");
    }
}

#[test]
fn a_relative_path_is_below_the_working_directory() {
    let cases = [
        ("node|dist/../index.js", "/srv/x/index.js"),
        ("node|/a/index.js", "/a/index.js"),
        ("node|.", "/srv/x"),
        ("npx|tsx|src/a.ts", "tsx /srv/x/src/a.ts"),
        ("uv|run|server.py", "/srv/x/server.py"),
        // The directory is named, so the file stays as it is written.
        ("uv|run|--directory|sub|server.py", "/srv/x/sub server.py"),
        ("python|-m|server", "server"),
        ("docker|run|i", "i"),
    ];
    for (words, identity) in cases {
        let Start::Server(named) = start(None, words, Some("/srv/x")) else { panic!("{words}") };
        assert_eq!(named.identity, identity, "{words}");
    }
}

/// The executable, the command line, and what is started.
#[test]
fn the_executable_decides_where_the_first_word_lies() {
    use Naming::{Package, Program, Script, Unclear};
    let cases = [
        // Lies.
        ("/srv/evil", "npx|-y|a", "evil", Program),
        ("/srv/evil", "node|/srv/a.js", "evil", Program),
        ("/srv/evil", "npm exec a", "evil exec a", Program),
        ("/usr/bin/node", "innocent|/srv/a.js", "/srv/a.js", Script),
        ("/usr/bin/node", "some title with words", "node", Unclear),
        ("/usr/bin/python3.11", "gunicorn: worker [app]", "python", Unclear),
        ("/usr/sbin/nginx", "nginx: master process /usr/sbin/nginx", "nginx", Program),
        ("/opt/chrome/chrome", "/proc/self/exe|--type=zygote", "chrome", Program),
        ("/memfd:evil (deleted)", "npx|-y|a", "evil", Program),
        // It names no file, so the command line is believed.
        ("/proc/self/exe", "npx|-y|a", "a", Package),
        ("/dev/fd/7", "npx|-y|a", "a", Package),
        ("/memfd:runc_cloned:/proc/self/exe (deleted)", "runc|init", "runc init", Program),
        ("/proc/self/exe", "/proc/self/exe|--type=zygote", "exe", Unclear),
        // The truth, by another name.
        ("/usr/bin/node", "npm exec a", "a", Package),
        ("/usr/bin/npx", "node|/usr/bin/npx|-y|a", "a", Package),
        ("/usr/bin/npx", "/usr/bin/env|node|/usr/bin/npx|-y|a", "a", Package),
        ("/usr/bin/node (deleted)", "node|/srv/a.js", "/srv/a.js", Script),
        ("/usr/bin/node", "nodejs|/srv/a.js", "/srv/a.js", Script),
        ("/usr/bin/python3.11", "/srv/venv/bin/python|-m|x", "x", Script),
        ("/home/u/.volta/bin/volta-shim", "npx|-y|a", "a", Package),
        ("/memfd:npx (deleted)", "npx|-y|a", "a", Package),
        ("/proc/7/root/usr/bin/node", "figma|/srv/a.js", "/srv/a.js", Script),
        ("/usr/bin/perl5.36.0", "perl|/srv/a.pl", "/srv/a.pl", Script),
        ("/usr/bin/php8.2", "php|/srv/a.php", "/srv/a.php", Script),
        ("/usr/local/bin/bun", "bunx|a", "a", Package),
        (
            "/home/u/.local/share/claude/versions/1.0.30",
            "claude|mcp|serve",
            "claude mcp serve",
            Program,
        ),
    ];
    for (exe, words, identity, naming) in cases {
        assert_eq!(start(Some(exe), words, None), server(identity, naming), "{exe}: {words}");
    }
    assert_eq!(start(Some("/usr/bin/bash"), "sh|-c|x", None), Start::Shell);
    for words in ["sh|-c|x", "npx|-y|a"] {
        assert_eq!(start(Some("/bin/busybox"), words, None), Start::Shell, "{words}");
    }
}

#[test]
fn a_relative_file_and_a_link_of_the_kernel_need_more_than_the_command_line() {
    let lacks = |exe: &str, words: &str, cwd: Option<&str>| {
        let [exe, cwd] = [Some(exe), cwd].map(|text| text.map(|text| text.as_bytes().to_vec()));
        GRAMMAR.lacks(&CommandLine { argv: joined(words), exe, cwd })
    };
    let cases = [
        ("/usr/bin/node", "node|dist/a.js", true),
        ("/usr/bin/node", "innocent|dist/a.js", true),
        ("/usr/bin/env", "env|node|a.js", true),
        ("/usr/bin/npx", "node|/usr/bin/npx|tsx|src/a.ts", true),
        ("/usr/bin/uv", "uv|run|--directory|sub|server.py", true),
        ("/usr/bin/node", "node|/srv/a.js", false),
        ("/usr/bin/npx", "node|/usr/bin/npx|-y|a", false),
        ("/usr/bin/python3", "python3|-m|server", false),
        ("/usr/bin/make", "make|serve", false),
        ("/usr/bin/gcc", "gcc|-c|a.c", false),
        ("/bin/sh", "sh|-c|node a.js", false),
        // The kernel says nothing of the executable.
        ("/proc/self/exe", "/proc/self/exe|--type=zygote", true),
        ("/proc/self/exe", "npx|-y|a", true),
        ("", "npx|-y|a", true),
        ("/proc/self/exe", "grep|x", false),
        ("/proc/self/exe", "sh|-c|x", false),
        ("", "", false),
    ];
    for (exe, words, expected) in cases {
        assert_eq!(lacks(exe, words, None), expected, "{exe}: {words}");
    }
    assert!(!lacks("/usr/bin/node", "node|dist/a.js", Some("/srv")));
}

#[test]
fn packages_are_firm() {
    use Naming::{Cached, Image, Package, Program, Script, Unclear};
    let firm = [Package, Cached, Image, Script, Program, Unclear].map(Naming::is_firm);
    assert_eq!(firm, [true, true, false, false, false, false]);
}

#[test]
fn long_identities_differ_and_are_bounded() {
    let [a, b] = ["a", "b"].map(|end| {
        let Start::Server(named) = start(None, &format!("node|/{}{end}", "x".repeat(400)), None)
        else {
            panic!("a server");
        };
        named.identity
    });
    assert_eq!((a.len(), b.len()), (214, 214));
    assert_ne!(a, b);
}

#[test]
fn names_of_python_packages_are_compared_as_pep_503_says() {
    for name in [
        "friendly-bard",
        "Friendly-Bard",
        "FRIENDLY-BARD",
        "friendly.bard",
        "friendly_bard",
        "friendly--bard",
        "FrIeNdLy-._.-bArD",
    ] {
        assert_eq!(clean::pep_503(name), "friendly-bard", "{name}");
    }
}

#[test]
fn a_launcher_of_the_policy_comes_first_and_may_know_its_flags() {
    let form = |flags: Option<&[&str]>| Launcher {
        program: "run-mcp".to_owned(),
        subcommand: vec![],
        package_options: vec![],
        value_options: vec!["--config".to_owned()],
        flag_options: flags.map(|flags| flags.iter().map(|flag| (*flag).to_owned()).collect()),
        information_options: vec![],
    };
    let identify = |launcher: Launcher, words: &str| {
        plain(Grammar::extended_by(&[launcher]).identify(&joined(words).into()))
    };
    // As it was before `flag_options`: any other option is a flag.
    assert_eq!(identify(form(None), "run-mcp|--new|a"), server("a", Naming::Package));
    assert_eq!(identify(form(None), "run-mcp|--config|c|a@1"), server("a", Naming::Package));
    assert_eq!(identify(form(Some(&["-q"])), "run-mcp|-q|a"), server("a", Naming::Package));
    assert_eq!(
        identify(form(Some(&["-q"])), "run-mcp|--new|a"),
        server("run-mcp", Naming::Unclear)
    );
}

#[test]
fn launchers_run_their_server_as_a_child() {
    let launches = |words: &str| match GRAMMAR.identify(&joined(words).into()) {
        Start::Server(named) => named.launches,
        Start::Shell | Start::Wrapper => panic!("{words} is a server"),
    };
    for words in [
        "npx|a",
        "/usr/bin/env|node|/usr/bin/npx|a",
        "uvx|a",
        "uv|run|server.py",
        "pnpm|exec|a",
        "npm|run|start",
        "make|serve",
        "tsx|a.ts",
        "node|/srv/node_modules/.bin/tsx|a.ts",
        "go|run|./cmd/a",
    ] {
        assert!(launches(words), "{words}");
    }
    for words in [
        "node|a.js",
        "python|-m|a",
        "docker|run|-i|a",
        "bun|a.ts",
        "/opt/a|serve",
        "ts-node|a.ts",
        "fastmcp|run|a.py",
        "mcp|run|a.py",
    ] {
        assert!(!launches(words), "{words}");
    }
}
