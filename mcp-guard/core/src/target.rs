//! Parses what an operator may name: a container, a unit, a cgroup or a process.

use crate::{container::is_container_id, escape::is_plain_path, id::Pid};

/// A TARGET of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A container's name, id or id prefix, in any engine.
    Container(String),
    /// A container's name, id or id prefix, in Docker only.
    Docker(String),
    /// A systemd service, scope or slice.
    Unit(String),
    /// A path in the unified hierarchy.
    Cgroup(String),
    /// The cgroup that this process is in.
    Pid(Pid),
}

/// Longest name that is accepted, to keep messages readable.
const MAX_NAME: usize = 255;
/// Number of id digits that engines show.
const SHORT_ID: usize = 12;

impl Target {
    /// # Errors
    /// If `text` is not a TARGET. The message says what a TARGET may be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("cgroup:") {
            // Shells complete the name of a directory with a slash.
            let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
            return match is_plain_path(path) {
                true => Ok(Self::Cgroup(path.to_owned())),
                false => Err(format!(
                    "{text:?}: cgroup: needs an absolute path without \".\", \"..\" or \"//\""
                )),
            };
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(Pid(pid))),
                _ => Err(format!("{text:?}: pid: needs a process id greater than 0")),
            };
        }
        if let Some(unit) = text.strip_prefix("unit:") {
            return match is_unit(unit) {
                true => Ok(Self::Unit(unit.to_owned())),
                false => {
                    Err(format!("{text:?}: unit: needs NAME.service, NAME.scope or NAME.slice"))
                }
            };
        }
        let (name, docker) = match text.strip_prefix("docker:") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if !is_name(name) {
            return Err(format!(
                "{text:?} is not a target; give a container name, id or id prefix, docker:NAME, \
                 unit:NAME.service, cgroup:/path or pid:N"
            ));
        }
        let name = name.to_owned();
        Ok(if docker { Self::Docker(name) } else { Self::Container(name) })
    }
}

/// Returns whether `text` follows Docker's own rule for names, so that nothing else ever reaches an
/// engine.
fn is_name(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    first && text.len() <= MAX_NAME && text.bytes().all(rest)
}

/// Returns whether `text` names a type of unit that has processes and a cgroup. The characters are
/// those of systemd.unit(5).
fn is_unit(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let kinds = [".service", ".scope", ".slice"];
    let named =
        kinds.iter().filter_map(|kind| text.strip_suffix(kind)).any(|name| !name.is_empty());
    named && text.len() <= MAX_NAME && text.bytes().all(allowed)
}

/// A container that a name may refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    pub name: String,
}

/// Why a name does not select a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoMatch {
    None,
    Several(Vec<Candidate>),
}

/// Returns the one container that `text` names, by its full name or id, else by an id prefix.
///
/// # Errors
/// If no container matches, or if several do.
pub fn choose<'a>(text: &str, all: &'a [Candidate]) -> Result<&'a Candidate, NoMatch> {
    if let Some(exact) = all.iter().find(|one| one.name == text || one.id == text) {
        return Ok(exact);
    }
    let matches: Vec<_> = all.iter().filter(|one| begins_with(&one.id, text)).collect();
    match matches[..] {
        [one] => Ok(one),
        [] => Err(NoMatch::None),
        _ => Err(NoMatch::Several(matches.into_iter().cloned().collect())),
    }
}

/// Returns whether `text` names this container, even if not all containers are known. A shorter id
/// prefix does not count, because a few digits may be the name of another container. Engines show
/// 12 digits of an id.
#[must_use]
pub fn is_named(text: &str, one: &Candidate) -> bool {
    let is_long = text.len() >= SHORT_ID;
    one.name == text || one.id == text || (is_long && begins_with(&one.id, text))
}

fn begins_with(id: &str, text: &str) -> bool {
    is_container_id(id) && id.starts_with(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_parsed() {
        let parse = |text| Target::parse(text).ok();
        assert_eq!(parse("metamcp"), Some(Target::Container("metamcp".into())));
        assert_eq!(parse("docker:metamcp"), Some(Target::Docker("metamcp".into())));
        assert_eq!(parse("cgroup:/a/b"), Some(Target::Cgroup("/a/b".into())));
        assert_eq!(parse("cgroup:/a/b/"), parse("cgroup:/a/b"));
        assert_eq!(parse("cgroup:/"), Some(Target::Cgroup("/".into())));
        assert_eq!(parse("pid:12"), Some(Target::Pid(Pid(12))));
        let unit = "docker.service";
        assert_eq!(parse("unit:docker.service"), Some(Target::Unit(unit.into())));
        for bad in
            ["unit:x", "unit:.service", "unit:a/b.service", "cgroup:/a.scope/.", "cgroup:/a//b"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for bad in ["", "../../x", "a/b", "a b", "-x", "pid:0", "pid:x", "cgroup:a", "cgroup:/../a"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_or_a_unique_prefix_selects_a_container() {
        let id = |digit: &str| format!("abc{}", digit.repeat(61));
        let one = |name: &str, digit| Candidate { id: id(digit), name: name.to_owned() };
        let all = [one("web", "1"), one("db", "2"), one("abc", "3")];
        assert_eq!(choose("db", &all), Ok(&all[1]));
        assert_eq!(choose("abc1", &all), Ok(&all[0]));
        assert_eq!(choose("abc", &all), Ok(&all[2]), "a full name takes precedence over a prefix");
        assert_eq!(choose("nope", &all), Err(NoMatch::None));
        let named = ["db", &id("2"), &id("2")[..12], &id("2")[..11], "abc2", ""];
        let named = named.map(|text| is_named(text, &all[1]));
        assert_eq!(named, [true, true, true, false, false, false]);
        let several = choose("ab", &all);
        assert!(matches!(several, Err(NoMatch::Several(ref found)) if found.len() == 3));
    }
}
