//! Wire types shared by the kernel programs and the agent.
//!
//! Times are nanoseconds on `CLOCK_BOOTTIME`, the clock behind `/proc/PID/stat` start times.
//! Every type is plain bytes without padding (`IntoBytes` rejects padding at compile time), and the
//! size asserts below are checked once per target, so they test the wire format.
#![no_std]
#![forbid(unsafe_code)]

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Maximum number of guards at once; the size of the `TOTALS` map.
pub const MAX_GUARDS: u32 = 1024;
/// Maximum number of cgroups that are found by one lookup, nested ones included; the size of the `GUARDS`
/// map. Others are found through their ancestors.
pub const MAX_CGROUPS: u32 = 16_384;
/// Maximum number of cgroups of one guard in the `GUARDS` map.
pub const CGROUPS_OF_GUARD: u64 = 1024;
/// Default size of the event ring in bytes. It must be a power of two, in whole pages.
pub const RING_BYTES: u32 = 1 << 20;
/// [`Event::guard`] of a task that entered a cgroup outside every guard.
pub const NO_GUARD: u32 = u32::MAX;
/// Most bytes of an exec record behind its fixed part: the path of the executable and argv share them.
pub const EXEC_TEXT: usize = 1024;
/// Bytes that a path of an executable may have, with the null byte behind it. A longer one is left out.
pub const EXE_ROOM: usize = 256;

/// [`Event::flags`]: argv was longer than the record can hold.
pub const ARGV_TRUNCATED: u8 = 1;
/// [`Event::flags`]: argv could not be read; the record carries none.
pub const ARGV_UNREAD: u8 = 2;

/// Programs whose start wakes the agent at once: the built-in launchers, by base name without suffix.
pub const LAUNCHERS: [&str; 12] = [
    "npm", "npm-cli", "npx", "npx-cli", "bunx", "bun", "pnpm", "pnpx", "yarn", "uvx", "uv", "pipx",
];

/// The type of a record. The values are those of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A process was born (threads are only counted).
    Fork = 1,
    /// A process runs a new program; the path of its executable and argv follow the fixed part.
    Exec = 2,
    /// The last thread of a process has ended.
    Exit = 3,
    /// A process was moved into a guard, or out of one.
    Attach = 4,
}

impl Kind {
    fn from_wire(kind: u32) -> Option<Self> {
        match kind {
            1 => Some(Self::Fork),
            2 => Some(Self::Exec),
            3 => Some(Self::Exit),
            4 => Some(Self::Attach),
            _ => None,
        }
    }
}

/// The fixed part of every record in the ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Event {
    /// When the kernel wrote the record. For a fork, when the child was born.
    pub time_ns: u64,
    /// The task's own cgroup, at any depth below the guard's.
    pub cgroup: u64,
    /// When the process was born. With `tgid`, it identifies the process uniquely.
    pub start_ns: u64,
    /// A [`Kind`]; unknown values are rejected by [`decode`].
    pub kind: u32,
    /// Slot of the guard, or [`NO_GUARD`].
    pub guard: u32,
    pub tgid: u32,
    /// Fork: `real_parent` of the child. With `CLONE_PARENT`, it is not the caller. Attach: slot of the
    /// guard that the process was in, or [`NO_GUARD`] if it was in none or that is not known.
    pub parent: u32,
    /// Exit: the status as `wait(2)` returns it.
    pub exit_code: u32,
    /// Exec: number of argv bytes that follow the path.
    pub argv_len: u16,
    /// Exec: number of bytes of the executable's path, as it was given to `execve`. 0 if it is not known.
    pub exe_len: u8,
    pub flags: u8,
}

/// Where the kernel side builds an exec record. Only as much of it is sent as the record has.
#[repr(C)]
pub struct ExecRecord {
    pub event: Event,
    /// The path of the executable, then argv.
    pub text: [u8; EXEC_TEXT],
    /// The verifier adds up the longest path and the longest argv. Nothing here is ever sent.
    pub room: [u8; EXE_ROOM],
}

/// The counts of one guard on one CPU. The agent adds up the CPUs. The value of a guard and a CPU is at
/// `cpu * MAX_GUARDS + guard` of the `TOTALS` map, which the agent maps into its memory.
///
/// Each field except `dropped` is written by one program, and a program never runs nested on a CPU
/// (the kernel counts such a run as a recursion miss instead), so plain additions are exact.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Totals {
    pub process_forks: u64,
    pub thread_forks: u64,
    pub execs: u64,
    /// Exits of the last thread of a process.
    pub process_exits: u64,
    /// Exits of all other threads.
    pub thread_exits: u64,
    /// Moves of a process into a cgroup of the guard, moves inside the guard included.
    pub attaches: u64,
    /// Records that were not sent, because the ring was full or the guard had used up its share of it.
    /// Totals are not affected.
    pub dropped: u64,
    pub reserved: u64,
}

