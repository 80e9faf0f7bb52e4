//! Reads of kernel structures. Everything that depends on their layout is here.
//!
//! Offsets come from the running kernel's BTF: the agent writes them into `.rodata` before it loads
//! the programs. The verifier treats frozen `.rodata` as constants, so `pointer + OFFSET` stays a
//! typed pointer and the load needs no helper call.

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::{bpf_get_current_cgroup_id, generated::bpf_get_smp_processor_id},
};

/// An opaque kernel structure.
pub type Ptr = *const c_void;

macro_rules! offsets {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub static $name: Global<u64> = Global::new(0);
    )*};
}

offsets! {
    OFF_BINPRM_EXEC
    OFF_CGROUP_KN
    OFF_CGROUP_ROOT
    OFF_CGROUP_SELF
    OFF_CGROUP_ROOT_HIERARCHY_ID
    OFF_CSS_CGROUP
    OFF_CSS_PARENT
    OFF_CSS_SET_DFL_CGRP
    OFF_KERNFS_NODE_ID
    OFF_MM_ARG_END
    OFF_MM_ARG_START
    OFF_SIGNAL_LIVE
    OFF_TASK_CGROUPS
    OFF_TASK_EXIT_CODE
    OFF_TASK_GROUP_LEADER
    OFF_TASK_MM
    OFF_TASK_PID
    OFF_TASK_REAL_PARENT
    OFF_TASK_SIGNAL
    OFF_TASK_START_BOOTTIME
    OFF_TASK_TGID
}

/// Loads the `T` at `offset` bytes into `base`.
///
/// # Safety
/// `base` must be a pointer whose type the verifier knows, and `offset` the offset of a field of that
/// type with the size of `T`. A wrong offset cannot harm the kernel: the verifier rejects it, or the load
/// faults and yields zero. It would only give wrong values.
#[inline(always)]
unsafe fn load<T: Copy>(base: Ptr, offset: &Global<u64>) -> T {
    // SAFETY: the caller's guarantee; the verifier checks the access when the program is loaded.
    unsafe { base.cast::<u8>().add(offset.load() as usize).cast::<T>().read() }
}

/// A `task_struct` that a tracepoint passed to its program.
#[derive(Clone, Copy)]
pub struct Task(pub Ptr);

/// The `linux_binprm` of an exec that has succeeded.
#[derive(Clone, Copy)]
pub struct Exec(pub Ptr);

/// A `cgroup` of any hierarchy.
#[derive(Clone, Copy)]
pub struct Cgroup(pub Ptr);

/// Returns the id of the running task's cgroup in the unified hierarchy. Right after an exec, with
/// cold caches, this measured a tenth cheaper than reading it from the task by offsets.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: the helper only reads.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Returns the number of the CPU. A program stays on it until it ends.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: the helper only reads.
    unsafe { bpf_get_smp_processor_id() }
}

impl Task {
    #[inline(always)]
    pub fn pid(self) -> u32 {
        // SAFETY: `pid_t pid` of a task.
        unsafe { load(self.0, &OFF_TASK_PID) }
    }

    #[inline(always)]
    pub fn tgid(self) -> u32 {
        // SAFETY: `pid_t tgid` of a task.
        unsafe { load(self.0, &OFF_TASK_TGID) }
    }

    #[inline(always)]
    pub fn start_boottime(self) -> u64 {
        // SAFETY: `u64 start_boottime` of a task.
        unsafe { load(self.0, &OFF_TASK_START_BOOTTIME) }
    }

    #[inline(always)]
    pub fn exit_code(self) -> u32 {
        // SAFETY: `int exit_code` of a task.
        unsafe { load(self.0, &OFF_TASK_EXIT_CODE) }
    }

    /// Returns the thread group leader; its tgid and start time identify the process uniquely.
    #[inline(always)]
    pub fn leader(self) -> Self {
        // SAFETY: `task_struct *group_leader` of a task.
        Self(unsafe { load(self.0, &OFF_TASK_GROUP_LEADER) })
    }

    /// Returns the parent at birth. With `CLONE_PARENT`, it is not the caller.
    #[inline(always)]
    pub fn real_parent(self) -> Self {
        // SAFETY: `task_struct *real_parent` of a task.
        Self(unsafe { load(self.0, &OFF_TASK_REAL_PARENT) })
    }

    /// Returns the task's cgroup in the unified hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> Cgroup {
        // SAFETY: `css_set *cgroups` of a task, `cgroup *dfl_cgrp` of a css_set.
        Cgroup(unsafe { load(load(self.0, &OFF_TASK_CGROUPS), &OFF_CSS_SET_DFL_CGRP) })
    }

    /// Counts the threads of the process that have not begun to exit.
    #[inline(always)]
    pub fn live_threads(self) -> u32 {
        // SAFETY: `signal_struct *signal` of a task, `atomic_t live` of a signal_struct.
        unsafe { load(load(self.0, &OFF_TASK_SIGNAL), &OFF_SIGNAL_LIVE) }
    }

    /// Returns where the program's arguments begin and end in its own memory.
    #[inline(always)]
    pub fn arguments(self) -> (u64, u64) {
        // SAFETY: `mm_struct *mm` of a task to which exec has just given a new one, and two
        // `unsigned long` of that mm.
        unsafe {
            let mm = load(self.0, &OFF_TASK_MM);
            (load(mm, &OFF_MM_ARG_START), load(mm, &OFF_MM_ARG_END))
        }
    }
}

impl Exec {
    /// Returns where the path that was given to `execve` is in the new program's memory, as a string: the
    /// kernel puts it above the environment (`AT_EXECFN`). For a `#!` script, it is that of the script. It is
    /// read from there, because a lockdown may forbid to read `bprm->filename`, which is the same.
    #[inline(always)]
    pub fn path(self) -> u64 {
        // SAFETY: `unsigned long exec` of a linux_binprm.
        unsafe { load(self.0, &OFF_BINPRM_EXEC) }
    }
}

impl Cgroup {
    /// Returns the id, which user space sees as the directory's inode number.
    #[inline(always)]
    pub fn id(self) -> u64 {
        // SAFETY: `kernfs_node *kn` of a cgroup, `u64 id` of a kernfs_node.
        unsafe { load(load(self.0, &OFF_CGROUP_KN), &OFF_KERNFS_NODE_ID) }
    }

    /// Returns whether this is the unified hierarchy, numbered 0 as in `0::/path` (cgroups(7)). v1
    /// hierarchies fire the same tracepoints, and their ids collide with the unified hierarchy's.
    #[inline(always)]
    pub fn is_unified(self) -> bool {
        // SAFETY: `cgroup_root *root` of a cgroup, `int hierarchy_id` of a cgroup_root.
        let id: u32 =
            unsafe { load(load(self.0, &OFF_CGROUP_ROOT), &OFF_CGROUP_ROOT_HIERARCHY_ID) };
        id == 0
    }

    /// Returns the parent. That of the root has the id 0, which no cgroup has.
    #[inline(always)]
    pub fn parent(self) -> Self {
        // SAFETY: `cgroup_subsys_state self` of a cgroup begins at OFF_CGROUP_SELF and holds
        // `parent`, whose `cgroup` points back to the cgroup it belongs to. The root has no parent: loads
        // through a null pointer of a type that the verifier knows yield 0.
        unsafe {
            let own = self.0.cast::<u8>().add(OFF_CGROUP_SELF.load() as usize).cast();
            Self(load(load(own, &OFF_CSS_PARENT), &OFF_CSS_CGROUP))
        }
    }
}
