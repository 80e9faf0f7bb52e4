//! Version numbers, as tools and engines write them.

/// Parses `v2.1.0`, `2.26.1-rc1` or `4.3` into three numbers, which compare as versions do. A missing third
/// number is 0.
#[must_use]
pub fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_parsed_as_they_are_written() {
        for (text, expected) in [
            ("v2.1.0", Some((2, 1, 0))),
            ("2.26.1-rc1", Some((2, 26, 1))),
            ("1.41", Some((1, 41, 0))),
            ("4", None),
            ("", None),
            ("none", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
        assert!(version("2.6.1") > version("2.6") && version("2.10") > version("2.9.9"));
    }
}
