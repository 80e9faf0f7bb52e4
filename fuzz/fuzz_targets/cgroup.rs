//! Paths and files of cgroups: `/proc/PID/cgroup`, mountinfo, the files of a cgroup, and what a path
//! says about its container. Names in a path may have any byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_guard::host::{cgroupfs, layout::Layout, proc::membership::Membership};
use mcp_guard_core::{
    container::{container_in, payload_below},
    escape::{cgroup_path, is_cgroup_path},
    refusal::{BystanderFacts, refusal},
};

fuzz_target!(|text: &[u8]| {
    let membership = Membership::new(text.to_vec());
    for path in [membership.unified(), membership.v1_pids()].into_iter().flatten() {
        judge(&cgroup_path(path));
    }
    let _ = Layout::parse(text, |_| true);
    let _ = cgroupfs::pids(text);
    if let Ok(text) = std::str::from_utf8(text) {
        let _ = cgroupfs::Events::parse(text);
        let _ = cgroupfs::keyed(text, "max");
        let _ = cgroupfs::lists_pids(text);
        judge(text);
    }
});

fn judge(path: &str) {
    let _ = is_cgroup_path(path);
    if let Some(found) = container_in(path) {
        assert!(path.starts_with(found.path) && found.id.len() == 64, "{path:?}: {found:?}");
    }
    let _ = payload_below(path);
    let facts = BystanderFacts {
        path: path.to_owned(),
        own: "/system.slice/mcp-guard.service".to_owned(),
        ..BystanderFacts::default()
    };
    let verdict = refusal(&facts);
    assert!(verdict.is_some() || !path.trim_end_matches('/').is_empty(), "the root cgroup");
}
