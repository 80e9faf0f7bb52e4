//! `diagnose`: reads the facts, judges them and shows the report.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use mcp_guard_core::{
    diagnose::{
        compose,
        facts::{Facts, SCHEMA, Source, Unreadable},
        judge,
        report::{Report, Verdict},
    },
    escape::visible,
    target::Target,
};
use serde_json::json;

use super::{Exit, Failure, HostOptions, out, run::read_policy, runtime};
use crate::{
    control::{client, lock},
    host::observer::Observer,
    render,
    requests::Requests,
    snapshot::{self, Snapshot},
};

/// Largest saved snapshot, in bytes; 65,536 processes fit.
const MAX_FACTS: u64 = 64 << 20;
/// Where the package installs the agent's policy. Without it, the default headroom applies.
pub const DEFAULT_POLICY: &str = "/etc/mcp-guard/policy.toml";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
    #[arg(required_unless_present_any = ["all", "facts"], conflicts_with_all = ["all", "facts"])]
    target: Option<String>,
    /// Diagnose every running container, and every other cgroup that a running agent guards, the
    /// worst first.
    #[arg(long, conflicts_with_all = ["facts", "save"])]
    all: bool,
    /// Saved facts to judge instead of this host.
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// File to save the facts to, for judging them elsewhere or for a bug report.
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    save: Option<PathBuf>,
    /// With --save, do not mask passwords and tokens in command lines.
    #[arg(long, requires = "save")]
    with_secrets: bool,
    /// Policy file from which clamp_headroom is read: the number of tasks that a proposed limit
    /// leaves free.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY, conflicts_with = "facts")]
    policy: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn diagnose(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.all {
        return all(host, arguments);
    }
    let facts = match (&arguments.facts, &arguments.target) {
        (Some(file), _) => read(file)?,
        (None, target) => {
            let target = target.as_deref().unwrap_or_default();
            let headroom = headroom(&arguments.policy)?;
            runtime()?.block_on(facts_of(host, Observer::start(), target, headroom))?
        }
    };
    if let Some(file) = &arguments.save {
        // Includes the merged result of the compose files, for programs that read it from the snapshot.
        let compose = facts.compose.as_ref().map(compose::judged);
        let saved = Facts { compose, ..facts.clone() };
        let saved = if arguments.with_secrets { saved } else { saved.without_secrets() };
        let text = serde_json::to_string_pretty(&saved).map_err(Failure::could_not)?;
        save(file, &text)
            .map_err(|error| Failure::could_not(format!("{}: {error}", file.display())))?;
    }
    let report = judge(&facts);
    let text = show(&report, arguments.json)?;
    out::answer(&text);
    Ok(exit(&report))
}

fn all(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    let headroom = headroom(&arguments.policy)?;
    let (mut reports, unreadable, is_whole) = runtime()?.block_on(async {
        let snapshot = snapshot(host, Observer::start()).await?.with_headroom(headroom);
        let mut unreadable = snapshot.unreadable().to_vec();
        let mut is_whole = snapshot.has_list();
        let mut reports = Vec::new();
        for listed in snapshot.running() {
            // A container that vanished in the meantime is not an error.
            reports.extend(snapshot.container(&listed.id).await.map(|facts| judge(&facts)));
        }
        let guarded = guarded_cgroups(host, &snapshot).unwrap_or_else(|error| {
            is_whole = false;
            unreadable.push(Unreadable::new(Source::Guards, error));
            Vec::new()
        });
        for cgroup in guarded {
            reports.push(judge(&snapshot.cgroup(&cgroup).await));
        }
        Ok::<_, Failure>((reports, unreadable, is_whole))
    })?;
    reports.sort_by_key(|report| {
        let worst = report.findings.first().map(|finding| finding.severity);
        (worst.is_none(), worst, report.target.name.clone())
    });
    let text = if arguments.json {
        let all = json!({ "targets": reports, "unreadable": unreadable });
        serde_json::to_string(&all).map_err(Failure::could_not)?
    } else {
        table(&reports, &unreadable, is_whole)
    };
    out::answer(&text);
    // A container that was not examined may be the one that leaks.
    let list = if is_whole { Exit::Done } else { Exit::CouldNot };
    let worst = reports.iter().map(exit).chain([list]).max_by_key(|exit| match exit {
        Exit::CouldNot => 2,
        Exit::Wrong => 1,
        Exit::Done | Exit::Usage | Exit::Data => 0,
    });
    Ok(worst.unwrap_or(Exit::Done))
}

