//! The kernel's statistics of BPF programs: how often each ran and for how long.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;

/// The statistics of each program since it was loaded, by program id.
pub type Runs = BTreeMap<u32, Run>;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Run {
    pub count: u64,
    pub time_ns: u64,
}

/// Returns the programs whose descriptors a process holds. `process` is a pid or `self`.
///
/// Names are not used: a peer's programs are the ones that it loaded, under any name.
pub fn of_process(process: &str) -> Result<Runs> {
    let mut runs = Runs::new();
    let folder = format!("/proc/{process}/fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // A descriptor may be closed before it is read.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some((id, run)) = parse(&text) {
            runs.insert(id, run);
        }
    }
    Ok(runs)
}

/// Returns None if the descriptor is not a program. Links show a program's id too.
fn parse(fdinfo: &str) -> Option<(u32, Run)> {
    let field = |name: &str| -> Option<u64> {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    field("prog_type:")?;
    let run = Run { count: field("run_cnt:")?, time_ns: field("run_time_ns:")? };
    Some((u32::try_from(field("prog_id:")?).ok()?, run))
}

/// Returns the cost of one event between two readings in nanoseconds, and the number of events.
///
/// If several programs see each event (one at its begin, one at its end), their costs are added.
pub fn per_event(before: &Runs, after: &Runs) -> Result<(f64, u64)> {
    let mut cost = 0.0;
    let mut most = 0;
    for (id, after) in after {
        let before = before.get(id).copied().unwrap_or_default();
        let count = after.count - before.count;
        if count > 0 {
            cost += (after.time_ns - before.time_ns) as f64 / count as f64;
            most = most.max(count);
        }
    }
    ensure!(most > 0, "no BPF program ran");
    Ok((cost, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_distinguished_from_its_link() {
        let program = "pos:\t0\nprog_type:\t5\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        assert_eq!(parse(program), Some((7, Run { count: 3, time_ns: 900 })));
        assert_eq!(parse("link_type:\tperf\nprog_id:\t7\n"), None);
    }

    #[test]
    fn costs_of_two_programs_add_up() {
        let run = |count, time_ns| Run { count, time_ns };
        let before = Runs::from([(1, run(10, 1000))]);
        let after = Runs::from([(1, run(20, 3000)), (2, run(10, 500)), (3, run(0, 0))]);
        assert_eq!(per_event(&before, &after).unwrap(), (250.0, 10));
    }
}
