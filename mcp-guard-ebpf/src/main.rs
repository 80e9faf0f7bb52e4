//! The kernel side of mcp-guard: counts what tasks of guarded cgroups do, and reports it to the agent.
//!
//! Totals are authoritative; a record in the ring only adds detail. A task outside every guard costs
//! one lookup. Unsafe reads of kernel structures are in `kernel.rs`, unsafe map accesses in `maps.rs`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has fetch-and-add only as an intrinsic")]

mod kernel;
mod launchers;
mod maps;

use aya_ebpf::{
    Global,
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_ktime_get_boot_ns,
        generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use kernel::{Cgroup, Exec, Task};
use maps::EVENTS;
use mcp_guard_common::{
    ARGV_TRUNCATED, ARGV_UNREAD, EXE_ROOM, EXEC_TEXT, Event, Kind, Loss, NO_GUARD,
};

/// 0 disables fork, exit and attach records: only totals are kept. The bench measures both modes.
#[unsafe(no_mangle)]
static SEND_EVENTS: Global<u64> = Global::new(1);
/// 1 if `sched_process_exit` reports whether the thread was the last of its process.
#[unsafe(no_mangle)]
static HAS_GROUP_DEAD: Global<u64> = Global::new(0);
/// Unread bytes in the ring above which a record wakes the agent even if no decision waits for it.
#[unsafe(no_mangle)]
static WAKE_AT: Global<u64> = Global::new(0);

/// One small record in this many, per kind, guard and CPU, asks how full the ring is.
const ASK_EVERY: u64 = 16;

#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork(ctx: BtfTracePointContext) -> i32 {
    let child = Task(ctx.arg(1));
    // The child's own cgroup: with CLONE_INTO_CGROUP it can differ from the parent's.
    let cgroup = child.cgroup().id();
    let Some(guard) = maps::guard_of(cgroup, || child.cgroup()) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    let tgid = child.tgid();
    if child.pid() != tgid {
        // SAFETY: a live map value, and this program alone writes this field.
        unsafe { (*totals).thread_forks += 1 };
        return 0;
    }
    // SAFETY: as above.
    let number = unsafe {
        (*totals).process_forks += 1;
        (*totals).process_forks
    };
    #[cfg(feature = "bpf-log")]
    aya_log_ebpf::debug!(&ctx, "fork of {} in guard {}", tgid, guard);
    if SEND_EVENTS.load() == 0 {
        return 0;
    }
    // The kernel has just read the clock for the child's birth. Reading it again would be a large
    // part of the record's cost.
    let mut event = event(Kind::Fork, guard, cgroup, child, child.start_boottime());
    event.parent = child.real_parent().tgid();
    send(&event, guard, number);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let cgroup = kernel::current_cgroup();
    let Some(guard) = maps::guard_of(cgroup, || task.cgroup()) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    // SAFETY: a live map value, and this program alone writes this field.
    unsafe { (*totals).execs += 1 };
    let event = event(Kind::Exec, guard, cgroup, task, now());
    send_exec(event, Exec(ctx.arg(2)).path(), task.arguments());
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let cgroup = kernel::current_cgroup();
    let Some(guard) = maps::guard_of(cgroup, || task.cgroup()) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    let last = if HAS_GROUP_DEAD.load() == 1 {
        ctx.arg::<u64>(1) & 1 == 1
    } else {
        // Threads that end together may all see 0 here; only the first of them counts. Each thread
        // has its own start time, so the process is identified by its leader's.
        task.live_threads() == 0 && maps::first_exit(task.tgid(), task.leader().start_boottime())
    };
    if !last {
        // It may be the leader, which can end before the last thread, and which is gone after an exec by
        // another thread.
        // SAFETY: a live map value, and this program alone writes this field.
        unsafe { (*totals).thread_exits += 1 };
        return 0;
    }
    // SAFETY: as above.
    let number = unsafe {
        (*totals).process_exits += 1;
        (*totals).process_exits
    };
    if SEND_EVENTS.load() != 0 {
        let mut event = event(Kind::Exit, guard, cgroup, task, now());
        event.exit_code = task.exit_code();
        send(&event, guard, number);
    }
    0
}

/// Handles a process that enters a cgroup it was not born in: `docker exec`, a container's first process.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn attach_task(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    // A thread that moves alone, in a threaded subtree, leaves its process where it is.
    if !cgroup.is_unified() || ctx.arg::<u64>(3) & 0xff == 0 {
        return 0;
    }
    let id = cgroup.id();
    let task = Task(ctx.arg(2));
    let to = maps::guard_of(id, || cgroup).unwrap_or(NO_GUARD);
    if let Some(totals) = maps::totals(to) {
        // SAFETY: a live map value, and this program alone writes this field.
        unsafe { (*totals).attaches += 1 };
    }
    // The tracepoint says only where it went.
    let from = maps::moved(task.tgid(), task.start_boottime(), to);
    // Any user of the host can move processes of its own all day.
    if from == Some(to) || SEND_EVENTS.load() == 0 {
        return 0;
    }
    // If it is not known where the process was, a move out of every guard is sent as well: the agent knows
    // whether it tracked the process.
    let from = from.unwrap_or(NO_GUARD);
    let mut event = event(Kind::Attach, to, id, task, now());
    event.parent = from;
    if !send(&event, if to == NO_GUARD { from } else { to }, ASK_EVERY)
        && to != NO_GUARD
        && from != NO_GUARD
    {
        // The registries of both are wrong now.
        maps::dropped(from, Loss::RingFull);
    }
    0
}

