//! `/proc/PID/task/TID/syscall`, see proc_pid_syscall(5): the system call in which a thread waits, and
//! its arguments.

use mcp_guard_core::evidence::Wait;

/// Reads what a thread waits for.
#[must_use]
pub fn wait(text: &str) -> Wait {
    let mut words = text.split_whitespace();
    let number = match words.next() {
        Some("running") => return Wait::Runs,
        // It is blocked, but in no system call: in a page fault, for example.
        Some("-1") => return Wait::Runs,
        Some(number) => number.parse::<u64>(),
        None => return Wait::Unread,
    };
    let Ok(number) = number else { return Wait::Unread };
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        let word = words.next().and_then(|word| word.strip_prefix("0x"));
        match word.and_then(|word| u64::from_str_radix(word, 16).ok()) {
            Some(value) => *argument = value,
            None => return Wait::Unread,
        }
    }
    in_call(number, arguments)
}

fn in_call(number: u64, [first, second, _, fourth, ..]: [u64; 6]) -> Wait {
    let Ok(call) = libc::c_long::try_from(number) else { return Wait::Unread };
    // Descriptors and timeouts are ints: the upper half of the register says nothing.
    #[allow(clippy::cast_possible_truncation, reason = "the kernel cuts them in the same way")]
    let fd = first as u32;
    #[allow(clippy::cast_possible_truncation, reason = "the kernel cuts them in the same way")]
    let has_timeout = fourth as u32 != u32::MAX;
    match call {
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom => Wait::Read(fd),
        libc::SYS_epoll_pwait => Wait::Epoll { fd, has_timeout },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => Wait::Epoll { fd, has_timeout },
        // The timeout is in memory, unless there is none.
        libc::SYS_epoll_pwait2 => Wait::Epoll { fd, has_timeout: fourth != 0 },
        libc::SYS_futex if is_wait(second) && fourth == 0 => Wait::Local,
        libc::SYS_futex => Wait::Timed("futex"),
        libc::SYS_rt_sigsuspend => Wait::Local,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_pause => Wait::Local,
        libc::SYS_wait4 | libc::SYS_waitid => Wait::Child,
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => Wait::Timed("nanosleep"),
        libc::SYS_restart_syscall => Wait::Timed("restart_syscall"),
        libc::SYS_ppoll => Wait::Unreadable("poll"),
        libc::SYS_pselect6 => Wait::Unreadable("select"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => Wait::Unreadable("poll"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => Wait::Unreadable("select"),
        libc::SYS_io_uring_enter => Wait::Unreadable("io_uring"),
        _ => Wait::Call(number),
    }
}

/// Whether an operation of futex(2) waits for another thread.
fn is_wait(operation: u64) -> bool {
    #[allow(clippy::cast_possible_truncation, reason = "the operation is an int")]
    let operation = operation as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    matches!(operation, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that were read from real processes.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_wait_is_read_with_its_timeout() {
        let rest = "0x7ffd0 0x7f00";
        for (line, expected) in [
            ("0 0x6 0x7f0010 0x10000 0x0 0x0 0x0", Wait::Read(6)),
            (
                "281 0xd 0x7ffd4 0x400 0xffffffff 0x0 0x8",
                Wait::Epoll { fd: 13, has_timeout: false },
            ),
            (
                "232 0xd 0x7ffd4 0x400 0xffffffffffffffff 0x0 0x8",
                Wait::Epoll { fd: 13, has_timeout: false },
            ),
            ("281 0xd 0x7ffd4 0x400 0x1f3 0x0 0x8", Wait::Epoll { fd: 13, has_timeout: true }),
            ("441 0xd 0x7ffd4 0x400 0x0 0x0 0x8", Wait::Epoll { fd: 13, has_timeout: false }),
            ("441 0xd 0x7ffd4 0x400 0x7ffd 0x0 0x8", Wait::Epoll { fd: 13, has_timeout: true }),
            ("202 0x7f32 0x189 0x0 0x0 0x0 0xffffffff", Wait::Local),
            ("202 0x7f32 0x80 0x0 0x0 0x0 0x0", Wait::Local),
            ("202 0x7f32 0x189 0x0 0x7ffd 0x0 0xffffffff", Wait::Timed("futex")),
            ("61 0xffffffffffffffff 0x7ffd 0x0 0x0 0x0 0x0", Wait::Child),
            ("230 0x0 0x0 0x7ffd 0x0 0x0 0x0", Wait::Timed("nanosleep")),
            ("7 0x7ffd 0x1 0xffffffff 0x0 0x0 0x0", Wait::Unreadable("poll")),
            ("45 0x3 0x7ffd 0x1 0x0 0x0 0x0", Wait::Read(3)),
            ("47 0x3 0x7ffd 0x0 0x0 0x0 0x0", Wait::Call(47)),
            ("1 0x1 0x7ffd 0x40000 0x0 0x0 0x0", Wait::Call(1)),
        ] {
            assert_eq!(wait(&format!("{line} {rest}\n")), expected, "{line}");
        }
        assert_eq!(wait("running\n"), Wait::Runs);
        assert_eq!(wait("-1 0x7ffd0 0x7f00\n"), Wait::Runs);
        for bad in ["", "x", "0", "0 1 2 3 4 5 6", "0 0x1 0x2 0x3 0x4 0x5", "18446744073709551615"]
        {
            assert_eq!(wait(bad), Wait::Unread, "{bad:?}");
        }
    }
}
