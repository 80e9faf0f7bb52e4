//! Names for what is made once and kept: a hash of everything that defines it.

use sha2::{Digest, Sha256};

/// `layout` changes whenever the code that makes it does so in another way.
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
    fn the_key_tells_recipes_apart() {
        let parts = |words: [&str; 2]| words.map(str::to_owned);
        assert_ne!(key("1", &parts(["ab", "c"])), key("1", &parts(["a", "bc"])));
        assert_ne!(key("1", &parts(["a", "b"])), key("2", &parts(["a", "b"])));
    }
}
