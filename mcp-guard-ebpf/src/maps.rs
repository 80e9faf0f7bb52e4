//! The maps, and all unsafe accesses to them.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    Global,
    bindings::BPF_RB_AVAIL_DATA,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use mcp_guard_common::{
    CGROUPS_OF_GUARD, ExecRecord, Loss, MAX_CGROUPS, MAX_GUARDS, RING_BYTES, Shared, Totals,
};

use crate::kernel::{self, Cgroup};

const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = 17;
/// Most ancestors that are looked at.
const DEEPEST: u32 = 64;
/// A guard may be ahead of its share by as much as it may send in this time.
const AHEAD_NS: u64 = 250_000_000;

/// Cgroup id -> slot of its guard. The agent adds existing cgroups; `mkdir` and `rmdir` keep the
/// map up to date below a guard, up to CGROUPS_OF_GUARD for each.
#[map]
static GUARDS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_CGROUPS, 0);

/// Slots of the cgroups that are guards themselves, in a map of their own, so that there is always room
/// for them.
#[map]
static ROOTS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_GUARDS, 0);

/// One value per guard and CPU, see [`Totals`]. The agent sets the size before it loads the map.
#[map]
static TOTALS: Array<Totals> = Array::with_max_entries(MAX_GUARDS, BPF_F_MMAPABLE);

#[map]
static SHARED: Array<Shared> = Array::with_max_entries(MAX_GUARDS, BPF_F_MMAPABLE);

/// Indexed by [`Loss`].
#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Where `exec` builds its record. Only that program uses it, and it never runs nested on a CPU.
#[map]
static SCRATCH: PerCpuArray<ExecRecord> = PerCpuArray::with_max_entries(1, 0);

/// Processes whose end was counted, if the kernel does not report which thread was the last.
#[map]
static EXITED: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(4096, 0);

/// Where processes were moved to last, by tgid and time of birth. They are still there.
#[map]
static MOVED: LruHashMap<[u64; 2], Place> = LruHashMap::with_max_entries(MAX_CGROUPS, 0);

#[derive(Clone, Copy)]
struct Place {
    /// Slot of the guard, or NO_GUARD.
    guard: u64,
    /// `Shared::epoch` at that time.
    epoch: u64,
}

/// Unread bytes in the ring above which each guard may only use its share of the rest.
#[unsafe(no_mangle)]
static SHARE_AT: Global<u64> = Global::new(0);
/// For how many nanoseconds a guard may not use its share for each byte that it has sent.
#[unsafe(no_mangle)]
static SHARE_NS: Global<u64> = Global::new(0);

/// Returns the guard of the cgroup with this id. `cgroup` is called only if the id says nothing.
#[inline(always)]
pub fn guard_of(id: u64, cgroup: impl FnOnce() -> Cgroup) -> Option<u32> {
    // SAFETY: the value is copied out at once; slots are only ever replaced whole.
    if let Some(guard) = unsafe { GUARDS.get(id) } {
        return Some(*guard);
    }
    // SAFETY: a live map value.
    let any = SHARED.get_ptr_mut(0).is_some_and(|shared| unsafe { (*shared).any_left_out } != 0);
    if any { guard_above(cgroup()) } else { None }
}

/// Looks for a guard among the ancestors: exact for any number of cgroups, but slow.
#[inline(always)]
fn guard_above(mut cgroup: Cgroup) -> Option<u32> {
    for _ in 0..DEEPEST {
        let id = cgroup.id();
        if id == 0 {
            return None;
        }
        // SAFETY: as in `guard_of`.
        if let Some(guard) = unsafe { ROOTS.get(id) } {
            return Some(*guard);
        }
        cgroup = cgroup.parent();
    }
    count_loss(Loss::CgroupsFull);
    None
}

/// Returns the counts of this CPU. A pointer, because programs that preempt each other may have it at the
/// same time; each field has one writer at a time (see [`Totals`]).
#[inline(always)]
pub fn totals(guard: u32) -> Option<*mut Totals> {
    if guard >= MAX_GUARDS {
        return None;
    }
    TOTALS.get_ptr_mut(kernel::cpu().wrapping_mul(MAX_GUARDS).wrapping_add(guard))
}

/// Counts a record of this guard that was not sent.
#[inline(always)]
pub fn dropped(guard: u32, loss: Loss) {
    if let Some(totals) = totals(guard) {
        // SAFETY: a live map value; several programs write this field, hence the atomic.
        unsafe { add(&raw mut (*totals).dropped, 1) };
    } else {
        count_loss(Loss::Nameless);
    }
    count_loss(loss);
}

#[inline(always)]
pub fn count_loss(loss: Loss) {
    if let Some(count) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: a live map value; several programs write it, hence the atomic.
        unsafe { add(count, 1) };
    }
}

