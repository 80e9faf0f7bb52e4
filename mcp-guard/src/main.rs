//! The `mcp-guard` program. See `mcp_guard::cli`.

fn main() -> std::process::ExitCode {
    mcp_guard::cli::main()
}
