//! `cargo xtask vm`: virtual machines with real kernels, systemd, Docker and Podman.

mod built;
mod cache;
mod follow;
mod image;
mod kernel;
mod machine;
mod payload;
mod plan;
mod qemu;
mod run;
mod self_test;
mod shell;
mod system;
mod table;
mod tools;

use std::path::Path;

use anyhow::{Result, anyhow};
use clap::Subcommand;

use crate::counts::Counts;
use crate::lanes::{Job, one_per_cpu};
use crate::packages::Permission;
use crate::programs;
use crate::say::{complain, say, step};
use follow::Report;
use image::{IMAGES, Image, Kind};
use payload::Payload;
use plan::{Disk, Extent};
use tempfile::NamedTempFile;

#[derive(Subcommand)]
pub enum Verb {
    /// Build an image, or all images, unless they exist
    Build {
        image: Option<String>,
        /// Install the tools that it needs, without asking
        #[arg(long)]
        setup: bool,
    },
    /// Run the tests that depend on the kernel, systemd or the engine, in an image or in all images
    Test {
        image: Option<String>,
        /// Run every test in every image in which it makes sense
        #[arg(long)]
        full: bool,
        /// Write the detected facts into the table of kernels in docs/kernels.md
        #[arg(long, conflicts_with = "filter")]
        bless: bool,
        /// Install the tools that it needs, without asking
        #[arg(long)]
        setup: bool,
        /// Run only tests whose `program::name` contains this
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Open a shell in an image with the agent and a leaking container
    Shell { image: String },
    /// Break an agent and a kernel, and check that the runner reports both
    SelfTest,
}

/// Runs a command. Exit codes: 0 success, 1 failure, 2 cannot run.
pub fn run(verb: Verb) -> Result<u8> {
    let setup = matches!(&verb, Verb::Build { setup: true, .. } | Verb::Test { setup: true, .. });
    if let Err(reason) = ready(Permission::from_flag(setup)) {
        complain(&format!("cannot run virtual machines: {reason:#}"));
        return Ok(2);
    }
    match verb {
        Verb::Build { image, .. } => build(image.as_deref()),
        Verb::Test { image, full, bless, filter, .. } => {
            let extent = if full { Extent::Full } else { Extent::Quick };
            let filter = filter.unwrap_or_default();
            let programs = test_programs()?;
            Guests { programs, extent, filter, bless }.test_all(&named(image.as_deref())?)
        }
        Verb::Shell { image } => shell::run(one(&image)?).map(|()| 0),
        Verb::SelfTest => Guests::usual()?.self_test().map(|_| 0),
    }
}

/// Makes sure that this machine can build and run guests, and removes what interrupted runs left.
pub fn ready(permission: Permission) -> Result<()> {
    tools::provide(permission)?;
    cache::remove_left()
}

/// Returns all images, in the order in which they are tested.
pub fn images() -> &'static [Image] {
    &IMAGES
}

fn build(image: Option<&str>) -> Result<u8> {
    for image in named(image)? {
        let built = cache::provide(image)?;
        say(&format!("{}: {}", image.name, built.folder().display()));
    }
    Ok(0)
}

/// The test programs, and which of the tests to run.
pub struct Guests {
    programs: programs::Built,
    extent: Extent,
    filter: String,
    bless: bool,
}

impl Guests {
    pub fn usual() -> Result<Self> {
        let (extent, filter) = (Extent::Usual, String::new());
        Ok(Self { programs: test_programs()?, extent, filter, bless: false })
    }

    /// Checks that the runner reports failures. Returns the number of cases.
    pub fn self_test(&self) -> Result<u64> {
        self_test::run(&self.programs)
    }

