//! The kernel side: loads and attaches the programs, maps cgroups to guards, and reads totals and
//! events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError},
};
use mcp_guard_common::{
    CGROUPS_OF_GUARD, Event, Kind, Loss, MAX_CGROUPS, MAX_GUARDS, RING_BYTES, Shared, Totals,
    WireRecord, decode,
};
use mcp_guard_core::id::{CgroupId, GuardId};

use super::{btf, mapped::MappedArray, proc::fdinfo};

/// The BPF object. It is built by `cargo xtask ebpf`, and committed with the hash of its sources.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/mcp-guard.bpf.o");
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// The name of a loss: tasks that were not counted because their cgroups are nested too deep.
pub const CGROUPS_FULL: &str = "cgroups-full";

/// Each program in the object, and the tracepoint that it attaches to.
const PROGRAMS: [(&str, &str); 6] = [
    ("fork", "sched_process_fork"),
    ("exec", "sched_process_exec"),
    ("exit", "sched_process_exit"),
    ("attach_task", "cgroup_attach_task"),
    ("mkdir", "cgroup_mkdir"),
    ("rmdir", "cgroup_rmdir"),
];

/// Words of a guard in the `TOTALS` map, and in the `SHARED` map.
const TOTALS_WORDS: usize = size_of::<Totals>() / size_of::<u64>();
const SHARED_WORDS: usize = size_of::<Shared>() / size_of::<u64>();
/// The words of a [`Shared`].
const FOLLOWED: usize = 0;
const LEFT_OUT: usize = 1;
const PAID_AT: usize = 2;
const ANY_LEFT_OUT: usize = 3;
const EPOCH: usize = 4;
/// More cgroups than a host can have.
const UNCOUNTED: u64 = 1 << 32;

/// The symbol in the object, the structure, its field, and the field's size in bytes.
const OFFSETS: [(&str, &str, &str, u64); 20] = [
    ("OFF_BINPRM_EXEC", "linux_binprm", "exec", 8),
    ("OFF_CGROUP_KN", "cgroup", "kn", 8),
    ("OFF_CGROUP_ROOT", "cgroup", "root", 8),
    ("OFF_CGROUP_ROOT_HIERARCHY_ID", "cgroup_root", "hierarchy_id", 4),
    ("OFF_CSS_CGROUP", "cgroup_subsys_state", "cgroup", 8),
    ("OFF_CSS_PARENT", "cgroup_subsys_state", "parent", 8),
    ("OFF_CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp", 8),
    ("OFF_KERNFS_NODE_ID", "kernfs_node", "id", 8),
    ("OFF_MM_ARG_END", "mm_struct", "arg_end", 8),
    ("OFF_MM_ARG_START", "mm_struct", "arg_start", 8),
    ("OFF_SIGNAL_LIVE", "signal_struct", "live", 4),
    ("OFF_TASK_CGROUPS", "task_struct", "cgroups", 8),
    ("OFF_TASK_EXIT_CODE", "task_struct", "exit_code", 4),
    ("OFF_TASK_GROUP_LEADER", "task_struct", "group_leader", 8),
    ("OFF_TASK_MM", "task_struct", "mm", 8),
    ("OFF_TASK_PID", "task_struct", "pid", 4),
    ("OFF_TASK_REAL_PARENT", "task_struct", "real_parent", 8),
    ("OFF_TASK_SIGNAL", "task_struct", "signal", 8),
    ("OFF_TASK_START_BOOTTIME", "task_struct", "start_boottime", 8),
    ("OFF_TASK_TGID", "task_struct", "tgid", 4),
];

