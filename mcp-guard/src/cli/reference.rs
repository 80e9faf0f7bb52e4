//! Keeps `docs/commands.md` equal to the help of the command line itself.

use std::{fmt::Write as _, path::Path};

use clap::{Command, CommandFactory as _};

use super::Cli;

/// Columns of the help text.
const WIDTH: usize = 100;
/// The options of every verb are shown once.
const EVERYWHERE: &str = "Options of every command";

fn reference(head: &str) -> String {
    let mut cli = Cli::command().term_width(WIDTH).disable_help_subcommand(true);
    cli.build();
    let mut text = head.to_owned();
    for verb in cli.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        match verb.has_subcommands() {
            true => verb.get_subcommands().for_each(|below| section(&mut text, below)),
            false => section(&mut text, verb),
        }
    }
    let _ = write!(text, "\n## {EVERYWHERE}\n\n");
    let host = cli.clone().disable_help_flag(true).disable_version_flag(true);
    let host = host.help_template("{options}").mut_subcommands(|verb| verb.hide(true));
    fence(&mut text, &help(host));
    text
}

fn section(text: &mut String, verb: &Command) {
    let _ = write!(text, "\n## {}\n\n", verb.get_bin_name().unwrap_or_else(|| verb.get_name()));
    fence(text, &help(hide_global(verb.clone())));
}

fn hide_global(verb: Command) -> Command {
    let shown = |id: &str| id == "help" || id == "version";
    verb.mut_args(move |arg| {
        let hidden = arg.is_global_set() || shown(arg.get_id().as_str());
        arg.hide(hidden)
    })
}

fn help(mut command: Command) -> String {
    command.render_long_help().to_string()
}

fn fence(text: &mut String, help: &str) {
    let lines: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    let _ = writeln!(text, "```text\n{}\n```", lines.join("\n"));
}

#[test]
fn the_command_reference_shows_the_help_of_every_verb() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let found = std::fs::read_to_string(&file).unwrap();
    let (head, _) = found.split_once("\n## mcp-guard ").unwrap_or((&found, ""));
    let expected = reference(&format!("{}\n", head.trim_end()));
    if std::env::var_os("MCP_GUARD_BLESS").is_some() {
        std::fs::write(&file, expected).unwrap();
    } else {
        assert_eq!(found, expected, "docs/commands.md is out of date: run `cargo xtask docs`");
    }
}
