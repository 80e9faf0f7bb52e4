//! Reads the policy: its file, and the files in the folder beside it.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use mcp_guard_core::{
    escape::{visible, visible_within},
    policy::{Policy, PolicySource},
};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// Most bytes of one file.
const MOST_BYTES: u64 = 1 << 20;
/// Most bytes of all files. The agent keeps them, and hands them out.
const MOST_BYTES_OF_ALL: usize = 4 << 20;
/// Most bytes shown of a line of an error, which may have a line of the file.
const MOST_SHOWN: usize = 1024;
/// Most files in the folder.
const MOST_FILES: usize = 256;

/// A policy, and what it was read from.
#[derive(Debug, Default)]
pub struct ReadPolicy {
    pub policy: Policy,
    /// In the order in which they were read.
    pub sources: Vec<PolicySource>,
}

impl ReadPolicy {
    /// Returns the names of the files.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name.clone()).collect()
    }
}

/// Why a policy cannot be read. The text names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPolicy {
    pub text: String,
    /// It may go away by itself: a file server that fails, or no memory.
    pub is_temporary: bool,
}

impl fmt::Display for BadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl BadPolicy {
    fn new(name: &str, why: impl fmt::Display) -> Self {
        let text = format!("policy {name}: {why}");
        let shown: Vec<String> =
            text.lines().map(|line| visible_within(line, MOST_SHOWN)).collect();
        Self { text: shown.join("\n"), is_temporary: false }
    }

    fn of(path: &Path, error: &io::Error) -> Self {
        let is_loop = error.raw_os_error() == Some(libc::ELOOP);
        let why = if is_loop { " (a link that leads to itself)" } else { "" };
        let bad = Self::new(&shown(path), format!("{error}{why}"));
        let is_lasting = is_loop
            || matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::NotADirectory
                    | ErrorKind::PermissionDenied
                    | ErrorKind::InvalidData
            );
        Self { is_temporary: !is_lasting, ..bad }
    }
}

fn shown(path: &Path) -> String {
    visible(&path.display().to_string())
}

/// Returns the folder with more files of a policy: `policy.d` beside `policy.toml`.
#[must_use]
pub fn folder(path: &Path) -> PathBuf {
    path.with_extension("d")
}

/// Reads a policy: the file, then those in the folder beside it whose name ends with `.toml`, by name.
///
/// # Errors
/// If a file cannot be read, or says what no policy may say.
pub fn read(path: &Path) -> Result<ReadPolicy, BadPolicy> {
    let mut sources = vec![source(path)?];
    let folder = Some(folder(path)).filter(|folder| folder != path);
    for path in folder.map_or(Ok(Vec::new()), |folder| more(&folder))? {
        sources.push(source(&path)?);
        let bytes: usize = sources.iter().map(|source| source.text.len()).sum();
        if bytes > MOST_BYTES_OF_ALL {
            let why = "with it, all files together are larger than 4 MiB; use patterns with `*`";
            return Err(BadPolicy::new(&shown(&path), why));
        }
    }
    let policy = Policy::load(&sources).map_err(|error| {
        let name = sources.get(error.file).map_or("", |source| &source.name);
        BadPolicy::new(name, error)
    })?;
    Ok(ReadPolicy { policy, sources })
}

