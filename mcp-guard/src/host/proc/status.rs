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

/// Whether the process ignores a signal.
#[must_use]
pub fn ignores(status: &[u8], signal: i32) -> bool {
    has_signal(status, b"SigIgn:", signal)
}

/// Whether the process handles SIGALRM, as one does that uses alarm(2). The kernel shows no such timer. Some runtimes
/// and shells handle all signals; they have handlers for SIGVTALRM or SIGPROF too, which hardly any program uses.
#[must_use]
pub fn awaits_alarm(status: &[u8]) -> bool {
    let catches = |signal| has_signal(status, b"SigCgt:", signal);
    catches(libc::SIGALRM) && !catches(libc::SIGVTALRM) && !catches(libc::SIGPROF)
}

/// Whether a signal is in one of the sets.
fn has_signal(status: &[u8], set: &[u8], signal: i32) -> bool {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(set));
    let set = line.and_then(|line| std::str::from_utf8(line).ok());
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| (1..=64).contains(&signal) && set & (1 << (signal - 1)) != 0)
}

/// Whether a signal waits for the process, or for its first thread.
#[must_use]
pub fn has_pending_signals(status: &[u8]) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.any(|line| {
        let set = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"));
        set.is_some_and(|set| set.trim_ascii().iter().any(|digit| *digit != b'0'))
    })
}

/// Returns the state, as a letter.
#[must_use]
pub fn state(status: &[u8]) -> Option<u8> {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"State:"))?.trim_ascii_start().first().copied()
}

/// Returns the real and the effective uid.
#[must_use]
pub fn uids(status: &[u8]) -> Option<(u32, u32)> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut uids = std::str::from_utf8(line).ok()?.split_whitespace().map(str::parse);
    Some((uids.next()?.ok()?, uids.next()?.ok()?))
}

/// Returns the bytes of memory that no file backs.
#[must_use]
pub fn anonymous_memory(status: &[u8]) -> Option<u64> {
    let status = String::from_utf8_lossy(status);
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(kibibytes("RssAnon:")?.saturating_add(kibibytes("RssShmem:")?).saturating_mul(1024))
}

/// Returns how often its first thread has stopped to run.
#[must_use]
pub fn context_switches(status: &[u8]) -> Option<u64> {
    let status = String::from_utf8_lossy(status);
    let count = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    let switches = [count("voluntary_ctxt_switches:")?, count("nonvoluntary_ctxt_switches:")?];
    Some(switches[0].saturating_add(switches[1]))
}

/// Whether it is the first process of a pid namespace directly below ours.
#[must_use]
pub fn is_init_below(status: &[u8]) -> bool {
    let pids: Vec<&str> = pids(status).take(3).collect();
    matches!(pids[..], [_, "1"])
}

/// Whether it is the first process of its pid namespace.
#[must_use]
pub fn is_first_of_its_namespace(status: &[u8]) -> bool {
    pids(status).next_back() == Some("1")
}

/// Returns its pids, in our pid namespace first, in its own last.
fn pids(status: &[u8]) -> impl DoubleEndedIterator<Item = &str> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    let line = line.and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    line.split_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_in_the_set() {
        let status = b"Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        let ignored: Vec<i32> = (-1..66).filter(|signal| ignores(status, *signal)).collect();
        assert_eq!(ignored, [libc::SIGHUP, libc::SIGPIPE]);
        assert!(!ignores(b"", libc::SIGHUP));
    }

    /// Sets that were read from real processes.
    #[test]
    fn a_handler_for_sigalrm_alone_is_told_from_those_for_all_signals() {
        for (set, expected) in [
            ("0000000000002000", true),  // perl with alarm()
            ("0000000000016007", true),  // timeout
            ("0000000043817efb", false), // bash
            ("0000000017807007", false), // sort
            ("fffffffe7fc1feff", false), // a program of Go
            ("0000000100004602", false), // node
        ] {
            let status = format!("Name:\tx\nSigBlk:\t0000000000002000\nSigCgt:\t{set}\n");
            assert_eq!(awaits_alarm(status.as_bytes()), expected, "{set}");
        }
        assert!(!awaits_alarm(b""));
    }

    #[test]
    fn the_state_is_a_letter() {
        let status = b"Name:\tState:\tR\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t9\n";
        assert_eq!((state(status), state(b"State:\n"), state(b"")), (Some(b'D'), None, None));
    }

    #[test]
    fn the_first_two_uids_are_the_real_and_the_effective_one() {
        let status = b"Name:\tUid:\t9\nUmask:\t0022\nUid:\t1000\t0\t7\t8\nGid:\t1\t2\t3\t4\n";
        assert_eq!(uids(status), Some((1000, 0)));
        for bad in [&b""[..], b"Name:\tx\n", b"Uid:\t1000\n", b"Uid:\tx\t0\n"] {
            assert_eq!(uids(bad), None);
        }
    }

    #[test]
    fn the_first_process_of_a_namespace_directly_below_has_two_pids() {
        let status =
            |pids: &str| format!("Name:\tNSpid:\nNStgid:\t9\t1\nNSpid:\t{pids}\nNSpgid:\t1\n");
        assert!(is_init_below(status("451\t1").as_bytes()));
        for other in ["1", "451", "451\t2", "451\t20\t1", "451\t1\t1", ""] {
            assert!(!is_init_below(status(other).as_bytes()), "{other}");
        }
        assert!(!is_init_below(b"Name:\tsh\n"));
    }

    #[test]
    fn the_first_process_of_any_namespace_has_1_as_its_last_pid() {
        let is_first = |pids: &str| {
            is_first_of_its_namespace(format!("Name:\tNSpid:\nNSpid:\t{pids}\n").as_bytes())
        };
        assert!(["1", "451\t1", "451\t20\t1"].into_iter().all(is_first));
        assert!(!["451", "451\t11", "1\t2", ""].into_iter().any(is_first));
    }

    #[test]
    fn memory_and_switches_are_read_from_lines_of_their_own() {
        let status = b"Name:\tRssAnon:\t1 kB\nVmRSS:\t  9000 kB\nRssAnon:\t    3000 kB\n\
            RssFile:\t    5000 kB\nRssShmem:\t    1000 kB\n\
            voluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(anonymous_memory(status), Some(4000 * 1024));
        assert_eq!(context_switches(status), Some(155));
        // A zombie has no memory.
        let zombie = b"Name:\tx\nState:\tZ (zombie)\n";
        assert_eq!((anonymous_memory(zombie), context_switches(zombie)), (None, None));
    }

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
