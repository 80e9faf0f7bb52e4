//! The hash of everything from which the committed object is built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{build, toolchain};

/// Returns a hex SHA-256 of the names and contents of all sources, the flags and the toolchain.
///
/// Each part is hashed with its length before it, so that moving a byte from one file to the next
/// changes the hash.
pub fn hash(root: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    add(&mut hasher, "flags", build::FLAGS.join(" ").as_bytes());
    add(&mut hasher, "rustc", toolchain::PINNED_RUSTC.as_bytes());
    add(&mut hasher, "linker", toolchain::PINNED_LINKER.as_bytes());
    add(&mut hasher, "inherited", inherited(root)?.as_bytes());
    for name in names(root)? {
        let file = root.join(&name);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        add(&mut hasher, &name.to_string_lossy(), &content);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add(hasher: &mut Sha256, name: &str, content: &[u8]) {
    for part in [name.as_bytes(), content] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

/// Returns the source files, relative to the root and sorted.
fn names(root: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    let optional = [
        "mcp-guard-ebpf/rust-toolchain",
        "mcp-guard-ebpf/rust-toolchain.toml",
        "mcp-guard-ebpf/.cargo/config.toml",
    ];
    for name in optional.into_iter().filter(|name| root.join(name).is_file()) {
        names.push(PathBuf::from(name));
    }
    for name in
        ["mcp-guard-ebpf/Cargo.toml", "mcp-guard-ebpf/Cargo.lock", "mcp-guard-common/Cargo.toml"]
    {
        names.push(PathBuf::from(name));
    }
    for folder in ["mcp-guard-ebpf", "mcp-guard-common/src"] {
        rust_files(root, Path::new(folder), &mut names)?;
    }
    names.sort();
    Ok(names)
}

fn rust_files(root: &Path, folder: &Path, names: &mut Vec<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let name = folder.join(entry.file_name());
        if entry.path().is_dir() {
            if entry.file_name() != "target" {
                rust_files(root, &name, names)?;
            }
        } else if name.extension().is_some_and(|extension| extension == "rs") {
            names.push(name);
        }
    }
    Ok(())
}

/// Returns the lines of the root Cargo.toml that mcp-guard-common inherits (`NAME.workspace = true`).
///
/// The rest of that file is about the agent: a new dependency of the agent must not require a new
/// object.
fn inherited(root: &Path) -> Result<String> {
    let read = |name: &str| {
        fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let common = read("mcp-guard-common/Cargo.toml")?;
    let keys: Vec<&str> =
        common.lines().filter(|line| line.contains("workspace")).map(key).collect();
    let workspace = read("Cargo.toml")?;
    let lines: Vec<&str> =
        workspace.lines().filter(|line| line.contains('=') && keys.contains(&key(line))).collect();
    Ok(lines.join("\n"))
}

/// Returns the first word of a TOML line: `zerocopy` for both `zerocopy.workspace = true` and
/// `zerocopy = "1"`.
fn key(line: &str) -> &str {
    line.split(['.', ' ', '=']).next().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["mcp-guard-ebpf/src", "mcp-guard-ebpf/target", "mcp-guard-common/src"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for (name, text) in [
            ("Cargo.toml", "edition = \"2024\"\nzerocopy = \"0.8\"\ntokio = \"1\"\n"),
            ("mcp-guard-ebpf/Cargo.toml", ""),
            ("mcp-guard-ebpf/Cargo.lock", ""),
            ("mcp-guard-ebpf/src/main.rs", "ab"),
            ("mcp-guard-ebpf/src/maps.rs", "c"),
            (
                "mcp-guard-common/Cargo.toml",
                "edition.workspace = true\nzerocopy.workspace = true\n",
            ),
            ("mcp-guard-common/src/lib.rs", ""),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        root
    }

    fn changed(name: &str, text: &str) -> bool {
        let root = repository();
        let before = hash(root.path()).unwrap();
        fs::write(root.path().join(name), text).unwrap();
        before != hash(root.path()).unwrap()
    }

    #[test]
    fn a_changed_source_changes_the_hash() {
        assert!(changed("mcp-guard-ebpf/src/main.rs", "aB"));
        assert!(changed("mcp-guard-ebpf/src/new.rs", ""));
        assert!(changed("mcp-guard-ebpf/Cargo.lock", "x"));
        assert!(changed("mcp-guard-common/src/lib.rs", "x"));
    }

    #[test]
    fn only_inherited_lines_of_the_root_manifest_count() {
        let agent_only = "edition = \"2024\"\nzerocopy = \"0.8\"\ntokio = \"2\"\n";
        let shared = "edition = \"2024\"\nzerocopy = \"0.9\"\ntokio = \"1\"\n";
        assert!(!changed("Cargo.toml", agent_only));
        assert!(changed("Cargo.toml", shared));
    }

    #[test]
    fn built_files_do_not_count() {
        assert!(!changed("mcp-guard-ebpf/target/out.rs", "x"));
    }

    #[test]
    fn moving_a_byte_between_files_changes_the_hash() {
        let root = repository();
        let before = hash(root.path()).unwrap();
        fs::write(root.path().join("mcp-guard-ebpf/src/main.rs"), "a").unwrap();
        fs::write(root.path().join("mcp-guard-ebpf/src/maps.rs"), "bc").unwrap();
        assert_ne!(before, hash(root.path()).unwrap());
    }
}