/// The CPUs that this host can have, such as `0-3,8-11`.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Btf(#[from] btf::Error),
    #[error(
        "the kernel refuses our BPF maps: {0}; it takes root with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN"
    )]
    Load(String),
    #[error(
        "the kernel refuses BPF program {name}: {reason}; it takes root, or CAP_BPF with CAP_PERFMON"
    )]
    Program { name: &'static str, reason: String },
    #[error("the BPF object has no {0}; it was not built from these sources")]
    Missing(&'static str),
    #[error("cannot use a BPF map: {0}")]
    Map(#[from] MapError),
    #[error("cannot read the file that MCP_GUARD_BPF_OBJECT names: {0}")]
    Object(io::Error),
    #[error("cannot map the counts of the BPF programs: {0}")]
    Mapping(io::Error),
    #[error("cannot poll the BPF ring: {0}")]
    Poll(io::Error),
    #[error("cannot read which CPUs this host can have, from {POSSIBLE_CPUS}: {0}")]
    Cpus(io::Error),
    #[error("cannot use the kernel's BTF: {0}")]
    AyaBtf(#[from] aya::BtfError),
}

/// Returns the number of CPU ids, which may have gaps: one more than the highest.
fn cpu_ids() -> io::Result<u32> {
    let possible = fs::read_to_string(POSSIBLE_CPUS)?;
    let highest = possible.trim().rsplit([',', '-']).next().and_then(|id| id.parse::<u32>().ok());
    highest
        .map(|highest| highest.saturating_add(1))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Options of the kernel side. The agent uses the defaults.
#[derive(Clone, Copy, Debug)]
pub struct KernelOptions {
    /// The size of the ring in bytes: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// If false, the programs count but send no events. For measurements.
    pub send_events: bool,
    /// If false, the last thread of a process is detected as on kernels whose exit tracepoint does
    /// not report it.
    pub use_group_dead: bool,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { ring_bytes: RING_BYTES, send_events: true, use_group_dead: true }
    }
}

/// A record from the ring.
pub struct RingRecord {
    pub kind: Kind,
    pub event: Event,
    /// The file that was given to `execve`. Empty if it is not known.
    pub exe: Vec<u8>,
    pub argv: Vec<u8>,
}

/// The attached programs. They are detached when this is dropped: nothing is pinned.
pub struct Kernel {
    guards: HashMap<MapData, u64, u32>,
    /// The cgroups that are guards themselves.
    roots: HashMap<MapData, u64, u32>,
    totals: MappedArray,
    shared: MappedArray,
    cpus: usize,
    /// The maps of `totals` and `shared`. The programs are loaded with their descriptors.
    _counts: [Map; 2],
    losses: PerCpuArray<MapData, u64>,
    ring: RingBuf<MapData>,
    /// Files that show how often the kernel left a program out.
    misses: Vec<File>,
    /// Number of records that could not be decoded.
    malformed: u64,
    /// The log of programs that were built with logging.
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads and attaches all programs.
    ///
    /// # Errors
    /// If there is no BTF, if the rights do not suffice, or if the kernel refuses a program.
    pub fn start(options: KernelOptions) -> Result<Self, Error> {
        let mut kernel = Self::load(options)?;
        // aya parses the whole BTF on each call, so this is done once, and not while loading.
        let btf = Btf::from_sys_fs()?;
        for (name, tracepoint) in PROGRAMS {
            kernel.attach(name, tracepoint, &btf)?;
        }
        kernel.misses = kernel.open_misses();
        drop(btf);
        trim_memory();
        Ok(kernel)
    }

    /// Creates the maps and sets the offsets. No program runs yet.
    ///
    /// # Errors
    /// See [`Kernel::start`].
    pub fn load(options: KernelOptions) -> Result<Self, Error> {
        let layout = read_offsets(options.use_group_dead)?;
        let mut loader = EbpfLoader::new();
        let send = u64::from(options.send_events);
        let ring = u64::from(options.ring_bytes);
        let (wake_at, share_at) = (ring / 4, ring / 2);
        // While the ring is half full, each guard may send as much as a quarter of it a second.
        let share_ns = 4_000_000_000 / ring;
        let cpus = cpu_ids().map_err(Error::Cpus)?;
        let values = cpus.saturating_mul(MAX_GUARDS);
        loader.override_global("SEND_EVENTS", &send, true);
        loader.override_global("WAKE_AT", &wake_at, true);
        loader.override_global("SHARE_AT", &share_at, true);
        loader.override_global("SHARE_NS", &share_ns, true);
        loader.map_max_entries("EVENTS", options.ring_bytes);
        loader.map_max_entries("TOTALS", values);
        for (symbol, value) in &layout {
            loader.override_global(symbol, value, true);
        }
        let mut ebpf = loader.load(&object()?).map_err(|error| Error::Load(root_cause(&error)))?;
        let mut take = |name| ebpf.take_map(name).ok_or(Error::Missing(name));
        let counts = [take("TOTALS")?, take("SHARED")?];
        Ok(Self {
            guards: HashMap::try_from(take("GUARDS")?)?,
            roots: HashMap::try_from(take("ROOTS")?)?,
            totals: mapped(&counts[0], values as usize * TOTALS_WORDS)?,
            shared: mapped(&counts[1], MAX_GUARDS as usize * SHARED_WORDS)?,
            cpus: cpus as usize,
            _counts: counts,
            losses: PerCpuArray::try_from(take("LOSSES")?)?,
            ring: RingBuf::try_from(take("EVENTS")?)?,
            malformed: 0,
            misses: Vec::new(),
            log: aya_log::EbpfLogger::init(&mut ebpf).ok(),
            ebpf,
        })
    }

    /// # Errors
    /// If the kernel refuses the program.
    pub fn attach(&mut self, name: &'static str, tracepoint: &str, btf: &Btf) -> Result<(), Error> {
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing(name))?;
        let refused = |error: ProgramError| Error::Program { name, reason: root_cause(&error) };
        let program: &mut BtfTracePoint = program.try_into().map_err(refused)?;
        program.load(tracepoint, btf).and_then(|()| program.attach()).map_err(refused)?;
        Ok(())
    }

    /// Returns a descriptor that becomes readable when records wait.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    #[expect(unsafe_code, reason = "aya's ring exposes its descriptor as a raw number")]
    pub fn readiness(&self) -> Result<OwnedFd, Error> {
        // SAFETY: the ring owns the descriptor and is borrowed for the whole call.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        ring.try_clone_to_owned().map_err(Error::Poll)
    }

    /// Notes that this cgroup is the guard itself. Cgroups for which the other map has no room are found
    /// through it.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn add_root(&mut self, cgroup: CgroupId, guard: GuardId) -> Result<(), Error> {
        Ok(self.roots.insert(cgroup.0, guard.0, 0)?)
    }

    /// Counts the tasks of this cgroup for the guard from now on. The kernel side adds the cgroups
    /// that are created below it. Returns false if the map has no room for it, so that it is found through
    /// its ancestors.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn add_cgroup(&mut self, cgroup: CgroupId, guard: GuardId) -> Result<bool, Error> {
        if self.guard_of(cgroup) == Some(guard) {
            return Ok(true);
        }
        let first = guard.0 as usize * SHARED_WORDS;
        if self.shared.get(first + FOLLOWED) < CGROUPS_OF_GUARD {
            match self.guards.insert(cgroup.0, guard.0, 0) {
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::E2BIG) => {}
                other => {
                    other?;
                    self.shared.add_one(first + FOLLOWED);
                    return Ok(true);
                }
            }
        }
        self.shared.add_one(first + LEFT_OUT);
        self.shared.set(ANY_LEFT_OUT, 1);
        Ok(false)
    }

    /// Has cgroups of a guard be found through their ancestors for as long as the guard lasts, because it
    /// began with more than were counted. Each that is removed lowers the number, which must not become 0.
    pub fn leave_out_uncounted(&self, guard: GuardId) {
        self.shared.set(guard.0 as usize * SHARED_WORDS + LEFT_OUT, UNCOUNTED);
        self.shared.set(ANY_LEFT_OUT, 1);
    }

    /// Returns the guard for which a cgroup is counted, if one lookup shows it.
    #[must_use]
    pub fn guard_of(&self, cgroup: CgroupId) -> Option<GuardId> {
        self.guards.get(&cgroup.0, 0).ok().map(GuardId)
    }

    /// Returns the guard that this cgroup is.
    #[must_use]
    pub fn guard_at(&self, cgroup: CgroupId) -> Option<GuardId> {
        self.roots.get(&cgroup.0, 0).ok().map(GuardId)
    }

    /// Counts the tasks of the guard's own cgroup no more, nor those of cgroups that are created from now on.
    pub fn remove_root(&mut self, cgroup: CgroupId, guard: GuardId) {
        // The program on cgroup_rmdir may have removed it meanwhile.
        if self.guard_at(cgroup) == Some(guard) {
            let _ = self.roots.remove(&cgroup.0);
        }
        if self.guard_of(cgroup) == Some(guard) {
            let _ = self.guards.remove(&cgroup.0);
        }
    }

    /// Counts the tasks of guards that have ended no more, whose own cgroups were removed before. Returns
    /// those that still had cgroups. It takes as long as the map is large, not as the guards are.
    pub fn remove_cgroups_of(&mut self, ended: &BTreeSet<GuardId>) -> BTreeSet<GuardId> {
        let followed =
            |guard: &GuardId| self.shared.get(guard.0 as usize * SHARED_WORDS + FOLLOWED);
        // Most guards have no other cgroup than their own.
        if ended.iter().all(|guard| followed(guard) <= 1) {
            return BTreeSet::new();
        }
        let is_of = |(cgroup, guard): (u64, u32)| {
            ended.contains(&GuardId(guard)).then_some((cgroup, GuardId(guard)))
        };
        // The kernel begins again if the entry is removed at which it is, so that some come twice.
        let entries = self.guards.iter().take(2 * MAX_CGROUPS as usize);
        let found: Vec<_> = entries.filter_map(|entry| is_of(entry.ok()?)).collect();
        for (cgroup, _) in &found {
            let _ = self.guards.remove(cgroup);
        }
        found.into_iter().map(|(_, guard)| guard).collect()
    }

    /// Has the programs look for the guards of cgroups by one lookup alone, once no guard has cgroups that
    /// are left out.
    pub fn settle_left_out(&self, guards: &[GuardId]) {
        let left_out =
            |guard: &GuardId| self.shared.get(guard.0 as usize * SHARED_WORDS + LEFT_OUT);
        if guards.iter().any(|guard| left_out(guard) > 0) {
            return self.shared.set(ANY_LEFT_OUT, 1);
        }
        if self.shared.get(ANY_LEFT_OUT) == 0 {
            return;
        }
        self.shared.set(ANY_LEFT_OUT, 0);
        // The programs count first and set this second, so a cgroup that came meanwhile shows here.
        if guards.iter().any(|guard| left_out(guard) > 0) {
            self.shared.set(ANY_LEFT_OUT, 1);
        }
    }

    /// Voids what the programs have noted about moved processes. Called when a guard has begun or ended.
    pub fn begin_epoch(&self) {
        self.shared.add_one(EPOCH);
    }

    /// Sets the totals of a guard's slot to zero.
    ///
    /// # Errors
    /// If the slot is out of range.
    pub fn clear_totals(&mut self, guard: GuardId) -> Result<(), Error> {
        let first = self.slot(guard)?;
        for word in (0..self.cpus).flat_map(|cpu| totals_at(first, cpu)) {
            self.totals.set(word, 0);
        }
        for word in [FOLLOWED, LEFT_OUT, PAID_AT] {
            self.shared.set(first * SHARED_WORDS + word, 0);
        }
        Ok(())
    }

    /// # Errors
    /// If the slot is out of range.
    pub fn totals(&self, guard: GuardId) -> Result<Totals, Error> {
        let first = self.slot(guard)?;
        let mut sums = [0_u64; TOTALS_WORDS];
        for cpu in 0..self.cpus {
            for (sum, word) in sums.iter_mut().zip(totals_at(first, cpu)) {
                *sum = sum.wrapping_add(self.totals.get(word));
            }
        }
        Ok(zerocopy::transmute!(sums))
    }

    fn slot(&self, guard: GuardId) -> Result<usize, MapError> {
        let (index, max_entries) = (guard.0, MAX_GUARDS);
        if index < max_entries {
            Ok(index as usize)
        } else {
            Err(MapError::OutOfBounds { index, max_entries })
        }
    }

    /// Returns the losses since the start, by cause. Normally all of them are zero.
    #[must_use]
    pub fn losses(&self) -> BTreeMap<String, u64> {
        [
            ("ring-full", self.lost(Loss::RingFull)),
            ("over-share", self.lost(Loss::OverShare)),
            (CGROUPS_FULL, self.lost(Loss::CgroupsFull)),
            ("exit-unsure", self.lost(Loss::ExitUnsure)),
            ("argv-unread", self.lost(Loss::ArgvUnread)),
            ("malformed-record", self.malformed),
            ("recursion", self.recursion_misses()),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into()
    }

    /// Number of records that were never sent and that may belong to any guard: they name none, or the
    /// kernel skipped the program. Others are in [`Totals::dropped`].
    #[must_use]
    pub fn nameless(&self) -> u64 {
        self.lost(Loss::Nameless) + self.recursion_misses()
    }

    fn lost(&self, loss: Loss) -> u64 {
        self.losses.get(&(loss as u32), 0).map_or(0, |cpus| cpus.iter().sum())
    }

    /// Number of runs that the kernel skipped because the program already ran on that CPU. The
    /// totals lack them. Since Linux 7 a task can be preempted inside a program, so that other
    /// tasks miss it.
    fn recursion_misses(&self) -> u64 {
        let misses = |file: &File| {
            let mut text = [0; 1024];
            let length = file.read_at(&mut text, 0).ok()?;
            fdinfo::recursion_misses(&String::from_utf8_lossy(&text[..length]))
        };
        self.misses.iter().filter_map(misses).sum()
    }

    fn open_misses(&self) -> Vec<File> {
        let open = |program: &Program| {
            let fd = program.fd().ok()?;
            File::open(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()
        };
        self.ebpf.programs().filter_map(|(_, program)| open(program)).collect()
    }

    /// Takes the next record. `None` if the ring is empty. Malformed records are counted and
    /// skipped.
    pub fn next_record(&mut self) -> Option<RingRecord> {
        while let Some(item) = self.ring.next() {
            match decode(&item) {
                Ok(WireRecord { kind, event, exe, argv }) => {
                    let (exe, argv) = (exe.to_vec(), argv.to_vec());
                    return Some(RingRecord { kind, event, exe, argv });
                }
                Err(_) => self.malformed += 1,
            }
        }
        None
    }

    /// Passes the programs' debug lines to the `log` facade, for those who develop them. Does
    /// nothing if the object was built without logging.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }
}

/// Returns the words of a guard's totals on one CPU.
fn totals_at(slot: usize, cpu: usize) -> std::ops::Range<usize> {
    let first = (cpu * MAX_GUARDS as usize + slot) * TOTALS_WORDS;
    first..first + TOTALS_WORDS
}

fn mapped(map: &Map, words: usize) -> Result<MappedArray, Error> {
    let Map::Array(data) = map else { return Err(Error::Missing("array with counts")) };
    MappedArray::of(data.fd().as_fd(), words).map_err(Error::Mapping)
}

/// Returns the BPF object. A debug build can use another one: programs with logging are built
/// separately, with `cargo xtask ebpf --features bpf-log`, and never committed.
fn object() -> Result<std::borrow::Cow<'static, [u8]>, Error> {
    let other = cfg!(debug_assertions).then(|| std::env::var_os("MCP_GUARD_BPF_OBJECT")).flatten();
    match other {
        Some(path) => Ok(fs::read(path).map_err(Error::Object)?.into()),
        None => Ok(OBJECT.into()),
    }
}

/// Returns the innermost error. The outer ones only name the functions that it passed through.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Reads what the programs must know about this kernel.
fn read_offsets(use_group_dead: bool) -> Result<Vec<(&'static str, u64)>, Error> {
    let btf = btf::Btf::read(Path::new(VMLINUX))?;
    let mut found = Vec::new();
    for (symbol, structure, field, size) in OFFSETS {
        found.push((symbol, btf.offset(structure, field, size)?));
    }
    found.push(("OFF_CGROUP_SELF", btf.offset_of_struct("cgroup", "self")?));
    let reports = btf.tracepoint_arguments("sched_process_exit").is_some_and(|count| count >= 2);
    found.push(("HAS_GROUP_DEAD", u64::from(reports && use_group_dead)));
    Ok(found)
}

/// Returns free memory to the system. Reading the kernel's BTF takes tens of megabytes, which the
/// allocator would keep.
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
fn trim_memory() {
    // SAFETY: takes no pointers and is thread-safe (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}
