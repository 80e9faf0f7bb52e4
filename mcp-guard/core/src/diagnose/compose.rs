//! Determines the PID limit that compose files declare for one service. Compose itself is not run: if only it
//! could resolve the files, the limit is not known.

mod interpolate;
mod keys;

use std::collections::BTreeMap;

use self::interpolate::interpolate;
pub use self::keys::keys;
use super::{
    facts::{
        Compose, ComposeFile, ComposeTool, Content, Keys, Reached, Says, ServiceKeys, Variables,
        Written,
    },
    version::version,
};

/// The two spellings of the limit.
const SHORT: &str = "pids_limit";
const LONG: &str = "deploy.resources.limits.pids";
/// Since this version the two spellings must agree (compose-go c37fc59).
const MUST_AGREE: Version = (2, 26, 0);
/// The first version that accepts the long spelling. Older ones reject it ("value 'pids' does not match any
/// of the regexes: '^x-'").
const TAKES_LONG: Version = (2, 0, 0);
const MAX_ELSEWHERE: usize = 8;

type Version = (u32, u32, u32);

/// The tool that created the container, as far as it affects how files are read.
#[derive(Clone, Copy, Debug)]
enum Tool {
    /// `docker-compose` or `docker compose`, with its version if known.
    Docker(Option<Version>),
    /// podman-compose, which does not check files against a schema.
    Podman,
}

impl Tool {
    fn of(compose: &Compose) -> Self {
        match compose.tool {
            ComposeTool::PodmanCompose => Self::Podman,
            ComposeTool::Docker => Self::Docker(compose.version.as_deref().and_then(version)),
        }
    }
}

/// Returns the facts with the files judged. Facts of schema 1 have the result already.
#[must_use]
pub fn judged(compose: &Compose) -> Compose {
    let mut judged = compose.clone();
    let Some(content) = &compose.content else { return judged };
    judged.says = says(content, Tool::of(compose));
    if let (Says::Limit { filled: true, .. }, Content::Read { variables, .. }) =
        (&judged.says, content)
    {
        // A change of the env file changes the limit too.
        judged.modified = judged.modified.max(variables.modified);
    }
    judged
}

/// Returns the variables that a limit in these files depends on, in the form of [`Variables::values`].
#[must_use]
pub fn used_variables(
    files: &[ComposeFile],
    all: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    let texts = files.iter().flat_map(|file| written_in(&file.keys));
    let texts = texts.filter_map(|written| written.text.as_deref());
    texts.flat_map(|text| interpolate::used(text, all)).collect()
}

fn written_in(keys: &Keys) -> Vec<&Written> {
    let Keys::Read { service: Reached::There(service), .. } = keys else { return Vec::new() };
    let long = match &service.limits {
        Reached::There(limits) => limits.pids.as_ref(),
        Reached::Absent | Reached::Tagged { .. } => None,
    };
    service.pids_limit.iter().chain(long).collect()
}

/// Reads the files as compose would; `tool` is the one that created the container.
fn says(content: &Content, tool: Tool) -> Says {
    let (files, variables) = match content {
        Content::Unread { why } => return Says::Unknown { why: why.clone() },
        Content::Read { files, variables } => (files, variables),
    };
    // A file that was not read may override all the others.
    let unread = files.iter().find_map(|file| match &file.keys {
        Keys::Unread { why } => Some(format!("{}: {why}", file.path)),
        Keys::Broken { .. } | Keys::Read { .. } => None,
    });
    if let Some(why) = unread {
        return Says::Unknown { why };
    }
    let mut reader = ComposeReader { variables, short: None, long: None, limits: false };
    let mut places = Vec::new();
    for ComposeFile { path, keys } in files {
        if let Err(says) = reader.read(path, keys) {
            return says;
        }
        if let Keys::Read { elsewhere, .. } = keys {
            places.extend(elsewhere.iter().map(|one| format!("{path}:{} ({})", one.line, one.of)));
        }
    }
    places.truncate(MAX_ELSEWHERE);
    reader.verdict(tool, places)
}

/// A limit, and its place in a file.
#[derive(Clone, Debug)]
struct Found {
    value: i64,
    file: String,
    line: u64,
    filled: bool,
}

struct ComposeReader<'a> {
    variables: &'a Variables,
    short: Option<Found>,
    long: Option<Found>,
    /// Whether there is a `deploy.resources.limits`.
    limits: bool,
}

