//! Masks secrets in command lines before the text leaves the agent.
//!
//! A mask shows the length of the secret and the first two bytes of its SHA-256, `***(40,1f0c)`, so that
//! equal secrets can be recognised. In doubt a word is masked: that costs a reader a guess, while a leaked
//! secret costs its owner an account.

use std::{borrow::Cow, iter::Peekable};

use sha2::{Digest as _, Sha256};

/// Parts of a name that mark its value as a secret: `--api-key`, `GITHUB_TOKEN`, `Authorization`.
const SECRET_PARTS: [&str; 27] = [
    "apikey",
    "auth",
    "authorization",
    "bearer",
    "cookie",
    "cred",
    "credential",
    "credentials",
    "creds",
    "dsn",
    "jwt",
    "key",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "pat",
    "pwd",
    "secret",
    "secrets",
    "session",
    "sig",
    "signature",
    "token",
    "tokens",
    "webhook",
    "xoxb",
];
/// Words that mark a secret also inside a longer part: `ACCESSTOKEN`, `clientsecret`.
const SECRET_INSIDE: [&str; 6] = ["apikey", "credential", "passw", "privatekey", "secret", "token"];
/// Commands, apart from those, that a secret follows: `bw unlock`, `rclone obscure`.
const BEFORE_SECRETS: [&str; 5] = ["login", "obscure", "signin", "unlock", "unseal"];
/// Prefixes of the tokens of well-known services.
const PREFIXES: [&str; 42] = [
    "AIza",
    "AKIA",
    "ASIA",
    "EAACEd",
    "SG.",
    "dapi",
    "dop_v1_",
    "eyJ",
    "figd_",
    "fo1_",
    "gho_",
    "ghp_",
    "ghr_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "gsk_",
    "hf_",
    "key-",
    "lin_api_",
    "ntn_",
    "npm_",
    "nvapi-",
    "pat-",
    "phx_",
    "pk_live_",
    "pplx-",
    "pypi-",
    "r8_",
    "rk_live_",
    "secret_",
    "shpat_",
    "sk-",
    "sk_live_",
    "sk_test_",
    "sntrys_",
    "sq0atp-",
    "tvly-",
    "xai-",
    "xoxb-",
    "xoxp-",
];
/// Minimum length of a token after its prefix.
const LEAST_TOKEN: usize = 10;
/// Minimum length, and minimum entropy below, of a run of letters and digits that counts as a secret.
const LEAST_RANDOM: usize = 32;
/// In bits per character.
const LEAST_BITS: f64 = 3.0;
/// Minimum length of a secret that is known by its pieces, and the most letters or digits that a piece has on average.
const LEAST_SHUFFLED: usize = 20;
const MOST_IN_A_PIECE: usize = 3;
const MASK: &str = "***(";

/// Returns the words of a command line with its secrets masked.
#[must_use]
pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut out = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        out.push(text(word));
        out.extend(value_of(word, &mut words));
    }
    out
}

/// Takes the value of a secret option from the next word, and masks it: `--api-key VALUE`, `-u NAME:VALUE`.
fn value_of<'a>(
    option: &str,
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
) -> Option<String> {
    if !option.starts_with('-') || option.contains('=') {
        return None;
    }
    let value = words.peek().filter(|value| !value.starts_with('-'))?;
    let masked = if is_secret_name(option) {
        mask(value)
    } else if matches!(option, "-u" | "--user") && value.contains(':') {
        let (user, password) = value.split_once(':')?;
        format!("{user}:{}", mask(password))
    } else {
        return None;
    };
    words.next();
    Some(masked)
}

/// Masks the secrets in one word or one line of text.
#[must_use]
pub fn text(text: &str) -> String {
    let text = urls(text);
    let text = named(&text);
    tokens(&text).into_owned()
}

/// Prepares a URL or package specification for use in a name: removes user, query and fragment, and masks
/// secrets.
#[must_use]
pub fn name(spec: &str) -> String {
    let spec = match spec.split_once("://") {
        Some((scheme, rest)) => {
            let rest = user_end(rest).map_or(rest, |end| &rest[end + 1..]);
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            Cow::Owned(format!("{scheme}://{rest}"))
        }
        None => Cow::Borrowed(spec.split('?').next().unwrap_or_default()),
    };
    text(&spec)
}

/// Returns the place of the `@` behind the user of an address without its scheme. A password may have `/`, `?` and
/// `#` in it, although it should not: what is before these is then no host with a port.
pub(crate) fn user_end(address: &str) -> Option<usize> {
    let (authority, behind) =
        address.split_at(address.find(['/', '?', '#']).unwrap_or(address.len()));
    authority.rfind('@').or_else(|| {
        let (_, port) = authority.split_once(':').filter(|_| !authority.starts_with('['))?;
        let is_port = port.parse::<u16>().is_ok() && !behind.starts_with('#');
        if is_port { None } else { address.rfind('@') }
    })
}

fn mask(secret: &str) -> String {
    if secret.is_empty() || secret.starts_with(MASK) {
        return secret.to_owned();
    }
    let hash = Sha256::digest(secret.as_bytes());
    format!("{MASK}{},{:02x}{:02x})", secret.len(), hash[0], hash[1])
}

