//! What compose files say of one service's PID limit. Nothing is run: where only compose itself could
//! tell, the answer is that it is not known.

use std::collections::BTreeMap;

use super::{
    facts::Says,
    yaml::{At, Document},
};

/// One file, in the order in which compose reads them: later ones win.
pub struct File<'a> {
    pub path: &'a str,
    pub text: &'a str,
}

/// The two spellings.
const SHORT: &str = "pids_limit";
const LONG: &str = "deploy.resources.limits.pids";
/// From this version on the two spellings must agree (compose-go c37fc59).
const MUST_AGREE: Version = (2, 26, 0);
/// Before it the long spelling was refused ("value 'pids' does not match any of the regexes: '^x-'").
const TAKES_LONG: Version = (2, 0, 0);
/// Keys of a service that change what another place says of it.
const ONLY_COMPOSE: [&str; 2] = ["extends", "profiles"];
const MAX_ELSEWHERE: usize = 8;

type Version = (u32, u32, u32);

/// What made the container, as far as it matters to how it reads its files.
#[derive(Clone, Copy, Debug)]
pub enum Tool {
    /// `docker-compose`, `docker compose`, of a version if it is known.
    Docker(Option<Version>),
    /// podman-compose checks no file against a schema.
    Podman,
}

/// A limit where it stands.
#[derive(Clone, Debug)]
struct Found {
    value: i64,
    file: String,
    line: u64,
    filled: bool,
}

/// Those of the project's env files, or why they are not known.
pub type Variables = Result<BTreeMap<String, String>, String>;

/// Reads the files as compose would; `tool` is what made the container.
#[must_use]
pub fn read(files: &[File<'_>], variables: &Variables, service: &str, tool: Tool) -> Says {
    let mut reader = Reader { variables, service, short: None, long: None, limits: false };
    let mut elsewhere = Vec::new();
    for file in files {
        let document = match Document::parse(file.text) {
            Ok(document) => document,
            Err(error) => return Says::Invalid { why: format!("{}: {error}", file.path) },
        };
        if let Err(why) = reader.read(file.path, &document) {
            return why;
        }
        elsewhere.extend(elsewhere_in(file.path, &document, service));
    }
    elsewhere.truncate(MAX_ELSEWHERE);
    reader.verdict(tool, elsewhere)
}

struct Reader<'a> {
    variables: &'a Variables,
    service: &'a str,
    short: Option<Found>,
    long: Option<Found>,
    /// There is a `deploy.resources.limits`.
    limits: bool,
}

