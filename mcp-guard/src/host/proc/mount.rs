//! One line of `/proc/PID/mountinfo`, see proc_pid_mountinfo(5).

use std::path::PathBuf;

/// A mount.
pub struct Mount<'a> {
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: &'a [u8],
    options: &'a [u8],
}

impl<'a> Mount<'a> {
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescape(fields.nth(4)?);
        let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = after_dash.next()?;
        let options = after_dash.nth(1).unwrap_or_default();
        Some(Self { point, kind, options })
    }

    /// Whether the file system has an option. In a version 1 hierarchy each controller is one.
    #[must_use]
    pub fn has(&self, option: &[u8]) -> bool {
        self.options.split(|byte| *byte == b',').any(|one| one == option)
    }
}

/// Decodes a field: mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_options_of_the_file_system_count() {
        let line =
            b"31 24 0:27 / /a\\040b\\134c rw,nosuid shared:9 master:1 - cgroup cgroup rw,pids";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.point.as_path(), mount.kind), ("/a b\\c".as_ref(), &b"cgroup"[..]));
        assert!(mount.has(b"pids") && !mount.has(b"nosuid") && !mount.has(b"pid"));
        for bad in [&b""[..], b"30 24", b"31 24 0:27 / /a rw", b"31 24 0:27 / /a rw -"] {
            assert!(Mount::parse(bad).is_none());
        }
    }
}
