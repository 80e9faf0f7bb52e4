//! How tools write what they run, and the name in it.

use super::{
    clean::{clean, pep_503},
    path,
};

/// How a program names what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// `@scope/name@1.2`, or the address of a package.
    Npm,
    /// `name[extra]==1`, `name @ URL`, or the address of a package.
    Python,
    /// Either, as the policy's launchers had it from the start.
    Any,
    /// `name@version`.
    Versioned,
    /// A file, a URL, `jsr:@scope/name@1/path` or `npm:name@1/path`.
    Deno,
    /// A file, a URL, `group:artifact:version` or `alias@catalog`.
    Jbang,
    File,
}

/// Returns the name in `text`, or `None` if there is none.
pub(super) fn name(spec: Spec, text: &str, cwd: Option<&str>) -> Option<String> {
    let name = match spec {
        Spec::Npm | Spec::Any => clean(without_version(text)),
        Spec::Python => python(text),
        Spec::Versioned if !is_path(text) => clean(text.split('@').next().unwrap_or(text)),
        Spec::Deno if text.starts_with("jsr:") || text.starts_with("npm:") => {
            clean(&registry(text))
        }
        Spec::Jbang if is_coordinate(text) => clean(&coordinate(text)),
        Spec::Jbang if !is_path(text) => clean(text),
        Spec::Versioned | Spec::Deno | Spec::Jbang | Spec::File => return path::file(text, cwd),
    };
    Some(name).filter(|name| !name.is_empty())
}

/// Returns the image without its tag and digest, or `None` if it is not written like an image.
pub(super) fn image(text: &str) -> Option<String> {
    let (image, digest) = match text.split_once('@') {
        Some((image, digest)) => (image, Some(digest)),
        None => (text, None),
    };
    let is_digest = |digest: &str| {
        let hash = digest.split_once(':').map(|(_, hash)| hash);
        hash.is_some_and(|hash| !hash.is_empty() && hash.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let is_image = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
    if !digest.is_none_or(is_digest) || image.is_empty() || !image.chars().all(is_image) {
        return None;
    }
    let path = image.rfind('/').map_or(0, |at| at + 1);
    let end = image[path..].find(':').map_or(image.len(), |at| at + path);
    Some(clean(&image[..end]))
}

fn python(text: &str) -> String {
    // `name @ URL` names the package beside its address.
    let direct = text.split_once('@').filter(|(_, address)| address.contains("://"));
    let named = direct.map(|(name, _)| without_version(name.trim_end()));
    let is_name = |name: &&str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    match named.filter(is_name) {
        Some(name) => pep_503(name),
        None if stays_as_written(text) => clean(text),
        None => pep_503(&clean(without_version(text))),
    }
}

/// Returns a package without its version: `@scope/name@1.2` is `@scope/name`, `name[extra]==1` is `name`. Git,
/// path and URL specifications stay as written.
pub(super) fn without_version(spec: &str) -> &str {
    if stays_as_written(spec) {
        return spec;
    }
    let scope = usize::from(spec.starts_with('@'));
    let end = spec[scope..]
        .find(['@', '=', '<', '>', '~', '!', '[', ';', ' '])
        .map_or(spec.len(), |at| at + scope);
    &spec[..end]
}

fn stays_as_written(spec: &str) -> bool {
    const PREFIXES: [&str; 9] =
        [".", "/", "~", "git@", "git+", "github:", "gitlab:", "bitbucket:", "file:"];
    const ARCHIVES: [&str; 4] = [".tgz", ".tar.gz", ".whl", ".zip"];
    // `owner/repository` is npm's short form of a GitHub address.
    let shorthand = !spec.starts_with('@') && spec.contains('/');
    shorthand
        || spec.contains("://")
        || spec.starts_with("gist:")
        || PREFIXES.iter().any(|prefix| spec.starts_with(prefix))
        || ARCHIVES.iter().any(|suffix| spec.ends_with(suffix))
}

fn is_in_registry(text: &str) -> bool {
    text.starts_with("jsr:") || text.starts_with("npm:")
}

/// Returns `jsr:@scope/name` for `jsr:@scope/name@1/path`.
fn registry(text: &str) -> String {
    let (registry, package) = text.split_once(':').unwrap_or(("", text));
    let package = package.trim_start_matches('/');
    let mut parts = package.split('/');
    let first = parts.next().unwrap_or_default();
    let Some(scope) = first.strip_prefix('@') else {
        return format!("{registry}:{}", first.split('@').next().unwrap_or_default());
    };
    let name = parts.next().and_then(|name| name.split('@').next()).unwrap_or_default();
    format!("{registry}:@{scope}/{name}")
}

/// Returns whether `text` is a Maven coordinate, `group:artifact:version`.
fn is_coordinate(text: &str) -> bool {
    text.split(':').count() >= 3
        && !text.contains('/')
        && text.split(':').take(2).all(|part| !part.is_empty() && !part.contains('@'))
}

fn coordinate(text: &str) -> String {
    text.split(':').take(2).collect::<Vec<_>>().join(":")
}

/// Returns whether `text` names a file or an address, and nothing in a catalogue or a registry.
pub(super) fn is_path(text: &str) -> bool {
    const ENDINGS: [&str; 5] = [".java", ".jsh", ".kt", ".jar", ".groovy"];
    let is_file = text == "." || ENDINGS.iter().any(|ending| text.ends_with(ending));
    !is_in_registry(text) && (is_file || path::is_file(text))
}
