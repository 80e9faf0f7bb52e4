//! Polls for a condition, with a deadline.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

/// The shortest pause between two checks.
const SHORTEST: Duration = Duration::from_millis(5);
/// The longest pause between two checks.
const LONGEST: Duration = Duration::from_secs(2);

/// Polls until `reached` returns true. Returns false if it did not within `limit`.
///
/// A check may start a program, which takes a second in a guest without hardware virtualisation. A
/// pause is three times as long as the check before it, so that three quarters of the time are left
/// to what is waited for.
///
/// # Errors
/// If a check fails.
pub fn until(limit: Duration, mut reached: impl FnMut() -> Result<bool>) -> Result<bool> {
    let began = Instant::now();
    loop {
        let look = Instant::now();
        if reached()? {
            return Ok(true);
        }
        if began.elapsed() > limit {
            return Ok(false);
        }
        sleep((look.elapsed() * 3).clamp(SHORTEST, LONGEST));
    }
}
