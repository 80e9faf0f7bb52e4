//! `/proc/PID/status`, see proc_pid_status(5).

/// The number of `CAP_SYS_PTRACE`, see capabilities(7).
const SYS_PTRACE: u32 = 19;

/// Whether the process may trace processes that are not its own, or may gain that right by starting
/// a program. True if the file does not show it.
#[must_use]
pub fn may_trace(status: &[u8]) -> bool {
    let status = String::from_utf8_lossy(status);
    let set = |name: &str| {
        let set = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    let sets = set("CapPrm:").zip(set("CapBnd:"));
    sets.is_none_or(|(permitted, bounding)| (permitted | bounding) & (1 << SYS_PTRACE) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_decide_whether_a_process_may_trace() {
        // Docker's default, Docker's default with SYS_PTRACE, and all capabilities of Linux 6.
        for (set, expected) in
            [("00000000a80425fb", false), ("00000000a80c25fb", true), ("000001ffffffffff", true)]
        {
            let none = "0000000000000000";
            for (permitted, bounding) in [(none, set), (set, none)] {
                let status = format!("Name:\tsh\nCapPrm:\t{permitted}\nCapBnd:\t{bounding}\n");
                assert_eq!(may_trace(status.as_bytes()), expected, "{status}");
            }
        }
        assert!(may_trace(b"Name:\tsh\n"), "unknown counts as true");
    }
}
