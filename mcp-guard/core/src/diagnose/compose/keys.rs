//! Extracts from a compose file the keys that a limit depends on.

use super::{
    super::{
        facts::{Keys, LimitKeys, OtherLimit, Reached, ServiceKeys, Written},
        yaml::{At, Document},
    },
    MAX_ELSEWHERE, SHORT,
};
use crate::escape::visible_within;

/// Maximum bytes kept of a value, a name or a tag; no number is that long.
const MAX_TEXT: usize = 1024;

/// Extracts the keys of one service.
#[must_use]
pub fn keys(text: &str, service: &str) -> Keys {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(why) => return Keys::Broken { why },
    };
    let Some(root) = document.root() else {
        return Keys::Read { include: false, service: Reached::Absent, elsewhere: Vec::new() };
    };
    Keys::Read {
        include: document.get(root, "include").is_some(),
        service: walk(&document, root, &["services", service])
            .map(|at| service_keys(&document, at)),
        elsewhere: elsewhere(&document, root, service),
    }
}

fn service_keys(document: &Document, service: At) -> ServiceKeys {
    let limits = walk(document, service, &["deploy", "resources", "limits"]);
    ServiceKeys {
        extends: document.get(service, "extends").is_some(),
        profiles: document.get(service, "profiles").is_some(),
        pids_limit: document.get(service, SHORT).map(|at| written(document, at)),
        limits: limits.map(|limits| LimitKeys {
            pids: document.get(limits, "pids").map(|at| written(document, at)),
        }),
    }
}

fn written(document: &Document, at: At) -> Written {
    Written {
        line: document.line(at),
        tag: document.tag(at).map(shown),
        text: document.scalar(at).map(|text| shown(text.trim())),
    }
}

fn shown(text: &str) -> String {
    visible_within(text, MAX_TEXT)
}

/// Follows a path of keys from a node.
fn walk(document: &Document, from: At, keys: &[&str]) -> Reached<At> {
    let mut at = from;
    for key in keys {
        let Some(next) = document.get(at, key) else { return Reached::Absent };
        if let Some(tag) = document.tag(next) {
            return Reached::Tagged { key: shown(key), tag: shown(tag) };
        }
        at = next;
    }
    Reached::There(at)
}

impl<T> Reached<T> {
    fn map<U>(self, there: impl FnOnce(T) -> U) -> Reached<U> {
        match self {
            Self::Absent => Reached::Absent,
            Self::Tagged { key, tag } => Reached::Tagged { key, tag },
            Self::There(found) => Reached::There(there(found)),
        }
    }
}

fn elsewhere(document: &Document, root: At, service: &str) -> Vec<OtherLimit> {
    let services = document.get(root, "services");
    let others = services.into_iter().flat_map(|services| document.pairs(services));
    let others =
        others.filter(|(name, _)| *name != service).map(|(name, at)| ("service", name, at));
    let anchors = document.pairs(root).filter(|(name, _)| name.starts_with("x-"));
    let anchors = anchors.map(|(name, at)| ("extension", name, at));
    let place = |(kind, name, at): (&str, &str, At)| {
        let line = document.line(document.get(at, SHORT)?);
        Some(OtherLimit { line, of: format!("{kind} {}", shown(name)) })
    };
    others.chain(anchors).filter_map(place).take(MAX_ELSEWHERE).collect()
}