/// Guards a cgroup that is created below a guarded one, from its first moment.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    if cgroup.is_unified()
        && let Some(guard) = maps::guard_of(cgroup.parent().id(), || cgroup.parent())
    {
        maps::add_cgroup(cgroup.id(), guard);
    }
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    if cgroup.is_unified() {
        maps::remove_cgroup(cgroup.id(), cgroup);
    }
    0
}

/// Does nothing. The bench subtracts its cost, which is the cost of the tracepoint itself.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn empty(_: BtfTracePointContext) -> i32 {
    0
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper only reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
fn event(kind: Kind, guard: u32, cgroup: u64, task: Task, time_ns: u64) -> Event {
    Event {
        time_ns,
        cgroup,
        start_ns: task.start_boottime(),
        kind: kind as u32,
        guard,
        tgid: task.tgid(),
        parent: 0,
        exit_code: 0,
        argv_len: 0,
        exe_len: 0,
        flags: 0,
    }
}

/// Sends a record that no decision waits for. The agent reads it on its next turn. `payer` is the guard
/// whose share it uses, and `number` the count of records of this kind, guard and CPU.
///
/// Records are built outside the ring: a task that is preempted while it fills a record in the ring would
/// hold up everything behind it, for as long as it is not scheduled.
#[inline(always)]
fn send(event: &Event, payer: u32, number: u64) -> bool {
    let due = number.is_multiple_of(ASK_EVERY);
    let unread = maps::unread_bytes(due);
    if !maps::may_send(payer, size_of::<Event>() as u64, unread, event.time_ns) {
        maps::dropped(payer, Loss::OverShare);
        return false;
    }
    let fills = due && unread > WAKE_AT.load();
    let is_sent = EVENTS.output::<Event>(event, wake(fills)).is_ok();
    if !is_sent {
        maps::dropped(payer, Loss::RingFull);
    }
    is_sent
}

/// Sends an exec with the path of its executable and its argv. A launcher start wakes the agent, which
/// decides on it. Other programs do not, because a wake-up costs ten times as much as everything else here.
#[inline(always)]
fn send_exec(mut event: Event, path: u64, (start, end): (u64, u64)) {
    let Some(record) = maps::scratch() else { return };
    let wanted = end.wrapping_sub(start);
    let len = if wanted > EXEC_TEXT as u64 { EXEC_TEXT as u64 } else { wanted };
    let guard = event.guard;
    // SAFETY: the scratch has room for the longest path and the longest argv. The fixed part is written last.
    // Only what was read for this record is sent.
    let is_sent = unsafe {
        let text = (&raw mut (*record).text).cast::<u8>();
        let read = bpf_probe_read_user_str(text.cast(), EXE_ROOM as u32, path as *const _);
        // The length has the null byte in it. A path that takes all the room was cut, and names nothing.
        let exe = if read > 0 && read < EXE_ROOM as i64 { read as u64 - 1 } else { 0 };
        let argv = text.add(exe as usize);
        let is_read = bpf_probe_read_user(argv.cast(), len as u32, start as *const _) == 0;
        let total = if is_read { exe + len } else { exe };
        let total = if total > EXEC_TEXT as u64 { EXEC_TEXT as u64 } else { total };
        event.exe_len = exe as u8;
        event.argv_len = (total - exe) as u16;
        if !is_read {
            maps::count_loss(Loss::ArgvUnread);
            event.flags = ARGV_UNREAD;
        } else if total - exe < wanted {
            event.flags = ARGV_TRUNCATED;
        }
        let unread = maps::unread_bytes(true);
        let bytes = size_of::<Event>() as u64 + total;
        if !maps::may_send(guard, bytes, unread, event.time_ns) {
            return maps::dropped(guard, Loss::OverShare);
        }
        let scratch = &raw mut (*record).event.time_ns;
        let matters = !is_read || launchers::may_start(argv, total - exe, scratch);
        (*record).event = event;
        let record = core::slice::from_raw_parts(record.cast::<u8>(), bytes as usize);
        EVENTS.output::<[u8]>(record, wake(matters || unread > WAKE_AT.load())).is_ok()
    };
    if !is_sent {
        maps::dropped(guard, Loss::RingFull);
    }
}

#[inline(always)]
fn wake(wanted: bool) -> u64 {
    if wanted { BPF_RB_FORCE_WAKEUP.into() } else { BPF_RB_NO_WAKEUP.into() }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_probe_read_user` are GPL-only, so the kernel requires this string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
