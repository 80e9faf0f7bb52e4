//! The kernel side of mcp-guard: counts what tasks of guarded cgroups do, and tells the agent.
//!
//! Totals are the truth; a record in the ring only adds detail. A task outside every guard costs
//! one lookup. `unsafe` for reads of kernel structures is in `kernel.rs`, for maps in `maps.rs`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has fetch-and-add only as an intrinsic")]

mod kernel;
mod maps;

use aya_ebpf::{
    Global,
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_user},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use kernel::{Cgroup, Task};
use maps::EVENTS;
use mcp_guard_common::{
    ARGV_TRUNCATED, ARGV_UNREAD, Event, ExecRecord, Kind, LONG_ARGV, Loss, NO_GUARD, SHORT_ARGV,
};

/// 0 keeps fork, exit and attach silent: totals only. The bench measures both ways.
#[unsafe(no_mangle)]
static SEND_EVENTS: Global<u64> = Global::new(1);
/// 1 where `sched_process_exit` tells whether the thread was the last of its process.
#[unsafe(no_mangle)]
static HAS_GROUP_DEAD: Global<u64> = Global::new(0);
/// Unread bytes in the ring from which a silent record wakes the agent all the same.
#[unsafe(no_mangle)]
static WAKE_AT: Global<u64> = Global::new(0);

#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork(ctx: BtfTracePointContext) -> i32 {
    let child = Task(ctx.arg(1));
    // The child's own cgroup: CLONE_INTO_CGROUP makes it another than the parent's.
    let cgroup = child.cgroup().id();
    let Some(guard) = maps::guard_of(cgroup) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    let tgid = child.tgid();
    if child.pid() != tgid {
        totals.thread_forks += 1;
        return 0;
    }
    totals.process_forks += 1;
    #[cfg(feature = "bpf-log")]
    aya_log_ebpf::debug!(&ctx, "fork of {} in guard {}", tgid, guard);
    let mut event = event(Kind::Fork, guard, cgroup, child);
    event.parent = child.real_parent().tgid();
    send(&event);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let cgroup = task.cgroup().id();
    let Some(guard) = maps::guard_of(cgroup) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    totals.execs += 1;
    let (start, end) = task.arguments();
    let event = event(Kind::Exec, guard, cgroup, task);
    if end.wrapping_sub(start) <= SHORT_ARGV as u64 {
        send_exec::<SHORT_ARGV>(event, start, end);
    } else {
        send_exec::<LONG_ARGV>(event, start, end);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task(ctx.arg(0));
    let cgroup = task.cgroup().id();
    let Some(guard) = maps::guard_of(cgroup) else { return 0 };
    let Some(totals) = maps::totals(guard) else { return 0 };
    if task.pid() != task.tgid() {
        totals.thread_exits += 1;
    }
    let last = if HAS_GROUP_DEAD.load() == 1 {
        ctx.arg::<u64>(1) & 1 == 1
    } else {
        // Two threads that end at once may both see 0 here; only the first of them counts.
        task.live_threads() == 0 && maps::first_exit(task.tgid(), task.start_boottime())
    };
    if last {
        totals.process_exits += 1;
        let mut event = event(Kind::Exit, guard, cgroup, task);
        event.exit_code = task.exit_code();
        send(&event);
    }
    0
}

/// A process enters a cgroup it was not born in: `docker exec`, a container's first process.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn attach_task(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_unified() {
        return 0;
    }
    let id = cgroup.id();
    let task = Task(ctx.arg(2));
    // Where it came from is not told, so a move out of every guard is sent as well: the agent
    // knows whether the process was one of its own.
    let guard = maps::guard_of(id).unwrap_or(NO_GUARD);
    if let Some(totals) = maps::totals(guard) {
        totals.attaches += 1;
    }
    send(&event(Kind::Attach, guard, id, task));
    0
}

/// A cgroup made below a guarded one is guarded from its first moment.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    if cgroup.is_unified()
        && let Some(guard) = maps::guard_of(cgroup.parent().id())
    {
        maps::add_cgroup(cgroup.id(), guard);
    }
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup(ctx.arg(0));
    if cgroup.is_unified() {
        maps::remove_cgroup(cgroup.id());
    }
    0
}

/// Does nothing. The bench subtracts its cost, which is the tracepoint's own.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn empty(_: BtfTracePointContext) -> i32 {
    0
}

#[inline(always)]
fn event(kind: Kind, guard: u32, cgroup: u64, task: Task) -> Event {
    Event {
        // SAFETY: the helper only reads a clock.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        cgroup,
        start_ns: task.start_boottime(),
        kind: kind as u32,
        guard,
        tgid: task.tgid(),
        parent: 0,
        exit_code: 0,
        argv_len: 0,
        flags: 0,
    }
}

/// Sends a record that no decision waits for: the agent reads it on its next turn.
#[inline(always)]
fn send(event: &Event) {
    if SEND_EVENTS.load() == 0 {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return maps::dropped(event.guard) };
    entry.write(*event);
    let wake =
        if maps::unread_bytes() > WAKE_AT.load() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    entry.submit(wake.into());
}

/// Sends an exec with its argv and wakes the agent: launcher starts are what it decides on.
#[inline(always)]
fn send_exec<const N: usize>(event: Event, start: u64, end: u64) {
    let Some(mut entry) = EVENTS.reserve::<ExecRecord<N>>(0) else {
        return maps::dropped(event.guard);
    };
    let record = entry.as_mut_ptr();
    let wanted = end.wrapping_sub(start);
    let len = if wanted > N as u64 { N as u64 } else { wanted };
    // SAFETY: the reservation holds a whole ExecRecord<N> and `len` is at most N; each field is
    // written before the record is submitted, the argv bytes as far as `argv_len` says.
    unsafe {
        (*record).event = event;
        let argv = (&raw mut (*record).argv).cast();
        if bpf_probe_read_user(argv, len as u32, start as *const _) == 0 {
            (*record).event.argv_len = len as u16;
            (*record).event.flags = if wanted > len { ARGV_TRUNCATED } else { 0 };
        } else {
            maps::count_loss(Loss::ArgvUnread);
            (*record).event.flags = ARGV_UNREAD;
        }
    }
    entry.submit(BPF_RB_FORCE_WAKEUP.into());
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_probe_read_user` are GPL-only, so the kernel asks for this word.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
