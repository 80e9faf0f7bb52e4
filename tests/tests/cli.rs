//! The command line: every bad input gets one clear sentence and an exit code.
//!
//! 0: done, nothing is wrong. 1: answered, something is wrong. 2: it could not be done. 64: bad command line.
//! 65: bad policy or input file. These tests need no privileges, and pass as root too.

#![allow(clippy::unwrap_used, reason = "a helper fails its test as the test's own body does")]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mcp_guard_core::replay::ReplayReport;
use mcp_guard_tests::{agent::command, workload};
use serde_json::Value;

/// `nobody` on every distribution.
const NOBODY: u32 = 65_534;

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs the program under test, with its own files and socket and without an engine.
    fn cli(&self, arguments: &[&str]) -> Output {
        command(self.0.path(), "/nonexistent").unwrap().args(arguments).output().unwrap()
    }

    /// Runs the program without root, even if root runs the test.
    fn cli_as_nobody(&self, arguments: &[&str]) -> Output {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.0.path(), open).unwrap();
        let program = self.0.path().join("mcp-guard");
        if !program.exists() {
            // `cp` makes the copy. If this process did, a child that another test forks meanwhile would
            // inherit the open file, and a program that is open for writing cannot be executed (ETXTBSY).
            let mut copy = Command::new("cp");
            copy.arg(workload("mcp-guard").unwrap()).arg(&program);
            assert!(copy.status().unwrap().success(), "{copy:?}");
        }
        let mut command = Command::new(&program);
        command.args(["--docker", "/nonexistent", "--run-dir"]).arg(self.0.path());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(arguments).current_dir("/").output().unwrap()
    }
}