/// Lists the files in the folder, which need not exist. A name that begins with a dot is an editor's.
fn more(folder: &Path) -> Result<Vec<PathBuf>, BadPolicy> {
    let bad = |error: &io::Error| BadPolicy::of(folder, error);
    let entries = match fs::read_dir(folder) {
        // A link that leads nowhere may lead to a file system that is not mounted now.
        Err(error) if error.kind() == ErrorKind::NotFound && !is_link(folder) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(|error| bad(&error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| bad(&error))?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.ends_with(b".toml") || name.starts_with(b".") {
            continue;
        }
        if paths.len() == MOST_FILES {
            let why = format!("more than {MOST_FILES} files; join some of them");
            return Err(BadPolicy::new(&shown(folder), why));
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_symlink())
}

fn source(path: &Path) -> Result<PolicySource, BadPolicy> {
    let text = text(path).map_err(|error| BadPolicy::of(path, &error))?;
    Ok(PolicySource { name: shown(path), text })
}

/// Reads a regular file. Anything else is not opened: a FIFO would wait for a writer, and a device may act.
fn text(path: &Path) -> io::Result<String> {
    let bad = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
    let found = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
    if kind == FileType::Directory {
        return Err(bad("it is a directory, and must be a file"));
    }
    if kind != FileType::RegularFile {
        return Err(bad("it is not a regular file"));
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(bad("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        bad(&format!("line {line} is not UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// A policy in a folder, with these files in `policy.d`.
    fn with(more: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "[detect.burst]\nwarn_10s = 3\n[[guard]]\nname = \"a\"\n").unwrap();
        fs::create_dir(folder.path().join("policy.d")).unwrap();
        for (name, text) in more {
            fs::write(folder.path().join("policy.d").join(name), text).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn the_files_of_the_folder_follow_by_name() {
        let (_folder, path) = with(&[
            ("20.toml", "[detect.burst]\nwarn_10s = 5\n"),
            ("10.toml", "[detect.burst]\nwarn_10s = 4\n[[guard]]\nname = \"b\"\n"),
            (".#30.toml", "nonsense"),
            ("README", "nonsense"),
        ]);
        let found = read(&path).unwrap();
        let (policy, files) = (&found.policy, found.files());
        assert_eq!((policy.detect().burst.warn_10s, policy.guard.len()), (5, 2));
        let names: Vec<_> = files.iter().map(|file| file.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["policy.toml", "10.toml", "20.toml"]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_the_reason() {
        let (folder, path) = with(&[("10.toml", "mode = \"on\"\n"), ("11.toml", "\n\u{fc}")]);
        let bad = || read(&path).unwrap_err();
        let in_folder = |name: &str| folder.path().join("policy.d").join(name);
        let error = bad();
        assert!(error.text.contains("policy.d/10.toml: TOML parse error at line 1"), "{error}");
        fs::remove_file(in_folder("10.toml")).unwrap();
        fs::write(in_folder("11.toml"), b"\n\xff").unwrap();
        assert!(bad().text.contains("line 2 is not UTF-8"));
        fs::write(in_folder("11.toml"), "#".repeat(10 << 20)).unwrap();
        assert!(bad().text.ends_with("11.toml: it is larger than 1 MiB"));
        fs::remove_file(in_folder("11.toml")).unwrap();
        (1..=5).for_each(|at| {
            fs::write(in_folder(&format!("2{at}.toml")), "#".repeat(1 << 20)).unwrap();
        });
        assert!(bad().text.contains("24.toml: with it, all files together are larger than 4 MiB"));
        (1..=5).for_each(|at| fs::remove_file(in_folder(&format!("2{at}.toml"))).unwrap());
        symlink("12.toml", in_folder("12.toml")).unwrap();
        assert!(bad().text.contains("a link that leads to itself"), "{}", bad());
        fs::remove_file(in_folder("12.toml")).unwrap();
        fs::create_dir(in_folder("13.toml")).unwrap();
        assert!(bad().text.contains("it is a directory"));
        fs::remove_dir(in_folder("13.toml")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, in_folder("14.toml"), Mode::RUSR).unwrap();
        assert!(bad().text.contains("it is not a regular file"));
        fs::remove_file(in_folder("14.toml")).unwrap();
        assert!(!bad_folder(&path).is_temporary);
        for at in 0..=MOST_FILES {
            fs::write(in_folder(&format!("{at}.toml")), "").unwrap();
        }
        assert!(bad().text.contains("more than 256 files"));
        assert!(!read(Path::new("/nonexistent")).unwrap_err().is_temporary);
    }

    /// Rules and entries, about as many as a policy may have, whose text is `part` of the largest file.
    fn large(part: usize) -> String {
        let room = (1 << 20) / part;
        let entries = 900 / part;
        let mut text: String = (0..entries)
            .map(|at| format!("[server.\"package-{at}-*\"]\nignore = true\n"))
            .collect();
        let rules = 9000 / part;
        let filler = "x".repeat((room - text.len()) / rules - 40);
        text.extend((0..rules).map(|at| format!("[[guard]]\nname = \"{at:06}-{filler}\"\n")));
        assert!((room / 10 * 8..room).contains(&text.len()), "{} of {room}", text.len());
        text
    }

    /// The processor time that reading it takes, the least of three times.
    fn time_of(text: &str) -> Duration {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, text).unwrap();
        let once = |_| {
            let begin = processor_time();
            read(&path).unwrap();
            processor_time() - begin
        };
        (0..3).map(once).min().unwrap()
    }

    fn processor_time() -> Duration {
        clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
    }

    /// Eight times as much takes about eight times as long. If each value were searched for from the beginning of its
    /// file, it would take 64 times as long.
    #[test]
    fn the_largest_file_is_read_in_linear_time() {
        let (small, large) = (time_of(&large(8)), time_of(&large(1)));
        assert!(large < 20 * small, "{large:?}, an eighth {small:?}");
    }

    /// A file where the folder should be.
    fn bad_folder(path: &Path) -> BadPolicy {
        let other = path.with_file_name("other.toml");
        fs::write(&other, "").unwrap();
        fs::write(folder(&other), "").unwrap();
        read(&other).unwrap_err()
    }

    #[test]
    fn a_folder_that_is_a_link_to_nowhere_is_an_error() {
        let (_folder, path) = with(&[]);
        fs::remove_dir(folder(&path)).unwrap();
        assert!(read(&path).is_ok(), "it need not exist");
        symlink("/nonexistent/policy.d", folder(&path)).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.text.contains("policy.d: No such file"), "{error}");
    }

    #[test]
    fn a_link_to_a_file_is_followed() {
        let (folder, path) = with(&[]);
        fs::write(folder.path().join("real"), "mode = \"enforce\"\n").unwrap();
        symlink("../real", folder.path().join("policy.d/10.toml")).unwrap();
        assert_eq!(read(&path).unwrap().policy.mode, mcp_guard_core::policy::Mode::Enforce);
    }
}