/// Facts about one guard that all CPUs share. The agent maps the `SHARED` map into its memory.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Shared {
    /// Cgroups of the guard in the `GUARDS` map.
    pub followed: u64,
    /// Cgroups of the guard that are not in that map, because there was no room for them.
    pub left_out: u64,
    /// When the guard will have paid for the records that it sent while the ring was half full. See
    /// `maps::may_send` of the kernel side.
    pub paid_at: u64,
    /// Used in slot 0 only: not 0 while any guard has cgroups that are left out.
    pub any_left_out: u64,
    /// Used in slot 0 only: changes whenever a guard begins or ends, which makes earlier notes about
    /// moved processes void.
    pub epoch: u64,
    /// Used in slot 0 only: not 0 if the ring was more than half full when it was last asked.
    pub crowded: u64,
}

/// Why the kernel side could not do all of its work. An index into the `LOSSES` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// The ring was full; [`Totals::dropped`] says for which guard.
    RingFull = 0,
    /// A task is nested too deep to find its guard through its ancestors, so it was not counted. Only
    /// looked for while some guard has more cgroups than fit into its part of the `GUARDS` map.
    CgroupsFull = 1,
    /// The argv of a new program could not be read.
    ArgvUnread = 2,
    /// The ring was half full, and the guard had used up its share of the rest.
    OverShare = 3,
    /// It could not be noted that the last thread of a process had ended, so the end may be counted twice.
    ExitUnsure = 4,
    /// A record that names no guard did not fit into the ring. It is counted as `RingFull` too.
    Nameless = 5,
}

impl Loss {
    pub const ALL: [Self; 6] = [
        Self::RingFull,
        Self::CgroupsFull,
        Self::ArgvUnread,
        Self::OverShare,
        Self::ExitUnsure,
        Self::Nameless,
    ];
}

const _: () = assert!(size_of::<Event>() == 48);
const _: () = assert!(size_of::<Totals>() == 64);
const _: () = assert!(size_of::<Shared>() == 48);
const _: () = assert!(size_of::<ExecRecord>() == 1328);

/// A record that the kernel programs cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A record as it lies in the ring.
#[derive(Clone, Copy, Debug)]
pub struct WireRecord<'a> {
    pub kind: Kind,
    pub event: Event,
    /// Empty if it is not known.
    pub exe: &'a [u8],
    pub argv: &'a [u8],
}

/// Splits a ring record into its parts.
///
/// # Errors
/// If the record is too short, is of an unknown kind, or claims more text than it carries.
pub fn decode(record: &[u8]) -> Result<WireRecord<'_>, Malformed> {
    let (event, text) = Event::read_from_prefix(record).map_err(|_| Malformed)?;
    let kind = Kind::from_wire(event.kind).ok_or(Malformed)?;
    let (exe, text) = text.split_at_checked(event.exe_len.into()).ok_or(Malformed)?;
    let argv = text.get(..event.argv_len.into()).ok_or(Malformed)?;
    Ok(WireRecord { kind, event, exe, argv })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, (exe_len, argv_len): (u8, u16), text: &[u8]) -> ([u8; 64], usize) {
        let event = Event {
            time_ns: 7,
            cgroup: 8,
            start_ns: 9,
            kind,
            guard: 1,
            tgid: 42,
            parent: 41,
            exit_code: 0,
            argv_len,
            exe_len,
            flags: 0,
        };
        let mut bytes = [0; 64];
        bytes[..48].copy_from_slice(event.as_bytes());
        bytes[48..48 + text.len()].copy_from_slice(text);
        (bytes, 48 + text.len())
    }

    #[test]
    fn a_record_decodes_to_what_was_written() {
        let (bytes, len) = record(Kind::Exec as u32, (6, 4), b"/x/npmnpm\0");
        let found = decode(&bytes[..len]).expect("well-formed");
        assert_eq!((found.kind, found.event.tgid, found.event.time_ns), (Kind::Exec, 42, 7));
        assert_eq!((found.exe, found.argv), (&b"/x/npm"[..], &b"npm\0"[..]));
    }

    #[test]
    fn damaged_records_are_rejected() {
        let (bytes, len) = record(Kind::Exec as u32, (2, 4), b"/xnpm\0");
        for short in 0..len {
            assert_eq!(decode(&bytes[..short]).err(), Some(Malformed), "{short} bytes");
        }
        for unknown in [0, 5, u32::MAX] {
            let (bytes, len) = record(unknown, (0, 0), b"");
            assert_eq!(decode(&bytes[..len]).err(), Some(Malformed), "kind {unknown}");
        }
    }
}
