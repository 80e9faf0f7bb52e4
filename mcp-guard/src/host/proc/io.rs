//! `/proc/PID/io`, see proc_pid_io(5).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// Bytes that a process has read and written, to pipes and sockets too, and the calls that did so.
    pub moved: u64,
    /// The bytes alone. A call that a freeze interrupts counts as a call.
    pub bytes: u64,
    /// Bytes that are to reach a disk.
    pub written: u64,
}

impl Io {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        let sum = |fields: [&str; 2]| Some(field(fields[0])?.wrapping_add(field(fields[1])?));
        let bytes = sum(["rchar:", "wchar:"])?;
        let moved = bytes.wrapping_add(sum(["syscr:", "syscw:"])?);
        Some(Self { moved, bytes, written: field("write_bytes:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::Io;

    #[test]
    fn bytes_and_calls_are_added_up() {
        let text = "rchar: 1000\nwchar: 200\nsyscr: 30\nsyscw: 4\nread_bytes: 7\nwrite_bytes: 8192\n\
                    cancelled_write_bytes: 9\n";
        assert_eq!(Io::parse(text), Some(Io { moved: 1234, bytes: 1200, written: 8192 }));
        for (line, other) in
            [("rchar: 1000", "rchar: x"), ("syscw: 4\n", ""), ("write_bytes: 8192", "")]
        {
            assert_eq!(Io::parse(&text.replace(line, other)), None, "{line}");
        }
        assert_eq!(Io::parse(""), None);
    }
}