    fn test_all(&self, images: &[&'static Image]) -> Result<u8> {
        let job = |image: &&'static Image| -> Job<'_, _> {
            let image = *image;
            Box::new(move || (image.name, self.test(image)))
        };
        let all = one_per_cpu(images.iter().map(job).collect());
        for (name, counts) in &all {
            say(&match counts {
                Ok(counts) => format!("{name}: {} passed, {} failed", counts.passed, counts.failed),
                Err(error) => format!("{name}: FAILED: {error:#}"),
            });
        }
        let all: Vec<Result<Counts>> = all.into_iter().map(|(_, counts)| counts).collect();
        Ok(exit_code(&all, !self.filter.is_empty()))
    }

    /// Runs the tests of one image.
    pub fn test(&self, image: &'static Image) -> Result<Counts> {
        let set = plan::choose(image, self.extent, &self.filter, &self.programs.tests);
        for (program, count, reason) in &set.left_out {
            say(&format!("{}: not in this set: {program} ({count} tests): {reason}", image.name));
        }
        let (mut counts, mut kept) = (Counts::default(), None);
        for (number, boot) in set.boots(image).into_iter().enumerate() {
            let payload = Payload::new()?;
            payload.with_programs(&self.programs, &boot.plan)?;
            if boot.disk == Disk::Kept && kept.is_none() {
                kept = Some(cache::provide(image)?.copy_of_disk()?);
            }
            let disk = kept.as_ref().filter(|_| boot.disk == Disk::Kept).map(NamedTempFile::path);
            let mut report = follow(image, &payload, &boot.plan, boot.word, disk)?;
            // The facts of an image are those of its first boot, with the usual command line.
            if self.filter.is_empty() && number == 0 {
                // The quick set leaves out some of the tests that record facts.
                let complete = self.extent >= Extent::Usual;
                report.failures.extend(table::check(image, &report.facts, complete, self.bless)?);
            }
            report.explain().iter().for_each(|line| say(&format!("{}: {line}", image.name)));
            let failed = report.failures.len() as u64;
            counts = counts.and(Counts { failed, ..Counts::passed(report.passed) });
        }
        Ok(counts)
    }
}

/// Returns 0 if all tests passed. It is a failure if an image ran no test; with a filter, only if no
/// image ran one.
fn exit_code(all: &[Result<Counts>], filtered: bool) -> u8 {
    let ran = |counts: &Result<Counts>| counts.as_ref().is_ok_and(|counts| counts.passed > 0);
    let broke = |counts: &Result<Counts>| counts.as_ref().map_or(true, |counts| counts.failed > 0);
    let enough = if filtered { all.iter().any(ran) } else { all.iter().all(ran) };
    u8::from(!enough || all.iter().any(broke))
}

fn test_programs() -> Result<programs::Built> {
    step("vm: test programs", programs::build)
}

/// Boots an image with a plan and one more word on its kernel's command line, and prints its progress.
/// `disk` replaces the image's own disk and keeps what the guest writes.
fn follow(
    image: &Image,
    payload: &Payload,
    plan: &guest_runner::Plan,
    word: &str,
    disk: Option<&Path>,
) -> Result<Report> {
    let built = cache::provide(image)?;
    let accel = machine::accel(&built)?;
    let mut machine = match image.kind {
        Kind::System { .. } => machine::system(image, &built, accel, payload.disk(plan)?),
        Kind::Kernel => machine::kernel(&built, accel, payload.initrd(plan)?),
    };
    machine.append.extend((!word.is_empty()).then(|| word.to_owned()));
    if let Some(disk) = disk {
        machine.disks[0] = disk.to_path_buf();
        machine.keep = true;
    }
    let show = |line| say(&format!("{}: {line}", image.name));
    run::run(&machine, &payload.console(), plan::RUN, show)
}

fn one(name: &str) -> Result<&'static Image> {
    image::find(name).map_err(|error| anyhow!(error))
}

fn named(name: Option<&str>) -> Result<Vec<&'static Image>> {
    name.map_or_else(|| Ok(IMAGES.iter().collect()), |name| one(name).map(|image| vec![image]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64) -> Result<Counts> {
        Ok(Counts { failed, ..Counts::passed(passed) })
    }

    #[test]
    fn with_a_filter_an_image_may_run_no_test() {
        let some = || vec![counts(3, 0), counts(0, 0)];
        assert_eq!((exit_code(&some(), true), exit_code(&some(), false)), (0, 1));
        assert_eq!(exit_code(&[counts(0, 0)], true), 1);
        assert_eq!(exit_code(&[counts(2, 0), counts(1, 0)], false), 0);
    }

    #[test]
    fn a_failure_in_one_image_is_a_failure() {
        for filtered in [true, false] {
            assert_eq!(exit_code(&[counts(3, 0), counts(1, 1)], filtered), 1);
            assert_eq!(exit_code(&[Err(anyhow!("no disk")), counts(1, 0)], filtered), 1);
        }
    }
}
