//! Command lines of launchers, each with its package, or none.

use proptest::prelude::*;

use super::*;

/// Returns the package if the command line is a launcher's.
fn package(words: &str) -> Option<String> {
    match start(None, words, None) {
        Start::Server(Named { identity, naming: Naming::Package, .. }) => Some(identity),
        Start::Server(_) | Start::Shell | Start::Wrapper => None,
    }
}

/// Words are separated by `|`, because some hold spaces.
const CASES: &[(&str, Option<&str>)] = &[
    // As the caller typed them.
    ("npm|exec|figma-mcp", Some("figma-mcp")),
    (
        "npm|exec|--yes|@modelcontextprotocol/server-everything",
        Some("@modelcontextprotocol/server-everything"),
    ),
    (
        "npm|exec|--yes|--prefer-offline|@mcp/server-filesystem|/nonexistent",
        Some("@mcp/server-filesystem"),
    ),
    ("npm|x|figma-mcp", Some("figma-mcp")),
    ("npx|-y|figma-mcp", Some("figma-mcp")),
    ("npx|-y|@21st-dev/magic@latest|--port|3", Some("@21st-dev/magic")),
    ("/usr/bin/npx|--yes|--|figma-mcp@1.2.3", Some("figma-mcp")),
    ("npm|--prefix|proj|exec|figma-mcp", Some("figma-mcp")),
    ("npm|--silent|exec|--|figma-mcp|--|--package=x", Some("figma-mcp")),
    ("bunx|figma-mcp", Some("figma-mcp")),
    ("bun|x|--bun|figma-mcp@2", Some("figma-mcp")),
    ("pnpm|dlx|figma-mcp", Some("figma-mcp")),
    ("pnpm|--package=a@1|dlx|b", Some("a")),
    ("pnpx|figma-mcp", Some("figma-mcp")),
    ("yarn|dlx|-q|figma-mcp", Some("figma-mcp")),
    ("yarn|dlx|-p|@s/p@1|run-it", Some("@s/p")),
    ("uvx|mcp-server-time", Some("mcp-server-time")),
    ("uvx|--python|3.12|mcp-server-time==1.0|--utc", Some("mcp-server-time")),
    ("uvx|-p|3.12|mcp-server-time", Some("mcp-server-time")),
    ("uvx|--from|mcp-server[cli]>=2|serve", Some("mcp-server")),
    ("uv|tool|run|mcp-server-time@latest", Some("mcp-server-time")),
    ("uv|--offline|tool|run|--with|x|p==1", Some("p")),
    ("/srv/uv/bin/uv|tool|uvx|mcp-server-time", Some("mcp-server-time")),
    ("pipx|run|mcp-server-git", Some("mcp-server-git")),
    ("pipx|run|--spec|mcp-server-git==1|serve", Some("mcp-server-git")),
    // The package option takes precedence over the command.
    ("npm|exec|--package=@s/p@1|--|serve", Some("@s/p")),
    ("npm|exec|--yes|-p|@s/p|serve", Some("@s/p")),
    ("npm|exec|serve|--package=@s/p", Some("@s/p")),
    ("npx|--package|@s/p@2|serve", Some("@s/p")),
    ("npx|-p|a|-p|b|serve", Some("a")),
    ("npm|--package=@s/p|exec|serve", Some("@s/p")),
    // Words after the command belong to the server.
    ("npx|serve|--package|other", Some("serve")),
    ("npm|exec|serve|-p|3000", Some("serve")),
    ("uvx|serve|--from|other", Some("serve")),
    // As the kernel rewrites them for a `#!` script.
    ("/usr/bin/env|node|/usr/bin/npm|exec|--yes|figma-mcp", Some("figma-mcp")),
    ("node|/usr/bin/npm|exec|--yes|figma-mcp", Some("figma-mcp")),
    ("node|/usr/bin/npx|-y|figma-mcp", Some("figma-mcp")),
    (
        "/usr/bin/node|--max-old-space-size=64|/usr/lib/node_modules/npm/bin/npx-cli.js|-y|a",
        Some("a"),
    ),
    ("node|-r|./hook.js|/usr/bin/npx|a", Some("a")),
    ("/bin/sh|/usr/local/bin/npm|exec|a", Some("a")),
    ("python3|/usr/bin/pipx|run|a", Some("a")),
    ("python3.11|-m|pipx|run|a", Some("a")),
    ("node|/opt/corepack/dist/pnpm.js|dlx|a", Some("a")),
    ("env|FOO=1|npx|a", Some("a")),
    // As ps shows it once npm has renamed itself.
    ("npm exec @21st-dev/magic@latest", Some("@21st-dev/magic")),
    ("npm exec @s/server-filesystem /srv/mcp||||", Some("@s/server-filesystem")),
    // Specifications that are not registry names stay as written, without a fragment.
    ("npx|git+https://example.com/a/b.git#v1", Some("git+https://example.com/a/b.git")),
    ("npx|github:owner/repo", Some("github:owner/repo")),
    ("npx|owner/repo", Some("owner/repo")),
    ("npx|./server@1", Some("./server@1")),
    ("npx|/opt/server.tgz", Some("/opt/server.tgz")),
    ("uvx|--from|git+https://example.com/a@main|serve", Some("git+https://example.com/a@main")),
    // Not launchers.
    ("npm|install|express", None),
    ("npm|run|exec", None),
    ("npm|exec", None),
    ("npx", None),
    ("npx|--version", None),
    ("npm|--help|exec|a", None),
    ("uv|run|server.py", None),
    ("uv|tool|install|a", None),
    ("yarn|add|dlx", None),
    ("node|server.js", None),
    ("node|-e|require('npx')|npx|a", None),
    ("", None),
    // A launcher further right in another program's argv.
    ("sh|-c|npx -y figma-mcp", None),
    ("/bin/sh|-c|npm exec figma-mcp", None),
    ("node|/srv/mcp-proxy.mjs|--port|8871|--|npx|-y|figma-mcp", None),
    ("node|/srv/supergateway/dist/index.js|--stdio|npx -y figma-mcp", None),
    ("docker|exec|c|npx|figma-mcp", None),
    ("timeout|60|npx|figma-mcp", None),
    ("node|/srv/respawn.mjs|15|1|npm|exec|--yes|a", None),
    ("grep|npm exec figma-mcp|log", None),
];

