//! npm, MCP servers and a leaking gateway, fetched once so that containers run them offline.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::program;

/// Real MCP servers, spelled as the containers start them: npm keeps each spelling apart.
pub const SERVERS: [&str; 3] =
    ["@modelcontextprotocol/server-everything", "figma-mcp", "@21st-dev/magic@0.1.0"];
/// A real gateway that never ends the server of a finished request.
pub const GATEWAY: &str = "supergateway@3.4.3";

/// Source maps, types, sources and texts in the packages of npm.
pub const UNREAD: [&str; 8] =
    ["*.map", "*.ts", "*.d.mts", "*.d.cts", "*.md", "*.flow", "LICENSE*", "*.html"];

/// The npm of the image: as new as the one of this host, and independent of how the
/// distribution lays its own out.
pub fn own_spec() -> Result<String> {
    let version = program::output(Command::new("npm").arg("--version"))?;
    // npm may warn on stdout about its configuration; the version is the last line.
    Ok(format!("npm@{}", version.lines().last().unwrap_or("latest").trim()))
}

/// Fills `opt/` of a root folder: npm itself, its cache with the servers, and the gateway.
pub fn fill(root: &Path) -> Result<()> {
    let cache = root.join("opt/npm-cache");
    install(&cache, &root.join("opt/npm"), &own_spec()?)?;
    install(&cache, &root.join("opt/gw"), GATEWAY)?;
    for server in SERVERS {
        // Runs `true` in the server's environment: everything is fetched, no server starts.
        let package = format!("--package={server}");
        program::quietly(npm(&cache)?.args(["exec", "--yes", &package, "--", "true"]))
            .with_context(|| format!("cannot fetch the MCP server {server}"))?;
    }
    let logs = cache.join("_logs");
    if logs.exists() {
        fs::remove_dir_all(&logs).with_context(|| format!("cannot remove {}", logs.display()))?;
    }
    remove_unread(&root.join("opt"))
}

/// Removes what no running program reads, half of the files: in a guest each is linked twice, under
/// emulation.
fn remove_unread(folder: &Path) -> Result<()> {
    let mut find = Command::new("find");
    find.arg(folder).args(["-type", "f", "("]);
    for (number, ending) in UNREAD.iter().enumerate() {
        find.args(if number > 0 { &["-o"][..] } else { &[] }).args(["-name", *ending]);
    }
    program::quietly(find.args([")", "-delete"]))
}

fn install(cache: &Path, prefix: &Path, spec: &str) -> Result<()> {
    fs::create_dir_all(prefix).with_context(|| format!("cannot make {}", prefix.display()))?;
    program::quietly(npm(cache)?.args(["install", "--no-audit", "--prefix"]).arg(prefix).arg(spec))
        .with_context(|| format!("cannot fetch {spec}"))
}

/// npm with a private cache, in a folder that is no project of anybody.
fn npm(cache: &Path) -> Result<Command> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let mut npm = Command::new("npm");
    npm.current_dir(cache)
        .env("npm_config_cache", cache)
        .env("npm_config_update_notifier", "false")
        .stdin(Stdio::null());
    Ok(npm)
}
