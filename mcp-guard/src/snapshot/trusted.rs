//! Reads files as root that a label of an image names.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::host::{automount::Automounts, way};

/// Most bytes read of one file.
const MAX_FILE: u64 = 1 << 20;
/// The directories in which engines keep the files of containers.
const STORES: [&str; 4] =
    ["/var/lib/docker/", "/var/lib/containers/", "/var/lib/containerd/", "/run/"];
/// The lowest uid of a person; lower ones belong to the system. `/etc/login.defs`, `UID_MIN`.
const FIRST_PERSON: u32 = 1000;
/// The highest uid of a person, below `nobody` and the uids that user namespaces map to.
const LAST_PERSON: u32 = 65_533;
/// The time limit for resolving all links in the names of volumes together.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a file is not read.
#[derive(Debug)]
pub enum Unread {
    Missing,
    Because(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("not read: there is no such file"),
            Self::Because(why) => write!(f, "not read: {why}"),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::Missing;
        }
        Self::Because(error.to_string())
    }
}

/// Reads a text file whose name has the expected form. It also returns when the file changed, in
/// seconds since 1970.
///
/// # Errors
/// If the file is missing, is not trusted, is not text, or is too large.
pub fn text(
    path: &Path,
    has_expected_form: impl Fn(&str) -> bool,
    volumes: &Volumes,
) -> Result<(String, u64), Unread> {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if !path.is_absolute() || !has_expected_form(&name) {
        return Err(Unread::Because("its name is not that of a compose or env file".to_owned()));
    }
    let (file, modified) = open(path, volumes)?;
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read <= MAX_FILE) {
        return Ok((text, modified));
    }
    Err(Unread::Because(format!("larger than {MAX_FILE} bytes")))
}

/// Opens a regular file that belongs to root or a person, in a place where no container can write.
fn open(path: &Path, volumes: &Volumes) -> Result<(File, u64), Unread> {
    // A label must not have root mount a file system of its own choice.
    let automounts = Automounts::read()?;
    way::follow(path, |folder, entry| match automounts.would_mount(folder, entry) {
        true => Err(io::Error::other("an automounter would mount something for it")),
        false => Ok(()),
    })?;
    // The file is checked before it is opened, because opening a device may have an effect. A link
    // must not lead elsewhere, and a link of /proc leads into other mount namespaces.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let place = File::from(place.map_err(io::Error::from)?);
    let meta = place.metadata()?;
    if !meta.is_file() {
        return Err(Unread::Because("it is not a regular file".to_owned()));
    }
    let itself = format!("/proc/self/fd/{}", place.as_raw_fd());
    let real = fs::read_link(&itself)?;
    let folder = real.parent().unwrap_or(Path::new("/"));
    for uid in [meta.uid(), fs::metadata(folder)?.uid()] {
        if uid != 0 && !(FIRST_PERSON..=LAST_PERSON).contains(&uid) {
            let why =
                format!("user {uid}, who owns it or its folder, is neither root nor a person");
            return Err(Unread::Because(why));
        }
    }
    if let Some(place) = volumes.place_of(&real) {
        let why = format!("containers can write to {}", place.display());
        return Err(Unread::Because(why));
    }
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(itself)?;
    Ok((file, u64::try_from(meta.mtime()).unwrap_or(0)))
}

/// Directories that a container can write to, or could if it ran.
#[derive(Default)]
pub struct Volumes {
    named: Vec<PathBuf>,
    /// Those directories with links resolved, once this was needed.
    real: OnceLock<Vec<PathBuf>>,
}

impl Volumes {
    pub fn new(volumes: Vec<String>) -> Self {
        Self { named: volumes.into_iter().map(PathBuf::from).collect(), real: OnceLock::new() }
    }

    /// Returns the directory in which a file lies, if one is a volume.
    fn place_of(&self, file: &Path) -> Option<PathBuf> {
        // `/` is left out: a bind of the whole host would make every file suspect, and its
        // container can do worse.
        let holds = |place: &&PathBuf| place.as_path() != Path::new("/") && file.starts_with(place);
        let stores = STORES.map(PathBuf::from);
        let lexical = stores.iter().chain(&self.named).find(holds);
        // A bind may name its directory through a link.
        lexical.or_else(|| self.real().iter().find(holds)).cloned()
    }

    fn real(&self) -> &[PathBuf] {
        let named: Vec<PathBuf> =
            STORES.iter().map(PathBuf::from).chain(self.named.iter().cloned()).collect();
        self.real.get_or_init(|| without_links(named, |place| place.canonicalize()))
    }
}

/// Resolves links. A path that cannot be resolved in time stays as it is named: a dead file server
/// must not delay a diagnosis.
fn without_links(
    mut places: Vec<PathBuf>,
    resolve: impl Fn(&Path) -> io::Result<PathBuf> + Send + 'static,
) -> Vec<PathBuf> {
    let (sender, resolved) = mpsc::channel();
    let named = places.clone();
    let ask = move || {
        for (at, place) in named.iter().enumerate() {
            let _ = resolve(place).map(|real| sender.send((at, real)));
        }
    };
    if thread::Builder::new().name("volumes".to_owned()).spawn(ask).is_err() {
        return places;
    }
    let until = Instant::now() + PATIENCE;
    while let Ok((at, real)) =
        resolved.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        places[at] = real;
    }
    places
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn why(path: &Path, volumes: &Volumes) -> String {
        match text(path, |name| name.ends_with(".yml"), volumes) {
            Ok(_) => String::new(),
            Err(unread) => unread.to_string(),
        }
    }

    #[test]
    fn only_a_regular_file_outside_all_volumes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("inside")).unwrap();
        symlink(at("inside"), at("bind")).unwrap();
        for name in ["a.yml", "inside/b.yml", "c.txt"] {
            fs::write(at(name), "x").unwrap();
        }
        symlink(at("a.yml"), at("link.yml")).unwrap();
        let volume =
            |name: &str| Volumes::new(vec!["/".to_owned(), at(name).display().to_string()]);
        assert_eq!(why(&at("a.yml"), &volume("inside")), "");
        for place in ["inside", "bind"] {
            let why = why(&at("inside/b.yml"), &volume(place));
            assert!(why.contains("containers can write to"), "{place}: {why}");
        }
        assert!(why(&at("link.yml"), &Volumes::default()).contains("not a regular file"));
        assert!(why(&at("c.txt"), &Volumes::default()).contains("its name is not"));
        assert!(why(&at("no.yml"), &Volumes::default()).contains("no such file"));
        // A link of the kernel to that file, through the root of a process.
        let magic = format!("/proc/self/root{}", at("a.yml").display());
        assert!(why(Path::new(&magic), &Volumes::default()).starts_with("not read:"), "{magic}");
    }

    #[test]
    fn a_volume_that_does_not_answer_delays_nothing() {
        let places = vec![PathBuf::from("/a"), PathBuf::from("/gone"), PathBuf::from("/dead")];
        let real = without_links(places, |place| match place.to_str() {
            Some("/a") => Ok(PathBuf::from("/b")),
            Some("/gone") => Err(io::ErrorKind::NotFound.into()),
            _ => loop {
                thread::park();
            },
        });
        assert_eq!(real, ["/b", "/gone", "/dead"].map(PathBuf::from));
    }
}