/// Returns the headroom of the policy. The package's policy may be missing, or unreadable for this user.
pub fn headroom(policy: &Path) -> Result<Option<u64>, Failure> {
    match read_policy(policy) {
        Ok(policy) => Ok(Some(policy.respond().clamp_headroom)),
        Err(failure) if policy == Path::new(DEFAULT_POLICY) => {
            if policy.exists() {
                tracing::warn!(
                    why = failure.message,
                    "cannot read the policy; the default headroom applies"
                );
            }
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

fn table(reports: &[Report], unreadable: &[Unreadable], is_whole: bool) -> String {
    // Only a complete list proves that nothing runs.
    let mut text =
        if reports.is_empty() && !is_whole { String::new() } else { render::table(reports) };
    for one in unreadable {
        text += &format!("not read: {}\n", visible(&one.to_string()));
    }
    text
}

/// Lists the cgroups that an agent guards and no engine lists. Empty if no agent runs.
fn guarded_cgroups(host: &HostOptions, snapshot: &Snapshot) -> Result<Vec<String>, client::Error> {
    if !lock::is_held(&host.run_dir) {
        return Ok(Vec::new());
    }
    let status = client::status(&lock::socket(&host.run_dir))?;
    let guards = status.guards.into_iter();
    let is_unlisted = |id: &str| snapshot.lists(id).is_none();
    let unlisted = guards.filter(|guard| guard.container.as_deref().is_none_or(is_unlisted));
    Ok(unlisted.map(|guard| guard.cgroup).collect())
}

fn exit(report: &Report) -> Exit {
    match (report.findings.is_empty(), report.verdict) {
        (true, Verdict::Unknown) => Exit::CouldNot,
        (true, _) => Exit::Done,
        (false, _) => Exit::Wrong,
    }
}

pub async fn snapshot(host: &HostOptions, observer: Observer) -> Result<Snapshot, Failure> {
    let requests = Requests::new(&host.state_dir);
    Snapshot::take(host.engines(), requests, observer).await.map_err(Failure::could_not)
}

/// Takes a snapshot, and reads the facts of one target in it.
pub async fn facts_of(
    host: &HostOptions,
    observer: Observer,
    target: &str,
    headroom: Option<u64>,
) -> Result<Facts, Failure> {
    let target = Target::parse(target).map_err(Failure::usage)?;
    let requests = Requests::new(&host.state_dir);
    let taken = snapshot::facts_of(&target, host.engines(), requests, observer, headroom).await;
    taken.map_err(Failure::could_not)
}

/// Saves the text with mode 0600, because it contains command lines. It writes a new file and renames it,
/// so that no link is followed and no partial file is left.
fn save(file: &Path, text: &str) -> io::Result<()> {
    let name = file.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let mut new = name.to_os_string();
    new.push(format!(".{}.new", std::process::id()));
    let new = file.with_file_name(new);
    if fs::symlink_metadata(file).is_ok_and(|meta| !meta.is_file()) {
        return Err(io::Error::other("it exists and is not a regular file"));
    }
    let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = output.write_all(text.as_bytes()).and_then(|()| output.sync_all());
    let written = written.and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn read(file: &Path) -> Result<Facts, Failure> {
    let bad = |why: String| Failure::data(format!("{}: {why}", file.display()));
    let text = text_of(file).map_err(|error| bad(error.to_string()))?;
    // Serde would also accept an empty array, because every field has a default.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(bad("not a saved snapshot: expected a JSON object".to_owned()));
    }
    let facts: Facts = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if facts.schema > SCHEMA {
        return Err(bad(format!("saved by a newer mcp-guard (schema {})", facts.schema)));
    }
    Ok(facts)
}

fn text_of(file: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe must not block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FACTS + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FACTS) {
        return Err(io::Error::other(format!("larger than {MAX_FACTS} bytes")));
    }
    Ok(text)
}

fn show(report: &Report, as_json: bool) -> Result<String, Failure> {
    if as_json {
        return serde_json::to_string(report).map_err(Failure::could_not);
    }
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal();
    Ok(render::report(report, colour))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn a_snapshot_is_saved_whole_with_mode_0600_and_not_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts.json");
        fs::write(&file, "old, and longer than what follows").unwrap();
        save(&file, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let link = folder.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(save(&link, "through a link").is_err());
        assert!(save(&folder.path().join("none/x"), "").is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no other file is left");
    }

    #[test]
    fn the_headroom_comes_from_the_policy() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy.toml");
        assert!(headroom(&policy).is_err(), "a policy that was asked for must be readable");
        fs::write(&policy, "[respond]\nclamp_headroom = 50\n").unwrap();
        assert!(matches!(headroom(&policy), Ok(Some(50))));
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
        for none in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let error = text_of(none).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn an_incomplete_list_does_not_report_that_nothing_runs() {
        let unread = Unreadable::new(Source::Engine, "no\x1b[2J");
        let text = table(&[], &[unread], false);
        assert_eq!(text, "not read: engine: no\\u{1b}[2J\n");
        assert_eq!(table(&[], &[], true), render::table(&[]));
    }
}
