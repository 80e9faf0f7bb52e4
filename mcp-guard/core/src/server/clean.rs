//! Makes text safe for an identity: without credentials and queries, printable, bounded.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use crate::{escape::escape, redact};

/// npm allows 214 bytes for a name. A longer identity is cut.
const MAX_IDENTITY: usize = 214;

/// Removes user, password, query and fragment of an address, and masks what looks like a secret.
pub(super) fn clean(text: &str) -> String {
    redact::name(&without_user(text))
}

/// Removes the user of an address without a scheme: `host/path` of `user:password@host/path`, and
/// `github:owner/name` of `github:token@owner/name`.
fn without_user(text: &str) -> Cow<'_, str> {
    const SERVICES: [&str; 4] = ["github:", "gitlab:", "bitbucket:", "gist:"];
    const NO_USER: [&str; 4] = ["npm:", "jsr:", "git@", "file:"];
    if text.contains("://") || NO_USER.iter().any(|start| text.starts_with(start)) {
        return Cow::Borrowed(text);
    }
    let host = text.split(['/', '?', '#']).next().unwrap_or(text);
    // Without a colon it is a version: `owner@1`.
    let Some(end) = redact::user_end(text).filter(|_| host.contains(':')) else {
        return Cow::Borrowed(text);
    };
    let (user, rest) = (&text[..end], &text[end + 1..]);
    match SERVICES.iter().find(|service| text.starts_with(**service)) {
        // So it is behind a repository: `github:owner/name@1`.
        Some(_) if user.contains('/') && !rest.contains('/') => Cow::Borrowed(text),
        Some(service) => Cow::Owned(format!("{service}{rest}")),
        None => Cow::Borrowed(rest),
    }
}

/// Makes an identity of at most [`MAX_IDENTITY`] bytes that can be printed. A longer one ends in a hash, so that
/// two of them are not taken for one.
pub(super) fn bounded(name: &str) -> String {
    let whole = escape(name.as_bytes(), usize::MAX);
    if whole.len() <= MAX_IDENTITY {
        return whole;
    }
    let hash = Sha256::digest(whole.as_bytes());
    let hash = format!("#{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    escape(name.as_bytes(), MAX_IDENTITY - hash.len()) + &hash
}

/// Returns the name of a Python package as all tools compare it (PEP 503): `mcp-server-git` for
/// `Mcp.Server__Git`.
pub(super) fn pep_503(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if !matches!(c, '-' | '_' | '.') {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out
}
