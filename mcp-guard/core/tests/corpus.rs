//! The recorded traces, and how the default policy judges each.
//!
//! They were recorded on real machines: gateways that leak, servers that crash, and innocent work. The policy
//! must act on no innocent trace, and must notice every leak.

use std::{collections::BTreeMap, fs, path::PathBuf};

use mcp_guard_core::{
    policy::{Policy, Response},
    replay::{ReplayReport, replay},
};

struct Trace {
    kind: String,
    header: serde_json::Value,
    report: ReplayReport,
}

fn corpus() -> BTreeMap<String, Trace> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let files = fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("entry").path());
    files
        .map(|path| {
            let text = fs::read_to_string(&path).expect("readable");
            let header: serde_json::Value =
                serde_json::from_str(text.lines().next().expect("header")).expect("JSON");
            let report = replay(&text, policy(&header)).expect("well-formed");
            let name = path.file_stem().expect("name").to_string_lossy().into_owned();
            (
                name,
                Trace { kind: header["kind"].as_str().expect("kind").to_owned(), header, report },
            )
        })
        .collect()
}

/// The policy that a trace was recorded with: `record` was used on leaks with a look each 5 s.
fn policy(header: &serde_json::Value) -> Policy {
    match header["totals"] == true && header["kind"] == "leak" {
        true => Policy::parse("[evidence]\nevery = \"5s\"").expect("valid"),
        false => Policy::default(),
    }
}

