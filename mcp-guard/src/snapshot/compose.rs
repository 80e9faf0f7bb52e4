//! Reads compose files and their env files, as far as they may be read.

use std::{collections::BTreeMap, path::Path};

use mcp_guard_core::diagnose::{
    compose,
    facts::{Compose, ComposeFile, Content, Keys, Variables},
};

use super::trusted::{self, Unread, Volumes};
use crate::engine::MAX_FILES;

/// Reads the files that the labels name, and keeps what a limit depends on.
pub fn read(
    mut found: Compose,
    working_dir: &str,
    environment: Option<&str>,
    volumes: &Volumes,
) -> Compose {
    let unread = |why: String| Some(Content::Unread { why });
    if found.files.len() > MAX_FILES {
        found.files.truncate(MAX_FILES);
        found.content = unread(format!("not read: more than {MAX_FILES} files"));
        return found;
    }
    if found.files.is_empty() {
        found.content = unread("no label names a file".to_owned());
        return found;
    }
    let folder = Path::new(working_dir);
    // Version 1 of compose stores relative names.
    let full = |file: &String| folder.join(file).display().to_string();
    found.files = found.files.iter().map(full).collect();
    let mut files = Vec::new();
    for name in &found.files {
        let keys = match trusted::text(Path::new(name), is_compose_file, volumes) {
            Ok((text, modified)) => {
                found.modified = found.modified.max(Some(modified));
                compose::keys(&text, &found.service)
            }
            Err(why) => Keys::Unread { why: why.to_string() },
        };
        files.push(ComposeFile { path: name.clone(), keys });
    }
    let (all, modified) = variables(folder, environment, volumes);
    let (values, unread) = match all {
        Ok(all) => (compose::used_variables(&files, &all), None),
        Err(why) => (BTreeMap::new(), Some(why)),
    };
    let variables = Variables { unread, modified, values };
    found.content = Some(Content::Read { files, variables });
    found
}

fn is_compose_file(name: &str) -> bool {
    [".yml", ".yaml"].iter().any(|ending| name.ends_with(ending))
}

fn is_env_file(name: &str) -> bool {
    name.starts_with(".env") || name.ends_with(".env")
}

/// The variables of the env files, or why they are not known.
type Environment = Result<BTreeMap<String, String>, String>;

/// Reads the env files, and returns when the newest of them changed. `named` is the label for
/// `--env-file`.
fn variables(folder: &Path, named: Option<&str>, volumes: &Volumes) -> (Environment, Option<u64>) {
    let named = named.filter(|names| !names.is_empty());
    let (mut all, mut newest) = (BTreeMap::new(), None);
    for (number, name) in named.unwrap_or(".env").split(',').enumerate() {
        if number == MAX_FILES {
            return (Err(format!("not read: more than {MAX_FILES} env files")), newest);
        }
        let path = folder.join(name);
        match trusted::text(&path, is_env_file, volumes) {
            Ok((text, modified)) => {
                newest = newest.max(Some(modified));
                all.extend(text.lines().filter_map(variable));
            }
            // The default file is optional.
            Err(Unread::Missing) if named.is_none() => {}
            Err(why) => return (Err(format!("{}: {why}", path.display())), newest),
        }
    }
    (Ok(all), newest)
}

/// Parses one `NAME=value`, as compose-go's `dotenv` does: a value ends at its closing quote, or
/// without quotes at ` #`.
fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.trim().trim_start_matches("export ").split_once('=')?;
    let quoted = |quote| value.trim().strip_prefix(quote)?.split(quote).next();
    let bare = || value.split(" #").next().unwrap_or_default().trim();
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or_else(bare);
    (!name.starts_with('#')).then(|| (name.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::diagnose::{compose::judged, facts::Says};

    use super::*;

    #[test]
    fn lines_are_parsed_as_compose_does() {
        for (line, expected) in [
            ("A=25", Some(("A", "25"))),
            ("export A = 25 ", Some(("A", "25"))),
            ("A=25 # of them", Some(("A", "25"))),
            ("A=25#6", Some(("A", "25#6"))),
            ("A= # none", Some(("A", ""))),
            ("A=\"2 #5\" # of them", Some(("A", "2 #5"))),
            ("A='25'", Some(("A", "25"))),
            ("# A=25", None),
            ("A", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(variable(line), expected, "{line}");
        }
    }

    /// Judges a limit `text` with these env files beside it. `named` is the label for `--env-file`.
    fn says(text: &str, files: &[(&str, &str)], named: Option<&str>) -> (Says, Option<u64>) {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("a.yml", &format!("services: {{web: {{pids_limit: \"{text}\"}}}}")).expect("a file");
        for (name, text) in files {
            write(name, text).expect("a file");
            let file = std::fs::File::options().write(true).open(folder.path().join(name));
            let later = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 33);
            file.and_then(|file| file.set_modified(later)).expect("a time");
        }
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link.env"))
            .expect("a link");
        let labels = Compose {
            service: "web".to_owned(),
            files: vec!["a.yml".to_owned()],
            ..Compose::default()
        };
        let folder = folder.path().display().to_string();
        let found = judged(&read(labels, &folder, named, &Volumes::default()));
        (found.says, found.modified)
    }

    #[test]
    fn no_file_is_read_if_the_label_names_too_many() {
        let files = vec!["/nonexistent/a.yml".to_owned(); MAX_FILES + 1];
        let labels = Compose { service: "web".to_owned(), files, ..Compose::default() };
        let found = judged(&read(labels, "", None, &Volumes::default()));
        let Says::Unknown { why } = &found.says else { panic!("{:?}", found.says) };
        assert!(why.contains("more than 32 files") && found.files.len() == MAX_FILES, "{why}");
    }

    #[test]
    fn the_env_files_that_compose_used_are_read() {
        let (production, own) = ([(".env.production", "N=30")], [(".env", "N=30 # many")]);
        let several = [("a.env", "N=1"), ("b.env", "N=30")];
        for (files, named) in [
            (&own[..], None),
            (&own, Some("")),
            (&production, Some(".env.production")),
            (&several, Some("a.env,b.env")),
        ] {
            let (says, modified) = says("${N:-5}", files, named);
            assert!(matches!(says, Says::Limit { value: 30, filled: true, .. }), "{says:?}");
            assert_eq!(modified, Some(1 << 33), "a change of the env file counts for the limit");
        }
        assert!(matches!(says("${N:-5}", &[], None).0, Says::Limit { value: 5, .. }), "no file");
        for named in ["gone.env", "link.env", "secret", "a.env,gone.env"] {
            let (says, _) = says("${N:-5}", &several, Some(named));
            assert!(matches!(says, Says::Unknown { .. }), "{named}: {says:?}");
        }
        let many = "a.env,".repeat(100_000);
        let (unread, _) = says("${N:-5}", &several, Some(&many));
        let Says::Unknown { why } = &unread else { panic!("{unread:?}") };
        assert!(why.contains("more than 32 env files"), "{why}");
        let (says, modified) = says("25", &own, Some("gone.env"));
        assert!(matches!(says, Says::Limit { filled: false, .. }), "no variable: {says:?}");
        assert_ne!(modified, Some(1 << 33), "the limit uses no variable");
    }
}
