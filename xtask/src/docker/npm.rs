//! npm, MCP servers and a leaking gateway, fetched once so that containers can run them offline.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::program;

/// Real MCP servers, spelled the way the containers start them: npm caches each spelling separately.
pub const SERVERS: [&str; 3] =
    ["@modelcontextprotocol/server-everything", "figma-mcp", "@21st-dev/magic@0.1.0"];
/// A real gateway that never ends the server of a finished request.
pub const GATEWAY: &str = "supergateway@3.4.3";

/// Source maps, types, sources and texts in npm packages, which no program reads at run time.
pub const UNREAD: [&str; 8] =
    ["*.map", "*.ts", "*.d.mts", "*.d.cts", "*.md", "*.flow", "LICENSE*", "*.html"];

/// Returns the npm package for the image: the same version as this host's npm, but without the
/// distribution's layout.
pub fn own_spec() -> Result<String> {
    let version = program::output(Command::new("npm").arg("--version"))?;
    // npm may print warnings about its configuration on stdout; the version is the last line.
    Ok(format!("npm@{}", version.lines().last().unwrap_or("latest").trim()))
}

/// Fills `opt/` of a root folder with npm itself, its cache with the servers, and the gateway.
pub fn fill(root: &Path) -> Result<()> {
    let cache = root.join("opt/npm-cache");
    install(&cache, &root.join("opt/npm"), &own_spec()?)?;
    install(&cache, &root.join("opt/gw"), GATEWAY)?;
    for server in SERVERS {
        // Runs `true` in the server's environment, which fetches everything and starts no server.
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

/// Removes files that no program reads at run time. They are half of all files, and in an emulated
/// guest each file is linked twice.
fn remove_unread(folder: &Path) -> Result<()> {
    let mut find = Command::new("find");
    find.arg(folder).args(["-type", "f", "("]);
    for (number, ending) in UNREAD.iter().enumerate() {
        find.args(if number > 0 { &["-o"][..] } else { &[] }).args(["-name", *ending]);
    }
    program::quietly(find.args([")", "-delete"]))
}

fn install(cache: &Path, prefix: &Path, spec: &str) -> Result<()> {
    fs::create_dir_all(prefix).with_context(|| format!("cannot create {}", prefix.display()))?;
    program::quietly(npm(cache)?.args(["install", "--no-audit", "--prefix"]).arg(prefix).arg(spec))
        .with_context(|| format!("cannot fetch {spec}"))
}

/// Returns an npm command with a private cache, in a folder that is not an npm project.
fn npm(cache: &Path) -> Result<Command> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let mut npm = Command::new("npm");
    npm.current_dir(cache)
        .env("npm_config_cache", cache)
        .env("npm_config_update_notifier", "false")
        .stdin(Stdio::null());
    Ok(npm)
}
