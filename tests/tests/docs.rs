//! The documents show the output of the present build: a test runs each command in a `console` block and
//! compares.
//!
//! These need no rights and no engine. With `MCP_GUARD_BLESS` set the blocks are rewritten instead.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mcp_guard_tests::workload;
use serde_json::Value;

const FENCE: &str = "```console";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md and all of docs/.
fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let is_text = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "md");
    let mut all: Vec<PathBuf> = docs.filter(is_text).collect();
    all.push(root().join("README.md"));
    all.sort();
    all
}

/// Returns the document with the current output of its commands, and the number of commands.
fn regenerated(text: &str) -> (String, usize) {
    let (mut made, mut commands) = (String::new(), 0);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        made.push_str(line);
        made.push('\n');
        if line != FENCE {
            continue;
        }
        for line in lines.by_ref().take_while(|line| *line != "```") {
            if let Some(command) = line.strip_prefix("$ ") {
                made.push_str(&format!("{line}\n{}", output(command)));
                commands += 1;
            }
        }
        made.push_str("```\n");
    }
    (made, commands)
}

/// Returns what a person sees who types this in the root of the repository.
fn output(command: &str) -> String {
    let program = workload("mcp-guard").unwrap();
    let path =
        format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{command} 2>&1")]).current_dir(root()).env("PATH", path);
    let output = shell.env("COLUMNS", "100").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.is_empty(), "{command}: it says nothing");
    let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

#[test]
fn every_command_of_the_documents_prints_what_they_show() {
    let (mut all, mut old) = (0, Vec::new());
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        let (made, commands) = regenerated(&text);
        all += commands;
        if made != text && std::env::var_os("MCP_GUARD_BLESS").is_some() {
            fs::write(&file, made).unwrap();
        } else if made != text {
            let name = file.file_name().unwrap().display();
            let differs = made.lines().zip(text.lines()).find(|(made, shown)| made != shown);
            old.push(format!("{name}: it prints, and the document shows: {differs:?}"));
        }
    }
    assert!(old.is_empty(), "out of date, run `cargo xtask docs`:\n{}", old.join("\n"));
    assert!(all >= 3, "only {all} commands: is the fence still {FENCE}?");
}

/// The first line of the block in docs/policy.md that shows the error of a bad policy.
const BAD_POLICY: &str = "```text\nmcp-guard: policy /etc/mcp-guard/policy.toml: ";

#[test]
fn the_error_of_a_bad_policy_is_the_one_that_is_shown() {
    let text = fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let (_, block) = text.split_once(BAD_POLICY).expect("the block with the error");
    let (shown, _) = block.split_once("```").unwrap();
    let policy = tempfile::NamedTempFile::new().unwrap();
    fs::write(&policy, "mode = \"observe\"\n[[guard]]\nnmae = \"x\"\n").unwrap();
    let path = policy.path().display().to_string();
    let printed = output(&format!("mcp-guard run --policy {path}"));
    assert_eq!(printed.trim_end(), format!("mcp-guard: policy {path}: {}", shown.trim_end()));
}

#[test]
fn the_facts_of_a_compose_file_are_those_of_the_saved_example() {
    let text = fs::read_to_string(root().join("docs/diagnose-json.md")).unwrap();
    let (_, block) = text.split_once("```json\n").expect("the block with the facts");
    let shown: Value = serde_json::from_str(block.split_once("```").unwrap().0).unwrap();
    let saved = fs::read_to_string(root().join("docs/example-facts.json")).unwrap();
    let mut saved: Value = serde_json::from_str(&saved).unwrap();
    let compose = saved["compose"].as_object_mut().unwrap();
    // The document says why it leaves this out.
    compose.remove("says").unwrap();
    assert_eq!(shown.as_object().unwrap(), compose);
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (_, rest) in text.match_indices("](").map(|(at, found)| text.split_at(at + found.len()))
        {
            let Some((target, _)) = rest.split_once(')') else { continue };
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if path.contains("://") {
                continue;
            }
            let there = if path.is_empty() { file.clone() } else { file.with_file_name(path) };
            let there = if path.starts_with("docs/") { root().join(path) } else { there };
            let has_anchor = anchor.is_empty() || {
                let text = fs::read_to_string(&there).unwrap_or_default();
                text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor)
            };
            if !there.exists() || !has_anchor {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