/// Name, starts per identity, live processes at the end, detectors that warn, detectors that act.
type Row = (&'static str, &'static [(&'static str, u64)], usize, &'static str, &'static str);

const TABLE: [Row; 32] = [
    ("entrypoint-sh", &[], 0, "", ""),
    ("figma-npx", &[("figma-mcp", 1)], 3, "", ""),
    ("figma-npx-bbsh", &[("figma-mcp", 1)], 2, "", ""),
    (
        "idestart1",
        &[
            ("@21st-dev/magic", 2),
            ("@modelcontextprotocol/server-everything", 1),
            ("@modelcontextprotocol/server-filesystem", 1),
            ("figma-mcp", 1),
        ],
        15,
        "",
        "",
    ),
    ("jest-30-w6", &[], 0, "", ""),
    ("make-j4-gcc", &[], 0, "", ""),
    ("mcpproxy", &[("figma-mcp", 1), ("mcp-proxy", 1)], 4, "", ""),
    ("node-test-40", &[], 0, "", ""),
    ("npm-install-noscripts", &[], 0, "", ""),
    ("npm-install-scripts", &[], 0, "", ""),
    ("sh-true-loop", &[], 0, "", ""),
    ("storm-node-crash", &[("@modelcontextprotocol/server-filesystem", 24)], 0, "B", ""),
    ("storm-npx-crash", &[("@modelcontextprotocol/server-filesystem", 8)], 0, "", ""),
    ("supergateway3-stateful-vanish", &[("figma-mcp", 8), ("supergateway", 1)], 33, "D", ""),
    ("supergateway3-stateless-slow", &[("figma-mcp", 24), ("supergateway", 1)], 97, "BD", "BD"),
    ("supergateway4-stateless", &[("figma-mcp", 18), ("supergateway", 1)], 1, "B", ""),
    ("uvx-warm", &[("mcp-server-time", 1)], 2, "", ""),
    ("configure", &[("collect2", 1), ("gcc", 1)], 4, "", ""),
    ("git", &[("git commit", 1), ("git maintenance run", 1)], 3, "", ""),
    ("jest-workers", &[("jest", 1), ("jest-worker", 4)], 8, "", ""),
    (
        "live-contextforge-translate",
        &[("@modelcontextprotocol/server-everything", 29), ("mcpgateway.translate", 1)],
        17,
        "BD",
        "B",
    ),
    (
        "live-streamablehttp-proxy",
        &[("@modelcontextprotocol/server-everything", 14), ("mcp-streamablehttp-proxy", 1)],
        15,
        "DD",
        "D",
    ),
    (
        "live-supergateway3-stateful",
        &[("@modelcontextprotocol/server-everything", 14), ("supergateway", 1)],
        57,
        "D",
        "D",
    ),
    (
        "live-supergateway3-stateless",
        &[("@modelcontextprotocol/server-everything", 14), ("supergateway", 1)],
        57,
        "D",
        "D",
    ),
    (
        "live-supergateway4-stateful",
        &[("@modelcontextprotocol/server-everything", 14), ("supergateway4", 1)],
        57,
        "D",
        "D",
    ),
    ("make-j8", &[("cc1", 120), ("gcc", 120)], 12, "", ""),
    ("node-cluster", &[("/tmp/mcp-guard-work/node-cluster/a.js", 1)], 10, "", ""),
    ("npm-install-native", &[("npm install", 1)], 2, "", ""),
    ("pip-install", &[("pip", 1)], 2, "", ""),
    ("pytest-xdist", &[("pytest", 1)], 4, "", ""),
    ("sessions-that-end", &[("mcp-server-filesystem", 24), ("sleep", 1)], 2, "", ""),
    ("tsc-webpack", &[("npm run build", 1)], 4, "", ""),
];

#[test]
fn every_trace_is_judged_as_the_table_says() {
    let corpus = corpus();
    assert_eq!(corpus.len(), TABLE.len(), "each trace has a row in the table");
    let mut wrong = Vec::new();
    for (name, starts, live, warned, acted) in TABLE {
        let report = &corpus[name].report;
        let counted: Vec<_> =
            report.identities.iter().map(|(name, one)| (name.as_str(), one.starts)).collect();
        let letters = |detectors: Vec<_>| -> String {
            let json = serde_json::to_value(detectors).expect("JSON");
            json.as_array().expect("list").iter().filter_map(|one| one.as_str()).collect()
        };
        let [warnings, actions] = [
            letters(report.warnings.iter().map(|one| one.detector).collect()),
            letters(report.actions.iter().map(|one| one.detector).collect()),
        ];
        let found = (&counted[..], report.live_at_end, warnings.as_str(), actions.as_str());
        if found != (starts, live, warned, acted) {
            wrong.push(format!("{name}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn counts_match_those_of_the_recorder() {
    for (name, Trace { header, report, .. }) in corpus() {
        // `mcp-guard record` counts nothing.
        if header["totals"] == true {
            continue;
        }
        let recorded = |key: &str| header[key].as_u64().expect("number");
        assert_eq!(report.events, recorded("events"), "{name}");
        assert_eq!(report.processes, recorded("procs"), "{name}");
        assert_eq!(report.execs, recorded("execs"), "{name}");
    }
}

#[test]
fn leaks_are_noticed_and_innocent_work_is_left_alone() {
    let corpus = corpus();
    for (name, Trace { kind, report, .. }) in &corpus {
        let survivors = report.identities.values().map(|one| one.live_at_end).max().unwrap_or(0);
        match kind.as_str() {
            "leak" => {
                assert!(!report.warnings.is_empty() || !report.actions.is_empty(), "{name}");
                assert!(survivors < 10 || !report.actions.is_empty(), "{name}");
            }
            "innocent" | "crash-loop" => {
                assert_eq!((&report.actions[..], &report.reaps[..]), (&[][..], &[][..]), "{name}");
            }
            other => panic!("{name}: unknown kind {other}"),
        }
    }
    let innocent_warned = corpus
        .values()
        .filter(|trace| trace.kind == "innocent" && !trace.report.warnings.is_empty())
        .count();
    assert!(innocent_warned <= 1, "{innocent_warned} innocent traces are warned about");
}

#[test]
fn a_policy_sets_ages_thresholds_and_the_response() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/supergateway3-stateful-vanish.jsonl");
    let trace = fs::read_to_string(path).expect("readable");
    let policy = "[detect.duplicates]\nwarn = 4\nact = 8\nact_age = \"5s\"\nresponse = \"kill\"";
    let kill = format!("{policy}\n[[guard]]\nname = \"*\"\nhighest = \"kill\"");
    for (policy, response) in [(policy, Response::Freeze), (kill.as_str(), Response::Kill)] {
        let policy = Policy::parse(policy).expect("valid");
        let report = replay(&trace, policy).expect("well-formed");
        let [action] = &report.actions[..] else { panic!("{:?}", report.actions) };
        assert_eq!(action.response, response, "capped by the guard's `highest` response");
        assert_eq!(
            action.t_ns,
            report.warnings.first().map_or(0, |one| one.t_ns),
            "warned and acted at the same time"
        );
    }
}

#[test]
fn times_out_of_order_are_accepted_and_absurd_ones_are_errors() {
    let header = "{\"format\":\"spawn-trace/1\"}\n";
    let fork = |t: u64, c: u32| format!("{{\"t\":{t},\"e\":\"fork\",\"p\":0,\"c\":{c}}}\n");
    let swapped = format!("{header}{}{}", fork(2_000, 1), fork(1_000, 2));
    let report = replay(&swapped, Policy::default()).expect("a little out of order");
    assert_eq!((report.processes, report.live_at_end), (2, 2));
    let absurd = format!("{header}{}{}", fork(0, 1), fork(u64::MAX, 2));
    assert_eq!(replay(&absurd, Policy::default()).expect_err("endless").line, 3);
}
