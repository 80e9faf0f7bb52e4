//! Decides which execs wake the agent at once.
//!
//! Only the agent decides what starts a launcher; this code guesses from the names in argv. A false
//! positive costs a needless wake-up; a false negative delays the record until the agent's next tick.

use aya_ebpf::Global;
use mcp_guard_common::LAUNCHERS;

/// How many bytes of argv are looked at.
const LOOKED_AT: u64 = 208;

/// Each name, packed by [`word`]. A launcher that only the policy names waits for the tick.
#[unsafe(no_mangle)]
static NAMES: Global<[u64; LAUNCHERS.len()]> = Global::new(words());

const fn words() -> [u64; LAUNCHERS.len()] {
    let mut words = [0; LAUNCHERS.len()];
    let mut at = 0;
    while at < words.len() {
        words[at] = word(LAUNCHERS[at].as_bytes());
        at += 1;
    }
    words
}

/// Packs the last eight bytes of a name, the last byte lowest.
const fn word(name: &[u8]) -> u64 {
    let mut word = 0;
    let mut at = 0;
    while at < name.len() {
        word = word << 8 | name[at] as u64;
        at += 1;
    }
    word
}

/// Returns whether a path component in the first words, without its file suffix, is a launcher's name:
/// `npm exec`, `env node /usr/bin/npm exec`, `node /usr/lib/node_modules/npm/bin/npm-cli.js exec`.
///
/// The name being read is kept in `scratch`, not in a register: the verifier tracks each value that
/// a register may have, and there are too many names.
///
/// # Safety
/// `argv` must point to at least [`LOOKED_AT`] bytes, of which `len` have been written. `scratch`
/// must point to memory of our own that does not overlap them.
#[inline(always)]
pub unsafe fn may_start(argv: *const u8, len: u64, scratch: *mut u64) -> bool {
    let names = NAMES.load();
    // SAFETY: the caller guarantees both pointers; `at` is below LOOKED_AT and below `len`.
    unsafe {
        scratch.write_volatile(0);
        for at in 0..LOOKED_AT {
            if at >= len {
                break;
            }
            let byte = argv.add(at as usize).read_volatile();
            let seen = scratch.read_volatile();
            if byte == 0 || byte == b'/' || byte == b'.' {
                if seen != 0 && names.contains(&seen) {
                    return true;
                }
                scratch.write_volatile(0);
            } else {
                scratch.write_volatile(seen << 8 | u64::from(byte));
            }
        }
    }
    false
}
