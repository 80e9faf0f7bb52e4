//! Files and folders of one run of xtask. Their names have its pid, so that a later run can remove them
//! if that run was interrupted.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The kind of files that are needed only during a run.
pub const RUN: &str = "run";
/// The kind of files that are renamed once they are complete.
pub const MAKING: &str = "making";

/// Returns the prefix for names of files and folders of this process.
pub fn prefix(what: &str) -> String {
    format!("{what}-{}-", std::process::id())
}

/// Removes from a folder what interrupted runs left in it.
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

/// Returns whether the process that made this file has ended. If its pid was reused, the file is only
/// kept for longer.
fn is_left(name: &str, lives: impl Fn(&str) -> bool) -> bool {
    let rest = name.strip_prefix(RUN).or(name.strip_prefix(MAKING));
    let pid = rest.and_then(|rest| rest.strip_prefix('-')?.split_once('-'));
    pid.is_some_and(|(pid, _)| !lives(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_process_that_has_ended_are_leftovers() {
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