/// Adds a new cgroup of a guard, or notes that it must be found through its ancestors.
#[inline(always)]
pub fn add_cgroup(cgroup: u64, guard: u32) {
    let Some(shared) = SHARED.get_ptr_mut(guard) else { return };
    let Some(first) = SHARED.get_ptr_mut(0) else { return };
    // SAFETY: live map values, which the agent may write at the same time, hence the atomics.
    unsafe {
        let has_room = (&raw const (*shared).followed).read_volatile() < CGROUPS_OF_GUARD;
        if has_room && GUARDS.insert(cgroup, guard, 0).is_ok() {
            add(&raw mut (*shared).followed, 1);
        } else {
            add(&raw mut (*shared).left_out, 1);
            (&raw mut (*first).any_left_out).write_volatile(1);
        }
    }
}

/// `of`: the cgroup, if its guard must be found through its ancestors.
#[inline(always)]
pub fn remove_cgroup(cgroup: u64, of: Cgroup) {
    // SAFETY: as in `guard_of`.
    let followed = unsafe { GUARDS.get(cgroup) }.copied();
    // A cgroup outside every guard is not in the maps. That is not an error.
    let _ = GUARDS.remove(cgroup);
    let guard = followed.or_else(|| guard_of(cgroup, || of));
    let _ = ROOTS.remove(cgroup);
    let Some(shared) = guard.and_then(|guard| SHARED.get_ptr_mut(guard)) else { return };
    // SAFETY: a live map value, which the agent may write at the same time, hence the atomics.
    unsafe {
        let field = match followed {
            Some(_) => &raw mut (*shared).followed,
            None => &raw mut (*shared).left_out,
        };
        if field.read_volatile() > 0 {
            add(field, u64::MAX);
        }
    }
}

/// Notes where a process was moved to, and returns where it was: the slot of its guard, or NO_GUARD. `None`
/// if that is not known, because this is its first move, or guards have come or gone since the last one.
#[inline(always)]
pub fn moved(tgid: u32, start: u64, to: u32) -> Option<u32> {
    let first = SHARED.get_ptr_mut(0)?;
    // SAFETY: a live map value.
    let epoch = unsafe { (&raw const (*first).epoch).read_volatile() };
    let key = [u64::from(tgid), start];
    // SAFETY: the value is copied out at once; places are only ever replaced whole.
    let before = unsafe { MOVED.get(key) }.copied();
    // If it cannot be noted, the next move is reported, which does no harm.
    let _ = MOVED.insert(key, Place { guard: u64::from(to), epoch }, 0);
    let before = before?;
    if before.epoch == epoch { Some(before.guard as u32) } else { None }
}

/// Returns whether this is the first thread to report the end of its process.
#[inline(always)]
pub fn first_exit(tgid: u32, start: u64) -> bool {
    match EXITED.insert([u64::from(tgid), start], 1, BPF_NOEXIST) {
        Ok(()) => true,
        Err(error) if error == -EEXIST => false,
        Err(_) => {
            count_loss(Loss::ExitUnsure);
            true
        }
    }
}

#[inline(always)]
pub fn scratch() -> Option<*mut ExecRecord> {
    SCRATCH.get_ptr_mut(0)
}

/// Returns the unread bytes, or 0 if they do not matter yet.
///
/// To ask the ring costs a third of a small record, because the agent writes the same memory. So only one
/// small record in several asks (`due`), on each CPU, and each one does while the ring is crowded. When it
/// begins to be, the few records in between go beyond the share of their guard.
#[inline(always)]
pub fn unread_bytes(due: bool) -> u64 {
    let ask = || EVENTS.query(BPF_RB_AVAIL_DATA.into());
    let Some(first) = SHARED.get_ptr_mut(0) else { return ask() };
    // SAFETY: a live map value. Two CPUs may both write what they have just seen.
    unsafe {
        let crowded = &raw mut (*first).crowded;
        let was = crowded.read_volatile();
        if !due && was == 0 {
            return 0;
        }
        let unread = ask();
        let is = u64::from(unread > SHARE_AT.load());
        // Only a change is written, so that the CPUs can share the cache line.
        if is != was {
            crowded.write_volatile(is);
        }
        unread
    }
}

/// Returns whether a guard may send so many bytes while so many are unread. While the ring is less than
/// half full, it always may. The other half is shared: a guard that sends more than its share cannot fill
/// it, so that others have room. Two CPUs may both take the last of it, which does no harm.
#[inline(always)]
pub fn may_send(guard: u32, bytes: u64, unread: u64, now: u64) -> bool {
    if unread <= SHARE_AT.load() {
        return true;
    }
    let Some(shared) = SHARED.get_ptr_mut(guard) else { return true };
    // SAFETY: a live map value.
    unsafe {
        let paid_at = &raw mut (*shared).paid_at;
        let paid = paid_at.read_volatile();
        let from = if paid > now { paid } else { now };
        if from - now > AHEAD_NS {
            return false;
        }
        paid_at.write_volatile(from + bytes * SHARE_NS.load());
    }
    true
}

/// # Safety
/// `count` must point into a live map value.
#[inline(always)]
unsafe fn add(count: *mut u64, number: u64) {
    // SAFETY: the caller guarantees that `count` points into a live map value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, number) };
}