impl ComposeReader<'_> {
    fn read(&mut self, path: &str, keys: &Keys) -> Result<(), Says> {
        let unknown = |why: String| Says::Unknown { why: format!("{path}: {why}") };
        let service = match keys {
            Keys::Unread { why } => return Err(unknown(why.clone())),
            Keys::Broken { why } => return Err(Says::Invalid { why: format!("{path}: {why}") }),
            Keys::Read { include: true, .. } => return Err(unknown("it uses include".to_owned())),
            Keys::Read { service, .. } => there(service).map_err(unknown)?,
        };
        let Some(service) = service else { return Ok(()) };
        if let Some(key) = only_compose(service) {
            return Err(unknown(format!("the service uses {key}")));
        }
        if let Some(written) = &service.pids_limit {
            self.short = Some(self.found(path, written)?);
        }
        let limits = there(&service.limits).map_err(unknown)?;
        self.limits |= limits.is_some();
        if let Some(written) = limits.and_then(|limits| limits.pids.as_ref()) {
            self.long = Some(self.found(path, written)?);
        }
        Ok(())
    }

    fn found(&self, path: &str, written: &Written) -> Result<Found, Says> {
        let line = written.line;
        let place = || format!("{path}:{line}");
        if let Some(tag) = &written.tag {
            return Err(Says::Unknown { why: format!("{}: it uses !{tag}", place()) });
        }
        let no_number = || Says::Invalid { why: format!("{}: the limit is not a number", place()) };
        let text = written.text.as_deref().ok_or_else(no_number)?;
        let (text, filled) = interpolate(text, self.variables)
            .map_err(|why| Says::Unknown { why: format!("{}: {why}", place()) })?;
        let value = text.trim().parse().map_err(|_| match filled {
            true => Says::Unknown {
                why: format!("{}: the value of a variable is not a number", place()),
            },
            false => no_number(),
        })?;
        Ok(Found { value, file: path.to_owned(), line, filled })
    }

    fn verdict(self, tool: Tool, elsewhere: Vec<String>) -> Says {
        if let Some(Found { file, line, .. }) =
            self.short.as_ref().filter(|found| found.filled && found.value == 0)
        {
            let why =
                format!("{file}:{line}: the value of a variable is 0 now, which sets no limit");
            return Says::Unknown { why };
        }
        let (short, long) = (self.short.filter(|found| found.value != 0), self.long);
        let must_agree = match tool {
            Tool::Docker(version) => version.is_none_or(|version| version >= MUST_AGREE),
            Tool::Podman => false,
        };
        if let (Tool::Docker(Some(version)), Some(long)) = (tool, &long)
            && version < TAKES_LONG
        {
            let (file, line) = (&long.file, long.line);
            return Says::Invalid {
                why: format!("{file}:{line}: compose version 1 rejects {LONG}"),
            };
        }
        if must_agree
            && let Some(short) = &short
            && self.limits
            && long.as_ref().is_none_or(|long| long.value != short.value)
        {
            let why = format!(
                "{}:{}: {SHORT} is used beside {}, which does not have the same pids",
                short.file, short.line, "deploy.resources.limits"
            );
            let filled = short.filled || long.is_some_and(|long| long.filled);
            return if filled { Says::Unknown { why } } else { Says::Invalid { why } };
        }
        let short = short.map(|found| (found, SHORT));
        match short.or(long.map(|found| (found, LONG))) {
            Some((Found { value, file, line, filled }, key)) => {
                Says::Limit { value, key: key.to_owned(), file, line, filled }
            }
            None => Says::Nothing { elsewhere },
        }
    }
}

/// Returns a key that brings in or switches off parts of the service as only compose can resolve.
fn only_compose(service: &ServiceKeys) -> Option<&'static str> {
    let keys = [(service.extends, "extends"), (service.profiles, "profiles")];
    keys.into_iter().find_map(|(is_used, key)| is_used.then_some(key))
}

/// Returns None if nothing is there, and an error if a tag on the path decides how it is merged.
fn there<T>(reached: &Reached<T>) -> Result<Option<&T>, String> {
    match reached {
        Reached::Absent => Ok(None),
        Reached::Tagged { key, tag } => Err(format!("{key} uses !{tag}")),
        Reached::There(found) => Ok(Some(found)),
    }
}

#[cfg(test)]
mod tests;