#[test]
fn launchers_and_their_packages() {
    for (words, expected) in CASES {
        assert_eq!(package(words).as_deref(), *expected, "{words}");
    }
}

/// A launcher that the kernel side does not know would be handled a tick later.
#[test]
fn the_kernel_side_knows_each_built_in_launcher() {
    for program in GRAMMAR.launchers() {
        assert!(mcp_guard_common::LAUNCHERS.contains(&program), "{program}");
    }
}

#[test]
fn a_policy_can_add_a_launcher() {
    let deno = Launcher {
        program: "deno".into(),
        subcommand: vec!["run".into()],
        package_options: vec![],
        value_options: vec!["--config".into()],
        flag_options: None,
        information_options: vec![],
    };
    let grammar = Grammar::extended_by(&[deno]);
    let identify = |words: &str| plain(grammar.identify(&joined(words).into()));
    let found = identify("deno|run|--config|x|npm:figma-mcp");
    assert_eq!(found, server("npm:figma-mcp", Naming::Package));
    assert_eq!(identify("npx|a"), server("a", Naming::Package));
}

#[test]
fn a_server_without_its_launcher_is_named_by_its_file_in_the_cache() {
    let leaf = "node|/root/.npm/_npx/0123456789abcdef/node_modules/.bin/magic";
    assert_eq!(start(None, leaf, None), server("magic", Naming::Cached));
    let installed = "node|/srv/app/node_modules/.bin/magic";
    assert_eq!(start(None, installed, None), server("magic", Naming::Script));
    let argument = "cat|a|/_npx/x/node_modules/.bin/magic";
    assert_eq!(start(None, argument, None), server("cat a", Naming::Program));
    let nameless = "node|/a/_npx/1/node_modules/.bin/?a";
    assert_ne!(start(None, nameless, None), server("", Naming::Cached));
}

#[test]
fn packages_are_bounded_and_printable() {
    let long = format!("npx|./{}", "a".repeat(5000));
    assert_eq!(package(&long).map(|identity| identity.len()), Some(214));
    assert_eq!(package("npx|./a\x1b[2J").as_deref(), Some("./a\\u{1b}[2J"));
}

#[test]
fn a_package_without_a_name_is_no_identity() {
    for words in ["npx|==1", "npx|?a=b", "uvx|--from=|mcp", "uvx|--from||mcp", "npx|@"] {
        assert_ne!(package(words).as_deref(), Some(""), "{words}");
    }
}

proptest! {
    /// However `#!` rewrites the command line, the identity is the one that the caller typed.
    #[test]
    fn the_interpreter_form_means_the_same(name in "[a-z][a-z0-9-]{0,20}", version in "[0-9.]{1,5}") {
        let typed = package(&format!("npx|-y|{name}@{version}"));
        let kernel = package(&format!("/usr/bin/env|node|/usr/bin/npx|-y|{name}@{version}"));
        // Some names look like a token.
        prop_assert_eq!(typed.as_deref(), Some(&*crate::redact::name(&name)));
        prop_assert_eq!(typed, kernel);
    }
}
