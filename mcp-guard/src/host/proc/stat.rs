//! `/proc/PID/stat`, see proc_pid_stat(5).

use mcp_guard_core::id::{Pid, Ticks};

/// `PF_EXITING` of `include/linux/sched.h`, in the flags field.
const PF_EXITING: u64 = 0x4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub parent: Pid,
    /// The pid of the process that began its session.
    pub session: u64,
    /// Where the stack of its program begins. The kernel chooses it at each exec, and shows 0 to those who may not know
    /// it.
    pub stack: u64,
    pub start: Ticks,
    pub threads: u64,
    /// The time that all its threads ran, those that ended included, and that of its children for whose end
    /// it has waited.
    pub cpu: Ticks,
    pub zombie: bool,
    /// Whether its first thread was stopped by a signal or a debugger.
    pub stopped: bool,
    /// Whether it is a zombie or exiting with all of its threads. The first thread may end before
    /// the others.
    pub ending: bool,
    /// Whether its first thread has ended or is exiting, even if others have not.
    pub first_ends: bool,
}

impl Stat {
    /// Parses the line. The name in parentheses may contain anything, even parentheses and
    /// newlines, so the other fields follow the last closing parenthesis.
    #[must_use]
    pub fn parse(stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let text = std::str::from_utf8(stat.get(after_name..)?).ok()?;
        let fields: Vec<&str> = text.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        // The index is the manual's field number minus three: state 3, ppid 4, session 6, flags 9,
        // utime 14, stime 15, cutime 16, cstime 17, threads 20, start 22, startstack 28.
        let zombie = matches!(*fields.first()?, "Z" | "X" | "x");
        let stopped = matches!(*fields.first()?, "T" | "t");
        let threads = number(17)?;
        let cpu =
            (11..=14).try_fold(0_u64, |sum, index| Some(sum.saturating_add(number(index)?)))?;
        let first_ends = zombie || number(6)? & PF_EXITING != 0;
        Some(Self {
            parent: Pid(u32::try_from(number(1)?).ok()?),
            session: number(3)?,
            // A line that ends before it does not say it.
            stack: number(25).unwrap_or_default(),
            start: Ticks(number(19)?),
            threads,
            cpu: Ticks(cpu),
            zombie,
            stopped,
            ending: threads <= 1 && first_ends,
            first_ends,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields_after_it() {
        let stat = b"42 (a) R 1 2) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9912 0 0\n";
        let expected = Stat {
            parent: Pid(7),
            session: 1,
            stack: 0,
            start: Ticks(9912),
            threads: 1,
            cpu: Ticks(5 + 6 + 7 + 8),
            zombie: false,
            stopped: false,
            ending: false,
            first_ends: false,
        };
        assert_eq!(Stat::parse(stat), Some(expected));
        for (state, expected) in [("T", true), ("t", true), ("S", false), ("D", false)] {
            let text = String::from_utf8_lossy(stat).replace(" S ", &format!(" {state} "));
            assert!(Stat::parse(text.as_bytes()).is_some_and(|stat| stat.stopped == expected));
        }
        let zombie = b"42 (x) Z 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9912 0 0\n";
        assert!(Stat::parse(zombie).is_some_and(|stat| stat.ending));
        let exiting = b"42 (x) R 7 1 1 0 -1 4194564 1 2 3 4 5 6 7 8 20 0 1 0 9912 0 0\n";
        assert!(Stat::parse(exiting).is_some_and(|stat| stat.ending));
        let others_live = b"42 (x) Z 7 1 1 0 -1 4194564 1 2 3 4 5 6 7 8 20 0 3 0 9912 0 0\n";
        assert!(Stat::parse(others_live).is_some_and(|stat| !stat.ending && stat.first_ends));
        for bad in [&b""[..], b"42 (x", b"42 (x)", b"42 (x) S 7"] {
            assert_eq!(Stat::parse(bad), None);
        }
    }
}
