//! The maps, and all unsafe accesses to them.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use mcp_guard_common::{Loss, MAX_CGROUPS, MAX_GUARDS, RING_BYTES, Totals};

/// Cgroup id -> slot of its guard. The agent adds existing cgroups; `mkdir` and `rmdir` keep the
/// map up to date below a guard.
#[map]
static GUARDS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_CGROUPS, 0);

#[map]
static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(MAX_GUARDS, 0);

/// Indexed by [`Loss`].
#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Processes whose end was counted, if the kernel does not report which thread was the last.
#[map]
static EXITED: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(4096, 0);

#[inline(always)]
pub fn guard_of(cgroup: u64) -> Option<u32> {
    // SAFETY: the value is copied out at once; slots are only ever replaced whole.
    unsafe { GUARDS.get(cgroup) }.copied()
}

#[inline(always)]
pub fn totals(guard: u32) -> Option<&'static mut Totals> {
    // SAFETY: the map lives as long as the program, and this CPU's value has one writer at a time
    // per field (see `Totals`).
    TOTALS.get_ptr_mut(guard).map(|totals| unsafe { &mut *totals })
}

/// Counts a record of this guard that did not fit into the ring.
#[inline(always)]
pub fn dropped(guard: u32) {
    if let Some(totals) = TOTALS.get_ptr_mut(guard) {
        // SAFETY: a live map value; several programs write this field, hence the atomic.
        unsafe { add_one(&raw mut (*totals).dropped) };
    }
    count_loss(Loss::RingFull);
}

#[inline(always)]
pub fn count_loss(loss: Loss) {
    if let Some(count) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: a live map value; several programs write it, hence the atomic.
        unsafe { add_one(count) };
    }
}

#[inline(always)]
pub fn add_cgroup(cgroup: u64, guard: u32) {
    if GUARDS.insert(cgroup, guard, 0).is_err() {
        count_loss(Loss::CgroupsFull);
    }
}

#[inline(always)]
pub fn remove_cgroup(cgroup: u64) {
    // A cgroup outside every guard is not in the map. That is not an error.
    let _ = GUARDS.remove(cgroup);
}

/// Returns whether this is the first thread to report the end of its process.
#[inline(always)]
pub fn first_exit(tgid: u32, start: u64) -> bool {
    const BPF_NOEXIST: u64 = 1;
    EXITED.insert([u64::from(tgid), start], 1, BPF_NOEXIST).is_ok()
}

#[inline(always)]
pub fn unread_bytes() -> u64 {
    EVENTS.query(BPF_RB_AVAIL_DATA.into())
}

/// # Safety
/// `count` must point into a live map value.
#[inline(always)]
unsafe fn add_one(count: *mut u64) {
    // SAFETY: the caller guarantees that `count` points into a live map value.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
}
