//! Files and folders that go with one run of xtask: named with its pid, and removed by a later run where that
//! was cut off.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What a run needs while it lasts.
pub const RUN: &str = "run";
/// What becomes something else once it is whole.
pub const MAKING: &str = "making";

/// How the name begins of something that goes with this process.
pub fn prefix(what: &str) -> String {
    format!("{what}-{}-", std::process::id())
}

/// Removes from a folder what runs left that were cut off.
pub fn remove_left(folder: &Path) -> Result<()> {
    let lives = |pid: &str| Path::new("/proc").join(pid).exists();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_left(&entry.file_name().to_string_lossy(), lives) {
            let path = entry.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Whether nobody holds what has this name. Another process with its number only keeps it for longer.
fn is_left(name: &str, lives: impl Fn(&str) -> bool) -> bool {
    let rest = name.strip_prefix(RUN).or(name.strip_prefix(MAKING));
    let pid = rest.and_then(|rest| rest.strip_prefix('-')?.split_once('-'));
    pid.is_some_and(|(pid, _)| !lives(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_that_is_gone_made_is_left() {
        let lives = |pid: &str| pid == "7";
        let table = [
            ("run-8-aBc", true),
            ("making-8-aBc", true),
            ("run-7-aBc", false),
            ("trixie-0123456789abcdef", false),
            ("kernel-6.12-0123456789abcdef", false),
        ];
        for (name, left) in table {
            assert_eq!(is_left(name, lives), left, "{name}");
        }
    }
}
