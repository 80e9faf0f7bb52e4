//! The queries of docs/audit-log.md print what that page shows, from the log of a real leak
//! (docs/example-audit.jsonl). They need jq.
//!
//! With `MCP_GUARD_BLESS` set the outputs are rewritten instead.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{env, fs, path::Path, process::Command};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PAGE: &str = "docs/audit-log.md";
/// Stands for the command of the page that prints the log, and for the time of a query.
const DEFINITIONS: &str = "audit() { cat docs/example-audit.jsonl; }; date() { echo 2000-01-01; }";

/// Returns the page with the present output of each query that it shows an output of, and the number
/// of these queries.
fn regenerated(page: &str) -> (String, usize) {
    let (mut made, mut queries, mut query) = (String::new(), 0, None::<String>);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        made.push_str(&format!("{line}\n"));
        match (line, query.take()) {
            ("", before) => query = before,
            ("```text", Some(asked)) => {
                lines.by_ref().find(|line| *line == "```").unwrap();
                made.push_str(&format!("{}```\n", output(&asked)));
                queries += 1;
            }
            ("```", _) => {
                let block = lines.by_ref().take_while(|line| *line != "```");
                let block: String = block.map(|line| format!("{line}\n")).collect();
                made.push_str(&format!("{block}```\n"));
                query = block.starts_with("audit | ").then_some(block);
            }
            _ => {}
        }
    }
    (made, queries)
}

fn output(query: &str) -> String {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{DEFINITIONS}\n{query}")]).current_dir(ROOT);
    let done = shell.output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{query}: {done:?}");
    // The last column may be empty, and the page has no spaces at the end of a line.
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn every_query_of_the_audit_log_prints_what_is_shown() {
    let file = Path::new(ROOT).join(PAGE);
    let page = fs::read_to_string(&file).unwrap();
    let (made, queries) = regenerated(&page);
    assert_eq!(queries, 5, "the page has another number of queries with an output");
    if env::var_os("MCP_GUARD_BLESS").is_some() {
        fs::write(&file, made).unwrap();
    } else {
        let differs = made.lines().zip(page.lines()).find(|(made, shown)| made != shown);
        assert_eq!(made, page, "it prints, and {PAGE} shows: {differs:?}");
    }
}