impl Reader<'_> {
    fn read(&mut self, path: &str, document: &Document) -> Result<(), Says> {
        let Some(root) = document.root() else { return Ok(()) };
        let unknown = |why: String| Says::Unknown { why: format!("{path}: {why}") };
        if document.get(root, "include").is_some() {
            return Err(unknown("it uses include".to_owned()));
        }
        let go = |from, keys: &[&str]| walk(document, from, keys).map_err(&unknown);
        let Some(service) = go(root, &["services", self.service])? else { return Ok(()) };
        if let Some(key) = ONLY_COMPOSE.into_iter().find(|key| document.get(service, key).is_some())
        {
            return Err(unknown(format!("the service uses {key}")));
        }
        if let Some(at) = document.get(service, SHORT) {
            self.short = Some(self.found(path, document, at)?);
        }
        let limits = go(service, &["deploy", "resources", "limits"])?;
        self.limits |= limits.is_some();
        if let Some(at) = limits.and_then(|limits| document.get(limits, "pids")) {
            self.long = Some(self.found(path, document, at)?);
        }
        Ok(())
    }

    fn found(&self, path: &str, document: &Document, at: At) -> Result<Found, Says> {
        let line = document.line(at);
        let place = || format!("{path}:{line}");
        if let Some(tag) = document.tag(at) {
            return Err(Says::Unknown { why: format!("{}: it uses !{tag}", place()) });
        }
        let text = document
            .scalar(at)
            .ok_or_else(|| Says::Invalid { why: format!("{}: the limit is no number", place()) })?;
        let (text, filled) = interpolate(text, self.variables)
            .map_err(|why| Says::Unknown { why: format!("{}: {why}", place()) })?;
        // What was filled in is not printed: it may be any variable, a secret too.
        let value = text.trim().parse().map_err(|_| match filled {
            true => Says::Unknown { why: format!("{}: a variable that is no number", place()) },
            false => Says::Invalid { why: format!("{}: the limit is no number", place()) },
        })?;
        Ok(Found { value, file: path.to_owned(), line, filled })
    }

    fn verdict(self, tool: Tool, elsewhere: Vec<String>) -> Says {
        if let Some(Found { file, line, .. }) =
            self.short.as_ref().filter(|found| found.filled && found.value == 0)
        {
            let why = format!("{file}:{line}: a variable that is 0 now, which sets no limit");
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
            return Says::Invalid { why: format!("{file}:{line}: version 1 refuses {LONG}") };
        }
        if must_agree
            && let Some(short) = &short
            && self.limits
            && long.as_ref().is_none_or(|long| long.value != short.value)
        {
            let why = format!(
                "{}:{}: {SHORT} stands beside {} without the same pids in it",
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

/// The node below these keys. An error where a tag on the way (`!reset`, `!override`) changes how
/// compose merges it.
fn walk(document: &Document, from: At, keys: &[&str]) -> Result<Option<At>, String> {
    let mut at = from;
    for key in keys {
        let Some(next) = document.get(at, key) else { return Ok(None) };
        if let Some(tag) = document.tag(next) {
            return Err(format!("{key} uses !{tag}"));
        }
        at = next;
    }
    Ok(Some(at))
}

/// Limits in the file that are not this service's: `FILE:LINE (service NAME)`.
fn elsewhere_in(path: &str, document: &Document, service: &str) -> Vec<String> {
    let Some(root) = document.root() else { return Vec::new() };
    let services = document.get(root, "services");
    let others = services.into_iter().flat_map(|services| document.pairs(services));
    let others =
        others.filter(|(name, _)| *name != service).map(|(name, at)| ("service", name, at));
    let anchors = document.pairs(root).filter(|(name, _)| name.starts_with("x-"));
    let anchors = anchors.map(|(name, at)| ("extension", name, at));
    let place = |(kind, name, at): (&str, &str, At)| {
        let line = document.line(document.get(at, SHORT)?);
        Some(format!("{path}:{line} ({kind} {name})"))
    };
    others.chain(anchors).filter_map(place).collect()
}

/// `$V`, `${V}`, `${V:-default}`, `${V-default}` and `$$`, as compose fills them in; whether any was.
fn interpolate(text: &str, variables: &Variables) -> Result<(String, bool), String> {
    let (mut result, mut filled) = (String::new(), false);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let (expression, after) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}').ok_or("a ${ without an end")?,
            None => {
                let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        result.push_str(&value_of(expression, variables.as_ref()?)?);
        filled = true;
        rest = after;
    }
    result.push_str(rest);
    Ok((result, filled))
}

fn value_of(expression: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let end = expression.find(|c: char| !is_name(c)).unwrap_or(expression.len());
    let (name, operator) = expression.split_at(end);
    let known = variables.get(name);
    let filled = known.filter(|value| !value.is_empty());
    match (operator.strip_prefix(":-"), operator.strip_prefix('-')) {
        (Some(default), _) => Ok(filled.map_or(default, String::as_str).to_owned()),
        (None, Some(default)) => Ok(known.map_or(default, String::as_str).to_owned()),
        (None, None) if operator.is_empty() && known.is_some() => {
            Ok(known.cloned().unwrap_or_default())
        }
        // It may have been set in the shell that ran compose.
        (None, None) => Err(format!("what ${{{expression}}} was is not known")),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests;
