//! Parsers for the files below `/proc`. They take text and return values, and read no files.

pub mod fdinfo;
pub mod io;
pub mod membership;
pub mod mount;
pub mod net;
pub mod session;
pub mod stat;
pub mod status;
pub mod syscall;

/// Returns the number of tasks on the whole host from `/proc/loadavg`: its fourth field is
/// `running/all`.
#[must_use]
pub fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::tasks;

    #[test]
    fn the_fourth_field_of_loadavg_counts_all_tasks() {
        assert_eq!(tasks("0.20 0.18 0.12 1/1080 11206\n"), Some(1080));
        for bad in ["", "0.20 0.18 0.12", "0.20 0.18 0.12 1 11206", "0.20 0.18 0.12 1/x 11206"] {
            assert_eq!(tasks(bad), None, "{bad:?}");
        }
    }
}
