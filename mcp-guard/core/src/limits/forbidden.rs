//! Whether a limit may be written at all. This is asked on fresh facts right before each write, by the
//! agent and by `mcp-guard repair`.

use std::fmt;

use crate::{
    diagnose::owner::Standing,
    limit::Limit,
    refusal::{BystanderFacts, Refusal, refusal},
    repair::Write,
};

/// Why no limit of a cgroup is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    Bystander(Refusal),
    /// A clamp of ours is in force.
    Clamped,
    /// A lower limit was set after the write was decided on.
    Lowered(Limit),
    /// The unit's limit would also bind other cgroups of the unit.
    BindsMore {
        unit: String,
        cgroup: String,
    },
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bystander(refusal) => refusal.fmt(f),
            Self::Clamped => f.write_str(
                "mcp-guard has clamped it, and another limit would end the clamp but not the leak; \
                 `mcp-guard thaw` restores the limit before the clamp, then this one can be written",
            ),
            Self::Lowered(found) => write!(
                f,
                "pids.max was lowered to {found} meanwhile, and a lower limit is left alone"
            ),
            Self::BindsMore { unit, cgroup } => write!(
                f,
                "{unit} is not the unit of {cgroup} alone; its limit would also bind bystanders"
            ),
        }
    }
}

/// Returns why a write is not made that was decided on while `over` was in force, if `found` is in force now. A
/// lower limit than both that and the new one is a brake, or belongs to a freeze.
#[must_use]
pub fn overtaken(write: &Write, over: Limit, found: Limit) -> Option<Forbidden> {
    let is_lowered = found < over && found < Limit::Tasks(write.limit());
    is_lowered.then_some(Forbidden::Lowered(found))
}

/// Returns why a limit must not be written there, whatever the state of the cgroup.
#[must_use]
pub fn forbidden_there(write: &Write, cgroup: &str) -> Option<Forbidden> {
    let Write::TasksMax { unit, .. } = write else { return None };
    let binds_more = Standing::of(cgroup, unit).is_none();
    binds_more.then(|| Forbidden::BindsMore { unit: unit.clone(), cgroup: cgroup.to_owned() })
}

/// Returns why no limit may be written, or `None` if it may. `is_clamped`: a clamp is in force, of this
/// process or another one of ours. The limit beside a freeze is no clamp.
#[must_use]
pub fn forbidden(facts: &BystanderFacts, is_clamped: bool) -> Option<Forbidden> {
    let refused = refusal(facts).map(Forbidden::Bystander);
    refused.or_else(|| is_clamped.then_some(Forbidden::Clamped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_clamp_overrides_a_repair_by_hand() {
        let facts =
            BystanderFacts { path: "/x".into(), own: "/agent".into(), ..Default::default() };
        assert_eq!(forbidden(&facts, true), Some(Forbidden::Clamped));
        assert_eq!(forbidden(&facts, false), None);
    }

    #[test]
    fn the_limit_of_a_unit_is_written_only_for_its_own_cgroup_or_payload() {
        let tasks_max =
            |unit: &str| Write::TasksMax { unit: unit.into(), limit: 40, runtime: true };
        let own = "/system.slice/gateway.service";
        assert_eq!(forbidden_there(&tasks_max("gateway.service"), own), None);
        for (unit, cgroup) in [("system.slice", own), ("gateway.service", "/system.slice")] {
            let (unit, cgroup) = (unit.to_owned(), cgroup.to_owned());
            let forbidden = forbidden_there(&tasks_max(&unit), &cgroup);
            assert_eq!(forbidden, Some(Forbidden::BindsMore { unit, cgroup }));
        }
        assert_eq!(forbidden_there(&Write::PidsMax { limit: 40 }, "/x"), None);
    }

    #[test]
    fn a_limit_that_was_lowered_meanwhile_is_left_alone() {
        let tasks = Limit::Tasks;
        for (over, found, lowered) in [
            (Limit::Max, Limit::Max, false),
            (Limit::Max, tasks(500), false),
            (Limit::Max, tasks(40), true),
            // It was there before, and an operator replaces it.
            (tasks(40), tasks(40), false),
            (tasks(500), tasks(90), false),
            (tasks(500), tasks(89), true),
        ] {
            let forbidden = overtaken(&Write::Docker { limit: 90 }, over, found);
            assert_eq!(forbidden, lowered.then_some(Forbidden::Lowered(found)), "{over} {found}");
        }
    }

    #[test]
    fn a_rule_is_named_before_a_clamp_that_a_thaw_would_end() {
        let facts = BystanderFacts { holds_pid_1: true, path: "/x".into(), ..Default::default() };
        let refused = Some(Forbidden::Bystander(Refusal::HoldsPid1));
        assert_eq!((forbidden(&facts, true), forbidden(&facts, false)), (refused.clone(), refused));
    }
}
