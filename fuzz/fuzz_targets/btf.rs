//! `/sys/kernel/btf/vmlinux`, as far as the agent reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::host::btf::Btf;

fuzz_target!(|file: &[u8]| {
    let Ok(btf) = Btf::parse(file.to_vec()) else { return };
    for size in [4, 8] {
        let _ = btf.offset("task_struct", "tgid", size);
    }
    let _ = btf.offset_of_struct("task_struct", "se");
    let _ = btf.tracepoint_arguments("sched_process_exit");
});
