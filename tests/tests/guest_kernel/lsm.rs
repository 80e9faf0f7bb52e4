//! BPF LSM: whether the kernel lists it, and whether it obeys an LSM program.
//!
//! A kernel may load and attach such a program and never run it, so the test checks for an effect.

use std::{fs, path::PathBuf, process::Command};

use aya::{Btf, Ebpf, programs::Lsm};
use mcp_guard_tests::fact;
use rustix::{
    io::Errno,
    process::{getpriority_process, setpriority_process},
};

/// A hook that only this test triggers while it runs: a change of a process's priority.
const HOOK: &str = "task_setnice";
/// `r0 = -EPERM; exit`.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Our own mount of securityfs, because not every image has one.
struct SecurityFs(tempfile::TempDir);

impl SecurityFs {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "securityfs", "none"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }

    fn list(&self) -> PathBuf {
        self.0.path().join("lsm")
    }
}

impl Drop for SecurityFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

pub fn is_listed() -> bool {
    let list = fs::read_to_string(SecurityFs::mount().list()).unwrap();
    list.trim().split(',').any(|name| name == "bpf")
}

/// Builds the smallest object that a loader accepts: one section of code with one function.
fn object() -> Vec<u8> {
    const NAMES: &[u8] = b"\0lsm/task_setnice\0.symtab\0.strtab\0deny\0";
    let [lsm, symtab, strtab, deny] = [1, 18, 26, 34];
    let [code, symbols, names] = [64, 80, 128];
    let headers = 168;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Relocatable, for BPF, version 1; no entry, no segments.
    bytes.extend([1, 0, 247, 0, 1, 0, 0, 0]);
    for long in [0, 0, headers] {
        bytes.extend(u64::to_le_bytes(long));
    }
    bytes.extend(u32::to_le_bytes(0));
    for short in [64, 0, 0, 64, 4, 3] {
        bytes.extend(u16::to_le_bytes(short));
    }
    bytes.extend(CODE);
    bytes.extend([0; 24]);
    bytes.extend(u32::to_le_bytes(deny));
    // A global function in section 1, at its start, as long as the code.
    bytes.extend([0x12, 0, 1, 0]);
    bytes.extend(u64::to_le_bytes(0));
    bytes.extend(u64::to_le_bytes(CODE.len() as u64));
    bytes.extend(NAMES);
    bytes.resize(headers as usize, 0);
    let mut section = |name: u32, kind: u32, flags: u64, place: [u64; 2], more: [u32; 2], each| {
        bytes.extend([name, kind].map(u32::to_le_bytes).concat());
        bytes.extend([flags, 0, place[0], place[1]].map(u64::to_le_bytes).concat());
        bytes.extend(more.map(u32::to_le_bytes).concat());
        bytes.extend([8, each].map(u64::to_le_bytes).concat());
    };
    section(0, 0, 0, [0, 0], [0, 0], 0);
    section(lsm, 1, 6, [code, 16], [0, 0], 0);
    section(symtab, 2, 0, [symbols, 48], [3, 1], 24);
    section(strtab, 3, 0, [names, NAMES.len() as u64], [0, 0], 0);
    bytes
}

/// Sets this process's priority to its current value, which changes nothing.
fn set_priority() -> Result<(), Errno> {
    setpriority_process(None, getpriority_process(None)?)
}

/// Returns whether the kernel obeys a program that denies. Returns an error if the program cannot be loaded
/// or attached.
fn is_obeyed() -> Result<bool, anyhow::Error> {
    let mut object = Ebpf::load(&object())?;
    let program: &mut Lsm = object.program_mut("deny").unwrap().try_into()?;
    program.load(HOOK, &Btf::from_sys_fs()?)?;
    program.attach()?;
    Ok(set_priority() == Err(Errno::PERM))
}

#[test]
fn an_lsm_program_is_obeyed_only_if_the_kernel_lists_bpf() {
    let listed = is_listed();
    assert_eq!(set_priority(), Ok(()));
    let obeyed = is_obeyed();
    assert_eq!(set_priority(), Ok(()), "the program is gone with its object");
    assert_eq!(obeyed.as_ref().is_ok_and(|obeyed| *obeyed), listed, "{obeyed:?}");
    fact::record("BPF LSM", super::yes_or_no(listed)).unwrap();
    if std::env::var_os("MCP_GUARD_TEST_GUEST").is_some() {
        assert!(listed, "Debian's kernels list bpf from Linux 6.1 on");
    }
}