/// Checks that the command failed with this code, and gave the reason on stderr only.
fn assert_fails(output: &Output, code: i32, why: &str) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(why), "{said}\nnot: {why}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a trace of `count` servers of one package, one every five seconds. Every second one ends after
/// half a second.
fn trace(count: u64) -> String {
    let mut lines = vec![r#"{"format":"spawn-trace/1","name":"made here"}"#.to_owned()];
    for n in 0..count {
        let (t, child) = (n * 5_000_000_000, 100 + n);
        lines.push(format!(r#"{{"t":{t},"e":"fork","p":1,"c":{child}}}"#));
        let argv = r#"["npx","-y","demo-mcp@1.2"]"#;
        lines.push(format!(
            r#"{{"t":{},"e":"exec","p":{child},"file":"npx","argv":{argv}}}"#,
            t + 1
        ));
        if n % 2 == 1 {
            lines.push(format!(r#"{{"t":{},"e":"exit","p":{child}}}"#, t + 500_000_000));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn every_command_has_its_exit_code() {
    let scene = Scene::new();
    let good = scene.file("good.jsonl", &trace(1));
    let bad = scene.file("bad.jsonl", "nonsense\n");
    let policy = scene.file("bad.toml", "nonsense = 1\n");
    let table: [(&[&str], i32); 23] = [
        (&["--help"], 0),
        (&["freeze", "--help"], 0),
        (&["--version"], 0),
        (&["replay", path(&good)], 0),
        (&["explain", "P001"], 0),
        (&["status"], 2),
        (&["diagnose", "no-such-container"], 2),
        (&["repair", "no-such-container", "--limit", "40"], 2),
        (&["freeze", "no-such-container"], 2),
        (&["kill", "docker:no-such-container"], 2),
        (&["thaw", "cgroup:/mcp-guard-test-none"], 2),
        (&["freeze", "--dry-run", "pid:4194304"], 2),
        (&[], 64),
        (&["no-such-verb"], 64),
        (&["status", "--no-such-option"], 64),
        (&["freeze"], 64),
        (&["repair"], 64),
        (&["repair", "web", "--limit", "many"], 64),
        (&["freeze", "../../etc"], 64),
        (&["replay", path(&bad)], 65),
        (&["replay", "/nonexistent"], 65),
        (&["replay", path(&good), "--policy", path(&policy)], 65),
        (&["run", "--policy", path(&policy)], 65),
    ];
    for (arguments, code) in table {
        let output = scene.cli(arguments);
        let (stdout, stderr) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(stdout.is_empty(), code != 0, "{arguments:?}: stdout has only the answer");
        assert_eq!(stderr.is_empty(), code == 0, "{arguments:?}: {stderr}");
    }
    // 1 is an answer that something is wrong: without root, an agent cannot run on this host.
    assert_eq!(scene.cli_as_nobody(&["doctor"]).status.code(), Some(1));
}

#[test]
fn a_bad_command_line_names_what_is_expected() {
    let scene = Scene::new();
    let table: [(&[&str], &str); 8] = [
        (&["frezee", "x"], "freeze"),
        (
            &["freeze", "a/b"],
            "give a container name, id or id prefix, docker:NAME, unit:NAME.service, cgroup:/path",
        ),
        (&["freeze", "pid:0"], "a process id greater than 0"),
        (&["kill", "cgroup:relative"], "an absolute path"),
        (&["kill", "cgroup:/a/../b"], "without \".\", \"..\""),
        (&["freeze", "x", "--for", "soon"], "--for"),
        (&["freeze", "x", "--for", "0s"], "--for must be between 1s and 1day"),
        (&["thaw", "x", "--owned"], "cannot be used with"),
    ];
    for (arguments, why) in table {
        assert_fails(&scene.cli(arguments), 64, why);
    }
}

#[test]
fn an_unknown_policy_key_is_shown_with_its_line() {
    let scene = Scene::new();
    let text = "mode = \"enforce\"\n[detect.duplicates]\nwran = 3\n";
    let policy = scene.file("policy.toml", text);
    let good = scene.file("good.jsonl", &trace(1));
    for verb in [&["run"][..], &["replay", path(&good)]] {
        let output = scene.cli(&[verb, &["--policy", path(&policy)]].concat());
        assert_fails(&output, 65, "unknown field `wran`");
        let said = String::from_utf8(output.stderr).unwrap();
        for expected in [path(&policy), "line 3", "wran = 3", "^^^^", "warn_age"] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
    }
}

#[test]
fn a_policy_that_contradicts_itself_is_refused() {
    let scene = Scene::new();
    let table = [
        ("[detect.duplicates]\nwarn = 0", "detect.duplicates.warn = 0"),
        ("[detect.duplicates]\nwarn = 9\nact = 3", "act is below warn"),
        ("[detect.burst]\nact_for = \"0s\"", "detect.burst.act_for must lie between"),
        ("[respond]\nclamp_headroom = 7", "clamp_headroom is below 8"),
        ("[respond]\nfreeze_lease = \"0s\"", "respond.freeze_lease must lie between"),
        ("[[guard]]\nmode = \"enforce\"", "guard 1 names no container"),
        ("[[guard]]\ncgroup = \"relative\"", "must be an absolute path"),
        ("mode = \"kill-everything\"", "kill-everything"),
        ("mode = ", "line 1"),
    ];
    for (text, why) in table {
        let policy = scene.file("policy.toml", text);
        assert_fails(&scene.cli(&["run", "--policy", path(&policy)]), 65, why);
    }
    let missing = scene.cli(&["run", "--policy", "/nonexistent/policy.toml"]);
    assert_fails(&missing, 65, "policy /nonexistent/policy.toml: No such file");
}

/// Drop-ins with an error, and what the message has.
const BAD_DROP_INS: &[(&str, &[&str])] = &[
    ("[detect.burst]\nwarm = 3\n", &["policy.d/10.toml", "line 2", "2 | warm = 3", "  | ^^^^"]),
    ("[detect.burst]\nact_for = 3\n", &["line 2", "  |           ^", "expected"]),
    ("[detect.burst]\nact_for = \"3 lightyears\"\n", &["line 2", "act_for", "^^^"]),
    (
        "[detect.burst]\nact_for = \"3h\"\n",
        &["10.toml: error at line 2, column 1", "  | ^^^^^^^", "between 1s and 60s"],
    ),
    ("[server.x.detect.tasks]\ngrown_1m = 3\n", &["unknown field `tasks`", "line 1"]),
    (
        "[guard.detect.burst]\nwarn_10s = 3\n",
        &["10.toml: error at line 1", "  |  ^^^^^", "[guard.detect] belongs below a [[guard]]"],
    ),
    ("[[guard]]\nunit = \"a\"\npids_limit = 3\n", &["line 3", "^^^^^", "between 8 and"]),
];

/// Each file of a policy that is bad in some way, with the reason, and with line and caret where there are lines.
#[test]
fn a_bad_policy_is_named_with_file_line_and_caret() {
    let scene = Scene::new();
    let policy = scene.file("policy.toml", "mode = \"enforce\"\n");
    let folder = scene.0.path().join("policy.d");
    fs::create_dir(&folder).unwrap();
    let check = |why: &[&str]| assert_refused(&scene, path(&policy), why);
    let drop_in = folder.join("10.toml");
    for (text, why) in BAD_DROP_INS {
        fs::write(&drop_in, text).unwrap();
        check(why);
    }
    fs::write(&drop_in, "#".repeat(10 << 20)).unwrap();
    check(&["policy.d/10.toml: it is larger than 1 MiB"]);
    fs::write(&drop_in, b"\xff").unwrap();
    check(&["policy.d/10.toml: line 1 is not UTF-8"]);
    fs::remove_file(&drop_in).unwrap();
    fs::create_dir(&drop_in).unwrap();
    check(&["policy.d/10.toml: it is a directory"]);
    fs::remove_dir(&drop_in).unwrap();
    std::os::unix::fs::symlink("10.toml", &drop_in).unwrap();
    check(&["policy.d/10.toml", "a link that leads to itself"]);
    fs::remove_file(&drop_in).unwrap();
    scene.file("policy.d/10.toml", "mode = \"observe\"\n");
    fs::set_permissions(&drop_in, fs::Permissions::from_mode(0o000)).unwrap();
    let words = ["policy", "check", "--offline", path(&policy)];
    assert_fails(&scene.cli_as_nobody(&words), 65, "10.toml: Permission denied");
    fs::remove_file(&drop_in).unwrap();
    fs::write(&drop_in, "").unwrap();
    let entries = (0..1001).map(|at| format!("[server.s{at}]\nignore = true\n"));
    scene.file("policy.d/10.toml", &entries.collect::<String>());
    check(&[
        "10.toml: error at line",
        "too many entries for servers at one place",
        "may have 1000",
    ]);
    (10..15).for_each(|at| drop(scene.file(&format!("policy.d/{at}.toml"), &"#".repeat(1 << 20))));
    check(&["13.toml: with it, all files together are larger than 4 MiB"]);
    fs::remove_dir_all(&folder).unwrap();
    scene.file("policy.d", "");
    check(&["policy.d: Not a directory"]);
    fs::remove_file(&folder).unwrap();
    std::os::unix::fs::symlink("policy.d", &folder).unwrap();
    check(&["policy.d", "a link that leads to itself"]);
    fs::remove_file(&folder).unwrap();
    let text = fs::read_to_string(&policy).unwrap();
    assert_eq!(text, "mode = \"enforce\"\n", "nothing is written");
}

/// Checks that each command that reads a policy refuses it for these reasons.
fn assert_refused(scene: &Scene, policy: &str, why: &[&str]) {
    let good = scene.file("good.jsonl", &trace(1));
    for words in [
        &["policy", "check", policy][..],
        &["policy", "check", "--offline", policy],
        &["policy", "show", "--policy", policy],
        &["policy", "explain", "cgroup:/", "--policy", policy],
        &["replay", path(&good), "--policy", policy],
        &["run", "--policy", policy],
    ] {
        let output = scene.cli(words);
        why.iter().for_each(|why| assert_fails(&output, 65, why));
    }
}

/// The file that is named is bad itself.
#[test]
fn a_policy_that_is_no_file_is_named_with_the_reason() {
    let scene = Scene::new();
    let at = |name: &str| scene.0.path().join(name);
    fs::create_dir(at("folder.toml")).unwrap();
    std::os::unix::fs::symlink("loop.toml", at("loop.toml")).unwrap();
    scene.file("large.toml", &"#".repeat(10 << 20));
    for (name, why) in [
        ("none.toml", "none.toml: No such file"),
        ("folder.toml", "folder.toml: it is a directory, and must be a file"),
        ("loop.toml", "a link that leads to itself"),
        ("large.toml", "large.toml: it is larger than 1 MiB"),
        ("large.toml/x", "x: Not a directory"),
    ] {
        assert_refused(&scene, path(&at(name)), &[why]);
    }
    let closed = scene.file("closed.toml", "");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let words = ["policy", "show", "--policy", path(&closed)];
    assert_fails(&scene.cli_as_nobody(&words), 65, "closed.toml: Permission denied");
}

/// Patterns that match nothing are no error: what they name may start later.
#[test]
fn patterns_that_match_nothing_are_warnings() {
    let scene = Scene::new();
    let matchers = [
        "name = \"mcp-guard-test-none-*\"",
        "image = \"mcp-guard-test/none:*\"",
        "label = \"mcp-guard-test=none\"",
        "compose_service = \"mcp-guard-test-none\"",
        "unit = \"mcp-guard-test-none-*.service\"",
        "cgroup = \"/mcp-guard-test-none-*/*\"",
    ];
    let rules = matchers.map(|matcher| format!("[[guard]]\n{matcher}\n")).concat();
    let policy = scene.file("policy.toml", &(rules + "[server.\"none-*\"]\nignore = true\n"));
    let output = scene.cli(&["policy", "check", path(&policy)]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for (at, matcher) in matchers.iter().enumerate() {
        let (number, line) = (at + 1, 2 * at + 1);
        let place = format!("({}:{line})", path(&policy));
        let expected =
            format!("warning: rule {number} {place} matches nothing that runs: {matcher}\n");
        assert!(said.contains(&expected), "{expected}\n{said}");
    }
    let note = "note: the entries for servers are not compared with what runs: no agent answers at";
    assert!(said.contains(note), "{said}");
}

#[test]
fn a_good_policy_is_checked_and_shown() {
    let scene = Scene::new();
    let rules = "[[guard]]\nname = \"*\"\n[[guard]]\nname = \"b\"\n";
    let policy = scene.file("policy.toml", rules);
    fs::create_dir(scene.0.path().join("policy.d")).unwrap();
    let drop_in = scene.file("policy.d/10.toml", "[detect.burst]\nwarn_10s = 3\n");
    let said = |arguments: &[&str]| {
        let output = scene.cli(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let checked = said(&["policy", "check", "--offline", path(&policy)]);
    let expected = format!("good: 2 rules in {}, {}\n", path(&policy), path(&drop_in));
    assert!(checked.starts_with(&expected), "{checked}");
    let shadowed = format!("warning: rule 2 ({}:3) never applies", path(&policy));
    assert!(checked.contains(&shadowed), "{checked}");
    let compared = said(&["policy", "check", path(&policy)]);
    assert!(
        compared.contains("rule 2") && compared.contains("matches nothing that runs"),
        "{compared}"
    );
    assert!(compared.contains("note: containers are not compared"), "{compared}");
    let shown = said(&["policy", "show", "--policy", path(&policy)]);
    for line in [&format!("# {}:2", path(&drop_in)), "# default", "[[guard]]"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let again = scene.file("again.toml", &shown);
    let checked = said(&["policy", "check", "--offline", path(&again)]);
    assert!(checked.starts_with("good: 2 rules"), "{checked}");
}

#[test]
fn a_missing_engine_cgroup_or_agent_is_named() {
    let scene = Scene::new();
    let table: [(&[&str], &str); 7] = [
        (&["policy", "reload"], "no agent answers at"),
        (&["policy", "reload"], "`systemctl start mcp-guard` starts one"),
        (&["policy", "reload"], "`mcp-guard policy check` tests the files without an agent"),
        (&["freeze", "some-container"], "the engine at /nonexistent does not answer"),
        (&["kill", "docker:some-container"], "the engine at /nonexistent does not answer"),
        (&["freeze", "cgroup:/mcp-guard-test-none"], "cgroup /mcp-guard-test-none: No such file"),
        (&["status"], "start it with `mcp-guard run`"),
    ];
    for (arguments, why) in table {
        let output = scene.cli(arguments);
        assert_fails(&output, 2, why);
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "one sentence");
    }
}

#[test]
fn a_server_that_does_not_live_is_exit_code_2_also_in_json() {
    let scene = Scene::new();
    let listener = UnixListener::bind(scene.0.path().join("control.sock")).unwrap();
    // An agent without guards. Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"{\"parameters\":{\"guards\":[],\"left_out\":0}}\0");
        }
    });
    let asked = ["status", "--servers", "--server", "none"];
    let why = "no live server is called \"none\"";
    assert_fails(&scene.cli(&asked), 2, why);
    let output = scene.cli(&[&asked[..], &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.contains(why)), (Some(2), true), "{said}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["guards"], serde_json::json!([]));
    assert_eq!(scene.cli(&["status", "--servers", "--json"]).status.code(), Some(0));
}

#[test]
fn missing_root_rights_are_reported() {
    let scene = Scene::new();
    let audit = scene.0.path().join("audit.jsonl");
    let audit = path(&audit);
    let table: [&[&str]; 7] = [
        &["run"],
        &["demo"],
        &["freeze", "cgroup:/", "--audit", audit],
        &["freeze", "--dry-run", "cgroup:/", "--audit", audit],
        &["kill", "--dry-run", "cgroup:/", "--audit", audit],
        &["thaw", "--owned", "--audit", audit],
        &["repair", "--dry-run", "cgroup:/", "--limit", "40", "--audit", audit],
    ];
    for arguments in table {
        let output = scene.cli_as_nobody(arguments);
        assert_fails(&output, 2, "root");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("mcp-guard: ") && said.contains("sudo"), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    }
}

#[test]
fn a_truncated_trace_is_an_error_with_its_line() {
    let scene = Scene::new();
    let whole = trace(3);
    let lines = whole.lines().count();
    let cut = scene.file("cut.jsonl", &whole[..whole.len() - 10]);
    for json in [&[][..], &["--json"]] {
        let output = scene.cli(&[&["replay", path(&cut)], json].concat());
        assert_fails(&output, 65, &format!("{}: line {lines}: ", path(&cut)));
    }
    let empty = scene.file("empty.jsonl", "");
    assert_fails(&scene.cli(&["replay", path(&empty)]), 65, "line 1: the file is empty");
    let other = scene.file("other.jsonl", "{\"format\":\"spawn-trace/9\"}\n");
    assert_fails(&scene.cli(&["replay", path(&other)]), 65, "spawn-trace/9");
    assert_fails(&scene.cli(&["replay", "/nonexistent"]), 65, "trace /nonexistent: No such file");
}

#[test]
fn a_trace_may_come_from_a_pipe_that_somebody_writes_to() {
    let scene = Scene::new();
    let directory = path(scene.0.path()).to_owned();
    assert_fails(&scene.cli(&["replay", &directory]), 65, "Is a directory");
    let pipe = scene.0.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    assert_fails(&scene.cli(&["replay", path(&pipe)]), 65, "line 1: the file is empty");
    let file = scene.file("good.jsonl", &trace(2));
    let mut command = Command::new("bash");
    let program = workload("mcp-guard").unwrap();
    command.args(["-c", r#""$0" replay <(sleep 0.2; cat "$1")"#]).arg(program).arg(&file);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 processes started"), "{output:?}");
}

#[test]
fn replay_answers_with_one_object() {
    let scene = Scene::new();
    let file = scene.file("leak.jsonl", &trace(24));
    let replay = |more: &[&str]| {
        let output = scene.cli(&[&["replay", path(&file)], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let answer = replay(&["--json"]);
    assert_eq!(answer.trim_end().lines().count(), 1);
    let object: Value = serde_json::from_str(&answer).unwrap();
    let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected =
        ["events", "processes", "execs", "live_at_end", "identities", "warnings", "actions"];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let report: ReplayReport = serde_json::from_value(object.clone()).unwrap();
    let counts = (report.events, report.processes, report.execs, report.live_at_end);
    assert_eq!(counts, (60, 24, 24, 12));
    let demo = &report.identities["demo-mcp"];
    assert_eq!((demo.starts, demo.live_at_end, demo.live_peak), (24, 12, 13));
    // The tenth server that stays starts at 90 s and is 60 s old at 150 s.
    let action = &object["actions"][0];
    assert_eq!((&action["detector"], &action["response"]), (&"D".into(), &"clamp".into()));
    assert_eq!(action["t_ns"], 150_000_000_001_u64);
    assert!(report.warnings.iter().any(|one| one.identity.as_deref() == Some("demo-mcp")));

    let text = replay(&[]);
    assert!(text.contains("demo-mcp: 24 starts"), "{text}");
    let action = |line: &str| line.contains("150.000 s") && line.contains("clamp");
    assert!(text.lines().any(action), "{text}");
    let lenient = scene.file("lenient.toml", "[detect.duplicates]\nact = 100\n");
    let answer: ReplayReport =
        serde_json::from_str(&replay(&["--json", "--policy", path(&lenient)])).unwrap();
    assert!(answer.actions.is_empty(), "the policy's thresholds apply");
}

#[test]
fn replay_of_several_traces_is_a_table_and_two_policies_are_compared() {
    let scene = Scene::new();
    let (leak, calm) = (scene.file("leak.jsonl", &trace(24)), scene.file("calm.jsonl", &trace(2)));
    let old = scene.file("old.toml", "");
    let new = scene.file("new.toml", "[detect.duplicates]\nact = 12\n");
    let said = |arguments: &[&str]| {
        let output = scene.cli(&[&["replay"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let both = [path(&leak), path(&calm)];
    let table = said(&both);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].starts_with("leak.jsonl") && lines[1].contains("clamp"), "{table}");
    assert!(lines[2].starts_with("calm.jsonl") && lines[2].ends_with("  -"), "{table}");
    let json: Value = serde_json::from_str(&said(&[&both[..], &["--json"]].concat())).unwrap();
    assert_eq!((&json[1]["file"], &json[1]["processes"]), (&path(&calm).into(), &2.into()));
    let compared = said(&[&["--compare", path(&old), path(&new)], &both[..]].concat());
    for line in ["- ", "+ ", "150.000 s  clamp", "170.000 s  clamp", "no difference"] {
        assert!(compared.contains(line), "{line}\n{compared}");
    }
    let explained = said(&[path(&leak), "--explain"]);
    assert!(explained.contains("age_ms 60000, aged 10, live"), "{explained}");
}

#[test]
fn a_policy_that_does_not_guard_a_recorded_container_decides_nothing() {
    let scene = Scene::new();
    let header = r#"{"format":"spawn-trace/1","guard":{"name":"web"}}"#;
    let (_, events) =
        trace(24).split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let web = scene.file("web.jsonl", &format!("{header}\n{events}"));
    let rule = |name: &str| format!("[[guard]]\nname = \"{name}\"\nhighest = \"clamp\"\n");
    let old = scene.file("old.toml", &rule("web"));
    let new = scene.file("new.toml", &rule("another"));
    let said = |arguments: &[&str]| {
        let output = scene.cli(&[&["replay", path(&web)], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&said(&[arguments, &["--json"]].concat())).unwrap()
    };
    let not_guarded = "this policy does not guard it";
    assert!(!said(&["--policy", path(&old)]).contains(not_guarded));
    let text = said(&["--policy", path(&new)]);
    assert!(text.contains(not_guarded) && text.contains("no warning, no action"), "{text}");
    assert!(said(&[path(&web), "--policy", path(&new)]).matches(not_guarded).count() == 2);
    let report = json(&["--policy", path(&new)]);
    assert_eq!((&report["not_guarded"], &report["processes"]), (&true.into(), &24.into()));
    assert_eq!(json(&["--policy", path(&old)]).get("not_guarded"), None);

    let compared = said(&["--compare", path(&old), path(&new)]);
    assert!(compared.contains("the new policy does not guard it"), "{compared}");
    assert!(compared.contains("- ") && !compared.contains("no difference"), "{compared}");
    let compared = &json(&["--compare", path(&old), path(&new)])[0];
    assert_eq!(compared["not_guarded_by"], serde_json::json!(["new"]));
    assert!(compared["gone"].as_array().is_some_and(|gone| gone.len() > 1), "{compared}");
}

#[test]
fn the_name_of_a_trace_is_printed_without_control_characters() {
    let scene = Scene::new();
    let (file, policy) = (scene.file("a\x1b[2J\n.jsonl", &trace(1)), scene.file("p.toml", ""));
    let compare = ["--compare", path(&policy), path(&policy), path(&file)];
    for arguments in [&[path(&file), path(&file), "--explain"][..], &compare] {
        let output = scene.cli(&[&["replay"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains('\x1b') && text.contains(r"a\u{1b}[2J\n.jsonl"), "{text:?}");
    }
}

#[test]
fn a_recording_that_was_cut_is_incomplete() {
    let scene = Scene::new();
    let recorded = |end: &str| {
        let header = r#"{"format":"spawn-trace/1","evidence":true}"#;
        format!("{header}\n{{\"t\":1,\"e\":\"baseline\"}}\n{end}")
    };
    let [whole, cut, ended] = [
        ("whole", r#"{"t":2,"e":"end","why":"time"}"#),
        ("cut", r#"{"t":2,"e":"end","why":"cut"}"#),
        ("ended", ""),
    ]
    .map(|(name, end)| scene.file(name, &recorded(end)));
    let policy = scene.file("policy.toml", "");
    let said = |arguments: &[&str]| {
        let output = scene.cli(&[&["replay"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (file, times) in [(&whole, 0), (&cut, 1), (&ended, 1)] {
        let count = |text: &str| text.matches("incomplete: the recording was cut").count();
        assert_eq!(count(&said(&[path(file)])), times, "{file:?}");
        assert_eq!(count(&said(&[path(file), path(file)])), 2 * times, "{file:?}");
        let compare = ["--compare", path(&policy), path(&policy), path(file)];
        assert_eq!(count(&said(&compare)), times, "{file:?}");
        let json: Value = serde_json::from_str(&said(&[path(file), "--json"])).unwrap();
        assert_eq!(json["ended"], if times == 0 { "time" } else { "cut" }, "{file:?}");
    }
}

#[test]
fn doctor_answers_in_json() {
    let scene = Scene::new();
    for output in [scene.cli(&["doctor", "--json"]), scene.cli_as_nobody(&["doctor", "--json"])] {
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let missing = checks.iter().any(|check| check["state"] == "missing");
        assert_eq!(output.status.code(), Some(i32::from(missing)));
        for name in ["rights", "kernel", "BTF", "BPF", "cgroups", "Docker", "agent"] {
            let check = checks.iter().find(|check| check["name"] == name);
            let detail = check.unwrap_or_else(|| panic!("no {name}"))["detail"].as_str();
            assert!(detail.is_some_and(|detail| !detail.is_empty()), "{name}");
        }
    }
}

/// Starts an engine that answers each request with the same bytes, or never answers. Returns its socket.
fn engine(scene: &Scene, answer: Option<&'static str>) -> PathBuf {
    let socket = scene.0.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Ends with the test's process. A silent engine keeps its connections open.
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for mut stream in listener.incoming().flatten() {
            match answer {
                Some(answer) => {
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = stream.write_all(answer.as_bytes());
                }
                None => silent.push(stream),
            }
        }
    });
    socket
}

#[test]
fn an_engine_that_is_absent_silent_or_answers_nonsense_is_exit_code_2() {
    let cases = [
        (Some("SSH-2.0-OpenSSH\r\n"), "not HTTP"),
        (Some("HTTP/1.0 200 OK\r\n\r\n{\"a\":"), "not JSON"),
        (Some("HTTP/1.0 500 Oh\r\n\r\n{}"), "status 500"),
        (Some("HTTP/1.0 200 OK\r\n\r\n[1, {\"Id\": 7}]"), "does not have the expected form"),
    ];
    for (answer, why) in cases {
        let scene = Scene::new();
        let socket = engine(&scene, answer);
        let mut diagnose = command(scene.0.path(), path(&socket)).unwrap();
        assert_fails(&diagnose.args(["diagnose", "web"]).output().unwrap(), 2, why);
    }
    for timeout in ["1s", "10s"] {
        let scene = Scene::new();
        let socket = engine(&scene, None);
        let mut diagnose = command(scene.0.path(), path(&socket)).unwrap();
        diagnose.args(["diagnose", "web", "--engine-timeout", timeout]);
        let why = format!("no answer within {timeout}; cgroup:/PATH needs no engine");
        assert_fails(&diagnose.output().unwrap(), 2, &why);
    }
    assert_fails(&Scene::new().cli(&["diagnose", "web"]), 2, "engine");
}

/// Starts an engine whose only container has vanished by the time it is inspected. Returns its socket.
fn engine_of_the_vanished(scene: &Scene) -> PathBuf {
    let socket = scene.0.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let list = format!("[{{\"Id\":\"{}\",\"Names\":[\"/web\"]}}]", "a".repeat(64));
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap_or(0);
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let (status, body) = match asked.split(' ').nth(1).unwrap_or_default() {
                "/containers/json?all=true" => ("200 OK", list.as_str()),
                path if path.contains("/containers/") => ("404 Not Found", "{}"),
                _ => ("200 OK", "{}"),
            };
            let _ = stream.write_all(format!("HTTP/1.0 {status}\r\n\r\n{body}").as_bytes());
        }
    });
    socket
}

#[test]
fn a_container_that_vanishes_meanwhile_is_no_error_for_all_containers() {
    let scene = Scene::new();
    let socket = engine_of_the_vanished(&scene);
    let diagnose = |words: &[&str]| {
        command(scene.0.path(), path(&socket)).unwrap().args(words).output().unwrap()
    };
    assert_fails(&diagnose(&["diagnose", "web"]), 2, "the container ended while it was being read");
    let all = diagnose(&["diagnose", "--all", "--json"]);
    let said: Value = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!((all.status.code(), &said["targets"]), (Some(0), &serde_json::json!([])));
    assert!(said["unreadable"].is_array(), "{said}");
}

#[test]
fn an_engine_whose_list_fails_is_not_reported_as_all_clear() {
    let scene = Scene::new();
    let refuses = Scene::new();
    let socket = engine(&refuses, Some("HTTP/1.0 500 Oh\r\n\r\n{}"));
    let of_refuser = |words: &[&str]| {
        command(refuses.0.path(), path(&socket)).unwrap().args(words).output().unwrap()
    };
    let all = ["diagnose", "--all"];
    for output in [scene.cli(&all), scene.cli_as_nobody(&all), of_refuser(&all)] {
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("not read: engine: ") && !said.contains("no container"), "{said}");
    }
    let json = scene.cli(&["diagnose", "--all", "--json"]);
    let said: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &said["targets"]), (Some(2), &serde_json::json!([])));
    let unreadable = said["unreadable"].as_array().unwrap();
    assert!(unreadable.iter().any(|one| one["what"] == "engine"), "{said}");
}

/// Starts an engine that describes itself and one container, but sends a truncated list. Returns its socket.
fn engine_without_a_list(scene: &Scene) -> PathBuf {
    let socket = scene.0.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let init = std::process::id();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap_or(0);
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let body = match asked.split(' ').nth(1).unwrap_or_default() {
                "/containers/json?all=true" => "[{\"Id\":".to_owned(),
                path if path.contains("/containers/") => format!(
                    "{{\"Name\":\"/web\",\"State\":{{\"Pid\":{init}}},\"Config\":{{\"Labels\":{{\
                     \"com.docker.compose.project\":\"p\",\"com.docker.compose.service\":\"web\",\
                     \"com.docker.compose.project.config_files\":\"/srv/compose.yml\"}}}}}}"
                ),
                _ => "{\"Version\":\"29.0.0\",\"ApiVersion\":\"1.52\"}".to_owned(),
            };
            let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes());
        }
    });
    socket
}

#[test]
fn a_whole_id_is_diagnosed_without_the_list_of_containers() {
    let scene = Scene::new();
    let socket = engine_without_a_list(&scene);
    let saved = scene.0.path().join("facts.json");
    let diagnose = |words: &[&str]| {
        command(scene.0.path(), path(&socket)).unwrap().args(words).output().unwrap()
    };
    assert_fails(&diagnose(&["diagnose", "web"]), 2, "containers: ");
    let id = "a".repeat(64);
    let output = diagnose(&["diagnose", &id, "--save", path(&saved), "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["target"]["name"], &said["target"]["id"]), (&"web".into(), &id.into()));
    let facts: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    assert_eq!(facts["compose"]["says"]["outcome"], "unknown", "{}", facts["compose"]);
    assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    let again = diagnose(&["diagnose", "--facts", path(&saved), "--json"]);
    assert_eq!(again.status.code(), output.status.code());
    let none = diagnose(&["diagnose", "--all"]);
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_finding_is_explained_without_any_host_facts() {
    let scene = Scene::new();
    for code in ["MG-P001", "p001", "1"] {
        let done = scene.cli(&["explain", code]);
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(text.starts_with("## MG-P001 ") && text.contains("docker compose up -d"), "{text}");
    }
    let list = String::from_utf8(scene.cli(&["explain"]).stdout).unwrap();
    assert!(list.lines().count() > 40 && list.contains("MG-P042"), "{list}");
    assert_fails(&scene.cli(&["explain", "P999"]), 64, "P999");
}
