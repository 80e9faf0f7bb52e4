//! Compose files, read as root although a label of an image named them.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use mcp_guard_core::diagnose::{
    compose::{self, Tool},
    facts::{Compose, PODMAN_COMPOSE, Says},
    version::version,
};

/// Bytes read of one file.
const MAX_FILE: u64 = 1 << 20;
/// Where engines keep the files of containers.
const STORES: [&str; 4] =
    ["/var/lib/docker/", "/var/lib/containers/", "/var/lib/containerd/", "/run/"];
/// Users from here on are people; those below belong to the system. `/etc/login.defs`, `UID_MIN`.
const FIRST_PERSON: u32 = 1000;
/// `nobody`, and the first of those that user namespaces map to.
const LAST_PERSON: u32 = 65_533;

/// A file that may be read, and when it changed.
struct Trusted {
    file: File,
    modified: u64,
}

/// Reads what the labels name. `volumes` are folders that containers can write to.
pub fn read(
    mut found: Compose,
    working_dir: &str,
    environment: Option<&str>,
    volumes: &[String],
) -> Compose {
    let folder = Path::new(working_dir);
    // Version 1 of compose stores a relative name.
    let full = |file: &String| folder.join(file).display().to_string();
    found.files = found.files.iter().map(full).collect();
    let mut texts = Vec::new();
    for name in &found.files {
        match text(Path::new(name), &["yml", "yaml"], volumes) {
            Ok((text, modified)) => {
                found.modified = found.modified.max(Some(modified));
                texts.push((name.clone(), text));
            }
            Err(why) => {
                found.says = Says::Unknown { why: format!("{name}: {why}") };
                return found;
            }
        }
    }
    if texts.is_empty() {
        found.says = Says::Unknown { why: "no label names a file".to_owned() };
        return found;
    }
    let variables = variables(&folder.join(environment.unwrap_or(".env")), volumes);
    let files: Vec<compose::File<'_>> =
        texts.iter().map(|(path, text)| compose::File { path, text }).collect();
    let tool = match found.tool.as_str() {
        PODMAN_COMPOSE => Tool::Podman,
        _ => Tool::Docker(found.version.as_deref().and_then(version)),
    };
    found.says = compose::read(&files, &variables, &found.service, tool);
    found
}

/// `NAME=value` lines. What is not there is no error: a project needs no such file.
fn variables(path: &Path, volumes: &[String]) -> BTreeMap<String, String> {
    let Ok((text, _)) = text(path, &["env"], volumes) else { return BTreeMap::new() };
    let variable = |line: &str| {
        let (name, value) = line.trim().trim_start_matches("export ").split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!name.starts_with('#')).then(|| (name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(variable).collect()
}

fn text(path: &Path, endings: &[&str], volumes: &[String]) -> Result<(String, u64), String> {
    let Trusted { file, modified } = open(path, endings, volumes)?;
    let mut text = String::new();
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Ok(read) if u64::try_from(read).is_ok_and(|read| read <= MAX_FILE) => Ok((text, modified)),
        Ok(_) => Err(format!("larger than {MAX_FILE} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

/// A regular file of root or a person, of the right kind, where no container can write.
fn open(path: &Path, endings: &[&str], volumes: &[String]) -> Result<Trusted, String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = name.rsplit('.').next().unwrap_or_default();
    if !path.is_absolute() || !endings.contains(&ending) {
        return Err(format!("not read: its name does not end in .{}", endings.join(" or .")));
    }
    // A pipe must not hold us up, and a link must not lead elsewhere.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| format!("not read: {error}"))?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("not read: it is no regular file".to_owned());
    }
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let real = real.map_err(|error| error.to_string())?;
    let folder = real.parent().unwrap_or(Path::new("/")).to_path_buf();
    let owner = std::fs::metadata(&folder).map_err(|error| error.to_string())?.uid();
    for uid in [meta.uid(), owner] {
        if uid != 0 && !(FIRST_PERSON..=LAST_PERSON).contains(&uid) {
            return Err(format!("not read: user {uid} owns it, who is neither root nor a person"));
        }
    }
    if let Some(place) = of_a_container(&real, volumes) {
        return Err(format!("not read: containers can write to {place}"));
    }
    Ok(Trusted { file, modified: u64::try_from(meta.mtime()).unwrap_or(0) })
}

/// The place a container can write to in which a file lies.
fn of_a_container(real: &Path, volumes: &[String]) -> Option<String> {
    let volumes = volumes.iter().map(String::as_str);
    // A bind of the whole host would make every file suspect, and its owner can do worse.
    let places = STORES.into_iter().chain(volumes).filter(|place| *place != "/");
    places
        // A bind may name its folder through a link.
        .map(|place| std::fs::canonicalize(place).unwrap_or_else(|_| PathBuf::from(place)))
        .find(|place| real.starts_with(place))
        .map(|at| at.display().to_string())
}
