//! The names under which `launcher-lookalike` runs its parts. They are links to the program, because a process
//! is what its executable says, whatever the first word of its command line claims.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::workload;

/// The hidden variable that says which part of a tree a process plays. `node` waits for the end of its input.
pub const ROLE: &str = "LOOKALIKE_ROLE";
const NAMES: [&str; 3] = ["npm", "sh", "node"];
const FOLDER: &str = "lookalike";

/// Returns the folder of the program, in which a folder `lookalike` has the links. A container that mounts it
/// could not make them.
pub fn folder() -> Result<PathBuf> {
    let links = links(&workload("launcher-lookalike")?)?;
    Ok(links.parent().context("the links are in a folder")?.to_owned())
}

/// Returns the folder with the links to the program, beside it. Links to an earlier build are replaced. On a
/// file system that cannot be written, as in a virtual machine, they are beside a copy of the program.
pub fn links(program: &Path) -> Result<PathBuf> {
    let folder = program.with_file_name(FOLDER);
    match fs::create_dir_all(&folder) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            let copy =
                copy(program).with_context(|| format!("cannot copy {}", program.display()))?;
            links_beside(&copy)
        }
        made => {
            made.with_context(|| format!("cannot create {}", folder.display()))?;
            links_beside(program)
        }
    }
}

fn copy(program: &Path) -> Result<PathBuf> {
    let folder = env::temp_dir().join("mcp-guard-test-lookalike");
    fs::create_dir_all(folder.join(FOLDER))?;
    let copy = folder.join(program.file_name().context("a program has a name")?);
    let length = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
    if length(&copy) != length(program) {
        let new = folder.join(format!(".new-{}", std::process::id()));
        fs::copy(program, &new)?;
        fs::rename(&new, &copy)?;
    }
    Ok(copy)
}

fn links_beside(program: &Path) -> Result<PathBuf> {
    let folder = program.with_file_name(FOLDER);
    let file = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    for name in NAMES {
        let link = folder.join(name);
        if file(&link).is_some() && file(&link) == file(program) {
            continue;
        }
        let new = folder.join(format!(".{name}-{}", std::process::id()));
        fs::hard_link(program, &new)
            .and_then(|()| fs::rename(&new, &link))
            .with_context(|| format!("cannot link {} to {}", program.display(), link.display()))?;
        // A rename from one link to another of the same file does nothing: somebody else was faster.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(folder)
}
