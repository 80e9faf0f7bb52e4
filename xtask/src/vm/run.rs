//! One guest from power on to its verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::follow::{Report, tail};
use super::qemu::{Guest, Heard, Machine};

/// How often the console is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// For the last writes of a disk that is kept.
const TURN_OFF: Duration = Duration::from_secs(120);
/// Lines of the console that explain a failure.
const TAIL: usize = 30;

/// Starts a machine and follows it until its verdict, its end, or `limit`; `show` gets what is worth a
/// line.
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
            // What it wrote last is on the disk only once it has turned itself off.
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

/// Waits until QEMU has ended by itself.
fn turned_off(guest: &Guest, report: &mut Report) {
    let began = Instant::now();
    while began.elapsed() < TURN_OFF {
        if matches!(guest.hear(LOOK), Heard::End) {
            return;
        }
    }
    report.failed("turning off", format!("not off within {} s", TURN_OFF.as_secs()));
}
