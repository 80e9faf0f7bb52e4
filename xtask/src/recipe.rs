//! Names for cached results: a hash of everything that defines them.

use sha2::{Digest, Sha256};

/// Returns the hash. `layout` must change whenever the code that creates the result changes.
pub fn key(layout: &str, parts: &[String]) -> String {
    let mut hasher = Sha256::new();
    for part in [layout].into_iter().chain(parts.iter().map(String::as_str)) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn different_recipes_have_different_keys() {
        let parts = |words: [&str; 2]| words.map(str::to_owned);
        assert_ne!(key("1", &parts(["ab", "c"])), key("1", &parts(["a", "bc"])));
        assert_ne!(key("1", &parts(["a", "b"])), key("2", &parts(["a", "b"])));
    }
}
