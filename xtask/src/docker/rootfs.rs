//! The root folders of the two test images, as tar files under target/docker-rig.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::npm;
use crate::{program, recipe, this_run, workspace};

/// Sends the requests that make the gateway leak: `node /opt/gw/leak.mjs URL COUNT DELAY_MS`.
const LEAK: &str = include_str!("leak.mjs");
/// Keeps servers alive without a gateway: `sh /opt/gw/hold.sh COUNT PACKAGE...`.
const HOLD: &str = include_str!("hold.sh");
/// The version of the folder layout. Must change whenever this file changes the layout.
const LAYOUT: &str = "5";

/// A root folder ready for `docker import`.
pub struct Rootfs {
    pub tar: PathBuf,
    /// A hash of everything that defines the content.
    pub key: String,
}

/// Provides a root folder with only busybox, for tests that need nothing else in a container.
pub fn busybox() -> Result<Rootfs> {
    provide("busybox", &[busybox_identity()?], add_busybox)
}

/// Provides a root folder with busybox, node, npm, MCP servers and the gateway.
pub fn node() -> Result<Rootfs> {
    let mut parts = vec![busybox_identity()?, identity("node")?, npm::own_spec()?];
    parts.extend([npm::GATEWAY, LEAK, HOLD].map(str::to_owned));
    parts.extend(npm::SERVERS.iter().chain(&npm::UNREAD).map(|&part| part.to_owned()));
    provide("node", &parts, |root| {
        add_busybox(root)?;
        add_node(root)?;
        npm::fill(root)?;
        write(&root.join("opt/gw/leak.mjs"), LEAK)?;
        write(&root.join("opt/gw/hold.sh"), HOLD)?;
        link("../../opt/npm/node_modules/npm/bin/npm-cli.js", &root.join("usr/bin/npm"))?;
        link("../../opt/npm/node_modules/npm/bin/npx-cli.js", &root.join("usr/bin/npx"))
    })
}

/// Creates the tar file unless an earlier run did, and removes tar files of older recipes.
fn provide(name: &str, parts: &[String], fill: impl Fn(&Path) -> Result<()>) -> Result<Rootfs> {
    // Two guests may need the same tar file at the same time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let rig = workspace::target().join("docker-rig");
    let key = recipe::key(LAYOUT, parts);
    let tar = rig.join(format!("{name}-{key}.tar"));
    if !tar.is_file() {
        fs::create_dir_all(&rig).with_context(|| format!("cannot create {}", rig.display()))?;
        this_run::remove_left(&rig)?;
        remove_older(&rig, name)?;
        let work = tempfile::Builder::new()
            .prefix(&this_run::prefix(this_run::MAKING))
            .tempdir_in(&rig)
            .with_context(|| format!("cannot create a folder in {}", rig.display()))?;
        let root = work.path().join("root");
        fill(&root)?;
        pack(&root, &work.path().join("tar"))?;
        // Renamed only when complete, so that an interrupted run leaves no partial image.
        fs::rename(work.path().join("tar"), &tar)
            .with_context(|| format!("cannot create {}", tar.display()))?;
    }
    Ok(Rootfs { tar, key })
}

fn remove_older(rig: &Path, name: &str) -> Result<()> {
    let entries = fs::read_dir(rig).with_context(|| format!("cannot list {}", rig.display()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Identifies the version of a host program by its size and time, without reading 100 MB.
fn identity(name: &str) -> Result<String> {
    let file = host_program(name)?;
    let meta = file.metadata().with_context(|| format!("cannot stat {}", file.display()))?;
    let modified = meta.modified().context("this file system does not record times")?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{name} {} {}", meta.len(), since.as_secs()))
}

fn busybox_identity() -> Result<String> {
    identity("busybox")
}

fn host_program(name: &str) -> Result<PathBuf> {
    let file = program::find(name).with_context(|| format!("{name} is not installed"))?;
    file.canonicalize().with_context(|| format!("cannot resolve {}", file.display()))
}

/// Adds the standard folders, and busybox under the name of each of its tools.
pub fn add_busybox(root: &Path) -> Result<()> {
    for folder in ["usr/bin", "etc", "home/u", "opt", "proc", "root", "srv", "sys", "tmp"] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    link("usr/bin", &root.join("bin"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
        .context("cannot make the image's /tmp writable for all users")?;
    write(&root.join("etc/passwd"), "root:x:0:0:root:/home/u:/bin/sh\n")?;
    let busybox = host_program("busybox")?;
    copy(&busybox, &root.join("usr/bin/busybox"))?;
    for tool in program::output(Command::new(&busybox).arg("--list"))?.lines() {
        if tool != "busybox" {
            link("busybox", &root.join("usr/bin").join(tool))?;
        }
    }
    Ok(())
}

/// Adds node, and each library that it needs at the same path as on this host.
fn add_node(root: &Path) -> Result<()> {
    let node = host_program("node")?;
    copy(&node, &root.join("usr/bin/node"))?;
    for library in program::output(Command::new("ldd").arg(&node))?.lines().filter_map(library) {
        let inside = root.join(library.trim_start_matches('/'));
        if let Some(folder) = inside.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        copy(Path::new(library), &inside)?;
    }
    // Debian's node loads parts of itself from here.
    let shared = Path::new("/usr/share/nodejs");
    if shared.is_dir() {
        fs::create_dir_all(root.join("usr/share")).context("cannot create usr/share")?;
        let inside = root.join("usr/share/nodejs");
        program::quietly(Command::new("cp").arg("--archive").arg(shared).arg(inside))?;
    }
    Ok(())
}

/// Returns the path in a line of ldd, such as `libc.so.6 => /lib/libc.so.6 (0x7f..)` or
/// `/lib64/ld.so (0x7f..)`.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

fn pack(root: &Path, tar: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg("--directory").arg(root).arg("--create").arg("--file").arg(tar);
    program::quietly(command.args(["--owner=0", "--group=0", "--numeric-owner", "."]))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn link(target: &str, name: &Path) -> Result<()> {
    symlink(target, name).with_context(|| format!("cannot create the link {}", name.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_ldd_are_read() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007fa8405a8000)"), None);
        assert_eq!(library("\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)"), Some("/lib/x/libc.so.6"));
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
    }
}
