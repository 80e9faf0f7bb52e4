//! Looks again until something is so, with a deadline.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(2);

/// False where it was not so within `limit`.
///
/// Many a look starts a program, which takes a second in a guest without hardware virtualisation: three
/// quarters of the time belong to what is waited for.
///
/// # Errors
/// A look that fails.
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
