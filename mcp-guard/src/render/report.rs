//! Formats a diagnosis as text, 80 columns wide.

use mcp_guard_core::{
    diagnose::{
        code::Severity,
        report::{Certainty, Finding, Report, Verdict},
    },
    escape::visible,
};

const COLUMNS: usize = 80;
/// Programs that the commands in a finding's help begin with.
const PROGRAMS: [&str; 4] = ["docker ", "mcp-guard ", "sysctl ", "systemctl "];

/// Formats the verdict, then each finding with its code, evidence and help, the worst first.
#[must_use]
pub fn report(report: &Report, colour: bool) -> String {
    let paint = Paint(colour);
    let name = visible(&report.target.name);
    let mut text = format!("{} {}\n", visible(&report.target.kind.to_string()), paint.bold(&name));
    text += &wrapped("  ", &verdict(report));
    for finding in &report.findings {
        text += &one(finding, paint);
    }
    let fine_head = if report.verdict == Verdict::Enforced {
        paint.of("ok", "32")
    } else {
        paint.of("info", "36")
    };
    for fine in &report.ok {
        text += &format!("\n{fine_head} {}\n", fine.code);
        text += &wrapped("  ", &fine.title);
    }
    text += "\nwhere the limit is kept\n";
    for place in &report.places {
        let mark = if place.breaks { "  <- breaks here" } else { "" };
        let (value, r#where) = (visible(&place.value), visible(&place.r#where));
        text += &format!("  {:<14} {value:<10} {}{mark}\n", place.place, r#where);
    }
    text += &charged(report);
    for note in &report.notes {
        text += &copied("note: ", note);
    }
    for unread in &report.unreadable {
        text += &wrapped("not read: ", &unread.to_string());
    }
    text
}

/// Formats one line per target.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    if reports.is_empty() {
        return "no container is running\n".to_owned();
    }
    let mut text = format!(
        "{:<32} {:<13} {:>7} {:>7}  {}\n",
        "TARGET", "VERDICT", "LIMIT", "TASKS", "FIRST FINDING"
    );
    for report in reports {
        let first = report.findings.first();
        let first = first
            .map_or_else(|| "-".to_owned(), |one| format!("{} {}", one.code, one.code.title()));
        let none = if report.verdict == Verdict::Unknown { "?" } else { "none" };
        let number =
            |limit: Option<u64>| limit.map_or_else(|| none.to_owned(), |limit| limit.to_string());
        let tasks = report.charged.tasks.map_or_else(|| "?".to_owned(), |tasks| tasks.to_string());
        text += &format!(
            "{:<32} {:<13} {:>7} {:>7}  {}\n",
            cut(&visible(&report.target.name), 32),
            word(report.verdict),
            number(report.effective_limit),
            tasks,
            first
        );
    }
    text
}

fn verdict(report: &Report) -> String {
    let none = if report.verdict == Verdict::Unknown { "not known" } else { "no limit" };
    let limit =
        |limit: Option<u64>| limit.map_or_else(|| none.to_owned(), |limit| limit.to_string());
    format!(
        "{}: declared {}, in force {}",
        word(report.verdict),
        limit(report.declared),
        limit(report.effective_limit)
    )
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Enforced => "enforced",
        Verdict::NotEnforced => "not enforced",
        Verdict::Exceeded => "exceeded",
        Verdict::Unknown => "unknown",
    }
}

