//! Processes that look like a leaking gateway and its servers. They run this program through links with other
//! names; an environment variable that only the demo sets gives each its role.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

const ROLE: &str = "MCP_GUARD_DEMO_ROLE";
const PLACES: &str = "MCP_GUARD_DEMO_CGROUPS";
/// The folder of the links.
const PROGRAMS: &str = "MCP_GUARD_DEMO_PROGRAMS";
const LEAF: &str = "/opt/npm-cache/_npx/0123456789abcdef/node_modules/.bin/demo-mcp-server";

/// Starts the gateway, which moves itself into the cgroups and then leaks. `folder` is for the links.
pub fn start(
    folder: &Path,
    places: &[&Path],
    servers: u32,
    every: Duration,
) -> std::io::Result<Child> {
    for name in ["node", "npm"] {
        symlink("/proc/self/exe", folder.join(name))?;
    }
    let places: Vec<_> = places.iter().map(|place| place.as_os_str()).collect();
    program(folder, "gateway", "node")
        .args(["/srv/gateway.js", &servers.to_string(), &every.as_millis().to_string()])
        .env(PROGRAMS, folder)
        .env(PLACES, places.join(OsStr::new(":")))
        .stdin(Stdio::piped())
        .spawn()
}

/// Runs this process's role if it belongs to the demo. Returns `None` otherwise.
pub fn as_demo_process() -> Option<ExitCode> {
    let role = std::env::var(ROLE).ok()?;
    let ended = match role.as_str() {
        "gateway" => gateway(),
        "launcher" => launcher(),
        _ => wait_for_eof(),
    };
    Some(if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn own(role: &str, name: &str) -> Command {
    let folder = std::env::var_os(PROGRAMS).map(PathBuf::from).unwrap_or_default();
    program(&folder, role, name)
}

fn program(folder: &Path, role: &str, name: &str) -> Command {
    let mut command = Command::new(folder.join(name));
    command.arg0(name).env(ROLE, role);
    command
}

fn gateway() -> std::io::Result<()> {
    for place in std::env::split_paths(&std::env::var_os(PLACES).unwrap_or_default()) {
        fs::write(place.join("cgroup.procs"), "0")?;
    }
    let number =
        |index| std::env::args().nth(index).and_then(|text| text.parse().ok()).unwrap_or(0);
    let (servers, every): (u64, u64) = (number(2), number(3));
    // Kept, as real gateways do: a server whose input stays open never ends.
    let mut kept = Vec::new();
    for _ in 0..servers {
        let server = own("launcher", "npm")
            .args(["exec", "--yes", "demo-mcp-server@1.0.0"])
            .stdin(Stdio::piped())
            .spawn()?;
        kept.push(server);
        std::thread::sleep(Duration::from_millis(every));
    }
    wait_for_eof()
}

fn launcher() -> std::io::Result<()> {
    own("server", "node").arg(LEAF).stdin(Stdio::inherit()).spawn()?.wait().map(|_| ())
}

fn wait_for_eof() -> std::io::Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new()).map(|_| ())
}
