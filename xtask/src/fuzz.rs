//! `cargo xtask fuzz`: builds the fuzz targets with nightly's sanitizer, and runs them with libFuzzer.
//!
//! It does what cargo-fuzz would do, which is one more program to install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::counts::Counts;
use crate::ebpf::toolchain;
use crate::lanes::{self, Job};
use crate::say::{say, seconds};
use crate::{program, workspace};

/// Instruments all crates for coverage and comparisons, and looks for errors in the use of memory.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
];
/// The longest that one input may take, in seconds.
const PATIENCE: u64 = 10;
/// The largest input, in bytes. More only makes each run slower.
const LARGEST: u64 = 8192;
/// Lines of a target's output that are shown if it fails.
const SHOWN: usize = 40;

/// Runs one target, or all. Returns 1 if one found something.
pub fn run(target: Option<&str>, time: Duration) -> Result<u8> {
    toolchain::require_nightly()?;
    let targets = targets()?;
    let targets = match target {
        None => targets,
        Some(name) if targets.iter().any(|one| one == name) => vec![name.to_owned()],
        Some(name) => bail!("no target {name:?}; there are {}", targets.join(", ")),
    };
    let counts = fuzz(&targets, time)?;
    Ok(u8::from(counts.failed > 0))
}

/// Runs all targets. Each counts as one test.
pub fn all(time: Duration) -> Result<Counts> {
    fuzz(&targets()?, time)
}

/// Checks the format of the fuzz targets, which are not members of the workspace.
pub fn check_format() -> Result<()> {
    program::run(Command::new("cargo").current_dir(folder()).args(["fmt", "--check"]))
        .context("fuzz is not formatted; run `cargo fmt` in it")
}

/// Checks that the fuzz targets compile, without nightly and its sanitizer.
pub fn clippy() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder()).args(["clippy", "--locked", "--quiet", "--target-dir"]);
    cargo.arg(workspace::target()).args(["--", "-D", "warnings"]);
    program::run(&mut cargo).context("clippy reported problems in the fuzz targets")
}

fn fuzz(targets: &[String], time: Duration) -> Result<Counts> {
    build()?;
    let job = |target: &String| -> Job<'_, Result<()>> {
        let target = target.clone();
        Box::new(move || one(&target, time))
    };
    let mut counts = Counts::default();
    for outcome in lanes::one_per_cpu(targets.iter().map(job).collect()) {
        match outcome {
            Ok(()) => counts.passed += 1,
            Err(error) => {
                say(&format!("{error:#}"));
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// Returns the names of all targets: each is a file or a folder.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let names = entries.flatten().filter_map(|entry| {
        Some(Path::new(&entry.file_name()).file_stem()?.to_string_lossy().into_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(folder())
        // Without `--locked`: a lock file that is only behind the agent's dependencies is no failure here.
        // With a target, the flags do not apply to build scripts and macros.
        .args(["+nightly", "build", "--quiet", "--release", "--target", &host()])
        .arg("--target-dir")
        .arg(built())
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    program::run(&mut cargo).context("cannot build the fuzz targets")
}

/// Runs one target: first all its seeds and what earlier runs kept, then new inputs until the time is over.
fn one(target: &str, time: Duration) -> Result<()> {
    let kept = built().join("corpus").join(target);
    let found = built().join("found");
    for folder in [&kept, &found] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let binary = built().join(host()).join("release").join(target);
    let mut libfuzzer = Command::new(&binary);
    libfuzzer
        .arg(format!("-max_total_time={}", time.as_secs().max(1)))
        .arg(format!("-timeout={PATIENCE}"))
        .arg(format!("-max_len={LARGEST}"))
        .arg(format!("-artifact_prefix={}/{target}-", found.display()))
        .arg("-print_final_stats=1")
        .arg(kept)
        .args(seeds(target));
    let began = Instant::now();
    let output = libfuzzer
        .output()
        .with_context(|| format!("cannot start `{}`", program::line(&libfuzzer)))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    if !output.status.success() {
        let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
        let binary = binary.display();
        bail!(
            "{last}\nfuzz {target}: FAILED; run `{binary} FILE` with the file that is named above"
        );
    }
    let inputs = executed(&lines);
    ensure!(inputs.is_some_and(|inputs| inputs > 0), "fuzz {target}: FAILED: ran no input");
    let time = seconds(began.elapsed());
    say(&format!("fuzz {target}: ok, {} inputs ({time})", inputs.unwrap_or_default()));
    Ok(())
}

/// Returns the number of inputs that a run of libFuzzer tried.
fn executed(lines: &[&str]) -> Option<u64> {
    let number = lines.iter().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    number?.trim().parse().ok()
}

/// Returns the folders with inputs that are kept in the repository.
fn seeds(target: &str) -> Vec<PathBuf> {
    let mut folders = vec![folder().join("seeds").join(target)];
    if target == "trace" {
        folders.push(workspace::root().join("mcp-guard/core/tests/corpus"));
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

fn folder() -> PathBuf {
    workspace::root().join("fuzz")
}

fn built() -> PathBuf {
    workspace::target().join("fuzz")
}

fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_read() {
        let lines = ["Done 7 runs in 1 second(s)", "stat::number_of_executed_units: 7"];
        assert_eq!(executed(&lines), Some(7));
        assert_eq!(executed(&lines[..1]), None);
    }

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        for target in targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
            let seeds = seeds(&target).into_iter();
            let files = seeds.filter_map(|folder| fs::read_dir(folder).ok()).flatten().count();
            assert!(files > 0, "{target} has no seed");
        }
    }
}