fn one(finding: &Finding, paint: Paint) -> String {
    let colour = match finding.severity {
        Severity::Critical => "1;31",
        Severity::High => "31",
        Severity::Medium => "33",
        Severity::Info => "36",
    };
    let certainty = match finding.certainty {
        Certainty::Proved => "",
        Certainty::Possible => ", possible",
    };
    let head = paint.of(&format!("{}[{}{certainty}]", finding.severity, finding.code), colour);
    let mut text = format!("\n{head}\n");
    text += &wrapped("  ", &finding.title);
    for evidence in &finding.evidence {
        text += &wrapped(
            "  | ",
            &format!("{}: {} ({})", evidence.what, evidence.value, evidence.r#where),
        );
    }
    for not in &finding.ruled_out {
        text += &wrapped("  = not ", not);
    }
    let repair = &finding.repair;
    text += &copied("  = help: ", &repair.command);
    text += &wrapped("  = owner: ", &repair.owner.to_string());
    if !repair.survives.is_empty() {
        text += &wrapped("  = survives: ", &repair.survives.join(", "));
    }
    text
}

/// Formats help. A command that is meant for a shell stays on one line and keeps its spaces: a break would
/// end it or change a quoted word.
fn copied(indent: &str, text: &str) -> String {
    let is_command = PROGRAMS.iter().any(|program| text.starts_with(program));
    if is_command || text.contains(" '") {
        return format!("{indent}{}\n", visible(text));
    }
    wrapped(indent, text)
}

fn charged(report: &Report) -> String {
    let charged = &report.charged;
    let tasks = charged.tasks.map_or_else(|| "?".to_owned(), |tasks| tasks.to_string());
    let mut text = format!(
        "\ncharged: {tasks} tasks; {} processes, {} zombies, {} moved in, {} seen elsewhere\n",
        charged.processes, charged.zombies, charged.moved_in, charged.aliens
    );
    if let Some(sizing) = &report.sizing {
        let packages: Vec<String> =
            sizing.by_package.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let fit = match sizing.servers_that_fit {
            Some(fit) => format!("; the declared limit allows {fit}"),
            None => String::new(),
        };
        let line = format!(
            "servers: {} ({}), up to {} tasks each{fit}; these need a limit of {}; {} servers would need {}",
            sizing.servers,
            packages.join(", "),
            sizing.tasks_per_server,
            sizing.limit_now,
            sizing.servers * 2,
            sizing.limit_for(sizing.servers * 2)
        );
        text += &wrapped("", &line);
    }
    text
}

/// Escapes untrusted text and breaks it into lines of at most 80 columns. Later lines are indented like the
/// first.
fn wrapped(indent: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = indent.to_owned();
    let blank = " ".repeat(indent.chars().count());
    let mut empty = true;
    for word in text.split_whitespace().map(visible) {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines += &format!("{line}\n");
            line.clone_from(&blank);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += &word;
        empty = false;
    }
    lines + &format!("{line}\n")
}

fn cut(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

/// Colours text if it is written to a terminal.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of(self, text: &str, code: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.of(text, "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_at_words() {
        let text = wrapped("  | ", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        assert_eq!(wrapped("a: ", &"x".repeat(100)).lines().count(), 1, "a word is never cut");
    }

    #[test]
    fn a_command_is_printed_as_it_must_be_copied() {
        let name = format!("'cgroup:/a  b{}'", " c".repeat(60));
        let command = format!("mcp-guard repair {name} --limit 25");
        assert_eq!(copied("  = help: ", &command), format!("  = help: {command}\n"));
        let prose = copied("  = help: ", &"word ".repeat(40));
        assert!(prose.lines().count() > 1 && prose.lines().all(|line| line.len() <= COLUMNS));
        assert_eq!(copied("", "docker x '\n\x1b'").matches('\n').count(), 1);
    }

    #[test]
    fn no_finding_is_called_ok_if_the_limit_is_not_enforced() {
        let own = |max| {
            format!(
                r#"{{"chain": [{{"path": "/a", "max": {max}, "current": 1, "threaded": true}}]}}"#
            )
        };
        let holds = report(&judged(&own("25")), false);
        assert!(holds.contains("ok MG-P088") && holds.contains("ok MG-P090"), "{holds}");
        let none = report(&judged(&own(r#""max""#)), false);
        assert!(none.contains("info MG-P088") && !none.contains("ok MG-"), "{none}");
    }

    fn judged(facts: &str) -> Report {
        mcp_guard_core::diagnose::judge(&serde_json::from_str(facts).expect("facts"))
    }

    #[test]
    fn an_unknown_limit_is_not_shown_as_none() {
        let unknown = judged(r#"{"target": {"kind": "x\u001b[31m\ny", "name": "web"}}"#);
        let text = report(&unknown, false);
        assert!(text.contains("declared not known, in force not known"), "{text}");
        assert!(text.starts_with("x\\u{1b}[31m\\ny web\n"), "{text}");
        let none = judged(r#"{"chain": [{"path": "/a", "max": "max", "current": 1}]}"#);
        let text = report(&none, false);
        assert!(text.contains("declared no limit, in force no limit"), "{text}");
        let rows = table(&[unknown, none]);
        let limits: Vec<&str> = rows.lines().skip(1).map(|row| row[46..54].trim()).collect();
        assert_eq!(limits, ["?", "none"], "{rows}");
    }
}
