//! The debug lines that the BPF programs log, which a debug build of the agent shows. Needs the object that
//! `cargo xtask ebpf --features bpf-log` builds. `MCP_GUARD_BPF_OBJECT` names it.

use std::{process::Command, sync::Mutex, time::Duration};

use mcp_guard::host::bpf::{Kernel, KernelOptions};
use mcp_guard_core::id::GuardId;
use mcp_guard_tests::wait;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lines() -> std::sync::MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        lines().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn a_fork_in_a_guard_is_logged() {
    assert!(
        std::env::var_os("MCP_GUARD_BPF_OBJECT").is_some(),
        "MCP_GUARD_BPF_OBJECT is not set: run `cargo xtask test`"
    );
    log::set_logger(&Collect).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let mut kernel = Kernel::start(KernelOptions::default()).expect("the programs load");

    let places = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = places.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let layout = mcp_guard::host::layout::Layout::read().unwrap();
    let cgroup = mcp_guard::host::cgroup::Cgroup::open(&layout, own).unwrap();
    kernel.add_cgroup(cgroup.id(), GuardId(7)).unwrap();
    let child = Command::new("true").spawn().unwrap();
    let expected = format!("fork of {} in guard 7", child.id());
    let logged = wait::until(Duration::from_secs(5), || {
        kernel.flush_log();
        Ok(lines().contains(&expected))
    });
    assert!(logged.unwrap(), "{:?}", lines());
    assert!(child.wait_with_output().unwrap().status.success());
}
