//! Corrects a command line that claims another program than the one that runs.

use super::{
    Grammar,
    argv::{base_name, is_version, program_name},
    table::Runs,
    tool::KnownProgram,
};

/// Executables that are several programs, and are told by their first word which to be.
const SHIMS: [&str; 6] = ["volta-shim", "mise", "asdf", "proto-shim", "snap", "rustup"];
/// Those that are small tools and shells, and no launchers.
const TOOLBOXES: [&str; 4] = ["busybox", "toybox", "coreutils", "uutils"];
/// An executable, and another program that it may be as well.
const ALIASES: [(&str, &str); 3] = [("bun", "bunx"), ("uv", "uvx"), ("podman", "docker")];
/// Executables that run a program of another kind: emulators, and the dynamic linker.
const LOADERS: [&str; 2] = ["qemu-", "ld-linux"];

/// Returns the executable as a path or a name. `None` if it names no file.
pub(super) fn executable(exe: &str) -> Option<&str> {
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    let name = match exe.strip_prefix("/memfd:") {
        // Somebody made a copy of itself: `memfd:runc_cloned:/proc/self/exe`.
        Some(name) => Some(name).filter(|name| !name.contains('/')),
        None => Some(exe).filter(|exe| names_a_file(exe)),
    };
    name.filter(|name| !name.is_empty())
}

/// Returns whether a path says which file it is. Not if it is a link of the kernel, through which a program starts
/// itself again: `/proc/self/exe`, `/dev/fd/3`.
pub(super) fn names_a_file(path: &str) -> bool {
    let is_link = ["/proc/", "/dev/fd/"].iter().any(|folder| path.starts_with(folder));
    let name = base_name(path);
    !is_link || (name != "exe" && !name.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Grammar {
    /// Returns the words with the executable as the first, if the first claims another program.
    pub(super) fn checked<'a>(&self, exe: &'a str, words: Vec<&'a str>) -> Vec<&'a str> {
        match words.first() {
            Some(first) if self.agrees(exe, first, &words[1..]) => words,
            Some(_) | None => [exe].into_iter().chain(words.into_iter().skip(1)).collect(),
        }
    }

    fn agrees(&self, exe: &str, first: &str, arguments: &[&str]) -> bool {
        let (real, claimed) = (program_name(exe), program_name(first));
        if real == claimed
            || SHIMS.contains(&real)
            || LOADERS.iter().any(|loader| real.starts_with(loader))
            || ALIASES.contains(&(real, claimed))
        {
            return true;
        }
        let [real_tool, claimed_tool] = [real, claimed].map(|name| self.tool(name));
        let claimed_runs = claimed_tool.map(|tool| tool.runs);
        let is_toolbox = TOOLBOXES.contains(&real);
        match (real_tool, claimed_runs) {
            // A symbolic link by a version: `claude` is `.../versions/1.0.30`.
            (None, None) => is_toolbox || (is_version(base_name(exe)) && !first.contains(' ')),
            (_, Some(Runs::Shell | Runs::Wrapper | Runs::Env)) if is_toolbox => true,
            // `sh` is `bash`, `nodejs` is `node`.
            (Some(tool), Some(Runs::Shell)) if tool.runs == Runs::Shell => true,
            (Some(tool), Some(_)) if claimed_tool == Some(tool) => true,
            // npm renames itself.
            (Some(_), Some(_)) if real == "node" && first == "npm" => true,
            // `#!`: the executable is the script, which the interpreter has as an argument.
            (_, Some(Runs::Script(_) | Runs::FileOnly(_) | Runs::Env | Runs::Shell)) => {
                arguments.iter().take(4).any(|word| base_name(word) == base_name(exe))
            }
            _ => false,
        }
    }

    pub(super) fn tool(&self, program: &str) -> Option<&KnownProgram> {
        self.tools.iter().find(|tool| tool.is_named(program))
    }
}
