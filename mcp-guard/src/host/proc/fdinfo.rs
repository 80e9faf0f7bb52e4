//! `/proc/PID/fdinfo/FD`, see proc_pid_fdinfo(5).

/// A file that an epoll descriptor watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its descriptor in the process that has added it, which may be closed.
    pub fd: u32,
    pub inode: u64,
}

/// Returns the files that an epoll descriptor watches.
#[must_use]
pub fn watched(text: &str) -> Vec<Watched> {
    let one = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
        Some(Watched { fd, inode: u64::from_str_radix(inode, 16).ok()? })
    };
    text.lines().filter_map(one).collect()
}

/// Whether a timerfd is armed. True if that cannot be read.
#[must_use]
pub fn is_armed(text: &str) -> bool {
    field(text, "it_value:") != Some("(0, 0)")
}

/// Whether the descriptor is open for writing only. False if that cannot be read.
#[must_use]
pub fn is_write_only(text: &str) -> bool {
    let flags = field(text, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE == libc::O_WRONLY)
}

/// Whether a write to it never waits (`O_NONBLOCK` of open(2)).
#[must_use]
pub fn is_nonblocking(text: &str) -> bool {
    let flags = field(text, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.is_some_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// Whether it is closed when its process executes a program. False if that cannot be read.
#[must_use]
pub fn is_closed_on_exec(text: &str) -> bool {
    let flags = field(text, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Whether it refers to a place in the file system only (`O_PATH` of open(2)).
#[must_use]
pub fn is_path_only(text: &str) -> bool {
    let flags = field(text, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    flags.is_none_or(|flags| flags & libc::O_PATH != 0)
}

/// A lock that is held through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldLock {
    /// The one that says of an SQLite database in WAL mode that a connection to it is open
    /// (sqlite.org/walformat.html). It is on the `-shm` file.
    SqliteOpen,
    /// The one of a connection that reads a database. In WAL mode, a connection always holds it
    /// (sqlite.org/lockingv3.html).
    SqliteShared,
    SharedFlock,
    Other,
}

/// Returns the locks that are held through the descriptor.
pub fn locks(text: &str) -> impl Iterator<Item = HeldLock> {
    text.lines().filter_map(|line| line.strip_prefix("lock:")).map(|lock| {
        // 1: POSIX ADVISORY READ 1234 08:01:5678 128 128
        let words: Vec<&str> = lock.split_whitespace().collect();
        match words[..] {
            [_, "POSIX", _, "READ", _, _, "128", "128"] => HeldLock::SqliteOpen,
            [_, "POSIX", _, "READ", _, _, "1073741826", "1073742335"] => HeldLock::SqliteShared,
            [_, "FLOCK", _, "READ", ..] => HeldLock::SharedFlock,
            _ => HeldLock::Other,
        }
    })
}

/// Returns the pids that a pidfd shows: the one in our namespace, and one for each namespace below it. 0 if
/// the process is in none of them, -1 if it has ended (pidfd_open(2)).
pub fn pids(text: &str) -> impl Iterator<Item = &str> {
    field(text, "NSpid:").unwrap_or_default().split_whitespace()
}

/// Returns how many runs of a BPF program the kernel skipped because it already ran on that CPU.
#[must_use]
pub fn recursion_misses(text: &str) -> Option<u64> {
    field(text, "recursion_misses:")?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoll_set_names_what_it_watches() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1064\n\
            tfd:        0 events:       19 data:                0  pos:0 ino:dcfeb sdev:f\n\
            tfd:       12 events:       19 data:                c  pos:0 ino:428 sdev:e\n\
            tfd:       13 events:       19 data: 0 pos:0 ino:x sdev:e\ntfd: 3\n";
        let watched: Vec<_> = watched(text).iter().map(|one| (one.fd, one.inode)).collect();
        assert_eq!(watched, [(0, 905_195), (12, 0x428)]);
    }

    #[test]
    fn a_timer_is_armed_unless_it_says_that_it_is_not() {
        let timer = |value: &str| format!("clockid: 1\nticks: 0\nit_value: {value}\n");
        assert!(!is_armed(&timer("(0, 0)")));
        assert!(is_armed(&timer("(0, 7)")) && is_armed(&timer("(9, 0)")) && is_armed(""));
    }

    #[test]
    fn a_pidfd_shows_its_pids_and_a_program_its_missed_runs() {
        let pidfd = |pids: &str| format!("pos:\t0\nPid:\t7\nNSpid:\t{pids}\n");
        let pids = |text: &str| pids(text).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(pids(&pidfd("451\t7\t1")), ["451", "7", "1"]);
        assert_eq!((pids(&pidfd("-1")), pids("Pid:\t451\n")), (vec!["-1".to_owned()], vec![]));
        assert_eq!(recursion_misses("prog_type:\t26\nrecursion_misses:\t12\n"), Some(12));
        assert_eq!(recursion_misses("prog_type:\t26\n"), None);
    }

    #[test]
    fn the_writing_end_of_a_pipe_is_known_by_its_flags() {
        assert!(is_write_only("pos:\t0\nflags:\t01\n") && is_write_only("flags:\t0100001\n"));
        for other in ["flags:\t00\n", "flags:\t02000002\n", "flags:\tx\n", ""] {
            assert!(!is_write_only(other), "{other:?}");
        }
    }

    #[test]
    fn what_is_closed_on_exec_is_known_by_its_flags() {
        assert!(is_closed_on_exec("pos:\t0\nflags:\t02004002\n"));
        assert!(!is_closed_on_exec("flags:\t04002\n") && !is_closed_on_exec(""));
    }

    #[test]
    fn a_place_is_told_from_an_open_file() {
        assert!(is_path_only("pos:\t0\nflags:\t012000000\n") && is_path_only("pos:\t0\n"));
        assert!(!is_path_only("pos:\t0\nflags:\t02100002\n"));
    }

    #[test]
    fn locks_that_hold_nobody_up_are_told_from_others() {
        let lock = |words: &str| format!("pos:\t0\nlock:\t{words}\n");
        let of = |text: &str| locks(text).collect::<Vec<_>>();
        for (words, expected) in [
            ("1: POSIX  ADVISORY  READ 1234 08:01:5678 128 128", HeldLock::SqliteOpen),
            ("1: POSIX  ADVISORY  READ 1 fe:00:1 1073741826 1073742335", HeldLock::SqliteShared),
            ("1: FLOCK  ADVISORY  READ 19907 fe:00:10748523 0 EOF", HeldLock::SharedFlock),
        ] {
            assert_eq!(of(&lock(words)), [expected], "{words}");
        }
        for other in [
            "1: POSIX  ADVISORY  WRITE 1234 08:01:5678 128 128",
            "1: POSIX  ADVISORY  READ 1234 08:01:5678 120 128",
            "1: OFDLCK ADVISORY  READ -1 08:01:5678 128 128",
            "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF",
            "nonsense",
        ] {
            assert_eq!(of(&lock(other)), [HeldLock::Other], "{other}");
        }
        assert_eq!(of("pos:\t0\n"), []);
    }
}
