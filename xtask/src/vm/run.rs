//! Runs one guest from power-on to its verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::follow::{Report, tail};
use super::qemu::{Guest, Heard, Machine};

/// How often the console is checked.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last writes to a disk that is kept may take.
const TURN_OFF: Duration = Duration::from_secs(120);
/// How many lines of the console are shown with a failure.
const TAIL: usize = 30;

/// Starts a machine and follows it until its verdict, its end, or `limit`. `show` gets each line to
/// print.
pub fn run(
    machine: &Machine,
    console: &Path,
    limit: Duration,
    mut show: impl FnMut(String),
) -> Result<Report> {
    let began = Instant::now();
    let guest = machine.start(console)?;
    let mut report = Report::new(limit);
    loop {
        match guest.hear(LOOK) {
            Heard::Line(line) => {
                if let Some(line) = report.line(began.elapsed(), &line) {
                    show(line);
                }
            }
            Heard::Nothing => {}
            Heard::End => {
                let console = guest.console();
                report.ended(&console, guest.complaint().trim());
                report.console = tail(&console, TAIL);
                return Ok(report);
            }
        }
        if report.over && machine.keep {
            // Its last writes are on the disk only once the guest has turned itself off.
            turned_off(&guest, &mut report);
        }
        if report.over {
            report.last_look(&guest.console());
        }
        if report.over || report.overdue(began.elapsed(), &guest.console()) {
            report.console = tail(&guest.console(), TAIL);
            return Ok(report);
        }
    }
}

/// Waits until the guest has turned itself off, which ends QEMU.
fn turned_off(guest: &Guest, report: &mut Report) {
    let began = Instant::now();
    while began.elapsed() < TURN_OFF {
        if matches!(guest.hear(LOOK), Heard::End) {
            return;
        }
    }
    let why = format!("the guest did not turn off within {} s", TURN_OFF.as_secs());
    report.failed("turning off", why);
}