/// Masks the user and the query of every URL.
fn urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = behind.find([' ', '"', '\'', '<', '>']).unwrap_or(behind.len());
        let (url, after) = behind.split_at(end);
        let (user, place) = url.split_at(user_end(url).unwrap_or(0));
        out.push_str(&mask(user));
        match place.split_once('?') {
            Some((place, query)) => out.push_str(&format!("{place}?{}", mask(query))),
            None => out.push_str(place),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Masks the value that follows the name of a secret: `TOKEN=x`, `"token": "x"`, `Authorization: Bearer
/// x`.
fn named(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['=', ':']) {
        let (before, behind) = rest.split_at(at);
        let (sign, behind) = behind.split_at(1);
        out.push_str(before);
        out.push_str(sign);
        rest = behind;
        let quote = |c: char| c == '"' || c == '\'';
        let name = before.trim_end_matches(quote);
        let start = name.rfind(|c: char| !is_name(c)).map_or(0, |at| at + 1);
        if !is_secret_name(name.get(start..).unwrap_or_default()) || behind.starts_with("//") {
            continue;
        }
        let value = behind.trim_start_matches(|c| c == ' ' || quote(c));
        let scheme = ["Bearer ", "bearer ", "Basic ", "basic ", "token ", "Token "];
        let scheme =
            scheme.iter().find(|word| value.starts_with(**word)).map_or(0, |word| word.len());
        let lead = behind.len() - value.len() + scheme;
        let value = &behind[lead..];
        let ends =
            |c: char| quote(c) || c.is_whitespace() || matches!(c, '&' | ',' | ';' | '}' | ')');
        // An assignment extends to the end of the word.
        let end = if sign == "=" && scheme == 0 {
            value.find(|c: char| quote(c) || c.is_whitespace() || c == '&')
        } else {
            value.find(ends)
        };
        let end = end.unwrap_or(value.len());
        out.push_str(&behind[..lead]);
        if value.starts_with(MASK) {
            rest = value;
            let end = value.find(')').map_or(value.len(), |at| at + 1);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else {
            out.push_str(&mask(&value[..end]));
            rest = &value[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Masks everything that looks like a token.
fn tokens(text: &str) -> Cow<'_, str> {
    if text.len() < LEAST_TOKEN {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_token) {
        let (before, behind) = rest.split_at(start);
        out.push_str(before);
        if before.ends_with(MASK) {
            // The length and the hash inside a mask.
            let end = behind.find(')').unwrap_or(behind.len());
            out.push_str(&behind[..end]);
            rest = &behind[end..];
            continue;
        }
        let end = behind.find(|c| !is_token(c)).unwrap_or(behind.len());
        let (run, after) = behind.split_at(end);
        if is_token_of_a_service(run) || is_random(run) {
            out.push_str(&mask(run));
        } else {
            out.push_str(run);
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '~')
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn is_token_of_a_service(run: &str) -> bool {
    PREFIXES.iter().any(|prefix| {
        run.strip_prefix(prefix).is_some_and(|rest| {
            rest.len() >= LEAST_TOKEN && rest.bytes().any(|byte| byte.is_ascii_digit())
        })
    })
}

/// Returns whether a run of letters and digits is too random for a name.
fn is_random(run: &str) -> bool {
    let is_long = |part: &str| {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        let letters = part.bytes().filter(u8::is_ascii_alphabetic).count();
        part.len() >= LEAST_RANDOM && digits >= 4 && letters >= 4 && bits(part) >= LEAST_BITS
    };
    run.split(['.', '~']).any(is_long)
        || run.split(|c: char| !c.is_ascii_alphanumeric()).any(is_shuffled)
}

/// Returns whether small letters, capitals and digits alternate more often than in a name. A capital begins a piece
/// together with the small letters behind it: `Base64UrlTest` has four pieces.
fn is_shuffled(word: &str) -> bool {
    let (mut pieces, mut numbers, mut letters) = (0, 0, 0);
    let mut last = None;
    for kind in word.bytes().map(CharKind::of) {
        if last != Some(kind) && (last, kind) != (Some(CharKind::Capital), CharKind::Small) {
            pieces += 1;
            numbers += usize::from(kind == CharKind::Digit);
        }
        letters += usize::from(kind != CharKind::Digit);
        last = Some(kind);
    }
    word.len() >= LEAST_SHUFFLED
        && numbers >= 2
        && letters >= 4
        && pieces * MOST_IN_A_PIECE >= word.len()
}

/// The kind of a letter or digit.
#[derive(Clone, Copy, PartialEq)]
enum CharKind {
    Small,
    Capital,
    Digit,
}

impl CharKind {
    fn of(byte: u8) -> Self {
        match byte {
            b'0'..=b'9' => Self::Digit,
            b'A'..=b'Z' => Self::Capital,
            _ => Self::Small,
        }
    }
}

/// Returns the Shannon entropy in bits per character.
fn bits(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    text.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    let all = text.len() as f64;
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / all);
    -shares.map(|share| share * share.log2()).sum::<f64>()
}

/// Returns whether the next word of a command line may be a secret: `auth`, `password`, `login`.
pub(crate) fn precedes_secret(word: &str) -> bool {
    is_secret_name(word) || BEFORE_SECRETS.contains(&word)
}

/// Returns whether a name marks a secret, by its parts: `GITHUB_TOKEN`, `--apiKey`, `x-auth`.
fn is_secret_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if SECRET_INSIDE.iter().any(|inside| lower.contains(inside)) {
        return true;
    }
    let mut parts = Vec::from([String::new()]);
    let mut was_lower = false;
    for c in name.chars() {
        if matches!(c, '-' | '_') || (c.is_ascii_uppercase() && was_lower) {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut().filter(|_| is_name(c) && !matches!(c, '-' | '_')) {
            part.push(c.to_ascii_lowercase());
        }
        was_lower = c.is_ascii_lowercase();
    }
    parts.iter().any(|part| SECRET_PARTS.contains(&part.as_str()))
}

#[cfg(test)]
mod tests;
