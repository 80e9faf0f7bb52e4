//! The committed object, and the hashes beside it: one of its sources, one of its own bytes.
//!
//! The agent runs the object as root in the kernel. Its own hash makes a change of the object alone visible
//! where it cannot be built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The folder with both files.
pub struct Committed(PathBuf);

impl Committed {
    pub fn of(root: &Path) -> Self {
        Self(root.join("mcp-guard/bpf"))
    }

    pub fn object(&self) -> PathBuf {
        self.0.join("mcp-guard.bpf.o")
    }

    fn hashes(&self) -> PathBuf {
        self.0.join("mcp-guard.bpf.sources")
    }

    /// Replaces the object and its hashes.
    pub fn replace(&self, built: &Path, sources: &str) -> Result<()> {
        let folder = &self.0;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        fs::copy(built, self.object())
            .with_context(|| format!("cannot copy {}", built.display()))?;
        let file = self.hashes();
        let text = format!("sources {sources}\nobject {}\n", sha256(&read(&self.object())?));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Fails unless the object has exactly these bytes.
    pub fn has_bytes_of(&self, built: &Path) -> Result<()> {
        if read(built)? != read(&self.object())? {
            bail!(
                "{} differs from a build of its sources; run `cargo xtask ebpf` and commit the result",
                self.object().display()
            );
        }
        Ok(())
    }

    /// Fails unless both hashes are right. `sources` is the hash of the sources as they are now.
    pub fn has_hashes(&self, sources: &str) -> Result<()> {
        let text = String::from_utf8_lossy(&read(&self.hashes())?).into_owned();
        let object = sha256(&read(&self.object())?);
        let what = self.object().display().to_string();
        for (key, now, changed) in [
            ("sources", sources, format!("the sources of {what} have changed")),
            ("object", &object, format!("{what} has changed without its hash")),
        ] {
            let committed = value(&text, key).unwrap_or("none");
            if committed != now {
                bail!(
                    "{changed} (hash {now}, committed {committed}); \
                     run `cargo xtask ebpf` and commit the result"
                );
            }
        }
        Ok(())
    }
}

/// Returns the rest of the line that begins with `key`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file)
        .with_context(|| format!("cannot read {}; `cargo xtask ebpf` creates it", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    fn committed() -> (tempfile::TempDir, Committed) {
        let root = tempfile::tempdir().unwrap();
        let built = root.path().join("built.o");
        fs::write(&built, "object").unwrap();
        let committed = Committed::of(root.path());
        committed.replace(&built, "abc").unwrap();
        committed.has_bytes_of(&built).unwrap();
        committed.has_hashes("abc").unwrap();
        (root, committed)
    }

    #[test]
    fn an_object_that_changed_alone_fails() {
        let (_root, committed) = committed();
        fs::write(committed.object(), "Object").unwrap();
        let error = committed.has_hashes("abc").unwrap_err().to_string();
        assert!(error.contains("has changed without its hash"), "{error}");
    }

    #[test]
    fn changed_sources_and_missing_lines_fail() {
        let (_root, committed) = committed();
        let error = committed.has_hashes("abd").unwrap_err().to_string();
        assert!(error.contains("the sources of"), "{error}");
        for text in ["", "sources abc\n", "abc\n"] {
            fs::write(committed.hashes(), text).unwrap();
            assert!(committed.has_hashes("abc").is_err(), "{text:?}");
        }
        fs::remove_file(committed.object()).unwrap();
        assert!(committed.has_hashes("abc").is_err());
    }

    #[test]
    fn the_object_of_this_repository_has_its_hashes() {
        let root = workspace::root();
        let sources = super::super::sources::hash(&root).unwrap();
        Committed::of(&root).has_hashes(&sources).unwrap();
    }
}
